//! Reads of one topic among many frames: 1 % of the log, and the newest frame of a topic in a log
//! of a thousand segments.

use std::time::Instant;

use xs_bench::histogram::Histogram;
use xs_bench::report::Row;
use xs_bench::scratch;
use xs_bench::workload::{Frames, Random, Shape, topic};
use xs_engine::{Batch, NewFrame, ReadOptions, Store, StoreOptions, SyncPolicy, TopicPatterns};

use crate::Setting;
use crate::benches::append::fill;
use crate::benches::replay::{best, read, read_bodies};

/// Number of topics that frames go to in turn: each has 1 % of the frames.
const TOPICS: u64 = 100;
/// The topic that is read.
const TOPIC: u64 = 7;
const SEGMENT_BYTES: u64 = 1 << 20;
/// Small enough that most of what is read is sealed.
const PACK_BYTES: u64 = 16 << 20;

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    setting.report.begin("topics", "in process, from the page cache")?;
    share(setting)?;
    bodies(setting)?;
    last(setting)
}

/// Returns the options to read one topic.
pub(crate) fn only(name: &str) -> anyhow::Result<ReadOptions> {
    Ok(ReadOptions { topics: TopicPatterns::parse(name)?, ..ReadOptions::default() })
}

/// Returns how many of `frames` frames are on the topic that is read.
const fn of_topic(frames: u64) -> u64 {
    (frames + TOPICS - 1 - TOPIC) / TOPICS
}

fn share(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(5_000_000, 20_000);
    let scratch = setting.scratch()?;
    let store = scratch::open(scratch.path(), scratch::options(SyncPolicy::None))?;
    fill(&store, &mut Frames::new(Shape::Meta, TOPICS), 64, frames)?;
    let whole = best(frames, || read(&store, &ReadOptions::default()))?;
    let one = only(topic(TOPIC).as_str())?;
    let part = best(of_topic(frames), || read(&store, &one))?;
    let row = Row::new(format!("all of {frames} frames")).rate("frames", frames, whole);
    setting.report.row(&row)?;
    let row = Row::new("a topic with 1 % of them")
        .rate("frames", of_topic(frames), part)
        .figure("faster than all", whole.as_secs_f64() / part.as_secs_f64(), "x")
        .target("50 x");
    Ok(setting.report.row(&row)?)
}

/// Like `share`, with a body for each frame, read from sealed packs.
fn bodies(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(500_000, 5_000);
    let scratch = setting.scratch()?;
    let options = || StoreOptions { pack_bytes: PACK_BYTES, ..scratch::options(SyncPolicy::None) };
    let store = scratch::open(scratch.path(), options())?;
    fill(&store, &mut Frames::new(Shape::Body256, TOPICS), 64, frames)?;
    store.close()?;
    drop(store);
    let store = scratch::open(scratch.path(), options())?;
    let one = only(topic(TOPIC).as_str())?;
    // Before anything is decompressed.
    let begun = Instant::now();
    let count = read_bodies(&store, &one)?;
    let first = begun.elapsed();
    anyhow::ensure!(count == of_topic(frames), "{count} bodies were read of {frames} frames");
    let again = best(count, || read_bodies(&store, &one))?;
    let row = Row::new("a topic with 1 % of the frames, with bodies of 256 B")
        .rate("first time", count, first)
        .rate("again", count, again)
        .target("300 k/s");
    setting.report.row(&row)?;
    let all = best(frames, || read_bodies(&store, &ReadOptions::default()))?;
    let row = Row::new(format!("all of {frames} frames with their bodies"));
    Ok(setting.report.row(&row.rate("frames", frames, all))?)
}

fn last(setting: &mut Setting) -> anyhow::Result<()> {
    let segments = setting.amount(1000, 4) as usize;
    let scratch = setting.scratch()?;
    let options =
        StoreOptions { segment_bytes: SEGMENT_BYTES, ..scratch::options(SyncPolicy::None) };
    let store = scratch::open(scratch.path(), options)?;
    // A topic that only the first segment contains.
    store.append(Batch::from(NewFrame::new(topic(TOPICS))))?;
    let mut frames = Frames::new(Shape::Meta, TOPICS);
    while store.info().segments < segments {
        fill(&store, &mut frames, 64, 64 * 32)?;
    }
    let mut random = Random::default();
    let any = |_| topic(random.next() % (TOPICS + 1));
    let asked: Vec<_> = (0..setting.amount(10_000, 100)).map(any).collect();
    let oldest = vec![topic(TOPICS); asked.len()];
    for (name, asked) in [("of any topic", asked), ("of the topic of the first frame", oldest)] {
        let times = ask(&store, &asked)?;
        let row = Row::new(format!("last {name}, {segments} segments")).latency(&times);
        setting.report.row(&row.target("20 us"))?;
    }
    Ok(())
}

fn ask(store: &Store, topics: &[xs_engine::Topic]) -> anyhow::Result<Histogram> {
    let mut times = Histogram::default();
    for topic in topics {
        let patterns = TopicPatterns::parse(topic.as_str())?;
        let begun = Instant::now();
        let frames = store.last(&patterns, 1)?;
        times.record(begun.elapsed());
        anyhow::ensure!(frames.len() == 1, "{topic} has no newest frame");
    }
    Ok(times)
}
