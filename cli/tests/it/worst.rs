//! The worst that modules were made to do, a few at a time against one server, or each alone in the
//! long form: each is reported, and meanwhile a client appends and a healthy module handles its
//! frames. Further cases, and the tests that cover them:
//!
//! | what a module does | held by |
//! |---|---|
//! | J1 endless loops; J2 endless microtasks | `RUNS`; runtime `isolate::hostile` |
//! | J3 JSON, J4 searches without a pause; J6 a blocking wait | `RUNS`, as a wedged thread; runtime `isolate::hostile` |
//! | J5 one long native call | `RUNS` |
//! | J7 a wait that outlasts its stop | `a_replaced_busy_module_ends`; runtime `host::generator` |
//! | J8 objects, J9 buffers and WebAssembly, J10 shared buffers | `RUNS`; runtime `isolate::hostile` |
//! | J11 a heap limit that is met again, J12 none at all | `RUNS`, "objects, caught"; `Limits::default()` has one |
//! | J13 recursion, deep and cyclic values | `RUNS`; runtime `isolate::hostile` |
//! | J14 a panicking op, J15 ops, J16 globals that lead there | `RUNS`; runtime `isolate::escapes` |
//! | J17 prototypes, J24 builtins, J25 stacks of its own | `RUNS`; runtime `isolate::hostile` |
//! | J18 rejections that nobody handles | `RUNS` |
//! | J19 a throwing, endless or stalled top level | `MODULES`; `hostile.rs` |
//! | J20 throwing no error, J21 getters, J22 proxies, J23 thenables | `RUNS` |
//! | J26 odd and frozen results | `RUNS`; runtime `isolate::floods` |
//! | J27 floods of frames, J28 frames of a run that is over | `RUNS`; runtime `isolate::floods` |
//! | J29 its own topic, rings | `RUNS`; runtime `host::handler` |
//! | J30 timers, J31 promises by the million | `RUNS` |
//! | J32 a leak | `RUNS`, "a leak"; runtime `isolate::floods` |
//! | J33 replaced, J34 stopped in the middle of it | `a_replaced_busy_module_ends` |
//! | J35 a thousand starts and stops, J36 a hog among 64 | `many.rs` |
//! | J37 a crash at any moment | `crash.rs`, `kill.rs` |
//! | J38 addresses, files, programs, variables not granted | `RUNS`; runtime `isolate::escapes`; `apart.rs` |
//! | J39 imports | `RUNS`, `MODULES`; runtime `isolate::escapes` |
//! | J40 evaluated code, clock and random | `RUNS`; runtime `isolate::escapes` |

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use xs_engine::{Frame, ReadOptions, Start, TopicPatterns};
use xs_protocol::{AppendRequest, Client, SubEvent, SubscribeOptions, Subscription};

use crate::client::{connect, frame, runtime};
use crate::support::{PATIENCE, Sandbox};

const HEALTHY: &str =
    "export default { topics: 'in', state: 0, run(frame, ctx) { return { n: ++ctx.state }; } };";
/// Time between two appends of the client.
const PACE: Duration = Duration::from_millis(5);
/// How many do their worst at a time, except in the long form.
const AT_ONCE: usize = 4;
/// Appends and outputs that must still happen during each case.
const PROGRESS: u64 = 5;

/// How a case ends: the frame is handled, the module fails, or it does not start.
const OUT: &str = "out";
const FAILS: &str = "fin.error";
const INVALID: &str = "invalid";

/// What `run` does when it is poked, and how that may end.
const RUNS: &[(&str, &str, &[&str])] = &[
    ("endless loop", "for (;;) {}", &[FAILS]),
    ("that catches", "for (;;) { try { for (;;) {} } catch {} finally { continue; } }", &[FAILS]),
    (
        "generator",
        "const g = (function* () { for (;;) yield 1; })(); for (const _ of g) {}",
        &[FAILS],
    ),
    ("backtracking", "/(a+)+$/.test('a'.repeat(60) + 'b');", &[FAILS]),
    ("sorting", "[3, 1, 2].sort(() => { for (;;) {} });", &[FAILS]),
    ("big numbers", "let a = 3n; for (;;) a = (a * a) % (2n ** 4096n) + 1n;", &[FAILS]),
    ("awaiting nothing", "return (async () => { for (;;) await null; })();", &[FAILS]),
    ("microtasks", "let go = () => Promise.resolve().then(go); return go();", &[FAILS]),
    (
        "JSON without pause",
        "const o = Array.from({ length: 1e5 }, (_, i) => ({ i })); for (;;) JSON.parse(JSON.stringify(o));",
        &[FAILS],
    ),
    ("searching without pause", "const s = 'x'.repeat(5e6); for (;;) s.indexOf('y');", &[FAILS]),
    ("one long call", "new Array(3e7).fill(0); return { done: true };", &[OUT, FAILS]),
    (
        "many long calls",
        "const s = 'x'.repeat(1e6); for (let n = 0; n < 9; n++) s.split(''); return { done: true };",
        &[OUT, FAILS],
    ),
    ("blocking wait", "Atomics.wait(new Int32Array(new SharedArrayBuffer(8)), 0, 0);", &[FAILS]),
    ("objects", "const all = []; for (;;) all.push({ a: [1, 2, 3] });", &[FAILS]),
    (
        "objects, caught",
        "const all = []; for (;;) { try { for (;;) all.push('x'.repeat(1000) + all.length); } catch {} }",
        &[FAILS],
    ),
    ("buffers", "const all = []; for (;;) all.push(new ArrayBuffer(1_000_000));", &[FAILS]),
    (
        "shared buffers",
        "const all = []; for (;;) all.push(new SharedArrayBuffer(1_000_000));",
        &[FAILS],
    ),
    ("WebAssembly", "new WebAssembly.Memory({ initial: 10_000 });", &[FAILS]),
    (
        "a leak",
        "globalThis.kept = []; return (async () => { for (let n = 0; n < 1e6; n++) { kept.push('x'.repeat(1024) + n); if (n % 1000 === 0) await null; } })();",
        &[FAILS],
    ),
    ("recursion", "const f = () => f() + 1; f();", &[FAILS]),
    ("deep JSON", "JSON.parse('['.repeat(5e6));", &[FAILS]),
    ("cyclic result", "const a = {}; a.a = a; return a;", &[FAILS]),
    ("panicking op", "Deno.core.ops.op_panic('x');", &[FAILS]),
    ("ops", "__bootstrap.core.ops.op_xs_reply(1, '');", &[FAILS]),
    (
        "polluted prototypes",
        "Object.prototype.then = Array.prototype.push = Promise.prototype.then = () => { throw 1; }; return { a: 1 };",
        &[OUT, FAILS],
    ),
    (
        "overridden JSON",
        "JSON.stringify = () => 'x'; JSON.parse = () => 1; return { a: 1 };",
        &[OUT],
    ),
    (
        "overridden iteration",
        "Array.prototype[Symbol.iterator] = () => { throw 1; }; return { a: 1 };",
        &[OUT, FAILS],
    ),
    (
        "overridden toJSON",
        "Object.prototype.toJSON = Date.prototype.toJSON = () => { for (;;) {} }; return { a: 1 };",
        &[OUT, FAILS],
    ),
    ("frozen result", "return Object.freeze({ a: Object.freeze([1]) });", &[OUT]),
    (
        "frozen state",
        "Object.freeze(ctx); Object.freeze(ctx.state); return { a: 1 };",
        &[OUT, FAILS],
    ),
    (
        "own stacks",
        "Error.prepareStackTrace = () => { for (;;) {} }; throw new Error('x');",
        &[FAILS],
    ),
    (
        "rejection nobody handles",
        "Promise.reject(new TypeError('floating')); return { a: 1 };",
        &[OUT, FAILS],
    ),
    ("throwing no error", "throw null;", &[FAILS]),
    ("throwing a trap", "throw new Proxy({}, { get() { throw 1; } });", &[FAILS]),
    ("throwing getter", "return { get a() { throw new Error('getter'); } };", &[FAILS]),
    ("trap as a result", "return new Proxy({}, { ownKeys() { throw 1; } });", &[OUT, FAILS]),
    ("thenable that never is", "return { then() {} };", &[FAILS]),
    ("big integer", "return 1n;", &[FAILS]),
    ("symbol", "return Symbol('x');", &[FAILS]),
    ("hundred megabytes", "return 'x'.repeat(1e8);", &[FAILS]),
    ("half a character", "return { a: '\\ud800' };", &[OUT, FAILS]),
    ("appending without end", "for (;;) ctx.append('flood', { meta: { a: 1 } });", &[FAILS]),
    (
        "appending too late",
        "const late = () => { try { ctx.append('late', {}); } catch {} }; setTimeout(late, 1); setTimeout(late, 1); return { a: 1 };",
        &[OUT],
    ),
    (
        "its own topic",
        "ctx.append(frame.topic, { meta: { again: true } }); return { a: 1 };",
        &[OUT],
    ),
    (
        "timers",
        "for (let i = 0; i < 1e6; i++) setTimeout(() => {}, 1e6); return { a: 1 };",
        &[OUT, FAILS],
    ),
    (
        "promises",
        "const all = []; for (let i = 0; i < 1e6; i++) all.push(new Promise(() => {})); return { a: 1 };",
        &[OUT, FAILS],
    ),
    ("promise that never is", "return new Promise(() => {});", &[FAILS]),
    ("waiting too long", "return new Promise((done) => setTimeout(done, 60_000));", &[FAILS]),
    ("loopback", "return fetch('http://127.0.0.1:1/').then(() => ({ a: 1 }));", &[FAILS]),
    (
        "metadata service",
        "return fetch('http://169.254.169.254/').then(() => ({ a: 1 }));",
        &[FAILS],
    ),
    ("environment", "if (ctx.env.PATH !== undefined) for (;;) {} return { a: 1 };", &[OUT]),
    ("files", "return ctx.fs.text('/etc/hostname').then((a) => ({ a }));", &[FAILS]),
    ("programs", "return ctx.spawn('true').status;", &[FAILS]),
    ("import at run time", "return import('node:fs').then(() => ({ a: 1 }));", &[FAILS]),
    ("import of a file", "return import('file:///etc/passwd').then(() => ({ a: 1 }));", &[FAILS]),
    (
        "evaluated code",
        "return { a: new Function('return typeof Deno + typeof process + eval(\"1 + 1\")')() };",
        &[OUT],
    ),
    (
        "clock and random",
        "return { a: Date.now() > 0 && Math.random() < 1 && crypto.randomUUID().length === 36 };",
        &[OUT],
    ),
];

/// Modules that do it while they are evaluated.
const MODULES: &[(&str, &str)] = &[
    ("endless top level", "for (;;) {} export default {};"),
    ("top level that awaits nothing", "while (true) await null; export default {};"),
    ("throwing top level", "throw new Error('no'); export default {};"),
    ("top level that never is", "await new Promise(() => {}); export default {};"),
    ("hoarding top level", "const all = []; for (;;) all.push({}); export default {};"),
    ("import of the engine", "import 'ext:core/mod.js'; export default {};"),
    ("no definition", "export default 1;"),
    (
        "trap as a definition",
        "export default new Proxy({}, { get() { throw 1; }, ownKeys() { for (;;) {} } });",
    ),
];

#[test]
fn hostile_modules_do_not_harm_others() {
    let place = Sandbox::new();
    place.write("modules/handlers/healthy.js", HEALTHY);
    let server = place.serve(&["--modules", "modules", "--sync", "none", "--log-level", "error"]);
    place.await_frames("xs.handler.healthy.active", 1);
    let runs = RUNS.iter().map(|(name, run, ends)| {
        let topics = |n: usize| format!("poke.w{n}");
        let source = move |n: usize| {
            format!(
                "export default {{ topics: '{}', timeout: 1000, run(frame, ctx) {{ {run} }} }};",
                topics(n)
            )
        };
        (*name, Box::new(source) as Box<dyn Fn(usize) -> String>, *ends)
    });
    let modules = MODULES.iter().map(|(name, source)| {
        let source = |_: usize| (*source).to_owned();
        (*name, Box::new(source) as Box<dyn Fn(usize) -> String>, &[INVALID][..])
    });
    let cases: Vec<_> = runs.chain(modules).collect();
    let at_once = if std::env::var_os("XS_TEST_LONG").is_some() { 1 } else { AT_ONCE };
    let next = AtomicUsize::new(0);
    runtime().block_on(async {
        let beside = Beside::start(&place).await;
        let one_by_one = async || {
            let subscription = follow(&beside.client, "xs.handler.*,*").await;
            let mut told = Told { subscription, ready: VecDeque::new() };
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some((name, source, ends)) = cases.get(n) else { return };
                let before = beside.counts();
                place.write(&format!("modules/handlers/w{n}.js"), &source(n));
                let ended = outcome(&beside.client, &mut told, n).await;
                assert!(ends.contains(&ended.as_str()), "{name}: {ended}\n{}", place.log());
                beside.goes_on(name, before).await;
                fs::remove_file(place.path(&format!("modules/handlers/w{n}.js"))).unwrap();
            }
        };
        futures::future::join_all((0..at_once).map(|_| one_by_one())).await;
    });
    assert!(server.stop().success(), "{}", place.log());
    let text = format!("counted: {} hostile modules beside a healthy one\n", cases.len());
    std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes()).unwrap();
}

/// A module that is replaced or deleted while it does its worst ends, and the next version runs.
#[test]
fn a_replaced_busy_module_ends() {
    let place = Sandbox::new();
    place.write("modules/handlers/healthy.js", HEALTHY);
    let server = place.serve(&["--modules", "modules", "--sync", "none", "--log-level", "error"]);
    place.await_frames("xs.handler.healthy.active", 1);
    let runs = ["endless loop", "awaiting nothing", "JSON without pause", "waiting too long"];
    let runs = RUNS.iter().filter(|(name, ..)| runs.contains(name));
    runtime().block_on(async {
        let beside = Beside::start(&place).await;
        let subscription = follow(&beside.client, "xs.handler.*,*").await;
        let mut told = Told { subscription, ready: VecDeque::new() };
        for (n, (name, run, _)) in runs.enumerate() {
            let before = beside.counts();
            let file = format!("modules/handlers/w{n}.js");
            let source = |run: &str| {
                format!(
                    "export default {{ topics: 'poke.w{n}', timeout: '10s', run() {{ {run} }} }};"
                )
            };
            place.write(&file, &source(run));
            told.until(&format!("xs.handler.w{n}.active")).await;
            for _ in 0..2 {
                let poke = frame(&format!("poke.w{n}"), &json!({}), b"");
                beside.client.append(&AppendRequest::frames(vec![poke])).await.unwrap();
            }
            place.write(&file, &source("return { fine: true };"));
            // Its position is kept: what the old version did not finish comes first.
            told.until(&format!("w{n}.out")).await;
            told.until(&format!("w{n}.out")).await;
            beside.goes_on(name, before).await;
            fs::remove_file(place.path(&file)).unwrap();
            told.until(&format!("xs.handler.w{n}.fin.term")).await;
        }
    });
    assert!(server.stop().success(), "{}", place.log());
}

/// Pokes the module once it runs. Returns the last part of the topic that says how it ended.
async fn outcome(client: &Client, told: &mut Told, n: usize) -> String {
    let lifecycle = format!("xs.handler.w{n}.");
    let out = format!("w{n}.out");
    loop {
        let frame = told.next().await;
        let topic = frame.topic();
        if topic == out {
            return OUT.to_owned();
        }
        match topic.strip_prefix(&lifecycle) {
            Some("active") => {
                let poke = crate::client::frame(&format!("poke.w{n}"), &json!({ "n": n }), b"");
                client.append(&AppendRequest::frames(vec![poke])).await.unwrap();
            }
            Some(event @ (FAILS | INVALID)) => return event.to_owned(),
            _ => {}
        }
    }
}

async fn follow(client: &Client, topics: &str) -> Subscription {
    let topics = TopicPatterns::parse(topics).unwrap();
    let options = ReadOptions { topics, start: Start::New, follow: true, ..ReadOptions::default() };
    client.subscribe(&options, SubscribeOptions::default()).await.unwrap()
}

/// Frames of a subscription, one by one.
struct Told {
    subscription: Subscription,
    ready: VecDeque<Frame>,
}

impl Told {
    /// Skips frames up to the next of a topic.
    async fn until(&mut self, topic: &str) {
        while self.next().await.topic() != topic {}
    }

    async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return frame;
            }
            let event = tokio::time::timeout(PATIENCE, self.subscription.next()).await;
            let event = event.expect("something comes").unwrap().unwrap();
            if let SubEvent::Frames { frames, .. } = event {
                self.ready.extend(frames.into_iter().map(|delivered| delivered.frame));
            }
        }
    }
}

/// A client that appends, and the healthy module that handles it.
struct Beside {
    client: Client,
    appended: Arc<AtomicU64>,
    handled: Arc<AtomicU64>,
}

impl Beside {
    async fn start(place: &Sandbox) -> Self {
        let client = connect(&place.store()).await;
        let (appended, handled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (appender, count) = (client.clone(), Arc::clone(&appended));
        tokio::spawn(async move {
            loop {
                let input = frame("in", &json!({}), b"");
                // The server is stopped while this still runs.
                let Ok(_) = appender.append(&AppendRequest::frames(vec![input])).await else {
                    return;
                };
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PACE).await;
            }
        });
        let mut outputs = follow(&client, "healthy.out").await;
        let count = Arc::clone(&handled);
        tokio::spawn(async move {
            while let Some(Ok(event)) = outputs.next().await {
                if let SubEvent::Frames { frames, .. } = event {
                    count.fetch_add(frames.len() as u64, Ordering::Relaxed);
                }
            }
        });
        Self { client, appended, handled }
    }

    fn counts(&self) -> [u64; 2] {
        [&self.appended, &self.handled].map(|count| count.load(Ordering::Relaxed))
    }

    async fn goes_on(&self, name: &str, before: [u64; 2]) {
        let more = async {
            while self.counts().iter().zip(before).any(|(now, before)| *now < before + PROGRESS) {
                tokio::time::sleep(PACE).await;
            }
        };
        let gone_on = tokio::time::timeout(PATIENCE, more).await;
        assert!(gone_on.is_ok(), "beside {name}: {before:?}, then {:?}", self.counts());
    }
}
