//! A store looked after from the command line, and what needs no store.

use std::fs;

use crate::support::Place;

fn filled() -> Place {
    let place = Place::new();
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
    let saved = place.ok(&["repair", "store", "saved"]).json();
    assert_eq!(saved.last().unwrap()["frames"], 3);
    assert_eq!(place.ok(&["cat", "./saved", "--limit", "1", "-b"]).text(), "one");
    assert_eq!(place.xs(&["repair", "store", "saved"]).code, 1, "never into a store that is there");
}

#[test]
fn a_backup_grows_and_becomes_a_store_again() {
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
fn what_is_in_use_or_not_there_is_said() {
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

#[test]
fn a_served_store_is_looked_after_while_it_serves() {
    let place = filled();
    let server = place.serve(&[]);
    for text in ["a", "b", "c"] {
        place.ok(&["append", "state", "--ttl", "last:1", text]);
    }
    // Three lines, what the server says of its start, and three states.
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
fn the_doctor_looks_at_the_surroundings() {
    let place = filled();
    let names = |place: &Place| {
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
    // Of a machine elsewhere nothing is known but what its server tells.
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
    let place = Place::new();
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
