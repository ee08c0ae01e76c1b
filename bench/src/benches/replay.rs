//! Reads back in process, from the first frame to the last.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use xs_bench::report::Row;
use xs_bench::workload::{Frames, Shape};
use xs_bench::{bare, scratch};
use xs_engine::{ReadOptions, Store, SyncPolicy};

use crate::Setting;
use crate::benches::append::fill;

/// Passes over the log; the fastest counts, the difference to others is noise.
const PASSES: usize = 3;
const BODY_MAX: u64 = 1024;

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(10_000_000, 20_000);
    rates(setting, frames)
}

/// Measures the rates of complete reads.
pub(crate) fn rates(setting: &mut Setting, frames: u64) -> anyhow::Result<()> {
    let about = "in process, one thread, from the page cache; the best of 3 passes";
    setting.report.begin("replay", about)?;
    for shape in Shape::ALL {
        let scratch = setting.scratch()?;
        let dir = scratch.path().join("store");
        let store = scratch::open(&dir, scratch::options(SyncPolicy::None))?;
        fill(&store, &mut Frames::common(shape), 64, frames)?;
        let headers = best(frames, || read(&store, &ReadOptions::default()))?;
        let (walked, bare) = walk(&dir.join("log"))?;
        anyhow::ensure!(walked == frames, "{walked} frames are in the log instead of {frames}");
        let row = Row::new(format!("headers, {}", shape.name()))
            .rate("frames", frames, headers)
            .rate("a bare walk in memory", walked, bare)
            .figure("bare walk faster by", headers.as_secs_f64() / bare.as_secs_f64(), "x");
        setting.report.row(&row.target("10 M/s, 2 x"))?;
        let taken = best(frames, || take(&store))?;
        let row = Row::new(format!("frames as values, {}", shape.name()));
        setting.report.row(&row.rate("frames", frames, taken))?;
        if shape == Shape::Body256 {
            let time = best(frames, || read_bodies(&store, &ReadOptions::default()))?;
            let row = Row::new("headers and bodies, 256 B body").rate("frames", frames, time);
            setting.report.row(&row)?;
        }
    }
    Ok(())
}

/// Runs the bare walk over a log.
fn walk(log: &Path) -> anyhow::Result<(u64, Duration)> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(log)? {
        let path = entry?.path();
        // Prepared spare files hold no batches.
        if path.extension().is_some_and(|kind| kind == "seg") {
            segments.push(path);
        }
    }
    let passes = (0..PASSES).map(|_| bare::walk(&segments));
    let passes = passes.collect::<anyhow::Result<Vec<_>>>()?;
    passes.into_iter().min_by_key(|(_, time)| *time).context("walk at least once")
}

/// Returns the time of the fastest of some runs, each of which must read `frames` frames.
pub(crate) fn best(frames: u64, run: impl Fn() -> anyhow::Result<u64>) -> anyhow::Result<Duration> {
    let mut fastest = Duration::MAX;
    for _ in 0..PASSES {
        let begun = Instant::now();
        let count = run()?;
        fastest = fastest.min(begun.elapsed());
        anyhow::ensure!(count == frames, "{count} frames were read instead of {frames}");
    }
    Ok(fastest)
}

/// Visits frames in place, without a copy, and returns their number.
pub(crate) fn read(store: &Store, options: &ReadOptions) -> anyhow::Result<u64> {
    let mut count = 0;
    let mut reader = store.read(options)?;
    let flow = reader.visit(|frame| {
        std::hint::black_box(frame);
        count += 1;
        ControlFlow::Continue(())
    })?;
    anyhow::ensure!(flow.is_continue(), "the visit ended early");
    Ok(count)
}

/// Reads frames as owned values and returns their number.
fn take(store: &Store) -> anyhow::Result<u64> {
    let mut count = 0;
    for frame in store.read(&ReadOptions::default())? {
        std::hint::black_box(frame?);
        count += 1;
    }
    Ok(count)
}

/// Reads frames with their bodies, which all of them must have, and returns their number.
pub(crate) fn read_bodies(store: &Store, options: &ReadOptions) -> anyhow::Result<u64> {
    let mut count = 0;
    for frame in store.read(options)? {
        let body = store.body(&frame?, BODY_MAX)?.context("find a body that was stored")?;
        std::hint::black_box(body);
        count += 1;
    }
    Ok(count)
}
