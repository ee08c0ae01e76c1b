//! Many connections at a time: what each costs, and that none of them delays the others.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use xs_engine::ReadOptions;
use xs_protocol::codec::{HEADER_LEN, Header, PREFACE};
use xs_protocol::{AppendRequest, Gather, Op, SubEvent, SubscribeOptions, limits};

use crate::client::{connect, frame, runtime};
use crate::support::{PATIENCE, Sandbox};

const IDLE: usize = 10_000;
const BUSY: usize = 100;
/// What a connection may cost the server while nothing happens on it.
const IDLE_BYTES_MAX: u64 = 32 * 1024;

/// Whether this process, and the server it starts, may have this many descriptors.
fn may_open(count: usize, test: &str) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let wanted = count as u64 + 500;
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let is_enough = limit.maximum.is_none_or(|maximum| maximum >= wanted);
        if !is_enough || setrlimit(Resource::Nofile, raised).is_err() {
            // Not with the macros, whose output is hidden when a test passes.
            let text = format!("skipped: {test}: {wanted} descriptors are more than allowed\n");
            std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes()).unwrap();
            return false;
        }
    }
    true
}

/// A connection after HELLO, without any task or buffer on this side.
fn greet(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut out = Gather::default();
    out.put_raw(&PREFACE);
    out.begin(Header { op: Op::Hello as u8, flags: 0, code: 1, corr: 1, sub: 0 });
    [1, 1, 1, 1].into_iter().for_each(|version| out.put_u16(version));
    out.put_u64(0);
    out.put_u32(limits::SERVER_MESSAGE_BYTES_MAX);
    out.put_str("crowd");
    out.put_str("");
    out.finish();
    stream.write_all(&out.take_all()).unwrap();
    let mut head = [0; PREFACE.len() + HEADER_LEN];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[PREFACE.len() + 4], Op::Hello as u8);
    let len = u32::from_le_bytes(head[8..12].try_into().unwrap()) as usize;
    let mut body = vec![0; len + 4 - HEADER_LEN];
    stream.read_exact(&mut body).unwrap();
    stream
}

#[test]
fn idle_connections_cost_little_and_do_not_slow_busy_ones() {
    if !may_open(IDLE + BUSY, "idle connections cost little") {
        return;
    }
    let place = Sandbox::new();
    let server = place.serve(&["--sync", "none"]);
    let store = place.store();
    let socket = store.join("xs.sock");
    // The first connections create what stays: threads, buffers, arenas.
    drop((0..BUSY).map(|_| greet(&socket)).collect::<Vec<_>>());
    let before = server.rss_anon();
    let idle: Vec<UnixStream> = (0..IDLE).map(|_| greet(&socket)).collect();
    let grown = server.rss_anon().saturating_sub(before);
    let each = grown / IDLE as u64;
    println!("{IDLE} idle connections: {each} bytes each");
    assert!(each < IDLE_BYTES_MAX, "{each} bytes for an idle connection");
    runtime().block_on(async {
        let clients = join_all((0..BUSY).map(|_| connect(&store))).await;
        let work = clients.iter().enumerate().map(async |(n, client)| {
            let topic = format!("busy.c{n}");
            for i in 0..20 {
                let batch = AppendRequest::frames(vec![frame(&topic, &json!({ "i": i }), b"x")]);
                client.append(&batch).await.unwrap();
            }
        });
        join_all(work).await;
        let stats = async || -> serde_json::Value {
            serde_json::from_str(&clients[0].stats().await.unwrap()).unwrap()
        };
        // The first connections may still be closing.
        let others_are_gone = async {
            while stats().await["server"]["connections"] != IDLE + BUSY {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, others_are_gone).await.expect("each is counted once");
        let stats = stats().await;
        // The frames of the busy clients, and the one for the start of the server.
        assert_eq!(stats["store"]["head"], BUSY * 20 + 1);
    });
    drop(idle);
}

#[test]
fn memory_is_bounded_by_received_bytes() {
    const PEERS: usize = 1000;
    if !may_open(PEERS, "memory follows the bytes that came") {
        return;
    }
    let place = Sandbox::new();
    let server = place.serve(&["--sync", "none"]);
    let socket = place.store().join("xs.sock");
    drop((0..100).map(|_| greet(&socket)).collect::<Vec<_>>());
    let before = server.rss_anon();
    let mut announced = (limits::MESSAGE_BYTES_MAX - 4).to_le_bytes().to_vec();
    announced.extend_from_slice(&[Op::Append as u8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    announced.extend_from_slice(&[0; 100]);
    let mut peers: Vec<UnixStream> = (0..PEERS).map(|_| greet(&socket)).collect();
    peers.iter_mut().for_each(|peer| peer.write_all(&announced).unwrap());
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        let batch = AppendRequest::frames(vec![frame("a", &json!({}), b"x")]);
        client.append(&batch).await.unwrap();
    });
    let each = server.rss_anon().saturating_sub(before) / PEERS as u64;
    println!("24 MiB announced and 116 bytes sent: {each} bytes each");
    // Address space is reserved for the whole message; pages are used as it arrives.
    assert!(each < 2 * IDLE_BYTES_MAX, "{each} bytes for a message of which nothing came");
}

#[test]
fn stalled_subscribers_hold_up_nobody_and_miss_nothing() {
    const FRAMES: u64 = 20_000;
    let place = Sandbox::new();
    let server = place.serve(&["--sync", "none"]);
    let store = place.store();
    runtime().block_on(async {
        let clients = join_all((0..10).map(|_| connect(&store))).await;
        let options = ReadOptions { follow: true, ..ReadOptions::default() };
        let how = SubscribeOptions { credit: 4096, ..SubscribeOptions::default() };
        let subscribe = (0..100).map(|n| clients[n % 10].subscribe(&options, how));
        let stalled = join_all(subscribe).await.into_iter().map(Result::unwrap);
        let stalled: Vec<_> = stalled.collect();
        let append = connect(&store).await;
        let before = server.rss_anon();
        for first in (0..FRAMES).step_by(100) {
            let frames = (first..first + 100).map(|n| frame("t", &json!({ "n": n }), &[7; 100]));
            append.append(&AppendRequest::frames(frames.collect())).await.unwrap();
        }
        let grown = server.rss_anon().saturating_sub(before);
        assert!(grown < 64 << 20, "{grown} bytes for subscribers that take nothing");
        let resume = stalled.into_iter().map(async |mut subscription| {
            let mut next = 0;
            while next < FRAMES {
                match subscription.next().await.unwrap().unwrap() {
                    SubEvent::Frames { frames, .. } => {
                        for one in frames {
                            let meta: serde_json::Value =
                                serde_json::from_slice(one.frame.meta()).unwrap();
                            assert_eq!(meta["n"], next);
                            next += 1;
                        }
                    }
                    SubEvent::CaughtUp { .. } => {}
                    other => panic!("after {next} frames: {other:?}"),
                }
            }
        });
        join_all(resume).await;
    });
}
