//! A follower that sleeps: it misses nothing, and the server keeps nothing for it.

use serde_json::json;
use xs_engine::{ReadOptions, Start};
use xs_protocol::{AppendRequest, SubEvent, SubscribeOptions};

use crate::client::{connect, frame, runtime};
use crate::support::Place;

const FRAMES: usize = 200_000;
const BATCH: usize = 500;
/// What the server's own memory may grow by, whatever a follower does not take.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;

#[test]
fn a_sleeping_follower_gets_everything_and_costs_nothing() {
    let place = Place::new();
    let server = place.serve(&["--sync", "none"]);
    let (store, body) = (place.store(), [b'x'; 200]);
    runtime().block_on(async {
        let append = connect(&store).await;
        let batch = |first: usize| {
            let frames = (first..first + BATCH).map(|n| frame("t", &json!({ "n": n }), &body));
            AppendRequest::frames(frames.collect())
        };
        // The first batches make the buffers that stay.
        for first in (0..20 * BATCH).step_by(BATCH) {
            append.append(&batch(first)).await.unwrap();
        }
        let before = server.rss_anon();
        let follower = connect(&store).await;
        let options = ReadOptions { start: Start::First, follow: true, ..ReadOptions::default() };
        let mut sub = follower.subscribe(&options, SubscribeOptions::default()).await.unwrap();
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
        let end = server.rss_anon();
        assert!(end <= before + GROWTH_MAX, "RssAnon went from {before} to {end}");
    });
    assert!(server.stop().success());
}
