//! Durable appends compared with a bare loop that syncs as many bytes in as many files, turn by
//! turn in one run: the speed of the disk varies, the ratio does not. A small group takes one sync
//! of the journal. A group too long for it is synced in log and pack concurrently, or only in the
//! log if it has no bodies.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use xs_bench::bare::{PREPARED, SyncLoop};
use xs_bench::histogram::Histogram;
use xs_bench::report::{Row, per_second};
use xs_bench::scratch;
use xs_bench::workload::{Frames, Shape};
use xs_engine::format::{file::FILE_HEADER_LEN, pack::ENTRY_HEADER_LEN};
use xs_engine::limits::JOURNAL_GROUP_BYTES_MAX;
use xs_engine::{Batch, Body, Store, SyncPolicy};

use crate::Setting;

/// The last value makes groups too large for the journal.
const OUTSTANDING: [usize; 5] = [1, 8, 64, 512, 2048];
const THREADS_MAX: usize = 4;
/// Duration of one turn of each side.
const TURN: Duration = Duration::from_millis(400);
/// Maximum time that a store may take to create its journal.
const PATIENCE: Duration = Duration::from_secs(30);

/// As many bytes as a group of the store has.
#[derive(Debug)]
enum Group {
    /// One sync, of the journal or of a log without bodies.
    Once(Vec<u8>),
    /// Two concurrent syncs, of log and pack.
    Twice(Vec<u8>, Vec<u8>),
}

/// The sum of all turns of one side.
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
    let dir = scratch.path().join("store");
    let store = scratch::open(&dir, scratch::options(SyncPolicy::Sync))?;
    let mut bare = SyncLoop::new(scratch.path(), PREPARED)?;
    let mut made = Frames::common(shape);
    let (mut engine, mut least) = (Done::default(), Done::default());
    let bytes = bytes_of(&store, &mut made, outstanding)?;
    await_journal(&store, &mut made, &dir)?;
    let turns = setting.amount(12, 1);
    let turn = if setting.quick { TURN / 20 } else { TURN };
    for _ in 0..turns {
        appends(&store, &mut made, outstanding, turn, &mut engine)?;
        let begun = Instant::now();
        while begun.elapsed() < turn {
            let group = Instant::now();
            match &bytes {
                Group::Once(bytes) => bare.once(bytes)?,
                Group::Twice(log, pack) => bare.twice(log, pack)?,
            }
            least.times.record(group.elapsed());
            least.frames += outstanding as u64;
        }
        least.time += begun.elapsed();
    }
    let rate = per_second(engine.frames, engine.time);
    let least_rate = per_second(least.frames, least.time);
    let syncs = if matches!(bytes, Group::Once(_)) { "1 sync" } else { "2 syncs" };
    let row = Row::new(format!("{outstanding} outstanding, {}, bare {syncs}", shape.name()))
        .rate("frames", engine.frames, engine.time)
        .rate("bare", least.frames, least.time)
        .figure("fraction", rate / least_rate * 100.0, "%")
        .latency(&engine.times)
        .figure("bare p50", least.times.micros(0.5), "us")
        .target(if outstanding == 1 { "80 %" } else { "90 %" });
    Ok(setting.report.row(&row)?)
}

/// Returns how many bytes the store syncs for a group of `outstanding` frames, and in which files.
fn bytes_of(store: &Store, made: &mut Frames, outstanding: usize) -> anyhow::Result<Group> {
    store.append(Batch::from(made.frame()))?;
    let before = store.info().log_bytes.max(FILE_HEADER_LEN as u64);
    let frame = made.frame();
    let body = match &frame.body {
        Body::Inline(bytes) => ENTRY_HEADER_LEN + bytes.len(),
        _ => 0,
    };
    store.append(Batch::from(frame))?;
    let log = (store.info().log_bytes - before) as usize * outstanding;
    let pack = body * outstanding;
    let is_small = (log + pack) as u64 <= JOURNAL_GROUP_BYTES_MAX;
    Ok(match is_small || pack == 0 {
        true => Group::Once(vec![1; log + pack]),
        false => Group::Twice(vec![1; log], vec![1; pack]),
    })
}

/// Appends until the store has created its journal, which takes several groups.
fn await_journal(store: &Store, made: &mut Frames, dir: &Path) -> anyhow::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    while !dir.join("journal").is_file() {
        ensure!(Instant::now() < give_up, "the store has made no journal");
        store.append(Batch::from(made.frame()))?;
    }
    Ok(())
}

/// Keeps `outstanding` single frames in flight for one turn.
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
    let mut handles = VecDeque::with_capacity(outstanding);
    loop {
        let go_on = Instant::now() < until;
        while go_on && handles.len() < outstanding {
            handles.push_back((Instant::now(), store.submit(Batch::from(frames.frame()))));
        }
        let Some((begun, handle)) = handles.pop_front() else { return Ok(times) };
        handle.wait()?;
        times.record(begun.elapsed());
    }
}
