//! The Host as a child process: restarted after a crash without the module that crashed it, and
//! ended when its supervisor has stopped it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use xs_engine::BlobHash;
use xs_runtime::host::Part;
use xs_runtime::name::thread_name;
use xs_runtime::permissions::Allow;
use xs_runtime::supervise::child::{self, ChildOptions};
use xs_runtime::supervise::{Connect, EXIT_WORN, Link, SuperviseOptions, Supervisor};

use super::support::{World, meta};

/// Variables by which the test below becomes a Host process.
const MODULES: &str = "XS_TEST_MODULES";
const CRASHES: &str = "XS_TEST_CRASHES";
const SPENDS: &str = "XS_TEST_SPENDS";

/// The Host process if the variables are set; otherwise does nothing.
#[test]
fn process() {
    let Some(modules) = std::env::var_os(MODULES) else { return };
    let modules = PathBuf::from(modules);
    let order = modules.join("crash");
    if let Ok(thread) = std::env::var(CRASHES) {
        let crash = move || loop {
            if fs::remove_file(&order).is_ok() {
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        std::thread::Builder::new().name(thread).spawn(crash).unwrap();
    }
    let spends = std::env::var(SPENDS).ok().and_then(|text| text.parse().ok());
    let options = ChildOptions {
        modules: Some(modules),
        allow: Allow::default(),
        spent_isolates_max: spends.unwrap_or(usize::MAX),
        env_file: None,
        part: Part::All,
    };
    let end = child::main(options);
    // The supervisor acts on the exit code.
    let code = if format!("{end:?}") == format!("{:?}", ExitCode::from(EXIT_WORN)) {
        i32::from(EXIT_WORN)
    } else {
        0
    };
    std::process::exit(code);
}

/// Starts this program again as a Host. Tests count its starts by its `active` frames: a Host that
/// a busy machine keeps from greeting the server in time is restarted, but has run nothing.
fn supervise(world: &World, more: Option<String>) -> Supervisor {
    let mut args: Vec<OsString> = vec![format!("{MODULES}={}", world.path("").display()).into()];
    args.extend(more.map(OsString::from));
    args.push(std::env::current_exe().unwrap().into());
    args.extend(["host::supervise::process", "--exact", "--nocapture"].map(OsString::from));
    let program = PathBuf::from("/usr/bin/env");
    let (modules, hidden, is_json_log) = (None, Vec::new(), false);
    let options = SuperviseOptions { program, args, modules, hidden, is_json_log };
    let server = world.server();
    let connect: Connect = Box::new(move |_| {
        let server = server.clone();
        let link: Link = Box::new(move |stream| {
            drop(server.adopt(stream, xs_protocol::Role::Host));
            std::future::pending().boxed()
        });
        std::future::ready(Ok(link)).boxed()
    });
    Supervisor::start(options, connect)
}

const ECHO: &str = "export default { topics: 'in', run(frame) { return { of: frame.id }; } };";

#[tokio::test(flavor = "multi_thread")]
async fn the_culprit_of_a_crash_is_not_started_again() {
    let world = World::new(&[("handlers/bad.js", ECHO), ("handlers/good.js", ECHO)]);
    let first = world.host().await;
    world.wait("xs.handler.bad.active", 1).await;
    world.wait("xs.handler.good.active", 1).await;
    first.stop().await;
    let create = world.topic("xs.handler.bad.create")[0].id();
    let supervisor = supervise(&world, Some(format!("{CRASHES}={}", thread_name(create))));
    world.wait("xs.handler.bad.active", 2).await;
    world.wait("xs.handler.good.active", 2).await;
    fs::write(world.path("crash"), "").unwrap();
    let fin = world.wait("xs.handler.bad.fin.error", 1).await;
    assert_eq!(meta(&fin[0])["code"], "crashed");
    assert_eq!(meta(&fin[0])["create"], create.to_string());
    world.wait("xs.handler.good.active", 3).await;
    world.append("in", serde_json::json!({}), "");
    world.wait("good.out", 1).await;
    let active = |name: &str| world.topic(&format!("xs.handler.{name}.active")).len();
    assert_eq!((active("bad"), active("good")), (2, 3));
    supervisor.stop().await;
    assert_eq!(world.topic("xs.handler.good.stopped").len(), 2);
}

/// Regression test: it crashed one Host after another, ten times a second, as no version was to
/// blame.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_crashed_the_host_is_not_parsed_again() {
    let world = World::new(&[("handlers/good.js", ECHO)]);
    let bad = format!("{ECHO} // It has crashed.");
    let thread = format!("src-{}", &BlobHash::of(bad.as_bytes()).to_string()[..11]);
    let supervisor = supervise(&world, Some(format!("{CRASHES}={thread}")));
    world.wait("xs.handler.good.active", 1).await;
    fs::write(world.path("crash"), "").unwrap();
    world.wait("xs.handler.good.active", 2).await;
    world.save("handlers/bad.js", &bad);
    let invalid = world.wait("xs.handler.bad.invalid", 1).await;
    let message = meta(&invalid[0])["message"].as_str().unwrap().to_owned();
    assert!(message.contains("it crashed the process"), "{message}");
    // A version created by an admin has another thread, and the same source.
    world.append("xs.handler.bad.create", serde_json::json!({}), &bad);
    world.wait("xs.handler.bad.invalid", 2).await;
    world.save("handlers/bad.js", ECHO);
    world.wait("xs.handler.bad.active", 1).await;
    assert_eq!(world.topic("xs.handler.good.active").len(), 2);
    supervisor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_supervisor_leaves_no_child() {
    let world = World::new(&[("handlers/h.js", ECHO)]);
    let supervisor = supervise(&world, None);
    world.wait("xs.handler.h.active", 1).await;
    supervisor.stop().await;
    let dir = world.path("").display().to_string();
    let alive = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&dir)
    });
    assert_eq!((alive.count(), world.topic("xs.handler.h.active").len()), (0, 1));
}

/// Regression test: the end of a Host whose log nobody reads was noticed a second late.
#[tokio::test]
async fn an_end_is_noticed_when_it_comes() {
    const TIMES: u32 = 12;
    let mut took = Duration::ZERO;
    for _ in 0..TIMES {
        let (program, args) = (PathBuf::from("/bin/sleep"), vec![OsString::from("600")]);
        let (modules, hidden, is_json_log) = (None, Vec::new(), false);
        let options = SuperviseOptions { program, args, modules, hidden, is_json_log };
        let (made, mut is_made) = tokio::sync::watch::channel(false);
        let connect: Connect = Box::new(move |_| {
            let made = made.clone();
            let link: Link = Box::new(move |_| {
                made.send_replace(true);
                std::future::pending().boxed()
            });
            std::future::ready(Ok(link)).boxed()
        });
        let supervisor = Supervisor::start(options, connect);
        is_made.wait_for(|is_made| *is_made).await.unwrap();
        let began = Instant::now();
        supervisor.stop().await;
        took += began.elapsed();
    }
    // At most half of the previous time.
    assert!(took < TIMES * Duration::from_millis(500), "{took:?}");
}

/// A server that accepts a connection and cuts it must not cause modules to be restarted without a
/// pause.
#[tokio::test]
async fn connections_that_do_not_last_are_made_less_and_less_often() {
    let (program, args) = (PathBuf::from("/bin/sleep"), vec![OsString::from("60")]);
    let (modules, hidden, is_json_log) = (None, Vec::new(), false);
    let options = SuperviseOptions { program, args, modules, hidden, is_json_log };
    let (made, mut count) = tokio::sync::watch::channel(0);
    let connect: Connect = Box::new(move |_| {
        let made = made.clone();
        let link: Link = Box::new(move |_| {
            made.send_modify(|count| *count += 1);
            std::future::ready("cut".to_owned()).boxed()
        });
        std::future::ready(Ok(link)).boxed()
    });
    let began = Instant::now();
    let supervisor = Supervisor::start(options, connect);
    count.wait_for(|count| *count >= 3).await.unwrap();
    // At least half of 1 s, then half of 2 s.
    assert!(began.elapsed() >= Duration::from_millis(1_500), "{:?}", began.elapsed());
    supervisor.stop().await;
}

/// Each isolate leaves memory behind: a Host that has made many is replaced, which is not a crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_worn_host_is_replaced_at_once() {
    let world = World::new(&[("handlers/h.js", ECHO), ("handlers/other.js", ECHO)]);
    let supervisor = supervise(&world, Some(format!("{SPENDS}=2")));
    world.wait("xs.handler.h.active", 1).await;
    for n in 0..3 {
        world.save("handlers/h.js", &format!("{ECHO} // {n}"));
        world.wait("xs.handler.h.create", n + 2).await;
        // The last one wears the Host out, which may end before that version runs.
        if n < 2 {
            world.wait("xs.handler.h.active", n + 2).await;
        }
    }
    world.wait("xs.handler.other.active", 2).await;
    let newest = world.topic("xs.handler.h.create")[3].id().to_string();
    let runs = || meta(world.topic("xs.handler.h.active").last().unwrap())["create"] == *newest;
    world.until("the newest version runs", runs).await;
    world.append("in", serde_json::json!({}), "");
    world.wait("h.out", 1).await;
    world.wait("other.out", 1).await;
    assert_eq!(world.topic("xs.handler.other.active").len(), 2);
    supervisor.stop().await;
    assert!(world.topic("xs.handler.h.fin.error").is_empty());
}
