//! Damage in sealed files, which opening does not scan: reads report it and continue after it, and
//! lost or wrong indexes are rebuilt.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xs_engine::{
    AppendError, Batch, Bound, CursorChange, CursorName, CursorValue, ExpectRevision, Frame,
    ReadError, ReadOptions, Start, Store, StoreOptions,
};

use crate::support::{
    MEDIA, TestClock, batch, everything, files, frames, number_of, numbered, open, options,
    patterns, scratch, segments,
};

const FRAMES: u64 = 3000;

fn name(n: u64) -> &'static str {
    if n.is_multiple_of(50) { "rare" } else { "often" }
}

/// A closed store of several segments; frame n has the number n.
fn build(dir: &Path) {
    let store = open(dir, &options(MEDIA[0]));
    let mut n = 0;
    while n < FRAMES {
        let len = (1 + n % 4).min(FRAMES - n);
        store.append(batch((n..n + len).map(|n| numbered(name(n), n)))).unwrap();
        n += len;
    }
    store.close().unwrap();
}

/// Continues after errors: the numbers found, and the offset in each error.
fn survey(store: &Store, options: &ReadOptions) -> (Vec<u64>, Vec<u64>) {
    let (mut numbers, mut errors) = (Vec::new(), Vec::new());
    for frame in store.read(options).unwrap() {
        match frame {
            Ok(frame) => numbers.push(number_of(&frame)),
            Err(ReadError::Corrupt(corruption)) => errors.push(corruption.offset.unwrap()),
            Err(other) => panic!("{other}"),
        }
    }
    (numbers, errors)
}

fn answers(store: &Arc<Store>) -> Vec<Vec<Frame>> {
    let id = store.get_at(FRAMES / 2).unwrap().unwrap().id();
    let reads = [
        everything(),
        ReadOptions { topics: patterns("rare"), ..everything() },
        ReadOptions { topics: patterns("rare"), reverse: true, limit: Some(7), ..everything() },
        ReadOptions { start: Start::After(Bound::Id(id)), ..everything() },
        ReadOptions { start: Start::Last(200), topics: patterns("often"), ..everything() },
    ];
    let mut answers: Vec<_> = reads.iter().map(|options| frames(store.read(options))).collect();
    answers.push(store.last_per_topic(&patterns("*")).unwrap());
    answers.push(vec![store.get(id).unwrap().unwrap()]);
    answers
}

#[test]
fn a_damaged_record_costs_itself() {
    let dir = scratch();
    build(dir.path());
    let path = &segments(dir.path())[0];
    let sound = fs::read(path).unwrap();
    let step = sound.len() / 60;
    for at in (64..sound.len()).step_by(step) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x40;
        fs::write(path, &bytes).unwrap();
        let store = open(dir.path(), &options(MEDIA[at % 2]));
        let (numbers, errors) = survey(&store, &everything());
        let missing: Vec<_> = (0..FRAMES).filter(|n| numbers.binary_search(n).is_err()).collect();
        // A bit of padding or of a header's reserved bytes affects no frame.
        assert!(missing.len() <= 4, "byte {at} costs {missing:?}");
        assert_eq!(errors.is_empty(), missing.is_empty(), "byte {at} hides {missing:?}");
        assert!(missing.is_empty() || missing.contains(&errors[0]), "{missing:?} {errors:?}");
        let back = ReadOptions { reverse: true, ..everything() };
        let (mut upwards, _) = survey(&store, &back);
        upwards.reverse();
        assert!(upwards == numbers, "byte {at} reads otherwise downwards");
        for &n in &missing {
            // Its posting leads to a record even when the header before it is damaged.
            let visit = ReadOptions { topics: patterns(name(n)), ..everything() };
            let (found, errors) = survey(&store, &visit);
            assert!(!errors.is_empty() || found.contains(&n), "byte {at} hides {n}");
            assert!(matches!(store.get_at(n), Err(ReadError::Corrupt(_))), "byte {at} in {n}");
        }
        let beside = (0..FRAMES).find(|n| !missing.contains(n) && *n > 20).unwrap();
        assert_eq!(number_of(&store.get_at(beside).unwrap().unwrap()), beside);
    }
}

#[test]
fn a_frame_whose_kind_is_damaged_is_told_of() {
    // In the record's prefix, after the CRC and the length.
    const KIND_AT: usize = 8;
    const HEADER: usize = 64;
    let dir = scratch();
    build(dir.path());
    let path = &segments(dir.path())[0];
    let sound = fs::read(path).unwrap();
    let len_at = |at: usize| u32::from_le_bytes(sound[at + 4..at + 8].try_into().unwrap()) as usize;
    let ids: Vec<_> = frames(open(dir.path(), &options(MEDIA[0])).read(&everything()))
        .iter()
        .map(Frame::id)
        .collect();
    // The first batch is a checkpoint, the second has frame 0, the third 1 and 2.
    let batch_at = |n: usize| {
        let mut at = 64;
        for _ in 0..n {
            at += HEADER + u32::from_le_bytes(sound[at + 8..at + 12].try_into().unwrap()) as usize;
        }
        at
    };
    let second = batch_at(2) + HEADER;
    let third = batch_at(3) + HEADER;
    let middle = third + len_at(third).next_multiple_of(8);
    for (n, at) in [(1, second), (3, third), (4, middle)] {
        for bit in [0x02, 0x04, 0x06] {
            let mut bytes = sound.clone();
            assert_eq!(bytes[at + KIND_AT], 1, "a frame");
            bytes[at + KIND_AT] ^= bit;
            fs::write(path, &bytes).unwrap();
            let store = open(dir.path(), &options(MEDIA[usize::from(bit / 2) % 2]));
            let missing = |numbers: &[u64]| (0..FRAMES).filter(|m| !numbers.contains(m)).collect();
            let (numbers, errors) = survey(&store, &everything());
            assert_eq!((missing(&numbers), errors), (vec![n], vec![n]), "upwards");
            let (numbers, errors) = survey(&store, &ReadOptions { reverse: true, ..everything() });
            assert_eq!((missing(&numbers), errors), (vec![n], vec![n]), "downwards");
            assert!(matches!(store.get_at(n), Err(ReadError::Corrupt(_))));
            let id = ids[n as usize];
            assert!(matches!(store.get(id), Err(ReadError::Corrupt(_))));
            assert!(matches!(store.remove(id), Err(AppendError::Unreadable(_))));
            assert!(
                store.get_at(n - 1).unwrap().is_some() && store.get_at(n + 1).unwrap().is_some()
            );
        }
    }
}

#[test]
fn damage_before_the_end_of_a_range_is_in_it() {
    let dir = scratch();
    let clock = TestClock::new();
    let store = open(dir.path(), &StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) });
    for n in 0..FRAMES {
        store.append(numbered("often", n).into()).unwrap();
        clock.forward(1);
    }
    store.close().unwrap();
    drop(store);
    let all = frames(open(dir.path(), &options(MEDIA[0])).read(&everything()));
    let time = |n: usize| all[n].id().time_ms();
    let lost = 100;
    let path = segments(dir.path()).into_iter().find(|path| {
        let mut bytes = fs::read(path).unwrap();
        let id = all[lost].id();
        let found = bytes.windows(16).position(|bytes| bytes == id.as_bytes());
        found.is_some_and(|at| {
            bytes[at + 15] ^= 1;
            fs::write(path, bytes).unwrap();
            true
        })
    });
    assert_ne!(path.as_ref(), segments(dir.path()).last(), "it is sealed");
    assert!(path.is_some());
    let store = open(dir.path(), &options(MEDIA[0]));
    let before = Some(Bound::Id(all[lost + 1].id()));
    let until_ms = Some(time(lost + 1));
    for options in [
        ReadOptions { before, ..everything() },
        ReadOptions { until_ms, ..everything() },
        ReadOptions { before, reverse: true, ..everything() },
        ReadOptions { before, start: Start::Last(3), ..everything() },
    ] {
        let (numbers, errors) = survey(&store, &options);
        assert_eq!(errors, [lost as u64], "{options:?}");
        assert!(!numbers.contains(&(lost as u64 + 1)));
    }
}

#[test]
fn damage_behind_the_end_of_a_range_is_none_of_its() {
    const HEADER: usize = 64;
    let dir = scratch();
    build(dir.path());
    let path = &segments(dir.path())[0];
    let mut bytes = fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    // The batch that begins at offset 21: 20 frames before it are of one topic.
    let mut at = 64;
    while word(at + 16) < 21 {
        at += HEADER + word(at + 8) as usize;
    }
    let base = u64::from(word(at + 16));
    bytes[at + 20] ^= 1;
    fs::write(path, bytes).unwrap();
    let store = open(dir.path(), &options(MEDIA[0]));
    let start = Start::From(Bound::Offset(base - 20));
    for reverse in [false, true] {
        let topics = patterns("rare");
        let before = Some(Bound::Offset(base));
        let options = ReadOptions { topics, start, before, reverse, ..everything() };
        assert_eq!(survey(&store, &options), (vec![], vec![]));
        let one_more = ReadOptions { before: Some(Bound::Offset(base + 1)), ..options };
        assert_eq!(survey(&store, &one_more), (vec![], vec![base]));
    }
}

#[test]
fn a_damaged_record_that_is_no_frame_costs_no_reader_anything() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    let name = CursorName::parse("c").unwrap();
    let mut n = 0;
    while segments(dir.path()).len() < 3 {
        let set = Some(CursorValue { offset: n, state: format!("state {n}").into_bytes().into() });
        let change = CursorChange { name: name.clone(), expect: ExpectRevision::Any, set };
        store.append(Batch { cursors: vec![change], ..batch([numbered("often", n)]) }).unwrap();
        n += 1;
    }
    store.close().unwrap();
    drop(store);
    let path = &segments(dir.path())[0];
    let mut bytes = fs::read(path).unwrap();
    let text = b"state 7";
    let at = bytes.windows(text.len()).position(|found| found == text).unwrap();
    bytes[at] ^= 0x40;
    fs::write(path, &bytes).unwrap();
    let store = open(dir.path(), &options(MEDIA[0]));
    for reverse in [false, true] {
        let (numbers, errors) = survey(&store, &ReadOptions { reverse, ..everything() });
        assert_eq!((numbers.len() as u64, errors), (n, vec![]));
    }
    assert!((0..n).all(|n| store.get_at(n).unwrap().is_some()));
}

#[test]
fn a_hole_of_many_batches_is_one_gap() {
    let dir = scratch();
    build(dir.path());
    let path = &segments(dir.path())[1];
    let mut bytes = fs::read(path).unwrap();
    bytes[20_000..30_000].fill(0);
    fs::write(path, &bytes).unwrap();
    let store = open(dir.path(), &options(MEDIA[0]));
    let (numbers, errors) = survey(&store, &everything());
    let missing: Vec<_> = (0..FRAMES).filter(|n| numbers.binary_search(n).is_err()).collect();
    assert!((50..300).contains(&missing.len()), "{}", missing.len());
    assert!(missing.windows(2).all(|pair| pair[0] + 1 == pair[1]), "one hole");
    assert!(missing.contains(&errors[0]) && errors.len() <= 2, "{errors:?}");
    let mut follower = store.follow(&everything()).unwrap();
    let mut seen = 0;
    loop {
        match follower.try_recv() {
            Ok(Some(xs_engine::FollowerEvent::Frame(_))) => seen += 1,
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => assert!(matches!(error, ReadError::Corrupt(_))),
        }
    }
    assert_eq!(seen, numbers.len());
}

#[test]
fn lost_and_damaged_indexes_are_made_again() {
    let dir = scratch();
    build(dir.path());
    let expected = {
        let store = open(dir.path(), &options(MEDIA[0]));
        answers(&store)
    };
    let log = dir.path().join("log");
    let indexes: Vec<PathBuf> = [files(&log, "idx"), files(&log, "top")].concat();
    assert!(indexes.len() >= 4, "{indexes:?}");
    let check = |what: &str| {
        let store = open(dir.path(), &options(MEDIA[0]));
        assert!(answers(&store) == expected, "{what}");
        store.close().unwrap();
    };
    for path in &indexes {
        check("healed");
        let sound = fs::read(path).unwrap();
        let what = path.display();
        let step = 1 + sound.len() / 24;
        for at in (0..sound.len()).step_by(step) {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x21;
            fs::write(path, &bytes).unwrap();
            check(&format!("byte {at} of {what}"));
        }
        for len in [0, 63, sound.len() / 2, sound.len() - 1] {
            fs::write(path, &sound[..len]).unwrap();
            check(&format!("{len} bytes of {what}"));
        }
        // The last check removed it if it was damaged.
        let _ = fs::remove_file(path);
        check(&format!("without {what}"));
    }
    // The index of another segment is sound but wrong here.
    let tops = files(&log, "top");
    fs::copy(&tops[0], &tops[1]).unwrap();
    check("swapped");
    check("healed");
    assert_eq!(files(&log, "top").len(), tops.len());
}
