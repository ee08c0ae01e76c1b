//! Signals to what waits: for a server that says nothing, a store that takes long to open, a pipe
//! that nobody feeds, and one that nobody reads.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{PATIENCE, Place, Run, eventually, output_within, signal, text, wait_within};

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
fn lines_that_were_read_are_stored_before_the_end() {
    let place = Place::new();
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

/// The signal that ends the command is the reader's too.
#[test]
fn an_event_whose_command_was_stopped_with_its_reader_is_neither_parked_nor_skipped() {
    let place = Place::new();
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
    let place = Place::new();
    place.write("m/handlers/.keep", "");
    let mut command = place.command(&["dev", "m"]);
    let mut dev = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(dev.stdout.take().unwrap());
    let store = "./m/.xs/dev";
    place.ok(&["-a", store, "ping", "--wait", "60s"]);
    place.ok(&["append", store, "in", "-n"]);
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    // Whatever is to be shown next is what it meets the closed pipe with.
    let ended = eventually(|| {
        place.xs(&["append", store, "in", "-n"]);
        dev.try_wait().unwrap()
    });
    let mut said = String::new();
    dev.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((ended.code(), said.as_str()), (Some(0), ""));
    assert_eq!(place.ok(&["cat", store, "xs.stopping"]).json().len(), 1);
}
