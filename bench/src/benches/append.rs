//! Appends in process: one thread, one store, one batch at a time.

use std::time::{Duration, Instant};

use xs_bench::histogram::Histogram;
use xs_bench::report::Row;
use xs_bench::scratch;
use xs_bench::workload::{Frames, Shape};
use xs_engine::{Batch, Store, SyncPolicy};

use crate::Setting;

/// A bench with syncs appends 1 in this many of the frames, times the batch size up to 16.
const SYNC_SHARE: u64 = 200;

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(10_000_000, 20_000);
    rates(setting, frames)
}

/// Measures the rates of all sizes, shapes and policies.
pub(crate) fn rates(setting: &mut Setting, frames: u64) -> anyhow::Result<()> {
    let about = "in process, one thread, one batch after the other; closing included under none";
    setting.report.begin("append", about)?;
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        for shape in Shape::ALL {
            for batch in [1, 64] {
                let count = match policy {
                    SyncPolicy::None => frames,
                    _ => (frames / SYNC_SHARE * batch.min(16)).max(batch),
                };
                let (time, times) = measure(setting, policy, shape, batch as usize, count)?;
                let name = format!("{policy}, {batch} a batch, {}", shape.name());
                let mut row = Row::new(name).rate("frames", count, time).latency(&times);
                if policy == SyncPolicy::None {
                    row = row.target(target(shape, batch));
                }
                setting.report.row(&row)?;
            }
        }
    }
    Ok(())
}

/// The target under `none`.
pub(crate) const fn target(shape: Shape, batch: u64) -> &'static str {
    match (shape, batch) {
        (Shape::Meta, 1) => "1 M/s",
        (Shape::Meta, _) => "2 M/s",
        (Shape::Body256, 1) => "600 k/s",
        (Shape::Body256, _) => "1 M/s",
    }
}

fn measure(
    setting: &Setting,
    policy: SyncPolicy,
    shape: Shape,
    batch: usize,
    count: u64,
) -> anyhow::Result<(Duration, Histogram)> {
    let scratch = setting.scratch()?;
    let store = scratch::open(&scratch.path().join("store"), scratch::options(policy))?;
    let begun = Instant::now();
    let times = fill(&store, &mut Frames::common(shape), batch, count)?;
    let time = begun.elapsed();
    store.close()?;
    Ok((if policy == SyncPolicy::None { begun.elapsed() } else { time }, times))
}

/// Appends frames and returns the time of each batch.
pub(crate) fn fill(
    store: &Store,
    frames: &mut Frames,
    batch: usize,
    count: u64,
) -> anyhow::Result<Histogram> {
    let mut times = Histogram::default();
    let mut left = count;
    while left > 0 {
        let size = left.min(batch as u64) as usize;
        let begun = Instant::now();
        store.append(Batch { frames: frames.take(size), ..Batch::default() })?;
        times.record(begun.elapsed());
        left -= size as u64;
    }
    Ok(times)
}
