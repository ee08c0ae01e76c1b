//! `-F`: what a reader does until there is a server, and while it determines where to begin.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
use rustix::process::Signal;
use serde_json::json;

use crate::between::Between;
use crate::support::{PATIENCE, Run, Sandbox, eventually, output_within, signal, signal_pid, text};

/// Frames that are searched: more bytes than a server sends ahead.
const FRAMES: u64 = 2_500;
const META_BYTES: usize = 16 * 1024;
/// One in this many of them matches.
const EVERY: u64 = 1_000;
/// Bytes of the search after which it is held.
const HELD_AFTER: u64 = 1024 * 1024;

fn start(place: &Sandbox, args: &[&str], addr: &str) -> Child {
    let mut command = place.command(args);
    command.env("XS_ADDR", addr).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The lines of standard error, as they come.
fn said(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap)
}

fn append(place: &Sandbox, numbers: Range<u64>) {
    let filler = "x".repeat(META_BYTES);
    let lines = numbers.map(|n| json!({ "n": n, "filler": filler }).to_string() + "\n");
    let lines: String = lines.collect();
    let run = place.xs_with(&["append", "t", "--lines", "--json"], lines.as_bytes());
    assert_eq!(run.code, 0, "{}", run.err);
}

/// The search for the newest matches ended when the server stopped, as if there were no more: the
/// ones that it had not reached were never printed.
#[test]
fn a_search_for_the_newest_outlives_a_server_that_stops() {
    let expression = format!("f.meta.n % {EVERY} === 0");
    let tail = ["tail", "-n", "2", "t", "--where", &expression, "--format", "{meta.n}"];
    let every = |end: u64| (0..end).map(|n| format!("{}\n", n * EVERY)).collect::<String>();
    // With -F, all since the start is printed; without it, there is an error.
    for (more, expected) in [(&["-F", "--limit", "5"][..], every(5)), (&[], String::new())] {
        let place = Sandbox::new();
        append(&place, 0..1_999);
        let server = place.serve(&[]);
        let between = Between::new(&place, HELD_AFTER);
        let reader = start(&place, &[&tail[..], more].concat(), text(&between.front));
        between.await_held();
        signal_pid(server.pid(), Signal::TERM);
        eventually(|| UnixStream::connect(place.store().join("xs.sock")).is_err().then_some(()));
        between.let_go();
        assert!(server.stop().success());
        append(&place, 1_999..FRAMES);
        let server = place.serve(&[]);
        append(&place, FRAMES..4_001);
        let run = Run::from(output_within(reader, PATIENCE));
        assert_eq!(run.text(), expected, "{}", run.err);
        assert_eq!(run.code, if more.is_empty() { 5 } else { 0 }, "{}", run.err);
        server.kill();
    }
}

/// The part of a body printed before its connection was lost was printed again before the rest.
#[test]
fn a_body_that_is_cut_off_goes_on_where_it_was() {
    let place = Sandbox::new();
    let body: Vec<u8> = (0..18_u32 << 20).flat_map(|n| (n * 7).to_le_bytes()).collect();
    let server = place.serve(&[]);
    assert_eq!(place.xs_with(&["append", "t"], &body).code, 0);
    let between = Between::new(&place, HELD_AFTER);
    let cat = ["cat", "-F", "-b", "t", "--limit", "1"];
    let reader = start(&place, &cat, text(&between.front));
    between.await_held();
    server.kill();
    between.let_go();
    let server = place.serve(&[]);
    let run = Run::from(output_within(reader, PATIENCE));
    assert_eq!((run.code, run.out.len()), (0, body.len()), "{}", run.err);
    assert!(run.out == body && run.err.contains("cut off after"), "{}", run.err);
    server.kill();
}

/// No other reader moved the cursor, and it never counted frames that were not there.
#[test]
fn a_reader_of_what_the_store_has_lost_is_told_so() {
    let cat = ["cat", "-F", "t", "--format", "{body}"];
    for (args, said) in [
        (&cat[..], "begin there: --from "),
        (&[&cat[..], &["--cursor", "c"]].concat(), "cursor c was set back"),
        (&["each", "-F", "t", "--", "sh", "-c", "cat; echo"], "begin there: --from "),
    ] {
        let place = Sandbox::new();
        let append = |body: &str| drop(place.ok(&["append", "t", body]));
        ["0", "1", "2", "3", "4"].into_iter().for_each(append);
        assert!(place.shell("cp -a store before").status().unwrap().success());
        let server = place.serve(&[]);
        ["5", "6", "7", "8", "9"].into_iter().for_each(append);
        let mut reader = start(&place, args, text(&place.store()));
        let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
        assert!((0..10).all(|n| lines.next().unwrap().unwrap() == n.to_string()));
        if args.contains(&"--cursor") {
            eventually(|| {
                let cursors = place.ok(&["cursor", "list"]).json();
                (cursors.first()?["offset"].as_u64()? >= 10).then_some(())
            });
        }
        server.kill();
        // As after a power cut without a sync.
        std::fs::remove_dir_all(place.store()).unwrap();
        std::fs::rename(place.path("before"), place.store()).unwrap();
        let server = place.serve(&[]);
        let run = Run::from(output_within(reader, PATIENCE));
        assert_eq!((run.code, run.err.contains(said)), (4, true), "{args:?}: {}", run.err);
        server.kill();
    }
}

#[test]
fn a_cursor_is_no_place_to_begin_at() {
    let place = Sandbox::new();
    let run = place.xs(&["cat", "-F", "--from", "mailer"]);
    assert_eq!((run.code, run.err.contains("use --cursor mailer")), (2, true), "{}", run.err);
}

/// A store that the reader opened itself kept the server out for as long as the reader ran.
#[test]
fn reconnect_leaves_a_store_to_its_server() {
    for exists in [false, true] {
        for args in [
            &["tail", "-F", "t", "--limit", "2", "--format", "{body}"][..],
            &["cat", "-F", "t", "--limit", "2", "--format", "{body}"],
            &["each", "-F", "t", "--limit", "2", "--", "sh", "-c", "cat; echo"],
        ] {
            let place = Sandbox::new();
            if exists {
                place.ok(&["append", "u", "x"]);
            }
            let mut reader = start(&place, args, text(&place.store()));
            let mut lines = said(&mut reader);
            let waits = lines.next().unwrap();
            assert!(waits.contains("xs serve") && waits.contains("; waiting for"), "{waits}");
            assert_eq!(place.store().exists(), exists, "it has made a store");
            let server = place.serve(&[]);
            place.ok(&["append", "t", "0"]);
            place.ok(&["append", "t", "1"]);
            let there = lines.next().unwrap();
            assert!(there.contains("the server is there"), "{args:?}: {there}");
            let run = Run::from(output_within(reader, PATIENCE));
            assert_eq!((run.code, run.text().as_str()), (0, "0\n1\n"), "{args:?}");
            assert!(server.stop().success());
        }
    }
}

#[test]
fn reconnect_waits_for_an_address_and_not_for_what_is_wrong_with_it() {
    let place = Sandbox::new();
    // The port is taken, but nothing listens.
    let port = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&port, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let at: SocketAddr = getsockname(&port).unwrap().try_into().unwrap();
    let mut reader = start(&place, &["tail", "-F", "t", "--limit", "1"], &at.to_string());
    let waits = said(&mut reader).next().unwrap();
    assert!(waits.contains("refused") && waits.contains("; waiting for"), "{waits}");
    // A stop takes effect at once.
    signal(&reader, Signal::INT);
    assert_eq!(Run::from(output_within(reader, PATIENCE)).code, 130);

    let wrong = place.xs(&["tail", "-F", "-a", "no:such:address"]);
    assert_eq!(wrong.code, 2, "{}", wrong.err);
    let file = place.write("file", "");
    let wrong = place.xs(&["tail", "-F", "-a", text(&file)]);
    assert_eq!(wrong.code, 5, "{}", wrong.err);
    // Once the store has a token, one is required.
    place.ok(&["token", "create", "a", "--role", "read"]);
    let server = place.serve(&["--listen", ":0"]);
    let listening = &place.await_frames("xs.start", 1)[0]["meta"]["listen"][1];
    let mut tail = place.command(&["tail", "-F", "-a", listening.as_str().unwrap()]);
    let tail = tail.env("XS_TOKEN", "xst_wrong").stdout(Stdio::piped()).stderr(Stdio::piped());
    let wrong = Run::from(output_within(tail.spawn().unwrap(), PATIENCE));
    assert_eq!(wrong.code, 7, "{}", wrong.err);
    assert!(server.stop().success());
}
