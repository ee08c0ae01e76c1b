//! Work in a new process, to measure memory that nothing else has used, or to be killed. The job is
//! a command-line argument, the answer a line on standard output. After that, the process waits to
//! be killed; if its standard input ends, it closes the store and exits.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use xs_bench::histogram::Histogram;
use xs_bench::process::Times;
use xs_bench::workload::{Frames, Random, Shape, topic};
use xs_bench::{process, scratch};
use xs_engine::{Batch, NewFrame, ReadOptions, Store, StoreOptions, SyncPolicy, TopicPatterns};

use crate::benches::append::fill;
use crate::benches::replay::{best, read};

/// Frames per batch where only the resulting store matters.
const BATCH: usize = 2048;
const LASTS: u64 = 2000;

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) dir: PathBuf,
    pub(crate) sync: String,
    pub(crate) segment_bytes: u64,
    /// Frames to append.
    pub(crate) frames: u64,
    /// Whether frames have bodies of 256 bytes.
    pub(crate) bodies: bool,
    /// Number of topics that frames go to in turn.
    pub(crate) topics: u64,
    /// Whether to continue appending until the active segment is half full.
    pub(crate) half_full: bool,
    /// Whether to measure reads.
    pub(crate) reads: bool,
}

/// What was measured. Times in seconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Time to open the store.
    pub(crate) open: f64,
    /// The part of `open` that this thread ran on a processor.
    pub(crate) open_busy: f64,
    /// Bytes of anonymous memory (without a file behind it) before and after opening.
    pub(crate) rss_before: u64,
    pub(crate) rss_open: u64,
    pub(crate) append: f64,
    pub(crate) head: u64,
    pub(crate) segments: u64,
    /// Time to read all frames once, and those of one topic.
    pub(crate) replay: f64,
    pub(crate) topic: f64,
    pub(crate) last_p50: f64,
    pub(crate) last_p99: f64,
}

/// A process that has answered and waits.
#[derive(Debug)]
pub(crate) struct Done {
    child: Child,
    pub(crate) answer: Answer,
}

impl Job {
    fn options(&self) -> anyhow::Result<StoreOptions> {
        let sync: SyncPolicy = self.sync.parse()?;
        Ok(StoreOptions { segment_bytes: self.segment_bytes, ..scratch::options(sync) })
    }

    /// Runs the job in a new process.
    pub(crate) fn start(&self) -> anyhow::Result<Done> {
        let this = std::env::current_exe().context("find this binary")?;
        let mut command = Command::new(this);
        command.arg("--job").arg(serde_json::to_string(self)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a process")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        match serde_json::from_str(&line) {
            Ok(answer) => Ok(Done { child, answer }),
            Err(_) => bail!("a process ended early: {}", child.wait()?),
        }
    }

    /// Runs the job in this process.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut answer = Answer { rss_before: process::rss_anon()?, ..Answer::default() };
        let (begun, before) = (Instant::now(), Times::of_this_thread());
        let store = scratch::open(&self.dir, self.options()?)?;
        answer.open = begun.elapsed().as_secs_f64();
        answer.open_busy = Times::of_this_thread().since(before).busy.as_secs_f64();
        answer.rss_open = process::rss_anon()?;
        if self.frames > 0 {
            let shape = if self.bodies { Shape::Body256 } else { Shape::Meta };
            let mut frames = Frames::new(shape, self.topics);
            let begun = Instant::now();
            fill(&store, &mut frames, BATCH, self.frames)?;
            answer.append = begun.elapsed().as_secs_f64();
            if self.half_full {
                self.fill_half(&store, &mut frames)?;
            }
        }
        if self.reads {
            self.measure_reads(&store, &mut answer)?;
        }
        if self.frames == 0 {
            // If the process is killed after this, there is something to recover.
            store.append(Batch::from(NewFrame::new(topic(0))))?;
        }
        let info = store.info();
        (answer.head, answer.segments) = (info.head, info.segments as u64);
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
        io::stdin().lock().read_to_end(&mut Vec::new())?;
        Ok(store.close()?)
    }

    fn fill_half(&self, store: &Store, frames: &mut Frames) -> anyhow::Result<()> {
        let segments = store.info().segments;
        while store.info().segments == segments {
            fill(store, frames, 64, 64)?;
        }
        let begun = store.info().log_bytes;
        while store.info().log_bytes - begun < self.segment_bytes / 2 {
            fill(store, frames, 64, 64)?;
        }
        Ok(())
    }

    fn measure_reads(&self, store: &Store, answer: &mut Answer) -> anyhow::Result<()> {
        let of = |name: &str| anyhow::Ok(TopicPatterns::parse(name)?);
        let all = ReadOptions::default();
        // No frame was removed, and the topics took turns.
        let frames = store.info().head;
        answer.replay = best(frames, || read(store, &all))?.as_secs_f64();
        let one = ReadOptions { topics: of(topic(0).as_str())?, ..ReadOptions::default() };
        answer.topic = best(frames.div_ceil(self.topics), || read(store, &one))?.as_secs_f64();
        let (mut times, mut random) = (Histogram::default(), Random::default());
        for _ in 0..LASTS {
            let topics = of(topic(random.next() % self.topics).as_str())?;
            let begun = Instant::now();
            std::hint::black_box(store.last(&topics, 1)?);
            times.record(begun.elapsed());
        }
        answer.last_p50 = times.quantile(0.5).as_secs_f64();
        answer.last_p99 = times.quantile(0.99).as_secs_f64();
        Ok(())
    }
}

impl Done {
    /// Kills the process.
    pub(crate) fn kill(mut self) -> anyhow::Result<Answer> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.answer)
    }

    /// Lets the process close its store and end.
    pub(crate) fn end(mut self) -> anyhow::Result<Answer> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "a process ended with {status}");
        Ok(self.answer)
    }
}

/// Parses a job from the command line.
pub(crate) fn parse(text: &str) -> anyhow::Result<Job> {
    serde_json::from_str(text).context("read a job")
}

/// Returns the path of a job's store in a directory.
pub(crate) fn store(scratch: &Path) -> PathBuf {
    scratch.join("store")
}
