//! How costs grow with the number of frames and of segments, as a table and a plot. Each store is
//! filled, closed, opened, read, killed and opened again, each step in a new process.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use xs_bench::environment;
use xs_bench::plot::{Panel, svg};
use xs_bench::report::{Row, human, mib};
use xs_bench::scratch;
use xs_engine::SyncPolicy;

use crate::Setting;
use crate::job::{self, Answer, Job};

/// Number of topics that frames go to in turn: each has 1 % of the frames.
const TOPICS: u64 = 100;
/// The directory of the results.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");

/// One measured store.
#[derive(Debug)]
struct Point {
    frames: u64,
    segments: u64,
    costs: Vec<f64>,
}

/// Computes a cost from the answer of the process that filled the store, the answer of the process
/// that opened it, and the number of frames.
type Cost = fn(&Answer, &Answer, u64) -> f64;

/// The costs in the table and the plot.
const COSTS: [(&str, Cost); 7] = [
    ("append, ns a frame", |filled, _, frames| filled.append / frames as f64 * 1e9),
    ("replay, ns a frame", |_, opened, frames| opened.replay / frames as f64 * 1e9),
    ("1 % topic, ns a matching frame", |_, opened, frames| {
        opened.topic / (frames / TOPICS).max(1) as f64 * 1e9
    }),
    ("last of a topic p50, us", |_, opened, _| opened.last_p50 * 1e6),
    ("last of a topic p99, us", |_, opened, _| opened.last_p99 * 1e6),
    ("open after close, ms", |_, opened, _| opened.open * 1e3),
    ("RssAnon after open, MiB", |_, opened, _| mib(opened.rss_open)),
];
const KILLED: &str = "open after kill -9, ms";

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let about = "stores of frames with meta on 100 topics; policy none filling, sync afterwards";
    setting.report.begin("curves", about)?;
    let unit = setting.frames(50_000_000, 50_000) / 50;
    let usual = scratch::options(SyncPolicy::None).segment_bytes;
    let by_frames = [unit, 10 * unit, 50 * unit].map(|frames| (frames, usual));
    let sizes = [1 << 30, 128 << 20, 8 << 20, 1 << 20];
    let by_segments = sizes.map(|size| (10 * unit, if setting.quick { 1 << 20 } else { size }));
    let by_frames = curve(setting, &by_frames)?;
    let by_segments = curve(setting, &by_segments)?;
    let results =
        if setting.quick { setting.dir.join("xs-bench.quick") } else { PathBuf::from(RESULTS) };
    write(&results, &environment::facts(&setting.dir), &by_frames, &by_segments)?;
    if setting.quick {
        return Ok(fs::remove_dir_all(&results)?);
    }
    let wrote = format!("\nwrote curves.md and curves.svg in {}", results.display());
    Ok(setting.report.line(&wrote)?)
}

fn curve(setting: &mut Setting, stores: &[(u64, u64)]) -> anyhow::Result<Vec<Point>> {
    let mut points = Vec::new();
    for &(frames, segment_bytes) in stores {
        let point = measure(setting, frames, segment_bytes)?;
        let name = format!("{} frames, {} segments", human(frames as f64, "/s"), point.segments);
        let row = names().zip(&point.costs).fold(
            Row::new(name.replace("/s", "")),
            |row, (name, cost)| {
                let (name, unit) = name.split_once(", ").unwrap_or((name, ""));
                row.figure(name, *cost, unit_of(unit))
            },
        );
        setting.report.row(&row)?;
        points.push(point);
    }
    Ok(points)
}

fn names() -> impl Iterator<Item = &'static str> {
    COSTS.iter().map(|(name, _)| *name).chain([KILLED])
}

fn unit_of(text: &'static str) -> &'static str {
    text.split(' ').next().unwrap_or(text)
}

fn measure(setting: &Setting, frames: u64, segment_bytes: u64) -> anyhow::Result<Point> {
    let scratch = setting.scratch()?;
    let fill = Job {
        dir: job::store(scratch.path()),
        sync: "none".to_owned(),
        segment_bytes,
        frames,
        bodies: false,
        topics: TOPICS,
        half_full: false,
        reads: false,
    };
    let filled = fill.start()?.end()?;
    let open = Job { sync: "sync".to_owned(), frames: 0, ..fill };
    let opened = Job { reads: true, ..open.clone() }.start()?.kill()?;
    let killed = open.start()?.kill()?;
    anyhow::ensure!(killed.head > frames, "frames were lost");
    let costs = COSTS.iter().map(|(_, cost)| cost(&filled, &opened, frames));
    let costs = costs.chain([killed.open * 1e3]).collect();
    Ok(Point { frames, segments: filled.segments, costs })
}

/// Writes the table and the plot.
fn write(
    dir: &Path,
    facts: &[(&str, String)],
    by_frames: &[Point],
    by_segments: &[Point],
) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut table = "# Cost curves\n\nMade by `cargo run --release -p xs-bench -- curves`; \
                     `curves.svg` shows the same.\n\n"
        .to_owned();
    facts.iter().for_each(|(name, fact)| table += &format!("- {name}: {fact}\n"));
    table += "\n| frames | segments |";
    names().for_each(|name| table += &format!(" {name} |"));
    table += "\n|";
    (0..names().count() + 2).for_each(|_| table += "---|");
    for point in by_frames.iter().chain(by_segments) {
        let _ = write!(table, "\n| {} | {} |", point.frames, point.segments);
        point.costs.iter().for_each(|cost| table += &format!(" {} |", human(*cost, "")));
    }
    table += "\n";
    let panels = names().enumerate().flat_map(|(number, name)| {
        let panel = |across, points: &[Point], x: fn(&Point) -> u64| Panel {
            title: name.to_owned(),
            across,
            points: points.iter().map(|point| (x(point) as f64, point.costs[number])).collect(),
        };
        [
            panel("frames, in segments of the usual size", by_frames, |point| point.frames),
            panel("segments, of one number of frames", by_segments, |point| point.segments),
        ]
    });
    fs::write(dir.join("curves.md"), table)?;
    fs::write(dir.join("curves.svg"), svg(&panels.collect::<Vec<_>>(), 2))?;
    Ok(())
}
