//! The Rust client over a server that is killed and restarted: a follower continues automatically,
//! and an append without an answer is an error. The binary continues on request.

use std::io::{BufRead as _, BufReader};
use std::ops::Range;
use std::process::{Child, Stdio};

use serde_json::json;
use xs_engine::ReadOptions;
use xs_protocol::{Address, AppendRequest, Class, Follow, FollowEvent, FollowOptions};

use crate::client::{connect, frame, runtime};
use crate::support::{PATIENCE, Run, Sandbox, output_within};

/// Appended before each kill.
const FRAMES: u64 = 500;
const KILLS: u64 = 3;

/// Takes frames, which must be the next of the topic, until `end`. Returns how often it resumed.
async fn take(follow: &mut Follow, next: &mut u64, end: u64) -> u64 {
    let mut resumed = 0;
    while *next < end {
        let event = tokio::time::timeout(PATIENCE, follow.next()).await.expect("nothing comes");
        match event.expect("it has ended").unwrap() {
            FollowEvent::Frame(one) => {
                let meta: serde_json::Value = serde_json::from_slice(one.frame.meta()).unwrap();
                assert_eq!(meta["n"], *next);
                *next += 1;
            }
            FollowEvent::Resumed { .. } => resumed += 1,
            FollowEvent::CaughtUp { .. } => {}
            other => panic!("after {next}: {other:?}"),
        }
    }
    resumed
}

#[test]
fn followers_miss_and_repeat_nothing_over_killed_servers() {
    let place = Sandbox::new();
    runtime().block_on(async {
        let mut server = place.serve(&[]);
        let topics = xs_engine::TopicPatterns::parse("t").unwrap();
        let read = ReadOptions { topics, ..ReadOptions::default() };
        let options = FollowOptions { read, ..FollowOptions::default() };
        let address = Address::of_path(&place.store());
        let mut follow = Follow::open(&address, options).await.unwrap();
        let (mut next, mut appended, mut resumed) = (0, 0, 0);
        for _ in 0..KILLS {
            let client = connect(&place.store()).await;
            for _ in 0..FRAMES {
                let one = frame("t", &json!({ "n": appended }), b"");
                client.append(&AppendRequest::frames(vec![one])).await.unwrap();
                appended += 1;
            }
            // In the middle of the available frames.
            resumed += take(&mut follow, &mut next, appended - FRAMES / 2).await;
            server.kill();
            let late = client.append(&AppendRequest::frames(vec![frame("u", &json!(1), b"")]));
            assert_eq!(late.await.unwrap_err().class(), Class::Unknown);
            server = place.serve(&[]);
            resumed += take(&mut follow, &mut next, appended).await;
        }
        let client = connect(&place.store()).await;
        let one = frame("t", &json!({ "n": appended }), b"");
        client.append(&AppendRequest::frames(vec![one])).await.unwrap();
        resumed += take(&mut follow, &mut next, appended + 1).await;
        assert_eq!(resumed, KILLS);
        server.kill();
    });
}

/// The lines that a follower prints, as they come.
fn printed(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap)
}

/// Appends numbers.
fn append(place: &Sandbox, numbers: Range<u64>) {
    let lines: String = numbers.map(|n| format!("{n}\n")).collect();
    let run = place.xs_with(&["append", "t", "--lines"], lines.as_bytes());
    assert_eq!(run.code, 0, "{}", run.err);
}

/// Continues over servers that are killed and over one that is stopped in order, to the end.
fn check_waits(place: &Sandbox, args: &[&str]) {
    let mut server = Some(place.serve(&[]));
    append(place, 0..20);
    let mut command = place.command(args);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut reader = command.spawn().unwrap();
    let mut lines = printed(&mut reader);
    let mut check = |numbers: Range<u64>| {
        for n in numbers {
            assert_eq!(lines.next().expect("it has ended"), n.to_string(), "{args:?}");
        }
    };
    check(0..20);
    for n in [20, 30] {
        let server_now = server.take().unwrap();
        if n == 20 {
            server_now.kill();
        } else {
            assert!(server_now.stop().success());
        }
        // Also while it is away, by a process that has the store to itself.
        for n in n..n + 5 {
            place.ok(&["append", "t", &n.to_string()]);
        }
        server = Some(place.serve(&[]));
        append(place, n + 5..n + 10);
        check(n..n + 10);
    }
    let run = Run::from(output_within(reader, PATIENCE));
    assert_eq!((run.code, run.err.matches("the server is back").count()), (0, 2), "{}", run.err);
    assert_eq!(run.err.matches("; waiting for the server").count(), 2, "{}", run.err);
    append(place, 40..41);
    server.unwrap().kill();
}

#[test]
fn reconnect_waits_for_the_server() {
    let cat = ["cat", "-F", "t", "--limit", "40", "--format", "{body}"];
    check_waits(&Sandbox::new(), &cat);
    let place = Sandbox::new();
    check_waits(&place, &[&cat[..], &["--cursor", "c"]].concat());
    assert_eq!(place.ok(&["cat", "t", "--cursor", "c", "--format", "{body}"]).text(), "40\n");
    check_waits(
        &Sandbox::new(),
        &["tail", "-F", "-n", "20", "t", "--limit", "40", "--format", "{body}"],
    );
    let place = Sandbox::new();
    let each = ["each", "-F", "t", "--limit", "40", "--cursor", "c"];
    check_waits(&place, &[&each[..], &["--", "sh", "-c", "cat; echo"]].concat());
    assert_eq!(place.ok(&["cat", "t", "--cursor", "c", "--format", "{body}"]).text(), "40\n");
}

#[test]
fn reconnect_refuses_a_different_store() {
    let place = Sandbox::new();
    let server = place.serve(&[]);
    append(&place, 0..1);
    let mut command = place.command(&["tail", "-F", "t", "--format", "{body}"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tail = command.spawn().unwrap();
    let mut lines = printed(&mut tail);
    assert_eq!(lines.next().unwrap(), "0");
    server.kill();
    std::fs::rename(place.store(), place.path("before")).unwrap();
    let server = place.serve(&[]);
    let run = Run::from(output_within(tail, PATIENCE));
    assert_eq!(run.code, 5, "{}", run.err);
    assert!(run.err.contains("another store is served there"), "{}", run.err);
    assert!(server.stop().success());
}
