//! The life of a server: what it says of itself, how it stops, what it leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::{Place, eventually, is_running};

const TICK: &str = r#"
import { generator } from "xs";
export default generator({ async *run(ctx) {
  for await (const _ of ctx.every("20ms")) yield { tick: true };
} });
"#;

#[test]
fn sigterm_leaves_neither_child_nor_socket() {
    let place = Place::new();
    place.write("modules/generators/tick.ts", TICK);
    let server = place.serve(&["--modules", "modules"]);
    let socket = place.store().join("xs.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    place.await_frames("tick.recv", 3);
    let children = server.children();
    assert!(!children.is_empty(), "the Host is a child process");
    let status = server.stop();
    assert!(status.success(), "{status} {}", place.log());
    assert!(!socket.exists());
    for child in children {
        eventually(|| (!is_running(child)).then_some(()));
    }
    let topics: Vec<_> = place
        .ok(&["cat", "xs.start,xs.stopping"])
        .json()
        .iter()
        .map(|frame| frame["topic"].clone())
        .collect();
    assert_eq!(topics, ["xs.start", "xs.stopping"]);
}

/// Modules get what the server leaves of the processors: their process is a session of its own, and
/// that and all of its threads are nice.
#[test]
fn the_process_of_modules_gives_way_to_the_server() {
    let place = Place::new();
    place.write("modules/generators/tick.ts", TICK);
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("tick.recv", 1);
    for child in server.children() {
        let stats = fs::read_dir(format!("/proc/{child}/task")).unwrap();
        let stats = stats.map(|task| fs::read_to_string(task.unwrap().path().join("stat")));
        let stats: Vec<String> = stats.filter_map(Result::ok).collect();
        assert!(stats.len() > 1);
        for stat in stats {
            // Behind the name: its state, parent, group, session; the nice value is the 17th.
            let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
            assert_eq!((fields[3], fields[16]), (child.to_string().as_str(), "10"), "{stat}");
        }
        let session = fs::read_to_string(format!("/proc/{child}/autogroup")).unwrap_or_default();
        assert!(session.is_empty() || session.trim_end().ends_with("nice 10"), "{session}");
    }
    assert!(server.stop().success());
}

/// The engine keeps bytecode below the user's home, and runs what it finds there, unless the Host is
/// started in the right way.
#[test]
fn modules_leave_nothing_in_the_home_of_the_user() {
    let place = Place::new();
    place.write("modules/generators/tick.ts", TICK);
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("tick.recv", 1);
    assert!(server.stop().success());
    let mut names: Vec<_> = fs::read_dir(place.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["log", "modules", "store"]);
}

#[test]
fn a_killed_server_leaves_no_host_behind_and_starts_again() {
    let place = Place::new();
    place.write("modules/generators/tick.ts", TICK);
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("tick.recv", 3);
    let children = server.children();
    server.kill();
    for child in children {
        eventually(|| (!is_running(child)).then_some(()));
    }
    let before = place.frames("tick.recv").len();
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("tick.recv", before + 3);
    assert!(server.stop().success());
}

#[test]
fn a_stopped_server_keeps_the_store_for_subcommands() {
    let place = Place::new();
    let server = place.serve(&["--sync", "none"]);
    place.ok(&["append", "t", "x"]);
    assert!(server.stop().success());
    assert_eq!(place.frames("t")[0]["body"], "x");
}
