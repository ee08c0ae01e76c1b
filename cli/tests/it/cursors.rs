//! Readers that remember their position: `cat --cursor`, `each`, and `cursor`, which shows it.

use std::fs;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use xs_engine::{
    Batch, CursorChange, CursorName, CursorValue, ExpectRevision, Store, StoreOptions,
};

use crate::support::{PATIENCE, Run, Sandbox, eventually, signal, wait_within};

fn lines(place: &Sandbox, text: &str) {
    let run = place.xs_with(&["append", "t", "--lines"], text.as_bytes());
    assert_eq!(run.code, 0, "{}", run.err);
}

fn bodies(run: &Run) -> String {
    assert_eq!(run.code, 0, "{}", run.err);
    run.text()
}

fn offset(place: &Sandbox, name: &str) -> Value {
    place.ok(&["cursor", "get", name]).json()[0]["offset"].clone()
}

#[test]
fn cat_resumes_from_its_cursor() {
    let place = Sandbox::new();
    let cat = ["cat", "--cursor", "report", "-b", "t"];
    lines(&place, "a\nb\n");
    assert_eq!(bodies(&place.xs(&cat)), "ab");
    assert_eq!(bodies(&place.xs(&cat)), "");
    lines(&place, "c\nd\n");
    assert_eq!(bodies(&place.xs(&["cat", "--cursor", "report", "-b", "--limit", "1"])), "c");
    assert_eq!(offset(&place, "report"), 3);
    assert_eq!(bodies(&place.xs(&cat)), "d");
    place.ok(&["cursor", "set", "report", "1"]);
    assert_eq!(bodies(&place.xs(&cat)), "bcd");
    // Frames that a filter skips count as read too.
    place.ok(&["append", "other", "-n"]);
    assert_eq!(bodies(&place.xs(&cat)), "");
    assert_eq!(offset(&place, "report"), 5);
    place.ok(&["cursor", "set", "report", "head"]);
    let listed = place.ok(&["cursor", "list"]).json();
    assert_eq!((listed.len(), &listed[0]["behind"]), (1, &0.into()));
    let refused = place.xs(&["cursor", "rm", "report"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    place.ok(&["cursor", "rm", "report", "--yes", "--dry-run"]);
    place.ok(&["cursor", "rm", "report", "--yes"]);
    assert_eq!(place.xs(&["cursor", "get", "report"]).code, 3);
    assert_eq!(bodies(&place.xs(&cat)), "abcd");
}

#[test]
fn a_follower_that_is_interrupted_has_saved_what_it_printed() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    lines(&place, "a\nb\n");
    let out = fs::File::create(place.path("out")).unwrap();
    let mut cat =
        place.command(&["cat", "-f", "--cursor", "c", "-b", "t"]).stdout(out).spawn().unwrap();
    let printed = || fs::read(place.path("out")).unwrap();
    eventually(|| (printed() == b"ab").then_some(()));
    signal(&cat, Signal::INT);
    assert_eq!(wait_within(&mut cat, PATIENCE).code(), Some(130));
    lines(&place, "c\n");
    assert_eq!(bodies(&place.xs(&["cat", "--cursor", "c", "-b", "t"])), "c");
}

/// Without a message, it would wait in silence until the log was as long, and begin in the middle.
#[test]
fn a_cursor_that_lies_beyond_the_frames_is_told() {
    let place = Sandbox::new();
    lines(&place, "a\nb\n");
    let store = Store::open(place.store(), StoreOptions::default()).unwrap();
    let set = Some(CursorValue { offset: 1000, ..CursorValue::default() });
    let change =
        CursorChange { name: CursorName::parse("c").unwrap(), expect: ExpectRevision::Any, set };
    store.append(Batch { cursors: vec![change], ..Batch::default() }).unwrap();
    drop(store);
    for served in [false, true] {
        let _server = served.then(|| place.serve(&[]));
        // -F requires a server.
        for command in [
            &["cat", "--cursor", "c", "t"][..],
            &["cat", "-f", "--cursor", "c", "t"],
            &["each", "t", "--cursor", "c", "--", "true"],
            &["each", "t", "-f", "--reconnect", "--cursor", "c", "--", "true"],
        ]
        .into_iter()
        .filter(|command| served || !command.contains(&"--reconnect"))
        {
            let run = place.xs(command);
            assert_eq!(run.code, 4, "{command:?}: {}", run.err);
            assert!(run.err.contains("; xs cursor set c 2 goes on"), "{}", run.err);
        }
    }
    place.ok(&["cursor", "set", "c", "2"]);
    lines(&place, "c\n");
    assert_eq!(bodies(&place.xs(&["cat", "--cursor", "c", "-b", "t"])), "c");
}

#[test]
fn two_readers_of_one_cursor_conflict() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    lines(&place, "a\n");
    // The command waits for a pipe until the test has moved the cursor.
    let script = "mkfifo gate && : > ready && cat gate";
    let mut each = place
        .command(&["each", "t", "--cursor", "c", "--", "sh", "-c", script])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually(|| place.path("ready").exists().then_some(()));
    place.ok(&["cursor", "set", "c", "head"]);
    fs::write(place.path("gate"), "open").unwrap();
    let ended = wait_within(&mut each, PATIENCE);
    assert_eq!(ended.code(), Some(4));
}

#[test]
fn each_runs_a_command_for_every_frame_and_moves_on() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "--meta", "{\"n\":1}", "one"]);
    place.ok(&["append", "t", "-n"]);
    let script = "test ${#XS_ID} = 25 && \
                  printf '%s %s %s %s ' $XS_TOPIC $XS_OFFSET \"$XS_META\" \"$(cat)\"";
    let each = ["each", "t", "--cursor", "c", "--", "sh", "-c", script];
    assert_eq!(bodies(&place.xs(&each)), "t 0 {\"n\":1} one t 1 {}  ");
    assert_eq!(bodies(&place.xs(&each)), "");
    assert_eq!(offset(&place, "c"), 2);
    // A large body arrives whole, and a command need not read it.
    let large = vec![b'x'; 3 * 1024 * 1024];
    assert_eq!(place.xs_with(&["append", "t"], &large).code, 0);
    let count = ["each", "t", "--from", "2", "--", "wc", "-c"];
    assert_eq!(bodies(&place.xs(&count)).trim(), large.len().to_string());
    assert_eq!(bodies(&place.xs(&["each", "t", "--from", "2", "--", "true"])), "");
}

#[test]
fn each_starts_with_the_failed_frame_on_the_next_run() {
    let place = Sandbox::new();
    lines(&place, "a\nb\nc\n");
    let each =
        ["each", "t", "--cursor", "c", "--", "sh", "-c", "x=$(cat); test $x != b || test -e ok"];
    let run = place.xs(&each);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("the command exited with 1"), "{}", run.err);
    assert!(run.err.contains("xs cursor set c 2 skips it"), "{}", run.err);
    assert_eq!(offset(&place, "c"), 1);
    place.write("ok", "");
    place.ok(&each);
    assert_eq!(offset(&place, "c"), 3);
}

#[test]
fn a_frame_that_keeps_failing_is_parked_with_its_body() {
    let place = Sandbox::new();
    lines(&place, "a\nb\nc\n");
    let script = "x=$(cat); echo $x >> seen; test $x != b";
    let park = ["--retry", "1", "--park", "t.parked"];
    let each = [&["each", "t", "--cursor", "c"][..], &park, &["--", "sh", "-c", script]].concat();
    place.ok(&each);
    assert_eq!(fs::read_to_string(place.path("seen")).unwrap(), "a\nb\nb\nc\n");
    let parked = place.frames("t.parked");
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0]["body"], "b");
    assert_eq!(parked[0]["meta"]["attempts"], 2);
    assert_eq!(parked[0]["meta"]["input"], place.frames("t")[1]["id"]);
    assert_eq!(offset(&place, "c"), 3);
}

#[test]
fn parked_events_are_not_handled_again() {
    let place = Sandbox::new();
    lines(&place, "a\nb\n");
    let each = |topics: &[&str]| {
        let park = ["--cursor", "c", "--park", "t.parked", "--", "false"];
        place.xs(&[&["each"][..], topics, &park].concat())
    };
    let refused = each(&["t."]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("t.parked is one of the topics"), "{}", refused.err);
    // Among all topics, the parking topic is skipped.
    for _ in 0..2 {
        assert_eq!(each(&[]).code, 0);
        assert_eq!(place.frames("t.parked").len(), 2);
    }
    assert_eq!(offset(&place, "c"), 4);
}

#[test]
fn each_limit_does_not_count_parked_events() {
    let place = Sandbox::new();
    place.ok(&["append", "p", "parked before"]);
    lines(&place, "a\nb\nc\n");
    let each = ["each", "--limit", "2", "--park", "p", "--", "sh", "-c", "cat"];
    assert_eq!(bodies(&place.xs(&each)), "ab");
}

#[test]
fn each_kills_a_command_after_its_timeout() {
    let place = Sandbox::new();
    lines(&place, "a\n");
    let run = place.xs(&["each", "t", "--timeout", "50ms", "--", "sleep", "600"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("took longer than 50ms"), "{}", run.err);
    let missing = place.xs(&["each", "t", "--", "./no-such-command"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("cannot run ./no-such-command"), "{}", missing.err);
}
