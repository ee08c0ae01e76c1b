//! The life of a server: its announcements, how it stops, what it leaves behind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use xs_engine::{Store, StoreOptions};

use crate::support::{Sandbox, eventually, is_running};

const TICK: &str = r#"
import { generator } from "xs";
export default generator({ async *run(ctx) {
  for await (const _ of ctx.every("20ms")) yield { tick: true };
} });
"#;

#[test]
fn a_start_after_kill_reports_recovery() {
    let place = Sandbox::new();
    let said = "the store was not closed cleanly; recovering it";
    let server = place.serve(&[]);
    place.ok(&["append", "t", "x"]);
    server.kill();
    assert!(!place.log().contains(said), "{}", place.log());
    let server = place.serve(&[]);
    assert!(place.log().contains(said), "{}", place.log());
    assert!(server.stop().success());
    let server = place.serve(&[]);
    assert_eq!(place.log().matches(said).count(), 1, "{}", place.log());
    assert!(server.stop().success());
}

#[test]
fn sigterm_leaves_neither_child_nor_socket() {
    let place = Sandbox::new();
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

/// A subcommand that needs no server holds the store only for a moment.
#[test]
fn serve_waits_for_a_process_that_briefly_holds_the_store() {
    let place = Sandbox::new();
    let held = Store::open(place.store(), StoreOptions::default()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let held = held;
            eventually(|| place.log().contains("waiting for it").then_some(()));
            held.close().unwrap();
        });
        assert!(place.serve(&[]).stop().success(), "{}", place.log());
    });
    let held = Store::open(place.store(), StoreOptions::default()).unwrap();
    let refused = place.xs(&["serve", "./store"]);
    assert_eq!(refused.code, 5);
    assert!(refused.err.contains("./store is still open in process"), "{}", refused.err);
    let advice = " after 3 s; stop it, or use it with -a ./store";
    assert!(refused.err.contains(advice), "{}", refused.err);
    held.close().unwrap();
}

/// The fields of `/proc/PID/stat` after the name: state, parent, group, session; the nice value is
/// the 17th.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(") ").unwrap().1.split(' ').collect()
}

/// Modules get the processor time that the server leaves: their process has a session of its own,
/// and all of its threads are nicer.
#[test]
fn the_host_runs_at_a_lower_priority() {
    let place = Sandbox::new();
    place.write("modules/generators/tick.ts", TICK);
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("tick.recv", 1);
    let own: i32 = fields(&fs::read_to_string("/proc/self/stat").unwrap())[16].parse().unwrap();
    let nice = (own + 10).min(19).to_string();
    for child in server.children() {
        let stats = fs::read_dir(format!("/proc/{child}/task")).unwrap();
        let stats = stats.map(|task| fs::read_to_string(task.unwrap().path().join("stat")));
        let stats: Vec<String> = stats.filter_map(Result::ok).collect();
        assert!(stats.len() > 1);
        for stat in stats {
            let fields = fields(&stat);
            assert_eq!((fields[3], fields[16]), (&*child.to_string(), &*nice), "{stat}");
        }
        let session = fs::read_to_string(format!("/proc/{child}/autogroup")).unwrap_or_default();
        assert!(
            session.is_empty() || session.trim_end().ends_with(&format!("nice {nice}")),
            "{session}"
        );
    }
    assert!(server.stop().success());
}

/// The engine would keep bytecode in the user's home, and run what it finds there, if the Host were
/// not started in the right way.
#[test]
fn modules_leave_nothing_in_the_home_of_the_user() {
    let place = Sandbox::new();
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
    let place = Sandbox::new();
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
    let place = Sandbox::new();
    let server = place.serve(&["--sync", "none"]);
    place.ok(&["append", "t", "x"]);
    assert!(server.stop().success());
    assert_eq!(place.frames("t")[0]["body"], "x");
}
