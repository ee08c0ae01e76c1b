//! Connections that are reset in the middle of a message, at any byte of either direction: the
//! server continues and frees what they used, and the client reports that the connection is lost.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use xs_engine::ReadOptions;
use xs_protocol::codec::{Header, PREFACE};
use xs_protocol::{
    Address, AppendRequest, Client, ClientError, ClientOptions, Gather, Op, SubEvent,
    SubscribeOptions, limits,
};

use crate::client::{connect, frame, runtime};
use crate::support::{PATIENCE, Sandbox, Server, eventually};

/// Connections that are reset, half of them while they send, half while they receive.
const CUTS: u64 = 300;
/// Frames to read: more bytes than the buffers of sockets hold, so that the server is in the middle
/// of sending.
const FRAMES: u64 = 512;
const BODY_BYTES: usize = 16 * 1024;
/// Bytes of the append that never arrives in full.
const CUT_BYTES: usize = 256 * 1024;
/// Maximum growth of the server: a fifth of the appends that are cut.
const GROWN_MAX: u64 = 4 << 20;

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn listening(place: &Sandbox) -> SocketAddr {
    let start = place.await_frames("xs.start", 1);
    start[0]["meta"]["listen"][1].as_str().unwrap().parse().unwrap()
}

/// A server with frames to read, and where it listens.
fn served(place: &Sandbox, frames: u64) -> (Server, SocketAddr) {
    let server = place.serve(&["--sync", "none", "--listen", ":0"]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        for first in (0..frames).step_by(64) {
            let body = vec![7; BODY_BYTES];
            let batch = (first..first + 64).map(|n| frame("big", &json!({ "n": n }), &body));
            client.append(&AppendRequest::frames(batch.collect())).await.unwrap();
        }
    });
    (server, listening(place))
}

fn request(out: &mut Gather, op: Op, corr: u32, sub: u32) {
    out.begin(Header { op: op as u8, flags: 0, code: 1, corr, sub });
}

/// HELLO, and a subscription that has all the credit it needs.
fn greeting() -> Gather {
    let mut out = Gather::default();
    out.put_raw(&PREFACE);
    request(&mut out, Op::Hello, 1, 0);
    [1, 1, 1, 1].into_iter().for_each(|version| out.put_u16(version));
    out.put_u64(0);
    out.put_u32(limits::SERVER_MESSAGE_BYTES_MAX);
    out.put_str("cut");
    out.put_str("");
    out.finish();
    request(&mut out, Op::Subscribe, 2, 1);
    out.put_u32(u32::MAX);
    out.put_u32(BODY_BYTES as u32);
    out.put_u64(0);
    out.put_slice(b"\0\0\x01\0\x03\0big");
    out.finish();
    out
}

/// The greeting, and an append.
fn appending() -> Bytes {
    let mut out = greeting();
    request(&mut out, Op::Append, 3, 0);
    out.put_slice(&[0, 0, 1, 0, 0, 0, 0, 0]);
    out.put_slice(&[1, 0, 3, 0]);
    out.put_u32(0);
    out.put_u32(CUT_BYTES as u32);
    out.put_slice(b"cut");
    out.put_slice(&[9; CUT_BYTES]);
    out.finish();
    out.take_all()
}

/// Closes a socket with a reset; what it still holds is lost.
fn reset(stream: impl AsFd) {
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

/// A connection that is reset once it has sent these bytes.
fn cut_sending(at: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(bytes).unwrap();
    reset(stream);
}

/// A connection that is reset once it has received `count` bytes.
fn cut_receiving(at: SocketAddr, greeting: &[u8], count: u64) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(greeting).unwrap();
    let mut seen = vec![0; count as usize];
    stream.read_exact(&mut seen).unwrap();
    reset(stream);
}

/// Waits until no client is connected except the one that asks.
fn await_quiet(place: &Sandbox) {
    eventually(|| {
        let stats: Value = place.ok(&["stats"]).json().remove(0);
        (stats["server"]["connections"] == 1).then_some(())
    });
}

/// Sockets that the server holds.
fn sockets(server: &Server) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let links = all.filter_map(|one| fs::read_link(one.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

#[test]
fn a_server_outlives_connections_that_are_reset() {
    let place = Sandbox::new();
    let (server, at) = served(&place, FRAMES);
    let (greeting, appending) = (greeting().take_all(), appending());
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut cut = |count: u64| {
        for n in 0..count {
            if n % 2 == 0 {
                let end = random.below(appending.len() as u64) as usize;
                cut_sending(at, &appending[..end]);
            } else {
                cut_receiving(at, &greeting, random.below(1 << 20));
            }
            if n % 50 == 0 {
                place.ok(&["append", "between", "x"]);
            }
        }
    };
    // The first connections create what stays: threads, buffers, arenas.
    cut(CUTS / 2);
    await_quiet(&place);
    let (before, held) = (server.rss_anon(), sockets(&server));
    cut(CUTS);
    await_quiet(&place);
    eventually(|| (sockets(&server) <= held).then_some(()));
    let grown = server.rss_anon().saturating_sub(before);
    println!("{CUTS} resets: {grown} bytes more");
    assert!(grown < GROWN_MAX, "{grown} bytes more after {CUTS} resets");
    assert_eq!(place.frames("cut").len(), 0, "an append that never came whole was stored");
    assert_eq!(place.frames("between").len() as u64, (CUTS / 2).div_ceil(50) + CUTS.div_ceil(50));
    assert!(server.stop().success(), "{}", place.log());
}

/// Relays both directions, and resets both sides after `count` bytes from the server.
async fn relay(client: tokio::net::TcpStream, server: SocketAddr, count: u64) {
    let (mut client, mut server) = (client, tokio::net::TcpStream::connect(server).await.unwrap());
    {
        let (mut from_client, mut to_client) = client.split();
        let (from_server, mut to_server) = server.split();
        let mut from_server = from_server.take(count);
        tokio::select! {
            _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
            _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        }
    }
    reset(&client);
    reset(&server);
}

/// Reads until the connection is lost. Returns the number of frames, and why it ended.
async fn read(at: SocketAddr) -> (u64, ClientError) {
    let client = match Client::connect(&Address::Tcp(at), ClientOptions::default()).await {
        Ok(client) => client,
        Err(error) => return (0, error),
    };
    let how = SubscribeOptions {
        bodies_up_to: BODY_BYTES as u32,
        credit: 64 << 20,
        ..SubscribeOptions::default()
    };
    let mut frames = match client.subscribe(&ReadOptions::default(), how).await {
        Ok(frames) => frames,
        Err(error) => return (0, error),
    };
    let mut next = 0;
    loop {
        match frames.next().await.expect("a reset is no end") {
            Ok(SubEvent::Frames { frames, .. }) => {
                for one in frames.iter().filter(|one| one.frame.topic() == "big") {
                    let meta: Value = serde_json::from_slice(one.frame.meta()).unwrap();
                    assert_eq!(meta["n"], next);
                    assert_eq!(one.body.as_ref().unwrap().len(), BODY_BYTES);
                    next += 1;
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => return (next, error),
        }
    }
}

#[test]
fn a_client_distinguishes_a_reset_from_an_end() {
    const KEPT: u64 = 64;
    let place = Sandbox::new();
    let (server, at) = served(&place, KEPT);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let between = listener.local_addr().unwrap();
        for _ in 0..CUTS {
            // Mostly early, where messages are short and of many kinds.
            let below = 1 << (4 + random.below(17));
            let count = random.below(below);
            let relayed = async {
                let (client, _) = listener.accept().await.unwrap();
                relay(client, at, count).await;
            };
            let both = async { tokio::join!(relayed, read(between)).1 };
            let (seen, error) = tokio::time::timeout(PATIENCE, both).await.expect("it hangs");
            assert!(seen < KEPT, "{seen} frames in {count} bytes");
            assert!(seen * BODY_BYTES as u64 <= count, "{seen} frames in {count} bytes");
            let lost = matches!(error, ClientError::Disconnected(_) | ClientError::Connect { .. });
            assert!(lost, "after {count} bytes: {error:?}");
        }
    });
    assert!(server.stop().success(), "{}", place.log());
}
