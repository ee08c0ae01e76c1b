//! The programs that users start from: that of README.md, exactly as printed there, and the
//! examples. `cargo test -p xs-protocol` builds them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use xs_engine::{Body, CursorChange, CursorName, CursorValue, ExpectRevision, NewFrame, Topic};
use xs_protocol::{Address, AppendRequest, Role};

use crate::relay::Relay;
use crate::rig::{Rig, soon};

fn example(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let program = this.ancestors().nth(2).unwrap().join("examples").join(name);
    let how = "cargo build --release -p xs-protocol --examples";
    assert!(program.exists(), "{} is not there: {how}", program.display());
    program
}

fn run(name: &str, address: &Address, more: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let Address::Unix(path) = address else { panic!("{address} is no Unix socket") };
    let mut command = Command::new(example(name));
    command.arg(path).args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    soon(lines.next_line()).await.unwrap().expect("it has ended")
}

async fn append(rig: &Rig, body: &str) {
    let body = Body::Inline(body.to_owned().into());
    let frame = NewFrame { body, ..NewFrame::new(Topic::parse("notes").unwrap()) };
    let client = rig.client().await;
    soon(client.append(&AppendRequest::frames(vec![frame]))).await.unwrap();
}

/// The cursor is all that it needs to resume, over another connection in the same process or in
/// another process.
#[tokio::test]
async fn the_example_consumes_and_goes_on_where_its_cursor_is() {
    let rig = Rig::unix(Role::Admin).await;
    let relay = Relay::before(&rig.address);
    let client = rig.client().await;
    let name = CursorName::parse("job").unwrap();
    let reached = async |offset| {
        let is_there = async || {
            soon(client.cursor_get(&name)).await.unwrap().is_some_and(|at| at.offset == offset)
        };
        while !is_there().await {
            tokio::task::yield_now().await;
        }
    };
    append(&rig, "one").await;
    let (mut child, mut lines) = run("consume", &relay.address(), &["job", "notes"]);
    assert_eq!(line(&mut lines).await, "Some(0) notes");
    soon(reached(1)).await;
    relay.cut();
    append(&rig, "two").await;
    assert_eq!(line(&mut lines).await, "Some(1) notes");
    soon(reached(2)).await;
    // Without notice.
    soon(child.kill()).await.unwrap();
    append(&rig, "three").await;
    let (mut child, mut lines) = run("consume", &relay.address(), &["job", "notes"]);
    assert_eq!(line(&mut lines).await, "Some(2) notes");
    soon(reached(3)).await;
    // Another client moves the cursor: a cursor must have only one consumer.
    let set = Some(CursorValue::default());
    let change = CursorChange { name: name.clone(), expect: ExpectRevision::Any, set };
    soon(client.cursor_set(change)).await.unwrap();
    // Waiting for a child closes its input, and at the end of its input it would exit successfully.
    let _input = child.stdin.take();
    append(&rig, "four").await;
    assert!(!soon(child.wait()).await.unwrap().success());
}

/// A change whose answer was lost is recognized by its value, and another consumer's is not
/// mistaken for it.
#[tokio::test]
async fn the_example_goes_on_where_the_answer_to_its_change_was_lost() {
    for others in [None, Some(9)] {
        let rig = Rig::unix(Role::Admin).await;
        let relay = Relay::before(&rig.address);
        let client = rig.client().await;
        let name = CursorName::parse("job").unwrap();
        relay.lose_cursor_set();
        append(&rig, "one").await;
        let (mut child, mut lines) = run("consume", &relay.address(), &["job", "notes"]);
        let _input = child.stdin.take();
        assert_eq!(line(&mut lines).await, "Some(0) notes");
        soon(relay.lost()).await;
        if let Some(offset) = others {
            let set = Some(CursorValue { offset, ..CursorValue::default() });
            let change = CursorChange { name: name.clone(), expect: ExpectRevision::Any, set };
            soon(client.cursor_set(change)).await.unwrap();
        }
        relay.go_on();
        match others {
            None => {
                append(&rig, "two").await;
                assert_eq!(line(&mut lines).await, "Some(1) notes");
                let at = async || soon(client.cursor_get(&name)).await.unwrap().unwrap();
                while at().await.offset != 2 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(at().await.revision, 2);
            }
            Some(offset) => {
                assert!(!soon(child.wait()).await.unwrap().success());
                let at = soon(client.cursor_get(&name)).await.unwrap().unwrap();
                assert_eq!((at.revision, at.offset), (2, offset));
            }
        }
    }
}

/// The program without the lines that only the file in the tree needs.
fn program(source: &str) -> &str {
    source.split_once("\n\n").unwrap().1
}

#[tokio::test]
async fn the_program_of_the_readme_does_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../README.md")).unwrap();
    let shown = page.split_once("```rust\n").unwrap().1.split_once("```").unwrap().0;
    assert_eq!(shown, program(&fs::read_to_string(root.join("examples/notes.rs")).unwrap()));

    let rig = Rig::unix(Role::Admin).await;
    let (_child, mut lines) = run("notes", &rig.address, &[]);
    assert_eq!(line(&mut lines).await, "notes Some(b\"buy milk\")");
    append(&rig, "and bread").await;
    assert_eq!(line(&mut lines).await, "notes Some(b\"and bread\")");
}

#[tokio::test]
async fn the_example_follows_over_lost_connections_and_goes_on_in_another_process() {
    let rig = Rig::unix(Role::Admin).await;
    let relay = Relay::before(&rig.address);
    append(&rig, "one").await;
    let (mut child, mut lines) = run("follow", &relay.address(), &["notes"]);
    assert_eq!(line(&mut lines).await, "Some(0) notes one");
    relay.cut();
    append(&rig, "two").await;
    assert_eq!(line(&mut lines).await, "Some(1) notes two");
    child.stdin.take().unwrap().shutdown().await.unwrap();
    let told = line(&mut lines).await;
    let point = told.strip_prefix("point ").unwrap_or_else(|| panic!("{told}"));
    assert!(soon(child.wait()).await.unwrap().success());
    append(&rig, "three").await;
    let (_child, mut lines) = run("follow", &relay.address(), &["notes", point]);
    assert_eq!(line(&mut lines).await, "Some(2) notes three");
}
