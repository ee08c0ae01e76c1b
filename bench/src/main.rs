//! Benches of xs: `cargo run --release -p xs-bench -- NAME...`. A run prints what its figures
//! depend on, then the figures; each claim about speed is one of these commands. It does not judge
//! figures, and writes only to its scratch directory and to result files.

#![forbid(unsafe_code)]

mod benches;
mod job;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use tempfile::TempDir;
use xs_bench::report::Report;
use xs_bench::{environment, scratch};

use crate::job::Job;

/// Benches of xs.
#[derive(Debug, Parser)]
#[command(name = "xs-bench", max_term_width = 100, after_help = benches::list())]
struct Args {
    /// The benches to run, in this order.
    #[arg(value_name = "NAME", default_value = "overview")]
    names: Vec<String>,
    /// Where stores are made, in directories that are removed again [default: that of the system].
    /// Durable rows need one that is not in memory.
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// So little of everything that the figures mean nothing: shows that the benches work.
    #[arg(long)]
    quick: bool,
    /// Also write each row as a line of JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many frames, where a bench has a number that can be chosen.
    #[arg(long, value_name = "N")]
    frames: Option<u64>,
    /// The `xs` binary that serves [default: the one beside this one].
    #[arg(long, value_name = "PATH")]
    xs: Option<PathBuf>,
    /// Work that a bench does in a process of its own.
    #[arg(long, hide = true, value_parser = job::parse)]
    job: Option<Job>,
}

/// The settings of a run.
#[derive(Debug)]
struct Setting {
    dir: PathBuf,
    quick: bool,
    frames: Option<u64>,
    xs: Option<PathBuf>,
    report: Report,
}

impl Setting {
    /// Creates a directory that is removed when the value is dropped.
    fn scratch(&self) -> anyhow::Result<TempDir> {
        tempfile::Builder::new()
            .prefix("xs-bench.")
            .tempdir_in(&self.dir)
            .with_context(|| format!("make a directory in {}", self.dir.display()))
    }

    /// Returns how much of something to do.
    const fn amount(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }

    /// Returns how many frames to use, unless `--frames` sets it.
    fn frames(&self, full: u64, quick: u64) -> u64 {
        self.frames.unwrap_or_else(|| self.amount(full, quick))
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(job) = args.job {
        return job.run();
    }
    let benches: Vec<_> =
        args.names.iter().map(|name| benches::find(name)).collect::<anyhow::Result<_>>()?;
    let dir = args.dir.unwrap_or_else(std::env::temp_dir);
    // A quick run prints meaningless figures anyway, so any directory will do.
    if !args.quick && benches.iter().any(|bench| bench.is_durable) {
        scratch::check_durable(&dir)?;
    }
    let report = Report::new(args.json.as_deref()).context("create the file for JSON")?;
    let Args { quick, frames, xs, .. } = args;
    let mut setting = Setting { dir, quick, frames, xs, report };
    environment::print(&mut setting.report, &setting.dir)
        .with_context(|| format!("write to {}", setting.dir.display()))?;
    if quick {
        setting.report.line("QUICK: these figures mean nothing")?;
    }
    for bench in benches {
        (bench.run)(&mut setting)?;
    }
    Ok(())
}
