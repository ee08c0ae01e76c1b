//! Where a store is: by option, environment, first argument or default.

use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{PATIENCE, Sandbox, signal, text, wait_within};

#[test]
fn every_way_to_name_a_store_finds_the_same_one() {
    let place = Sandbox::new();
    let server = place.serve(&["--listen", ":0"]);
    let start = &place.await_frames("xs.start", 1)[0]["meta"];
    let tcp = start["listen"][1].as_str().unwrap().to_owned();
    place.ok(&["append", "t", "body"]);
    let store = place.store();
    let socket = store.join("xs.sock");
    let port = tcp.rsplit_once(':').unwrap().1;
    let port = format!(":{port}");
    for args in [
        &["cat", "t"][..],
        &["-a", text(&store), "cat", "t"],
        &["cat", "t", "--addr", "store"],
        &["cat", "./store", "t"],
        &["cat", text(&socket), "t"],
        &["cat", &port, "t"],
        &["cat", &tcp, "t"],
    ] {
        let run = place.command(args).env("XS_ADDR", &store).output().unwrap();
        let out = String::from_utf8_lossy(&run.stdout).into_owned();
        assert_eq!(out.lines().count(), 1, "{args:?} {}", String::from_utf8_lossy(&run.stderr));
    }
    assert!(server.stop().success());
}

/// The address of a Unix socket holds 107 bytes.
#[test]
fn a_store_path_may_exceed_the_socket_path_limit() {
    let place = Sandbox::new();
    let deep = format!("{}/store", vec!["a".repeat(50); 5].join("/"));
    let store = format!("./{deep}");
    place.ok(&["append", &store, "t", "one"]);
    let absolute = place.path(&deep);
    let mut server =
        place.command(&["serve", text(&absolute)]).stderr(Stdio::null()).spawn().unwrap();
    place.ok(&["ping", &store, "--wait", "4m"]);
    place.ok(&["append", text(&absolute), "t", "two"]);
    assert_eq!(place.ok(&["cat", &store, "t"]).json().len(), 2);
    signal(&server, Signal::TERM);
    assert!(wait_within(&mut server, PATIENCE).success());
    assert!(!absolute.join("xs.sock").exists());
}

/// What needs TLS is refused before anything is opened or created.
#[test]
fn other_machines_are_out_of_reach() {
    let place = Sandbox::new();
    let store = place.store();
    let listen = place.xs(&["serve", text(&store), "--listen", "0.0.0.0:0"]);
    assert_eq!(listen.code, 2, "{}", listen.err);
    assert!(listen.err.contains("not a loopback address"), "{}", listen.err);
    let tls = place.xs(&["cat", "xss://example.com:1"]);
    assert_eq!((tls.code, tls.err.contains("no CA to trust")), (5, true), "{}", tls.err);
    assert!(!store.exists(), "nothing was made");
}

#[test]
fn the_default_is_below_home() {
    let place = Sandbox::new();
    let run = place.command(&["append", "t", "x"]).env_remove("XS_ADDR").output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(place.path(".local/share/xs/store/super.a").exists());
}

#[test]
fn subcommands_without_a_server_take_turns() {
    let place = Sandbox::new();
    let all: Vec<_> = (0..8)
        .map(|n| {
            place.command(&["append", "t", &n.to_string()]).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in all {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(place.ok(&["cat", "t"]).json().len(), 8);
}

#[test]
fn empty_variables_are_ignored() {
    let place = Sandbox::new();
    let home = ".local/share/xs/store";
    place.ok(&["append", &format!("./{home}"), "t", "x"]);
    let run = place.command(&["cat"]).env("XS_ADDR", "").env("XS_TLS_CA", "").output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(String::from_utf8(run.stdout).unwrap().lines().count(), 1);
}
