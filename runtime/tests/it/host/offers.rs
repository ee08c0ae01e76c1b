//! A handler has the same inputs whether it runs, its state is recomputed, or its file is replayed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde_json::{Value, json};
use xs_engine::limits::HOPS_MAX;
use xs_engine::{FrameId, Meta, NewFrame, Origin, ReadOptions, Topic};
use xs_protocol::{AppendRequest, Role};
use xs_runtime::host::lifecycle::Key;
use xs_runtime::host::replay::{Candidate, ReplayError, replay, state_at};
use xs_runtime::{Kind, ProcessorName};

use super::support::{World, meta};

/// Parks what is not for it until it is opened.
const HANDLER: &str = r#"
import { handler, Park } from "xs";
export default handler({
  topics: "in", start: "first", state: { open: false, seen: [] },
  run(frame, ctx) {
    if (frame.meta.parks && !ctx.state.open) throw new Park("not yet");
    ctx.state.open ||= frame.meta.opens === true;
    ctx.state.seen.push(frame.meta.of);
    return { of: frame.meta.of };
  },
});
"#;

/// Appends an input that a processor made.
fn derived(world: &World, of: &str, processor: FrameId, hops: u32) {
    let mut new = NewFrame::new(Topic::parse("in").unwrap());
    new.meta = Meta::parse(json!({ "of": of }).to_string()).unwrap();
    new.origin = Some(Origin { processor, input: None, input_offset: None, hops });
    world.store.put(AppendRequest::frames(vec![new]));
}

fn key() -> Key {
    Key { kind: Kind::Handler, name: ProcessorName::parse("h").unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_replayed_gets_what_who_ran_was_given() {
    let world = World::new(&[("handlers/h.ts", HANDLER)]);
    // Others had its name before.
    let earlier = ["generator", "command"].map(|kind| {
        let create = world.append(&format!("xs.{kind}.h.create"), json!({}), "export default {}");
        let told = json!({ "create": create.to_string() });
        world.append(&format!("xs.{kind}.h.fin.term"), told, "");
        create
    });
    let stranger = FrameId::first_of_ms(1);
    let given = world.append("in", json!({ "of": "a user" }), "");
    derived(&world, "its name as a generator", earlier[0], 1);
    derived(&world, "its name as a command", earlier[1], 1);
    derived(&world, "a stranger", stranger, 1);
    derived(&world, "a long chain", stranger, HOPS_MAX);
    world.append("in", json!({ "of": "who waited", "parks": true }), "");
    let host = world.host().await;
    let parked = world.wait("h.parked", 1).await[0].id();
    let unpark = |id: FrameId| {
        world.append("xs.handler.h.unpark", json!({ "parked": id.to_string() }), "");
    };
    world.append("in", json!({ "of": "who opens", "opens": true }), "");
    unpark(given);
    unpark(parked);
    world.append("in", json!({ "of": "the last" }), "");
    let ran = world.wait("h.out", 5).await.iter().map(meta).collect::<Vec<_>>();
    host.stop().await;
    let of = ["a user", "a stranger", "who opens", "who waited", "the last"];
    assert_eq!(ran, of.map(|of| json!({ "of": of })));

    let client = world.client(Role::Admin).await;
    let until = world.store.frames().last().unwrap().id();
    let state = state_at(&client, &key(), until, &BTreeMap::new()).await.unwrap().unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state, json!({ "open": true, "seen": of }));
    let saved: Value =
        serde_json::from_slice(&world.store.cursor_now("xs.handler.h").unwrap().state).unwrap();
    assert_eq!(saved["state"], state);

    let file = Candidate::load(&world.path("handlers/h.ts"), None, BTreeMap::new()).unwrap();
    let mut made = Vec::new();
    let each = |one: xs_runtime::host::replay::Made| {
        made.extend(one.outputs);
        ControlFlow::Continue(())
    };
    let all = ReadOptions::default();
    replay(&client, &file, all, None, Box::new(|_, _| {}), each).await.unwrap();
    let made = made.iter().map(|frame| serde_json::from_slice(frame.meta.as_bytes()).unwrap());
    assert_eq!(made.collect::<Vec<Value>>(), ran);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_after_no_frame_is_an_error_for_both() {
    let gone = "0000000000000000000000001";
    let source =
        format!("export default {{ topics: 'in', start: {{ after: '{gone}' }}, run() {{}} }};");
    let world = World::new(&[("handlers/h.js", &source)]);
    let until = world.append("in", json!({}), "");
    let host = world.host().await;
    let invalid = meta(&world.wait("xs.handler.h.invalid", 1).await[0]);
    host.stop().await;
    let client = world.client(Role::Admin).await;
    let replayed = state_at(&client, &key(), until, &BTreeMap::new()).await;
    let Err(ReplayError::Module(error)) = replayed else { panic!("{replayed:?}") };
    assert_eq!(json!(error.message), invalid["message"]);
}
