//! Bodies lost to damage, in the damaged store and in what a repair saved of it: a reader of many
//! events goes on without them, and reports them.

use std::fs;

use serde_json::{Value, json};

use crate::support::Sandbox;

/// In the middle of a streamed body, so that it is met after much of it has been read.
const MARK: &[u8] = b"here it is damaged";

/// Changes one byte of the pack that holds `what`.
fn damage(place: &Sandbox, what: &[u8]) {
    let packs = fs::read_dir(place.store().join("blobs")).unwrap();
    let hit = packs.map(|file| file.unwrap().path()).any(|path| {
        let mut bytes = fs::read(&path).unwrap();
        let Some(at) = bytes.windows(what.len()).position(|window| window == what) else {
            return false;
        };
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        true
    });
    assert!(hit, "the packs hold the body");
}

/// A store in which the second of three bodies is damaged, and, as `saved`, what a repair saved.
fn damaged() -> Sandbox {
    let place = Sandbox::new();
    let run = place.xs_with(&["append", "t", "--lines"], b"one\ntwo\nthree\n");
    assert_eq!(run.code, 0, "{}", run.err);
    damage(&place, b"two");
    place.ok(&["repair", "store", "saved"]);
    place
}

/// A store in which the second of three bodies is long, incompressible, and damaged.
fn damaged_in_a_long_one() -> Sandbox {
    damaged_in_one_of(3 << 20)
}

fn damaged_in_one_of(len: usize) -> Sandbox {
    let place = Sandbox::new();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut long: Vec<u8> = Vec::new();
    while long.len() < len {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        long.extend(seed.to_le_bytes());
    }
    long[len / 6 * 5..][..MARK.len()].copy_from_slice(MARK);
    for body in [b"one", &long[..], b"three"] {
        assert_eq!(place.xs_with(&["append", "t"], body).code, 0);
    }
    damage(&place, MARK);
    place
}

fn check_exports(place: &Sandbox, store: &str) {
    let told = |there_before: bool, exported: u64| json!({ "exported": exported, "there_before": there_before, "unreadable": 1 });
    let dump = format!("dump-{}", &store[2..]);
    let run = place.xs(&["-a", store, "export", &dump]);
    assert_eq!((run.code, run.json()), (1, vec![told(false, 3)]), "{}", run.err);
    let id = &place.ok(&["cat", store]).json()[1]["id"];
    let said = format!("the body of {} (offset 1) cannot be read: skipped", id.as_str().unwrap());
    assert!(run.err.contains(&said), "{}", run.err);
    let lines = fs::read_to_string(place.path(&dump).join("frames.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3);
    assert_eq!(fs::read_dir(place.path(&dump).join("cas")).unwrap().count(), 2);
    let again = place.xs(&["-a", store, "export", &dump]);
    assert_eq!((again.code, again.json()), (1, vec![told(true, 0)]), "{}", again.err);
    let archive = format!("{dump}.tar.zst");
    let run = place.xs(&["-a", store, "export", "--archive", &archive]);
    assert_eq!((run.code, run.json()), (1, vec![told(false, 3)]), "{}", run.err);
    // The one without a body does not prevent the import of the others.
    for from in [&dump, &archive] {
        let copy = format!("copy-of-{from}");
        let run = place.xs(&["import", from, &copy]);
        assert_eq!(run.json(), [json!({ "new": 2, "there": 0, "refused": 1 })], "{}", run.err);
        assert_eq!(place.ok(&["cat", &format!("./{copy}"), "-b"]).text(), "onethree");
    }
}

/// A read that continues after an unreadable frame also continues after a lost body.
fn check_reads(place: &Sandbox, store: &str) {
    let said = "(offset 1) cannot be read: skipped";
    for read in [&["cat", store][..], &["last", store, "t", "-n", "3"]] {
        let bodies = place.xs(&[read, &["-b"]].concat());
        assert_eq!(bodies.code, 1, "{}", bodies.err);
        assert!(bodies.err.contains(said), "{}", bodies.err);
        assert!(bodies.out.starts_with(b"one"));
        let whole = place.xs(&[read, &["--with-body"]].concat());
        assert_eq!(whole.code, 1, "{}", whole.err);
        assert!(whole.err.contains(said), "{}", whole.err);
        let lines = whole.json();
        assert_eq!((&lines[0]["body"], &lines[2]["body"]), (&json!("one"), &json!("three")));
        let keys = lines[1].as_object().unwrap();
        assert!(keys["hash"].is_string() && !keys.contains_key("body"), "{keys:?}");
    }
    let why = place.xs(&["why", store, "1", "--with-body"]);
    assert_eq!((why.code, why.json().len()), (1, 1), "{}", why.err);
    let one = place.xs(&["get", store, "1", "-b"]);
    assert!(one.code == 1 || one.code == 3, "there is nothing to go on with: {}", one.err);
}

#[test]
fn a_read_continues_after_a_lost_body() {
    let place = damaged();
    for store in ["./store", "./saved"] {
        check_reads(&place, store);
        assert_eq!(place.xs(&["cat", store, "-b"]).text(), "onethree");
    }
    let place = damaged_in_a_long_one();
    check_reads(&place, "./store");
    // What was printed of it before the damage was met could be taken for the whole body.
    assert_eq!(place.xs(&["cat", "./store", "-b"]).text(), "onethree");
    let hash = &place.ok(&["cat", "./store"]).json()[1]["hash"];
    for one in [&["get", "./store", "1", "-b"][..], &["cas", "get", hash.as_str().unwrap()]] {
        let run = place.xs(one);
        assert_eq!((run.code, run.out.len()), (1, 0), "{}", run.err);
    }
}

/// A body that is too long to be held is printed as it arrives.
#[test]
fn a_body_that_is_cut_off_says_so() {
    let len = 72 << 20;
    let place = damaged_in_one_of(len);
    let one = place.xs(&["get", "./store", "1", "-b"]);
    let count = one.out.len();
    assert!(one.code == 1 && count > len / 2 && count < len, "{count}: {}", one.err);
    let said = format!("the body is incomplete, cut off after {count} bytes");
    assert!(one.err.contains(&said), "{}", one.err);
    let all = place.xs(&["cat", "./store", "-b"]);
    assert_eq!((all.code, all.out.len()), (1, count + "onethree".len()), "{}", all.err);
    let said = format!("printed incompletely: after {count} of its {len} bytes");
    assert!(all.err.contains(&said), "{}", all.err);
}

#[test]
fn an_export_skips_a_lost_body() {
    let place = damaged();
    check_exports(&place, "./store");
    check_exports(&place, "./saved");
}

#[test]
fn an_export_skips_a_long_body_damaged_in_the_middle() {
    let place = damaged_in_a_long_one();
    check_exports(&place, "./store");
}

/// Fails on the second frame, and handles the others when that one is parked.
fn check_each(place: &Sandbox, store: &str) {
    let seen = || fs::read_to_string(place.path("seen")).unwrap_or_default();
    let each = |park: &[&str]| {
        let script = "cat > input && cat input >> seen";
        let line = [&["each", store, "t", "--cursor", "c"][..], park];
        place.xs(&[&line.concat()[..], &["--", "sh", "-c", script]].concat())
    };
    let run = each(&[]);
    assert_eq!(run.code, 1, "{}", run.err);
    let said = "its body sha256-";
    assert!(run.err.contains(said), "{}", run.err);
    assert!(run.err.contains("xs cursor set c 2 skips it"), "{}", run.err);
    assert_eq!(seen(), "one", "no command was given what is not the body");
    let run = each(&["--park", "p"]);
    assert_eq!((run.code, seen().as_str()), (0, "onethree"), "{}", run.err);
    let parked = place.ok(&["cat", store, "p"]).json();
    assert_eq!(parked.len(), 1);
    assert!(parked[0]["meta"]["error"].as_str().unwrap().contains(said), "{parked:?}");
    assert_eq!(parked[0]["hash"], Value::Null);
    fs::remove_file(place.path("seen")).unwrap();
}

#[test]
fn each_treats_a_lost_body_as_a_failure() {
    let place = damaged();
    check_each(&place, "./store");
    check_each(&place, "./saved");
    check_each(&damaged_in_a_long_one(), "./store");
}

#[test]
fn where_skips_an_event_with_a_lost_body() {
    let place = damaged();
    for store in ["./store", "./saved"] {
        let run = place.ok(&["cat", store, "--where", "f.text() !== 'one'", "t"]);
        assert_eq!(run.json().len(), 1, "{}", run.err);
        assert!(run.err.contains("--where threw on 1 event, skipped"), "{}", run.err);
    }
}
