//! Whole outputs, with and without a server: they must not differ.

use crate::support::{Sandbox, masked};

/// Runs the same subcommands against a store that is served and one that is not.
fn both(test: impl Fn(&Sandbox)) {
    let place = Sandbox::new();
    test(&place);
    let place = Sandbox::new();
    let server = place.serve(&[]);
    test(&place);
    assert!(server.stop().success());
}

/// The output without the offsets, which differ by the server's own frames.
fn shown(place: &Sandbox, args: &[&str], input: &str) -> String {
    let run = place.xs_with(args, input.as_bytes());
    assert_eq!(run.code, 0, "xs {args:?}: {}", run.err);
    let text = masked(&run.text());
    let mut out = String::new();
    for (index, part) in text.split("\"offset\":").enumerate() {
        out += if index == 0 { part } else { part.split_once(',').unwrap().1 };
    }
    out
}

#[test]
fn append_prints_the_frame_as_it_is_stored() {
    both(|place| {
        assert_eq!(
            shown(place, &["append", "notes", "--meta", "{ \"a\": 1 }", "hello"], ""),
            "{\"topic\":\"notes\",\"id\":\"ID\",\
             \"hash\":\"sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=\",\
             \"meta\":{\"a\":1},\"ttl\":\"forever\"}\n"
        );
        assert_eq!(
            shown(place, &["append", "notes", "-n", "--ttl", "ephemeral"], "not read"),
            "{\"topic\":\"notes\",\"id\":\"ID\",\"hash\":null,\"meta\":null,\
             \"ttl\":\"ephemeral\"}\n"
        );
    });
}

#[test]
fn appended_events_are_read_back_in_every_form() {
    both(|place| {
        place.ok(&["append", "a.b", "one"]);
        place.xs_with(&["append", "a.c"], b"\xff\x00two");
        place.ok(&["append", "d", "-n", "--meta", "{\"k\":[1,2]}"]);
        let hash = "\"sha256-7Hqdpxrv6IqXbRCTvmzCq51M2o7zyEnhQYl2f1Gvw7s=\"";
        let text = shown(place, &["cat", "--with-body", "a."], "");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].ends_with("\"ttl\":\"forever\",\"body\":\"one\"}"), "{text}");
        assert!(lines[1].ends_with("\"body_base64\":\"/wB0d28=\"}"), "{text}");
        assert!(!lines[0].contains(hash));
        assert_eq!(place.ok(&["cat", "-b", "a."]).out, b"one\xff\x00two");
        assert_eq!(
            shown(place, &["last"], ""),
            "{\"topic\":\"d\",\"id\":\"ID\",\"hash\":null,\"meta\":{\"k\":[1,2]},\
             \"ttl\":\"forever\"}\n"
        );
        assert_eq!(shown(place, &["last", "--per-topic", "a."], "").lines().count(), 2);
        assert_eq!(place.ok(&["last", "-n", "2"]).json()[0]["topic"], "a.c");
        assert_eq!(place.ok(&["cat", "--reverse", "--limit", "1"]).json()[0]["topic"], "d");
        let id = place.ok(&["last", "a.b"]).json()[0]["id"].as_str().unwrap().to_owned();
        assert_eq!(place.ok(&["get", &id, "-b"]).out, b"one");
        assert_eq!(place.ok(&["cat", "--after", &id]).json().len(), 2);
        assert_eq!(place.ok(&["cat", "--from", &id, "--before", &id]).json().len(), 0);
        assert_eq!(place.ok(&["cat", "--since", "1h"]).json().len(), 3);
        assert_eq!(place.ok(&["cat", "--until", "yesterday"]).json().len(), 0);
    });
}

#[test]
fn lines_become_frames_and_json_becomes_meta() {
    both(|place| {
        let long = "x".repeat(100_000);
        let input = format!("one\ntwo\r\n\n{long}\nlast");
        let done = place.xs_with(&["append", "log", "--lines"], input.as_bytes());
        assert_eq!(done.json()[0]["lines"], 5, "{}", done.err);
        let bodies: Vec<String> = place
            .frames("log")
            .iter()
            .map(|frame| frame["body"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(bodies, ["one", "two", "", &long, "last"]);
        let again = place.ok(&["cat", "log", "--format", "{body}"]).text();
        assert_eq!(again, input.replace('\r', "") + "\n", "as the help of both says");
        place.xs_with(&["append", "json", "--lines", "--json"], b"{\"n\":1}\n{\"n\":2}\n");
        let metas: Vec<_> = place.frames("json").iter().map(|f| f["meta"]["n"].clone()).collect();
        assert_eq!(metas, [1, 2]);
        let many: String = (0..5000).map(|n| format!("{n}\n")).collect();
        place.xs_with(&["append", "many", "--lines"], many.as_bytes());
        assert_eq!(place.ok(&["cat", "-b", "many"]).text(), many.replace('\n', ""));
    });
}

#[test]
fn a_long_body_is_streamed_both_ways() {
    both(|place| {
        let long: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
        let file = place.path("long");
        std::fs::write(&file, &long).unwrap();
        place.ok(&["append", "long", "--file", "long"]);
        place.xs_with(&["append", "long"], &long);
        let frames = place.ok(&["cat", "long"]).json();
        assert_eq!(frames[0]["hash"], frames[1]["hash"]);
        let hash = frames[0]["hash"].as_str().unwrap();
        assert!(place.ok(&["cas", "get", hash]).out == long);
        assert_eq!(place.ok(&["cas", "put", "--file", "long"]).text().trim(), hash);
        assert!(place.ok(&["last", "-b", "long"]).out == long);
    });
}

#[test]
fn topics_are_counted() {
    both(|place| {
        for topic in ["a", "b", "a"] {
            place.ok(&["append", topic, "12345"]);
        }
        let topics = place.ok(&["topics"]).json();
        assert_eq!(topics.len(), 2);
        assert_eq!((&topics[0]["topic"], &topics[0]["count"]), (&"a".into(), &2.into()));
        assert_ne!(topics[0]["first"], topics[0]["last"]);
    });
}

#[test]
fn an_append_with_a_key_is_stored_once() {
    both(|place| {
        let keyed = ["append", "t", "--key", "order-7", "x"];
        let first = place.ok(&keyed).text();
        assert_eq!(place.ok(&keyed).text(), first);
        assert_eq!(place.ok(&["cat", "t"]).json().len(), 1);
        let other = place.xs(&["append", "t", "--key", "order-7", "y"]);
        assert_eq!(other.code, 4, "{}", other.err);
        place.ok(&["append", "t", "--expect", "t=99", "--expect", "u.=empty", "z"]);
    });
}
