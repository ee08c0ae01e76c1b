//! Appends of a client with and without subscribers that read nothing: how much slow readers can
//! slow down a client that only stores frames. At the end they read what they missed.

use std::time::Instant;

use futures::future::try_join_all;
use tokio::runtime::Runtime;
use xs_bench::histogram::Histogram;
use xs_bench::process::memory;
use xs_bench::report::{Row, mib};
use xs_bench::server::Server;
use xs_bench::workload::{Frames, Shape};
use xs_engine::{ReadOptions, Start, SyncPolicy};
use xs_protocol::{Client, SubEvent, SubscribeOptions, Subscription};

use crate::Setting;
use crate::benches::socket::{Manner, append, runtime, serve};

const SUBSCRIBERS: usize = 100;
/// Bytes that a subscriber reads before it stalls: about a hundred frames.
const CREDIT: u32 = 16 * 1024;
/// Number of turns, each without and then with subscribers, so that other load on the machine
/// affects both.
const TURNS: u64 = 5;
const MANNERS: [Manner; 2] = [
    Manner { name: "1 outstanding", batch: 1, outstanding: 1, share: 2 },
    Manner { name: "64 outstanding", batch: 1, outstanding: 64, share: 1 },
];

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let about = "xs serve, appends of 256 B beside 100 subscribers on connections of their own, \
                 stalled for lack of credit, and without them, in turn";
    setting.report.begin("stalled", about)?;
    let tokio = runtime()?;
    let frames = setting.frames(200_000, 2_000);
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        for manner in MANNERS {
            let slower = if policy == SyncPolicy::Sync { 10 } else { 1 };
            one(setting, &tokio, policy, manner, frames / manner.share / slower)?;
        }
    }
    Ok(())
}

fn one(
    setting: &mut Setting,
    tokio: &Runtime,
    policy: SyncPolicy,
    manner: Manner,
    frames: u64,
) -> anyhow::Result<()> {
    let (_scratch, server, client) = serve(setting, tokio, policy)?;
    let each = (frames / TURNS).max(64);
    let mut made = Frames::common(Shape::Body256);
    // A first round, not counted: a new server and store do some work only once.
    tokio.block_on(append(&client, &mut made, manner, each))?;
    let (mut without, mut with) = (Histogram::default(), Histogram::default());
    let (mut stalled, mut grown) = (Vec::new(), 0);
    for _ in 0..TURNS {
        stalled.clear();
        without.merge(&tokio.block_on(append(&client, &mut made, manner, each))?);
        stalled = tokio.block_on(stall(&server))?;
        let before = memory(&server.pid().to_string(), "RssAnon")?;
        with.merge(&tokio.block_on(append(&client, &mut made, manner, each))?);
        let after = memory(&server.pid().to_string(), "RssAnon")?;
        grown = grown.max(after.saturating_sub(before));
    }
    let begun = Instant::now();
    tokio.block_on(resume(stalled, each))?;
    let resumed = begun.elapsed();
    let name = format!("append {policy}, {}", manner.name);
    setting.report.row(&Row::new(format!("{name}, nobody else")).latency(&without))?;
    let ratio = |share| {
        with.quantile(share).as_secs_f64() / without.quantile(share).as_secs_f64().max(1e-9)
    };
    let row = Row::new(format!("{name}, 100 stalled")).latency(&with);
    let row = row.figure("p50", ratio(0.5), "times").figure("p99", ratio(0.99), "times");
    let row = row.figure("memory", mib(grown), "MiB");
    setting.report.row(&row.target("p99 at most 2 times"))?;
    let row = Row::new(format!("{name}, what they were kept from"));
    Ok(setting.report.row(&row.rate("frames", each * SUBSCRIBERS as u64, resumed))?)
}

/// Connects subscribers that have a little credit and grant no more.
async fn stall(server: &Server) -> anyhow::Result<Vec<(Client, Subscription)>> {
    let options = ReadOptions { start: Start::New, follow: true, ..ReadOptions::default() };
    let how = SubscribeOptions { credit: CREDIT, ..SubscribeOptions::default() };
    let subscribe = async || {
        let client = server.connect_now().await?;
        let subscription = client.subscribe(&options, how).await?;
        anyhow::Ok((client, subscription))
    };
    try_join_all((0..SUBSCRIBERS).map(|_| subscribe())).await
}

/// Reads what the subscribers missed and checks that it is every frame in order.
async fn resume(stalled: Vec<(Client, Subscription)>, count: u64) -> anyhow::Result<()> {
    let take = stalled.into_iter().map(async |(_client, mut subscription)| {
        let (mut seen, mut next) = (0, None);
        while seen < count {
            match subscription.next().await {
                Some(Ok(SubEvent::Frames { frames, .. })) => {
                    for offset in frames.iter().filter_map(|one| one.frame.offset()) {
                        anyhow::ensure!(
                            next.is_none_or(|next| next == offset),
                            "frames are missing"
                        );
                        next = Some(offset + 1);
                        seen += 1;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => anyhow::bail!("a subscription ended"),
            }
        }
        Ok(())
    });
    try_join_all(take).await.map(drop)
}
