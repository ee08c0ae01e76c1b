//! The guarantees of a generator: each value at once and in order, and another run after every end.

use serde_json::json;

use super::support::{World, meta};

const COUNT: &str = r#"
import { generator } from "xs";
export default generator({ async *run() { yield "one"; yield "two\nlines"; yield { n: 3 }; yield null; } });
"#;

#[tokio::test(flavor = "multi_thread")]
async fn values_are_frames_in_order() {
    let world = World::new(&[("generators/disk/count.ts", COUNT)]);
    let host = world.host().await;
    let frames = world.wait("disk.count.recv", 3).await;
    let bodies: Vec<String> = frames.iter().map(|frame| world.store.text(frame)).collect();
    assert_eq!(bodies[..3], ["one", "two\nlines", ""]);
    assert_eq!(meta(&frames[2]), json!({ "n": 3 }));
    let create = world.topic("xs.generator.disk.count.create")[0].clone();
    let origin = frames[0].origin().unwrap();
    assert_eq!((origin.processor, origin.input), (create.id(), None));
    let retrying = world.wait("xs.generator.disk.count.retrying", 1).await;
    assert_eq!(meta(&retrying[0])["reason"], "finished");
    assert_eq!(retrying[0].ttl().to_string(), "last:1");
    host.stop().await;
    assert_eq!(world.topic("xs.generator.disk.count.stopped").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throw_is_told_and_followed_by_another_run() {
    let source = r#"
export default { async *run() {
  yield "before";
  throw new Error("no more");
} };
"#;
    let world = World::new(&[("generators/g.js", source)]);
    let host = world.host().await;
    world.wait("g.recv", 2).await;
    let retrying = meta(&world.topic("xs.generator.g.retrying")[0]);
    assert_eq!(retrying["reason"], "error");
    assert_eq!(retrying["message"], "Error: no more");
    assert_eq!((&retrying["file"], &retrying["line"]), (&json!("generators/g.js"), &json!(4)));
    assert!(world.topic("xs.generator.g.fin.error").is_empty(), "it never gives up");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_generator_that_waits_and_stays() {
    let source = r#"
export default { async *run(ctx) {
  try { yield "up"; await new Promise(() => {}); } finally { await ctx.append("g.down", {}); }
} };
"#;
    let world = World::new(&[("generators/g.js", source), ("generators/other.js", source)]);
    let host = world.host().await;
    world.wait("g.recv", 1).await;
    world.append("xs.generator.g.term", json!({}), "");
    world.wait("xs.generator.g.fin.term", 1).await;
    // A generator that is stopped before its first yield has no output of its first run.
    world.wait("other.recv", 1).await;
    host.stop().await;
    let host = world.host().await;
    world.wait("xs.generator.other.active", 2).await;
    world.wait("other.recv", 2).await;
    assert_eq!(world.topic("g.recv").len(), 1);
    assert_eq!(world.topic("xs.generator.g.create").len(), 1, "the file has not changed");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_taken_once_whenever_it_was_sent() {
    let source = r#"
import { generator } from "xs";
export default generator({ duplex: true, async *run(ctx) {
  for await (const frame of ctx.input) {
    await ctx.append("g.send", { body: "its own is not its input" });
    yield { n: frame.meta.n, text: await frame.text() };
    if (frame.meta.n % 3 === 2) return;
  }
} });
"#;
    let world = World::new(&[("generators/g.ts", source)]);
    world.append("g.send", json!({ "n": -1 }), "before there was a generator");
    let host = world.host().await;
    world.wait("xs.generator.g.active", 1).await;
    for n in 0..4 {
        world.append("g.send", json!({ "n": n }), "hello");
    }
    // The run ends with the third frame; the next one continues with the fourth.
    world.wait("g.recv", 4).await;
    let kept = || {
        world.store.cursor_now("xs.generator.g:input").map_or(0, |cursor| {
            let place: serde_json::Value = serde_json::from_slice(&cursor.state).unwrap();
            place["offset"].as_u64().unwrap()
        })
    };
    let sent = |n: u64| world.topic("g.send").iter().find(|f| meta(f)["n"] == n).unwrap().offset();
    let saved = async {
        while kept() <= sent(3).unwrap() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::support::PATIENCE, saved).await.unwrap();
    host.stop().await;
    world.append("g.send", json!({ "n": 4 }), "while it was down");
    let host = world.host().await;
    world.wait("g.recv", 5).await;
    host.stop().await;
    let made: Vec<_> = world.topic("g.recv").iter().map(|f| meta(f)["n"].clone()).collect();
    assert_eq!(made, [0, 1, 2, 3, 4].map(|n| json!(n)));
    assert_eq!(meta(&world.topic("g.recv")[4])["text"], "while it was down");
}

/// A version that fails before it asks for its input leaves it to the next version.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_to_a_broken_version_waits_for_the_next() {
    let broken = "export default { duplex: true, async *run(ctx) {
        throw new Error('before it looks'); for await (const f of ctx.input) yield f; } };";
    let mended = "export default { duplex: true, async *run(ctx) {
        for await (const f of ctx.input) yield { n: f.meta.n }; } };";
    let world = World::new(&[("generators/g.js", broken)]);
    world.append("g.send", json!({ "n": 0 }), "before there was a generator");
    let host = world.host().await;
    world.wait("xs.generator.g.retrying", 1).await;
    world.append("g.send", json!({ "n": 1 }), "");
    world.save("generators/g.js", mended);
    world.wait("xs.generator.g.active", 2).await;
    world.append("g.send", json!({ "n": 2 }), "");
    world.wait("g.recv", 2).await;
    host.stop().await;
    let made: Vec<_> = world.topic("g.recv").iter().map(|f| meta(f)["n"].clone()).collect();
    assert_eq!(made, [1, 2].map(|n| json!(n)));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_needs_to_be_asked_for() {
    let source =
        "export default { async *run(ctx) { for await (const f of ctx.input) yield f; } };";
    let world = World::new(&[("generators/g.js", source)]);
    let host = world.host().await;
    let retrying = meta(&world.wait("xs.generator.g.retrying", 1).await[0]);
    assert!(retrying["message"].as_str().unwrap().contains("duplex: true"), "{retrying}");
    host.stop().await;
}

/// Output that was handed over is accepted: the loop after it does not undo it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_yielded_before_an_endless_loop_is_stored() {
    let source = r#"
export default { async *run(ctx) {
  yield { n: 1 };
  void ctx.append("g.more", { meta: { n: 2 } });
  yield { n: 3 };
  for (;;) {}
} };
"#;
    let world = World::new(&[("generators/g.js", source)]);
    let host = world.host().await;
    let retrying = meta(&world.wait("xs.generator.g.retrying", 1).await[0]);
    assert_eq!(retrying["code"], "cpu", "{retrying}");
    let numbers = |topic: &str| -> Vec<_> {
        world.topic(topic).iter().map(|frame| meta(frame)["n"].clone()).collect()
    };
    assert_eq!(numbers("g.recv")[..2], [json!(1), json!(3)]);
    assert_eq!(numbers("g.more")[0], 2);
    host.stop().await;
}

/// The last frame of the chain is not delivered, and not delivered later either.
#[tokio::test(flavor = "multi_thread")]
async fn generators_that_send_to_each_other_are_cut() {
    let ring = |to: &str| {
        format!(
            "export default {{ duplex: true, async *run(ctx) {{ \
               for await (const f of ctx.input) await ctx.append('{to}.send', {{}}); }} }};"
        )
    };
    let world = World::new(&[("generators/a.js", &ring("b")), ("generators/b.js", &ring("a"))]);
    let host = world.host().await;
    world.wait("xs.generator.a.active", 1).await;
    world.wait("xs.generator.b.active", 1).await;
    world.append("a.send", json!({}), "");
    let log = world.wait("xs.generator.a.log", 1).await;
    let last = world.topic("a.send").last().cloned().unwrap();
    let told = meta(&log[0]);
    assert_eq!(told["fields"], json!({ "code": "hops", "frame": last.id().to_string() }));
    assert_eq!(last.origin().unwrap().hops, 32);
    assert_eq!(world.topic("a.send").len() + world.topic("b.send").len(), 33);
    let behind = json!({ "offset": last.offset().unwrap() + 1 });
    let kept = || {
        let cursor = world.store.cursor_now("xs.generator.a:input").unwrap();
        serde_json::from_slice::<serde_json::Value>(&cursor.state).unwrap() == behind
    };
    world.until("the place lies behind it", kept).await;
    host.stop().await;
}
