//! `xs call`: arguments in, values out as they come, errors as exit codes, Ctrl-C as a cancel.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;
use xs_engine::Topic;
use xs_protocol::CallRequest;

use crate::client::{connect, runtime};
use crate::support::{PATIENCE, Run, Sandbox, Server, signal, signal_pid, wait_within};

const ECHO: &str = r#"
import { command } from "xs";
export default command({
  about: "Says it back.", args: { n: "number", text: "string?" }, timeout: "5s", concurrency: 3,
  async run(call) { return { n: call.args.n, text: call.args.text, body: await call.text() }; },
});
"#;

const BYTES: &str = r#"
import { command } from "xs";
export default command({ async *run() { yield new Uint8Array([255, 0, 10]); yield "text"; } });
"#;

const SLOW: &str = r#"
import { command } from "xs";
export default command({ async *run(call, ctx) {
  yield "begun";
  while (!ctx.signal.aborted) await new Promise((done) => setTimeout(done, 20));
} });
"#;

fn served() -> (Sandbox, Server) {
    let place = Sandbox::new();
    place.write("modules/commands/echo.ts", ECHO);
    place.write("modules/commands/bytes.ts", BYTES);
    place.write("modules/commands/slow.ts", SLOW);
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("xs.command.echo.active", 1);
    place.await_frames("xs.command.bytes.active", 1);
    place.await_frames("xs.command.slow.active", 1);
    (place, server)
}

#[test]
fn arguments_and_body_reach_the_command_and_values_come_back() {
    let (place, server) = served();
    let echo = place.xs_with(&["call", "echo", "n:=3", "text=a=b", "-"], b"input");
    assert_eq!(echo.code, 0, "{}", echo.err);
    assert_eq!(echo.text(), "{\"n\":3,\"text\":\"a=b\",\"body\":\"input\"}\n");
    assert_eq!(place.ok(&["call", "bytes"]).out, b"\xff\x00\ntext\n");
    let wrong = place.xs(&["call", "echo", "n=three"]);
    assert_eq!((wrong.code, wrong.text().as_str()), (2, ""), "{}", wrong.err);
    assert!(wrong.err.contains("echo: argument \"n\" is a string"), "{}", wrong.err);
    assert_eq!(place.frames("echo.error")[0]["meta"]["code"], "args");
    assert!(server.stop().success());
}

#[test]
fn calls_are_kept_as_long_as_the_operator_says() {
    let (place, server) = served();
    place.ok(&["call", "bytes"]);
    place.write("modules/xs.toml", "[modules.bytes]\ncalls_ttl = \"time:30d\"\n");
    place.await_frames("xs.command.bytes.active", 2);
    place.ok(&["call", "bytes"]);
    for topic in ["bytes.call", "bytes.complete"] {
        let ttls: Vec<_> = place.frames(topic).iter().map(|frame| frame["ttl"].clone()).collect();
        assert_eq!(ttls, [json!("forever"), json!("time:2592000000")], "{topic}");
    }
    assert!(server.stop().success());
}

/// The input may belong to a loop, or be that of a script that never ends: it is not read, and a
/// notice says so.
#[test]
fn call_reads_standard_input_only_for_minus() {
    let (place, server) = served();
    let text = place.write("input", "for the loop");
    for (args, is_told) in [
        (&["call", "bytes"][..], true),
        (&["call", "echo", "n:=1"], false),
        (&["call", "echo", "--args", "{\"n\":1}"], false),
        (&["call", "bytes", "body"], false),
        (&["call", "bytes", "-"], false),
    ] {
        let mut input = File::open(&text).unwrap();
        let mut command = place.command(args);
        let run = Run::from(command.stdin(input.try_clone().unwrap()).output().unwrap());
        let told = run.err.matches("is ignored; to send it as the body: xs call bytes -").count();
        assert_eq!((run.code, told), (0, usize::from(is_told)), "{args:?} {}", run.err);
        let is_left = input.stream_position().unwrap() == 0;
        assert_eq!(is_left, !args.contains(&"-"), "{args:?}");
    }
    // An open pipe with no data in it.
    let (read, _write) = io::pipe().unwrap();
    let mut command = place.command(&["call", "bytes"]);
    let run = Run::from(command.stdin(read).output().unwrap());
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(server.stop().success());
}

/// A call continues the chain that led to it, so a loop of calls ends like any other.
#[test]
fn a_loop_of_calls_is_cut() {
    let place = Sandbox::new();
    place.write(
        "modules/handlers/ping.ts",
        "export default { topics: 'ping', async run(frame, ctx) { \
           for await (const _ of ctx.call('pong')); } };",
    );
    place.write(
        "modules/commands/pong.ts",
        "export default { async run(call, ctx) { \
           await ctx.append('ping', { json: call.cause.hops }); } };",
    );
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("xs.command.pong.active", 1);
    place.await_frames("xs.handler.ping.active", 1);
    place.ok(&["append", "ping", "-n"]);
    let cut = place.await_frames("xs.handler.ping.log", 1);
    assert_eq!(cut[0]["meta"]["fields"]["code"], "hops", "{cut:?}");
    let frames = place.frames("ping");
    let hops = frames.iter().map(|frame| frame["origin"]["hops"].as_u64());
    let told = std::iter::once(None).chain((1..=16).map(|n| Some(2 * n)));
    assert!(hops.eq(told), "{frames:?}");
    assert!(server.stop().success());
}

/// Frames that other modules make from a call are not its results, and do not end it.
#[test]
fn a_handler_that_reads_calls_does_not_answer_them() {
    let place = Sandbox::new();
    place.write(
        "modules/handlers/spy.ts",
        "export default { topics: 'patient.call', run(frame, ctx) { \
           ctx.append('patient.complete', {}); return { spied: true }; } };",
    );
    place.write(
        "modules/commands/patient.ts",
        "export default { async *run(call, ctx) { \
           for await (const frame of ctx.read({ topics: 'spy.out', follow: true })) break; \
           yield { seen: true }; } };",
    );
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("xs.command.patient.active", 1);
    place.await_frames("xs.handler.spy.active", 1);
    let topics = runtime().block_on(async {
        let client = connect(&place.store()).await;
        let request = CallRequest::new(Topic::parse("patient").unwrap());
        let (mut call, mut topics) = (client.call(&request).await.unwrap(), Vec::new());
        while let Some(result) = tokio::time::timeout(PATIENCE, call.next()).await.unwrap() {
            topics.push(result.unwrap().frame.topic().to_owned());
        }
        topics
    });
    assert_eq!(topics, ["patient.recv", "patient.complete"]);
    assert_eq!(place.frames("patient.complete").len(), 2);
    assert!(server.stop().success());
}

/// Nor are the calls that the command itself makes.
#[test]
fn a_command_that_calls_another_answers_with_its_own_results() {
    let (place, server) = served();
    place.write(
        "modules/commands/outer.ts",
        "export default { async *run(call, ctx) { \
           for await (const frame of ctx.call('echo', { args: { n: 1 } })) yield await frame.meta; \
           await ctx.append('noted', { meta: { by: 'outer' } }); } };",
    );
    place.await_frames("xs.command.outer.active", 1);
    let topics = runtime().block_on(async {
        let client = connect(&place.store()).await;
        let request = CallRequest::new(Topic::parse("outer").unwrap());
        let (mut call, mut topics) = (client.call(&request).await.unwrap(), Vec::new());
        while let Some(result) = tokio::time::timeout(PATIENCE, call.next()).await.unwrap() {
            topics.push(result.unwrap().frame.topic().to_owned());
        }
        topics
    });
    assert_eq!(topics, ["outer.recv", "noted", "outer.complete"]);
    assert_eq!(place.ok(&["call", "outer"]).text().lines().count(), 1);
    assert_eq!(place.frames("echo.call").len(), 2);
    assert!(server.stop().success());
}

#[test]
fn a_deadline_ends_a_call_with_its_own_exit_code() {
    let (place, server) = served();
    // Repeated with longer timeouts on a slow machine, until the call begins in time.
    let has_begun = ["3s", "15s", "75s"].into_iter().any(|time| {
        let slow = place.xs(&["call", "slow", "--timeout", time]);
        assert_eq!(slow.code, 6, "{}", slow.err);
        slow.text() == "begun\n"
    });
    assert!(has_begun, "{}", place.log());
    assert!(server.stop().success());
}

#[test]
fn an_interrupted_call_is_cancelled() {
    let (place, server) = served();
    let mut call = place.command(&["call", "slow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(call.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n", "a value is printed as it comes");
    signal(&call, Signal::INT);
    assert_eq!(wait_within(&mut call, PATIENCE).code(), Some(130));
    let error = &place.await_frames("slow.error", 1)[0];
    assert_eq!(error["meta"]["code"], "cancelled", "{error}");
    assert!(server.stop().success());
}

/// A caller that gave up does not want the effects of the call, whenever it could begin.
#[test]
fn a_call_cancelled_while_the_host_is_away_never_runs() {
    let (place, server) = served();
    let host = server.children()[0];
    signal_pid(host, Signal::STOP);
    let mut call = place.command(&["call", "slow"]).stdout(Stdio::null()).spawn().unwrap();
    place.await_frames("slow.call", 1);
    signal(&call, Signal::INT);
    assert_eq!(wait_within(&mut call, PATIENCE).code(), Some(130));
    let cancel = &place.await_frames("xs.command.slow.cancel", 1)[0];
    assert!(cancel["ttl"].as_str().unwrap().starts_with("time:"), "{cancel}");
    signal_pid(host, Signal::KILL);
    let error = &place.await_frames("slow.error", 1)[0];
    assert_eq!(error["meta"]["code"], "cancelled", "{error}");
    assert!(place.frames("slow.recv").is_empty());
    assert!(server.stop().success());
}

#[test]
fn call_help_prints_the_arguments_of_a_command() {
    let (place, server) = served();
    let told = place.ok(&["call", "echo", "--help"]).json().remove(0);
    assert_eq!(told["about"], "Says it back.");
    assert_eq!(told["usage"], "xs call echo n=NUMBER [text=TEXT] [BODY|-]");
    assert_eq!(told["args"], json!({ "n": "number", "text": "string?" }));
    assert_eq!((&told["timeout_ms"], &told["concurrency"]), (&json!(5_000), &json!(3)));
    assert_eq!((&told["state"], &told["file"]), (&json!("active"), &json!("commands/echo.ts")));
    let any = place.ok(&["call", "-h", "bytes"]).json().remove(0);
    assert_eq!(
        (&any["usage"], &any["args"]),
        (&json!("xs call bytes [KEY=TEXT|KEY:=JSON]... [BODY|-]"), &json!(null))
    );
    assert_eq!(place.xs(&["call", "nothing", "--help"]).code, 3);
    assert!(server.stop().success());
    // The log has the description, so no server is needed.
    let told = place.ok(&["call", "echo", "--help"]).json().remove(0);
    assert_eq!(told["state"], "waiting for a server");
    let usage = place.ok(&["call", "--help"]).text();
    assert!(
        usage.contains("Usage: xs call") && usage.contains("--timeout") && usage.contains("--addr"),
        "{usage}"
    );
    assert_eq!(place.xs(&["call"]).code, 2);
}

/// Nobody would answer it before the command is mended.
#[test]
fn a_command_that_is_down_takes_no_calls() {
    let place = Sandbox::new();
    place.write(
        "modules/commands/runs.ts",
        "export default { permissions: { run: ['true'] }, run: () => ({ ok: true }) };",
    );
    let server = place.serve(&["--modules", "modules", "--allow-run"]);
    place.await_frames("xs.command.runs.active", 1);
    place.ok(&["call", "runs"]);
    assert!(server.stop().success());
    let server = place.serve(&["--modules", "modules"]);
    let invalid = &place.await_frames("xs.command.runs.invalid", 1)[0];
    assert!(invalid["meta"]["down"].is_string(), "{invalid}");
    let call = place.xs(&["call", "runs"]);
    assert_eq!((call.code, call.text().as_str()), (3, ""), "{}", call.err);
    let told = "command runs is not running; xs modules show runs says why";
    assert!(call.err.contains(told), "{}", call.err);
    assert_eq!(place.frames("runs.call").len(), 1, "the refused call is not in the log");
    assert!(server.stop().success());
    let server = place.serve(&["--modules", "modules", "--allow-run"]);
    place.await_frames("xs.command.runs.active", 2);
    place.ok(&["call", "runs"]);
    assert!(server.stop().success());
}
