//! `xs modules`: what an operator sees of the modules, and can do about them.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Sandbox, Server, eventually, signal_pid};

const SUM: &str = r#"
import { handler, Park } from "xs";
export default handler({
  about: "sums up", topics: "in", state: { sum: 0 },
  run(frame, ctx) {
    if (frame.meta.n === 0) throw new Park("nothing to add");
    if (frame.meta.n < 0) throw new RangeError("negative");
    console.log("adding", frame.meta.n);
    ctx.state.sum += frame.meta.n;
    return { sum: ctx.state.sum };
  },
});
"#;

fn served() -> (Sandbox, Server) {
    let place = Sandbox::new();
    place.write("modules/handlers/sum.ts", SUM);
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.handler.sum.active", 1);
    (place, server)
}

fn add(place: &Sandbox, n: i64) {
    place.ok(&["append", "in", "-n", "--meta", &json!({ "n": n }).to_string()]);
}

fn state_of(place: &Sandbox, name: &str) -> Value {
    let listed = place.ok(&["modules", "list", "--all"]).json();
    listed.iter().find(|module| module["name"] == name).unwrap()["state"].clone()
}

#[test]
fn a_module_is_stopped_started_and_reset() {
    let (place, server) = served();
    add(&place, 3);
    place.await_frames("sum.out", 1);
    assert_eq!(place.ok(&["modules", "state", "sum"]).text(), "{\"sum\":3}\n");
    add(&place, 0);
    add(&place, 2);
    place.await_frames("sum.out", 2);
    let at = |n: usize| place.frames("in")[n]["id"].as_str().unwrap().to_owned();
    let then = |n: usize| place.ok(&["modules", "state", "sum", "--at", &at(n)]).text();
    assert_eq!([then(0), then(1), then(2)], ["3", "3", "5"].map(|n| format!("{{\"sum\":{n}}}\n")));
    let offset = place.frames("in")[1]["offset"].to_string();
    assert_eq!(place.ok(&["modules", "state", "sum", "--at", &offset]).text(), then(1));
    assert_eq!(place.xs(&["modules", "state", "sum", "--at", "999999"]).code, 3);
    let stopped = place.ok(&["modules", "stop", "sum"]).json();
    assert_eq!(stopped[0]["event"], "fin.term");
    assert_eq!(state_of(&place, "sum"), "stopped");
    let again = json!({ "name": "sum", "kind": "handler", "event": null, "state": "stopped" });
    assert_eq!(place.ok(&["modules", "stop", "sum"]).json(), [again]);
    add(&place, 4);
    let started = place.ok(&["modules", "start", "sum"]).json();
    assert_eq!(started[0]["event"], "active");
    assert_eq!(place.await_frames("sum.out", 3)[2]["meta"]["sum"], 9);
    // To a restarted server it is neither stopped nor new.
    assert!(server.stop().success());
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.handler.sum.active", 3);
    assert_eq!(place.frames("xs.handler.sum.create").len(), 2);
    let refused = place.xs(&["modules", "reset", "sum"]);
    assert_eq!((refused.code, refused.err.contains("--yes")), (2, true), "{}", refused.err);
    let dry = place.ok(&["modules", "reset", "sum", "--dry-run"]).json().remove(0);
    assert_eq!((&dry["name"], &dry["cursors"]), (&json!("sum"), &json!(1)), "{dry}");
    place.ok(&["modules", "reset", "sum", "--yes"]);
    add(&place, 5);
    assert_eq!(place.await_frames("sum.out", 4)[3]["meta"]["sum"], 5);
    // Its state since the reset, and its state before that.
    assert_eq!([then(4), then(2)], ["5", "5"].map(|n| format!("{{\"sum\":{n}}}\n")));
    add(&place, 7);
    place.await_frames("sum.out", 5);
    assert_eq!([then(5), then(3)], ["12", "9"].map(|n| format!("{{\"sum\":{n}}}\n")));
    assert!(server.stop().success());
}

#[test]
fn a_deleted_module_is_not_shown_as_stopped() {
    let (place, server) = served();
    fs::remove_file(place.path("modules/handlers/sum.ts")).unwrap();
    place.await_frames("xs.handler.sum.fin.term", 1);
    assert_eq!(state_of(&place, "sum"), "deleted");
    assert!(place.ok(&["modules", "list"]).json().is_empty());
    let shown = place.ok(&["modules", "show", "sum"]).json().remove(0);
    assert_eq!(shown["help"], "put its file back");
    place.ok(&["modules", "stop", "sum"]);
    assert_eq!(state_of(&place, "sum"), "deleted");
    place.ok(&["append", "xs.handler.sum.term", "-n"]);
    place.await_frames("xs.handler.sum.fin.term", 2);
    assert_eq!(state_of(&place, "sum"), "deleted");
    place.write("modules/handlers/sum.ts", SUM);
    place.await_frames("xs.handler.sum.active", 2);
    assert_eq!(state_of(&place, "sum"), "active");
    assert!(server.stop().success());
}

/// Between two Hosts, and between two runs of a server.
#[test]
fn modules_stop_works_without_a_running_host() {
    let (place, server) = served();
    for host in server.children() {
        signal_pid(host, Signal::KILL);
    }
    let stopped = place.ok(&["modules", "stop", "sum"]).json();
    assert_eq!(stopped[0]["event"], "fin.term");
    assert_eq!(place.ok(&["modules", "start", "sum"]).json()[0]["event"], "active");
    assert!(server.stop().success());
    let stopped = place.ok(&["modules", "stop", "sum"]).json();
    assert_eq!(stopped[0]["state"], "waiting for a server");
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.handler.sum.fin.term", 2);
    assert_eq!(state_of(&place, "sum"), "stopped");
    assert!(server.stop().success());
    assert_eq!(place.frames("xs.handler.sum.fin.term").len(), 2);
}

#[test]
fn failed_modules_are_shown_and_set_the_exit_code() {
    let (place, server) = served();
    assert_eq!(place.xs(&["modules", "list", "--check"]).code, 0);
    add(&place, 1);
    add(&place, -1);
    place.await_frames("xs.handler.sum.fin.error", 1);
    assert_eq!(place.xs(&["modules", "list", "--check"]).code, 1);
    let shown = place.ok(&["modules", "show", "sum"]).json().remove(0);
    assert_eq!((&shown["state"], &shown["about"]), (&json!("failed"), &json!("sums up")));
    assert_eq!((&shown["topics"], &shown["lag"]), (&json!(["in"]), &json!(1)));
    assert_eq!(shown["error"]["line"], 7);
    assert!(shown["error"]["code_frame"].as_str().unwrap().contains(">    7 |"), "{shown}");
    assert_eq!(shown["error"]["frame"], place.frames("in")[1]["id"]);
    assert!(shown["help"].as_str().unwrap().contains("xs modules start sum"), "{shown}");
    let logs = place.ok(&["modules", "logs", "sum"]).json();
    assert_eq!(logs[0]["meta"]["message"], "adding 1");
    // When it is started again, it meets the same frame.
    let again = place.xs(&["modules", "start", "sum"]);
    assert_eq!(again.code, 0, "{}", again.err);
    place.await_frames("xs.handler.sum.fin.error", 2);
    assert!(server.stop().success());
}

/// The failure is reported where an operator looks: once in the server's log, in the module's, and
/// still after it runs again.
#[test]
fn a_generator_that_fails_is_seen_by_the_operator() {
    let place = Sandbox::new();
    place.write(
        "modules/generators/late.ts",
        "export default { async *run(ctx) {
           if (await ctx.last('ready') === undefined) throw new Error('not ready');
           yield 'up';
           await new Promise(() => {});
         } };",
    );
    let server = place.serve(&["--modules", "modules", "--log", "json"]);
    let show = || place.ok(&["modules", "show", "late"]).json().remove(0);
    eventually(|| {
        (place.await_frames("xs.generator.late.retrying", 1)[0]["meta"]["tries"] == 2).then_some(())
    });
    let logs = place.ok(&["modules", "logs", "late"]).json();
    assert_eq!(logs.len(), 1, "{logs:?}");
    assert_eq!(logs[0]["meta"]["message"], "Error: not ready");
    place.ok(&["append", "ready", "-n"]);
    eventually(|| (show()["state"] == "active").then_some(()));
    let shown = show();
    assert_eq!((&shown["error"], &shown["help"]), (&Value::Null, &Value::Null), "{shown}");
    assert_eq!(shown["last_error"]["message"], "Error: not ready");
    assert_eq!(shown["last_error"]["line"], 2);
    assert!(shown["last_error"]["time"].is_string(), "{shown}");
    assert!(server.stop().success());
    let log = place.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let told: Vec<_> = lines.filter(|line| line["message"] == "failed and will restart").collect();
    assert_eq!(told.len(), 1, "{log}");
    assert_eq!(
        (&told[0]["level"], &told[0]["processor"]),
        (&json!("WARN"), &json!("generator late"))
    );
    assert_eq!(told[0]["error"], "Error: not ready");
    assert!(told[0]["place"].as_str().unwrap().starts_with("generators/late.ts:2:"), "{log}");
}

/// What is shown is in effect, and the advice helps.
#[test]
fn modules_show_suggests_similar_names() {
    let place = Sandbox::new();
    place.write(
        "modules/commands/count.ts",
        "export default { config: { from: 1, step: 1 }, run: (call, ctx) => ctx.config };",
    );
    place.write("modules/xs.toml", "[modules.count.config]\nstep = 2\n");
    place.write(
        "modules/commands/runs.ts",
        "export default { permissions: { run: ['ls'] }, run() {} };",
    );
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.command.count.active", 1);
    place.await_frames("xs.command.runs.invalid", 1);
    let show = |name: &str| place.ok(&["modules", "show", name]).json().remove(0);
    assert_eq!(show("count")["config"], json!({ "from": 1, "step": 2 }));
    assert_eq!(place.ok(&["call", "count"]).json(), [show("count")["config"].clone()]);
    let runs = show("runs");
    assert!(runs["error"]["message"].as_str().unwrap().contains("allow = [\"run\"]"), "{runs}");
    assert_eq!(runs["help"], Value::Null, "its file may be as it should be");
    for (words, told) in [
        (&["call", "cuont"][..], "no command cuont; did you mean count?"),
        (&["modules", "show", "cuont"], "no module cuont; did you mean count?"),
        (&["modules", "show", "nosuch"], "no module nosuch; xs modules list shows"),
        (&["call", "nosuch"], "no command nosuch; xs modules list shows"),
        (&["call", "runs"], "command runs is not running"),
    ] {
        let run = place.xs(words);
        assert_eq!((run.code, run.err.contains(told)), (3, true), "{words:?}: {}", run.err);
    }
    assert!(server.stop().success());
}

/// An older version that runs again after a restart of the server does not fix the newest.
#[test]
fn an_invalid_newest_version_is_reported_until_fixed() {
    let place = Sandbox::new();
    let source = "export default { topics: 'in', run: (frame) => ({ n: 1 }) };";
    place.write("modules/handlers/h.ts", source);
    let serve = || place.serve(&["--modules", "modules", "--sync", "none"]);
    let server = serve();
    place.await_frames("xs.handler.h.active", 1);
    place.write("modules/handlers/h.ts", "export default {");
    place.await_frames("xs.handler.h.invalid", 1);
    let check = |state: &str, code: i32| {
        let list = place.xs(&["modules", "list", "--check"]);
        assert_eq!((list.code, &list.json()[0]["state"]), (code, &state.into()), "{}", list.text());
        let shown = &place.ok(&["modules", "show", "h"]).json()[0];
        assert_eq!(shown["error"].is_object(), code == 1, "{shown}");
    };
    check("active, newest invalid", 1);
    assert!(server.stop().success());
    check("waiting for a server", 1);
    let server = serve();
    place.await_frames("xs.handler.h.active", 2);
    check("active, newest invalid", 1);
    place.write("modules/handlers/h.ts", &source.replace('1', "2"));
    place.await_frames("xs.handler.h.active", 3);
    check("active", 0);
    // A deleted module is not a failure.
    place.write("modules/handlers/h.ts", "export default {");
    place.await_frames("xs.handler.h.invalid", 2);
    std::fs::remove_file(place.path("modules/handlers/h.ts")).unwrap();
    place.await_frames("xs.handler.h.fin.term", 1);
    assert_eq!(place.xs(&["modules", "list", "--check"]).code, 0);
    assert!(server.stop().success());
}

#[test]
fn parked_inputs_are_retried_or_discarded() {
    let (place, server) = served();
    for n in [0, 1, 0, 0] {
        add(&place, n);
    }
    place.await_frames("sum.parked", 3);
    let parked = place.ok(&["modules", "parked", "sum"]).json();
    let inputs = place.frames("in");
    let frames: Vec<_> = parked.iter().map(|record| record["frame"].clone()).collect();
    assert_eq!(frames, [0, 2, 3].map(|at: usize| inputs[at]["id"].clone()));
    assert!(parked[0]["error"].as_str().unwrap().contains("nothing to add"), "{parked:?}");
    assert_eq!((&parked[0]["topic"], &parked[0]["attempts"]), (&json!("in"), &json!(1)));
    place.write("modules/handlers/sum.ts", &SUM.replace("frame.meta.n === 0", "false"));
    place.await_frames("xs.handler.sum.active", 2);
    let id = parked[1]["id"].as_str().unwrap();
    let one = place.ok(&["modules", "unpark", "sum", id]).json().remove(0);
    assert_eq!(one, json!({ "name": "sum", "kind": "handler", "unparked": 1, "gone": 0 }));
    assert_eq!(place.await_frames("sum.out", 2)[1]["meta"]["sum"], 1);
    assert_eq!(place.xs(&["modules", "unpark", "sum", id]).code, 3, "it is not parked any more");
    let input = inputs[0]["id"].as_str().unwrap();
    let gone = place.ok(&["modules", "discard", "sum", input, "--yes"]).json().remove(0);
    assert_eq!(gone, json!({ "name": "sum", "kind": "handler", "discarded": 1 }));
    assert_eq!(place.ok(&["modules", "show", "sum"]).json()[0]["parked"], 1);
    place.ok(&["modules", "unpark", "sum"]);
    place.await_frames("sum.out", 3);
    assert_eq!(place.ok(&["modules", "parked", "sum"]).text(), "");
    assert!(server.stop().success());
    // Each is also a line of the server's log.
    let log = place.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("an input was parked")).collect();
    assert_eq!(lines.len(), 3, "{log}");
    for said in ["WARN", "processor=handler sum", "topic=\"in\"", "attempt=1", "nothing to add"] {
        assert!(lines[0].contains(said), "{said}: {}", lines[0]);
    }
}

/// Nor are lines that the engine prints about a terminated module, past the log.
#[test]
fn a_log_of_json_has_no_other_line() {
    let place = Sandbox::new();
    place.write("modules/generators/sync.ts", "for (;;); export default { async *run() {} };");
    place.write("modules/generators/late.ts", "await 0; for (;;); export default { run() {} };");
    place.write(
        "modules/handlers/again.ts",
        "export default { topics: 'in', onError: { retry: 2, backoff: 1, then: 'park' },
           run(frame) { if (frame.meta.n === 0) throw new Error('not yet'); return 'done'; } };",
    );
    let server = place.serve(&["--modules", "modules", "--log", "json"]);
    place.await_frames("xs.generator.sync.invalid", 1);
    place.await_frames("xs.generator.late.invalid", 1);
    place.await_frames("xs.handler.again.active", 1);
    add(&place, 0);
    add(&place, 1);
    place.await_frames("again.out", 1);
    assert!(server.stop().success());
    let log = place.log();
    let lines: Vec<_> = log.lines().map(serde_json::from_str::<Value>).collect();
    assert!(lines.len() > 2 && lines.iter().all(Result::is_ok), "{log}");
    assert!(!log.contains("module evaluation pending"), "{log}");
    // The first failure of an input is logged, and its outcome.
    let about = |what: &str| {
        let about = lines.iter().flatten().filter(|line| line["message"] == what);
        about.map(|line| (line["attempt"].clone(), line["due"].is_string())).collect::<Vec<_>>()
    };
    assert_eq!(about("an input failed and will be retried"), [(json!(1), true)], "{log}");
    assert_eq!(about("an input was parked"), [(json!(3), false)], "{log}");
}

/// More records than fit in one batch, and more batches than conflicts are tolerated.
#[test]
fn unpark_and_discard_take_all_or_the_named_inputs() {
    let (place, server) = served();
    let append = |topic: &str, lines: &str| {
        let run = place.xs_with(&["append", topic, "--lines", "--json"], lines.as_bytes());
        assert_eq!(run.code, 0, "{}", run.err);
    };
    add(&place, 0);
    let record = &place.await_frames("sum.parked", 1)[0]["meta"];
    assert!(server.stop().success());
    let record = format!("{record}\n");
    append("sum.parked", &record.repeat(599));
    let parked = place.ok(&["modules", "parked", "sum"]).json();
    let ids: Vec<_> = parked.iter().map(|record| record["id"].as_str().unwrap()).collect();
    let line = [&["modules", "unpark", "sum"][..], &ids].concat();
    let told = place.ok(&line).json().remove(0);
    let expected = json!({ "name": "sum", "kind": "handler", "unparked": 600, "gone": 0 });
    assert_eq!(told, expected);
    assert_eq!(place.ok(&["modules", "parked", "sum"]).text(), "");
    append("sum.parked", &record.repeat(17 * 512));
    let told = place.ok(&["modules", "discard", "sum", "--yes"]).json().remove(0);
    assert_eq!(told, json!({ "name": "sum", "kind": "handler", "discarded": 17 * 512 }));
    assert_eq!(place.ok(&["modules", "parked", "sum"]).text(), "");
}

#[test]
fn a_module_that_retries_may_have_an_invalid_version_too() {
    let (place, server) = served();
    let failing = "export default { topics: 'in', onError: { retry: 9, backoff: '1h' },
        run() { throw new Error('not today'); } };";
    let state = |is: &str| {
        eventually(|| (state_of(&place, "sum") == is).then_some(()));
        let shown = place.ok(&["modules", "show", "sum"]).json().remove(0);
        [&shown["error"], &shown["last_error"]].map(|error| error["message"].to_string())
    };
    let says = |text: &str, what: &str| assert!(text.contains(what), "{what}: {text}");
    place.write("modules/handlers/sum.ts", failing);
    place.await_frames("xs.handler.sum.active", 2);
    add(&place, 1);
    says(&state("retrying")[0], "not today");
    place.write("modules/handlers/sum.ts", "export default {");
    let [error, last] = state("retrying, newest invalid");
    says(&error, "SyntaxError");
    says(&last, "not today");
    place.write("modules/handlers/sum.ts", &failing.replace("throw new", "return void"));
    state("active");
    assert!(server.stop().success());
}

/// A record of a parked input does not hold the input.
#[test]
fn what_was_removed_is_not_unparked() {
    let (place, server) = served();
    (0..2).for_each(|_| add(&place, 0));
    let parked = place.await_frames("sum.parked", 2);
    let input = parked[0]["meta"]["frame"].as_str().unwrap();
    place.ok(&["remove", input, "--yes"]);
    let gone =
        |parked: &[Value]| -> Vec<_> { parked.iter().map(|one| one["gone"].clone()).collect() };
    let listed = place.ok(&["modules", "parked", "sum"]).json();
    assert_eq!(gone(&listed), [json!(true), json!(false)]);
    let unparked = place.xs(&["modules", "unpark", "sum"]);
    assert_eq!((unparked.code, unparked.json()[0]["unparked"].as_u64()), (3, Some(1)));
    assert!(unparked.err.contains("1 parked input cannot be handled again"), "{}", unparked.err);
    place.await_frames("sum.parked", 3);
    let listed = place.ok(&["modules", "parked", "sum"]).json();
    assert_eq!(gone(&listed), [json!(true), json!(false)]);
    assert!(server.stop().success());
}

#[test]
fn a_killed_servers_modules_are_not_called_active() {
    let (place, server) = served();
    assert_eq!(state_of(&place, "sum"), "active");
    server.kill();
    assert_eq!(state_of(&place, "sum"), "waiting for a server");
    let server = place.serve(&["--sync", "none"]);
    assert_eq!(state_of(&place, "sum"), "waiting for a server", "this one runs no modules");
    assert!(server.stop().success());
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    eventually(|| (state_of(&place, "sum") == "active").then_some(()));
    assert!(server.stop().success());
}

#[test]
fn modules_are_made_and_checked_without_a_store() {
    let place = Sandbox::new();
    for kind in ["generator", "handler", "command"] {
        let name = format!("a.{kind}");
        let made = place.ok(&["modules", "new", kind, &name, "--dir", "m"]).text();
        assert_eq!(made, format!("m/{kind}s/a.{kind}.ts\n"));
        let again = place.xs(&["modules", "new", kind, &name, "--dir", "m"]);
        assert_eq!(again.code, 1, "{}", again.err);
    }
    assert!(fs::exists(place.path("m/.xs/xs.d.ts")).unwrap());
    let checked = place.ok(&["modules", "check", "m"]).json();
    assert_eq!(checked.len(), 3);
    assert!(checked.iter().all(|module| module["error"].is_null()), "{checked:?}");
    place.write("m/handlers/bad.ts", "export default { topics: 'a',\n  run() { };\n");
    place.write("m/commands/worse.ts", "export default { run() {}, topics: 'a' };");
    let run = place.xs(&["modules", "check", "m"]);
    assert_eq!(run.code, 1, "{}", run.err);
    let errors = run.json().into_iter().filter(|module| !module["error"].is_null());
    let errors: Vec<_> = errors.map(|module| module["error"]["code"].clone()).collect();
    assert_eq!(errors, ["syntax", "definition"]);
    // A single file, and the directory that holds it.
    let bad = place.xs(&["modules", "check", "m/handlers/bad.ts"]);
    assert_eq!((bad.code, bad.json().len()), (1, 1), "{}", bad.err);
    assert_eq!(bad.json()[0]["file"], "handlers/bad.ts");
    assert_eq!(place.ok(&["modules", "check", "m/handlers/a.handler.ts"]).json().len(), 1);
    place.write("m/lib/tiny.ts", "export const tiny = 1;");
    let none = place.xs(&["modules", "check", "m/lib/tiny.ts"]);
    assert_eq!((none.code, none.err.contains("tiny.ts is no module")), (3, true), "{}", none.err);
    let here = place.command(&["modules", "check"]).current_dir(place.path("m")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&here.stdout).lines().count(), 5, "{here:?}");
    assert!(!fs::exists(place.path("store")).unwrap());
}

#[test]
fn tests_of_modules_are_run_and_counted_by_their_exit_code() {
    let place = Sandbox::new();
    place.write("m/handlers/sum.ts", SUM);
    let test = r#"
import { assertEquals, test, trial } from "xs/test";
import sum from "./sum.ts";
test("it adds", async () => {
  const frames = [1, 2].map((n) => ({ topic: "in", meta: { n } }));
  assertEquals((await trial(sum, { frames })).state, { sum: WANTED });
});
"#;
    place.write("m/handlers/sum.test.ts", &test.replace("WANTED", "3"));
    let good = place.ok(&["test", "m"]).json();
    assert_eq!((&good[0]["test"], &good[0]["error"]), (&json!("it adds"), &Value::Null));
    place.write("m/handlers/sum.test.ts", &test.replace("WANTED", "4"));
    let bad = place.xs(&["test", "m", "sum"]);
    assert_eq!(bad.code, 1, "{}", bad.err);
    assert_eq!(bad.json()[0]["error"]["line"], 6);
    assert_eq!(place.xs(&["test", "m", "other"]).code, 3);
    let file = place.xs(&["test", "m/handlers/sum.test.ts"]);
    let failed = file.json();
    assert_eq!((file.code, failed.len(), &failed[0]["error"]), (1, 1, &bad.json()[0]["error"]));
    let module = place.xs(&["test", "m/handlers/sum.ts"]);
    assert_eq!(module.code, 3, "{}", module.err);
    assert!(module.err.contains("m/handlers/sum.ts is not a test"), "{}", module.err);
    assert!(!fs::exists(place.path("store")).unwrap());
}

#[test]
fn dev_serves_a_store_of_its_own_and_shows_what_happens() {
    use std::io::{BufRead as _, BufReader};
    let place = Sandbox::new();
    place.write("m/handlers/sum.ts", SUM);
    place.write("secrets.env", "LIMIT='from-the-file'\n");
    place.write(
        "m/commands/limit.ts",
        "export default { permissions: { env: ['LIMIT'] }, run: (call, ctx) => { \
           console.log('it is', ctx.env.LIMIT); return ctx.env.LIMIT; } };",
    );
    let mut command = place.command(&["dev", "m", "--env-file", "secrets.env"]);
    let mut dev = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
    let mut until = |what: &str| {
        let mut lines = lines.by_ref().map(Result::unwrap);
        // A program is given frames only.
        let found = lines.find(|line| {
            assert!(line.starts_with('{'), "{line}");
            line.contains(what)
        });
        found.unwrap_or_else(|| panic!("nothing is said of {what}"))
    };
    until("xs.handler.sum.active");
    let called = |store: &str| place.xs(&["-a", store, "call", "limit"]);
    crate::support::eventually(|| {
        (called("./m/.xs/dev").text() == "from-the-file\n").then_some(())
    });
    until("it is ***");
    place.ok(&["append", "./m/.xs/dev", "in", "-n", "--meta", "{\"n\":2}"]);
    until("adding 2");
    until("sum.out");
    place.write("m/handlers/sum.ts", "export default {");
    until("xs.handler.sum.invalid");
    crate::support::signal(&dev, rustix::process::Signal::INT);
    assert!(crate::support::wait_within(&mut dev, crate::support::PATIENCE).success());
}

/// An input that was parked and then handled is handled once when all inputs are handled anew.
#[test]
fn a_reset_module_handles_each_input_once() {
    let place = Sandbox::new();
    let source = |bad: u32| {
        format!(
            "export default {{ topics: 'job', start: 'first', onError: 'park', state: {{ seen: [] }}, \
               run(frame, ctx) {{ if (frame.meta.n === {bad}) throw new Error('bad'); \
                 ctx.state.seen.push(frame.meta.n); }} }};"
        )
    };
    place.write("modules/handlers/h.ts", &source(2));
    let job = |n: u32| {
        place.ok(&["append", "job", "-n", "--meta", &json!({ "n": n }).to_string()]);
    };
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    (1..=3).for_each(job);
    place.await_frames("h.parked", 1);
    place.write("modules/handlers/h.ts", &source(0));
    place.await_frames("xs.handler.h.active", 2);
    place.ok(&["modules", "unpark", "h"]);
    let is = |seen: &[u32]| {
        let expected = json!({ "seen": seen });
        eventually(|| {
            let state = place.ok(&["modules", "state", "h"]).json().remove(0);
            (state == expected).then_some(())
        });
    };
    is(&[1, 3, 2]);
    let unparked = place.frames("xs.handler.h.unpark")[0]["id"].as_str().unwrap().to_owned();
    let then = place.ok(&["modules", "state", "h", "--at", &unparked]).json().remove(0);
    assert_eq!(then, json!({ "seen": [1, 3, 2] }));
    place.ok(&["modules", "reset", "h", "--yes"]);
    job(4);
    is(&[1, 2, 3, 4]);
    assert_eq!(place.ok(&["modules", "parked", "h"]).text(), "");
    assert!(server.stop().success());
}
