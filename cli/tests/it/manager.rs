//! Under a service manager: the notifications, and the sockets that it has opened.

use std::fs::{self, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::support::{PATIENCE, Run, Sandbox, output_within, signal, text, wait_within};

/// The next message to the manager.
fn told(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 512];
    let len = manager.recv(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

fn start(place: &Sandbox, envs: &[(&str, &str)]) -> Child {
    let log = fs::File::options().create(true).append(true).open(place.path("log")).unwrap();
    let store = place.store();
    let mut serve = place.command(&["serve", text(&store)]);
    serve.envs(envs.iter().copied()).stderr(log).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn the_service_manager_is_notified() {
    let place = Sandbox::new();
    let path = place.path("notify");
    let hidden = format!("xs-test-{}-{}", std::process::id(), path.display());
    let hidden = hidden.replace('/', "-");
    let named = format!("@{hidden}");
    let sockets = [
        (UnixDatagram::bind(&path).unwrap(), text(&path)),
        (
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&hidden).unwrap()).unwrap(),
            named.as_str(),
        ),
    ];
    for (manager, name) in sockets {
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let envs = [("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "100000")];
        let mut server = start(&place, &envs);
        let ready = told(&manager);
        assert!(ready.starts_with("READY=1\nSTATUS=serving /"), "{ready}");
        place.ok(&["ping"]);
        assert_eq!(told(&manager), "WATCHDOG=1");
        assert_eq!(told(&manager), "WATCHDOG=1");
        signal(&server, Signal::TERM);
        let mut last = told(&manager);
        while last == "WATCHDOG=1" {
            last = told(&manager);
        }
        assert!(last.starts_with("STOPPING=1"), "{last}");
        assert!(wait_within(&mut server, PATIENCE).success());
    }
}

#[test]
fn an_unreachable_service_manager_does_not_stop_the_server() {
    let place = Sandbox::new();
    for name in ["/nowhere/notify", "nonsense"] {
        let mut server = start(&place, &[("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "x")]);
        place.ok(&["ping", "--wait", "4m"]);
        signal(&server, Signal::TERM);
        assert!(wait_within(&mut server, PATIENCE).success());
    }
    assert!(place.log().contains("cannot notify the service manager"), "{}", place.log());
}

/// A server with sockets as descriptors 3 and, for a second one, 4.
fn activated(place: &Sandbox, sockets: Vec<OwnedFd>, args: &str) -> Command {
    let count = sockets.len();
    let xs = env!("CARGO_BIN_EXE_xs");
    let mut script = format!(
        "exec env LISTEN_PID=$$ LISTEN_FDS={count} {xs} serve ./store {args} 3<&0 4<&1 0</dev/null"
    );
    script += " 1>/dev/null";
    let mut sockets = sockets.into_iter().map(Stdio::from);
    let mut shell = place.shell(&script);
    shell.stdin(sockets.next().unwrap());
    shell.stdout(sockets.next().unwrap_or_else(Stdio::null)).stderr(Stdio::piped());
    shell
}

fn listen_unix(path: &Path, mode: u32) -> OwnedFd {
    let listener = UnixListener::bind(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    listener.into()
}

fn listen_tcp(address: &str) -> io::Result<(OwnedFd, String)> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?.to_string();
    Ok((listener.into(), address))
}

#[test]
fn inherited_sockets_are_served_and_left_in_place() {
    let place = Sandbox::new();
    fs::create_dir(place.store()).unwrap();
    let socket = place.store().join("xs.sock");
    let unix = listen_unix(&socket, 0o600);
    // A client connects before the server runs, as the first connection to a socket unit does.
    let early = place.command(&["append", "t", "early"]).stdout(Stdio::piped()).spawn().unwrap();
    let (tcp, address) = listen_tcp("127.0.0.1:0").unwrap();
    let mut server = activated(&place, vec![unix, tcp], "").spawn().unwrap();
    assert!(output_within(early, PATIENCE).status.success());
    place.ok(&["append", &address, "t", "over TCP"]);
    assert_eq!(place.frames("t").len(), 2);
    let listen = &place.await_frames("xs.start", 1)[0]["meta"]["listen"];
    assert_eq!(listen.as_array().unwrap().len(), 2, "{listen}");
    assert_eq!((&listen[0], &listen[1]), (&text(&socket).into(), &address.as_str().into()));
    signal(&server, Signal::TERM);
    assert!(wait_within(&mut server, PATIENCE).success());
    assert!(socket.exists(), "the manager listens there still");
}

#[test]
fn sockets_meant_for_another_process_are_ignored() {
    let place = Sandbox::new();
    let mut server = start(&place, &[("LISTEN_FDS", "1"), ("LISTEN_PID", "1")]);
    place.ok(&["ping", "--wait", "4m"]);
    let listen = &place.await_frames("xs.start", 1)[0]["meta"]["listen"];
    assert_eq!(listen.as_array().unwrap().len(), 1, "{listen}");
    signal(&server, Signal::TERM);
    assert!(wait_within(&mut server, PATIENCE).success());
}

#[test]
fn inherited_sockets_open_to_others_are_refused() {
    let place = Sandbox::new();
    let refused = |sockets: Vec<OwnedFd>, said: &str| {
        let child = activated(&place, sockets, "").spawn().unwrap();
        let run = Run::from(output_within(child, PATIENCE));
        assert_eq!(run.code, 2, "{}", run.err);
        assert!(run.err.contains(said), "{}", run.err);
    };
    refused(vec![listen_unix(&place.path("open.sock"), 0o666)], "SocketMode=");
    let hidden = SocketAddr::from_abstract_name(place.path("hidden").to_str().unwrap()).unwrap();
    let hidden = UnixListener::bind_addr(&hidden).unwrap();
    refused(vec![hidden.into()], "open to every user");
    refused(vec![listen_tcp("0.0.0.0:0").unwrap().0], "not a loopback address");
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    refused(vec![one.into()], "Accept=no");
    let file = fs::File::create(place.path("file")).unwrap();
    refused(vec![file.into()], "neither a Unix stream socket nor TCP");
    assert!(!place.store().exists(), "nothing was made");
}
