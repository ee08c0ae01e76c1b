//! Options of an append: conditions; and ids, whatever the clock does.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use xs_engine::{
    AppendError, Batch, Condition, Entropy, FrameId, NewFrame, Store, StoreOptions, Ttl, Unmet,
};

use crate::support::{
    MEDIA, TestClock, batch, copy_store, everything, frames, numbered, open, options, patterns,
    scratch,
};

pub(crate) fn empty(topics: &str) -> Condition {
    Condition::Empty(patterns(topics))
}

pub(crate) fn at_most(topics: &str, offset: u64) -> Condition {
    Condition::LastAtMost { topics: patterns(topics), offset }
}

fn given(conditions: impl IntoIterator<Item = Condition>, frame: NewFrame) -> Batch {
    Batch { conditions: conditions.into_iter().collect(), ..frame.into() }
}

/// Which condition failed and what was found.
fn unmet(appended: Result<xs_engine::Appended, AppendError>) -> (usize, u64) {
    match appended {
        Err(AppendError::ConditionNotMet(Unmet { index, found, .. })) => (index, found),
        other => panic!("a condition should have failed: {other:?}"),
    }
}

#[test]
fn a_batch_is_appended_only_if_its_conditions_hold() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    let append = |conditions: &[Condition], name: &str| {
        store.append(given(conditions.iter().cloned(), numbered(name, 0)))
    };
    append(&[empty("a.*"), empty("a"), Condition::HeadIs(0)], "a").unwrap();
    assert_eq!(unmet(append(&[empty("b"), empty("a")], "a")), (1, 0));
    assert_eq!(unmet(append(&[Condition::HeadIs(0)], "a")), (0, 1));
    append(&[empty("a.*"), at_most("a", 0), Condition::HeadIs(1)], "a.b").unwrap();
    append(&[], "a-b").unwrap();
    assert_eq!(unmet(append(&[at_most("a,a.*", 0)], "a")), (0, 1));
    append(&[at_most("a,a.*", 1), at_most("a", u64::MAX)], "a").unwrap();
    append(&[], "xs.note").unwrap();
    append(&[at_most("*", 3)], "b").unwrap();
    assert_eq!(unmet(append(&[at_most("*,xs.*", 4), at_most("xs.*", 3)], "b")), (0, 5));
    assert_eq!(store.info().head, 6);
    let many = given(vec![empty("none"); 65], numbered("a", 0));
    let refused = AppendError::TooManyConditions { count: 65, max: 64 };
    assert_eq!(store.append(many), Err(refused));
}

#[test]
fn conditions_see_what_a_reader_of_the_newest_frame_sees() {
    let dir = scratch();
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let store = open(dir.path(), &options);
    let with = |ttl, name: &str| NewFrame { ttl, ..numbered(name, 0) };
    store.append(with(Ttl::Forever, "a").into()).unwrap();
    // Sealed segments must be searched too.
    let padded = || (0..500).map(|n| numbered("padding", n));
    for _ in 0..3 {
        store.append(batch(padded())).unwrap();
    }
    store.append(with(Ttl::TimeMs(100), "a").into()).unwrap();
    store.append(with(Ttl::TimeMs(100), "b").into()).unwrap();
    store.append(with(Ttl::Ephemeral, "c").into()).unwrap();
    assert_eq!(unmet(store.append(given([at_most("a", 5)], numbered("x", 0)))), (0, 1501));
    assert_eq!(unmet(store.append(given([empty("b")], numbered("x", 0)))), (0, 1502));
    clock.forward(100);
    store.append(given([at_most("a", 0), empty("b,c")], numbered("x", 0))).unwrap();
    assert_eq!(unmet(store.append(given([empty("a")], numbered("x", 0)))), (0, 0));
    // What `last:n` removed is older than what it keeps.
    store.append(with(Ttl::Last(NonZeroU64::MIN), "x").into()).unwrap();
    assert_eq!(unmet(store.append(given([at_most("x", 1503)], numbered("x", 0)))), (0, 1504));
}

#[test]
fn conditions_see_the_batches_before_them_in_the_group() {
    let dir = scratch();
    let options = StoreOptions { clock: TestClock::new(), ..options(MEDIA[0]) };
    let store = open(dir.path(), &options);
    let timed = NewFrame { ttl: Ttl::TimeMs(0), ..numbered("gone", 0) };
    let ephemeral = NewFrame { ttl: Ttl::Ephemeral, ..numbered("live", 0) };
    let handles: Vec<_> = [
        batch([numbered("a.x", 0), numbered("a-", 0), timed, ephemeral]),
        given([empty("a.*")], numbered("b", 0)),
        given([empty("a,gone,live"), at_most("a.*", 0)], numbered("b", 0)),
        given([empty("b")], numbered("b", 0)),
        given([Condition::HeadIs(4), at_most("*", 3)], numbered("c", 0)),
        given([at_most("*", 3)], numbered("c", 0)),
    ]
    .map(|batch| store.submit(batch))
    .into();
    assert!(store.lead());
    let answers: Vec<_> = handles.into_iter().map(|handle| handle.wait()).collect();
    let failed: Vec<_> = answers.iter().filter(|answer| answer.is_err()).cloned().collect();
    assert_eq!(failed.into_iter().map(unmet).collect::<Vec<_>>(), [(0, 0), (0, 3), (0, 4)]);
    assert_eq!((answers[2].is_ok(), answers[4].is_ok()), (true, true));
    assert_eq!(store.info().head, 5);
}

#[test]
fn a_condition_behind_damage_is_refused() {
    let dir = scratch();
    let options = options(MEDIA[0]);
    let store = open(dir.path(), &options);
    for n in 0..3 {
        store.append(batch((0..800).map(|m| numbered("a", n * 1000 + m)))).unwrap();
    }
    store.append(numbered("b", 0).into()).unwrap();
    store.close().unwrap();
    let sealed = crate::support::segments(dir.path()).swap_remove(0);
    let mut bytes = std::fs::read(&sealed).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&sealed, bytes).unwrap();
    std::fs::remove_file(sealed.with_extension("top")).unwrap();
    let store = open(dir.path(), &options);
    let refused = store.append(given([empty("absent")], numbered("b", 1)));
    assert!(matches!(refused, Err(AppendError::ConditionUnread { index: 0, .. })), "{refused:?}");
    store.append(given([at_most("b", 2400)], numbered("b", 1))).unwrap();
}

/// Entropy that counts, so that a run can be repeated.
#[derive(Debug, Default)]
struct Counted(AtomicU8);

impl Entropy for Counted {
    fn seed(&self) -> std::io::Result<[u8; 32]> {
        Ok([self.0.fetch_add(1, Ordering::Relaxed); 32])
    }
}

#[test]
fn clock_and_entropy_decide_every_id() {
    let run = || {
        let dir = scratch();
        let entropy = Arc::new(Counted::default());
        let options = StoreOptions { clock: TestClock::new(), entropy, ..options(MEDIA[0]) };
        let mut ids = Vec::new();
        for _ in 0..2 {
            let store = open(dir.path(), &options);
            let appended = store.append(batch((0..5).map(|n| numbered("a", n)))).unwrap();
            ids.extend(appended.frames.iter().map(|stamp| stamp.id));
            ids.push(FrameId::from_bytes(*store.info().uuid.as_bytes()));
        }
        ids
    };
    assert_eq!(run(), run());
}

#[test]
fn ids_increase_with_the_offset_whatever_the_clock_does() {
    const HOUR_MS: u64 = 3_600_000;
    const YEAR_MS: u64 = 365 * 24 * HOUR_MS;
    const NOW: u64 = 1_700_000_000_000;
    let jumps = [
        NOW,
        NOW - HOUR_MS,
        NOW - 10 * YEAR_MS,
        0,
        NOW + 100 * YEAR_MS,
        NOW + HOUR_MS,
        u64::MAX,
        NOW,
    ];
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[1]) };
    let mut dir = scratch();
    let (mut last, mut count) = (FrameId::ZERO, 0);
    for (round, &now) in jumps.iter().enumerate() {
        clock.0.store(now, Ordering::SeqCst);
        let store: Arc<Store> = open(dir.path(), &options);
        for _ in 0..40 {
            let appended = store.append(batch((0..100).map(|n| numbered("a", n)))).unwrap();
            for stamp in appended.frames {
                assert!(stamp.id > last && stamp.offset == Some(count), "round {round}");
                (last, count) = (stamp.id, count + 1);
            }
            // It stands still in even rounds, and is set back by 1 ms in odd ones.
            clock.0.store(now.saturating_sub(round as u64 % 2), Ordering::SeqCst);
        }
        // What a kill leaves; the clock then shows another time.
        let killed = scratch();
        copy_store(dir.path(), killed.path());
        store.close().unwrap();
        dir = killed;
    }
    let store = open(dir.path(), &options);
    let stored = frames(store.read(&everything()));
    assert_eq!(stored.len() as u64, count);
    assert!(stored.windows(2).all(|pair| pair[0].id() < pair[1].id()));
    assert!(
        stored
            .iter()
            .step_by(37)
            .all(|frame| { store.get(frame.id()).unwrap().as_ref() == Some(frame) })
    );
}

#[test]
fn frames_that_come_back_with_the_clock_are_seen() {
    let dir = scratch();
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let store = open(dir.path(), &options);
    let timed = |n| NewFrame { ttl: Ttl::TimeMs(100), ..numbered("a", n) };
    store.append(numbered("a", 0).into()).unwrap();
    store.append(batch((1..5).map(timed))).unwrap();
    let at_most_first = || store.append(given([at_most("a", 0)], numbered("b", 0)));
    let empty_of_a = || store.append(given([empty("a")], numbered("b", 0)));
    assert_eq!(unmet(at_most_first()), (0, 4));
    for _ in 0..2 {
        clock.forward(100);
        // Twice: frames that were skipped once are not examined again.
        for _ in 0..2 {
            at_most_first().unwrap();
            assert_eq!(unmet(empty_of_a()), (0, 0));
        }
        clock.0.fetch_sub(100, Ordering::SeqCst);
        assert_eq!(unmet(at_most_first()), (0, 4));
        assert_eq!(unmet(empty_of_a()), (0, 4));
    }
    clock.forward(100);
    let newest = store.append(timed(5).into()).unwrap().frames[0].offset.unwrap();
    assert_eq!((unmet(at_most_first()), unmet(empty_of_a())), ((0, newest), (0, newest)));
    clock.forward(100);
    at_most_first().unwrap();
    assert_eq!(unmet(empty_of_a()), (0, 0));
}
