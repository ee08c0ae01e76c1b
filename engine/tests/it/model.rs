//! Random operations on a store and on a plain list must give equal answers.

mod oracle;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use xs_engine::{
    AppendError, Appended, Batch, BlobHash, Body, Bound, CompactOptions, Condition, CursorChange,
    CursorName, CursorValue, ExpectRevision, Follower, FollowerEvent, Frame, FrameId, Health,
    IdempotencyKey, Import, MediaChoice, Meta, NewFrame, ReadOptions, Stamp, Start, Store,
    StoreOptions, TopicPatterns, Ttl,
};

use crate::support::{
    MEDIA, Rng, TestClock, copy_store, everything, frames, open, options, patterns, scratch, topic,
};
use oracle::{Content, Expected, Oracle};

const TOPICS: [&str; 9] =
    ["a", "a.b", "a.b.c", "a-b", "b", "busy", "state.x", "state.y", "xs.note"];
const PATTERNS: [&str; 10] = [
    "*",
    "*,xs.*",
    "a",
    "a.*",
    "a,a.*,a.b",
    "busy",
    "state.*",
    "xs.*",
    "absent",
    "b,state.x,xs.note",
];
const CURSORS: [&str; 3] = ["one", "two", "three"];
const KEYS: [&str; 6] = ["k1", "k2", "k3", "k4", "k5", "k6"];
const HOUR_MS: u64 = 3_600_000;

/// A follower and the frames it has not delivered yet.
struct Following {
    follower: Follower,
    options: ReadOptions,
    expected: VecDeque<Expected>,
    threshold: Option<u64>,
    left: u64,
}

struct Run {
    rng: Rng,
    clock: Arc<TestClock>,
    options: StoreOptions,
    dir: tempfile::TempDir,
    store: Arc<Store>,
    oracle: Oracle,
    cursors: BTreeMap<&'static str, (u64, u64, Vec<u8>)>,
    blobs: BTreeMap<BlobHash, Vec<u8>>,
    following: Vec<Following>,
    /// Number of frames that were compacted away.
    compacted: u64,
    /// The highest number of segments.
    segments: usize,
}

impl Run {
    fn new(seed: u64, media: MediaChoice) -> Self {
        let clock = TestClock::new();
        let options = StoreOptions { clock: clock.clone(), ..options(media) };
        let dir = scratch();
        Self {
            rng: Rng(seed),
            store: open(dir.path(), &options),
            clock,
            options,
            dir,
            oracle: Oracle::default(),
            cursors: BTreeMap::new(),
            blobs: BTreeMap::new(),
            following: Vec::new(),
            compacted: 0,
            segments: 0,
        }
    }

    fn step(&mut self) {
        self.segments = self.segments.max(self.store.info().segments);
        match self.rng.below(42) {
            0 => self.reopen_clean(),
            1 => self.reopen_killed(),
            2..=3 => self.clock.forward(self.rng.next() % 700),
            4 => self.clock.forward(self.rng.next() % (4 * HOUR_MS)),
            5 => self.put_blob(),
            6..=8 => self.follow(),
            9..=12 => self.drain(),
            13..=22 => self.read(),
            23 => self.look_up(),
            24 => self.compare_all(),
            25 => self.compact(),
            _ => self.append(),
        }
    }

    fn new_frame(&mut self) -> NewFrame {
        let rng = &mut self.rng;
        let name = if rng.chance(2) { "busy" } else { *rng.pick(&TOPICS) };
        let meta = match rng.below(4) {
            0 => Meta::none(),
            1 => Meta::parse(format!("\"{}\"", "x".repeat(rng.below(900) as usize))).unwrap(),
            _ => Meta::parse(format!("{{\"n\":{}}}", rng.below(1000))).unwrap(),
        };
        let body = match rng.below(6) {
            0 => {
                let len = rng.below(300) as usize;
                Body::Inline(Bytes::from(rng.bytes(len)))
            }
            1 if !self.blobs.is_empty() => {
                let nth = rng.below(self.blobs.len() as u64) as usize;
                Body::Stored(*self.blobs.keys().nth(nth).unwrap())
            }
            _ => Body::None,
        };
        let ttl = match rng.below(12) {
            0 => Ttl::Ephemeral,
            1 => Ttl::TimeMs(rng.below(2500)),
            2 if name != "busy" || rng.chance(20) => {
                Ttl::Last(NonZeroU64::new(1 + rng.below(5)).unwrap())
            }
            _ => Ttl::Forever,
        };
        NewFrame { meta, body, ttl, ..NewFrame::new(topic(name)) }
    }

    fn append(&mut self) {
        let len = if self.rng.chance(4) { 1 + self.rng.below(40) } else { 1 };
        let stored: Vec<_> = (0..len).map(|_| self.new_frame()).collect();
        let conditions = self.some_conditions();
        let removes = self.some_removes();
        let mut batch = Batch { frames: stored, conditions, removes, ..self.cursor_changes() };
        if self.rng.chance(12) && !(batch.removes.is_empty() && batch.cursors.is_empty()) {
            batch.frames.clear();
        }
        let batch = self.with_key_or_ids(batch);
        // Some batches are committed together, so they must see one another.
        let mut batches = vec![batch];
        while self.rng.chance(3) {
            let conditions = self.some_conditions();
            let removes = self.some_removes();
            let batch = Batch { conditions, removes, ..self.new_frame().into() };
            batches.push(self.with_key_or_ids(batch));
        }
        let handles: Vec<_> =
            batches.iter().map(|batch| self.store.submit(batch.clone())).collect();
        self.store.lead();
        for (batch, handle) in batches.iter().zip(handles) {
            self.answered(batch, handle.wait());
        }
        assert_eq!(self.store.info().head, self.oracle.head());
    }

    /// Compares an answer with the oracle's, and adds the batch to the oracle.
    fn answered(&mut self, batch: &Batch, answer: Result<Appended, AppendError>) {
        if let Some(key) = batch.key.as_ref().and_then(|key| self.oracle.used(key, self.now())) {
            if key.content != Content::of(batch) {
                assert!(matches!(answer, Err(AppendError::KeyReused { id, .. }) if id == key.id()));
                return;
            }
            let again = answer.unwrap();
            assert!(again.repeated && again.cursors.is_empty());
            // Only the first frame if another one may have been compacted away.
            let told = key.told();
            let is_gone = |stamp: &Stamp| self.oracle.get_by_id(stamp.id, self.now()).is_none();
            let some_gone = told[1..].iter().any(is_gone);
            assert!(again.frames == told || (some_gone && again.frames == told[..1]));
            return;
        }
        let unmet = self.oracle.unmet(&batch.conditions, self.now());
        if unmet.is_none() && self.oracle.is_behind(batch) {
            assert!(matches!(answer, Err(AppendError::ImportOrder { index: 0, .. })));
            return;
        }
        let conflict = batch.cursors.iter().find_map(|change| self.conflict(change));
        let appended = match (answer, unmet, conflict) {
            (Err(AppendError::ConditionNotMet(found)), Some(unmet), _) => {
                assert_eq!((found.index, found.found), unmet);
                return;
            }
            (Err(AppendError::CursorConflict { actual, .. }), None, Some(revision)) => {
                assert_eq!(actual, revision);
                return;
            }
            (appended, None, None) => appended.unwrap(),
            other => panic!("the store answered otherwise than the oracle: {other:?}"),
        };
        let mut revisions = appended.cursors.iter();
        for change in &batch.cursors {
            assert_eq!(*revisions.next().unwrap(), self.apply(change));
        }
        assert!(!appended.repeated);
        self.oracle.take_key(batch, &appended);
        let now = self.now();
        assert_eq!(appended.removed, self.oracle.remove(&batch.removes, now));
        let old_ids = match &batch.import {
            Some(Import::NewIds(ids)) => ids.iter().copied().map(Some).collect(),
            Some(Import::Verbatim(ids)) => {
                assert!(appended.frames.iter().map(|stamp| &stamp.id).eq(ids));
                vec![None; ids.len()]
            }
            None => vec![None; batch.frames.len()],
        };
        for ((new, stamp), old_id) in batch.frames.iter().zip(&appended.frames).zip(old_ids) {
            if let Body::Inline(bytes) = &new.body {
                self.blobs
                    .extend((!bytes.is_empty()).then(|| (BlobHash::of(bytes), bytes.to_vec())));
            }
            let expected = self.oracle.append(new, stamp, old_id);
            for following in &mut self.following {
                if following.options.topics.matches(new.topic.as_str()) {
                    following.expected.push_back(expected.clone());
                }
            }
        }
        assert!(appended.head >= self.oracle.head());
    }

    /// The batch with a key, sometimes one that was sent before; or as an import; or unchanged.
    fn with_key_or_ids(&mut self, batch: Batch) -> Batch {
        let is_stored = |frame: &NewFrame| frame.ttl != Ttl::Ephemeral;
        match self.rng.below(6) {
            0 if batch.frames.iter().any(is_stored) => {
                let key = IdempotencyKey::parse(self.rng.pick::<&str>(&KEYS)).unwrap();
                match self.oracle.sent(&key).filter(|_| !self.rng.chance(4)) {
                    Some(sent) => Batch { conditions: batch.conditions, ..sent },
                    None => Batch { key: Some(key), ..batch },
                }
            }
            1 if batch.frames.iter().all(is_stored) => {
                let count = batch.frames.len();
                let ids = (0..count).map(|_| self.oracle.any_id(&mut self.rng)).collect();
                Batch { import: Some(Import::NewIds(ids)), ..batch }
            }
            2 if batch.frames.iter().all(is_stored) && self.rng.chance(3) => {
                // Above the newest id or not.
                let mut id = match self.rng.chance(3) {
                    true => self.oracle.newest_stored(),
                    false => {
                        let newest = self.oracle.newest().time_ms().max(self.now());
                        FrameId::first_of_ms(newest + 1 + self.rng.below(20))
                    }
                };
                let ids = batch.frames.iter().map(|_| {
                    let next = id.next();
                    std::mem::replace(&mut id, next)
                });
                Batch { import: Some(Import::Verbatim(ids.collect())), ..batch }
            }
            _ => batch,
        }
    }

    /// Conditions of which about half hold.
    fn some_conditions(&mut self) -> Vec<Condition> {
        let mut conditions = Vec::new();
        while self.rng.chance(4) {
            let near = (self.oracle.head() + self.rng.below(4)).saturating_sub(2);
            conditions.push(match self.rng.below(4) {
                0 => Condition::HeadIs(near),
                1 => Condition::Empty(self.some_patterns()),
                _ => {
                    let offset = near.saturating_sub(self.rng.below(30));
                    Condition::LastAtMost { topics: self.some_patterns(), offset }
                }
            });
        }
        conditions
    }

    fn some_removes(&mut self) -> Vec<FrameId> {
        let count = match self.rng.below(12) {
            0 => 1 + self.rng.below(30),
            1..=3 => 1,
            _ => 0,
        };
        let newest = self.store.last(&patterns("*"), 3).unwrap();
        let newest: Vec<_> = newest.iter().map(Frame::id).collect();
        let mut id = |_| match self.rng.below(6) {
            0 if !newest.is_empty() => *self.rng.pick(&newest),
            1 => self.oracle.any_id(&mut self.rng).next(),
            _ => self.oracle.any_id(&mut self.rng),
        };
        (0..count).map(&mut id).collect()
    }

    fn cursor_changes(&mut self) -> Batch {
        let mut batch = Batch::default();
        if self.rng.chance(6) {
            let name = *self.rng.pick(&CURSORS);
            let len = if self.rng.chance(4) { 6000 } else { self.rng.below(50) as usize };
            let state = Bytes::from(self.rng.bytes(len));
            let set =
                (!self.rng.chance(5)).then(|| CursorValue { offset: self.rng.below(100), state });
            let expect = match self.rng.below(3) {
                0 => ExpectRevision::Is(self.rng.below(3)),
                1 => ExpectRevision::Is(self.cursors.get(name).map_or(0, |held| held.0)),
                _ => ExpectRevision::Any,
            };
            batch.cursors.push(CursorChange {
                name: CursorName::parse(name).unwrap(),
                expect,
                set,
            });
        }
        batch
    }

    fn conflict(&self, change: &CursorChange) -> Option<u64> {
        let actual = self.cursors.get(change.name.as_str()).map_or(0, |held| held.0);
        match change.expect {
            ExpectRevision::Is(expected) if expected != actual => Some(actual),
            _ => None,
        }
    }

    fn apply(&mut self, change: &CursorChange) -> u64 {
        let name = *CURSORS.iter().find(|name| **name == change.name.as_str()).unwrap();
        let revision = self.cursors.get(name).map_or(0, |held| held.0) + 1;
        match &change.set {
            Some(CursorValue { offset, state }) => {
                self.cursors.insert(name, (revision, *offset, state.to_vec()));
                revision
            }
            None => {
                self.cursors.remove(name);
                0
            }
        }
    }

    fn compact(&mut self) {
        if self.rng.chance(4) {
            let ids = self.some_removes();
            let now = self.now();
            let report = self.store.remove_now(&ids).unwrap();
            for id in ids {
                // Bodies are removed too, unless something else names them.
                for hash in self.oracle.bodies_of(id) {
                    if !report.named.contains(&hash) {
                        self.blobs.remove(&hash);
                    }
                }
                self.oracle.remove(&[id], now);
            }
        }
        let dead_percent = *self.rng.pick(&[1, 10, 50]);
        let options = CompactOptions { dead_percent, bytes_per_second: None };
        let report = self.store.compact(options).unwrap();
        assert!(report.damaged.is_empty(), "{report:?}");
        self.compacted += report.frames;
        self.look_up();
    }

    fn put_blob(&mut self) {
        let len = self.rng.below(90_000) as usize;
        let bytes = if self.rng.chance(2) { vec![7; len] } else { self.rng.bytes(len) };
        let hash = self.store.blob_put(&bytes).unwrap();
        assert_eq!(hash, BlobHash::of(&bytes));
        self.blobs.insert(hash, bytes);
    }

    fn bound(&mut self) -> Bound {
        let head = self.oracle.head();
        match self.rng.below(6) {
            0 => Bound::Id(*self.rng.pick(&[FrameId::ZERO, FrameId::MAX])),
            1 | 2 => Bound::Offset(self.rng.below(head + 3)),
            _ => {
                let id = self.oracle.any_id(&mut self.rng);
                Bound::Id(if self.rng.chance(3) { id.next() } else { id })
            }
        }
    }

    fn some_options(&mut self) -> ReadOptions {
        let start = match self.rng.below(6) {
            0 | 1 => Start::First,
            2 => Start::From(self.bound()),
            3 => Start::After(self.bound()),
            4 => Start::Last(self.rng.below(30)),
            _ => Start::New,
        };
        let optional = |rng: &mut Rng| rng.chance(4);
        ReadOptions {
            topics: self.some_patterns(),
            start,
            before: optional(&mut self.rng).then(|| self.bound()),
            since_ms: optional(&mut self.rng).then(|| self.oracle.any_id(&mut self.rng).time_ms()),
            until_ms: optional(&mut self.rng).then(|| self.oracle.any_id(&mut self.rng).time_ms()),
            limit: optional(&mut self.rng).then(|| self.rng.below(40)),
            reverse: self.rng.chance(3),
            follow: false,
        }
    }

    fn some_patterns(&mut self) -> TopicPatterns {
        patterns(self.rng.pick::<&str>(&PATTERNS))
    }

    fn now(&self) -> u64 {
        xs_engine::Clock::now_ms(&*self.clock)
    }

    fn read(&mut self) {
        let options = self.some_options();
        let found = frames(self.store.read(&options));
        let expected = self.oracle.select(&options, self.now());
        assert_frames(&found, &expected, &options);
    }

    fn look_up(&mut self) {
        let now = self.now();
        for _ in 0..10 {
            let id = self.oracle.any_id(&mut self.rng);
            let expected = self.oracle.get_by_id(id, now);
            assert_eq!(self.store.get(id).unwrap().map(Expected::from), expected);
            let offset = self.rng.below(self.oracle.head() + 2);
            let expected = self.oracle.get(|frame| frame.offset == Some(offset), now);
            assert_eq!(self.store.get_at(offset).unwrap().map(Expected::from), expected);
        }
        let topics = self.some_patterns();
        let n = self.rng.below(20);
        let last = ReadOptions { topics: topics.clone(), start: Start::Last(n), ..everything() };
        let found = self.store.last(&topics, n).unwrap();
        assert_frames(&found, &self.oracle.select(&last, now), &last);
        let found = self.store.last_per_topic(&topics).unwrap();
        assert_frames(&found, &self.oracle.last_per_topic(&topics, now), &last);
        self.compare_topics(&topics);
    }

    /// Counts may include expired frames, but no removed ones.
    fn compare_topics(&self, topics: &TopicPatterns) {
        let mut expected = self.oracle.topics(topics, self.now());
        for stats in self.store.topics(topics) {
            let name = stats.topic.as_str();
            let ids = expected.remove(name).unwrap_or_else(|| panic!("{name} is all gone"));
            let visible: Vec<_> = ids.iter().filter(|(_, expired)| !expired).collect();
            let count = stats.count as usize;
            assert!((visible.len()..=ids.len()).contains(&count), "{name}: {count} of {ids:?}");
            assert_eq!(Some(stats.last_offset), self.oracle.offset_of(stats.last), "{name}");
            let first = visible.first().is_none_or(|first| stats.first <= first.0);
            let last = visible.last().is_none_or(|last| stats.last >= last.0);
            let known = |id| ids.iter().any(|(known, _)| *known == id);
            assert!(first && last && known(stats.first) && known(stats.last), "{stats:?} {ids:?}");
        }
        let all_expired = |ids: &Vec<(FrameId, bool)>| ids.iter().all(|(_, expired)| *expired);
        assert!(expected.values().all(all_expired), "{expected:?}");
    }

    fn compare_all(&mut self) {
        let all = everything();
        let expected = self.oracle.select(&all, self.now());
        assert_frames(&frames(self.store.read(&all)), &expected, &all);
        self.compare_topics(&TopicPatterns::everything());
        assert_eq!(self.store.info().head, self.oracle.head());
        for name in CURSORS {
            let held = self.store.cursor(&CursorName::parse(name).unwrap()).unwrap();
            let held = held.map(|held| (held.revision, held.offset, held.state.to_vec()));
            assert_eq!(held.as_ref(), self.cursors.get(name), "cursor {name}");
        }
        for (hash, bytes) in &self.blobs {
            let blob = self.store.blob(hash).unwrap().expect("a blob that was put");
            assert_eq!(blob.bytes(1 << 20).unwrap(), bytes);
        }
        assert!(!self.store.has_blob(&BlobHash::of(b"never put")).unwrap());
    }

    fn follow(&mut self) {
        if self.following.len() >= 4 {
            self.following.remove(0);
        }
        let mut options = ReadOptions { reverse: false, ..self.some_options() };
        (options.before, options.until_ms, options.since_ms) = (None, None, None);
        // An id above all others is a start that is never reached.
        if matches!(options.start, Start::From(Bound::Id(id)) | Start::After(Bound::Id(id)) if id == FrameId::MAX)
            || matches!(options.start, Start::From(Bound::Offset(at)) | Start::After(Bound::Offset(at)) if at >= self.oracle.head())
        {
            options.start = Start::New;
        }
        let stored = ReadOptions { limit: None, ..options.clone() };
        self.following.push(Following {
            follower: self.store.follow(&options).unwrap(),
            expected: self.oracle.select(&stored, self.now()).into(),
            threshold: Some(self.oracle.head()),
            left: options.limit.unwrap_or(u64::MAX),
            options,
        });
    }

    fn drain(&mut self) {
        let now = self.now();
        for following in &mut self.following {
            let mut visible: Vec<_> = following.expected.drain(..).collect();
            visible.retain(|frame| self.oracle.is_visible(frame, now));
            let mut expected = visible.into_iter().peekable();
            let context = format!("{:?}", following.options);
            while let Some(live) = following.follower.try_recv().unwrap() {
                match live {
                    FollowerEvent::Frame(frame) => {
                        let expected = expected.next();
                        assert_eq!(Some(Expected::from(frame)), expected, "{context}");
                        following.left -= 1;
                    }
                    FollowerEvent::CaughtUp { head } => {
                        assert_eq!(following.threshold.take(), Some(head), "{context}");
                        let next = expected.peek().and_then(|frame| frame.offset);
                        assert!(next.is_none_or(|offset| offset >= head), "{context}");
                    }
                    FollowerEvent::Lost { .. } => panic!("the ring is longer than that"),
                }
            }
            if following.left == 0 {
                assert!(following.follower.is_done());
            } else {
                assert_eq!((expected.next(), following.threshold), (None, None), "{context}");
            }
        }
    }

    fn reopen_clean(&mut self) {
        self.following.clear();
        self.store.close().unwrap();
        assert!(matches!(
            self.store.append(Batch::from(NewFrame::new(topic("a")))),
            Err(AppendError::Closed)
        ));
        self.store = open(self.dir.path(), &self.options);
        self.compare_all();
    }

    /// Reopens what a killed process leaves: its files as they are.
    fn reopen_killed(&mut self) {
        self.following.clear();
        let killed = scratch();
        copy_store(self.dir.path(), killed.path());
        self.store.close().unwrap();
        self.store = open(killed.path(), &self.options);
        self.dir = killed;
        let info = self.store.info();
        assert_eq!(
            (info.head, info.health),
            (self.oracle.head(), Health::Writable),
            "{:?}",
            info.recovery
        );
        self.compare_all();
    }
}

fn assert_frames(found: &[Frame], expected: &[Expected], options: &ReadOptions) {
    let found: Vec<_> = found.iter().cloned().map(Expected::from).collect();
    if found != expected {
        let offsets = |frames: &[Expected]| frames.iter().map(|f| f.offset).collect::<Vec<_>>();
        assert_eq!(offsets(&found), offsets(expected), "{options:?}");
        assert_eq!(found, expected, "{options:?}");
    }
}

fn run(seed: u64, media: MediaChoice) {
    println!("seed {seed} on {media:?}");
    let mut run = Run::new(seed, media);
    (0..900).for_each(|_| run.step());
    run.compare_all();
    run.look_up();
    // Compaction merges small segments, including the one that was active.
    assert!(run.segments > 1, "the run must roll segments");
    assert!(run.compacted > 0, "the run must compact something");
}

#[test]
fn mapped() {
    (1..=6).for_each(|seed| run(seed, MEDIA[0]));
}

#[test]
fn positioned() {
    (101..=106).for_each(|seed| run(seed, MEDIA[1]));
}
