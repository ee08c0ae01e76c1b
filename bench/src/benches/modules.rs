//! What modules cost apart from handling frames: starting one, replacing one, calling a command,
//! and memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use xs_bench::histogram::Histogram;
use xs_bench::report::{Row, mib};
use xs_bench::server::{Server, binary};
use xs_engine::{Body, NewFrame, Start, SyncPolicy, Topic};
use xs_protocol::{AppendRequest, CallRequest, Client, Subscription};

use crate::Setting;
use crate::benches::handler::{cross, follow, take};
use crate::benches::socket::runtime;

/// Number of replaces between two printed memory sizes: roughly the number of isolates after which
/// a Host makes room for a fresh one.
const SHOWN_EVERY: u64 = 100;
/// Time between two starts by a person: long enough for the Host to become idle.
const PAUSE: Duration = Duration::from_millis(400);
/// Number of starts with such a pause.
const PAUSED: u64 = 20;

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let about = "xs serve --modules; versions are appended as an admin does, times are a client's";
    setting.report.begin("modules", about)?;
    let tokio = runtime()?;
    for alone in cross(setting, "starts", setting.amount(50, 3))? {
        let each = alone.seconds * 1e6 / alone.count as f64;
        let row = Row::new("an isolate alone, started").figure("mean", each, "us");
        setting.report.row(&row)?;
    }
    tokio.block_on(starts(setting))?;
    tokio.block_on(replaces(setting))?;
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        tokio.block_on(calls(setting, policy))?;
    }
    Ok(())
}

/// Starts a server with an empty module directory, and subscribes to the frames about modules.
async fn serve(
    setting: &Setting,
    policy: SyncPolicy,
) -> anyhow::Result<(tempfile::TempDir, Server, Client, Subscription)> {
    let scratch = setting.scratch()?;
    let modules = scratch.path().join("modules");
    fs::create_dir_all(&modules)?;
    let xs = binary(setting.xs.as_deref())?;
    let mut server = Server::start(&xs, scratch.path(), policy, Some(&modules))?;
    let client = server.connect().await?;
    let told = follow(&client, "xs.handler.*,xs.command.*", Start::New).await?;
    Ok((scratch, server, client, told))
}

fn source(n: u64) -> String {
    format!("export default {{ topics: \"in\", state: {{ n: {n} }}, run(frame, ctx) {{}} }};\n")
}

/// The frame that creates a version of a module.
fn creation(name: &str, source: &str) -> anyhow::Result<NewFrame> {
    let mut frame = NewFrame::new(Topic::parse(&format!("xs.{name}.create"))?);
    frame.body = Body::Inline(Bytes::copy_from_slice(source.as_bytes()));
    Ok(frame)
}

/// Creates a version and waits until the log says that it is active.
async fn create(
    client: &Client,
    told: &mut Subscription,
    name: &str,
    source: &str,
) -> anyhow::Result<Duration> {
    let frame = creation(name, source)?;
    let begun = Instant::now();
    client.append(&AppendRequest::frames(vec![frame])).await?;
    let active = format!("xs.{name}.active");
    loop {
        for frame in take(told, 1).await? {
            if frame.topic() == active {
                return Ok(begun.elapsed());
            }
            if frame.topic().ends_with(".invalid") {
                bail!("{}: {}", frame.topic(), String::from_utf8_lossy(frame.meta()));
            }
        }
    }
}

/// Starts modules one by one; they stay and do nothing.
async fn starts(setting: &mut Setting) -> anyhow::Result<()> {
    let (_scratch, server, client, mut told) = serve(setting, SyncPolicy::None).await?;
    // The first module takes longer: it creates what all modules share.
    create(&client, &mut told, "handler.m0", &source(0)).await?;
    let before = server.host_bytes();
    let count = setting.amount(63, 3);
    let mut times = Histogram::default();
    for n in 1..=count {
        times.record(create(&client, &mut told, &format!("handler.m{n}"), &source(n)).await?);
    }
    let each = server.host_bytes().saturating_sub(before) / count;
    let row = Row::new("one after the other, create to active").latency(&times);
    setting.report.row(&row)?;
    let row = Row::new(format!("an idle module, of {count}")).figure("memory", mib(each), "MiB");
    setting.report.row(&row.target("5 MiB"))?;
    let mut times = Histogram::default();
    for n in 1..=setting.amount(PAUSED, 2) {
        tokio::time::sleep(PAUSE).await;
        times.record(create(&client, &mut told, &format!("handler.p{n}"), &source(n)).await?);
    }
    let row = Row::new("after a pause, create to active").latency(&times).target("p50 30 ms");
    setting.report.row(&row)?;
    together(setting, &client, &mut told).await
}

/// Starts modules concurrently.
async fn together(
    setting: &mut Setting,
    client: &Client,
    told: &mut Subscription,
) -> anyhow::Result<()> {
    let count = setting.amount(64, 3);
    tokio::time::sleep(PAUSE).await;
    let frames = (0..count).map(|n| creation(&format!("handler.t{n}"), &source(n)));
    let frames = frames.collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    client.append(&AppendRequest::frames(frames)).await?;
    let mut active = 0;
    while active < count {
        let frames = take(told, 1).await?;
        active += frames.iter().filter(|frame| frame.topic().ends_with(".active")).count() as u64;
    }
    let each = begun.elapsed().as_secs_f64() * 1e6 / count as f64;
    let row = Row::new(format!("{count} at once, create to all active")).figure("each", each, "us");
    Ok(setting.report.row(&row)?)
}

/// Replaces one module many times.
async fn replaces(setting: &mut Setting) -> anyhow::Result<()> {
    let (_scratch, server, client, mut told) = serve(setting, SyncPolicy::None).await?;
    create(&client, &mut told, "handler.m", &source(0)).await?;
    let count = setting.amount(1_000, 10);
    let (mut times, mut most, mut rows) = (Histogram::default(), 0, Vec::new());
    for n in 1..=count {
        times.record(create(&client, &mut told, "handler.m", &source(n)).await?);
        let now = server.host_bytes();
        most = most.max(now);
        if n % SHOWN_EVERY == 0 {
            rows.push(format!("{:.0}", mib(now)));
        }
    }
    let row = Row::new("replace, create to active").latency(&times).target("p50 60 ms");
    setting.report.row(&row)?;
    let mut times = Histogram::default();
    for n in 1..=setting.amount(PAUSED, 2) {
        tokio::time::sleep(PAUSE).await;
        times.record(create(&client, &mut told, "handler.m", &source(n)).await?);
    }
    let row = Row::new("replace after a pause").latency(&times).target("p50 60 ms");
    setting.report.row(&row)?;
    let row = Row::new(format!("{count} replaces")).figure("Host at most", mib(most), "MiB");
    setting.report.row(&row)?;
    let text = format!("  MiB of the Host after each {SHOWN_EVERY}: {}", rows.join(" "));
    Ok(setting.report.line(&text)?)
}

/// Calls a command that answers immediately.
async fn calls(setting: &mut Setting, policy: SyncPolicy) -> anyhow::Result<()> {
    let (_scratch, server, client, mut told) = serve(setting, policy).await?;
    let source = "export default { run: () => ({ ok: true }) };\n";
    create(&client, &mut told, "command.ping", source).await?;
    let request = CallRequest::new(Topic::parse("ping")?);
    let mut times = Histogram::default();
    let warm = 50;
    for n in 0..warm + setting.amount(2_000, 50) {
        let begun = Instant::now();
        let mut call = client.call(&request).await?;
        let mut last = None;
        while let Some(result) = call.next().await {
            last = Some(result?.frame);
        }
        let last = last.with_context(|| format!("no answer; it said:\n{}", server.said()))?;
        anyhow::ensure!(last.topic() == "ping.complete", "{} ended a call", last.topic());
        if n >= warm {
            times.record(begun.elapsed());
        }
    }
    let row = Row::new(format!("{policy}, call to its end")).latency(&times);
    let row = if policy == SyncPolicy::None { row.target("p50 1 ms") } else { row };
    Ok(setting.report.row(&row)?)
}
