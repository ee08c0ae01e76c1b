//! `append --lines` over a server that is killed: the report on the lines that were in flight, and
//! the same command again, with a key.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Stdio};

use rustix::process::Signal;

use crate::support::{PATIENCE, Run, Sandbox, output_within, signal};

/// Lines of one batch.
const BATCH: usize = 512;

fn count(place: &Sandbox, topic: &str) -> u64 {
    let topics = place.ok(&["topics", topic]).json();
    topics.first().map_or(0, |topic| topic["count"].as_u64().unwrap())
}

/// The numbers in a text, in order.
fn numbers(text: &str) -> Vec<u64> {
    let words = text.split(|c: char| !c.is_ascii_digit());
    words.filter(|word| !word.is_empty()).map(|word| word.parse().unwrap()).collect()
}

#[test]
fn lines_in_flight_when_the_server_dies_are_reported() {
    let place = Sandbox::new();
    let server = place.serve(&[]);
    let mut command = place.command(&["append", "t", "--lines"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut append = command.spawn().unwrap();
    let mut stdin = append.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let many: String = (0..1000).map(|n| format!("line {n} of a thousand\n")).collect();
        while stdin.write_all(many.as_bytes()).is_ok() {}
    });
    place.await_frames("t", 5000);
    server.kill();
    let run = Run::from(output_within(append, PATIENCE));
    writer.join().unwrap();
    assert_eq!(run.code, 5, "{}", run.err);
    let said = numbers(&run.err);
    let (stored, most) = (said[0], said[0] + said[2]);
    let told = format!(
        "at least {stored} of {} lines read are stored, and up to {} more may be",
        said[1], said[2]
    );
    assert!(run.err.contains(&told), "{}", run.err);
    let count = count(&place, "t");
    assert!((stored..=most).contains(&count), "{count}: {}", run.err);
}

/// Feeds some lines, and ends the server or the command once all complete batches are stored,
/// before or instead of the input.
fn fed(
    place: &Sandbox,
    args: &[&str],
    lines: &str,
    end: impl FnOnce(&Child, ChildStdin) -> Option<ChildStdin>,
) -> Run {
    let mut command = place.command(args);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut append = command.spawn().unwrap();
    let mut stdin = append.stdin.take().unwrap();
    stdin.write_all(lines.as_bytes()).unwrap();
    place.await_frames("t", lines.lines().count() / BATCH * BATCH);
    let _open = end(&append, stdin);
    Run::from(output_within(append, PATIENCE))
}

#[test]
fn lines_with_a_key_are_stored_once_however_often_they_are_sent() {
    let place = Sandbox::new();
    let args = ["append", "t", "--lines", "--key", "day"];
    let all: String = (0..4000).map(|n| format!("{n}\n")).collect();
    let until = |count: usize| &all[..all.match_indices('\n').nth(count - 1).unwrap().0 + 1];

    let server = place.serve(&[]);
    let run = fed(&place, &args, until(1500), |append, stdin| {
        signal(append, Signal::INT);
        Some(stdin)
    });
    assert_eq!(run.code, 130, "{}", run.err);
    let said = format!("{} of ", 2 * BATCH);
    assert!(run.err.contains(&said) && run.err.contains("the rest"), "{}", run.err);
    assert_eq!(count(&place, "t"), 2 * BATCH as u64, "half a batch would have another end");
    let mut server = Some(server);
    let run = fed(&place, &args, until(2000), |_, _| {
        server.take().unwrap().kill();
        None
    });
    assert_eq!(run.code, 5, "{}", run.err);
    assert!(run.err.contains("the same command with the same input"), "{}", run.err);

    let _server = place.serve(&[]);
    let first = place.xs_with(&args, all.as_bytes());
    assert_eq!((first.code, &first.json()[0]["lines"]), (0, &4000.into()), "{}", first.err);
    let again = place.xs_with(&args, all.as_bytes());
    assert_eq!((again.code, again.text()), (0, first.text()), "{}", again.err);
    assert_eq!(place.ok(&["cat", "t", "--format", "{body}"]).text(), all);

    let other = place.xs_with(&args, b"something else\n");
    assert_eq!((other.code, other.err.contains("day:1")), (4, true), "{}", other.err);
    assert!(other.err.contains("or another key"), "{}", other.err);
    assert!(!other.err.contains("the same command"), "{}", other.err);
    assert_eq!(count(&place, "t"), 4000);
    // Nothing helps until the wrong line is corrected.
    let lines: String = (0..600).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let keyed = ["append", "u", "--lines", "--json", "--key", "u"];
    let wrong = place.xs_with(&keyed, format!("{lines}no\n").as_bytes());
    assert_eq!(wrong.code, 1, "{}", wrong.err);
    let said = "line 601: not JSON";
    assert!(
        wrong.err.contains(said) && wrong.err.contains("512 lines are stored"),
        "{}",
        wrong.err
    );
    assert!(wrong.err.contains("when that line is mended"), "{}", wrong.err);
    assert_eq!(place.xs_with(&keyed, format!("{lines}{{}}\n").as_bytes()).code, 0);
    assert_eq!(count(&place, "u"), 601);
    let long = "k".repeat(250);
    let run = place.xs_with(&["append", "t", "--lines", "--key", &long], b"x\n");
    assert_eq!(run.code, 2, "{}", run.err);
}

#[test]
fn topic_from_appends_each_line_to_its_own_topic() {
    let place = Sandbox::new();
    let args = ["append", "logs", "--lines", "--json", "--topic-from", "service"];
    let input = "{\"service\":\"web\",\"n\":1}\n{\"service\":\"db.main\",\"n\":2}\n";
    let run = place.xs_with(&args, input.as_bytes());
    assert_eq!((run.code, &run.json()[0]["lines"]), (0, &2.into()), "{}", run.err);
    let stored = place.ok(&["cat", "--format", "{topic} {meta.n}", "logs."]).text();
    assert_eq!(stored, "logs.web 1\nlogs.db.main 2\n");
    // Lines before a bad one are stored, as with any bad line.
    let run = place.xs_with(&args, b"{\"service\":\"web\"}\n{\"service\":\"a b\"}\n");
    assert_eq!((run.code, run.err.contains("line 2: topic ")), (1, true), "{}", run.err);
    assert!(run.err.contains("the line before it is stored"), "{}", run.err);
    assert_eq!(count(&place, "logs.web"), 2);
}
