//! Every exit code, and the message that accompanies it.

use std::fs::{self, File};
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{PATIENCE, Run, Sandbox, signal, wait_within};

#[test]
fn each_documented_code_is_reached() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "x"]);
    let missing = "00000000000000000000000zz";
    for (args, code, said) in [
        (&["frob"][..], 2, "unrecognized subcommand"),
        (&["append", "9"], 2, "must begin with a letter"),
        (&["cat", "--since", "soon"], 2, "is not a time"),
        (&["get", missing], 3, "no frame with id"),
        (&["get", "99"], 3, "no frame with offset 99"),
        (&["last", "nothing"], 3, "no frame in nothing"),
        (&["cas", "get", "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="], 3, "no body"),
        (&["modules", "show", "none"], 3, "no module none"),
        (&["cat", "./nowhere"], 5, "no store at ./nowhere"),
        (&["call", "report"], 5, "no server at"),
        (&["ping"], 5, "start one with `xs serve"),
        (&["serve", "./s", "--modules", "./none"], 2, "cannot read the modules in ./none"),
        (&["last", "-n", "0"], 2, "1..=1000000"),
        (&["cat", ":1"], 5, "cannot connect"),
        (&["append", "xs.mine", "x"], 7, "xs."),
        (&["append", "t", "--file", "nowhere"], 1, "nowhere"),
        (&["append", "t", "y", "--expect", "empty"], 4, "should be empty"),
        (&["append", "u", "y", "--expect", "t=empty"], 4, "should be empty"),
        (&["append", "t", "y", "--expect", "head=7"], 4, "the head is 1, not 7"),
        (&["append", "t", "y", "--expect", "soon"], 2, "head=OFFSET"),
        (&["cursor", "get", "none"], 3, "no cursor none"),
        (&["cursor", "set", "c", "9"], 3, "beyond the head"),
        (&["cursor", "rm", "none", "--yes"], 3, "no cursor none"),
        (&["cursor", "set", "c", "head", "--expect", "3"], 4, "revision"),
        (&["verify", "nowhere"], 5, "holds no store"),
    ] {
        let run = place.xs(args);
        assert_eq!(run.code, code, "xs {args:?}: {}", run.err);
        assert!(run.err.contains(said), "xs {args:?}: {}", run.err);
        assert!(run.out.is_empty(), "xs {args:?} printed {:?}", run.text());
    }
    assert!(!place.path("nowhere").exists(), "a reader must not make a store");
    assert!(!place.path("s").exists(), "a server that cannot do its work makes none");
}

#[test]
fn append_reports_the_id_when_output_fails() {
    let place = Sandbox::new();
    for (args, said) in [
        (&["append", "t", "x"][..], "the event is stored, with id 0"),
        (&["append", "t", "--lines"], "2 lines are stored: "),
    ] {
        fs::write(place.path("input"), "a\nb\n").unwrap();
        let mut append = place.command(args);
        append.stdin(File::open(place.path("input")).unwrap());
        append.stdout(File::options().write(true).open("/dev/full").unwrap());
        let run = Run::from(append.output().unwrap());
        assert_eq!((run.code, run.err.contains(said)), (1, true), "{}", run.err);
    }
    assert_eq!(place.frames("t").len(), 3);
}

#[test]
fn reads_that_can_match_nothing_say_so() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "x"]);
    let run = place.xs(&["cat", "--since", "2h", "--until", "3h"]);
    assert_eq!((run.code, run.err.contains("--until is before --since")), (2, true), "{}", run.err);
    for (args, said) in [
        (["cat", "--after", "99"], "nothing stored after 99 yet: the next offset is 1"),
        (["cat", "--from", "2"], "nothing stored from 2 on yet: the next offset is 1"),
        (["cat", "--after", "0"], ""),
        (["cat", "--from", "1"], ""),
    ] {
        let run = place.ok(&args);
        assert_eq!(run.err.trim_end().trim_start_matches("xs: "), said, "{args:?}");
    }
}

#[test]
fn a_server_without_modules_refuses_calls_at_once() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    let run = place.xs(&["call", "report"]);
    assert_eq!((run.code, run.err.contains("runs no modules")), (3, true), "{}", run.err);
}

#[test]
fn a_second_server_names_the_first() {
    let place = Sandbox::new();
    let server = place.serve(&[]);
    let run = place.xs(&["serve", place.store().to_str().unwrap()]);
    assert_ne!(run.code, 0);
    assert!(run.err.contains(&server.pid().to_string()), "{}", run.err);
    assert!(server.stop().success());
}

#[test]
fn an_interrupted_follower_ends_with_130() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    let mut tail = place.command(&["tail"]).stdout(Stdio::piped()).spawn().unwrap();
    // The first line shows that it has begun.
    place.ok(&["append", "t", "x"]);
    let mut line = String::new();
    let stdout = tail.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    signal(&tail, Signal::INT);
    assert_eq!(wait_within(&mut tail, PATIENCE).code(), Some(130));
}

#[test]
fn lines_that_fail_are_counted_out() {
    let place = Sandbox::new();
    let run = place.xs_with(&["append", "t", "--lines", "--json"], b"{\"a\":1}\nno\n");
    assert_eq!(run.code, 1);
    let said = "line 2: not JSON: expected ident at column 2; the line before it is stored";
    assert!(run.err.contains(said), "{}", run.err);
    let stored = place.ok(&["cat", "t"]).json();
    assert_eq!((stored.len(), &stored[0]["meta"]["a"]), (1, &serde_json::json!(1)));
}
