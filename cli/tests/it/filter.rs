//! `--where`: frames by an expression over them.

use serde_json::{Value, json};

use crate::support::Sandbox;

/// Frames with n = 0, 1, ... and a body that says so.
fn with_numbers(count: usize) -> Sandbox {
    let place = Sandbox::new();
    let lines: String = (0..count).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let run = place.xs_with(&["append", "numbers", "--lines", "--json"], lines.as_bytes());
    assert_eq!(run.code, 0, "{}", run.err);
    place
}

fn numbers(frames: &[Value]) -> Vec<u64> {
    frames.iter().map(|frame| frame["meta"]["n"].as_u64().unwrap()).collect()
}

#[test]
fn where_prints_only_matching_frames() {
    let place = with_numbers(2_000);
    let cat = |words: &[&str]| {
        let all: Vec<&str> = ["cat"].iter().chain(words).copied().collect();
        numbers(&place.ok(&all).json())
    };
    let every = "f.meta.n % 500 === 0";
    assert_eq!(cat(&["--where", every]), [0, 500, 1000, 1500]);
    assert_eq!(cat(&["--where", every, "--limit", "2"]), [0, 500], "a limit counts those");
    assert_eq!(cat(&["--where", every, "--last", "2"]), [1000, 1500], "and so does last");
    assert_eq!(cat(&["--where", every, "--last", "9"]), [0, 500, 1000, 1500]);
    assert_eq!(cat(&["--where", every, "--last", "3", "--limit", "1"]), [500]);
    assert_eq!(cat(&["--where", every, "--reverse", "--limit", "2"]), [1500, 1000]);
    assert_eq!(cat(&["--where", every, "--reverse", "--last", "2"]), [1500, 1000]);
    assert_eq!(cat(&["--where", every, "--limit", "0"]), [0_u64; 0]);
    assert_eq!(cat(&["--where", "false", "--last", "3"]), [0_u64; 0]);
    assert_eq!(cat(&["--where", "f.topic === 'numbers' && f.offset === 7"]), [7]);
    assert_eq!(
        cat(&["--where", "f.time.getTime() > Date.now() - 6e5 && f.id < 'zz'", "--limit", "1"]),
        [0]
    );
}

#[test]
fn where_reads_bodies_without_printing_them() {
    let place = Sandbox::new();
    let long = "x".repeat(2 * 1024 * 1024);
    for body in ["{\"total\":5}", "{\"total\":50}", "text", &long] {
        assert_eq!(place.xs_with(&["append", "orders"], body.as_bytes()).code, 0);
    }
    let found = place.ok(&["cat", "--where", "f.json().total > 9"]);
    let frames = found.json();
    assert_eq!((frames.len(), frames[0].get("body")), (1, None));
    assert!(found.err.contains("--where threw on 2 events, skipped: SyntaxError"), "{}", found.err);
    let found = place.ok(&["cat", "--where", "f.text().length > 1e6"]);
    assert_eq!((found.json().len(), found.err.as_str()), (1, ""));
    let bodies = place.ok(&["cat", "-b", "--where", "f.text() === 'text'"]);
    assert_eq!(bodies.text(), "text");
}

#[test]
fn an_invalid_expression_is_refused_before_reading() {
    let nowhere = Sandbox::new();
    for wrong in ["f.meta.n >", "f; 1", "await f.text()", ""] {
        let run = nowhere.xs(&["cat", "--where", wrong]);
        assert_eq!((run.code, run.out.len()), (2, 0), "{wrong}: {}", run.err);
        assert!(run.err.contains("SyntaxError"), "{wrong}: {}", run.err);
    }
    let place = with_numbers(20);
    let endless = place.xs(&["cat", "--where", "(() => { for (;;); })()"]);
    assert_eq!((endless.code, endless.out.len()), (1, 0));
    assert!(endless.err.contains("CPU time"), "{}", endless.err);
    for promise in ["fetch('http://127.0.0.1:1')", "Promise.reject(new Error('no'))"] {
        // The expression says nothing about any frame: a script must not take that for an answer.
        for more in [&[][..], &["--last", "3"]] {
            let run = place.xs(&[&["cat", "--where", promise], more].concat());
            assert_eq!((run.code, run.out.len()), (1, 0), "{}", run.err);
            assert_eq!(run.err.matches("on 20 events").count(), 1, "{}", run.err);
        }
    }
    let thrown = place.ok(&["cat", "--where", "f.meta.n === 3 || f.meta.none.deep"]);
    assert_eq!(numbers(&thrown.json()), [3]);
    assert!(thrown.err.contains("threw on 19 events, skipped: TypeError"), "{}", thrown.err);
}

#[test]
fn where_works_with_tail_cursors_and_each() {
    let place = with_numbers(10);
    let odd = "f.meta.n % 2 === 1";
    let step = |limit: &str| {
        let args = ["cat", "--cursor", "c", "--where", odd, "--limit", limit];
        numbers(&place.ok(&args).json())
    };
    assert_eq!(
        [step("2"), step("2"), step("9"), step("9")],
        [vec![1, 3], vec![5, 7], vec![9], vec![]]
    );
    let each = [
        "each",
        "--cursor",
        "e",
        "--where",
        odd,
        "--limit",
        "3",
        "--",
        "sh",
        "-c",
        "echo $XS_META",
    ];
    let run = place.ok(&each);
    let metas: Vec<Value> = run.json();
    assert_eq!(metas, [1, 3, 5].map(|n| json!({ "n": n })));
    let last = ["each", "--last", "1", "--where", odd, "--", "sh", "-c", "echo $XS_META"];
    assert_eq!(place.ok(&last).json(), [json!({ "n": 9 })]);
    let server = place.serve(&["--sync", "none"]);
    let mut follow = place.command(&["cat", "-f", "--from", "6", "--limit", "3", "--where", odd]);
    let child = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    for n in [10, 11, 12] {
        place.ok(&["append", "numbers", "-n", "--meta", &json!({ "n": n }).to_string()]);
    }
    let output = crate::support::output_within(child, crate::support::PATIENCE);
    let lines = String::from_utf8(output.stdout).unwrap();
    let frames: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();

    let found = numbers(&frames);
    assert_eq!(found, [7, 9, 11]);
    assert!(server.stop().success());
}
