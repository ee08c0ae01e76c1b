//! Maintenance of a store from the command line, and tools that need no store.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use xs_protocol::codec::{HEADER_LEN, PREFACE};

use crate::support::{PATIENCE, Run, Sandbox, eventually, output_within, signal, text};

fn filled() -> Sandbox {
    let place = Sandbox::new();
    let run = place.xs_with(&["append", "t", "--lines"], b"one\ntwo\nthree\n");
    assert_eq!(run.code, 0, "{}", run.err);
    place
}

#[test]
fn a_sound_store_is_verified_and_a_damaged_one_repaired() {
    let place = filled();
    let report = &place.ok(&["verify", "store"]).json()[0];
    assert_eq!((&report["frames"], &report["findings"]), (&3.into(), &0.into()));
    let packs = fs::read_dir(place.store().join("blobs")).unwrap();
    let pack =
        packs.map(|file| file.unwrap().path()).find(|path| path.extension().unwrap() == "pack");
    let pack = pack.unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let at = bytes.windows(3).position(|window| window == b"two").unwrap();
    bytes[at] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let run = place.xs(&["verify"]);
    assert_eq!(run.code, 1);
    let found = run.json();
    assert_eq!(found[0]["severity"], "lost");
    assert!(found[0]["path"].as_str().unwrap().ends_with(".pack"), "{found:?}");
    let run = place.ok(&["repair", "store", "saved"]);
    let saved = run.json();
    assert_eq!(saved.last().unwrap()["frames"], 3);
    assert_eq!(place.ok(&["cat", "./saved", "--limit", "1", "-b"]).text(), "one");
    // Following the advice makes the new store sound.
    assert!(run.err.contains("xs remove -a saved 1 removes one"), "{}", run.err);
    assert_eq!(place.xs(&["verify", "saved"]).code, 1);
    place.ok(&["remove", "-a", "saved", "1", "--yes"]);
    place.ok(&["verify", "saved"]);
    assert_eq!(place.xs(&["repair", "store", "saved"]).code, 1, "never into a store that is there");
}

#[test]
fn a_backup_is_incremental_and_can_be_restored() {
    let place = filled();
    place.ok(&["backup", "store", "backup"]);
    place.ok(&["append", "t", "four"]);
    assert_eq!(place.ok(&["backup", "backup"]).json()[0]["head"], 4);
    place.ok(&["verify", "backup"]);
    let refused = place.xs(&["append", "./backup", "t", "x"]);
    assert_ne!(refused.code, 0, "a backup is not written to");
    place.ok(&["restore", "backup", "again"]);
    assert_eq!(place.ok(&["cat", "./again", "-b"]).text(), "onetwothreefour");
    place.ok(&["append", "./again", "t", "five"]);
    place.ok(&["fork", "store", "fork"]);
    assert_eq!(place.ok(&["cat", "./fork", "-b"]).text(), "onetwothreefour");
    assert_eq!(place.ok(&["upgrade", "fork"]).json()[0]["to"], 1);
}

#[test]
fn maintenance_reports_locked_and_missing_stores() {
    let place = filled();
    let server = place.serve(&[]);
    for args in [&["repair", "b"][..], &["restore", "store", "b"], &["upgrade"]] {
        let run = place.xs(args);
        assert_eq!(run.code, 5, "xs {args:?}: {}", run.err);
        assert!(run.err.contains(&server.pid().to_string()), "xs {args:?}: {}", run.err);
    }
    let run = place.xs(&["verify", "nowhere"]);
    assert_eq!(run.code, 5, "{}", run.err);
    let asked = place.xs(&["gc"]);
    assert_eq!(asked.code, 2, "gc asks first");
    let named = format!("remove bodies in {} that", place.store().display());
    assert!(asked.err.contains(&named), "by the directory, not its socket: {}", asked.err);
}

/// The log of a program is read by programs.
#[test]
fn maintenance_is_logged_with_its_numbers() {
    let place = filled();
    let server = place.serve(&["--log", "json"]);
    place.ok(&["gc", "--yes"]);
    place.ok(&["compact"]);
    place.ok(&["verify"]);
    place.ok(&["backup", text(&place.store()), "b"]);
    place.ok(&["fork", text(&place.store()), "f"]);
    assert!(server.stop().success());
    let lines: Vec<Value> =
        place.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (work, key) in [
        ("gc", "swept_bytes"),
        ("compact", "bytes_after"),
        ("verify", "findings"),
        ("backup", "files_copied"),
        ("fork", "bytes_copied"),
    ] {
        let line = lines.iter().find(|line| line["work"] == work).expect(work);
        assert!(line[key].is_u64() && line["message"] == "worked on the store's files", "{line}");
        let values = line.as_object().unwrap().values();
        let text = values.filter_map(Value::as_str).find(|text| text.contains(['{', '"']));
        assert_eq!(text, None, "{line}");
    }
}

/// Relays requests to the server, and its first answer but no other.
fn deaf(place: &Sandbox) -> PathBuf {
    let path = place.path("deaf.sock");
    let (listener, store) = (UnixListener::bind(&path).unwrap(), place.store());
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = UnixStream::connect(store.join("xs.sock")).unwrap();
        let (mut asked, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut asked, &mut to));
        let (mut client, mut server) = (client, server);
        let mut hello = vec![0; PREFACE.len() + HEADER_LEN];
        server.read_exact(&mut hello).unwrap();
        let len = u32::from_le_bytes(hello[PREFACE.len()..][..4].try_into().unwrap()) as usize;
        hello.resize(PREFACE.len() + 4 + len, 0);
        server.read_exact(&mut hello[PREFACE.len() + HEADER_LEN..]).unwrap();
        client.write_all(&hello).unwrap();
        std::io::copy(&mut server, &mut std::io::sink())
    });
    path
}

#[test]
fn an_interrupted_fork_is_completed_by_the_server() {
    let place = filled();
    let server = place.serve(&[]);
    let socket = deaf(&place);
    let mut command = place.command(&["fork", text(&socket), "fork"]);
    let fork = command.stderr(Stdio::piped()).spawn().unwrap();
    eventually(|| place.path("fork/super.a").exists().then_some(()));
    signal(&fork, Signal::INT);
    let run = Run::from(output_within(fork, PATIENCE));
    assert_eq!(
        (run.code, run.err.as_str()),
        (130, "xs: no longer waiting; the server completes the fork\n")
    );
    eventually(|| (place.xs(&["cat", "./fork", "-b"]).text() == "onetwothree").then_some(()));
    assert!(server.stop().success());
}

#[test]
fn maintenance_works_while_a_server_runs() {
    let place = filled();
    let server = place.serve(&[]);
    for text in ["a", "b", "c"] {
        place.ok(&["append", "state", "--ttl", "last:1", text]);
    }
    // Three lines, the frame for the server's start, and three states.
    assert_eq!(place.ok(&["verify"]).json()[0]["frames"], 7);
    assert_eq!(place.ok(&["backup", "store", "backup"]).json()[0]["head"], 7);
    place.ok(&["append", "t", "four"]);
    let again = &place.ok(&["backup", "backup"]).json()[0];
    assert_eq!(again["head"], 8, "relative to where xs runs, not the server");
    place.ok(&["fork", "fork"]);
    place.ok(&["compact", "--dead-percent", "1"]);
    assert_eq!(place.ok(&["gc", "--dry-run"]).json()[0]["dry_run"], true);
    place.ok(&["gc", "--grace", "0s", "--dead-percent", "0", "--yes"]);
    let refused = place.xs(&["fork", "fork"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("is not empty"), "{}", refused.err);
    place.ok(&["append", "t", "five"]);
    let all = "onetwothreecfourfive";
    assert_eq!(place.ok(&["cat", "-b"]).text(), all);
    assert!(server.stop().success());
    place.ok(&["verify"]);
    assert_eq!(place.ok(&["cat", "-b"]).text(), all);
    place.ok(&["restore", "backup", "restored"]);
    for copy in ["./restored", "./fork"] {
        assert_eq!(place.ok(&["cat", copy, "-b"]).text(), "onetwothreecfour", "{copy}");
    }
}

#[test]
fn space_is_given_back() {
    let place = filled();
    for text in ["a", "b", "c"] {
        place.ok(&["append", "state", "--ttl", "last:1", text]);
    }
    place.ok(&["compact", "store", "--dead-percent", "1"]);
    let report = &place.ok(&["gc", "--dry-run"]).json()[0];
    assert_eq!(report["dry_run"], true);
    place.ok(&["gc", "--grace", "0s", "--dead-percent", "0", "--yes"]);
    assert_eq!(place.ok(&["cat", "-b"]).text(), "onetwothreec");
    place.ok(&["verify"]);
}

#[test]
fn doctor_checks_the_environment() {
    let place = filled();
    let names = |place: &Sandbox| {
        let checks = place.ok(&["doctor"]).json();
        assert!(checks.iter().all(|check| check["state"] != "bad"), "{checks:?}");
        checks.iter().map(|check| check["check"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = [
        "version",
        "server",
        "store",
        "clock",
        "descriptors",
        "maps",
        "directory",
        "filesystem",
        "space",
        "sync",
    ];
    assert_eq!(names(&place), all);
    let server = place.serve(&["--listen", ":0"]);
    assert_eq!(names(&place), all);
    // Nothing is known of a remote machine except what its server reports.
    let start = &place.await_frames("xs.start", 1)[0]["meta"];
    let tcp = start["listen"][1].as_str().unwrap();
    let checks = place.ok(&["doctor", "-a", tcp]).json();
    let told: Vec<_> = checks.iter().map(|check| check["check"].as_str().unwrap()).collect();
    assert_eq!(told, ["version", "server", "store", "clock"]);
    assert!(server.stop().success());
    let left = fs::read_dir(place.store()).unwrap();
    assert!(left.into_iter().all(|file| !file.unwrap().path().ends_with(".tmp")));
}

#[test]
fn ids_completions_and_pages_need_no_store() {
    let place = Sandbox::new();
    let id = place.ok(&["id"]).text();
    let told = &place.ok(&["id", id.trim()]).json()[0];
    assert_eq!(told["id"], id.trim());
    let at = place.ok(&["id", "--at", "2026-11-24"]).text();
    assert_eq!(place.ok(&["id", at.trim()]).json()[0]["time"], "2026-11-24T00:00:00.000Z");
    for shell in ["bash", "zsh", "fish"] {
        let script = place.ok(&["completions", shell]).text();
        assert!(script.contains("append") && script.contains("with-body"), "{shell}");
    }
    assert!(place.ok(&["man"]).text().starts_with(".ie"));
    place.ok(&["man", "--dir", "man1"]);
    for page in ["xs", "xs-append", "xs-cas-get", "xs-cursor-set"] {
        let text = fs::read_to_string(place.path(&format!("man1/{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(!place.path("man1/xs-__host.1").exists());
}
