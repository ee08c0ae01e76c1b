//! A process that is killed: whatever it acknowledged exists, in order and once.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use xs_engine::{Frame, JournalOptions, StoreOptions, SyncPolicy};

use crate::support::{
    MEDIA, batch, everything, frames, number_of, numbered, open, options, say, scratch,
    small_journal, with_body,
};

const DIR: &str = "XS_IT_KILL_DIR";
const POLICY: &str = "XS_IT_KILL_SYNC";
const ZEROS: &str = "XS_IT_KILL_ZEROS";
const JOURNAL: &str = "XS_IT_KILL_JOURNAL";
const WRITERS: u64 = 4;

/// Not a test: the process that is killed. Reports each acknowledgement on stdout.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    // The harness has already begun a line.
    say("");
    let sync: SyncPolicy = std::env::var(POLICY).unwrap().parse().unwrap();
    let zero_ahead = std::env::var_os(ZEROS).is_some();
    let journal = match std::env::var_os(JOURNAL) {
        Some(_) => small_journal(),
        None => JournalOptions::default(),
    };
    let options = StoreOptions { sync, zero_ahead, journal, ..options(MEDIA[0]) };
    let store = open(Path::new(&dir), &options);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            thread::spawn(move || {
                let first = frames(store.read(&everything()));
                let topic = format!("w{writer}");
                let mut n = first.iter().filter(|frame| frame.topic() == topic).count() as u64;
                loop {
                    let body = n.to_string().repeat(20);
                    let pair =
                        [numbered(&topic, n), with_body(numbered(&topic, n + 1), body.as_bytes())];
                    let appended = store.append(batch(pair)).unwrap();
                    for (stamp, n) in appended.frames.iter().zip(n..) {
                        let line = format!("{} {} {writer} {n}\n", stamp.offset.unwrap(), stamp.id);
                        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                    }
                    n += 2;
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

/// Starts a child, calls `before` after some acknowledgements, kills the child, and returns what it
/// reported. With `zeros` every file is zeroed before the child writes to it. The child uses a
/// journal from its first group on if `acknowledged` is odd.
pub(crate) fn run_and_kill(
    dir: &Path,
    (sync, zeros): (SyncPolicy, bool),
    acknowledged: usize,
    before: impl FnOnce(),
) -> BTreeMap<u64, String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if zeros {
        command.env(ZEROS, "yes");
    }
    if acknowledged % 2 == 1 {
        command.env(JOURNAL, "yes");
    }
    let mut child = command
        .args(["--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(POLICY, sync.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = BTreeMap::new();
    let mut take = |line: String| {
        if let Some((offset, rest)) = line.split_once(' ')
            && let Ok(offset) = offset.parse::<u64>()
            && rest.split(' ').count() == 3
        {
            told.insert(offset, rest.to_owned());
        }
    };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.by_ref().take(acknowledged) {
        take(line.unwrap());
    }
    before();
    child.kill().unwrap();
    child.wait().unwrap();
    // Lines still in the pipe were acknowledged too; the last one may be incomplete.
    let mut rest: Vec<_> = lines.map_while(Result::ok).collect();
    rest.pop();
    rest.into_iter().for_each(take);
    told
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    for sync in [SyncPolicy::Sync, SyncPolicy::None] {
        let dir = scratch();
        let mut told = BTreeMap::new();
        for round in 0..6 {
            told.extend(run_and_kill(dir.path(), (sync, false), 200 + 531 * round, || ()));
            let store = open(dir.path(), &options(MEDIA[round % 2]));
            let stored = frames(store.read(&everything()));
            check(&stored, &told);
            for frame in stored.iter().filter(|frame| frame.hash().is_some()) {
                let body = store.blob(&frame.hash().unwrap()).unwrap().unwrap();
                let text = number_of(frame).wrapping_sub(1).to_string().repeat(20);
                assert_eq!(body.bytes(1 << 20).unwrap(), text.as_bytes());
            }
            store.close().unwrap();
        }
    }
}

pub(crate) fn check(stored: &[Frame], told: &BTreeMap<u64, String>) {
    let mut next = [0; WRITERS as usize];
    for (frame, offset) in stored.iter().zip(0..) {
        assert_eq!(frame.offset(), Some(offset));
        let writer: usize = frame.topic()[1..].parse().unwrap();
        assert_eq!(number_of(frame), next[writer], "each writer's frames in order, once");
        next[writer] += 1;
        if let Some(told) = told.get(&offset) {
            assert_eq!(*told, format!("{} {writer} {}", frame.id(), number_of(frame)));
        }
    }
    assert!(next.iter().all(|next| next % 2 == 0), "a batch is whole or absent");
    assert!(stored.windows(2).all(|pair| pair[0].id() < pair[1].id()));
    let head = told.last_key_value().map_or(0, |(offset, _)| offset + 1);
    assert!(stored.len() as u64 >= head, "acknowledged {head}, found {}", stored.len());
}
