//! Appends of a client with and without hostile modules on the server: how much a module can slow
//! down a client that only stores frames.

use std::fs;
use std::time::{Duration, Instant};

use xs_bench::histogram::Histogram;
use xs_bench::report::Row;
use xs_bench::server::{Server, binary};
use xs_bench::workload::{Frames, Shape};
use xs_engine::{Start, SyncPolicy, Topic};
use xs_protocol::{AppendRequest, Client};

use crate::Setting;
use crate::benches::handler::{follow, take};
use crate::benches::socket::runtime;

/// Names, and the code that runs for each appended frame. Each handler is stopped or slowed down
/// alone and then tries the next frame, since `onError` is `skip`.
const WORST: [(&str, &str); 5] = [
    ("spins", "for (;;) {}"),
    ("hoards", "const all = []; for (;;) all.push({ of: all.length });"),
    ("floods", "for (let i = 0; i < 1_000; i++) ctx.append('flood', { meta: { i } });"),
    ("awaits", "return (async () => { for (;;) await null; })();"),
    ("throws", "throw new Error('no');"),
];
/// Time between two appends.
const PACE: Duration = Duration::from_millis(1);

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let about = "xs serve --modules, appends one by one, 1 ms apart; all modules get every frame";
    setting.report.begin("hostile", about)?;
    one(setting, "no module", &[])?;
    one(setting, "five healthy modules", &[("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")])?;
    for worst in WORST {
        one(setting, worst.0, &[worst])?;
    }
    one(setting, "all five of these", &WORST)
}

fn one(setting: &mut Setting, name: &str, modules: &[(&str, &str)]) -> anyhow::Result<()> {
    let scratch = setting.scratch()?;
    let dir = scratch.path().join("modules");
    fs::create_dir_all(dir.join("handlers"))?;
    for (name, run) in modules {
        let source = format!(
            "export default {{ topics: \"in\", onError: \"skip\", run(frame, ctx) {{ {run} }} }};\n"
        );
        fs::write(dir.join("handlers").join(format!("{name}.js")), source)?;
    }
    let xs = binary(setting.xs.as_deref())?;
    let mut server = Server::start(&xs, scratch.path(), SyncPolicy::None, Some(&dir))?;
    let count = setting.amount(5_000, 20);
    let times = runtime()?.block_on(async {
        let client = server.connect().await?;
        let mut told = follow(&client, "xs.handler.*", Start::First).await?;
        let mut active = 0;
        while active < modules.len() {
            let frames = take(&mut told, 1).await?;
            active += frames.iter().filter(|frame| frame.topic().ends_with(".active")).count();
        }
        append(&client, count).await
    })?;
    Ok(setting.report.row(&Row::new(format!("an append beside: {name}")).latency(&times))?)
}

async fn append(client: &Client, count: u64) -> anyhow::Result<Histogram> {
    let mut frames = Frames::on(vec![Topic::parse("in")?], Shape::Meta);
    let mut times = Histogram::default();
    for _ in 0..count {
        let request = AppendRequest::frames(vec![frames.frame()]);
        let begun = Instant::now();
        client.append(&request).await?;
        times.record(begun.elapsed());
        tokio::time::sleep(PACE).await;
    }
    Ok(times)
}
