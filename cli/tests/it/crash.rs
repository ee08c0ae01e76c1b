//! kill -9 of the Host, of the server and of both at random moments under load: each input has
//! exactly one output, each call exactly one end, and no value of a generator is stored twice.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use xs_engine::{Frame, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::{Address, AppendRequest, Client, ClientOptions};

use crate::client::{connect, frame, runtime};
use crate::kill::Random;
use crate::support::{PATIENCE, Sandbox, Server, eventually, is_running, signal_pid};

const ROUNDS: u64 = 10;
const ROUNDS_LONG: u64 = 300;
/// Inputs and calls of one round.
const INPUTS: u64 = 200;
const CALLS: u64 = 20;

const HANDLER: &str = r#"
import { handler } from "xs";
export default handler({ topics: "in", start: "first", state: { n: 0 },
  run(frame, ctx) { ctx.append("side", { meta: { of: frame.id } }); return { n: ++ctx.state.n }; },
});
"#;

const WAITING: &str = r#"
import { handler } from "xs";
export default handler({ topics: "in", start: "first", state: { n: 0 },
  async run(frame, ctx) { await new Promise((done) => setTimeout(done, 1)); return { n: ++ctx.state.n }; },
});
"#;

const COMMAND: &str = r#"
import { command } from "xs";
export default command({ args: { n: "number" }, async *run(call) {
  yield { n: call.args.n };
  await new Promise((done) => setTimeout(done, 5));
} });
"#;

const GENERATOR: &str = r#"
import { generator } from "xs";
export default generator({ async *run(ctx) {
  const run = crypto.randomUUID();
  let n = 0;
  for await (const _ of ctx.every("2ms")) yield { run, n: n++ };
} });
"#;

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may have ended already: a Host dies with its server.
    let _ = kill_process(pid, Signal::KILL);
}

#[test]
fn a_crash_of_either_process_doubles_and_loses_nothing() {
    let place = Sandbox::new();
    place.write("modules/handlers/plain.ts", HANDLER);
    place.write("modules/handlers/waiting.ts", WAITING);
    place.write("modules/commands/echo.ts", COMMAND);
    place.write("modules/generators/count.ts", GENERATOR);
    let rounds = if std::env::var_os("XS_TEST_LONG").is_some() { ROUNDS_LONG } else { ROUNDS };
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let serve = || place.serve(&["--modules", "modules", "--sync", "none", "--log-level", "warn"]);
    let mut server = Some(serve());
    // Calls from before a command was created are never answered.
    place.await_frames("xs.command.echo.active", 1);
    let (mut inputs, mut calls) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..rounds {
        let running = server.take().unwrap();
        let (what, after) = (random.below(3), Duration::from_millis(random.below(400)));
        let killer = std::thread::spawn(move || crash(running, what, after));
        let acknowledged = runtime().block_on(load(&place));
        inputs.extend(acknowledged.0);
        calls.extend(acknowledged.1);
        server = Some(killer.join().unwrap().unwrap_or_else(serve));
    }
    let frames = runtime().block_on(rest(&place, inputs.len()));
    check(&frames, &inputs, &calls);
    assert!(server.unwrap().stop().success(), "{}", place.log());
    println!("counted: {rounds} crashes of Host, server or both under load");
}

/// Kills the Host, the server or both. Returns the server if it survives.
fn crash(server: Server, what: u64, after: Duration) -> Option<Server> {
    std::thread::sleep(after);
    let children = server.children();
    if what != 1 {
        children.iter().for_each(|child| kill(*child));
    }
    if what == 0 {
        return Some(server);
    }
    server.kill();
    None
}

/// Appends inputs and calls until the server dies; returns the acknowledged ones.
async fn load(place: &Sandbox) -> (Vec<FrameId>, Vec<FrameId>) {
    let (mut inputs, mut calls) = (Vec::new(), Vec::new());
    // The server may be killed before it has greeted.
    let address = Address::of_path(&place.store());
    let Ok(client) = Client::connect(&address, ClientOptions::default()).await else {
        return (inputs, calls);
    };
    for n in 0..INPUTS {
        let input = frame("in", &json!({ "n": n }), b"");
        let Ok(appended) = client.append(&AppendRequest::frames(vec![input])).await else { break };
        inputs.push(appended.frames[0].id);
        if n % (INPUTS / CALLS) == 0 {
            let call = frame("echo.call", &json!({ "args": { "n": n } }), b"");
            let Ok(appended) = client.append(&AppendRequest::frames(vec![call])).await else {
                break;
            };
            calls.push(appended.frames[0].id);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (inputs, calls)
}

async fn read(client: &Client, topics: &str) -> Vec<Frame> {
    let topics = TopicPatterns::parse(topics).unwrap();
    let options = ReadOptions { topics, start: Start::First, ..ReadOptions::default() };
    let (mut frames, mut all) = (client.fetch(&options), Vec::new());
    while let Some(frame) = frames.next().await {
        all.push(frame.unwrap());
    }
    all
}

/// Waits until all is handled, for as long as there is progress; returns every frame.
async fn rest(place: &Sandbox, at_least: usize) -> Vec<Frame> {
    let client = connect(&place.store()).await;
    let (mut outputs, mut give_up) = (0, Instant::now() + PATIENCE);
    loop {
        let count = |frames: &[Frame], topic: &str| {
            frames.iter().filter(|frame| frame.topic() == topic).count()
        };
        let frames = read(&client, "in,plain.out,waiting.out,side,echo.*,count.recv").await;
        let wanted = count(&frames, "in");
        let answered = count(&frames, "echo.complete") + count(&frames, "echo.error");
        let done = wanted >= at_least
            && ["plain.out", "waiting.out"].iter().all(|topic| count(&frames, topic) >= wanted)
            && answered >= count(&frames, "echo.call");
        if done || Instant::now() > give_up {
            return frames;
        }
        let now = count(&frames, "waiting.out") + answered;
        if now > outputs {
            (outputs, give_up) = (now, Instant::now() + PATIENCE);
        }
        // Reading takes time from the work that is waited for.
        tokio::time::sleep(Duration::from_millis(50 + frames.len() as u64 / 50)).await;
    }
}

fn check(frames: &[Frame], inputs: &BTreeSet<FrameId>, calls: &BTreeSet<FrameId>) {
    let of = |topic: &str| frames.iter().filter(|frame| frame.topic() == topic).collect::<Vec<_>>();
    let meta = |frame: &Frame| serde_json::from_slice::<Value>(frame.meta()).unwrap();
    let input = |frame: &Frame| frame.origin().unwrap().input.unwrap();
    let stored: Vec<FrameId> = of("in").iter().map(|frame| frame.id()).collect();
    assert!(inputs.iter().all(|id| stored.contains(id)), "an acknowledged input is lost");
    for topic in ["plain.out", "waiting.out", "side"] {
        let made: Vec<FrameId> = of(topic).iter().map(|frame| input(frame)).collect();
        assert!(made == stored, "{topic}: {} of {} inputs, in order", made.len(), stored.len());
    }
    for topic in ["plain.out", "waiting.out"] {
        let numbers = of(topic).into_iter().map(|frame| meta(frame)["n"].as_u64().unwrap());
        assert!(numbers.eq(1..=stored.len() as u64), "{topic}: the state");
    }
    let mut ends: BTreeMap<FrameId, Vec<&str>> = BTreeMap::new();
    for frame in of("echo.complete").into_iter().chain(of("echo.error")) {
        ends.entry(input(frame)).or_default().push(frame.topic());
    }
    let called: Vec<FrameId> = of("echo.call").iter().map(|frame| frame.id()).collect();
    assert!(calls.iter().all(|id| called.contains(id)), "an acknowledged call is lost");
    for (nth, id) in called.iter().enumerate() {
        let ends = ends.get(id).map_or(&[][..], Vec::as_slice);
        assert!(ends.len() == 1, "call {nth} of {}, {id}, ended with {ends:?}", called.len());
    }
    let mut seen = HashSet::new();
    for frame in of("count.recv") {
        let meta = meta(frame);
        let yielded = (meta["run"].as_str().unwrap().to_owned(), meta["n"].as_u64().unwrap());
        assert!(seen.insert(yielded), "a generator's frame is doubled: {meta}");
    }
}

/// The kernel kills the programs that a module runs with its process, and not what they have
/// started.
#[test]
fn what_programs_have_started_ends_with_the_process_of_the_modules() {
    let place = Sandbox::new();
    place.write(
        "modules/generators/runs.ts",
        "import { generator, lines } from 'xs'; \
         export default generator({ permissions: { run: ['sh'] }, async *run(ctx) { \
           const script = '(sleep 1000 & echo $!; wait) & echo $!; wait'; \
           for await (const pid of lines(ctx.spawn('sh', ['-c', script]).stdout)) yield { pid }; \
         } });",
    );
    let server = place.serve(&["--modules", "modules", "--allow-run"]);
    let told = place.await_frames("runs.recv", 2);
    let pids: Vec<u32> =
        told.iter().map(|frame| frame["meta"]["pid"].as_str().unwrap().parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| is_running(*pid)), "{pids:?}");
    let host = server.children()[0];
    signal_pid(host, Signal::KILL);
    eventually(|| pids.iter().all(|pid| !is_running(*pid)).then_some(()));
    place.await_frames("runs.recv", 4);
    assert!(server.stop().success());
}
