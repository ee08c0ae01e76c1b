//! Appends without syncs, sustained over many segments: how the store compares with the machine,
//! and where the rest of the time goes.

use std::time::{Duration, Instant};

use xs_bench::process::Times;
use xs_bench::report::Row;
use xs_bench::workload::{Frames, Shape};
use xs_bench::{bare, scratch};
use xs_engine::format::pack::ENTRY_HEADER_LEN;
use xs_engine::{Batch, SyncPolicy};

use crate::Setting;
use crate::benches::append::target;

/// Number of chunks in a measurement without a store.
const PIECES: u64 = 1_000_000;
/// Frames between two checks of the number of segments.
const LOOK: u64 = 4096;
const BODY_LEN: usize = 256;

/// The result of one run.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    frames: u64,
    log_bytes: u64,
    /// Bytes of packs whose compression was postponed.
    plain_bytes: u64,
    /// Time including the close, which writes back the rest.
    time: Duration,
    /// Time until the last append was acknowledged.
    appending: Duration,
    /// Times of the appending thread, and of the threads of the store.
    thread: Times,
    others: Times,
}

impl Run {
    /// The time until the last append was acknowledged, without the time that other processes took
    /// the processor.
    fn alone(&self) -> Duration {
        self.appending.saturating_sub(self.thread.queued)
    }
}

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let segments = setting.amount(20, 1);
    let about =
        format!("policy none, one thread, over {segments} segments or more, closing included");
    setting.report.begin("none", &about)?;
    for shape in Shape::ALL {
        for batch in [64, 1] {
            let run = sustained(setting, shape, batch, segments)?;
            let name = format!("batches of {batch}, {}", shape.name());
            let row = Row::new(&name)
                .rate("frames", run.frames, run.time)
                .rate("until acknowledged", run.frames, run.appending)
                .rate("with a processor of its own", run.frames, run.alone())
                .figure("packs left to be compressed", run.plain_bytes as f64, "B")
                .target(target(shape, batch));
            setting.report.row(&row)?;
            written(setting, shape, &run)?;
            breakdown(setting, shape, batch, &run)?;
        }
    }
    Ok(())
}

fn sustained(setting: &Setting, shape: Shape, batch: u64, segments: u64) -> anyhow::Result<Run> {
    let scratch = setting.scratch()?;
    let mut options = scratch::options(SyncPolicy::None);
    if setting.quick {
        options.segment_bytes = 1 << 20;
    }
    let store = scratch::open(scratch.path(), options)?;
    let mut frames = Frames::common(shape);
    let (begun, thread) = (Instant::now(), Times::of_this_thread());
    let mut run = Run::default();
    while store.info().segments as u64 <= segments {
        for _ in 0..LOOK / batch {
            let frames = frames.take(batch as usize);
            store.append(Batch { frames, ..Batch::default() })?;
        }
        run.frames += LOOK / batch * batch;
        if setting.frames.is_some_and(|frames| run.frames >= frames) {
            break;
        }
    }
    run.appending = begun.elapsed();
    run.thread = Times::of_this_thread().since(thread);
    run.others = Times::of_the_others();
    run.log_bytes = store.info().log_bytes;
    run.plain_bytes = store.stats().files.packs_plain.bytes;
    store.close()?;
    run.time = begun.elapsed();
    Ok(run)
}

/// Measures writing and syncing the same bytes without a store.
fn written(setting: &mut Setting, shape: Shape, run: &Run) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let bytes = run.log_bytes + run.frames * entry_len(shape) as u64;
    let time = bare::write_back(scratch.path(), bytes)?;
    let row = Row::new("  the same bytes to bare files, synced each")
        .rate("frames", run.frames, time)
        .figure("", bytes as f64 / time.as_secs_f64(), "B/s")
        .figure("fraction", time.as_secs_f64() / run.time.as_secs_f64() * 100.0, "%");
    Ok(setting.report.row(&row)?)
}

/// Bytes of a body in its pack.
const fn entry_len(shape: Shape) -> usize {
    match shape {
        Shape::Meta => 0,
        Shape::Body256 => ENTRY_HEADER_LEN + BODY_LEN,
    }
}

/// Measures the nanoseconds per frame, and those for the same bytes without a store.
fn breakdown(setting: &mut Setting, shape: Shape, batch: u64, run: &Run) -> anyhow::Result<()> {
    let pieces = setting.amount(PIECES, 1000);
    let each = |time: Duration, count: u64| time.as_nanos() as f64 / count.max(1) as f64;
    let log = (run.log_bytes / run.frames.max(1)) as usize;
    let entry = entry_len(shape);
    let copy = each(bare::copy(log + entry, pieces), pieces);
    let crc = each(bare::crc(log + entry, pieces), pieces);
    let sha = if entry > 0 { each(bare::sha256(BODY_LEN, pieces), pieces) } else { 0.0 };
    let make = {
        let mut frames = Frames::common(shape);
        let begun = Instant::now();
        (0..pieces / batch + 1)
            .for_each(|_| drop(std::hint::black_box(frames.take(batch as usize))));
        each(begun.elapsed(), pieces)
    };
    let (wall, busy) = (each(run.appending, run.frames), each(run.thread.busy, run.frames));
    let queued = each(run.thread.queued, run.frames);
    let rest = busy - copy - crc - sha - make;
    let row = Row::new(format!("  a frame, {} + {entry} B", log))
        .figure("wall", wall, "ns")
        .figure("memcpy", copy, "ns")
        .figure("CRC", crc, "ns")
        .figure("SHA-256", sha, "ns")
        .figure("making it", make, "ns")
        .figure("rest on the processor", rest, "ns")
        .figure("queued for one", queued, "ns")
        .figure("asleep", wall - busy - queued, "ns")
        .figure("other threads", each(run.others.busy, run.frames), "ns");
    Ok(setting.report.row(&row)?)
}
