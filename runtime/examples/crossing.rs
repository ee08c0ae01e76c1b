//! A job of the benchmarks, run by `xs-bench` and `xs-guard`, not an example of how to use the
//! crate. Measures what it costs to bring frames into an isolate and results back, without store,
//! socket and Host: `crossing frames COUNT` prints a line of JSON for each kind of handler,
//! `crossing starts COUNT` one for isolates that are started one after the other,
//! `crossing emits COUNT` and the like one for that handler alone.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xs_engine::{Frame, FrameId, Meta, NewFrame, Topic};
use xs_runtime::host::check::NoStore;
use xs_runtime::isolate::{INPUTS_MAX, Input, Isolate, IsolateSpec, Kind};
use xs_runtime::loader::ModuleGraph;

/// Handlers by what they do.
const HANDLERS: [(&str, &str); 4] = [
    ("nothing", ""),
    ("counts", "ctx.state.n++;"),
    ("reads", "ctx.state.n++; ctx.state.sum += frame.meta.cpu;"),
    ("emits", "return { n: ++ctx.state.n, of: frame.meta.n };"),
];

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failed> {
    xs_runtime::prepare_by_exec()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, count] = &words[..] else {
        return Err("crossing frames|starts|HANDLER COUNT".into());
    };
    let count: usize = count.parse()?;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tell = |name: &str, time: Duration| {
        let seconds = time.as_secs_f64();
        let row = serde_json::json!({ "name": name, "count": count, "seconds": seconds });
        writeln!(std::io::stdout(), "{row}")
    };
    if what == "starts" {
        return Ok(tell("isolates", tokio.block_on(starts(count))?)?);
    }
    let wanted = |name: &str| what == "frames" || what == name;
    for (name, run) in HANDLERS.into_iter().filter(|(name, _)| wanted(name)) {
        tell(name, tokio.block_on(cross(run, count))?)?;
    }
    Ok(())
}

/// A handler with this body.
fn spec(run: &str) -> Result<IsolateSpec, Failed> {
    let source = format!(
        "export default {{ topics: 'in', state: {{ n: 0, sum: 0 }}, run(frame, ctx) {{ {run} }} }};"
    );
    let files = serde_json::json!({ "handlers/it.js": source });
    let graph = serde_json::json!(["handlers/it.js", files]).to_string();
    let graph = ModuleGraph::from_bytes(graph.as_bytes())?;
    Ok(IsolateSpec::new("it", Kind::Handler, FrameId::first_of_ms(1), graph))
}

/// The time of `count` starts, each ended before the next.
async fn starts(count: usize) -> Result<Duration, Failed> {
    let mut time = Duration::ZERO;
    for _ in 0..count {
        let begun = Instant::now();
        let (isolate, _) = Isolate::start(spec("")?, Arc::new(NoStore)).await?;
        isolate.load_state(None).await?;
        time += begun.elapsed();
        isolate.stop().await?;
    }
    Ok(time)
}

/// The time one handler takes for this many frames.
async fn cross(run: &str, frames: usize) -> Result<Duration, Failed> {
    let (isolate, _) = Isolate::start(spec(run)?, Arc::new(NoStore)).await?;
    isolate.load_state(None).await?;
    let inputs = (0..INPUTS_MAX as u64).map(input).collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let mut left = frames;
    while left > 0 {
        let count = left.min(INPUTS_MAX);
        let mut handling = isolate.handle(inputs[..count].to_vec())?;
        while let Some(reply) = handling.next().await? {
            if let Some(failure) = reply.failure {
                return Err(failure.error.into());
            }
        }
        left -= count;
    }
    let time = begun.elapsed();
    isolate.stop().await?;
    Ok(time)
}

/// A frame like those of xs-bench.
fn input(n: u64) -> Result<Input, Failed> {
    let mut new = NewFrame::new(Topic::parse("in")?);
    new.meta = Meta::parse(format!("{{\"n\":{n},\"cpu\":0.{:06}}}", n * 7919 % 1_000_000))?;
    let frame = Frame::assemble(&new, FrameId::first_of_ms(n + 1), Some(n), None)?;
    Ok(Input { frame, body: None, attempt: 1 })
}
