//! Maintenance of a store in use, and of one whose process is killed meanwhile.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xs_engine::{
    Batch, CompactOptions, CopyOptions, CursorChange, CursorName, CursorValue, ExpectRevision,
    Finding, Frame, Health, MaintainError, NewFrame, Problem, Progress, ReadOnlyReason, Severity,
    Store, SyncPolicy, Ttl, restore, verify,
};

use crate::support::{
    MEDIA, batch, everything, frames, number_of, numbered, open, options, scratch, with_body,
};

const DIR: &str = "XS_IT_BACKUP_DIR";

fn go_on(_progress: &Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Batches that each writer may append for each round of the test.
const ROUND: u64 = 2000;

/// Waits until batch number `n` may be appended; returns whether to go on at all.
fn may_append(n: u64, allowed: &AtomicU64) -> bool {
    loop {
        match allowed.load(Ordering::Relaxed) {
            0 => return false,
            allowed if n < allowed => return true,
            _ => thread::yield_now(),
        }
    }
}

/// Appends pairs of frames as long as allowed, every third with a body.
fn write_allowed(store: &Store, topic: &str, allowed: &AtomicU64) {
    for n in (0..).step_by(2) {
        if !may_append(n / 2, allowed) {
            return;
        }
        let body = n.to_string().repeat(30);
        let second = match n % 3 {
            0 => with_body(numbered(topic, n + 1), body.as_bytes()),
            _ => numbered(topic, n + 1),
        };
        store.append(batch([numbered(topic, n), second])).unwrap();
    }
}

/// The frames of a copy; checks their bodies.
fn read_copy(dir: &Path) -> Vec<Frame> {
    let copy = open(dir, &options(MEDIA[0]));
    let stored = frames(copy.read(&everything()));
    for hash in stored.iter().filter_map(Frame::hash) {
        copy.blob(&hash).unwrap().expect("the blob of a frame").bytes(1 << 20).unwrap();
    }
    stored
}

fn is_prefix(copy: &[Frame], log: &[Frame]) -> bool {
    let same = |(a, b): (&Frame, &Frame)| a.offset() == b.offset() && a.record() == b.record();
    copy.len() <= log.len() && copy.iter().zip(log).all(same)
}

#[test]
fn a_backup_under_appends_is_a_prefix_of_the_log() {
    for (media, sync) in [(MEDIA[0], SyncPolicy::None), (MEDIA[1], SyncPolicy::Sync)] {
        let (dir, dest, forks) = (scratch(), scratch(), scratch());
        let store = open(dir.path(), &xs_engine::StoreOptions { sync, ..options(media) });
        let allowed = Arc::new(AtomicU64::new(ROUND));
        let writers: Vec<_> = ["a", "b", "c"]
            .map(|topic| {
                let (store, allowed) = (Arc::clone(&store), Arc::clone(&allowed));
                thread::spawn(move || write_allowed(&store, topic, &allowed))
            })
            .into();
        let mut copies = Vec::new();
        for round in 0..6 {
            allowed.fetch_add(ROUND, Ordering::Relaxed);
            let report = store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
            let checked = verify(dest.path(), &mut go_on).unwrap();
            assert!(checked.is_clean(), "{:#?}", checked.findings);
            let stored = read_copy(dest.path());
            assert_eq!(stored.len() as u64, report.head, "round {round}");
            copies.push(stored);
            let fork = forks.path().join(round.to_string());
            let report = store.fork(&fork).unwrap();
            let stored = read_copy(&fork);
            assert_eq!(stored.len() as u64, report.head, "round {round}");
            copies.push(stored);
        }
        allowed.store(0, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let log = frames(store.read(&everything()));
        assert!(copies.iter().all(|copy| is_prefix(copy, &log)));
        assert!(copies.windows(2).all(|pair| pair[0].len() <= pair[1].len()));
        assert!(copies.last().unwrap().len() > copies[0].len(), "the appends went on");
    }
}

#[test]
fn a_backup_under_compaction_lacks_nothing() {
    let (dir, dest) = (scratch(), scratch());
    let store = open(dir.path(), &options(MEDIA[0]));
    let allowed = Arc::new(AtomicU64::new(ROUND));
    let run = |work: fn(&Store, u64)| {
        let (store, allowed) = (Arc::clone(&store), Arc::clone(&allowed));
        thread::spawn(move || {
            (0..).take_while(|&n| may_append(n, &allowed)).for_each(|n| work(&store, n))
        })
    };
    let append = |store: &Store, n: u64| {
        let last = Ttl::Last(std::num::NonZeroU64::MIN);
        let state = NewFrame { ttl: last, ..with_body(numbered("state", n), &[n as u8; 400]) };
        store.append(batch([numbered("keep", n), state])).unwrap();
    };
    let compact = |store: &Store, _| {
        let all = CompactOptions { dead_percent: 1, bytes_per_second: None };
        store.compact(all).unwrap();
    };
    let workers = [run(append), run(compact)];
    let keep = |frames: Vec<Frame>| -> Vec<Frame> {
        frames.into_iter().filter(|frame| frame.topic() == "keep").collect()
    };
    let mut copies = Vec::new();
    for _ in 0..6 {
        allowed.fetch_add(ROUND, Ordering::Relaxed);
        let report = store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
        let checked = verify(dest.path(), &mut go_on).unwrap();
        assert!(checked.is_clean(), "{:#?}", checked.findings);
        let live = store.verify(&mut go_on).unwrap();
        assert!(live.is_clean(), "{:#?}", live.findings);
        assert_eq!(open(dest.path(), &options(MEDIA[0])).info().head, report.head);
        copies.push((report.head, keep(read_copy(dest.path()))));
    }
    allowed.store(0, Ordering::Relaxed);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let log = keep(frames(store.read(&everything())));
    for (head, copy) in copies {
        assert_eq!(copy.len() as u64, head / 2, "every other frame is kept");
        assert!(is_prefix(&copy, &log));
    }
}

/// Not a test: the process that is killed.
#[test]
fn backup_child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let store = open(&dir.join("store"), &options(MEDIA[0]));
    for n in 0.. {
        let body = format!("{n} ").repeat(200);
        store.append(with_body(numbered("a", n), body.as_bytes()).into()).unwrap();
        if n % 20 == 0 {
            store.backup(dir.join("backup"), CopyOptions::copies(), &mut go_on).unwrap();
            std::io::stdout().lock().write_all(b"backed up\n").unwrap();
        }
    }
}

#[test]
fn a_backup_survives_the_death_of_who_writes_it() {
    let dir = scratch();
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "maintain::backup_child", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.map_while(Result::ok).filter(|line| line.ends_with("backed up"));
        assert_eq!(told.take(1 + round % 3).count(), 1 + round % 3);
        child.kill().unwrap();
        child.wait().unwrap();
        let backup = dir.path().join("backup");
        let store = open(&dir.path().join("store"), &options(MEDIA[0]));
        let log = frames(store.read(&everything()));
        let report = verify(&backup, &mut go_on).unwrap();
        // Killed while it writes a manifest, it leaves that copy truncated, next to the other one.
        let is_left = |finding: &Finding| {
            finding.severity == Severity::Unused || finding.problem == Problem::Manifest
        };
        assert!(report.findings.iter().all(is_left), "{report:#?}");
        {
            let copy = open(&backup, &options(MEDIA[1]));
            let health = copy.info().health;
            assert_eq!(health, Health::ReadOnly(ReadOnlyReason::Backup));
        }
        let stored = read_copy(&backup);
        assert!(!stored.is_empty() && is_prefix(&stored, &log));
        store.backup(&backup, CopyOptions::copies(), &mut go_on).unwrap();
        assert!(verify(&backup, &mut go_on).unwrap().is_clean());
        assert!(is_prefix(&log, &read_copy(&backup)));
        store.close().unwrap();
    }
}

#[test]
fn a_backup_cut_off_before_its_files_had_their_names_verifies() {
    let dir = scratch();
    let (home, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let store = open(&home, &options(MEDIA[0]));
    (0..100).for_each(|n| {
        drop(store.append(with_body(numbered("a", n), &[n as u8; 900]).into()).unwrap())
    });
    store.backup(&backup, CopyOptions::copies(), &mut go_on).unwrap();
    let mut aside = 0;
    for sub in ["log", "blobs"] {
        for entry in std::fs::read_dir(backup.join(sub)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "seg" || end == "pack") {
                // The shorter form is from the previous backup.
                let bytes = std::fs::read(&path).unwrap();
                std::fs::rename(&path, path.with_added_extension("tmp")).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
                aside += 1;
            }
        }
    }
    assert!(aside >= 2);
    let report = verify(&backup, &mut go_on).unwrap();
    assert!(report.is_clean(), "{report:#?}");
    for options in [CopyOptions::copies(), CopyOptions::links()] {
        let back = dir.path().join(format!("restored.{}", options.link));
        let restored = restore(&backup, &back, options, &mut go_on).unwrap();
        assert_eq!(restored.head, 100);
        assert!(verify(&back, &mut go_on).unwrap().is_clean());
        assert_eq!(read_copy(&back), frames(store.read(&everything())));
    }
    assert_eq!(read_copy(&backup), frames(store.read(&everything())));
    assert!(verify(&backup, &mut go_on).unwrap().is_clean());
}

/// Both lock the table of cursors; in the wrong order they would deadlock.
#[test]
fn numbers_are_told_while_cursors_are_committed() {
    let dir = scratch();
    let store =
        open(dir.path(), &xs_engine::StoreOptions { sync: SyncPolicy::None, ..options(MEDIA[0]) });
    let (rounds, done) = (20_000, AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let name = CursorName::parse("reader").unwrap();
            for n in 0..rounds {
                let (name, expect) = (name.clone(), ExpectRevision::Any);
                let set = Some(CursorValue { offset: n, ..CursorValue::default() });
                let cursors = vec![CursorChange { name, expect, set }];
                store.append(Batch { cursors, ..Batch::default() }).unwrap();
                done.store(n + 1, Ordering::Relaxed);
            }
        });
        while done.load(Ordering::Relaxed) < rounds {
            assert!(store.stats().cursors <= 1);
        }
    });
}

/// Waits for a background thread that closing the store would not wait for.
fn sealed_pack(store: &Store) {
    let begun = Instant::now();
    while store.stats().blobs_sealed == 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no pack is sealed");
        thread::yield_now();
    }
}

#[test]
fn a_store_tells_its_numbers() {
    let dir = scratch();
    let sync = SyncPolicy::Sync;
    let store = open(dir.path(), &xs_engine::StoreOptions { sync, ..options(MEDIA[0]) });
    let empty = store.stats();
    assert_eq!((empty.frames.stored, empty.topics, empty.commit.groups), (0, 0, 0));
    for n in 0..400 {
        let topic = ["a", "b.c", "xs.note"][n as usize % 3];
        store.append(with_body(numbered(topic, n), &[n as u8; 900]).into()).unwrap();
    }
    let threads: Vec<_> = (0..4)
        .map(|writer| {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                (0..100).for_each(|n| drop(store.append(numbered("t", writer * 100 + n).into())));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let stats = store.stats();
    assert_eq!((stats.frames.stored, stats.frames.live, stats.topics), (800, 800, 4));
    assert_eq!(stats.info.head, 800);
    let commit = &stats.commit;
    assert!(commit.groups >= 500 && commit.groups <= 800, "{commit:?}");
    assert_eq!(commit.sync.count(), commit.groups, "each group was synced and measured");
    assert_eq!((commit.write.count(), commit.publish.count()), (commit.groups, commit.groups));
    assert!(commit.sync.below_us(990) >= commit.sync.below_us(500));
    assert!(commit.sync.max_ns <= commit.sync.total_ns && commit.sync.total_ns > 0);
    assert!(stats.maps_open > 0);
    sealed_pack(&store);
    store.close().unwrap();
    let closed = store.stats();
    let files = closed.files;
    assert_eq!((files.manifests.count, files.segments_active.count), (2, 1), "{files:?}");
    let packs = files.packs_sealed.count + files.packs_plain.count;
    assert!(files.segments_sealed.count >= 1 && packs >= 1, "{files:?}");
    assert!(files.segments_sealed.bytes > 32 * 1024 && files.derived.count >= 3, "{files:?}");
    assert_eq!(files.other.count, 0, "{files:?}");
    assert!(closed.blobs_sealed > 0);
    let poor = store.backup(scratch().path(), CopyOptions::copies(), &mut go_on);
    assert!(matches!(poor, Err(MaintainError::Closed)), "{poor:?}");
    let frame = store.get_at(399).unwrap().unwrap();
    assert_eq!(number_of(&frame), 399);
}
