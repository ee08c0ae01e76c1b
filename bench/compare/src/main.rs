//! Compares xs with what users would pick instead: the same work, on the same machine, in one run,
//! one system after the other. It measures and writes results; it judges nothing.

#![forbid(unsafe_code)]

mod bodies;
mod chart;
mod handler;
mod limits;
mod load;
mod results;
mod rows;
mod sample;
mod system;
mod work;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use xs_bench::report::{Report, human};
use xs_bench::scratch;
use xs_bench::server::binary;

use crate::limits::Limits;
use crate::results::{Results, Version};
use crate::sample::{Figures, Sample};
use crate::system::{CrossStream, Nats, Promise, Redis, Setup, Sqlite, System, Xs, find, says};
use crate::work::{Amounts, Group, group};

/// xs beside cross.stream, Redis Streams, NATS JetStream and SQLite: rates, latencies, bytes and
/// times.
#[derive(Debug, Parser)]
#[command(name = "xs-compare", max_term_width = 100)]
struct Args {
    /// So little that the figures mean nothing: shows that everything works.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Longer, and with stores of ten million messages.
    #[arg(long)]
    full: bool,
    /// How often each system takes its turn [default: 3, with --full 5, with --quick 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=99))]
    reps: Option<u8>,
    /// Where stores are made, in directories that are removed again [default: that of the system].
    /// Durable rows need one that is not in memory.
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// The `xs` binary [default: the one beside this one].
    #[arg(long, value_name = "PATH")]
    xs: Option<PathBuf>,
    /// The `xs` binary of cross.stream, which takes part when it is named.
    #[arg(long, value_name = "PATH")]
    cross_stream: Option<PathBuf>,
    /// Directory with the node_modules that the consumer in Node needs.
    #[arg(long, value_name = "PATH")]
    tools: Option<PathBuf>,
    /// Where results are written.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Only these groups of rows (append, durable, read, live, blob, handler), or these systems
    /// (xs, cross.stream, redis, nats, sqlite), or both.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
}

/// A comparison in progress.
struct Comparison {
    tokio: Runtime,
    dir: PathBuf,
    amounts: Amounts,
    reps: usize,
    only: Only,
    xs: PathBuf,
    cross_stream: Option<PathBuf>,
    redis: Option<PathBuf>,
    nats: Option<PathBuf>,
    tools: Option<PathBuf>,
    report: Report,
    samples: Vec<Sample>,
    /// What was not measured, and why.
    missing: Vec<String>,
}

/// Which groups of rows and which systems are wanted: all if none is named.
#[derive(Debug, Default)]
struct Only {
    groups: Vec<String>,
    systems: Vec<String>,
}

const HANDLER: &str = "handler";
const SYSTEMS: [&str; 5] = [Xs::NAME, CrossStream::NAME, Redis::NAME, Nats::NAME, Sqlite::NAME];

impl Only {
    fn parse(names: &[String]) -> anyhow::Result<Self> {
        let mut only = Self::default();
        for name in names {
            let is_group = name == HANDLER || Group::ALL.iter().any(|(one, _)| one == name);
            if is_group {
                only.groups.push(name.clone());
            } else if SYSTEMS.iter().any(|system| system.eq_ignore_ascii_case(name)) {
                only.systems.push(name.clone());
            } else {
                bail!("there is no group or system {name:?}");
            }
        }
        Ok(only)
    }

    fn group(&self, name: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|one| one == name)
    }

    /// Whether there are rows that wait for the disk.
    fn is_durable(&self) -> bool {
        let mut durable = Group::ALL.iter().filter(|(_, group)| group.promise() == Promise::Power);
        self.group(HANDLER) || durable.any(|(name, _)| self.group(name))
    }

    fn system(&self, name: &str) -> bool {
        self.systems.is_empty() || self.systems.iter().any(|one| one.eq_ignore_ascii_case(name))
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let only = Only::parse(&args.only)?;
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    // A quick run prints meaningless figures anyway, so any directory will do.
    if !args.quick && only.is_durable() {
        scratch::check_durable(&dir)?;
    }
    let (amounts, reps) = amounts(&args);
    let reps = args.reps.map_or(reps, usize::from);
    let mut missing = Vec::new();
    let mut program = |system: &str, name: &str| {
        let found = find(name).filter(|_| only.system(system));
        if found.is_none() && only.system(system) {
            missing.push(format!("{name}: not on PATH"));
        }
        found
    };
    let redis = program(Redis::NAME, "redis-server");
    let nats = program(Nats::NAME, "nats-server");
    if args.cross_stream.is_none() && only.system(CrossStream::NAME) {
        missing.push("cross.stream: not named by --cross-stream".to_owned());
    }
    let tools = handler::tools(args.tools.clone());
    if let (Err(reason), Some(_)) = (&tools, &redis) {
        missing.push(format!("the consumer in Node: {reason}"));
    }
    let mut comparison = Comparison {
        tokio: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        dir,
        amounts,
        reps,
        xs: binary(args.xs.as_deref())?,
        cross_stream: args.cross_stream.filter(|_| only.system(CrossStream::NAME)),
        only,
        redis,
        nats,
        tools: tools.ok(),
        report: Report::new(Some(&args.out.join("rows.jsonl")))?,
        samples: Vec::new(),
        missing,
    };
    comparison.run(&args.out, args.quick)
}

fn amounts(args: &Args) -> (Amounts, usize) {
    let amounts = |slice, messages, handled, large_blobs| Amounts {
        slice: Duration::from_millis(slice),
        messages,
        handled,
        large_blobs,
    };
    match (args.quick, args.full) {
        (true, _) => (amounts(150, 20_000, 5_000, 1), 1),
        (_, true) => (amounts(4000, 10_000_000, 500_000, 9), 5),
        _ => (amounts(1000, 500_000, 100_000, 3), 3),
    }
}

impl Comparison {
    fn run(&mut self, out: &Path, quick: bool) -> anyhow::Result<()> {
        let facts = xs_bench::environment::facts(&self.dir);
        for (name, fact) in &facts {
            self.report.line(&format!("{name:<12}{fact}"))?;
        }
        let limits = Limits::measure(&self.dir, self.amounts.slice)?;
        for (name, limit) in limits.lines() {
            self.report.line(&format!("{name}: {limit}"))?;
        }
        self.groups()?;
        if self.only.group(HANDLER) {
            self.handlers()?;
        }
        let results = Results {
            facts,
            versions: self.versions(),
            limits,
            samples: &self.samples,
            missing: &self.missing,
            reps: self.reps,
            amounts: self.amounts,
            quick,
        };
        results.write(out)?;
        self.report.line(&format!("\nwrote {}", out.join("README.md").display()))?;
        match self.missing.iter().find(|line| line.starts_with(Xs::NAME)) {
            Some(line) => bail!("{line}"),
            None => Ok(()),
        }
    }

    /// Runs all groups: for each repetition, one system after the other.
    fn groups(&mut self) -> anyhow::Result<()> {
        for (name, group) in Group::ALL {
            if !self.only.group(name) {
                continue;
            }
            let promise = group.promise();
            let mut nats = self.nats.clone();
            if let (Some(program), Promise::Power) = (&nats, promise)
                && Nats::cannot(program, self.scratch()?.path(), promise)?
            {
                let version = says(program, "--version");
                self.missing.push(format!("NATS, durable: {version} has no sync_interval: always"));
                nats = None;
            }
            for rep in 0..self.reps {
                self.report.begin(name, &format!("repetition {} of {}", rep + 1, self.reps))?;
                self.one::<Xs>(group, Some(self.xs.clone()), promise, rep)?;
                self.one::<CrossStream>(group, self.cross_stream.clone(), promise, rep)?;
                self.one::<Redis>(group, self.redis.clone(), promise, rep)?;
                self.one::<Nats>(group, nats.clone(), promise, rep)?;
                self.one::<Sqlite>(group, Some(PathBuf::new()), promise, rep)?;
            }
        }
        Ok(())
    }

    fn scratch(&self) -> anyhow::Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("xs-compare.").tempdir_in(&self.dir)?)
    }

    /// Creates a directory for a server, once everything written before is on the disk.
    fn setup(&self, program: PathBuf, promise: Promise) -> anyhow::Result<(TempDir, Setup)> {
        rustix::fs::sync();
        let scratch = self.scratch()?;
        let setup = Setup { dir: scratch.path().to_owned(), program, promise };
        Ok((scratch, setup))
    }

    fn one<S: System>(
        &mut self,
        what: Group,
        program: Option<PathBuf>,
        promise: Promise,
        rep: usize,
    ) -> anyhow::Result<()> {
        let Some(program) = program.filter(|_| self.only.system(S::NAME)) else { return Ok(()) };
        let (_scratch, setup) = self.setup(program, promise)?;
        let mut samples = Vec::new();
        let done = self.tokio.block_on(group::<S>(what, &setup, self.amounts, rep, &mut samples));
        self.tell(samples)?;
        if let Err(error) = done {
            self.failed(format!("{}, {what:?}: {error:#}", S::NAME))?;
        }
        Ok(())
    }

    fn handlers(&mut self) -> anyhow::Result<()> {
        let messages = self.amounts.handled;
        for (row, promise) in [("handler", Promise::Process), ("handler-durable", Promise::Power)] {
            for rep in 0..self.reps {
                self.report.begin(HANDLER, &format!("{row}, repetition {}", rep + 1))?;
                if self.only.system(Xs::NAME) {
                    let (_scratch, setup) = self.setup(self.xs.clone(), promise)?;
                    let rate = self.tokio.block_on(handler::xs(&setup, messages));
                    self.handled(row, Xs::NAME, rep, rate)?;
                }
                // It keeps neither state nor position, which is less than this promise requires.
                if let (Some(program), Promise::Process) = (self.cross_stream.clone(), promise) {
                    let (_scratch, setup) = self.setup(program, promise)?;
                    let messages = messages.min(CrossStream::MESSAGES_MAX);
                    let rate = self.tokio.block_on(handler::cross_stream(&setup, messages));
                    self.handled(row, CrossStream::NAME, rep, rate)?;
                }
                let (Some(redis), Some(tools)) = (self.redis.clone(), self.tools.clone()) else {
                    continue;
                };
                let (_scratch, setup) = self.setup(redis, promise)?;
                let rate = self.tokio.block_on(handler::redis(&setup, &tools, messages));
                self.handled(row, Redis::NAME, rep, rate)?;
            }
        }
        Ok(())
    }

    fn handled(
        &mut self,
        row: &'static str,
        system: &'static str,
        rep: usize,
        rate: anyhow::Result<f64>,
    ) -> anyhow::Result<()> {
        match rate {
            Ok(rate) => self.tell(vec![Sample { row, system, rep, figures: Figures::of(rate) }]),
            Err(error) => self.failed(format!("{system}, {row}: {error:#}")),
        }
    }

    fn tell(&mut self, samples: Vec<Sample>) -> anyhow::Result<()> {
        for sample in samples {
            let row = rows::ROWS.iter().find(|row| row.key == sample.row);
            let (title, unit) = row.map_or((sample.row, ""), |row| (row.title, row.unit()));
            let value = human(sample.figures.value, unit);
            self.report.line(&format!("  {:<14}{title:<52}{value}", sample.system))?;
            self.report.json(&sample.json(unit))?;
            self.samples.push(sample);
        }
        Ok(())
    }

    fn failed(&mut self, line: String) -> anyhow::Result<()> {
        self.report.line(&format!("  FAILED {line}"))?;
        self.missing.push(line);
        Ok(())
    }

    fn versions(&self) -> Vec<Version> {
        let version = |name, version: Option<String>, settings: fn(Promise) -> &'static str| {
            let version = version.filter(|_| self.only.system(name))?;
            Some(Version { name, version, settings })
        };
        let of = |program: &Option<PathBuf>| {
            program.as_deref().map(|program| says(program, "--version"))
        };
        [
            version(Xs::NAME, Some(says(&self.xs, "--version")), Xs::settings),
            version(CrossStream::NAME, of(&self.cross_stream), CrossStream::settings),
            version(Redis::NAME, of(&self.redis), Redis::settings),
            version(Nats::NAME, of(&self.nats), Nats::settings),
            version(Sqlite::NAME, Some(rusqlite::version().to_owned()), Sqlite::settings),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_systems_are_chosen_apart() {
        let only = |names: &[&str]| {
            Only::parse(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let all = only(&[]).unwrap();
        assert!(all.group("read") && all.system(Xs::NAME));
        let some = only(&["read", "redis", "cross.stream"]).unwrap();
        assert!(some.group("read") && !some.group(HANDLER));
        assert!(some.system(Redis::NAME) && some.system(CrossStream::NAME));
        assert!(!some.system(Xs::NAME));
        let durable = only(&["durable"]).unwrap();
        assert!(all.is_durable() && !some.is_durable() && durable.is_durable());
        let system = only(&["sqlite"]).unwrap();
        assert!(system.group(HANDLER) && system.system(Sqlite::NAME));
        assert!(only(&["kafka"]).is_err());
    }
}
