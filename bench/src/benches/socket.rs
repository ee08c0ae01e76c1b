//! Appends and reads over the Unix socket of an `xs serve`: what a client measures, including its
//! own cost and that of the client library. Client and server share the machine.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;
use xs_bench::histogram::Histogram;
use xs_bench::report::Row;
use xs_bench::scratch;
use xs_bench::server::{Server, binary};
use xs_bench::workload::{Frames, Shape};
use xs_engine::{ReadOptions, SyncPolicy};
use xs_protocol::{AppendRequest, Client, SubEvent, SubscribeOptions};

use crate::Setting;
use crate::benches::append::fill;

/// How a client appends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) name: &'static str,
    /// Frames per request.
    pub(crate) batch: usize,
    /// Number of requests in flight.
    pub(crate) outstanding: usize,
    /// The bench appends 1 in this many of the requested frames.
    pub(crate) share: u64,
}

const MANNERS: [Manner; 4] = [
    Manner { name: "1 outstanding", batch: 1, outstanding: 1, share: 10 },
    Manner { name: "64 outstanding", batch: 1, outstanding: 64, share: 2 },
    Manner { name: "batches of 64, 1 outstanding", batch: 64, outstanding: 1, share: 1 },
    Manner { name: "batches of 64, 8 outstanding", batch: 64, outstanding: 8, share: 1 },
];

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(2_000_000, 5_000);
    rates(setting, frames)
}

/// Measures the rates of all manners, shapes and policies.
pub(crate) fn rates(setting: &mut Setting, frames: u64) -> anyhow::Result<()> {
    let about = "an xs serve of its own, one connection; latencies are those of requests";
    setting.report.begin("socket", about)?;
    let tokio = runtime()?;
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        for shape in Shape::ALL {
            appends(setting, &tokio, policy, shape, frames)?;
        }
    }
    for shape in Shape::ALL {
        reads(setting, &tokio, shape, frames)?;
    }
    Ok(())
}

/// Starts a server with an empty store and connects a client. The returned directory is removed
/// when it is dropped.
pub(crate) fn serve(
    setting: &Setting,
    tokio: &Runtime,
    policy: SyncPolicy,
) -> anyhow::Result<(TempDir, Server, Client)> {
    let scratch = setting.scratch()?;
    let xs = binary(setting.xs.as_deref())?;
    let mut server = Server::start(&xs, scratch.path(), policy, None)?;
    let client = tokio.block_on(server.connect())?;
    Ok((scratch, server, client))
}

/// Returns a runtime with one thread, which is enough for a client.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn appends(
    setting: &mut Setting,
    tokio: &Runtime,
    policy: SyncPolicy,
    shape: Shape,
    frames: u64,
) -> anyhow::Result<()> {
    let (_scratch, _server, client) = serve(setting, tokio, policy)?;
    let mut made = Frames::common(shape);
    for manner in MANNERS {
        // A sync costs about as much as a hundred requests without one.
        let slower = if policy == SyncPolicy::Sync { 20 } else { 1 };
        let count = (frames / manner.share / slower).max(64);
        let begun = Instant::now();
        let times = tokio.block_on(append(&client, &mut made, manner, count))?;
        let time = begun.elapsed();
        let name = format!("append {policy}, {}, {}", shape.name(), manner.name);
        setting.report.row(&Row::new(name).rate("frames", count, time).latency(&times))?;
    }
    Ok(())
}

/// Appends in this manner and returns the time of each request.
pub(crate) async fn append(
    client: &Client,
    frames: &mut Frames,
    manner: Manner,
    count: u64,
) -> anyhow::Result<Histogram> {
    let mut times = Histogram::default();
    let mut replies = VecDeque::with_capacity(manner.outstanding);
    let mut left = count as usize;
    while left > 0 || !replies.is_empty() {
        if left > 0 && replies.len() < manner.outstanding {
            let size = left.min(manner.batch);
            let request = AppendRequest::frames(frames.take(size));
            replies.push_back((Instant::now(), client.append(&request)));
            left -= size;
        } else if let Some((begun, reply)) = replies.pop_front() {
            reply.await?;
            times.record(begun.elapsed());
        }
    }
    Ok(times)
}

fn reads(setting: &mut Setting, tokio: &Runtime, shape: Shape, frames: u64) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let xs = binary(setting.xs.as_deref())?;
    let store = scratch::open(&scratch.path().join("store"), scratch::options(SyncPolicy::None))?;
    fill(&store, &mut Frames::common(shape), 64, frames)?;
    store.close()?;
    drop(store);
    let mut server = Server::start(&xs, scratch.path(), SyncPolicy::None, None)?;
    let client = tokio.block_on(server.connect())?;
    let bodies = if shape == Shape::Body256 { [0, 1024].as_slice() } else { &[0] };
    let time = tokio.block_on(fetch(&client, frames))?;
    let name = format!("fetch pages, {}", shape.name());
    setting.report.row(&Row::new(name).rate("frames", frames, time))?;
    for &up_to in bodies {
        let time = tokio.block_on(subscribe(&client, frames, up_to))?;
        let with = if up_to > 0 { ", bodies with the frames" } else { "" };
        let name = format!("subscribe, {}{with}", shape.name());
        setting.report.row(&Row::new(name).rate("frames", frames, time))?;
    }
    Ok(())
}

async fn fetch(client: &Client, frames: u64) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut stream = client.fetch(&ReadOptions::default());
    let mut count = 0;
    while let Some(frame) = stream.next().await {
        std::hint::black_box(frame?);
        count += 1;
    }
    anyhow::ensure!(count == frames, "{count} frames came instead of {frames}");
    Ok(begun.elapsed())
}

async fn subscribe(client: &Client, frames: u64, bodies_up_to: u32) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let how = SubscribeOptions { bodies_up_to, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe(&ReadOptions::default(), how).await?;
    let mut count = 0;
    while let Some(event) = subscription.next().await {
        if let SubEvent::Frames { frames, .. } = event? {
            let whole = |one: &&xs_protocol::Delivered| bodies_up_to == 0 || one.body.is_some();
            count += frames.iter().filter(whole).count() as u64;
        }
    }
    anyhow::ensure!(count == frames, "{count} frames came instead of {frames}");
    Ok(begun.elapsed())
}
