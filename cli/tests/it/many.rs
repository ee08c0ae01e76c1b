//! Many modules at a time, and one many times: none is starved by another, and ended ones leave
//! nothing behind.

use std::fs;
use std::io::Write as _;

use serde_json::json;
use xs_engine::{Bound, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::{AppendRequest, Client, SubEvent, SubscribeOptions};

use crate::client::{connect, frame, runtime};
use crate::support::{Sandbox, Server, eventually};

/// Modules besides the one that takes all it can.
const MODULES: usize = 63;
const INPUTS: usize = 20;
/// Starts and stops of one module.
const CYCLES: usize = 30;
const CYCLES_LONG: usize = 1_000;
/// Isolates after which a Host is replaced.
const SPENT: u64 = xs_runtime::host::SPENT_ISOLATES_MAX as u64;
/// What an ended isolate keeps until then, with room for the allocator.
const KEPT_BYTES: u64 = 2 * 1024 * 1024;

#[test]
fn one_busy_module_does_not_starve_the_others() {
    let place = Sandbox::new();
    let healthy = "export default { topics: 'in', state: 0, run(frame, ctx) { return { n: ++ctx.state }; } };";
    for n in 0..MODULES {
        place.write(&format!("modules/handlers/m{n}.js"), healthy);
    }
    let hog = "export default { topics: 'in', onError: 'skip', run() { for (;;) {} } };";
    place.write("modules/handlers/hog.js", hog);
    let server = place.serve(&["--modules", "modules", "--sync", "none", "--log-level", "error"]);
    for n in 0..MODULES {
        place.await_frames(&format!("xs.handler.m{n}.active"), 1);
    }
    place.await_frames("xs.handler.hog.active", 1);
    for n in 0..INPUTS {
        place.ok(&["append", "in", "-n", "--meta", &format!("{{\"n\":{n}}}")]);
    }
    for n in 0..MODULES {
        let made = place.await_frames(&format!("m{n}.out"), INPUTS);
        let numbers = made.iter().map(|frame| frame["meta"]["n"].as_u64().unwrap());
        assert!(numbers.eq(1..=INPUTS as u64), "m{n}");
    }
    assert!(server.stop().success(), "{}", place.log());
    told(&format!("{} modules at once, one of them a hog", MODULES + 1));
}

/// Threads, descriptors and bytes of the Host.
fn holds(server: &Server) -> Option<[u64; 3]> {
    let pid = *server.children().first()?;
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).ok().map(Iterator::count);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some([count("task")? as u64, count("fd")? as u64, kib * 1024])
}

#[test]
fn restarting_modules_leaks_nothing() {
    let cycles = if std::env::var_os("XS_TEST_LONG").is_some() { CYCLES_LONG } else { CYCLES };
    let place = Sandbox::new();
    fs::create_dir(place.path("modules")).unwrap();
    let server = place.serve(&["--modules", "modules", "--sync", "none", "--log-level", "error"]);
    let (mut before, mut most) = ([0; 3], 0);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        for n in 0..cycles + 3 {
            cycle(&client, n).await;
            let [_, _, bytes] = holds(&server).unwrap_or_default();
            most = most.max(bytes);
            // The first cycles create what all share. The isolate that is kept ready for the next
            // start is made when the Host rests.
            if n == 2 {
                let is_ready = || (threads(&server, "js-blank").len() == 1).then_some(());
                eventually(is_ready);
                before = eventually(|| holds(&server));
            }
        }
    });
    let allowed = before[2] + KEPT_BYTES * SPENT.min(cycles as u64);
    assert!(most <= allowed, "{most} bytes at most, {allowed} after {before:?}");
    // Threads of its pools start and end.
    let rests = |now: [u64; 3]| now[0] <= before[0] + 2 && now[1] <= before[1] + 4;
    eventually(|| holds(&server).filter(|now| rests(*now)));
    assert!(server.stop().success(), "{}", place.log());
    told(&format!("{cycles} starts and stops of a module, {} MiB at most", most >> 20));
}

/// Starts a version, has it handle a frame, and stops it.
async fn cycle(client: &Client, n: usize) {
    let source = format!("export default {{ topics: 'in', run: () => ({{ n: {n} }}) }};");
    let create = frame("xs.handler.m.create", &json!({}), source.as_bytes());
    let create = append(client, create).await;
    told_of(client, create, "xs.handler.m.active").await;
    let input = append(client, frame("in", &json!({}), b"")).await;
    told_of(client, input, "m.out").await;
    let term = append(client, frame("xs.handler.m.term", &json!({}), b"")).await;
    told_of(client, term, "xs.handler.m.fin.term").await;
}

async fn append(client: &Client, frame: xs_engine::NewFrame) -> FrameId {
    client.append(&AppendRequest::frames(vec![frame])).await.unwrap().frames[0].id
}

/// Waits for a frame of a topic after another frame.
async fn told_of(client: &Client, after: FrameId, topic: &str) {
    let options = ReadOptions {
        topics: TopicPatterns::parse(topic).unwrap(),
        start: Start::After(Bound::Id(after)),
        follow: true,
        limit: Some(1),
        ..ReadOptions::default()
    };
    let how = SubscribeOptions::default();
    let mut frames = client.subscribe(&options, how).await.unwrap();
    let came = async {
        while let Some(event) = frames.next().await {
            if matches!(event.unwrap(), SubEvent::Frames { frames, .. } if !frames.is_empty()) {
                return;
            }
        }
    };
    let came = tokio::time::timeout(crate::support::PATIENCE, came).await;
    assert!(came.is_ok(), "no {topic}");
}

fn told(text: &str) {
    let line = format!("counted: {text}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

/// Threads of the Host with this name prefix: their ids and names. The Host may not have started
/// yet.
fn threads(server: &Server, prefix: &str) -> Vec<(String, String)> {
    let Some(pid) = server.children().first().copied() else { return Vec::new() };
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let named = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
        Some((task.file_name().into_string().unwrap(), name))
    });
    named.filter(|(_, name)| name.starts_with(prefix)).collect()
}

/// The next version gets the isolate that is kept ready, with all that watches one, and another
/// takes its place.
#[test]
fn an_isolate_is_ready_for_what_starts_next() {
    let place = Sandbox::new();
    fs::create_dir(place.path("modules")).unwrap();
    let server = place.serve(&["--modules", "modules", "--sync", "none", "--log-level", "error"]);
    let ready = || match &threads(&server, "js-blank")[..] {
        [(thread, _)] => Some(thread.clone()),
        _ => None,
    };
    for n in 0..3 {
        let kept = eventually(ready);
        let run = if n == 0 { "for (;;) {}" } else { "return { n: performance.now() };" };
        place.write(
            "modules/handlers/m.js",
            &format!("export default {{ topics: 'in{n}', run() {{ {run} }} }};"),
        );
        place.await_frames("xs.handler.m.active", n + 1);
        let all = threads(&server, "js-");
        let (_, name) = all.iter().find(|(thread, _)| *thread == kept).expect("it is there");
        assert_ne!(name, "js-blank", "{all:?}");
        place.ok(&["append", &format!("in{n}"), "-n"]);
        if n == 0 {
            let failed = &place.await_frames("xs.handler.m.fin.error", 1)[0];
            assert_eq!(failed["meta"]["code"], "cpu", "{failed}");
        } else {
            place.await_frames("m.out", n);
        }
    }
    assert!(server.stop().success(), "{}", place.log());
}
