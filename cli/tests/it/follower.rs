//! Followers that sleep: they miss nothing, and the server keeps nothing for them. One is a client
//! that does not read what it is sent, the other is the binary itself, stopped by a signal.

use std::fs::File;
use std::io::{BufRead as _, BufReader};

use rustix::process::Signal;
use serde_json::json;
use xs_engine::{ReadOptions, Start};
use xs_protocol::{AppendRequest, SubEvent, SubscribeOptions};

use crate::client::{connect, frame, runtime};
use crate::support::{PATIENCE, Sandbox, signal, wait_within};

const FRAMES: usize = 200_000;
const BATCH: usize = 500;
/// Maximum growth of the server's own memory, whatever a follower does not read.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;

#[test]
fn sleeping_followers_get_everything_and_cost_nothing() {
    let place = Sandbox::new();
    let server = place.serve(&["--sync", "none"]);
    let (store, body) = (place.store(), [b'x'; 200]);
    runtime().block_on(async {
        let append = connect(&store).await;
        let batch = |first: usize| {
            let frames = (first..first + BATCH).map(|n| frame("t", &json!({ "n": n }), &body));
            AppendRequest::frames(frames.collect())
        };
        // The first batches create the buffers that stay.
        for first in (0..20 * BATCH).step_by(BATCH) {
            append.append(&batch(first)).await.unwrap();
        }
        let before = server.rss_anon();
        let follower = connect(&store).await;
        let options = ReadOptions { start: Start::First, follow: true, ..ReadOptions::default() };
        let mut sub = follower.subscribe(&options, SubscribeOptions::default()).await.unwrap();
        let limit = FRAMES.to_string();
        let mut cat = place.command(&["cat", "-f", "--limit", &limit, "t"]);
        let mut cat = cat.stdout(File::create(place.path("cat")).unwrap()).spawn().unwrap();
        signal(&cat, Signal::STOP);
        for first in (20 * BATCH..FRAMES).step_by(BATCH) {
            append.append(&batch(first)).await.unwrap();
        }
        let after = server.rss_anon();
        assert!(after <= before + GROWTH_MAX, "RssAnon went from {before} to {after}");
        let mut next = 0;
        while next < FRAMES {
            match sub.next().await.unwrap().unwrap() {
                SubEvent::Frames { frames, .. } => {
                    for delivered in frames {
                        let meta: serde_json::Value =
                            serde_json::from_slice(delivered.frame.meta()).unwrap();
                        assert_eq!(meta["n"], next);
                        next += 1;
                    }
                }
                SubEvent::CaughtUp { .. } => {}
                other => panic!("after {next} frames: {other:?}"),
            }
        }
        signal(&cat, Signal::CONT);
        assert!(wait_within(&mut cat, PATIENCE).success());
        let end = server.rss_anon();
        assert!(end <= before + GROWTH_MAX, "RssAnon went from {before} to {end}");
    });
    let lines = BufReader::new(File::open(place.path("cat")).unwrap()).lines();
    let printed = lines.map(|line| {
        let frame: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        usize::try_from(frame["meta"]["n"].as_u64().unwrap()).unwrap()
    });
    assert!(printed.eq(0..FRAMES), "what the binary printed is not every frame, once, in order");
    assert!(server.stop().success());
}
