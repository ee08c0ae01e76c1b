//! Frames through JavaScript handlers: from the log through the server and the Host into an
//! isolate, and back; also the way into an isolate and back without the rest.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use xs_bench::histogram::Histogram;
use xs_bench::report::{Row, mib};
use xs_bench::scratch;
use xs_bench::server::{Server, binary};
use xs_bench::workload::{Frames, Shape};
use xs_engine::{Frame, NewFrame, ReadOptions, Start, SyncPolicy, Topic, TopicPatterns};
use xs_protocol::{AppendRequest, Client, SubEvent, SubscribeOptions, Subscription};

use crate::Setting;
use crate::benches::append::fill;
use crate::benches::socket::runtime;

/// What a handler does.
struct Kind {
    name: &'static str,
    /// The body of its `run`; `LAST` is replaced by the number of the last frame.
    run: &'static str,
    /// Whether each frame has an output. Otherwise only the first and the last have one, to time
    /// what is between them.
    emits: bool,
    /// The target without syncs or with syncs at an interval.
    target: &'static str,
}

const COUNTS: Kind = Kind {
    name: "counts",
    run: "const n = ++ctx.state.n; if (n === 1 || n === LAST) return { n };",
    emits: false,
    target: "400 k/s",
};

const READS: Kind = Kind {
    name: "reads",
    run: "const s = ctx.state; s.sum += frame.meta.cpu; const n = ++s.n; if (n === 1 || n === LAST) return { n };",
    emits: false,
    target: "250 k/s",
};

const EMITS: Kind = Kind {
    name: "emits",
    run: "return { n: ++ctx.state.n, of: frame.meta.n };",
    emits: true,
    target: "100 k/s",
};

impl Kind {
    fn source(&self, last: u64) -> String {
        let run = self.run.replace("LAST", &last.to_string());
        format!(
            "import {{ handler }} from \"xs\";\nexport default handler({{ topics: \"in\", \
             start: \"first\", state: {{ n: 0, sum: 0 }}, run(frame, ctx) {{ {run} }} }});\n"
        )
    }
}

/// The interval policy that the targets name.
const INTERVAL: SyncPolicy = SyncPolicy::Interval { bytes: 4 * 1024 * 1024, ms: 50 };
/// Maximum time to wait for an output.
const PATIENCE: Duration = Duration::from_secs(120);
/// In a filtered bench, the handler gets 1 in at most this many frames of the log.
const SPARSE: u64 = 100;

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(1_000_000, 2_000);
    begin(setting)?;
    crossing(setting)?;
    rows(setting, frames)?;
    filtered(setting, frames)
}

/// Measures the rates of handlers and the round-trip times.
pub(crate) fn rates(setting: &mut Setting, frames: u64) -> anyhow::Result<()> {
    begin(setting)?;
    rows(setting, frames)
}

fn begin(setting: &mut Setting) -> anyhow::Result<()> {
    let about = "xs serve --modules; a log that is there already, by the ids of what is emitted";
    Ok(setting.report.begin("handler", about)?)
}

fn rows(setting: &mut Setting, frames: u64) -> anyhow::Result<()> {
    one(setting, SyncPolicy::None, &COUNTS, (frames, 1))?;
    one(setting, SyncPolicy::None, &READS, (frames, 1))?;
    one(setting, SyncPolicy::None, &EMITS, (frames, 1))?;
    one(setting, INTERVAL, &EMITS, (frames, 1))?;
    one(setting, SyncPolicy::Sync, &COUNTS, (frames, 1))?;
    one(setting, SyncPolicy::Sync, &EMITS, (frames, 1))
}

/// Shows that the cost depends on the matching frames: the number of matches is constant while the
/// number of frames on other topics grows.
fn filtered(setting: &mut Setting, frames: u64) -> anyhow::Result<()> {
    let matches = (frames / SPARSE).max(2);
    for one_in in [SPARSE / 50, SPARSE / 10, SPARSE] {
        one(setting, SyncPolicy::None, &COUNTS, (matches, one_in))?;
    }
    Ok(())
}

/// One output line of the example `crossing` of xs-runtime.
#[derive(Deserialize)]
pub(crate) struct Crossed {
    name: String,
    pub(crate) count: u64,
    pub(crate) seconds: f64,
}

/// Measures the same work without store, socket and Host.
fn crossing(setting: &mut Setting) -> anyhow::Result<()> {
    for crossed in cross(setting, "frames", setting.amount(1_000_000, 2_000))? {
        let row = Row::new(format!("the crossing alone, {}", crossed.name));
        let row = row.rate("frames", crossed.count, Duration::from_secs_f64(crossed.seconds));
        setting.report.row(&row)?;
    }
    Ok(())
}

/// Runs `crossing`; returns nothing if it was not built.
pub(crate) fn cross(setting: &mut Setting, what: &str, count: u64) -> anyhow::Result<Vec<Crossed>> {
    let this = std::env::current_exe().context("find this binary")?;
    let program = this.with_file_name("examples").join("crossing");
    if !program.is_file() {
        let how = "cargo build --release --workspace --example crossing";
        setting.report.line(&format!("  the crossing alone: not built ({how})"))?;
        return Ok(Vec::new());
    }
    let words = [what, &count.to_string()];
    let output = Command::new(&program).args(words).output().context("run crossing")?;
    if !output.status.success() {
        bail!("crossing: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The result of one run of a handler.
struct Shown {
    time: Duration,
    trip: Option<Histogram>,
    /// Bytes of memory of the Host at the first outputs and at the end.
    memory: (u64, u64),
}

/// Runs a handler over `frames` frames, which are 1 in `one_in` of the log.
fn one(
    setting: &mut Setting,
    policy: SyncPolicy,
    kind: &Kind,
    (frames, one_in): (u64, u64),
) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let xs = binary(setting.xs.as_deref())?;
    let modules = scratch.path().join("modules");
    fs::create_dir_all(modules.join("handlers"))?;
    let file: PathBuf = modules.join("handlers").join(format!("{}.ts", kind.name));
    fs::write(file, kind.source(frames))?;
    let store = scratch::open(&scratch.path().join("store"), scratch::options(SyncPolicy::None))?;
    let mut topics = vec![Topic::parse("in")?];
    topics.resize(one_in as usize, Topic::parse("other")?);
    fill(&store, &mut Frames::on(topics, Shape::Meta), 64, frames * one_in)?;
    store.close()?;
    drop(store);
    let mut server = Server::start(&xs, scratch.path(), policy, Some(&modules))?;
    let trips = setting.amount(2_000, 50).min(frames);
    let shown = runtime()?
        .block_on(watch(&mut server, kind, frames, trips))
        .with_context(|| format!("a handler that {}; it said:\n{}", kind.name, server.said()))?;
    let name = format!("{policy}, {}", kind.name);
    let name = if one_in > 1 { format!("{name}, one frame in {one_in} is its") } else { name };
    let row = Row::new(name).rate("frames", frames - 1, shown.time);
    let (first, last) = (mib(shown.memory.0), mib(shown.memory.1));
    let row = match one_in {
        1 => row.figure("Host at first", first, "MiB").figure("at last", last, "MiB"),
        _ => row.rate("log", (frames - 1) * one_in, shown.time),
    };
    let aimed = policy != SyncPolicy::Sync && one_in == 1;
    setting.report.row(&if aimed { row.target(kind.target) } else { row })?;
    if let Some(trip) = shown.trip {
        let row = Row::new(format!("{policy}, append to output at a reader")).latency(&trip);
        setting.report.row(&row)?;
    }
    Ok(())
}

async fn watch(server: &mut Server, kind: &Kind, frames: u64, trips: u64) -> anyhow::Result<Shown> {
    let client = server.connect().await?;
    let mut out = follow(&client, &format!("{}.out", kind.name), Start::First).await?;
    let outputs = if kind.emits { frames } else { 2 };
    let first = take(&mut out, 1).await?;
    let before = server.host_bytes();
    let rest = take(&mut out, outputs.saturating_sub(first.len() as u64)).await?;
    let memory = (before, server.host_bytes());
    let last = rest.last().or_else(|| first.last());
    let ends = first.first().zip(last).context("a handler that emits")?;
    let ms = ends.1.id().time_ms().saturating_sub(ends.0.id().time_ms());
    let mut made = Frames::on(vec![Topic::parse("in")?], Shape::Meta);
    let trip = match kind.emits {
        true => Some(round_trips(&client, &mut out, &mut made, trips).await?),
        false => None,
    };
    Ok(Shown { time: Duration::from_millis(ms.max(1)), trip, memory })
}

/// Subscribes to topics and follows them.
pub(crate) async fn follow(
    client: &Client,
    topics: &str,
    start: Start,
) -> anyhow::Result<Subscription> {
    let topics = TopicPatterns::parse(topics)?;
    let options = ReadOptions { topics, start, follow: true, ..ReadOptions::default() };
    Ok(client.subscribe(&options, SubscribeOptions::default()).await?)
}

/// Returns the next `count` frames or more.
pub(crate) async fn take(from: &mut Subscription, count: u64) -> anyhow::Result<Vec<Frame>> {
    let mut taken = Vec::new();
    while (taken.len() as u64) < count {
        let event = tokio::time::timeout(PATIENCE, from.next()).await;
        match event.context("no output came for a long time")? {
            Some(Ok(SubEvent::Frames { frames, .. })) => {
                taken.extend(frames.into_iter().map(|delivered| delivered.frame));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => bail!("the subscription ended after {} frames", taken.len()),
        }
    }
    Ok(taken)
}

async fn round_trips(
    client: &Client,
    out: &mut Subscription,
    made: &mut Frames,
    count: u64,
) -> anyhow::Result<Histogram> {
    let mut times = Histogram::default();
    for _ in 0..count {
        let frame: NewFrame = made.frame();
        let begun = Instant::now();
        let appended = client.append(&AppendRequest::frames(vec![frame]));
        take(out, 1).await?;
        times.record(begun.elapsed());
        appended.await?;
    }
    Ok(times)
}
