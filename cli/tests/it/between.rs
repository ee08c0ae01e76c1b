//! A relay to a server that can be held in the middle of an answer.

use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::support::{PATIENCE, Sandbox};

/// Relays connections to the server of a store. The first connection is held.
pub(crate) struct Between {
    /// The address to connect to.
    pub(crate) front: PathBuf,
    held: Receiver<()>,
    go: Sender<()>,
}

impl Between {
    /// Holds the first connection once the server has sent `held_after` bytes on it.
    pub(crate) fn new(place: &Sandbox, held_after: u64) -> Self {
        let front = place.path("front");
        std::fs::create_dir_all(&front).unwrap();
        let socket = front.join("xs.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        let store = place.store().join("xs.sock");
        let (is_held, held) = channel();
        let (go, let_go) = channel();
        let mut first = Some((is_held, let_go));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // If there is no server, the client finds its connection closed.
                if let (Ok(client), Ok(server)) = (client, UnixStream::connect(&store)) {
                    relay(client, server, held_after, first.take());
                }
            }
        });
        Self { front, held, go }
    }

    /// Waits until the connection is held.
    pub(crate) fn await_held(&self) {
        self.held.recv_timeout(PATIENCE).unwrap();
    }

    /// Forwards what was held, and all that follows.
    pub(crate) fn let_go(&self) {
        self.go.send(()).unwrap();
    }
}

fn relay(
    client: UnixStream,
    server: UnixStream,
    held_after: u64,
    held: Option<(Sender<()>, Receiver<()>)>,
) {
    let (mut from_client, mut to_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut to_client, mut from_server) = (client, server);
    std::thread::spawn(move || {
        if let Some((is_held, let_go)) = held {
            let _ = std::io::copy(&mut (&mut from_server).take(held_after), &mut to_client);
            is_held.send(()).unwrap();
            let_go.recv().unwrap();
        }
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
}
