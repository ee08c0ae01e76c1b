//! Exports, imports, and removals of events.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::between::Between;
use crate::support::{
    PATIENCE, Run, Sandbox, eventually, output_within, signal, text, wait_within,
};

/// The content of frames without offsets, which an import does not keep.
fn content(frames: &[Value]) -> Vec<Value> {
    let without = |frame: &Value| {
        let mut frame = frame.clone();
        frame.as_object_mut().unwrap().remove("offset");
        frame
    };
    frames.iter().map(without).collect()
}

fn all(place: &Sandbox, store: &str) -> Vec<Value> {
    content(&place.ok(&["cat", store, "--with-body"]).json())
}

fn filled(place: &Sandbox) {
    place.ok(&["append", "a", "--meta", "{ \"n\": 1.0 }", "one"]);
    place.ok(&["append", "b", "--ttl", "last:2", "-n"]);
    place.xs_with(&["append", "a.bytes"], b"\xff\x00");
    let large = vec![b'x'; 3 * 1024 * 1024];
    assert_eq!(place.xs_with(&["append", "a.large"], &large).code, 0);
}

#[test]
fn an_export_becomes_the_same_store() {
    let place = Sandbox::new();
    filled(&place);
    let told = &place.ok(&["export", "dump"]).json()[0];
    assert_eq!(told["exported"], 4);
    assert_eq!(fs::read_dir(place.path("dump/cas")).unwrap().count(), 3);
    let told = &place.ok(&["import", "dump", "copy"]).json()[0];
    assert_eq!(told, &json!({ "new": 4, "there": 0, "refused": 0 }));
    let first = all(&place, "./store");
    assert_eq!(all(&place, "./copy"), first);
    let told = &place.ok(&["import", "dump", "copy"]).json()[0];
    assert_eq!(told, &json!({ "new": 0, "there": 4, "refused": 0 }));
    // Into a store in use, ids are new, and the old ones still find the frames.
    place.ok(&["append", "./used", "z", "-n"]);
    let refused = place.xs(&["import", "dump", "used"]);
    assert_eq!(refused.code, 1, "{}", refused.err);
    let said = "line 1: it is older than the newest event of the store; use --new-ids";
    assert!(refused.err.contains(said), "{}", refused.err);
    place.ok(&["import", "dump", "used", "--new-ids"]);
    let old = first[0]["id"].as_str().unwrap();
    assert_eq!(place.ok(&["get", "./used", old, "-b"]).text(), "one");
}

#[test]
fn import_takes_bodies_inside_lines() {
    let place = Sandbox::new();
    filled(&place);
    let first = all(&place, "./store");
    let lines = place.ok(&["cat", "--with-body"]).text();
    place.write("dump/frames.jsonl", &lines);
    let told = place.ok(&["import", "dump", "copy"]).json();
    assert_eq!(told, [json!({ "new": 4, "there": 0, "refused": 0 })]);
    assert_eq!(all(&place, "./copy"), first);
    let without_hash = lines.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line["hash"] = Value::Null;
        format!("{line}\n")
    });
    place.write("dump/frames.jsonl", &without_hash.collect::<String>());
    place.ok(&["import", "dump", "other"]);
    assert_eq!(all(&place, "./other"), first);
    let id = "03g4a5lk7bc9ucnxswp2nn1gj";
    let hash = &first[0]["hash"];
    for (line, said) in [
        (json!({ "topic": "a", "id": id, "hash": hash, "body": "two" }), "not that of its body"),
        (json!({ "topic": "a", "id": id, "body": "a", "body_base64": "YQ==" }), "has both"),
        (json!({ "topic": "a", "id": id, "body": { "n": 1 } }), "expected a string"),
        (json!({ "topic": "a", "id": id, "body_base64": "?" }), "body_base64: "),
    ] {
        place.write("dump/frames.jsonl", &line.to_string());
        let run = place.xs(&["import", "dump", "never"]);
        assert_eq!((run.code, run.err.contains(said)), (1, true), "{line}: {}", run.err);
    }
}

/// The characters that JSON has to escape make a line six times as long as the body.
#[test]
fn import_takes_the_longest_lines_that_cat_prints() {
    let place = Sandbox::new();
    for body in [vec![1; 24 << 20], vec![0xff; 63 << 20]] {
        assert_eq!(place.xs_with(&["append", "t"], &body).code, 0);
    }
    let lines = place.ok(&["cat", "--with-body"]).out;
    assert!(lines.len() > 128 << 20);
    fs::create_dir(place.path("dump")).unwrap();
    fs::write(place.path("dump/frames.jsonl"), lines).unwrap();
    let told = place.ok(&["import", "dump", "./copy"]).json();
    assert_eq!(told, [json!({ "new": 2, "there": 0, "refused": 0 })]);
    let hashes = |store| place.ok(&["cat", store, "--format", "{hash}"]).text();
    assert_eq!(hashes("./copy"), hashes("./store"));
    // A longer one is left out, and both subcommands say where to get it.
    let place = Sandbox::new();
    assert_eq!(place.xs_with(&["append", "t"], &vec![b'x'; (64 << 20) + 1]).code, 0);
    let cat = place.ok(&["cat", "--with-body"]);
    assert!(cat.err.contains("xs export"), "{}", cat.err);
    place.write("dump/frames.jsonl", &cat.text());
    let run = place.xs(&["import", "dump", "./copy"]);
    assert_eq!((run.code, run.err.contains("xs export")), (1, true), "{}", run.err);
}

#[test]
fn the_import_script_of_the_docs_keeps_times() {
    let place = Sandbox::new();
    let page = include_str!("../../../docs/operations.md");
    let script: String = page
        .lines()
        .skip_while(|line| !line.starts_with("    import json"))
        .take_while(|line| !line.is_empty())
        .map(|line| format!("{}\n", &line[4..]))
        .collect();
    place.write("lines.py", &script);
    let first = 1_795_510_800_123_u64;
    let lines =
        [json!({ "ms": first }), json!({ "ms": first }), json!({ "id": "1795510800125-7" })];
    place.write("in.jsonl", &lines.map(|line| format!("{line}\n")).concat());
    let line = page.lines().find_map(|line| line.strip_prefix("    $ mkdir dump && ")).unwrap();
    let line = line.split(" && xs ").next().unwrap();
    let made = place.shell(&format!("mkdir dump && {line}")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    place.ok(&["import", "dump", "./new-store"]);
    let times = place.ok(&["cat", "./new-store", "orders", "--format", "{time} {meta.ms}"]).text();
    let expected = "2026-11-24T09:00:00.123Z 1795510800123\n\
                    2026-11-24T09:00:00.123Z 1795510800123\n2026-11-24T09:00:00.125Z \n";
    assert_eq!(times, expected);
}

/// Repeating an import neither brings back frames that are no longer visible nor fails at them.
#[test]
fn importing_twice_changes_nothing() {
    let place = Sandbox::new();
    let lines = [
        line("03g4a5lk7bc9ucnxswp2nn1g0", "a", "last:1", 1),
        line("03g4a5lk7bc9ucnxswp2nn1g1", "a", "last:1", 2),
        line("03g4a5lk7bc9ucnxswp2nn1g2", "gone", "forever", 3),
        line("03g4a5lk7bc9ucnxswp2nn1g3", "brief", "time:1", 4),
    ];
    place.write("dump/frames.jsonl", &lines.join("\n"));
    for (store, new_ids) in [("./kept", None), ("./new", Some("--new-ids"))] {
        let import: Vec<_> = ["import", "dump", store].into_iter().chain(new_ids).collect();
        let told = place.ok(&import).json();
        assert_eq!(told, [json!({ "new": 4, "there": 0, "refused": 0 })]);
        place.ok(&["remove", "-a", store, "2", "--yes"]);
        let before = place.ok(&["cat", store]).json();
        assert_eq!((before.len(), &before[0]["meta"]), (1, &2.into()), "{before:?}");
        let told = place.ok(&import).json();
        assert_eq!(told, [json!({ "new": 0, "there": 4, "refused": 0 })], "{store}");
        assert_eq!(place.ok(&["cat", store]).json(), before);
    }
    // Kept ids continue above one that is no longer visible.
    let more = line("03g4a5lk7bc9ucnxswp2nn1g4", "a", "forever", 5);
    place.write("dump/frames.jsonl", &format!("{}\n{more}", lines.join("\n")));
    let told = place.ok(&["import", "dump", "./kept"]).json();
    assert_eq!(told, [json!({ "new": 1, "there": 4, "refused": 0 })]);
}

/// A line of an export.
fn line(id: &str, topic: &str, ttl: &str, meta: u64) -> String {
    json!({ "topic": topic, "id": id, "hash": null, "meta": meta, "ttl": ttl }).to_string()
}

#[test]
fn an_interrupted_export_resumes() {
    let place = Sandbox::new();
    filled(&place);
    place.ok(&["export", "dump"]);
    let whole = fs::read(place.path("dump/frames.jsonl")).unwrap();
    let second = 1 + whole.iter().position(|&byte| byte == b'\n').unwrap();
    fs::write(place.path("dump/frames.jsonl"), &whole[..second + 9]).unwrap();
    let told = &place.ok(&["export", "dump"]).json()[0];
    assert_eq!((&told["exported"], &told["there_before"]), (&3.into(), &true.into()));
    assert_eq!(fs::read(place.path("dump/frames.jsonl")).unwrap(), whole);
    let other = place.xs(&["export", "dump", "a"]);
    assert_eq!(other.code, 1);
    assert!(other.err.contains("holds a different export"), "{}", other.err);
    // A relative time is a different one in each run, but the export is the same.
    let first = place.ok(&["export", "late", "--since", "1h"]).json();
    assert_eq!(first[0]["exported"], 4);
    place.ok(&["append", "a", "fifth"]);
    let told = &place.ok(&["export", "late", "--since", "1h"]).json()[0];
    assert_eq!((&told["exported"], &told["there_before"]), (&1.into(), &true.into()));
    assert_eq!(place.xs(&["export", "late", "--since", "2h"]).code, 1);
}

/// Each body is a file. Slow work must not delay a stop.
#[test]
fn an_export_stops_at_once_on_a_signal_and_resumes() {
    let place = Sandbox::new();
    let many: String = (0..20_000).map(|n| format!("the body {n}\n")).collect();
    assert_eq!(place.xs_with(&["append", "t", "--lines"], many.as_bytes()).code, 0);
    let files = || fs::read_dir(place.path("dump/cas")).map_or(0, Iterator::count);
    for one in [Signal::INT, Signal::TERM] {
        let before = files();
        let mut export = place.command(&["export", "dump"]).spawn().unwrap();
        eventually(|| (files() > before || export.try_wait().unwrap().is_some()).then_some(()));
        signal(&export, one);
        let asked = Instant::now();
        assert_eq!(wait_within(&mut export, PATIENCE).code(), Some(130));
        // If nothing handles the signal, the process is ended after 5 s.
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    }
    let lines = fs::read_to_string(place.path("dump/frames.jsonl")).unwrap_or_default();
    for line in lines.lines() {
        let frame: Value = serde_json::from_str(line).unwrap();
        let name = STANDARD.encode(frame["hash"].as_str().unwrap());
        assert!(place.path("dump/cas").join(name).exists(), "its body comes before its line");
    }
    place.ok(&["export", "dump"]);
    assert_eq!(place.ok(&["import", "dump", "copy"]).json()[0]["new"], 20_000);
    assert_eq!(place.ok(&["cat", "./copy", "--format", "{body}"]).text(), many);
}

#[test]
fn import_names_refused_lines_and_takes_the_rest() {
    let place = Sandbox::new();
    // As cross.stream writes it: no offset, no origin, additional keys.
    let ids =
        ["03g4a5lk7bc9ucnxswp2nn1gj", "03g4a5lk7bc9ucnxswp2nn1gk", "03g4a5lk7bc9ucnxswp2nn1gl"];
    let lines = [
        json!({ "topic": "a", "id": ids[0], "hash": null, "meta": { "k": 1 }, "ttl": "forever" }),
        json!({ "topic": "9", "id": ids[1], "hash": null, "meta": null, "ttl": null }),
        json!({ "topic": "b", "id": ids[2], "hash": null, "meta": null, "extra": [] }),
        json!({ "topic": "b", "id": ids[1], "hash": null, "meta": null }),
        json!({ "topic": "c", "id": "0zzzzzzzzzzzzzzzzzzzzzzzz",
            "hash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" }),
    ];
    let text = lines.map(|line| line.to_string()).join("\n");
    place.write("dump/frames.jsonl", &text);
    let run = place.xs(&["import", "dump", "copy"]);
    assert_eq!(run.code, 1);
    assert_eq!(run.json(), [json!({ "new": 2, "there": 0, "refused": 3 })]);
    for number in [2, 4, 5] {
        assert!(run.err.contains(&format!("line {number}: ")), "{}", run.err);
    }
    assert!(run.err.contains("3 lines refused") && run.err.contains("--new-ids"), "{}", run.err);
    assert_eq!(place.ok(&["get", "./copy", ids[2]]).json()[0]["topic"], "b");
    assert_eq!(place.xs(&["import", "nowhere", "copy"]).code, 1);
    // The advice in the message holds.
    let lines = fs::read_to_string(place.path("dump/frames.jsonl")).unwrap();
    let mended = lines.replace("\"9\"", "\"d\"").replace("sha256-47DEQ", "sha256-ypeBE");
    let mended: Vec<&str> = mended.lines().take(4).collect();
    place.write("dump/frames.jsonl", &mended.join("\n"));
    let told = place.xs(&["import", "dump", "copy", "--new-ids"]);
    assert_eq!(told.json(), [json!({ "new": 1, "there": 2, "refused": 1 })], "{}", told.err);
    assert!(told.err.contains("another event with this id"), "{}", told.err);
}

/// It reported neither what it had done, nor how to continue.
#[test]
fn an_import_that_ends_early_says_how_far_it_came() {
    let place = Sandbox::new();
    let many: String = (0..20_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let append = ["append", "t", "-a", "./from", "--lines", "--json"];
    assert_eq!(place.xs_with(&append, many.as_bytes()).code, 0);
    place.ok(&["export", "-a", "./from", "dump"]);
    for stops in [true, false] {
        let _ = fs::remove_dir_all(place.store());
        let server = place.serve(&[]);
        // Some batches are not answered yet.
        let between = Between::new(&place, 8 * 1024);
        let mut import = place.command(&["import", "dump", text(&between.front), "--new-ids"]);
        let import = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        between.await_held();
        let code = if stops {
            signal(&import, Signal::INT);
            130
        } else {
            server.kill();
            5
        };
        between.let_go();
        let run = Run::from(output_within(import, PATIENCE));
        assert_eq!(run.code, code, "{}", run.err);
        assert!(run.err.contains("the import is incomplete: "), "{}", run.err);
        assert!(run.err.contains("the same command again"), "{}", run.err);
        let told = &place.ok(&["import", "dump", "./store", "--new-ids"]).json()[0];
        assert!(told["there"].as_u64().unwrap() > 1_000, "{told}");
        let stored = place.ok(&["cat", "t", "--format", "{{\"n\":{meta.n}}}"]).text();
        assert_eq!(stored, many);
    }
}

#[test]
fn removed_events_are_gone() {
    let place = Sandbox::new();
    filled(&place);
    assert_eq!(place.xs(&["remove", "0"]).code, 2, "it asks first");
    assert_eq!(place.ok(&["remove", "0", "--dry-run"]).json()[0]["topic"], "a");
    let line = ["remove", "0", "77", "--yes"];
    let run = place.xs(&["remove", "0", "77", "--dry-run"]);
    assert_eq!((run.code, run.json().len()), (3, 1), "{}", run.err);
    assert!(run.err.contains("no frame with offset 77"), "{}", run.err);
    let run = place.xs(&line);
    assert_eq!(run.code, 3, "one was not there");
    assert_eq!(run.json(), [json!({ "removed": 1, "not_there": 1 })]);
    assert_eq!(place.xs(&["get", "0"]).code, 3);
    assert_eq!(place.xs(&["remove", "0", "--yes"]).code, 3);
    place.ok(&["remove", "2", "--now", "--yes"]);
    assert_eq!(place.ok(&["cat"]).json().len(), 2);
    let stats = &place.ok(&["stats"]).json()[0];
    assert_eq!(stats["store"]["frames"]["live"], 2, "{stats}");
}

/// More than fit in one batch, as xargs passes them.
#[test]
fn many_events_are_removed_in_several_steps() {
    let place = Sandbox::new();
    let many: String = (0..5000).map(|n| format!("{n}\n")).collect();
    assert_eq!(place.xs_with(&["append", "spam", "--lines"], many.as_bytes()).code, 0);
    place.ok(&["append", "t", "kept"]);
    let ids = place.ok(&["cat", "spam", "--format", "{id}"]).text();
    let line: Vec<&str> = ["remove", "--yes"].into_iter().chain(ids.lines()).collect();
    assert_eq!(place.ok(&line).json(), [json!({ "removed": 5000, "not_there": 0 })]);
    let left = place.ok(&["cat", "-b"]).text();
    assert_eq!(left, "kept");
    let again = place.xs(&line);
    assert_eq!(again.json(), [json!({ "removed": 0, "not_there": 5000 })], "{}", again.err);
}

/// Offset and id of one event are one event, and so are repetitions of either.
#[test]
fn removing_an_event_twice_in_one_call_counts_once() {
    let place = Sandbox::new();
    filled(&place);
    let id = place.ok(&["get", "1"]).json()[0]["id"].as_str().unwrap().to_owned();
    let run = place.xs(&["remove", "1", &id, "1", "--dry-run"]);
    assert_eq!((run.code, run.json().len()), (0, 1), "{}", run.err);
    let removed = place.ok(&["remove", "0", "0", "--yes"]).json();
    assert_eq!(removed, [json!({ "removed": 1, "not_there": 0 })]);
    let removed = place.ok(&["remove", &id, "1", &id, "1", "--yes"]).json();
    assert_eq!(removed, [json!({ "removed": 1, "not_there": 0 })]);
    let run = place.xs(&["remove", "77", "77", "--yes"]);
    assert_eq!(run.json(), [json!({ "removed": 0, "not_there": 1 })], "{}", run.err);
}

/// Wrong arguments are reported before a store is looked for.
#[test]
fn export_explains_a_store_given_before_the_directory() {
    let place = Sandbox::new();
    place.ok(&["append", "./s", "t", "x", "--ttl", "time:3d"]);
    assert_eq!(place.ok(&["cat", "./s"]).json()[0]["ttl"], "time:259200000");
    let run = place.xs(&["export", "./s", "./ex"]);
    assert_eq!((run.code, run.err.contains("xs export -a ./s ./ex")), (2, true), "{}", run.err);
    let run = place.xs(&["backup", "./s", "./s/below"]);
    assert_eq!((run.code, run.err.contains("one lies within the other")), (1, true), "{}", run.err);
    for line in [&["verify", "./none"][..], &["backup", "./none", "./b"]] {
        let run = place.xs(line);
        assert!(run.err.contains("none") && !run.err.contains("local/share"), "{}", run.err);
    }
}

#[test]
fn an_archive_becomes_the_same_store_and_is_the_same_again() {
    let place = Sandbox::new();
    filled(&place);
    place.ok(&["append", "c", "one"]);
    let first = all(&place, "./store");
    let told = &place.ok(&["export", "--archive", "all.tar.zst"]).json()[0];
    assert_eq!(told, &json!({ "exported": 5, "there_before": false, "unreadable": 0 }));
    let bytes = fs::read(place.path("all.tar.zst")).unwrap();
    let piped = place.ok(&["export", "--archive", "-"]);
    assert_eq!(piped.out, bytes, "the same events make the same bytes");
    assert!(piped.err.contains("5 events exported"), "{}", piped.err);
    let told = &place.ok(&["import", "all.tar.zst", "copy"]).json()[0];
    assert_eq!(told, &json!({ "new": 5, "there": 0, "refused": 0 }));
    assert_eq!(all(&place, "./copy"), first);
    let again = place.xs_with(&["import", "-", "copy"], &bytes);
    assert_eq!(again.json(), [json!({ "new": 0, "there": 5, "refused": 0 })], "{}", again.err);
    // A selection, without bodies that it does not name.
    place.ok(&["export", "--archive", "some.tar.zst", "b,c"]);
    place.ok(&["import", "some.tar.zst", "some"]);
    let topics: Vec<_> = all(&place, "./some").iter().map(|one| one["topic"].clone()).collect();
    assert_eq!(topics, ["b", "c"]);
    assert!(fs::metadata(place.path("some.tar.zst")).unwrap().len() < 2000);
    // No temporary files are left.
    let names: Vec<_> = fs::read_dir(place.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn an_archive_that_is_damaged_or_none_makes_no_store() {
    let place = Sandbox::new();
    filled(&place);
    place.ok(&["export", "--archive", "all.tar.zst"]);
    let mut bytes = fs::read(place.path("all.tar.zst")).unwrap();
    let half = bytes.len() / 2;
    let cut = place.xs_with(&["import", "-", "copy"], &bytes[..half]);
    assert_eq!(cut.code, 1, "{}", cut.err);
    bytes[half] ^= 1;
    fs::write(place.path("all.tar.zst"), &bytes).unwrap();
    let damaged = place.xs(&["import", "all.tar.zst", "copy"]);
    assert_eq!(damaged.code, 1, "{}", damaged.err);
    place.write("plain", "{}");
    let plain = place.xs(&["import", "plain", "copy"]);
    assert_eq!(
        (plain.code, plain.err.contains("not an archive written")),
        (1, true),
        "{}",
        plain.err
    );
    assert_eq!(place.xs(&["cat", "./copy"]).json().len(), 0, "nothing was imported");
    assert_eq!(place.xs(&["export"]).code, 2);
    assert_eq!(place.xs(&["export", "--archive", "x", "9"]).code, 2);
}

#[test]
fn importing_nothing_creates_no_store() {
    let place = Sandbox::new();
    place.write("empty/readme.txt", "");
    for from in ["none", "empty"] {
        let run = place.xs(&["import", from, "./new"]);
        assert_eq!((run.code, run.err.contains("is nothing to import")), (1, true), "{}", run.err);
        assert!(!place.path("new").exists(), "{from}");
    }
}
