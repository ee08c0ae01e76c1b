//! What a run reports of its outcome: frames that could not be read, that threw or did not exist,
//! modules that cannot start, servers that do not answer.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Sandbox, signal_pid};

/// A store in which the second of three frames is damaged.
fn damaged() -> Sandbox {
    let place = Sandbox::new();
    for n in ["{\"n\":1}", "{\"n\":\"the second\"}", "{\"n\":3}"] {
        place.ok(&["append", "t", "--meta", n, "-n"]);
    }
    damage(&place);
    place
}

/// Changes a byte of the frame that calls itself the second, while a server may have the store
/// open.
fn damage(place: &Sandbox) {
    let files = fs::read_dir(place.store().join("log")).unwrap();
    let hit = files.map(|file| file.unwrap().path()).any(|path| {
        let bytes = fs::read(&path).unwrap();
        let Some(at) = bytes.windows(10).position(|window| window == b"the second") else {
            return false;
        };
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        true
    });
    assert!(hit, "the log holds the frame");
}

#[test]
fn damage_sets_the_exit_code() {
    let place = damaged();
    let run = place.xs(&["export", "dump"]);
    assert_eq!(run.code, 1, "{}", run.err);
    assert_eq!(run.json(), [json!({ "exported": 2, "there_before": false, "unreadable": 1 })]);
    assert!(run.err.contains("frame 1 cannot be read: skipped"), "{}", run.err);
    let again = place.xs(&["export", "dump"]);
    assert_eq!(again.code, 1, "what is there is still not all: {}", again.err);
    assert_eq!(again.json(), [json!({ "exported": 0, "there_before": true, "unreadable": 1 })]);
    let run = place.xs(&["export", "--archive", "all.tar.zst"]);
    assert_eq!((run.code, run.json()[0]["unreadable"].as_u64()), (1, Some(1)), "{}", run.err);
    for (line, printed, code) in [
        (&["cat"][..], "13", 1),
        (&["cat", "--limit", "1"], "1", 0),
        (&["each", "t", "--", "sh", "-c", "echo $XS_META"], "13", 1),
        (&["last", "-n", "100", "t"], "13", 1),
        (&["last", "-n", "2", "t"], "13", 1),
        (&["last", "-n", "1", "t"], "3", 0),
        (&["last", "--per-topic"], "3", 0),
    ] {
        let run = place.xs(line);
        let text = run.text();
        let numbers: String = text.split("{\"n\":").skip(1).map(|rest| &rest[..1]).collect();
        assert_eq!((run.code, &*numbers), (code, printed), "{line:?}: {}", run.err);
        let told = run.err.contains("frame 1 cannot be read: skipped");
        assert_eq!(told, code == 1, "{line:?}: {}", run.err);
    }
    let bad = |place: &Sandbox| {
        let run = place.xs(&["doctor"]);
        let store = run.json().into_iter().find(|check| check["check"] == "store").unwrap();
        assert_eq!((run.code, &store["state"]), (1, &json!("bad")), "{store}");
        assert!(store["found"].as_str().unwrap().contains("xs repair"), "{store}");
    };
    bad(&place);
    let _server = place.serve(&[]);
    bad(&place);
}

#[test]
fn where_reports_errors_with_last_too() {
    let place = Sandbox::new();
    for n in 0..4 {
        place.ok(&["append", "t", "--meta", &format!("{{\"n\":{n}}}"), "-n"]);
    }
    // A filter that threw on every frame is wrong.
    for (filter, last, code, printed, threw) in [
        ("nope.x", "1", 1, 0, "4 events"),
        ("f.meta.n === 1 || nope.x", "1", 0, 1, "2 events"),
        ("f.meta.n === 1 || nope.x", "2", 0, 1, "3 events"),
        ("f.meta.n === 2 && nope.x", "9", 0, 0, "1 event"),
    ] {
        let run = place.xs(&["cat", "--where", filter, "--last", last, "t"]);
        assert_eq!(run.code, code, "{filter}: {}", run.err);
        let said = format!("--where threw on {threw}, skipped");
        assert_eq!(run.json().len(), printed, "{filter}");
        assert!(run.err.contains(&said), "{filter} --last {last}: {}", run.err);
    }
}

const SUM: &str = "import { handler } from \"xs\";\n\
    export default handler({ topics: \"in\", start: \"first\", state: 0, run(f, ctx) {\n\
    ctx.state++; return { n: ctx.state }; } });";

#[test]
fn the_cursor_of_a_module_is_its_own() {
    let place = Sandbox::new();
    place.write("modules/handlers/sum.ts", SUM);
    place.ok(&["append", "in", "-n"]);
    let _server = place.serve(&["--modules", "modules"]);
    place.await_frames("sum.out", 1);
    for line in [
        &["cursor", "rm", "xs.handler.sum", "--yes"][..],
        &["cursor", "set", "xs.handler.sum", "first"],
    ] {
        let run = place.xs(line);
        let said = "belongs to a module; xs modules reset sum starts it over";
        assert_eq!((run.code, run.err.contains(said)), (2, true), "{line:?}: {}", run.err);
    }
    // Frames that it does not read do not count towards its lag.
    for _ in 0..5 {
        place.ok(&["append", "other", "-n"]);
    }
    let top = place.ok(&["top", "--once"]).json();
    let sum = top.iter().find(|line| line["module"] == "sum").unwrap();
    assert_eq!(sum["behind"], 0, "{sum}");
    assert_eq!(place.ok(&["modules", "show", "sum"]).json()[0]["lag"], 0);
}

#[test]
fn a_module_that_cannot_start_reports_the_reason() {
    let place = Sandbox::new();
    place.write("modules/handlers/sum.ts", SUM);
    let _server = place.serve(&["--modules", "modules"]);
    place.await_frames("xs.handler.sum.active", 1);
    place.write("modules/handlers/sum.ts", "import \"./none.ts\";");
    place.await_frames("xs.handler.sum.invalid", 1);
    place.ok(&["modules", "stop", "sum"]);
    let shown = &place.ok(&["modules", "show", "sum"]).json()[0];
    assert_eq!((&shown["state"], &shown["help"]), (&json!("stopped"), &json!("save its file")));
    let run = place.xs(&["modules", "start", "sum"]);
    assert_eq!(run.code, 1, "{}", run.err);
    assert!(run.err.contains("save its file: ") && !run.err.contains("no message"), "{}", run.err);
    assert!(run.err.contains("none.ts"), "{}", run.err);
}

#[test]
fn a_forbidden_operation_is_an_error_of_the_module() {
    let place = Sandbox::new();
    place.write(
        "modules/commands/reads.ts",
        "export default { run: (call, ctx) => ctx.fs.text('/etc/hostname') };",
    );
    let _server = place.serve(&["--modules", "modules"]);
    place.await_frames("xs.command.reads.active", 1);
    let run = place.xs(&["call", "reads"]);
    assert_eq!(run.code, 1, "{}", run.err);
}

#[test]
fn ping_and_call_give_up_on_a_stalled_server_in_time() {
    let place = Sandbox::new();
    let server = place.serve(&[]);
    signal_pid(server.pid(), Signal::STOP);
    for line in [&["ping", "--wait", "1s"][..], &["call", "a", "--timeout", "1s"]] {
        // Anything may take long once, but nothing here always does.
        let in_time = (0..5).any(|_| {
            let begun = Instant::now();
            let run = place.xs(line);
            assert_eq!(run.code, 6, "{line:?}: {}", run.err);
            begun.elapsed() < Duration::from_secs(8)
        });
        assert!(in_time, "{line:?}");
    }
    signal_pid(server.pid(), Signal::CONT);
    place.ok(&["ping", "--wait", "4m"]);
}

#[test]
fn file_minus_is_standard_input() {
    let place = Sandbox::new();
    let run = place.xs_with(&["append", "t", "--file", "-"], b"piped");
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(place.ok(&["last", "t", "-b"]).text(), "piped");
    let lines = place.xs_with(&["append", "t", "--lines", "--file", "-"], b"one\ntwo\n");
    assert_eq!(lines.code, 0, "{}", lines.err);
    assert_eq!(place.ok(&["last", "-n", "2", "t", "--format", "{body}"]).text(), "one\ntwo\n");
}

/// The newest frame of a topic cannot be read: its predecessor is reported.
#[test]
fn last_per_topic_works_on_a_damaged_store() {
    let place = Sandbox::new();
    let server = place.serve(&[]);
    for (topic, n) in [("a", "1"), ("b", "2"), ("a", "\"the second\""), ("c", "3")] {
        place.ok(&["append", topic, "--meta", &format!("{{\"n\":{n}}}"), "-n"]);
    }
    damage(&place);
    let run = place.xs(&["last", "--per-topic"]);
    let metas: Vec<_> = run.json().iter().map(|frame| frame["meta"]["n"].clone()).collect();
    assert_eq!((run.code, metas), (1, vec![json!(1), json!(2), json!(3)]), "{}", run.err);
    let run = place.xs(&["last", "a"]);
    assert_eq!((run.code, &run.json()[0]["meta"]["n"]), (1, &json!(1)), "{}", run.err);
    assert!(server.stop().success());
}

/// Ids continue from a clock that was ahead, until the clock has reached them.
#[test]
fn a_clock_that_was_ahead_is_reported() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "x"]);
    place.ok(&["export", "now"]);
    let clock = |store: &str| {
        let checks = place.xs(&["doctor", store]).json();
        checks.into_iter().find(|check| check["check"] == "clock").unwrap()
    };
    assert_eq!(clock("./store")["state"], "ok");
    let old = &place.frames("t")[0]["id"];
    let id = place.ok(&["id", "--at", "2158-08-06T00:00:00Z"]).text();
    let line = fs::read_to_string(place.path("now/frames.jsonl")).unwrap();
    fs::create_dir(place.path("then")).unwrap();
    fs::rename(place.path("now/cas"), place.path("then/cas")).unwrap();
    place.write("then/frames.jsonl", &line.replace(old.as_str().unwrap(), id.trim()));
    assert_eq!(place.ok(&["import", "then", "./ahead"]).json()[0]["new"], 1);
    let told = clock("./ahead");
    let found = told["found"].as_str().unwrap();
    assert_eq!(told["state"], "poor", "{told}");
    assert!(found.contains("is of 2158-08-06T00:00:00Z, 13"), "{found}");
    assert!(found.contains(" years ahead of this clock"), "{found}");
    place.ok(&["import", "then", "./store"]);
    let server = place.serve(&[]);
    assert!(server.stop().success());
    assert!(place.log().contains("years ahead of this clock"), "{}", place.log());
    // The advice in the message helps.
    place.ok(&["export", "-a", "./ahead", "out"]);
    place.ok(&["import", "out", "./mended", "--new-ids"]);
    assert_eq!(clock("./mended")["state"], "ok");
}
