//! Compares ways to prepare and write files: zero-filled or only allocated, through a memory map or
//! with `pwrite`. Shows sustained rates, and latencies that few appends see. The ways take turns,
//! in one order and then in reverse, so that other load on the machine affects all of them.

use std::time::{Duration, Instant};

use xs_bench::histogram::Histogram;
use xs_bench::report::Row;
use xs_bench::scratch;
use xs_bench::workload::{Frames, Shape};
use xs_engine::{MediaChoice, StoreOptions, SyncPolicy};

use crate::Setting;
use crate::benches::append::fill;

const BATCH: usize = 64;
/// A run with syncs appends 1 in this many of the frames of a run without.
const SYNC_SHARE: u64 = 20;
/// A run with bodies and without syncs appends 1 in this many of the frames.
const BODY_SHARE: u64 = 5;
/// Turns of each way; each begins with an empty directory and ends with a closed store.
const TURNS: u64 = 4;

/// A way to prepare and write files, and its results.
#[derive(Debug)]
struct Way {
    media: MediaChoice,
    zero: bool,
    frames: u64,
    time: Duration,
    times: Histogram,
}

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(50_000_000, 20_000);
    let about = format!(
        "{frames} frames (bodies: 1 in {BODY_SHARE}, sync: 1 in {SYNC_SHARE}) in batches of \
         {BATCH}, in {TURNS} turns, closing included"
    );
    setting.report.begin("prepare", &about)?;
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        for shape in Shape::ALL {
            let share = match (policy, shape) {
                (SyncPolicy::None, Shape::Meta) => 1,
                (SyncPolicy::None, Shape::Body256) => BODY_SHARE,
                _ => SYNC_SHARE,
            };
            all(setting, policy, shape, (frames / share).max(TURNS * BATCH as u64))?;
        }
    }
    Ok(())
}

/// Measures all ways, turn by turn.
fn all(setting: &mut Setting, policy: SyncPolicy, shape: Shape, frames: u64) -> anyhow::Result<()> {
    let media = [MediaChoice::Mapped, MediaChoice::Positioned].into_iter();
    let ways = media.flat_map(|media| [false, true].map(|zero| way(media, zero)));
    let mut ways: Vec<Way> = ways.collect();
    for _ in 0..TURNS {
        for _ in 0..ways.len() {
            one(setting, policy, shape, frames / TURNS, &mut ways[0])?;
            ways.rotate_left(1);
        }
        ways.reverse();
    }
    for Way { media, zero, frames, time, times } in ways {
        let written = if media == MediaChoice::Mapped { "mapped" } else { "positioned" };
        let zeros = if zero { "zeroed" } else { "allocated" };
        let name = format!("{policy}, {}, {written}, {zeros}", shape.name());
        let worst = times.micros(1.0);
        let row = Row::new(name).rate("frames", frames, time).latency(&times);
        setting.report.row(&row.figure("worst", worst, "us"))?;
    }
    Ok(())
}

fn way(media: MediaChoice, zero: bool) -> Way {
    Way { media, zero, frames: 0, time: Duration::ZERO, times: Histogram::default() }
}

/// Runs one turn of a way.
fn one(
    setting: &Setting,
    policy: SyncPolicy,
    shape: Shape,
    frames: u64,
    way: &mut Way,
) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let (media, zero_ahead) = (way.media, way.zero);
    let options = StoreOptions { media, zero_ahead, ..scratch::options(policy) };
    let store = scratch::open(&scratch.path().join("store"), options)?;
    let begun = Instant::now();
    way.times.merge(&fill(&store, &mut Frames::common(shape), BATCH, frames)?);
    store.close()?;
    way.time += begun.elapsed();
    way.frames += frames;
    Ok(())
}
