//! A log of messages through code that answers each, keeps a count, and stores answers, count and
//! position together: a handler of xs, and for reference a consumer of a Redis stream in Node. Also
//! an actor of cross.stream, which stores only the answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use redis::{Value, cmd, pipe};
use xs_bench::daemon::{Daemon, PATIENCE};
use xs_bench::report::per_second;
use xs_bench::server::Server;
use xs_engine::{Meta, NewFrame, ReadOptions, Topic, TopicPatterns};
use xs_protocol::{Address, AppendRequest, SubEvent, SubscribeOptions};

use crate::system::{CrossStream, Redis, Setup, System as _, free_port};

const HANDLER: &str = r#"import { handler } from "xs";
export default handler({ topics: "in", start: "first", state: { n: 0 },
  run(frame, ctx) { return { n: ++ctx.state.n, of: frame.meta.n }; },
});
"#;
const ACTOR: &str = "{
  run: {|frame, state|
    let n = $state.n + 1
    {out: {n: $n, of: $frame.meta.n}, next: {n: $n}}
  }
  start: first
  topics: [in]
  initial: {n: 0}
}";
const CONSUMER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/consumer.cjs");
const BATCH: u64 = 512;

/// When the first answers arrived, and how many have.
#[derive(Debug, Default)]
struct Answers {
    first: Option<(Instant, u64)>,
    count: u64,
}

impl Answers {
    fn came(&mut self, count: u64) {
        self.count += count;
        if count > 0 && self.first.is_none() {
            self.first = Some((Instant::now(), count));
        }
    }

    /// Returns the answers per second since the first arrived.
    fn rate(&self) -> anyhow::Result<f64> {
        let (begun, first) = self.first.context("there were no answers")?;
        ensure!(self.count > first, "all answers came at once: too few for a rate");
        Ok(per_second(self.count - first, begun.elapsed()))
    }
}

/// Returns the messages per second through a handler of xs.
pub(crate) async fn xs(setup: &Setup, messages: u64) -> anyhow::Result<f64> {
    let policy = setup.promise.policy()?;
    let modules = setup.dir.join("modules");
    fs::create_dir_all(modules.join("handlers"))?;
    let start = |modules: Option<&Path>| {
        Server::start_at(&setup.program, &setup.dir, policy, modules, Address::Tcp(free_port()?))
    };
    let mut server = start(None)?;
    let client = server.connect().await?;
    let topic = Topic::parse("in")?;
    for n in (0..messages).step_by(BATCH as usize) {
        let metas = (n..messages.min(n + BATCH)).map(|n| Meta::parse(format!("{{\"n\":{n}}}")));
        let frame = |meta| NewFrame { meta, ..NewFrame::new(topic.clone()) };
        let frames = metas.map(|meta| meta.map(frame)).collect::<Result<Vec<_>, _>>()?;
        client.append(&AppendRequest::frames(frames)).await?;
    }
    drop((client, server));
    fs::write(modules.join("handlers/echo.ts"), HANDLER)?;
    let mut server = start(Some(&modules))?;
    let client = server.connect().await?;
    let topics = TopicPatterns::parse("echo.out")?;
    let options = ReadOptions { topics, follow: true, ..ReadOptions::default() };
    let mut out = client.subscribe(&options, SubscribeOptions::default()).await?;
    let mut answers = Answers::default();
    while answers.count < messages {
        let event = tokio::time::timeout(PATIENCE, out.next()).await;
        let event = event.with_context(|| format!("no answers; xs said: {}", server.said()))?;
        if let SubEvent::Frames { frames, .. } = event.context("a subscription ended")?? {
            answers.came(frames.len() as u64);
        }
    }
    answers.rate()
}

/// Returns the messages per second through an actor of cross.stream.
pub(crate) async fn cross_stream(setup: &Setup, messages: u64) -> anyhow::Result<f64> {
    const APPENDS: u64 = 8;
    let server = CrossStream::start(setup).await?;
    let link = server.link().await?;
    for n in (0..messages).step_by(APPENDS as usize) {
        let metas: Vec<_> =
            (n..messages.min(n + APPENDS)).map(|n| format!("{{\"n\":{n}}}")).collect();
        let appends = metas.iter().map(|meta| link.append_to("in", Some(meta), Bytes::new()));
        try_join_all(appends).await?;
    }
    let mut out = link.frames("?follow=true&topic=echo.out,xs.actor.*").await?;
    link.append_to("xs.actor.echo.create", None, Bytes::from_static(ACTOR.as_bytes())).await?;
    let mut answers = Answers::default();
    while answers.count < messages {
        let frame = tokio::time::timeout(PATIENCE, out.next()).await;
        let frame = frame.with_context(|| format!("no answers; it said: {}", server.said()))??;
        match &frame.context("a stream ended")?.topic[..] {
            "echo.out" => answers.came(1),
            "xs.actor.echo.fin.error" => bail!("the actor failed: {}", server.said()),
            _ => {}
        }
    }
    answers.rate()
}

/// Returns the messages per second through a consumer in Node, whose packages are in `tools`.
pub(crate) async fn redis(setup: &Setup, tools: &Path, messages: u64) -> anyhow::Result<f64> {
    let server = Redis::start(setup).await?;
    let mut connection = server.link().await?.connection;
    for n in (0..messages).step_by(BATCH as usize) {
        let mut pipeline = pipe();
        for n in n..messages.min(n + BATCH) {
            pipeline.cmd("XADD").arg("in").arg("*").arg("m").arg(format!("{{\"n\":{n}}}")).ignore();
        }
        pipeline.query_async::<()>(&mut connection).await?;
    }
    let mut group = cmd("XGROUP");
    group.arg("CREATE").arg("in").arg("group").arg(0);
    group.query_async::<()>(&mut connection).await?;
    let mut command = Command::new("node");
    command.arg(CONSUMER).arg(server.url()).env("NODE_PATH", tools.join("node_modules"));
    let mut consumer = Daemon::start(command, setup.dir.join("consumer.log"))?;
    let (mut answers, mut after) = (Answers::default(), "0".to_owned());
    while answers.count < messages {
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(1000).arg("BLOCK").arg(PATIENCE.as_millis() as u64);
        read.arg("STREAMS").arg("out").arg(&after);
        let streams: Vec<(String, Vec<(String, Value)>)> =
            read.query_async(&mut connection).await?;
        let Some((_, entries)) = streams.first() else {
            bail!("no answers; the consumer {:?} said: {}", consumer.ended()?, consumer.said())
        };
        answers.came(entries.len() as u64);
        if let Some((id, _)) = entries.last() {
            after.clone_from(id);
        }
    }
    answers.rate()
}

/// Returns where the packages of the consumer are, or why it cannot run.
pub(crate) fn tools(named: Option<PathBuf>) -> Result<PathBuf, &'static str> {
    if crate::system::find("node").is_none() {
        return Err("node is missing");
    }
    let tools = named.filter(|dir| dir.join("node_modules/redis").is_dir());
    tools.ok_or("npm's package redis is missing: scripts/compare installs it")
}
