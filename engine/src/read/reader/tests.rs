use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::append::Batch;
use crate::options::CompactOptions;
use crate::options::{StoreOptions, SyncPolicy};
use crate::store::Store;
use crate::testing::{StillClock, batches, edit, fast_dir, frame, open, options, segment_files};
use crate::value::{CursorChange, CursorName, CursorValue, ExpectRevision, NewFrame, Ttl};

/// Returns the offsets that a read reports as missing, and those of the frames it yields.
fn gaps(store: &Store, options: &ReadOptions) -> (Vec<Range<u64>>, Vec<u64>) {
    let (mut gaps, mut seen) = (Vec::new(), Vec::new());
    let mut reader = store.read(options).unwrap();
    loop {
        let before = reader.next_offset();
        match reader.next() {
            Some(Ok(frame)) => seen.push(frame.offset().unwrap()),
            Some(Err(ReadError::Corrupt(damage))) => {
                let from = damage.offset.unwrap().max(before.min(reader.next_offset()));
                let until = damage.until.unwrap_or(from + 1).min(before);
                gaps.push(from..if options.reverse { until } else { reader.next_offset() });
            }
            Some(Err(error)) => panic!("{error}"),
            None => return (gaps, seen),
        }
    }
}

/// Frames per batch in the stores that are damaged.
const TOGETHER: u64 = 10;

/// A closed store of three segments, the file of the second, and how many frames there are.
fn three_segments(one: impl Fn(u64) -> NewFrame) -> (TempDir, PathBuf, u64) {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let mut count = 0;
    while segment_files(dir.path()).len() < 3 {
        let frames = (count..count + TOGETHER).map(&one).collect();
        store.append(Batch { frames, ..Batch::default() }).unwrap();
        count += TOGETHER;
    }
    store.close().unwrap();
    drop(store);
    let path = segment_files(dir.path()).remove(1);
    (dir, path, count)
}

/// Damaged records, and frames lost with them, are reported to each read of all or some of the
/// topics.
#[test]
fn whatever_is_missing_was_told_of_whichever_way_is_read() {
    let damages: [fn(&mut [u8], usize, usize); 5] = [
        // The header; a record; its length, so that it includes the next record, the rest of
        // the batch, and more than the batch has.
        |bytes, batch, _| bytes[batch + 20] ^= 1,
        |bytes, _, record| bytes[record + 20] ^= 1,
        |bytes, _, record| lengthen(bytes, record, 1),
        |bytes, _, record| lengthen(bytes, record, TOGETHER as u32 - 2),
        |bytes, _, record| bytes[record + 6] ^= 1,
    ];
    for (case, damage) in damages.into_iter().enumerate() {
        let (dir, path, count) = three_segments(|n| match n.is_multiple_of(3) {
            true => frame("a", n % 10),
            false => frame("b", n % 10),
        });
        let places = batches(&path);
        edit(&path, |bytes| {
            for batch in [1, 5, 6, 20, places.len() - 2].map(|at| places[at]) {
                let first = batch + crate::format::batch::BATCH_HEADER_LEN;
                let second = first + stride(bytes, first);
                damage(bytes, batch, second);
            }
        });
        let store = open(dir.path(), SyncPolicy::None);
        for topics in ["*", "a", "a, b"] {
            for reverse in [false, true] {
                let options = ReadOptions {
                    topics: TopicPatterns::parse(topics).unwrap(),
                    reverse,
                    ..ReadOptions::default()
                };
                let (gaps, seen) = gaps(&store, &options);
                let told: Vec<_> = gaps.into_iter().flatten().collect();
                let mut all = [&told[..], &seen[..]].concat();
                all.sort_unstable();
                let is_due = |n: &u64| topics != "a" || n.is_multiple_of(3) || told.contains(n);
                let expected: Vec<_> = (0..count).filter(is_due).collect();
                assert!(!told.is_empty());
                assert_eq!(all, expected, "case {case}, {topics}, reverse: {reverse}");
            }
        }
    }
}

fn stride(bytes: &[u8], record: usize) -> usize {
    crate::format::record::RecordPrefix::read(&bytes[record..]).unwrap().stride()
}

/// Lengthens a record by `by` of the records that follow it, which are as long as it is.
fn lengthen(bytes: &mut [u8], record: usize, by: u32) {
    let at = record + 4..record + 8;
    let len = u32::from_le_bytes(bytes[at.clone()].try_into().unwrap());
    let len = len + by * stride(bytes, record) as u32;
    bytes[at].copy_from_slice(&len.to_le_bytes());
}

#[test]
fn who_meets_damage_is_told_how_far_it_reaches() {
    let (dir, path, count) = three_segments(|n| frame("a", n));
    // The header of a batch in the middle, and the whole end of the same segment.
    let places = batches(&path);
    let last = places.len() - 2;
    let base = |bytes: &[u8], at: usize| {
        let header = crate::format::batch::BatchHeader::read(&bytes[places[at]..]).unwrap();
        header.base_offset
    };
    let (mut middle, mut end) = (0, 0);
    edit(&path, |bytes| {
        (middle, end) = (base(bytes, 5), base(bytes, last));
        bytes[places[5] + 20] ^= 1;
        bytes[places[last] + 20] ^= 1;
    });
    let store = open(dir.path(), SyncPolicy::None);
    let gaps = |options: &ReadOptions| {
        let (gaps, seen) = gaps(&store, options);
        (gaps, seen.len() as u64)
    };
    let whole = [middle..middle + TOGETHER, end..end + TOGETHER];
    assert_eq!(gaps(&ReadOptions::default()), (whole.to_vec(), count - 2 * TOGETHER));
    let (mut downwards, seen) = gaps(&ReadOptions { reverse: true, ..ReadOptions::default() });
    downwards.reverse();
    assert_eq!((&downwards[..], seen), (&whole[..], count - 2 * TOGETHER));
    // A read that starts within the damage is not led back to its start.
    let start = Start::From(Bound::Offset(middle + 3));
    let (from_within, _) = gaps(&ReadOptions { start, ..ReadOptions::default() });
    assert_eq!(from_within, [middle + 3..middle + TOGETHER, whole[1].clone()]);
    // A read that resumes below the damage does not meet it again.
    let before = Some(Bound::Offset(middle));
    let below = ReadOptions { before, reverse: true, ..ReadOptions::default() };
    assert_eq!(gaps(&below), (Vec::new(), middle));
    let options = ReadOptions { follow: true, ..ReadOptions::default() };
    let mut follower = store.follow(&options).unwrap();
    let mut found = Vec::new();
    while follower.next_offset() < count {
        let before = follower.next_offset();
        if follower.try_recv().is_err() {
            found.push(before..follower.next_offset());
        }
    }
    assert_eq!(found, whole);
}

/// Between taking its head and looking up floors, a read may be overtaken by any number of
/// frames.
#[test]
fn a_read_that_is_overtaken_as_it_begins_misses_nothing() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let append = |topic: &str, last: u64, n: u64| {
        let ttl = std::num::NonZeroU64::new(last).map_or(Ttl::Forever, Ttl::Last);
        store.append(NewFrame { ttl, ..frame(topic, n) }.into()).unwrap().frames[0].id
    };
    (0..500).for_each(|n| _ = append("other", 0, n));
    let state: Vec<_> = (0..3).map(|n| append("s.state", 1, n)).collect();
    let pair: Vec<_> = (0..3).map(|n| append("s.pair", 2, n)).collect();
    store.remove(pair[2]).unwrap();
    let head = store.inner.log.head();
    (0..5).for_each(|n| _ = (append("s.state", 1, n), append("s.pair", 1, n)));
    for topics in ["s.*", "s.state, s.pair", "*"] {
        for reverse in [false, true] {
            let topics = TopicPatterns::parse(topics).unwrap();
            let as_of = AsOf { head, ..store.inner.as_of_now() };
            let limits = Limits { as_of, left: u64::MAX };
            let reader = Reader::over(&store.inner, &topics, 0..head, reverse, limits);
            let frames = reader.map(Result::unwrap).filter(|of| of.topic() != "other");
            let mut found: Vec<_> = frames.map(|frame| frame.id()).collect();
            found.sort_unstable();
            assert_eq!(found, [state[2], pair[1]], "{topics:?}, reverse: {reverse}");
        }
    }
}

/// Frames that `last:n` had removed when the read began stay removed, whatever has happened
/// since to the frames that were kept.
#[test]
fn a_read_that_is_overtaken_as_it_begins_sees_nothing_that_was_gone() {
    let (dir, clock) = (fast_dir(), StillClock::at(1_000_000));
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), options).unwrap();
    let append = |topic: &str, ttl: Ttl| {
        store.append(NewFrame { ttl, ..frame(topic, 0) }.into()).unwrap().frames[0].id
    };
    let last = |n: u64| Ttl::Last(std::num::NonZeroU64::new(n).unwrap());
    (0..500).for_each(|_| _ = append("other", Ttl::Forever));
    let ttls = [Ttl::Forever, Ttl::TimeMs(3000), last(2)];
    let timed = ttls.map(|ttl| append("s.timed", ttl));
    let removed = [(); 5].map(|()| append("s.removed", last(3)));
    store.remove(removed[3]).unwrap();
    let head = store.inner.log.head();
    clock.0.fetch_add(4000, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..3 {
        append("s.timed", last(2));
        append("s.removed", last(3));
    }
    for topics in ["s.*", "s.timed, s.removed", "*"] {
        for reverse in [false, true] {
            let topics = TopicPatterns::parse(topics).unwrap();
            let as_of = AsOf { head, ..store.inner.as_of_now() };
            let limits = Limits { as_of, left: u64::MAX };
            let reader = Reader::over(&store.inner, &topics, 0..head, reverse, limits);
            let frames = reader.map(Result::unwrap).filter(|of| of.topic() != "other");
            let mut found: Vec<_> = frames.map(|frame| frame.id()).collect();
            found.sort_unstable();
            let left = [timed[2], removed[2], removed[4]];
            assert_eq!(found, left, "{topics:?}, reverse: {reverse}");
        }
    }
}

/// A read sees the frames that `last:n` had left when it began, in whichever way it reads, even
/// if they were superseded and compacted away since. Frames removed earlier stay hidden.
#[test]
fn a_read_that_began_sees_what_was_compacted_away_since() {
    // After one move of a floor the index still knows the previous one.
    for superseding in [1, 3] {
        it_sees_what_was_compacted_away_since(superseding);
    }
}

fn it_sees_what_was_compacted_away_since(superseding: u64) {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let append = |topic: &str, last: u64, n: u64| {
        let ttl = std::num::NonZeroU64::new(last).map_or(Ttl::Forever, Ttl::Last);
        store.append(NewFrame { ttl, ..frame(topic, n) }.into()).unwrap().frames[0].id
    };
    let fill = |topic: &str, last: u64| {
        let before = segment_files(dir.path()).len();
        while segment_files(dir.path()).len() == before {
            append(topic, last, 0);
        }
    };
    // A segment that stays as it is, one that is rewritten, and the active one.
    (0..8).for_each(|n| _ = append("s.three", 0, n));
    fill("other", 0);
    let mut three: Vec<_> = (8..10).map(|n| append("s.three", 0, n)).collect();
    let mut want = vec![append("s.one", 1, 0)];
    fill("gone", 1);
    three.push(append("s.three", 3, 10));
    want.extend(&three);
    want.sort_unstable();
    let as_of = store.inner.as_of_now();
    for n in 0..superseding {
        append("s.one", 1, n);
        append("s.three", 3, n);
    }
    let half = CompactOptions { dead_percent: 50, bytes_per_second: None };
    assert_eq!(store.compact(half).unwrap().rewritten, 1);
    for topics in ["s.*", "s.one, s.three", "*"] {
        for reverse in [false, true] {
            let topics = TopicPatterns::parse(topics).unwrap();
            let limits = Limits { as_of: as_of.clone(), left: u64::MAX };
            let reader = Reader::over(&store.inner, &topics, 0..as_of.head, reverse, limits);
            let frames = reader.map(Result::unwrap).filter(|of| of.topic().starts_with("s."));
            let mut found: Vec<_> = frames.map(|frame| frame.id()).collect();
            found.sort_unstable();
            assert_eq!(found, want, "{topics:?}, reverse: {reverse}");
        }
    }
    // And where the last 4 begin.
    let topics = TopicPatterns::parse("s.*").unwrap();
    let start = store.inner.start_of_last(&topics, 0..as_of.head, &as_of, 4).unwrap();
    let first = store.inner.offset_of(want[0], as_of.head).unwrap();
    assert!(start <= first, "{start} {first}");
}

#[test]
fn who_wants_few_reads_few_whatever_the_share() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    for (topic, count) in [("old", 300), ("other", 900)] {
        (0..count).for_each(|n| drop(store.append(frame(topic, n).into()).unwrap()));
    }
    let way = |limit, reverse| {
        let topics = TopicPatterns::parse("old").unwrap();
        let options = ReadOptions { topics, limit, reverse, ..ReadOptions::default() };
        let reader = store.read(&options).unwrap();
        let way = format!("{reader:?}").contains("postings");
        (way, reader.map(Result::unwrap).count())
    };
    assert_eq!((way(Some(10), true), way(Some(10), false)), ((true, 10), (true, 10)));
    assert_eq!((way(None, true), way(Some(300), false)), ((false, 300), (false, 300)));
}

#[test]
fn looks_are_counted_whatever_they_find() {
    const MANY: u64 = 1000;
    const LOOKS: usize = 100;
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let append = |topic: &str, ttl: Ttl, n: u64| {
        store.append(NewFrame { ttl, ..frame(topic, n) }.into()).unwrap();
    };
    let newest = Ttl::Last(std::num::NonZeroU64::MIN);
    (0..MANY).for_each(|n| append("gone", newest, n));
    (0..MANY).for_each(|n| append("other", Ttl::Forever, n));
    for n in 0..MANY {
        let name = CursorName::parse("c").unwrap();
        let set = Some(CursorValue { offset: n, ..CursorValue::default() });
        let change = CursorChange { name, expect: ExpectRevision::Any, set };
        store.append(Batch { cursors: vec![change], ..Batch::default() }).unwrap();
    }
    (0..MANY).for_each(|n| append("wanted", Ttl::Forever, n));
    let topics = |text: &str| TopicPatterns::parse(text).unwrap();
    let read = |text: &str, reverse: bool| {
        let options = ReadOptions { topics: topics(text), reverse, ..ReadOptions::default() };
        let (mut reader, mut pauses) = (store.read(&options).unwrap(), Vec::new());
        loop {
            let mut looks = LOOKS;
            match reader.next_within(&mut looks) {
                Some(frame) => return (pauses, frame.unwrap().offset().unwrap()),
                None => assert_eq!(looks, 0, "it has ended at {pauses:?}"),
            }
            pauses.push(reader.next_offset());
        }
    };
    let all_short = |from: u64, pauses: &[u64]| {
        let before = std::iter::once(from).chain(pauses.iter().copied());
        before.zip(pauses).all(|(before, &at)| before.abs_diff(at) <= LOOKS as u64)
    };
    // Superseded frames, frames of other topics, cursors, and backwards.
    let (pauses, first) = read("*", false);
    assert!(all_short(0, &pauses) && pauses.len() >= 9, "{pauses:?}");
    assert_eq!(first, MANY - 1);
    let (pauses, first) = read("wanted", false);
    assert!(all_short(0, &pauses) && pauses.len() > 21, "a cursor is a look too: {pauses:?}");
    assert_eq!(first, 2 * MANY);
    let (pauses, last) = read("gone, other", true);
    assert!(all_short(3 * MANY, &pauses) && pauses.len() >= 9, "{pauses:?}");
    assert_eq!(last, 2 * MANY - 1);
    let options = ReadOptions { topics: topics("wanted"), follow: true, ..ReadOptions::default() };
    let (mut follower, mut pauses) = (store.follow(&options).unwrap(), 0);
    while follower.try_recv_within(&mut { LOOKS }).unwrap().is_none() {
        pauses += 1;
        assert!(follower.is_ready(), "it has more");
    }
    assert!(pauses > 21, "{pauses}");
    assert_eq!(follower.next_offset(), 2 * MANY + 1);
}

/// Also where the frames before it in its batch were compacted away, so that its offset is not the
/// one that is expected there.
#[test]
fn a_damaged_first_record_is_told_of_once_whichever_way_is_read() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let mut ids = Vec::new();
    while segment_files(dir.path()).len() < 3 {
        let frames = (0..TOGETHER).map(|n| frame("a", n)).collect();
        let appended = store.append(Batch { frames, ..Batch::default() }).unwrap();
        ids.extend(appended.frames.iter().map(|stamp| stamp.id));
    }
    for removes in ids.chunks(TOGETHER as usize).map(|batch| batch[..4].to_vec()) {
        store.append(Batch { removes, ..Batch::default() }).unwrap();
    }
    let all = CompactOptions { dead_percent: 1, bytes_per_second: None };
    assert!(store.compact(all).unwrap().rewritten > 0);
    store.close().unwrap();
    drop(store);
    let path = segment_files(dir.path()).remove(0);
    let first = |at: usize| at + crate::format::batch::BATCH_HEADER_LEN;
    let mut damaged = 0;
    edit(&path, |bytes| {
        for record in batches(&path).into_iter().map(first) {
            let read =
                crate::format::record::RecordPrefix::read(bytes.get(record..).unwrap_or_default());
            if read.is_ok_and(|prefix| prefix.kind == crate::format::record::RecordKind::Frame) {
                assert!(read.unwrap().offset_delta > 0, "its place is not the expected one");
                bytes[record + 20] ^= 1;
                damaged += 1;
            }
        }
    });
    let store = open(dir.path(), SyncPolicy::None);
    let told = |reverse| {
        let options = ReadOptions { reverse, ..ReadOptions::default() };
        let errors = store.read(&options).unwrap().filter_map(Result::err);
        let place = |error| match error {
            ReadError::Corrupt(corruption) => (corruption.position, corruption.offset),
            error => panic!("{error}"),
        };
        errors.map(place).collect::<Vec<_>>()
    };
    let (up, mut down) = (told(false), told(true));
    down.reverse();
    assert!(up.len() == damaged && damaged > 50, "{damaged} {up:?}");
    assert_eq!(down, up);
}
