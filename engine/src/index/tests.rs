use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::merge::MERGE_AT;
use crate::append::Batch;
use crate::error::AppendError;
use crate::options::{StoreOptions, SyncPolicy};
use crate::store::{Health, Store};
use crate::testing::{
    StillClock, batches, crash, edit, fast_dir, files_in, frame, options, segment_files,
};
use crate::value::{Condition, Frame, FrameId, NewFrame, ReadOptions, TopicPatterns, Ttl};

const TOPICS: u64 = 40;

/// The remaining frames of each topic: offsets and ids, oldest first.
type Left = BTreeMap<String, Vec<(u64, FrameId)>>;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn open(dir: &Path) -> Store {
    let clock = StillClock::at(1_000);
    Store::open(dir, StoreOptions { clock, ..options(SyncPolicy::None) }).unwrap()
}

/// A frame of a random topic; frequent ones come often, some keep only their newest frames.
fn random(rng: &mut Rng, n: u64) -> NewFrame {
    let of = rng.below(TOPICS) * rng.below(TOPICS) / TOPICS;
    let keep = match of % 5 {
        0 if rng.below(3) == 0 => Some(1 + rng.below(1 + of)),
        1 => Some(1),
        _ => None,
    };
    let ttl = keep.and_then(NonZeroU64::new).map_or(Ttl::Forever, Ttl::Last);
    let name = format!("t{}.n{of}", of % 3);
    let wide = format!("\"{}\"", "w".repeat(400));
    let meta = crate::value::Meta::parse(wide).unwrap();
    NewFrame { ttl, meta, ..frame(&name, n) }
}

/// Appends frames until `segments` more are sealed; keeps `left` up to date.
fn fill(store: &Store, rng: &mut Rng, left: &mut Left, segments: usize) {
    let want = store.info().segments + segments;
    while store.info().segments < want {
        let new = random(rng, 0);
        let (topic, ttl) = (new.topic.as_str().to_owned(), new.ttl);
        let stamp = store.append(new.into()).unwrap().frames[0];
        let of = left.entry(topic).or_default();
        of.push((stamp.offset.unwrap(), stamp.id));
        if let Ttl::Last(n) = ttl {
            let excess = of.len().saturating_sub(n.get() as usize);
            of.drain(..excess);
        }
    }
}

/// Seals what can be sealed, and merges the table however little there is to merge.
fn merge(store: &Store) {
    store.inner.sealing.seal_now(&store.inner).unwrap();
    store.inner.sealing.index_sealed(&store.inner).unwrap();
    store.inner.index.merge(&AtomicBool::new(false)).unwrap();
}

fn covered(store: &Store) -> usize {
    let topics = store.inner.index.topics.read();
    topics.table.as_ref().map_or(0, |table| table.segments().len())
}

/// Compares every answer about topics with the remaining frames.
fn check(store: &Store, left: &Left, what: &str) {
    let all = TopicPatterns::all();
    let stats = store.topics(&all);
    let told: Vec<_> = stats.iter().map(|of| (of.topic.as_str().to_owned(), of.count)).collect();
    let expected: Vec<_> = left.iter().map(|(name, of)| (name.clone(), of.len() as u64)).collect();
    assert_eq!(told, expected, "{what}: counts");
    let ends = stats.iter().map(|of| (of.first, of.last, of.last_offset));
    let end = |of: &Vec<(u64, FrameId)>| (of[0].1, of[of.len() - 1].1, of[of.len() - 1].0);
    assert!(ends.eq(left.values().map(end)), "{what}: first and last");
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = store.topics_page(&all, after.as_ref(), 7);
        paged.extend(page);
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, stats, "{what}: pages");
    let mut newest: Vec<u64> = left.values().map(|of| of[of.len() - 1].0).collect();
    newest.sort_unstable();
    let offsets = |frames: Vec<Frame>| frames.iter().filter_map(Frame::offset).collect::<Vec<_>>();
    assert_eq!(offsets(store.last_per_topic(&all).unwrap()), newest, "{what}: last per topic");
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let (page, next) = store.last_per_topic_page(&all, after.as_ref(), 2).unwrap();
        assert!(page.len() <= 2);
        paged.extend(page);
        let Some(next) = next else { break };
        after = Some(next);
    }
    paged.sort_unstable_by_key(Frame::offset);
    assert_eq!(offsets(paged), newest, "{what}: last per topic, in pages");
    for (name, of) in left {
        let topics = TopicPatterns::parse(name).unwrap();
        let of: Vec<u64> = of.iter().map(|&(offset, _)| offset).collect();
        for n in [1, 2, 30] {
            let found = offsets(store.last(&topics, n).unwrap());
            assert_eq!(
                found,
                of[of.len().saturating_sub(n as usize)..],
                "{what}: last {n} of {name}"
            );
        }
        let read = store.read(&ReadOptions { topics, ..ReadOptions::default() }).unwrap();
        let found: Vec<u64> = read.filter_map(|frame| frame.unwrap().offset()).collect();
        assert_eq!(found, of, "{what}: all of {name}");
    }
    let mut below: Vec<u64> = left
        .iter()
        .filter(|(name, _)| name.starts_with("t1."))
        .flat_map(|(_, of)| of)
        .map(|&(at, _)| at)
        .collect();
    below.sort_unstable();
    let options =
        ReadOptions { topics: TopicPatterns::parse("t1.*").unwrap(), ..ReadOptions::default() };
    let found: Vec<u64> =
        store.read(&options).unwrap().filter_map(|frame| frame.unwrap().offset()).collect();
    assert_eq!(found, below, "{what}: below t1");
}

fn derived(dir: &Path) -> Vec<PathBuf> {
    let listed = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = listed(dir.join("log")).chain(listed(dir.to_owned())).collect();
    all.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".idx") || name.ends_with(".top") || name.starts_with("topics.")
    });
    all.sort();
    all
}

#[test]
fn a_table_answers_as_its_segments_do() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(7), Left::new());
    for round in 0..5 {
        let store = open(dir.path());
        check(&store, &left, &format!("round {round} opened"));
        fill(&store, &mut rng, &mut left, 3);
        check(&store, &left, &format!("round {round} filled"));
        let before = covered(&store);
        merge(&store);
        assert!(covered(&store) > before, "round {round}");
        check(&store, &left, &format!("round {round} merged"));
        fill(&store, &mut rng, &mut left, 1);
        check(&store, &left, &format!("round {round} filled again"));
        if round % 2 == 0 {
            store.close().unwrap();
        }
    }
    let tables = derived(dir.path());
    let tables = tables.iter().filter(|path| path.parent() == Some(dir.path()));
    assert_eq!(tables.count(), 1, "old tables are removed");
}

#[test]
fn derived_files_are_made_again_whatever_happened_to_them() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(3), Left::new());
    {
        let store = open(dir.path());
        fill(&store, &mut rng, &mut left, 6);
        merge(&store);
        fill(&store, &mut rng, &mut left, 3);
        store.close().unwrap();
    }
    assert!(derived(dir.path()).len() > 16);
    for round in 0..60 {
        for path in derived(dir.path()) {
            match rng.below(12) {
                0 => fs::remove_file(&path).unwrap(),
                1 => edit(&path, |bytes| {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << rng.below(8);
                }),
                2 => edit(&path, |bytes| bytes.truncate(rng.below(bytes.len() as u64) as usize)),
                _ => {}
            }
        }
        let store = open(dir.path());
        check(&store, &left, &format!("round {round}"));
        if round % 4 == 0 {
            merge(&store);
            check(&store, &left, &format!("round {round} merged"));
        }
        store.close().unwrap();
    }
    derived(dir.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
    check(&open(dir.path()), &left, "all removed");
}

#[test]
fn a_table_counts_sealed_segments_only() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(5), Left::new());
    let store = open(dir.path());
    fill(&store, &mut rng, &mut left, 4);
    // A crash between sealing and merging, and one in the middle of the merge.
    let (sealed, known) = (crash(dir.path()), left.clone());
    fs::write(sealed.path().join("topics.1.tmp"), b"XSTABLE1").unwrap();
    check(&open(sealed.path()), &known, "sealed and not merged");
    assert!(!sealed.path().join("topics.1.tmp").exists());
    merge(&store);
    fill(&store, &mut rng, &mut left, 2);
    merge(&store);
    let counted = store.inner.index.topics.read().table.clone().unwrap();
    let unsealed = counted.segments().last().unwrap().base;
    // A power cut loses the end of the last segment.
    let image = crash(dir.path());
    let last = segment_files(image.path()).pop().unwrap();
    let places = batches(&last);
    edit(&last, |bytes| bytes[places[places.len() / 2]..].fill(0));
    let cut = open(image.path());
    let head = cut.info().head;
    assert!(head < store.info().head && head > unsealed);
    let mut again = Left::new();
    let mut replayed = Rng(5);
    for offset in 0..head {
        let new = random(&mut replayed, 0);
        let of = again.entry(new.topic.as_str().to_owned()).or_default();
        of.push((offset, FrameId::ZERO));
        if let Ttl::Last(n) = new.ttl {
            let excess = of.len().saturating_sub(n.get() as usize);
            of.drain(..excess);
        }
    }
    for (offset, id) in again.values_mut().flatten() {
        *id = cut.get_at(*offset).unwrap().unwrap().id();
    }
    check(&cut, &again, "cut");
    // A table for another store's segments is rejected.
    drop(cut);
    fs::copy(dir.path().join("topics.2"), sealed.path().join("topics.7")).unwrap();
    let other = open(sealed.path());
    assert_eq!(covered(&other), 0);
    check(&other, &known, "a foreign table");
}

#[test]
fn the_table_is_merged_by_itself() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(11), Left::new());
    let store = open(dir.path());
    while covered(&store) < MERGE_AT {
        fill(&store, &mut rng, &mut left, 1);
    }
    check(&store, &left, "merged");
    store.close().unwrap();
    let store = open(dir.path());
    assert!(covered(&store) >= MERGE_AT);
    check(&store, &left, "opened");
}

#[test]
fn a_merge_that_fails_leaves_the_table() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(13), Left::new());
    let store = open(dir.path());
    fill(&store, &mut rng, &mut left, 4);
    merge(&store);
    let before = covered(&store);
    // A directory, which cannot be overwritten.
    fs::create_dir(dir.path().join("topics.2.tmp")).unwrap();
    fill(&store, &mut rng, &mut left, 3);
    store.inner.sealing.index_sealed(&store.inner).unwrap();
    assert!(store.inner.index.merge(&AtomicBool::new(false)).is_err());
    assert_eq!(covered(&store), before);
    check(&store, &left, "not merged");
    fs::remove_dir(dir.path().join("topics.2.tmp")).unwrap();
    merge(&store);
    assert!(covered(&store) > before);
    check(&store, &left, "merged");
}

/// Replaces a file, leaving existing mappings of it unchanged.
fn replace(path: &Path, bytes: &[u8]) {
    fs::rename(path, path.with_extension("aside")).unwrap();
    fs::write(path, bytes).unwrap();
}

fn topic_files(dir: &Path) -> Vec<PathBuf> {
    files_in(&dir.join("log"), "top")
}

#[test]
fn what_a_lost_file_says_stays_when_the_table_is_dissolved() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(17), Left::new());
    let store = open(dir.path());
    fill(&store, &mut rng, &mut left, 5);
    merge(&store);
    // Reading opens all of them.
    check(&store, &left, "merged");
    replace(&topic_files(dir.path())[0], b"damaged");
    let segments = store.inner.index.segments();
    let neighbour = segments[1].segment().base()..segments[2].segment().base();
    assert!(covered(&store) > 2);
    let in_it = |of: &&mut Vec<(u64, FrameId)>| of.len() > 1 && neighbour.contains(&of[0].0);
    let (_, id) = left.values_mut().find(in_it).unwrap().remove(0);
    assert!(store.remove_now(&[id]).unwrap().rewritten > 0);
    assert!(store.inner.index.topics.read().table.is_none());
    check(&store, &left, "compacted");
}

#[test]
fn a_segment_that_cannot_be_read_is_met_by_who_wants_all() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(19), Left::new());
    let store = open(dir.path());
    fill(&store, &mut rng, &mut left, 3);
    merge(&store);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path());
    replace(&topic_files(dir.path())[0], b"damaged");
    fs::remove_file(&segment_files(dir.path())[0]).unwrap();
    let index = &store.inner.index;
    let first = index.segments()[0].clone();
    index.layer_of(&first);
    assert!(index.is_partial() && !index.is_whole(&first));
    // It may hold any topic, so no topic is known to be empty.
    let topics = TopicPatterns::parse("nobody").unwrap();
    let conditions = vec![Condition::Empty(topics.clone())];
    let batch = Batch { frames: vec![frame("a", 1)], conditions, ..Batch::default() };
    assert!(matches!(store.append(batch), Err(AppendError::ConditionUnread { .. })));
    let mut read = store.read(&ReadOptions { topics, ..ReadOptions::default() }).unwrap();
    assert!(read.next().unwrap().is_err());
}

#[test]
fn a_file_that_cannot_be_opened_now_is_kept() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(23), Left::new());
    let store = open(dir.path());
    fill(&store, &mut rng, &mut left, 4);
    merge(&store);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path());
    // An error of the system, and not a missing file: a link to itself.
    let path = topic_files(dir.path()).remove(0);
    let aside = path.with_extension("aside");
    fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let sparse = path.with_extension("idx");
    check(&store, &left, "it is made again in memory");
    assert!(path.is_symlink() && sparse.exists());
    fs::rename(&aside, &path).unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(covered(&store) > 2);
    check(&store, &left, "opened again");
    // A missing file is created again, with its sibling.
    fs::remove_file(&path).unwrap();
    drop(store);
    let store = open(dir.path());
    check(&store, &left, "made again");
    assert!(path.exists());
}

#[test]
fn who_only_reads_writes_no_files() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(29), Left::new());
    let store = open(dir.path());
    fill(&store, &mut rng, &mut left, 3);
    merge(&store);
    fill(&store, &mut rng, &mut left, 1);
    // Nothing may change the files while they are copied.
    store.inner.upkeep.stop();
    let image = crash(dir.path());
    let lost = segment_files(image.path()).remove(0);
    let aside = lost.with_extension("aside");
    fs::rename(&lost, &aside).unwrap();
    let listed = || {
        let names = fs::read_dir(image.path().join("log")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // Temporary files are removed at each open.
        names.filter(|name| !name.ends_with("tmp")).collect::<std::collections::BTreeSet<_>>()
    };
    let before = listed();
    let reading = open(image.path());
    assert!(matches!(reading.info().health, Health::ReadOnly(_)));
    assert!(reading.read(&ReadOptions::default()).unwrap().count() > 0);
    drop(reading);
    assert_eq!(listed(), before);
    fs::rename(&aside, &lost).unwrap();
    check(&open(image.path()), &left, "put right");
}

#[test]
fn who_listed_a_segment_before_it_was_mended_reads_on() {
    let dir = fast_dir();
    let (mut rng, mut left) = (Rng(31), Left::new());
    let store = open(dir.path());
    fill(&store, &mut rng, &mut left, 1);
    store.append(frame("here", 0).into()).unwrap();
    let old = store.inner.index.segments().last().cloned().unwrap();
    store.inner.index.rewritten(old.segment());
    fill(&store, &mut rng, &mut left, 2);
    merge(&store);
    let (inner, (tell, told)) = (store.inner.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let first = inner.index.first_step(&old).unwrap();
        let postings = inner.index.postings(&old, "here").unwrap();
        let _ = tell.send((first.is_some(), postings.len()));
    });
    // A timeout means that the lookup loops forever.
    assert_eq!(told.recv_timeout(std::time::Duration::from_secs(60)), Ok((true, 1)));
}

#[test]
fn last_n_opens_no_segment_below_the_floor() {
    let dir = fast_dir();
    let store = open(dir.path());
    let two = Ttl::Last(NonZeroU64::new(2).unwrap());
    let append = |store: &Store| {
        store.append(NewFrame { ttl: two, ..frame("a", 0) }.into()).unwrap().frames[0].id
    };
    let until_sealed = |count: usize| {
        let want = store.info().segments + count;
        while store.info().segments < want {
            store.append(random(&mut Rng(1), 0).into()).unwrap();
        }
    };
    let mut newest = FrameId::ZERO;
    for _ in 0..4 {
        (0..3).for_each(|_| newest = append(&store));
        until_sealed(1);
    }
    store.remove(newest).unwrap();
    until_sealed(1);
    merge(&store);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path());
    append(&store);
    let is_open = |of: &std::sync::Arc<super::SegmentIndex>| match &*of.kind.lock() {
        super::Kind::Files(loaded) => !loaded.is_empty(),
        _ => panic!("it is in files"),
    };
    let segments = store.inner.index.segments();
    let opened: Vec<bool> = segments.iter().take(4).map(is_open).collect();
    assert_eq!(opened, [false, false, false, true]);
    assert_eq!(store.last(&TopicPatterns::parse("a").unwrap(), 9).unwrap().len(), 2);
}

#[test]
fn what_last_n_knows_outlives_the_segment() {
    let dir = fast_dir();
    let store = open(dir.path());
    let mut kept: BTreeMap<String, Vec<(u64, FrameId)>> = BTreeMap::new();
    let mut rng = Rng(5);
    let mut round = |store: &Store, topic: &str| {
        let five = Ttl::Last(NonZeroU64::new(5).unwrap());
        let ttl = if rng.below(4) == 0 { Ttl::Forever } else { five };
        let stamp = store.append(NewFrame { ttl, ..frame(topic, 0) }.into()).unwrap().frames[0].id;
        let of = kept.entry(topic.to_owned()).or_default();
        of.push((0, stamp));
        if ttl == five {
            of.drain(..of.len().saturating_sub(5));
        }
        if rng.below(5) == 0 {
            let at = rng.below(of.len() as u64) as usize;
            store.remove(of.remove(at).1).unwrap();
        }
        let frames = store.last(&TopicPatterns::parse(topic).unwrap(), 99).unwrap();
        let ids: Vec<_> = frames.iter().map(Frame::id).collect();
        assert_eq!(ids, of.iter().map(|&(_, id)| id).collect::<Vec<_>>(), "{topic}");
        let segment = store.info().segments;
        while store.info().segments == segment {
            store.append(random(&mut Rng(1), 0).into()).unwrap();
        }
        store.inner.sealing.index_sealed(&store.inner).unwrap();
    };
    for n in 0..24 {
        round(&store, ["b", "c", "d"][n % 3]);
    }
    store.close().unwrap();
    drop(store);
    let store = open(dir.path());
    (0..3).for_each(|n| round(&store, ["b", "c", "d"][n]));
}

#[test]
fn last_n_learns_nothing_where_all_stay() {
    let dir = fast_dir();
    let store = open(dir.path());
    let with = |n: u64| NewFrame { ttl: Ttl::Last(NonZeroU64::new(n).unwrap()), ..frame("a", n) };
    let knows = |store: &Store| {
        let topics = store.inner.index.topics.read();
        !topics.active.as_ref().unwrap().1.wants_recent("a")
    };
    (0..1_000).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.append(with(u64::MAX).into()).unwrap();
    store.append(with(1_002).into()).unwrap();
    assert!(!knows(&store));
    assert_eq!(store.last(&TopicPatterns::parse("a").unwrap(), 9_999).unwrap().len(), 1_002);
    store.append(with(1_002).into()).unwrap();
    assert!(knows(&store));
    assert_eq!(store.last(&TopicPatterns::parse("a").unwrap(), 9_999).unwrap().len(), 1_002);
    let image = crash(dir.path());
    let store = open(image.path());
    assert_eq!(store.last(&TopicPatterns::parse("a").unwrap(), 9_999).unwrap().len(), 1_002);
}

#[test]
fn last_n_is_handed_from_segment_to_segment() {
    let dir = fast_dir();
    let store = open(dir.path());
    let names: Vec<String> = (0..20).map(|n| format!("sensor.{n}")).collect();
    let nine = Ttl::Last(NonZeroU64::new(9).unwrap());
    let filler = || {
        let segment = store.info().segments;
        while store.info().segments == segment {
            store.append(random(&mut Rng(1), 0).into()).unwrap();
        }
        store.inner.sealing.index_sealed(&store.inner).unwrap();
    };
    for round in 1..30 {
        for name in &names {
            store.append(NewFrame { ttl: nine, ..frame(name, 0) }.into()).unwrap();
        }
        filler();
        let mut topics = store.inner.index.topics.write();
        // Before that all of them stay.
        for name in names.iter().filter(|_| round > 9) {
            assert!(topics.handed.get_mut(name).is_some(), "{name} would be looked for");
        }
    }
    for name in &names {
        assert_eq!(store.last(&TopicPatterns::parse(name).unwrap(), 99).unwrap().len(), 9);
    }
}

#[test]
fn conditions_over_very_many_topics_are_decided_or_refused() {
    let dir = fast_dir();
    let store = open(dir.path());
    let many = crate::limits::CONDITION_TOPICS_MAX as u64 + 904;
    for n in 0..many {
        store.append(frame(&format!("a.{n}"), n).into()).unwrap();
    }
    let when = |conditions: Vec<Condition>| {
        store.append(Batch { conditions, ..Batch::from(frame("z", 0)) })
    };
    let topics = || TopicPatterns::parse("a.*").unwrap();
    let at_most = |offset| Condition::LastAtMost { topics: topics(), offset };
    let found = |answer: Result<_, AppendError>| match answer {
        Err(AppendError::ConditionNotMet(unmet)) => unmet.found,
        other => panic!("{:?}", other.map(drop)),
    };
    // The newest frames decide.
    when(vec![at_most(many - 1); 64]).unwrap();
    assert_eq!(found(when(vec![Condition::Empty(topics())])), many - 1);
    assert_eq!(found(when(vec![at_most(many - 2)])), many - 1);
    (0..1_100).for_each(|n| drop(store.append(frame("z", n).into()).unwrap()));
    // Another topic decides, not the newest.
    assert!(found(when(vec![Condition::Empty(topics())])) < many);
    assert!(found(when(vec![Condition::Empty(TopicPatterns::everything())])) > many);
    // Nothing decides.
    let too_wide =
        |answer: Result<_, _>| matches!(answer, Err(AppendError::ConditionsTooWide { .. }));
    assert!(too_wide(when(vec![at_most(many - 1)])));
    let few = |n: u64| Condition::LastAtMost {
        topics: TopicPatterns::parse(&format!("a.{n}")).unwrap(),
        offset: n,
    };
    when((0..64).map(few).collect()).unwrap();
    when(vec![at_most(many + 1_000)]).unwrap();
}
