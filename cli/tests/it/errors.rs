//! Every message that accompanies an exit code, in one file to be read as a newcomer would:
//! errors.txt. `XS_UPDATE_ERRORS=1` rewrites it; the difference is reviewed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::support::{Run, Sandbox, masked, text};

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/errors.txt");
const NO_ID: &str = "00000000000000000000000zz";
const NO_HASH: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// What is wrong with the command line alone.
const USAGE: &[&[&str]] = &[
    &["frob"],
    &["cat", "--frob"],
    &["append"],
    &["append", "9lives", "x"],
    &["append", "a..b", "x"],
    &["append", "t", "--ttl", "soon", "x"],
    &["append", "t", "--ttl", "time:0", "x"],
    &["append", "t", "--meta", "{", "x"],
    &["append", "t", "--meta", "1", "x"],
    &["append", "t", "--expect", "soon", "x"],
    &["append", "t", "x", "--file", "f"],
    &["cat", "a*"],
    &["cat", "*.b"],
    &["cat", "a.*.c"],
    &["cat", ""],
    &["cat", "a,,b"],
    &["cat", "--last", "x"],
    &["tail", "-5"],
    &["append", ".abc", "x"],
    &["each", "jobs", "cat"],
    &["cat", "--since", "soon"],
    &["cat", "--from", "here"],
    &["cat", "--last", "3", "--new"],
    &["cat", "--format", "{topik}"],
    &["cat", "--cursor", "xs.handler.a"],
    &["last", "-n", "0"],
    &["get", "!"],
    &["cas", "get", "sha256-short"],
    &["call", "report", "--timeout", "soon"],
    &["cursor", "set", "c", "last"],
    &["help", "nonsense"],
    &["id", "--at", "soon"],
    &["-a", "host:1", "cat"],
    &["-a", "xss://", "cat"],
    &["serve", "s", "--sync", "soon"],
    &["serve", "s", "--listen", "0.0.0.0:1"],
    &["serve", "s", "--listen", "xss://localhost:1"],
    &["serve", "s", "--metrics", "0.0.0.0:1"],
    &["serve", "s", "--tls-cert", "cert.pem"],
    &["serve", "s", "--tls-cert", "none.pem", "--tls-key", "none.pem"],
    &["serve", "s", "--modules", "none"],
    &["serve", "s", "--config", "none.toml"],
    &["serve", "s", "--config", "bad.toml"],
    &["serve", "-a", ":1"],
    &["token", "create", "a"],
    &["token", "create", "a", "--role", "root"],
    &["token", "create", "a", "--role", "read", "--topics", "xs.*"],
    &["token", "list", ":1"],
    &["cat", "--token-file", "none"],
    &["cat", "--token-file", "empty"],
    &["modules", "new", "handler", "9"],
    &["dev", ":1"],
    &["cursor", "rm", "xs.handler.a", "--yes"],
    &["serve", "s", "--listen", "foo"],
];

/// What a store without a server answers.
const STORE: &[&[&str]] = &[
    &["remove", "0"],
    &["export"],
    &["export", ":1"],
    &["export", "./store"],
    &["top"],
    &["get", NO_ID],
    &["get", "99"],
    &["last", "nothing"],
    &["cas", "get", NO_HASH],
    &["why", "99"],
    &["modules", "show", "none"],
    &["cursor", "get", "none"],
    &["cursor", "set", "c", "99"],
    &["cursor", "rm", "none", "--yes"],
    &["cursor", "set", "c", "head", "--expect", "3"],
    &["token", "revoke", "none"],
    &["append", "t", "y", "--expect", "empty"],
    &["append", "t", "y", "--expect", "0"],
    &["append", "t", "y", "--expect", "head=7"],
    &["append", "t", "y", "--expect", "head=2", "--expect", "empty"],
    &["append", "t", "y", "--key", "k"],
    &["append", "xs.mine", "x"],
    &["append", "t", "--file", "none"],
    &["append", "t", "--json", "x"],
    &["cat", "./none"],
    &["append", "./file", "t", "x"],
    &["cat", ":1"],
    &["cat", "xss://localhost:1"],
    &["call", "report"],
    &["ping"],
    &["ping", "--wait", "10ms"],
    &["verify", "none"],
    &["repair", "./store", "./full"],
    &["repair", "./none", "./new"],
    &["backup", "./store", "./full"],
    &["restore", "./none", "./new"],
    &["fork", "./store", "./full"],
    &["import", "./store", "new"],
    &["import", "none", "new"],
    &["import", "file", "new"],
    &["export", "foreign"],
    &["modules", "check", "none"],
    &["test", "none"],
    &["each", "t", "--", "none-such-command"],
    &["each", "t", "--", "false"],
];

/// What a server answers.
const SERVED: &[&[&str]] = &[
    &["call", "report"],
    &["call", "report", "text", "more"],
    &["call", "report", "n:=x"],
    &["modules", "stop", "none"],
    &["repair", "./store", "./new2"],
    &["serve", "./store", "--log-level", "warn"],
    &["gc"],
];

/// Replaces what changes from run to run and from place to place.
fn normal(place: &Sandbox, text: &str) -> String {
    let text = text.replace(place.path("").to_str().unwrap().trim_end_matches('/'), "DIR");
    let mut out = String::new();
    for line in masked(&text).lines() {
        let mut words = Vec::new();
        for word in line.split(' ') {
            let after_process = words.last().is_some_and(|last: &String| last == "process");
            let behind = word.trim_start_matches(|c: char| c.is_ascii_digit());
            let is_pid = after_process && behind.len() < word.len();
            words.push(if is_pid { format!("PID{behind}") } else { word.to_owned() });
        }
        writeln!(out, "{}", words.join(" ").trim_end()).unwrap();
    }
    out
}

fn tell(place: &Sandbox, heading: &str, cases: &[&[&str]], told: &mut String) {
    writeln!(told, "## {heading}\n").unwrap();
    for args in cases {
        let run: Run = place.xs(args);
        assert_ne!(run.code, 0, "xs {args:?}");
        assert!(!run.err.trim().is_empty(), "xs {args:?} says nothing");
        let quoted = args.iter().map(|arg| match arg.is_empty() || arg.contains(' ') {
            true => format!("'{arg}'"),
            false => (*arg).to_owned(),
        });
        let line = quoted.collect::<Vec<_>>().join(" ");
        writeln!(told, "$ xs {line}\n[{}] {}", run.code, normal(place, &run.err)).unwrap();
    }
}

#[test]
fn error_messages_match_the_recorded_ones() {
    let place = Sandbox::new();
    place.write("bad.toml", "store = \"s\"\nlisen = \":1\"\n");
    place.write("empty", "\n");
    place.write("file", "text");
    place.write("full/notes.txt", "x");
    place.write("foreign/frames.jsonl", "");
    let mut told = "What xs says when it fails: cli/tests/it/errors.rs writes this.\n\n".to_owned();
    tell(&place, "The command line", USAGE, &mut told);
    place.ok(&["append", "t", "x"]);
    place.ok(&["append", "t", "z", "--key", "k"]);
    tell(&place, "A store without a server", STORE, &mut told);
    let server = place.serve(&[]);
    tell(&place, "A store with a server", SERVED, &mut told);
    assert!(server.stop().success());
    let kept = Path::new(KEPT);
    if std::env::var_os("XS_UPDATE_ERRORS").is_some() {
        fs::write(kept, &told).unwrap();
    }
    let expected = fs::read_to_string(kept).unwrap_or_default();
    for (found, expected) in told.split("\n$ ").zip(expected.split("\n$ ")) {
        assert_eq!(found, expected, "XS_UPDATE_ERRORS=1 writes {}", text(kept));
    }
    assert_eq!(told.len(), expected.len());
}
