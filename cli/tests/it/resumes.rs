//! The Rust client over a server that is killed and started again: who follows goes on by itself,
//! and an append whose answer did not come is an error.

use serde_json::json;
use xs_engine::ReadOptions;
use xs_protocol::{Address, AppendRequest, Class, Follow, FollowEvent, FollowOptions};

use crate::client::{connect, frame, runtime};
use crate::support::{PATIENCE, Place};

/// Appended before each kill.
const FRAMES: u64 = 500;
const KILLS: u64 = 3;

/// Takes frames, which must be the next ones of the topic, until `end`; how often it went on.
async fn take(follow: &mut Follow, next: &mut u64, end: u64) -> u64 {
    let mut resumed = 0;
    while *next < end {
        let event = tokio::time::timeout(PATIENCE, follow.next()).await.expect("nothing comes");
        match event.expect("it has ended").unwrap() {
            FollowEvent::Frame(one) => {
                let meta: serde_json::Value = serde_json::from_slice(one.frame.meta()).unwrap();
                assert_eq!(meta["n"], *next);
                *next += 1;
            }
            FollowEvent::Resumed { .. } => resumed += 1,
            FollowEvent::CaughtUp { .. } => {}
            other => panic!("after {next}: {other:?}"),
        }
    }
    resumed
}

#[test]
fn who_follows_over_servers_that_are_killed_misses_nothing_and_gets_nothing_twice() {
    let place = Place::new();
    runtime().block_on(async {
        let mut server = place.serve(&[]);
        let topics = xs_engine::TopicPatterns::parse("t").unwrap();
        let read = ReadOptions { topics, ..ReadOptions::default() };
        let options = FollowOptions { read, ..FollowOptions::default() };
        let address = Address::of_path(&place.store());
        let mut follow = Follow::open(&address, options).await.unwrap();
        let (mut next, mut appended, mut resumed) = (0, 0, 0);
        for _ in 0..KILLS {
            let client = connect(&place.store()).await;
            for _ in 0..FRAMES {
                let one = frame("t", &json!({ "n": appended }), b"");
                client.append(&AppendRequest::frames(vec![one])).await.unwrap();
                appended += 1;
            }
            // In the middle of what is there to take.
            resumed += take(&mut follow, &mut next, appended - FRAMES / 2).await;
            server.kill();
            let late = client.append(&AppendRequest::frames(vec![frame("u", &json!(1), b"")]));
            assert_eq!(late.await.unwrap_err().class(), Class::Unknown);
            server = place.serve(&[]);
            resumed += take(&mut follow, &mut next, appended).await;
        }
        let client = connect(&place.store()).await;
        let one = frame("t", &json!({ "n": appended }), b"");
        client.append(&AppendRequest::frames(vec![one])).await.unwrap();
        resumed += take(&mut follow, &mut next, appended + 1).await;
        assert_eq!(resumed, KILLS);
        server.kill();
    });
}
