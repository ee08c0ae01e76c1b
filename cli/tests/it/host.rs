//! `xs host`: modules that run apart from their server, over real sockets.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::network::{certify, listening, serve_tls};
use crate::support::{
    PATIENCE, Run, Sandbox, Server, eventually, is_running, output_within, signal, text,
    wait_within,
};

const ECHO: &str = "import { command } from \"xs\";\nexport default command({ args: { word: \"string\" },\n\
    run: (call) => ({ word: call.args.word, token: \"none\" }) });\n";
const COPY: &str = "import { handler } from \"xs\";\nexport default handler({ topics: \"in\", start: \"first\",\n\
    run: (frame) => ({ of: frame.id }) });\n";
const TICK: &str = "import { generator } from \"xs\";\nexport default generator({ async *run(ctx) {\n\
    for await (const _ of ctx.every(\"50ms\")) yield { tick: true }; } });\n";

/// A sandbox with modules, and a server that runs none.
struct World {
    place: Sandbox,
    server: Option<Server>,
    /// The TCP address it listens on.
    addr: String,
    token: String,
}

impl World {
    fn new(modules: &[(&str, &str)]) -> Self {
        let place = Sandbox::new();
        place.ok(&["append", "made", "x"]);
        let token = token(&place, "modules", "host");
        place.write("modules/lib/shared.js", "");
        for (name, source) in modules {
            place.write(&format!("modules/{name}"), source);
        }
        let server = Some(place.serve(&["--listen", ":0", "--sync", "none"]));
        let addr = listening(&place);
        Self { place, server, addr, token }
    }

    /// Starts a Host over TCP that logs to the file `log`.
    fn host(&self, log: &str) -> Host {
        self.host_at(log, &self.addr, Some(&self.token))
    }

    fn host_at(&self, log: &str, addr: &str, token: Option<&str>) -> Host {
        let mut command = self.place.command(&["host", "modules", "-a", addr]);
        if let Some(token) = token {
            command.env("XS_TOKEN", token);
        }
        Host::start(&mut command, self.place.path(log))
    }

    /// Runs a Host that ends on its own.
    fn refused(&self, addr: &str, token: Option<&str>) -> Run {
        let mut command =
            self.place.command(&["host", "modules", "-a", addr, "--log-level", "off"]);
        if let Some(token) = token {
            command.env("XS_TOKEN", token);
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Run::from(output_within(child, PATIENCE))
    }

    fn call(&self, word: &str) -> Run {
        self.place.xs(&["call", "echo", &format!("word={word}")])
    }

    /// Waits until a call is answered.
    fn await_answer(&self, word: &str) {
        eventually(|| (self.call(word).code == 0).then_some(()));
    }
}

/// `xs host`, which does not outlive its test.
struct Host {
    child: Child,
    log: PathBuf,
}

impl Host {
    fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = fs::File::create(&log).unwrap();
        let child = command.stderr(file).stdout(Stdio::null()).spawn().unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn await_log(&self, what: &str) {
        eventually(|| self.log().contains(what).then_some(()));
    }

    /// The processes that run its modules.
    fn processes(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
        let children = children.collect::<Vec<_>>().join(" ");
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    fn stop(mut self) -> (Option<i32>, String) {
        signal(&self.child, Signal::TERM);
        let code = wait_within(&mut self.child, PATIENCE).code();
        (code, self.log())
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn token(place: &Sandbox, name: &str, role: &str) -> String {
    place.ok(&["token", "create", name, "--role", role]).text().trim_end().to_owned()
}

fn state(place: &Sandbox, name: &str) -> String {
    place.ok(&["modules", "show", name]).json()[0]["state"].as_str().unwrap().to_owned()
}

#[test]
fn modules_run_over_tcp_with_a_token_that_they_do_not_have() {
    let world = World::new(&[("commands/echo.ts", ECHO), ("handlers/copy.ts", COPY)]);
    let none = world.call("early");
    assert_eq!((none.code, none.err.contains("xs host DIR")), (3, true), "{}", none.err);
    let host = world.host("host.log");
    world.place.await_frames("xs.command.echo.active", 1);
    world.place.await_frames("xs.handler.copy.active", 1);
    assert_eq!(world.call("hello").json()[0]["word"], "hello");
    world.place.ok(&["append", "in", "x"]);
    world.place.await_frames("copy.out", 1);
    assert_eq!(state(&world.place, "copy"), "active");
    assert_eq!(world.place.frames("xs.host.start").len(), 1);
    // Another client with the token is not a Host.
    let mut cat = world.place.command(&["cat", "-a", &world.addr, "in"]);
    let cat = Run::from(cat.env("XS_TOKEN", &world.token).output().unwrap());
    assert_eq!((cat.code, cat.json().len()), (0, 1), "{}", cat.err);
    // The token is in the arguments and variables only of the process that it was given to.
    let processes = host.processes();
    assert_eq!(processes.len(), 1);
    for (pid, file) in
        [(processes[0], "environ"), (processes[0], "cmdline"), (host.child.id(), "cmdline")]
    {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("xst_"), "{file} of {pid}");
    }
    let (code, log) = host.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!is_running(processes[0]) && !log.contains("xst_"), "{log}");
    world.place.await_frames("xs.handler.copy.stopped", 1);
    world.place.await_frames("xs.host.end", 1);
    assert_eq!(state(&world.place, "copy"), "waiting for a server");
}

#[test]
fn modules_run_over_the_stores_own_socket() {
    let world = World::new(&[("commands/echo.ts", ECHO)]);
    let store = world.place.store();
    let host = world.host_at("host.log", text(&store), None);
    world.place.await_frames("xs.command.echo.active", 1);
    assert_eq!(world.call("hello").json()[0]["word"], "hello");
    assert_eq!(host.stop().0, Some(0));
}

/// Kills the server in the middle of a handler's work and a generator's.
#[test]
fn modules_resume_when_the_server_comes_back() {
    const BEFORE: usize = 400;
    const ALL: usize = 500;
    let lines = |from: usize, to: usize| {
        (from..to).map(|n| format!("{n}\n")).collect::<String>().into_bytes()
    };
    let mut world = World::new(&[("handlers/copy.ts", COPY), ("generators/tick.ts", TICK)]);
    let host = world.host("host.log");
    world.place.await_frames("tick.recv", 2);
    let append = ["append", "in", "--lines"];
    assert_eq!(world.place.xs_with(&append, &lines(0, BEFORE)).code, 0);
    world.place.await_frames("copy.out", 1);
    world.server.take().unwrap().kill();
    host.await_log("waiting for the server");
    world.server = Some(world.place.serve(&["--listen", &world.addr, "--sync", "none"]));
    assert_eq!(world.place.xs_with(&append, &lines(BEFORE, ALL)).code, 0);
    let out = world.place.await_frames("copy.out", ALL);
    let inputs = world.place.frames("in");
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for frame in &out {
        *times.entry(frame["meta"]["of"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!((inputs.len(), times.len()), (ALL, ALL));
    assert!(inputs.iter().all(|input| times[input["id"].as_str().unwrap()] == 1));
    let came = world.place.await_frames("xs.host.start", 2);
    let is_later = |frame: &Value| frame["id"].as_str() > came[1]["id"].as_str();
    eventually(|| world.place.frames("tick.recv").iter().any(is_later).then_some(()));
    assert_eq!(came[0]["meta"], came[1]["meta"], "one Host");
    // Each change is logged once, however often it was tried.
    let log = host.log();
    assert!(log.matches("modules run").count() <= 2, "{log}");
    assert_eq!(host.stop().0, Some(0));
}

#[test]
fn reconnect_waits_for_a_server_that_was_stopped() {
    let mut world = World::new(&[("handlers/copy.ts", COPY)]);
    let host = world.host("host.log");
    let serve = |world: &World| world.place.serve(&["--listen", &world.addr, "--sync", "none"]);
    // On a busy machine, a Host may take longer to end than a stopping server waits.
    let in_time = (1..=3).any(|round| {
        world.place.await_frames("xs.handler.copy.active", round);
        let ends = world.place.frames("xs.host.end").len();
        assert!(world.server.take().unwrap().stop().success(), "{}", world.place.log());
        if world.place.log().matches("did not stop in time").count() == round {
            world.server = Some(serve(&world));
            return false;
        }
        let ended = world.place.frames("xs.host.end").len() - ends;
        assert_eq!(ended, 1, "the store outlives the connection");
        true
    });
    assert!(in_time, "{}", world.place.log());
    host.await_log("waiting for the server");
    world.server = Some(serve(&world));
    world.place.ok(&["append", "in", "x"]);
    world.place.await_frames("copy.out", 1);
    assert!(!host.log().contains("ERROR"), "{}", host.log());
    assert_eq!(host.stop().0, Some(0));
}

/// A restarted server knows from the log that modules run elsewhere.
#[test]
fn a_call_waits_for_the_host_over_a_restart_of_the_server() {
    let mut world = World::new(&[("commands/echo.ts", ECHO)]);
    let host = world.host("host.log");
    world.await_answer("before");
    assert!(world.server.take().unwrap().stop().success(), "{}", world.place.log());
    assert_eq!(host.stop().0, Some(0));
    world.server = Some(world.place.serve(&["--listen", &world.addr, "--sync", "none"]));
    let mut call = world.place.command(&["call", "echo", "word=patient"]);
    let call = call.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    world.place.await_frames("echo.call", 2);
    let host = world.host("again.log");
    let answer = Run::from(output_within(call, PATIENCE));
    assert_eq!(
        (answer.code, &answer.json()[0]["word"]),
        (0, &Value::from("patient")),
        "{}",
        answer.err
    );
    assert_eq!(host.stop().0, Some(0));
}

#[test]
fn a_second_host_waits_and_takes_over() {
    let world = World::new(&[("commands/echo.ts", ECHO)]);
    let first = world.host("first.log");
    world.await_answer("first");
    let second = world.host("second.log");
    second.await_log("another Host runs the modules");
    assert!(second.processes().is_empty(), "nothing runs twice");
    assert_eq!(world.place.frames("xs.command.echo.active").len(), 1);
    first.kill();
    world.place.await_frames("xs.command.echo.active", 2);
    world.await_answer("second");
    let came = world.place.frames("xs.host.start");
    assert!(came.len() == 2 && came[0]["meta"] != came[1]["meta"], "{came:?}");
    assert_eq!(second.log().matches("another Host").count(), 1, "{}", second.log());
    assert_eq!(second.stop().0, Some(0));
}

#[test]
fn a_host_refused_for_good_exits() {
    let world = World::new(&[("commands/echo.ts", ECHO)]);
    let wrong = format!("xst_{}", "a".repeat(43));
    let other = token(&world.place, "other", "append");
    for (token, says) in [
        (Some(wrong.as_str()), "not known here"),
        (None, "a token is needed"),
        (Some(other.as_str()), "--role host"),
    ] {
        let run = world.refused(&world.addr, token);
        assert_eq!(run.code, 7, "{}", run.err);
        assert!(run.err.contains(says) && run.err.lines().count() == 1, "{}", run.err);
    }
    let far = world.refused("192.0.2.1:1", Some(&world.token));
    assert_eq!((far.code, far.err.contains("without TLS")), (5, true), "{}", far.err);
    let store = world.place.store();
    let none = world.place.xs(&["host", "nowhere", "-a", text(&store)]);
    assert_eq!((none.code, none.err.contains("nowhere")), (2, true), "{}", none.err);
}

#[test]
fn a_token_that_is_revoked_ends_the_host() {
    let world = World::new(&[("commands/echo.ts", ECHO)]);
    let mut host = world.host("host.log");
    world.await_answer("first");
    world.place.ok(&["token", "revoke", "modules"]);
    let code = wait_within(&mut host.child, PATIENCE).code();
    let log = host.log();
    assert_eq!((code, log.contains("not known here")), (Some(7), true), "{log}");
}

#[test]
fn a_server_that_runs_modules_itself_takes_no_host() {
    let place = Sandbox::new();
    place.write("modules/commands/echo.ts", ECHO);
    let _server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.command.echo.active", 1);
    let run = place.xs(&["host", "modules", "--log-level", "off"]);
    assert_eq!((run.code, run.err.contains("runs the modules of this store itself")), (7, true));
    assert_eq!(place.frames("xs.command.echo.active").len(), 1);
}

#[test]
fn a_host_waits_for_its_server_and_can_be_stopped() {
    let place = Sandbox::new();
    place.write("modules/commands/echo.ts", ECHO);
    let world = World { place, server: None, addr: String::new(), token: String::new() };
    let store = world.place.store();
    let host = world.host_at("host.log", text(&store), None);
    host.await_log("no server at");
    assert!(!store.exists(), "it makes no store");
    let waiting = world.host_at("other.log", text(&store), None);
    waiting.await_log("no server at");
    let (code, log) = waiting.stop();
    assert_eq!((code, log.matches("no server at").count()), (Some(0), 1), "{log}");
    let _server = world.place.serve(&["--sync", "none"]);
    world.place.await_frames("xs.command.echo.active", 1);
    assert_eq!(world.call("late").code, 0);
    assert_eq!(host.stop().0, Some(0));
}

/// The protocol's tests cover the restrictions on a Host of one module; this one covers that it is
/// such a Host.
#[test]
fn a_module_apart_has_a_process_and_a_connection_of_its_own() {
    let world = World::new(&[("commands/echo.ts", ECHO), ("handlers/copy.ts", COPY)]);
    let config = "[modules.echo]\nisolation = \"process\"\n";
    world.place.write("modules/xs.toml", config);
    let host = world.host("host.log");
    let active = world.place.await_frames("xs.command.echo.active", 1);
    world.place.await_frames("xs.handler.copy.active", 1);
    assert!(active[0]["meta"]["process"]["limits"].is_string(), "{}", active[0]);
    assert_eq!(world.call("apart").json()[0]["word"], "apart");
    let words = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let processes: Vec<String> = host.processes().iter().map(words).collect();
    assert_eq!(processes.len(), 2);
    assert!(processes.iter().any(|words| words.contains("--only\0echo\0")), "{processes:?}");
    assert_eq!(world.place.frames("xs.host.start").len(), 1, "it is one Host");
    // It is killed; the other continues, and it is restarted.
    let alone = host.processes().into_iter().find(|pid| words(pid).contains("--only")).unwrap();
    crate::support::signal_pid(alone, Signal::KILL);
    world.place.await_frames("xs.command.echo.active", 2);
    world.await_answer("again");
    assert_eq!(world.place.frames("xs.handler.copy.active").len(), 1);
    assert_eq!(host.stop().0, Some(0));
}

/// Reads what its definition asks for.
const PEEK: &str = "import { command } from \"xs\";\nexport default command({ args: { path: \"string\" },\n\
    permissions: { read: [DIR], env: [\"XS_TOKEN\"] },\n\
    run: async (call, ctx) => ({ text: await ctx.fs.text(call.args.path), env: ctx.env }) });\n";

#[test]
fn modules_run_over_tls_and_cannot_read_the_token() {
    let place = Sandbox::new();
    place.ok(&["append", "made", "x"]);
    let file = place.write("shown/token", &token(&place, "modules", "host"));
    let other = place.write("shown/other", "other");
    let dir = format!("{:?}", text(file.parent().unwrap()));
    place.write("modules/commands/peek.ts", &PEEK.replace("DIR", &dir));
    let [ca, cert, key] = certify(&place, "127.0.0.1");
    let _server = serve_tls(&place, &cert, &key);
    let port = listening(&place).rsplit_once(':').unwrap().1.to_owned();
    let addr = format!("xss://127.0.0.1:{port}");
    let untrusted = place.xs(&["host", "modules", "-a", &addr, "--log-level", "off"]);
    assert_eq!(
        (untrusted.code, untrusted.err.contains("--tls-ca")),
        (5, true),
        "{}",
        untrusted.err
    );
    let args = ["host", "modules", "-a", &addr, "--token-file", text(&file), "--tls-ca", &ca];
    let host = Host::start(&mut place.command(&args), place.path("host.log"));
    place.await_frames("xs.command.peek.active", 1);
    let peek = |path: &str| place.xs(&["call", "peek", &format!("path={path}")]);
    let seen = peek(text(&other));
    assert_eq!((seen.code, seen.json()[0]["text"].as_str()), (0, Some("other")), "{}", seen.err);
    let shut = peek(text(&file));
    assert_eq!((shut.code, shut.text().contains("xst_")), (1, false), "{}", shut.err);
    assert_eq!(host.stop().0, Some(0));
}

#[test]
fn a_second_signal_ends_a_subcommand_at_once() {
    let slow = "export default { async *run(ctx) {\n\
           try { yield { on: true };\n\
             await new Promise((_, end) => ctx.signal.addEventListener('abort', end)); }\n\
           finally { await new Promise((done) => setTimeout(done, 4500)); }\n\
         } };";
    let world = World::new(&[("generators/slow.ts", slow)]);
    let mut host = world.host("host.log");
    world.place.await_frames("slow.recv", 1);
    let processes = host.processes();
    let status = eventually(|| {
        signal(&host.child, Signal::TERM);
        host.child.try_wait().unwrap()
    });
    let log = host.log();
    assert_eq!((status.code(), log.contains("second signal")), (Some(130), true), "{log}");
    eventually(|| processes.iter().all(|pid| !is_running(*pid)).then_some(()));
}
