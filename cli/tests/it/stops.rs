//! Signals to processes that wait: for a silent server, a store that takes long to open, a pipe
//! that is not written, and one that is not read.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    PATIENCE, Run, Sandbox, eventually, output_within, signal, text, wait_within,
};

/// Waits until a process handles a signal itself.
fn await_heeded(child: &Child, signal: Signal) {
    let status = format!("/proc/{}/status", child.id());
    eventually(|| {
        let status = fs::read_to_string(&status).unwrap();
        let line = status.lines().find(|line| line.starts_with("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        (caught >> (signal.as_raw() - 1) & 1 == 1).then_some(())
    });
}

#[test]
fn a_signal_ends_the_wait_for_a_silent_server() {
    let place = Sandbox::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = format!(":{}", listener.local_addr().unwrap().port());
    for one in [Signal::INT, Signal::TERM] {
        let mut cat = place.command(&["cat", &addr]).stderr(Stdio::null()).spawn().unwrap();
        let (_silent, _) = listener.accept().unwrap();
        await_heeded(&cat, one);
        signal(&cat, one);
        assert_eq!(wait_within(&mut cat, PATIENCE).code(), Some(130));
    }
}

/// One of the store's files is a pipe here, which takes forever to open.
#[test]
fn opening_a_slow_store_can_be_interrupted() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "x"]);
    for name in ["super.a", "super.b"] {
        fs::remove_file(place.store().join(name)).unwrap();
    }
    assert!(place.shell("mkfifo store/super.a store/super.b").status().unwrap().success());
    for (line, code) in [(&["cat"][..], 130), (&["serve", text(&place.store())], 0)] {
        for one in [Signal::INT, Signal::TERM] {
            let mut child = place.command(line).stderr(Stdio::null()).spawn().unwrap();
            await_heeded(&child, one);
            signal(&child, one);
            assert_eq!(wait_within(&mut child, PATIENCE).code(), Some(code), "{line:?}");
        }
    }
}

#[test]
fn subcommands_waiting_for_input_can_be_interrupted() {
    let place = Sandbox::new();
    let server = place.serve(&[]);
    assert!(place.shell("mkfifo never").status().unwrap().success());
    for line in [
        &["eval", "-"][..],
        &["eval", "--file", "never"],
        &["append", "t", "--file", "never"],
        &["append", "t", "--lines", "--file", "never"],
    ] {
        let connected = |count: usize| {
            eventually(|| {
                let stats: Value = place.ok(&["stats"]).json().remove(0);
                (stats["server"]["connections"] == count).then_some(())
            });
        };
        // The previous one has disconnected.
        connected(1);
        let mut command = place.command(line);
        let command = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        // It is connected, and only reads.
        connected(2);
        signal(&child, Signal::INT);
        assert_eq!(wait_within(&mut child, PATIENCE).code(), Some(130), "{line:?}");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{line:?} has nothing to end in order, and takes no time for it");
    }
    assert!(server.stop().success());
}

/// After one signal, it ends when its reader's time is over; after a second, at once.
#[test]
fn blocked_output_does_not_keep_a_stopped_subcommand() {
    let place = Sandbox::new();
    let many: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    place.xs_with(&["append", "t", "--lines"], many.as_bytes());
    let _server = place.serve(&[]);
    let stuck = || {
        let mut cat = place.command(&["cat"]).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = cat.stdout.take().unwrap();
        // The pipe is full, except for the end of its last page, and there is more.
        eventually(|| {
            let waiting = rustix::io::ioctl_fionread(&stdout).unwrap();
            (waiting >= 60 * 1024).then_some(())
        });
        (cat, stdout)
    };
    let (mut once, _unread) = stuck();
    signal(&once, Signal::TERM);
    let (mut twice, _unread_too) = stuck();
    let ended = eventually(|| {
        signal(&twice, Signal::INT);
        twice.try_wait().unwrap()
    });
    assert_eq!(ended.code(), Some(130));
    assert_eq!(wait_within(&mut once, PATIENCE).code(), Some(130));
}

#[test]
fn lines_that_were_read_are_stored_before_the_end() {
    let place = Sandbox::new();
    let _server = place.serve(&["--sync", "none"]);
    for one in [Signal::INT, Signal::TERM] {
        let topic = format!("lines.{}", one.as_raw());
        let mut command = place.command(&["append", &topic, "--lines"]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut append = command.spawn().unwrap();
        let mut stdin = append.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            let many: String = (0..1000).map(|n| format!("line {n} of a thousand\n")).collect();
            while stdin.write_all(many.as_bytes()).is_ok() {}
        });
        place.await_frames(&topic, 2000);
        signal(&append, one);
        let run = Run::from(output_within(append, PATIENCE));
        writer.join().unwrap();
        assert_eq!(run.code, 130, "{}", run.err);
        let said = run.err.trim().trim_start_matches("xs: ");
        let stored = &place.ok(&["topics", &topic]).json()[0]["count"];
        let all = format!("{stored} of {stored} lines read are stored");
        assert_eq!(said, all);
    }
}

/// The signal that ends the command also reaches the reader.
#[test]
fn an_event_whose_command_was_stopped_with_its_reader_is_neither_parked_nor_skipped() {
    let place = Sandbox::new();
    let _server = place.serve(&[]);
    place.ok(&["append", "t", "x"]);
    let each = ["each", "t", "--cursor", "c", "--park", "p", "--", "sh", "-c"];
    for n in 0..20 {
        let how = ["kill -INT $PPID; exit 1", "kill -TERM $PPID; kill -INT $$"][n % 2];
        let run = place.xs(&[&each[..], &[how]].concat());
        assert_eq!(run.code, 130, "{}", run.err);
        assert_eq!(place.xs(&["cursor", "get", "c"]).code, 3, "the cursor has not moved");
    }
    assert!(place.frames("p").is_empty());
}

#[test]
fn dev_stops_in_order_when_its_reader_goes() {
    let place = Sandbox::new();
    place.write("m/handlers/.keep", "");
    let mut command = place.command(&["dev", "m"]);
    let mut dev = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(dev.stdout.take().unwrap());
    let store = "./m/.xs/dev";
    place.ok(&["-a", store, "ping", "--wait", "4m"]);
    place.ok(&["append", store, "in", "-n"]);
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    // It finds the pipe closed when it has the next thing to show.
    let ended = eventually(|| {
        place.xs(&["append", store, "in", "-n"]);
        dev.try_wait().unwrap()
    });
    let mut said = String::new();
    dev.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((ended.code(), said.as_str()), (Some(0), ""));
    assert_eq!(place.ok(&["cat", store, "xs.stopping"]).json().len(), 1);
}
