//! What a failure may cost: of an input, of the store, of code that belongs to no input.

use serde_json::json;
use xs_engine::{Frame, FrameId};
use xs_runtime::host::HostEnd;

use super::support::{World, meta};

fn numbers(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(|frame| meta(frame)["n"].as_u64().unwrap()).collect()
}

fn inputs(world: &World, count: u64) -> Vec<FrameId> {
    (0..count).map(|n| world.append("in", json!({ "n": n }), "")).collect()
}

/// Each input of the group cost an isolate, and a second of a processor.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_group_costs_one_more_isolate() {
    let source = r#"
export default { topics: "in", start: "first", onError: "park", run(frame) {
  if (frame.meta.n === 5) for (;;);
  return { n: frame.meta.n };
} };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    let inputs = inputs(&world, 8);
    // One for the inputs one by one, and one for those behind the input that is parked.
    let host = world.host_that_spends(2).await;
    let made = world.wait("h.out", 7).await;
    assert!(matches!(host.stop().await, HostEnd::Stopped), "it made more isolates");
    assert_eq!(numbers(&made), [0, 1, 2, 3, 4, 6, 7]);
    let parked = world.topic("h.parked");
    assert_eq!(parked.len(), 1);
    assert_eq!(meta(&parked[0])["frame"], inputs[5].to_string());
}

/// The wait wrapped around to one that was over: the frame was tried again at once, for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_the_end_of_time_waits() {
    let source = r#"
import { handler, Retry } from "xs";
export default handler({ topics: "in", start: "first", pulse: 1e300, tick() {}, run() {
  throw new Retry("later", { after: 1e20 });
} });
"#;
    let world = World::new(&[("handlers/h.ts", source)]);
    inputs(&world, 1);
    let host = world.host().await;
    let retrying = world.wait("xs.handler.h.retrying", 1).await;
    host.stop().await;
    let days = meta(&retrying[0])["due_ms"].as_u64().unwrap() - retrying[0].id().time_ms();
    assert!((365..=366).contains(&(days / 86_400_000)), "{days} ms");
}
