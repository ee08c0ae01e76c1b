//! Access over the network: tokens, TLS, and that neither reaches the log.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::support::{
    PATIENCE, Run, Sandbox, Server, eventually, output_within, signal_pid, text, wait_within,
};

/// The TCP address of a server.
pub(crate) fn listening(place: &Sandbox) -> String {
    // A server answers before it announces its addresses.
    let start = place.await_frames("xs.start", 1);
    start[0]["meta"]["listen"][1].as_str().unwrap().to_owned()
}

fn create(place: &Sandbox, args: &[&str]) -> String {
    let mut all = vec!["token", "create"];
    all.extend(args);
    let made = place.ok(&all).text();
    let token = made.trim_end();
    assert!(token.starts_with("xst_") && token.len() == 47, "{token}");
    token.to_owned()
}

/// Runs the binary with a token.
fn with_token(place: &Sandbox, token: &str, args: &[&str]) -> Run {
    Run::from(place.command(args).env("XS_TOKEN", token).output().unwrap())
}

#[test]
fn tokens_limit_their_clients_and_are_never_logged() {
    let place = Sandbox::new();
    place.ok(&["append", "b.hidden", "x"]);
    let early = create(&place, &["early", "--role", "append", "--topics", "a.*"]);
    let server = place.serve(&["--listen", ":0", "--log-level", "trace"]);
    let addr = listening(&place);
    assert_eq!(place.xs(&["cat", "-a", &addr]).code, 7, "no token");
    let appended = with_token(&place, &early, &["append", "-a", &addr, "a.x", "shown"]);
    assert_eq!(appended.code, 0, "{}", appended.err);
    assert_eq!(with_token(&place, &early, &["append", "-a", &addr, "b", "x"]).code, 7);
    assert_eq!(with_token(&place, &early, &["cat", "-a", &addr, "b.hidden"]).code, 7);
    let read = with_token(&place, &early, &["cat", "-a", &addr, "--with-body"]).json();
    assert_eq!(read.len(), 1);
    assert_eq!((&read[0]["topic"], &read[0]["body"]), (&"a.x".into(), &"shown".into()));

    let late = create(&place, &["late", "--role", "read", "--expires", "1h"]);
    let file = place.write("late.token", &format!("{late}\n"));
    let count = |run: Run| (run.code, run.json().len());
    let args = ["cat", "-a", &addr, "--token-file", text(&file)];
    assert_eq!(count(place.xs(&args)), (0, 2), "a server that runs notices new tokens");
    let mut tail = place
        .command(&["tail", "-a", &addr])
        .env("XS_TOKEN", &late)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let list = place.ok(&["token", "list"]);
    assert!(!list.text().contains("xst_"), "{}", list.text());
    let rows = list.json();
    assert_eq!((&rows[0]["name"], &rows[0]["append"]), (&"early".into(), &"a.*".into()));
    assert_eq!((&rows[1]["role"], &rows[1]["state"]), (&"read".into(), &"good".into()));
    assert_eq!(place.xs(&["token", "create", "late", "--role", "read"]).code, 4);
    assert_eq!(place.xs(&["token", "create", "x", "--role", "read", "--topics", "xs.*"]).code, 2);
    assert_eq!(place.xs(&["token", "create", "x", "--role", "admin", "--topics", "a"]).code, 2);
    place.ok(&["token", "revoke", "late"]);
    assert_eq!(place.xs(&["token", "revoke", "late"]).code, 3);
    let backup = with_token(&place, &early, &["backup", &addr, "/tmp/never"]);
    assert_eq!((backup.code, backup.err.contains("backup is for admins")), (7, true));
    let list = with_token(&place, &early, &["modules", "list", "-a", &addr]);
    assert_eq!((list.code, list.err.contains("only admins")), (7, true), "{}", list.err);
    assert_eq!(wait_within(&mut tail, PATIENCE).code(), Some(7), "revoked while connected");
    assert_eq!(place.xs(&args).code, 7);
    assert!(server.stop().success());
    let (log, kept) = (place.log(), fs::read_to_string(place.store().join("tokens")).unwrap());
    let hash = kept.split("sha256=").nth(1).unwrap().trim_end();
    assert!(log.contains("TRACE") && log.contains("a client was refused"), "{log}");
    for secret in [&early[4..], &late[4..], hash] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}

/// A pending request reports that the connection ended, and the connection reports why.
#[test]
fn a_token_that_is_revoked_ends_what_it_appends() {
    let place = Sandbox::new();
    let token = create(&place, &["feed", "--role", "append"]);
    let server = place.serve(&["--listen", ":0"]);
    let addr = listening(&place);
    let mut command = place.command(&["append", "-a", &addr, "t", "--lines"]);
    command.env("XS_TOKEN", &token).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut append = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = append.stdin.take().unwrap();
    let writer = std::thread::spawn(move || while stdin.write_all(b"a line\n").is_ok() {});
    place.await_frames("t", 1);
    place.ok(&["token", "revoke", "feed"]);
    let run = Run::from(output_within(append, PATIENCE));
    writer.join().unwrap();
    assert_eq!(run.code, 7, "{}", run.err);
    assert!(run.err.contains("lines read"), "{}", run.err);
    assert!(server.stop().success());
}

/// The log's pipe has no reader, or its disk is full: nothing but the log suffers.
#[test]
fn a_server_whose_log_cannot_be_written_works() {
    let (reader, pipe) = std::io::pipe().unwrap();
    drop(reader);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    for log in [Stdio::from(pipe), Stdio::from(full)] {
        let place = Sandbox::new();
        let token = create(&place, &["feed", "--role", "append"]);
        let server = place.serve_to(&["--log-level", "trace", "--listen", ":0"], log);
        let addr = listening(&place);
        let mut command = place.command(&["append", "-a", &addr, "t", "--lines"]);
        command.env("XS_TOKEN", &token).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut append = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = append.stdin.take().unwrap();
        let writer = std::thread::spawn(move || while stdin.write_all(b"a line\n").is_ok() {});
        place.await_frames("t", 1);
        place.ok(&["token", "revoke", "feed"]);
        assert_eq!(wait_within(&mut append, PATIENCE).code(), Some(7));
        writer.join().unwrap();
        assert_eq!(server.stop().code(), Some(0));
        assert_eq!(place.frames("xs.stopping").len(), 1);
    }
}

#[test]
fn a_malformed_token_is_refused() {
    let place = Sandbox::new();
    place.ok(&["append", "a", "x"]);
    for token in ["with space", "\u{e4}"] {
        assert_eq!(with_token(&place, token, &["cat"]).code, 2, "{token}");
    }
    assert_eq!(place.xs(&["cat", "--token-file", "missing"]).code, 2);
    assert_eq!(place.xs(&["token", "list", "localhost:1"]).code, 2);
    assert_eq!(place.xs(&["token", "list", "./nowhere"]).code, 5);
    assert_eq!(place.xs(&["token", "create", "./made", "a", "--role", "read"]).code, 0);
    assert_eq!(place.ok(&["token", "list", "./made"]).json()[0]["name"], "a");
    assert_eq!(place.xs(&["last", "./made"]).code, 3, "it is a store");
    assert_eq!(place.xs(&["token", "create", "./no", "a b", "--role", "read"]).code, 2);
    assert!(!place.path("no").exists());
    place.write("files/of/others", "");
    assert_eq!(place.xs(&["token", "create", "./files", "a", "--role", "read"]).code, 2);
    let far = with_token(&place, "xst_a", &["cat", "192.0.2.1:1"]);
    assert_eq!((far.code, far.err.contains("not sent")), (5, true), "{}", far.err);
    fs::write(place.store().join("tokens"), "nonsense").unwrap();
    let damaged = place.xs(&["serve", text(&place.store()), "--listen", ":0"]);
    assert_eq!(damaged.code, 2, "{}", damaged.err);
}

/// A CA, and a server's certificate from it, in files.
pub(crate) fn certify(place: &Sandbox, host: &str) -> [String; 3] {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap().pem();
    let put = |name: &str, text: &str| {
        let path = place.path(name);
        let mut file = fs::File::options();
        let mut file =
            file.write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    [put("ca.pem", &ca), put("cert.pem", &cert), put("key.pem", &key.serialize_pem())]
}

pub(crate) fn serve_tls(place: &Sandbox, cert: &str, key: &str) -> Server {
    place.serve(&["--listen", "0.0.0.0:0", "--tls-cert", cert, "--tls-key", key])
}

#[test]
fn other_machines_need_tls_and_a_token() {
    let place = Sandbox::new();
    place.ok(&["append", "a", "x"]);
    let [ca, cert, key] = certify(&place, "127.0.0.1");
    let store = place.store();
    let serve = |args: &[&str]| {
        let mut all = vec!["serve", text(&store), "--listen", "0.0.0.0:0"];
        all.extend(args);
        place.xs(&all)
    };
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    for (args, missing) in [(&[][..], "--tls-cert"), (&tls[..], "xs token create")] {
        let run = serve(args);
        assert_eq!((run.code, run.err.contains(missing)), (2, true), "{}", run.err);
    }
    assert_eq!(serve(&["--tls-cert", &key, "--tls-key", &key]).code, 2);
    let token = create(&place, &["t", "--role", "append"]);
    let server = serve_tls(&place, &cert, &key);
    let port = listening(&place).rsplit_once(':').unwrap().1.to_owned();
    let addr = format!("xss://127.0.0.1:{port}");
    let append = with_token(&place, &token, &["append", "-a", &addr, "--tls-ca", &ca, "b", "y"]);
    assert_eq!(append.code, 0, "{}", append.err);
    let mut cat = place.command(&["cat", &addr, "--with-body"]);
    let cat = Run::from(cat.env("XS_TOKEN", &token).env("XS_TLS_CA", &ca).output().unwrap());
    assert_eq!(cat.json().len(), 2, "{}", cat.err);
    let without = place.xs(&["cat", &addr, "--tls-ca", &ca]);
    assert_eq!(without.code, 7, "{}", without.err);
    let named = format!("xss://localhost:{port}");
    let wrong = with_token(&place, &token, &["cat", &named, "--tls-ca", &ca]);
    assert_eq!((wrong.code, wrong.err.contains("another name")), (5, true), "{}", wrong.err);
    let plain = place.xs(&["cat", &format!("127.0.0.1:{port}")]);
    assert_eq!((plain.code, plain.err.contains("xss://")), (5, true), "{}", plain.err);
    // The server loads another certificate while it runs; SIGHUP makes it do so at once.
    let [ca, ..] = certify(&place, "localhost");
    signal_pid(server.pid(), rustix::process::Signal::HUP);
    eventually(|| {
        let run = with_token(&place, &token, &["cat", &named, "--tls-ca", &ca]);
        (run.code == 0).then_some(())
    });
    assert!(server.stop().success());
}
