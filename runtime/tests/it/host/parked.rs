//! Inputs that fail: how often they are tried, where they go, and how they come back.

use serde_json::json;
use xs_engine::FrameId;

use super::support::{World, meta};

/// A handler that parks the input numbered `bad`.
fn parks(bad: &str) -> String {
    format!(
        r#"
import {{ handler, Park }} from "xs";
export default handler({{
  topics: "in", start: "first", state: {{ seen: 0 }},
  run(frame, ctx) {{
    ctx.state.seen++;
    if (frame.meta.n === {bad}) throw new Park("not now");
    return {{ n: frame.meta.n, seen: ctx.state.seen }};
  }},
}});
"#
    )
}

fn made(world: &World) -> Vec<serde_json::Value> {
    world.topic("h.out").iter().map(meta).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_input_comes_back_in_the_order_of_its_unpark() {
    let world = World::new(&[("handlers/h.ts", &parks("1"))]);
    let inputs: Vec<FrameId> = (0..3).map(|n| world.append("in", json!({ "n": n }), "")).collect();
    let host = world.host().await;
    world.wait("h.out", 2).await;
    let parked = world.wait("h.parked", 1).await.remove(0);
    let told = meta(&parked);
    assert_eq!(told["frame"], inputs[1].to_string());
    assert_eq!((&told["message"], &told["line"]), (&json!("Park: not now"), &json!(7)));
    assert_eq!(parked.origin().unwrap().input, Some(inputs[1]));
    // It fails again, so it is parked again.
    world.append("xs.handler.h.unpark", json!({ "parked": parked.id().to_string() }), "");
    let again = world.wait("h.parked", 2).await.remove(1);
    assert_eq!(meta(&again)["frame"], inputs[1].to_string());
    world.save("handlers/h.ts", &parks("99"));
    world.wait("xs.handler.h.active", 2).await;
    world.append("in", json!({ "n": 3 }), "");
    world.append("xs.handler.h.unpark", json!({ "parked": again.id().to_string() }), "");
    world.append("xs.handler.h.unpark", json!({ "parked": inputs[0].to_string() }), "");
    world.append("in", json!({ "n": 4 }), "");
    world.wait("h.out", 5).await;
    host.stop().await;
    let expected = [(0, 1), (2, 2), (3, 3), (1, 4), (4, 5)];
    assert_eq!(made(&world), expected.map(|(n, seen)| json!({ "n": n, "seen": seen })));
    let outputs = world.topic("h.out");
    assert_eq!(outputs[3].origin().unwrap().input, Some(inputs[1]), "its cause is the input");
    // The next Host repeats nothing of this.
    let host = world.host().await;
    world.append("in", json!({ "n": 5 }), "");
    world.wait("h.out", 6).await;
    host.stop().await;
    assert_eq!(made(&world)[5], json!({ "n": 5, "seen": 6 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_and_the_due_time_survive_a_restart() {
    let source = r#"
import { handler, Retry } from "xs";
export default handler({
  topics: "in", start: "first", onError: { retry: 9, backoff: "1h" },
  run(frame, ctx) {
    if (ctx.attempt === 1) throw new Retry("at once", { after: 1 });
    if (ctx.attempt === 2) throw new Retry("later", { after: "1h" });
    return { attempt: ctx.attempt };
  },
});
"#;
    let world = World::new(&[("handlers/h.ts", source)]);
    let input = world.append("in", json!({}), "");
    let later = world.append("in", json!({}), "");
    let host = world.host().await;
    world.wait("xs.handler.h.retrying", 2).await;
    host.stop().await;
    let retrying = meta(&world.topic("xs.handler.h.retrying")[1]);
    assert_eq!((&retrying["frame"], &retrying["tries"]), (&json!(input.to_string()), &json!(2)));
    let saved = |world: &World| -> serde_json::Value {
        let cursor = world.store.cursor_now("xs.handler.h").unwrap();
        serde_json::from_slice(&cursor.state).unwrap()
    };
    let due = saved(&world)["retry"]["due_ms"].as_u64().unwrap();
    assert_eq!(retrying["due_ms"], due);
    // The next Host waits until the same time, and has nothing to do before.
    let host = world.host().await;
    world.wait("xs.handler.h.active", 2).await;
    host.stop().await;
    assert_eq!(saved(&world)["retry"]["due_ms"], due);
    assert_eq!(world.topic("xs.handler.h.retrying").len(), 2);
    // The time has come: the third try of this frame, and the first of the next.
    let mut place = saved(&world);
    place["retry"]["due_ms"] = json!(1);
    world.set_cursor("xs.handler.h", 0, &place.to_string());
    let host = world.host().await;
    let out = world.wait("h.out", 1).await;
    assert_eq!(meta(&out[0])["attempt"], 3);
    assert_eq!(out[0].origin().unwrap().input, Some(input));
    world.wait("xs.handler.h.retrying", 3).await;
    host.stop().await;
    assert_eq!(meta(&world.topic("xs.handler.h.retrying")[2])["frame"], later.to_string());
}

/// A saved fix does not wait for a delay that the previous version has set.
#[tokio::test(flavor = "multi_thread")]
async fn another_version_tries_at_once() {
    let later = r#"
import { handler, Retry } from "xs";
export default handler({ topics: "in", run() { throw new Retry("later", { after: "1h" }); } });
"#;
    let world = World::new(&[("handlers/h.ts", later)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({}), "");
    world.wait("xs.handler.h.retrying", 1).await;
    world.save(
        "handlers/h.ts",
        "export default { topics: 'in', run: (frame, ctx) => ({ attempt: ctx.attempt }) };",
    );
    let out = world.wait("h.out", 1).await;
    assert_eq!(meta(&out[0])["attempt"], 1);
    host.stop().await;
}

/// A state is reported again when it is reached again.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_recovered_is_active() {
    let handler = "export default { topics: 'in', onError: { retry: 2, backoff: 1, then: 'park' }, \
        run(frame, ctx) { if (frame.meta.until >= ctx.attempt) throw new Error('no'); return {}; } };";
    let generator = "export default { async *run(ctx) { \
        if (await ctx.last('ok') === undefined) throw new Error('no'); \
        yield { n: 1 }; await new Promise(() => {}); } };";
    let world = World::new(&[("handlers/h.js", handler), ("generators/g.js", generator)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    // Retried, then handled; retried, then parked; handled.
    for (n, until) in [(2, 1), (3, 9), (3, 0)] {
        world.append("in", json!({ "until": until }), "");
        world.until("it is active", || world.topic("xs.handler.h.active").len() == n).await;
    }
    world.wait("h.out", 2).await;
    assert_eq!(world.topic("xs.handler.h.active").len(), 3);
    world.wait("xs.generator.g.retrying", 1).await;
    world.append("ok", json!({}), "");
    world.wait("g.recv", 1).await;
    world.until("it is active", || world.topic("xs.generator.g.active").len() == 2).await;
    host.stop().await;
}
