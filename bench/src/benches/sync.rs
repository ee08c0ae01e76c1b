//! Durable appends beside a bare loop that syncs as many bytes to as many files, turn by turn in
//! one run: the disk's mood changes, their ratio does not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use xs_bench::bare::{PREPARED, SyncLoop};
use xs_bench::histogram::Histogram;
use xs_bench::report::{Row, per_second};
use xs_bench::scratch;
use xs_bench::workload::{Frames, Shape};
use xs_engine::{Batch, Store, SyncPolicy};

use crate::Setting;

const OUTSTANDING: [usize; 4] = [1, 8, 64, 512];
const THREADS_MAX: usize = 4;
/// How long each side has its turn.
const TURN: Duration = Duration::from_millis(400);
/// docs/format.md: headers of a file, a batch and an entry of a pack.
const FILE_HEADER: u64 = 64;
const ENTRY_HEADER: usize = 72;

/// What one side did in all its turns.
#[derive(Debug, Default)]
struct Done {
    frames: u64,
    time: Duration,
    times: Histogram,
}

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let about = "policy sync, single frames from 4 threads at most, turn by turn with a bare loop";
    setting.report.begin("sync", about)?;
    for shape in Shape::ALL {
        for outstanding in OUTSTANDING {
            one(setting, shape, outstanding)?;
        }
    }
    Ok(())
}

fn one(setting: &mut Setting, shape: Shape, outstanding: usize) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let store = scratch::open(&scratch.path().join("store"), scratch::options(SyncPolicy::Sync))?;
    let mut bare = SyncLoop::new(scratch.path(), PREPARED)?;
    let mut made = Frames::common(shape);
    let (mut engine, mut least) = (Done::default(), Done::default());
    let (log, pack) = bytes_of(&store, &mut made, outstanding)?;
    let turns = setting.amount(12, 1);
    let turn = if setting.quick { TURN / 20 } else { TURN };
    for _ in 0..turns {
        appends(&store, &mut made, outstanding, turn, &mut engine)?;
        let begun = Instant::now();
        while begun.elapsed() < turn {
            let group = Instant::now();
            bare.group(&log, &pack)?;
            least.times.record(group.elapsed());
            least.frames += outstanding as u64;
        }
        least.time += begun.elapsed();
    }
    let rate = per_second(engine.frames, engine.time);
    let least_rate = per_second(least.frames, least.time);
    let row = Row::new(format!("{outstanding} outstanding, {}", shape.name()))
        .rate("frames", engine.frames, engine.time)
        .rate("bare", least.frames, least.time)
        .figure("fraction", rate / least_rate * 100.0, "%")
        .latency(&engine.times)
        .figure("bare p50", least.times.quantile(0.5).as_nanos() as f64 / 1e3, "us")
        .target(if outstanding == 1 { "80 %" } else { "90 %" });
    Ok(setting.report.row(&row)?)
}

/// As many bytes as a group of the store writes to its log and its pack.
fn bytes_of(
    store: &Store,
    made: &mut Frames,
    outstanding: usize,
) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    store.append(Batch::from(made.frame()))?;
    let before = store.info().log_bytes.max(FILE_HEADER);
    let frame = made.frame();
    let body = match &frame.body {
        xs_engine::Body::Inline(bytes) => ENTRY_HEADER + bytes.len(),
        _ => 0,
    };
    store.append(Batch::from(frame))?;
    let log = (store.info().log_bytes - before) as usize;
    Ok((vec![1; log * outstanding], vec![1; body * outstanding]))
}

/// Keeps so many single frames in flight for one turn.
fn appends(
    store: &Store,
    made: &mut Frames,
    outstanding: usize,
    turn: Duration,
    done: &mut Done,
) -> anyhow::Result<()> {
    let threads = outstanding.min(THREADS_MAX);
    let begun = Instant::now();
    let until = begun + turn;
    if threads == 1 {
        let mut size = 0;
        while Instant::now() < until {
            let begun = Instant::now();
            store.append(Batch::from(made.frame()))?;
            done.times.record(begun.elapsed());
            size += 1;
        }
        done.frames += size;
        done.time += begun.elapsed();
        return Ok(());
    }
    let mut parts: Vec<Frames> = (0..threads).map(|_| made.split()).collect();
    let counts = std::thread::scope(|scope| {
        let part =
            |frames| scope.spawn(move || window(store, frames, outstanding / threads, until));
        let running: Vec<_> = parts.iter_mut().map(part).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.collect::<Vec<_>>()
    });
    for count in counts {
        let times = count.map_err(|_| anyhow::anyhow!("an appending thread panicked"))??;
        done.frames += times.count();
        done.times.merge(&times);
    }
    done.time += begun.elapsed();
    Ok(())
}

fn window(
    store: &Store,
    frames: &mut Frames,
    outstanding: usize,
    until: Instant,
) -> anyhow::Result<Histogram> {
    let mut times = Histogram::default();
    let mut tickets = VecDeque::with_capacity(outstanding);
    loop {
        let go_on = Instant::now() < until;
        while go_on && tickets.len() < outstanding {
            tickets.push_back((Instant::now(), store.submit(Batch::from(frames.frame()))));
        }
        let Some((begun, ticket)) = tickets.pop_front() else { return Ok(times) };
        ticket.wait()?;
        times.record(begun.elapsed());
    }
}
