//! Pipes that close, stay open, or say nothing for a while.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{PATIENCE, Run, Sandbox, eventually, output_within, signal, wait_within};

#[test]
fn a_closed_output_pipe_is_not_an_error() {
    let place = Sandbox::new();
    let many: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    place.xs_with(&["append", "t", "--lines"], many.as_bytes());
    let mut cat =
        place.command(&["cat"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(cat.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let run = cat.wait_with_output().unwrap();
    assert!(first.starts_with("{\"topic\":\"t\""), "{first}");
    assert_eq!(run.status.code(), Some(0));
    assert!(run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn an_idle_follower_notices_that_its_reader_has_gone() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    let mut tail = place.command(&["tail", "nothing"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(tail.stdout.take());
    assert_eq!(wait_within(&mut tail, PATIENCE).code(), Some(0));
}

#[test]
fn lines_are_stored_while_the_pipe_stays_open() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    let mut append = place
        .command(&["append", "t", "--lines"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = append.stdin.as_mut().unwrap();
    for n in 1..=3usize {
        writeln!(stdin, "line {n}").unwrap();
        stdin.flush().unwrap();
        let frames = place.await_frames("t", n);
        assert_eq!(frames[n - 1]["body"], format!("line {n}"));
    }
    drop(append.stdin.take());
    assert!(wait_within(&mut append, PATIENCE).success());
}

/// A client with nothing to send noticed nothing, and its producer wrote for hours into a pipe that
/// led nowhere.
#[test]
fn an_idle_input_does_not_outlive_its_server() {
    for (line, begun) in [
        (&["append", "t"][..], &b"begun"[..]),
        (&["append", "t"], &[b'x'; 3 << 20]),
        (&["append", "t", "--lines"], b""),
        (&["append", "t", "--lines"], b"one\ntwo"),
        (&["cas", "put"], b"begun"),
    ] {
        let place = Sandbox::new();
        let server = place.serve(&[]);
        let mut command = place.command(line);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut append = command.spawn().unwrap();
        let mut stdin = append.stdin.take().unwrap();
        stdin.write_all(begun).unwrap();
        eventually(|| {
            let stats = place.ok(&["stats"]).json().remove(0);
            (stats["server"]["connections"] == 2).then_some(())
        });
        server.kill();
        let run = Run::from(output_within(append, PATIENCE));
        assert_eq!(run.code, 5, "{line:?}: {}", run.err);
        // On a busy machine it may not be connected yet, which changes the message.
        assert!(run.err.contains("closed"), "{line:?}: {}", run.err);
        drop(stdin);
    }
}

#[test]
fn lines_before_an_error_of_the_input_are_stored() {
    let place = Sandbox::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"one\ntwo\nthr").unwrap();
    // It closes without reading this, so the reader of what it sent gets a reset after it.
    (&theirs).write_all(b"unread").unwrap();
    drop(ours);
    let mut append = place.command(&["append", "t", "--lines"]);
    let run = Run::from(append.stdin(OwnedFd::from(theirs)).output().unwrap());
    assert_eq!(run.code, 1, "{}", run.err);
    assert!(run.err.contains("2 of 2 lines read are stored: cannot read the input"), "{}", run.err);
    assert_eq!(place.frames("t").len(), 2);
}

#[test]
fn lines_without_a_server_let_others_in() {
    let place = Sandbox::new();
    let mut append = place
        .command(&["append", "t", "--lines"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = append.stdin.as_mut().unwrap();
    writeln!(stdin, "one").unwrap();
    // The process creates the store when it opens it.
    eventually(|| place.store().join("xs.sock").exists().then_some(()));
    assert_eq!(place.await_frames("t", 1)[0]["body"], "one");
    place.ok(&["append", "t", "two"]);
    writeln!(append.stdin.as_mut().unwrap(), "three").unwrap();
    drop(append.stdin.take());
    assert!(wait_within(&mut append, PATIENCE).success());
    assert_eq!(place.frames("t").len(), 3);
    assert!(!place.store().join("xs.sock").exists());
}

/// They open the store only after the slow input has ended.
#[test]
fn bodies_without_a_server_let_others_in() {
    let place = Sandbox::new();
    place.ok(&["append", "other", "one"]);
    assert!(place.shell("mkfifo pipe").status().unwrap().success());
    for line in [
        &["append", "t"][..],
        &["append", "t", "-"],
        &["append", "t", "--file", "pipe"],
        &["cas", "put"],
        &["cas", "put", "--file", "pipe"],
    ] {
        let by_name = line.contains(&"pipe");
        let mut command = place.command(line);
        let input = if by_name { Stdio::null() } else { Stdio::piped() };
        let mut child = command.stdin(input).stdout(Stdio::piped()).spawn().unwrap();
        let mut feed: Box<dyn std::io::Write> = match child.stdin.take() {
            Some(stdin) => Box::new(stdin),
            // Opening it waits for the other end.
            None => Box::new(std::fs::File::create(place.path("pipe")).unwrap()),
        };
        feed.write_all(b"a body, ").unwrap();
        place.ok(&["append", "other", "two"]);
        feed.write_all(b"slowly").unwrap();
        drop(feed);
        let run = child.wait_with_output().unwrap();
        assert_eq!(run.status.code(), Some(0), "{line:?}");
        let printed = String::from_utf8(run.stdout).unwrap();
        if line[0] == "cas" {
            assert_eq!(place.ok(&["cas", "get", printed.trim()]).text(), "a body, slowly");
        }
    }
    let bodies = place.frames("t").into_iter().map(|frame| frame["body"].clone());
    assert_eq!(bodies.collect::<Vec<_>>(), ["a body, slowly"; 3]);
    assert_eq!(place.frames("other").len(), 6);
}

/// A body too long for memory needs the store, and shares it.
#[test]
fn a_long_body_without_a_server_lets_others_in() {
    let place = Sandbox::new();
    let mut append = place
        .command(&["append", "t"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = append.stdin.take().unwrap();
    let half = vec![b'x'; 3 << 20];
    stdin.write_all(&half).unwrap();
    eventually(|| place.store().join("xs.sock").exists().then_some(()));
    place.ok(&["append", "other", "one"]);
    stdin.write_all(&half).unwrap();
    drop(stdin);
    assert!(wait_within(&mut append, PATIENCE).success());
    assert_eq!(place.ok(&["last", "t", "-b"]).out, [&half[..], &half].concat());
    assert!(!place.store().join("xs.sock").exists());
}

#[test]
fn a_follower_sees_history_then_what_comes() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    place.ok(&["append", "t", "1"]);
    place.ok(&["append", "t", "2"]);
    let mut tail = place.command(&["tail", "-n", "1", "t"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let second = next();
    place.ok(&["append", "t", "3"]);
    place.ok(&["append", "t", "4", "--ttl", "ephemeral"]);
    let (third, fourth) = (next(), next());
    assert_eq!(second["offset"].as_u64().map(|n| n + 1), third["offset"].as_u64());
    assert_eq!((&fourth["offset"], &fourth["ttl"]), (&().into(), &"ephemeral".into()));
    tail.kill().unwrap();
    tail.wait().unwrap();
}

#[test]
fn a_follower_without_a_server_lets_others_in() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "1"]);
    let mut tail = place.command(&["tail", "t"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert!(next().contains("\"topic\":\"t\""));
    place.ok(&["append", "t", "2"]);
    assert!(next().contains("\"offset\":1"));
    signal(&tail, Signal::INT);
    assert_eq!(wait_within(&mut tail, PATIENCE).code(), Some(130));
    assert!(!place.store().join("xs.sock").exists());
    assert_eq!(place.frames("t").len(), 2);
}

/// As under ssh, or in a loop of a script, whose input it consumes.
#[test]
fn append_says_that_it_reads_standard_input() {
    let place = Sandbox::new();
    let mut command = place.command(&["append", "t"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut append = command.spawn().unwrap();
    let mut stderr = BufReader::new(append.stderr.take().unwrap());
    let (told, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut said = String::new();
        told.send(stderr.read_line(&mut said).map(|_| said))
    });
    let said = line.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(said, "xs: reading the body from standard input; -n appends without one\n");
    append.stdin.as_mut().unwrap().write_all(b"late").unwrap();
    drop(append.stdin.take());
    assert!(wait_within(&mut append, PATIENCE).success());
    assert_eq!(place.frames("t")[0]["body"], "late");
}
