//! Frames through JavaScript: the log, the server, the Host, an isolate, and back.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use xs_bench::histogram::Histogram;
use xs_bench::report::Row;
use xs_bench::scratch;
use xs_bench::server::{Server, binary};
use xs_bench::workload::{Frames, Shape};
use xs_engine::{Frame, NewFrame, ReadOptions, Start, SyncPolicy, Topic, TopicPatterns};
use xs_protocol::{AppendRequest, Client, SubEvent, SubscribeOptions, Subscription};

use crate::Setting;
use crate::benches::append::fill;
use crate::benches::socket::runtime;

/// Emits at the first frame and at the last, so that what is between them can be timed.
const COUNT: &str = r#"import { handler } from "xs";
export default handler({ topics: "in", start: "first", state: { n: 0 },
  run(frame, ctx) {
    const n = ++ctx.state.n;
    if (n === 1 || n % COUNT === 0) return { n };
  },
});
"#;

/// Emits for each frame.
const ECHO: &str = r#"import { handler } from "xs";
export default handler({ topics: "in", start: "first", state: { n: 0 },
  run(frame, ctx) { return { n: ++ctx.state.n, of: frame.meta.n }; },
});
"#;

/// The longest that nothing may come.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(1_000_000, 2_000);
    rates(setting, frames)
}

/// Rates of a handler that only counts and of one that emits, and the time there and back.
pub(crate) fn rates(setting: &mut Setting, frames: u64) -> anyhow::Result<()> {
    let about = "xs serve --modules; a log that is there already, by the ids of what is emitted";
    setting.report.begin("handler", about)?;
    let counts = COUNT.replace("COUNT", &frames.to_string());
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        one(setting, policy, ("counts", &counts), (frames, 2))?;
        one(setting, policy, ("emits", ECHO), (frames, frames))?;
    }
    Ok(())
}

/// Runs a handler over `frames` frames, of which it makes `outputs`.
fn one(
    setting: &mut Setting,
    policy: SyncPolicy,
    (name, source): (&str, &str),
    (frames, outputs): (u64, u64),
) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let xs = binary(setting.xs.as_deref())?;
    let modules = scratch.path().join("modules");
    fs::create_dir_all(modules.join("handlers"))?;
    fs::write(modules.join("handlers").join(format!("{name}.ts")), source)?;
    let store = scratch::open(&scratch.path().join("store"), scratch::options(SyncPolicy::None))?;
    let mut made = Frames::on(vec![Topic::parse("in")?], Shape::Meta);
    fill(&store, &mut made, 64, frames)?;
    store.close()?;
    drop(store);
    let mut server = Server::start(&xs, scratch.path(), policy, Some(&modules))?;
    let tokio = runtime()?;
    let (time, trip) = tokio
        .block_on(async {
            let client = server.connect().await?;
            let mut out = follow(&client, name, Start::First).await?;
            let ids = take(&mut out, outputs).await?;
            let ends = ids.first().zip(ids.last()).context("a handler that emits")?;
            let ms = ends.1.id().time_ms().saturating_sub(ends.0.id().time_ms());
            let trips = setting.amount(2_000, 50).min(frames);
            let trip = if outputs == frames {
                Some(round_trips(&client, &mut out, &mut made, trips).await?)
            } else {
                None
            };
            anyhow::Ok((Duration::from_millis(ms.max(1)), trip))
        })
        .with_context(|| format!("a handler that {name}; the server said:\n{}", server.said()))?;
    let row = Row::new(format!("{policy}, {name}")).rate("frames", frames - 1, time);
    setting.report.row(&row)?;
    if let Some(trip) = trip {
        let row = Row::new(format!("{policy}, append to output at a reader")).latency(&trip);
        setting.report.row(&row)?;
    }
    Ok(())
}

async fn follow(client: &Client, name: &str, start: Start) -> anyhow::Result<Subscription> {
    let topics = TopicPatterns::parse(&format!("{name}.out"))?;
    let options = ReadOptions { topics, start, follow: true, ..ReadOptions::default() };
    Ok(client.subscribe(&options, SubscribeOptions::default()).await?)
}

/// The next so many frames.
async fn take(from: &mut Subscription, count: u64) -> anyhow::Result<Vec<Frame>> {
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
