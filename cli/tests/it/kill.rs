//! kill -9 of the server at random moments while clients append and a handler answers: every
//! acknowledged frame is stored once and in order, and each input has exactly one output.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xs_engine::{Bound, Frame, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::{AppendRequest, Client};

use crate::client::{connect, frame, runtime};
use crate::support::{PATIENCE, Sandbox};

const CLIENTS: u64 = 4;
/// Frames that one client has in flight.
const IN_FLIGHT: usize = 4;
const ROUNDS: u64 = 100;
const ROUNDS_LONG: u64 = 1000;

/// Answers each input once, and numbers the answers in its state.
const HANDLER: &str = r#"
import { handler } from "xs";
export default handler({ topics: "in.*", start: "first", state: { n: 0 },
  run(frame, ctx) { return { n: ++ctx.state.n, client: frame.meta.client, seq: frame.meta.seq }; },
});
"#;

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What has been seen in the log so far.
#[derive(Default)]
struct Seen {
    /// The offset to continue reading from.
    next: u64,
    /// The newest number of each client.
    newest: HashMap<u64, u64>,
    inputs: Vec<FrameId>,
    outputs: Vec<(FrameId, u64)>,
}

#[test]
fn nothing_acknowledged_is_lost_and_no_output_is_doubled() {
    let place = Sandbox::new();
    place.write("modules/handlers/count.ts", HANDLER);
    let rounds = if std::env::var_os("XS_TEST_LONG").is_some() { ROUNDS_LONG } else { ROUNDS };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen = Seen::default();
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let server = place.serve(&["--modules", "modules", "--log-level", "warn"]);
        acknowledged = runtime().block_on(async {
            let client = connect(&place.store()).await;
            look(&client, &mut seen).await;
            check_inputs(&seen, &mut acknowledged, round);
            let life = Duration::from_millis(random.below(300));
            append_until_killed(&place.store(), round, || server.kill(), life).await
        });
    }
    let server = place.serve(&["--modules", "modules"]);
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        // For as long as there is progress.
        let (mut outputs, mut give_up) = (0, Instant::now() + PATIENCE);
        loop {
            look(&client, &mut seen).await;
            if seen.outputs.len() >= seen.inputs.len() || Instant::now() > give_up {
                break;
            }
            if seen.outputs.len() > outputs {
                (outputs, give_up) = (seen.outputs.len(), Instant::now() + PATIENCE);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    check_inputs(&seen, &mut acknowledged, rounds);
    let numbers: Vec<u64> = seen.outputs.iter().map(|(_, n)| *n).collect();
    let answered: Vec<FrameId> = seen.outputs.iter().map(|(input, _)| *input).collect();
    assert_eq!(numbers, (1..=seen.inputs.len() as u64).collect::<Vec<_>>(), "state");
    assert!(answered == seen.inputs, "outputs do not match the inputs one by one");
    assert!(seen.inputs.len() as u64 > rounds, "the rounds appended hardly anything");
    assert!(server.stop().success(), "{}", place.log());
}

/// Appends from several clients until the server is dead. Returns the acknowledged frames, with
/// their offsets.
async fn append_until_killed(
    store: &Path,
    round: u64,
    kill: impl FnOnce(),
    life: Duration,
) -> Vec<(u64, FrameId)> {
    let begun = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = connect(store).await;
        clients.push(tokio::spawn(append_on(client, number, round, Arc::clone(&begun))));
    }
    while !begun.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(life).await;
    kill();
    let mut acknowledged = Vec::new();
    for client in clients {
        acknowledged.extend(client.await.unwrap());
    }
    acknowledged
}

async fn append_on(
    client: Client,
    number: u64,
    round: u64,
    begun: Arc<AtomicBool>,
) -> Vec<(u64, FrameId)> {
    let mut acknowledged = Vec::new();
    let mut waiting = std::collections::VecDeque::new();
    for n in 0.. {
        let meta = json!({ "client": number, "seq": round << 32 | n });
        let frame = frame(&format!("in.{number}"), &meta, b"body");
        waiting.push_back(client.append(&AppendRequest::frames(vec![frame])));
        if waiting.len() < IN_FLIGHT {
            continue;
        }
        let Some(reply) = waiting.pop_front() else { continue };
        let Ok(appended) = reply.await else { break };
        begun.store(true, Ordering::Release);
        acknowledged.push((appended.frames[0].offset.unwrap(), appended.frames[0].id));
    }
    for reply in waiting {
        if let Ok(appended) = reply.await {
            acknowledged.push((appended.frames[0].offset.unwrap(), appended.frames[0].id));
        }
    }
    acknowledged
}

/// Reads new frames of the log and checks the order within each client.
async fn look(client: &Client, seen: &mut Seen) {
    let options = ReadOptions {
        topics: TopicPatterns::parse("in.*,count.out").unwrap(),
        start: Start::From(Bound::Offset(seen.next)),
        ..ReadOptions::default()
    };
    let mut frames = client.fetch(&options);
    while let Some(frame) = frames.next().await {
        take_in(seen, &frame.unwrap());
    }
}

fn take_in(seen: &mut Seen, frame: &Frame) {
    let offset = frame.offset().unwrap();
    assert!(offset >= seen.next, "offset {offset} comes twice");
    seen.next = offset + 1;
    let meta: Value = serde_json::from_slice(frame.meta()).unwrap();
    if frame.topic() == "count.out" {
        let input = frame.origin().unwrap().input.unwrap();
        seen.outputs.push((input, meta["n"].as_u64().unwrap()));
        return;
    }
    let (client, seq) = (meta["client"].as_u64().unwrap(), meta["seq"].as_u64().unwrap());
    let before = seen.newest.insert(client, seq);
    assert!(before.is_none_or(|before| before < seq), "client {client}: {before:?} then {seq}");
    seen.inputs.push(frame.id());
}

/// Each acknowledged frame must be among the inputs, once; ids are in the order of the log.
fn check_inputs(seen: &Seen, acknowledged: &mut Vec<(u64, FrameId)>, round: u64) {
    assert!(seen.inputs.is_sorted_by(|a, b| a < b), "ids are not strictly increasing");
    for (offset, id) in acknowledged.drain(..) {
        let there = seen.inputs.binary_search(&id).is_ok();
        assert!(there, "round {round}: acknowledged frame {id} at {offset} is lost");
    }
}
