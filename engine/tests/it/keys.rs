//! Idempotency keys: a batch that is sent again is stored once, whatever happened in between.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use xs_engine::{
    AppendError, Appended, Batch, BlobHash, Body, Condition, CursorChange, CursorName, CursorValue,
    ExpectRevision, IdempotencyKey, NewFrame, Origin, Store, StoreOptions, Ttl,
};

use crate::append::empty;
use crate::support::{
    MEDIA, TestClock, batch, copy_store, everything, files, frames, number_of, numbered, open,
    options, scratch, segments, with_body,
};

const HOUR_MS: u64 = 3_600_000;

fn keyed(key: &str, frames: impl IntoIterator<Item = NewFrame>) -> Batch {
    Batch { key: Some(IdempotencyKey::parse(key).unwrap()), ..batch(frames) }
}

/// Repeats a batch that was stored before; the answer must be the same.
fn repeat(store: &Store, batch: &Batch, first: &Appended) {
    let head = store.info().head;
    let again = store.append(batch.clone()).unwrap();
    assert!(again.repeated && !first.repeated);
    assert_eq!((&again.frames, store.info().head), (&first.frames, head));
}

fn is_reused(answer: &Result<Appended, AppendError>, first: &Appended) -> bool {
    matches!(answer, Err(AppendError::KeyReused { id, .. }) if *id == first.frames[0].id)
}

#[test]
fn a_batch_with_a_key_is_stored_once() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    let one = keyed("one", [numbered("a", 1), with_body(numbered("b", 2), b"body")]);
    let first = store.append(one.clone()).unwrap();
    store.append(numbered("a", 3).into()).unwrap();
    repeat(&store, &one, &first);
    // Its conditions held when it was stored; that they do not hold now does not matter.
    let conditions = vec![empty("*"), Condition::HeadIs(0)];
    repeat(&store, &Batch { conditions, durable: true, ..one.clone() }, &first);
    assert!(store.append(Batch { durable: true, ..one }).unwrap().durable);
    // A body is the same however it is given.
    let stored = NewFrame { body: Body::Stored(BlobHash::of(b"body")), ..numbered("b", 2) };
    repeat(&store, &keyed("one", [numbered("a", 1), stored]), &first);
    let other = store.append(keyed("one", [numbered("a", 1)]));
    assert!(is_reused(&other, &first), "{other:?}");
    assert_eq!(store.info().head, 3);
    let ephemeral = || NewFrame { ttl: Ttl::Ephemeral, ..numbered("a", 0) };
    let none = store.append(keyed("none", [ephemeral()]));
    assert_eq!(none, Err(AppendError::KeyWithoutFrame));
    // Ephemeral frames are not stored, so only the first frame can be returned.
    let mixed = keyed("mixed", [ephemeral(), numbered("a", 4), ephemeral()]);
    let first = store.append(mixed.clone()).unwrap();
    assert_eq!(store.append(mixed).unwrap().frames, first.frames[..1]);
    let behind = keyed("behind", [ephemeral(), numbered("a", 5), numbered("a", 6)]);
    let first = store.append(behind.clone()).unwrap();
    assert_eq!(
        first.frames.iter().map(|stamp| stamp.offset).collect::<Vec<_>>(),
        [None, Some(4), Some(5)]
    );
    repeat(&store, &behind, &first);
    let many = keyed("many", (0..4096).map(|n| numbered("a", n)));
    let refused = AppendError::BatchCount { count: 4096, max: 4095 };
    assert_eq!(store.append(many), Err(refused));
}

#[test]
fn a_batch_is_a_repeat_also_when_its_body_is_gone() {
    let dir = scratch();
    let clock = TestClock::new();
    let store = open(dir.path(), &StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) });
    let named = |bytes: &[u8]| {
        let frame = NewFrame { body: Body::Stored(BlobHash::of(bytes)), ..numbered("a", 1) };
        keyed("key", [frame])
    };
    let inline = keyed("key", [with_body(numbered("a", 1), b"body")]);
    let first = store.append(inline.clone()).unwrap();
    store.remove_now(&[first.frames[0].id]).unwrap();
    assert!(store.blob(&BlobHash::of(b"body")).unwrap().is_none());
    for batch in [named(b"body"), inline] {
        repeat(&store, &batch, &first);
        assert!(store.blob(&BlobHash::of(b"body")).unwrap().is_none(), "nothing was stored");
    }
    let other = store.append(named(b"other"));
    assert!(is_reused(&other, &first), "{other:?}");
    // Once its key has expired it is like any batch; so is one with another key or none.
    let unknown = Err(AppendError::UnknownBlob(BlobHash::of(b"body")));
    let without = Batch { key: None, ..named(b"body") };
    assert_eq!(store.append(without), unknown);
    clock.forward(25 * HOUR_MS);
    assert_eq!(store.append(named(b"body")), unknown);
}

#[test]
fn all_that_a_batch_stores_is_its_content() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    let frame = || with_body(numbered("a", 1), b"body");
    let cursor = |name: &str, offset, state: &'static [u8]| CursorChange {
        name: CursorName::parse(name).unwrap(),
        expect: ExpectRevision::Any,
        set: Some(CursorValue { offset, state: Bytes::from_static(state) }),
    };
    let with = |frames, cursors| Batch { cursors, ..keyed("key", frames) };
    let base = with(vec![frame(), frame()], vec![cursor("c", 1, b"state")]);
    let first = store.append(base).unwrap();
    let again = with(vec![frame(), frame()], vec![cursor("c", 1, b"state")]);
    let expecting = |mut batch: Batch| {
        batch.cursors[0].expect = ExpectRevision::Is(0);
        batch
    };
    repeat(&store, &expecting(again), &first);
    let origin = Origin { processor: first.frames[0].id, input: None, input_offset: None, hops: 1 };
    let second = |change: fn(&mut NewFrame)| {
        let mut changed = frame();
        change(&mut changed);
        with(vec![frame(), changed], vec![cursor("c", 1, b"state")])
    };
    let others = [
        second(|frame| frame.topic = crate::support::topic("b")),
        second(|frame| frame.meta = xs_engine::Meta::none()),
        second(|frame| frame.body = Body::None),
        second(|frame| frame.body = Body::Inline(Bytes::from_static(b"other"))),
        second(|frame| frame.ttl = Ttl::TimeMs(1)),
        second(|frame| frame.ttl = Ttl::Last(NonZeroU64::MIN)),
        second(|frame| frame.ttl = Ttl::Ephemeral),
        with(
            vec![frame(), NewFrame { origin: Some(origin), ..frame() }],
            vec![cursor("c", 1, b"state")],
        ),
        with(vec![frame()], vec![cursor("c", 1, b"state")]),
        with(vec![frame(), frame(), frame()], vec![cursor("c", 1, b"state")]),
        with(vec![frame(), frame()], vec![]),
        with(vec![frame(), frame()], vec![cursor("d", 1, b"state")]),
        with(vec![frame(), frame()], vec![cursor("c", 2, b"state")]),
        with(vec![frame(), frame()], vec![cursor("c", 1, b"other")]),
        with(vec![frame(), frame()], vec![CursorChange { set: None, ..cursor("c", 1, b"") }]),
    ];
    for (index, other) in others.into_iter().enumerate() {
        let answer = store.append(other);
        assert!(is_reused(&answer, &first), "{index}: {answer:?}");
    }
    assert_eq!(store.info().head, 2);
    // Removals are not compared, and a repetition removes nothing.
    let id = first.frames[0].id;
    let again = with(vec![frame(), frame()], vec![cursor("c", 1, b"state")]);
    repeat(&store, &Batch { removes: vec![id], ..again }, &first);
    assert!(store.get(id).unwrap().is_some());
}

#[test]
fn batches_of_one_group_share_a_key() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[1]));
    let pair = || keyed("pair", [numbered("a", 1), numbered("a", 2)]);
    let handles: Vec<_> = [pair(), pair(), keyed("pair", [numbered("a", 1)]), pair()]
        .map(|batch| store.submit(batch))
        .into();
    store.lead();
    let answers: Vec<_> = handles.into_iter().map(|handle| handle.wait()).collect();
    let first = answers[0].clone().unwrap();
    for again in [&answers[1], &answers[3]] {
        let again = again.clone().unwrap();
        assert_eq!((again.repeated, &again.frames), (true, &first.frames));
    }
    assert!(is_reused(&answers[2], &first));
    assert_eq!(store.info().head, 2);
}

/// A store with one key per hour, over several segments; returns the batches and their answers.
fn hourly(dir: &Path, options: &StoreOptions, clock: &TestClock) -> Vec<(Batch, Appended)> {
    let store = open(dir, options);
    let mut sent = Vec::new();
    for hour in 0..20 {
        let batch = keyed(&hour.to_string(), (0..200).map(|n| numbered("a", hour * 1000 + n)));
        sent.push((batch.clone(), store.append(batch).unwrap()));
        store.append(batch_of_fillers()).unwrap();
        clock.forward(HOUR_MS);
    }
    let killed = scratch();
    copy_store(dir, killed.path());
    store.close().unwrap();
    fs::remove_dir_all(dir).unwrap();
    copy_store(killed.path(), dir);
    sent
}

fn batch_of_fillers() -> Batch {
    batch((0..300).map(|n| numbered("filler", n)))
}

/// The keys from this hour on are still known, those before are not.
fn check_from(store: &Store, sent: &[(Batch, Appended)], from: usize) {
    for (batch, first) in &sent[from..] {
        repeat(store, batch, first);
    }
    for (batch, first) in &sent[..from] {
        let anew = store.append(batch.clone()).unwrap();
        assert!(!anew.repeated && anew.frames[0].id > first.frames[0].id);
        repeat(store, batch, &anew);
    }
}

#[test]
fn keys_count_for_a_day_across_kills() {
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let dir = scratch();
    let sent = hourly(dir.path(), &options, &clock);
    assert!(segments(dir.path()).len() > 6, "the keys must be in sealed segments");
    {
        let store = open(dir.path(), &options);
        check_from(&store, &sent, 0);
        clock.forward(10 * HOUR_MS);
        // 30 hours after the first one was sent.
        check_from(&store, &sent, 7);
    }
    clock.forward(5 * HOUR_MS);
    let store = open(dir.path(), &options);
    // Those sent again five hours ago are still known.
    let hour = |batch: &Batch| batch.key.clone().unwrap().as_str().parse::<u64>().unwrap();
    for (batch, first) in &sent {
        let answer = store.append(batch.clone()).unwrap();
        let counts = hour(batch) < 7 || hour(batch) >= 12;
        assert_eq!(answer.repeated, counts, "{}", hour(batch));
        assert_eq!(answer.frames == first.frames, hour(batch) >= 12);
    }
}

#[test]
fn key_files_are_made_again_and_spare_the_segments() {
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[1]) };
    let dir = scratch();
    let sent = hourly(dir.path(), &options, &clock);
    let log = dir.path().join("log");
    // Keys in lost or damaged files are read from their segments.
    drop(open(dir.path(), &options));
    let key_files = files(&log, "key");
    let whole: Vec<_> = key_files.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(key_files.len() > 5);
    for (number, path) in key_files.iter().enumerate() {
        match number % 3 {
            0 => fs::remove_file(path).unwrap(),
            1 => fs::write(path, &whole[number][..70]).unwrap(),
            _ => fs::write(path, &whole[0]).unwrap(),
        }
    }
    check_from(&open(dir.path(), &options), &sent, 0);
    let again: Vec<_> = key_files.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(again == whole);
    // Segments are not read for their keys: damage in one goes unnoticed.
    let sealed = segments(dir.path()).into_iter().find(|path| path.with_extension("key").exists());
    let sealed = sealed.unwrap();
    let mut bytes = fs::read(&sealed).unwrap();
    let batch_at = 64;
    bytes[batch_at + 9] ^= 1;
    fs::write(&sealed, bytes).unwrap();
    let store = open(dir.path(), &options);
    let (batch, first) = &sent[0];
    let again = store.append(batch.clone()).unwrap();
    assert_eq!((again.repeated, again.frames[0]), (true, first.frames[0]));
    assert!(!again.frames.is_empty());
}

#[test]
fn many_threads_with_one_key_store_one_batch() {
    let dir = scratch();
    let store: Arc<Store> = open(dir.path(), &options(MEDIA[0]));
    for round in 0..20 {
        let batch = keyed(&format!("round {round}"), [numbered("a", round)]);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| store.append(batch.clone()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|answer| !answer.repeated).count(), 1);
        assert!(answers.iter().all(|answer| answer.frames == answers[0].frames));
    }
    assert_eq!(store.info().head, 20);
}

const DIR: &str = "XS_IT_KEYS_DIR";

/// The batch that the killed process sends as its nth.
fn nth(n: u64) -> Batch {
    keyed(&format!("batch {n}"), [numbered("a", n), with_body(numbered("b", n), b"body")])
}

/// Not a test: the process that is killed. Reports each acknowledgement on stdout.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let store = open(Path::new(&dir), &options(MEDIA[0]));
    for n in 0.. {
        let repeated = store.append(nth(n)).unwrap().repeated;
        let line = format!("sent {n} {repeated}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn who_is_killed_and_sends_all_again_stores_it_once() {
    let dir = scratch();
    let mut acknowledged = 0;
    for round in 1..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "keys::child", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // The harness prints its own text before the first line.
        let sent = lines.filter_map(|line| line.split_once("sent ").map(|(_, n)| n.to_owned()));
        for (n, line) in (0..round * 700).zip(sent) {
            // Those that the previous process had reported, and at most one more.
            let repeated = line == format!("{n} true");
            assert!(repeated || line == format!("{n} false"), "{line}");
            assert!(repeated || n >= acknowledged, "{n} was stored twice");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = round * 700;
    }
    let store = open(dir.path(), &options(MEDIA[0]));
    let stored = frames(store.read(&everything()));
    for (index, frame) in stored.iter().enumerate() {
        assert_eq!((number_of(frame), frame.topic()), (index as u64 / 2, ["a", "b"][index % 2]));
    }
    assert!(stored.len() as u64 >= 2 * acknowledged);
}
