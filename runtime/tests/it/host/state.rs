//! The state of a handler across versions of its code, and where a handler begins and ends.

use serde_json::json;

use super::support::{World, meta};

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_migrated_once_by_the_code_that_finds_it_foreign() {
    let first = r#"
import { handler } from "xs";
export default handler({ topics: "in", state: 1, run(frame, ctx) { ctx.state++; return { s: ctx.state }; } });
"#;
    let second = r#"
import { handler } from "xs";
export default handler({
  topics: "in", state: { n: 0, migrations: 0 },
  migrate: (old) => typeof old === "number" ? { n: old, migrations: 1 } : { ...old, migrations: old.migrations + 1 },
  run(frame, ctx) {
    if (frame.meta.bad) { ctx.state.n = 1000; throw new Error("undone"); }
    if (!frame.meta.still) ctx.state.n++;
    return ctx.state;
  },
  onError: "skip",
});
"#;
    let world = World::new(&[("handlers/h.ts", first)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({}), "");
    world.wait("h.out", 1).await;
    world.save("handlers/h.ts", second);
    world.wait("xs.handler.h.active", 2).await;
    world.append("in", json!({ "bad": true }), "");
    world.append("in", json!({ "still": true }), "");
    world.append("in", json!({}), "");
    world.wait("h.out", 3).await;
    host.stop().await;
    // Its own state is not migrated.
    let host = world.host().await;
    world.append("in", json!({}), "");
    world.wait("h.out", 4).await;
    host.stop().await;
    let made: Vec<_> = world.topic("h.out").iter().skip(1).map(meta).collect();
    assert_eq!(made, [2, 3, 4].map(|n| json!({ "n": n, "migrations": 1 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_throws_leaves_the_old_code_running() {
    let first = "export default { topics: 'in', state: 1, run: (f, ctx) => ({ s: ctx.state++ }) };";
    let world = World::new(&[("handlers/h.js", first)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({}), "");
    world.wait("h.out", 1).await;
    world.save(
        "handlers/h.js",
        "export default { topics: 'in', state: 1, run() {},\n  migrate() { throw new Error('no way'); } };",
    );
    let invalid = meta(&world.wait("xs.handler.h.invalid", 1).await[0]);
    assert_eq!((&invalid["message"], &invalid["line"]), (&json!("Error: no way"), &json!(2)));
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("h.out", 2).await[1])["s"], 2);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_over_the_limit_says_so() {
    let source = "export default { topics: 'in', state: '', run(f, ctx) { ctx.state = 'x'.repeat(f.meta.n); } };";
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    let max = xs_engine::limits::CURSOR_STATE_BYTES_MAX;
    // The largest state that fits, and one byte more.
    world.append("in", json!({ "n": max - 1024 - 2 }), "");
    world.append("in", json!({ "n": max - 1024 - 1 }), "");
    let fin = meta(&world.wait("xs.handler.h.fin.error", 1).await[0]);
    let message = fin["message"].as_str().unwrap();
    assert!(message.contains("over the limit of") && message.contains("blobs"), "{message}");
    assert_eq!(fin["frame"], world.topic("in")[1].id().to_string());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_where_it_says_and_counts_once() {
    let at = |start: &str| {
        format!(
            "export default {{ topics: 'in', start: {start}, run: (f) => ({{ n: f.meta.n }}) }};"
        )
    };
    let world = World::new(&[]);
    let ids: Vec<_> = (0..4).map(|n| world.append("in", json!({ "n": n }), "")).collect();
    world.save("handlers/after.js", &at(&format!("{{ after: '{}' }}", ids[1])));
    world.save("handlers/first.js", &at("'first'"));
    world.save("handlers/gone.js", &at("{ after: '0000000000000000000000001' }"));
    let host = world.host().await;
    world.wait("first.out", 4).await;
    let after: Vec<_> =
        world.wait("after.out", 2).await.iter().map(|f| meta(f)["n"].clone()).collect();
    assert_eq!(after, [json!(2), json!(3)]);
    let invalid = meta(&world.wait("xs.handler.gone.invalid", 1).await[0]);
    assert!(invalid["message"].as_str().unwrap().contains("no frame has the id"), "{invalid}");
    // There is a cursor now: another `start` has no effect.
    world.save("handlers/after.js", &at("'first'"));
    world.wait("xs.handler.after.active", 2).await;
    world.append("in", json!({ "n": 4 }), "");
    world.wait("after.out", 3).await;
    host.stop().await;
    assert_eq!(world.topic("after.out").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_come_without_frames_and_are_committed() {
    let source = r#"
export default { topics: "in", state: { ticks: 0 }, pulse: 20,
  run() {},
  tick(ctx) { ctx.state.ticks++; if (ctx.state.ticks <= 3) return { ticks: ctx.state.ticks }; } };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("h.out", 3).await;
    host.stop().await;
    let ticks: Vec<_> = world.topic("h.out").iter().map(|f| meta(f)["ticks"].clone()).collect();
    assert_eq!(ticks, [json!(1), json!(2), json!(3)]);
    let cursor = world.store.cursor_now("xs.handler.h").unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&cursor.state).unwrap();
    assert!(saved["state"]["ticks"].as_u64().unwrap() >= 3);
}

/// Each tick has its own commit, which does not affect the waiting frame.
#[tokio::test(flavor = "multi_thread")]
async fn ticks_go_on_while_a_frame_waits_for_its_next_try() {
    let source = r#"
export default { topics: "in", state: { ticks: 0 }, pulse: 20, onError: { retry: 3, backoff: 600 },
  run(frame, ctx) {
    if (ctx.attempt < 3) throw new Error("not yet");
    return { attempt: ctx.attempt, ticks: ctx.state.ticks };
  },
  tick(ctx) { return { tick: ++ctx.state.ticks }; } };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    let mut host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    let ticks = || world.topic("h.out").iter().filter(|f| meta(f)["tick"].is_u64()).count();
    let saved = || {
        let cursor = world.store.cursor_now("xs.handler.h").unwrap();
        serde_json::from_slice::<serde_json::Value>(&cursor.state).unwrap()
    };
    let id = world.append("in", json!({}), "").to_string();
    for attempt in 1..=2 {
        world.wait("xs.handler.h.retrying", 1).await;
        world.until("it waits", || saved()["retry"]["attempt"] == attempt).await;
        let before = ticks();
        world.until("ticks come meanwhile", || ticks() >= before + 3).await;
        let retry = saved()["retry"].clone();
        assert_eq!((&retry["frame"], &retry["attempt"]), (&json!(id), &json!(attempt)));
        // The next Host knows this too.
        host.stop().await;
        host = world.host().await;
    }
    let done = || world.topic("h.out").iter().any(|frame| meta(frame)["attempt"].is_u64());
    world.until("it is handled", done).await;
    host.stop().await;
    let (mut count, mut handled) = (0, 0);
    for made in world.topic("h.out").iter().map(meta) {
        if made["attempt"].is_u64() {
            handled += 1;
            assert_eq!(made, json!({ "attempt": 3, "ticks": count }));
        } else {
            count += 1;
            assert_eq!(made, json!({ "tick": count }));
        }
    }
    assert_eq!(handled, 1);
    assert_eq!(saved()["retry"], json!(null));
    assert_eq!(saved()["state"]["ticks"], count);
}

/// The waiting frame is not to blame.
#[tokio::test(flavor = "multi_thread")]
async fn an_isolate_that_ends_during_a_wait_costs_no_try() {
    let source = r#"
export default { topics: "in", onError: { retry: 5, backoff: 1500, then: "skip" },
  run(frame, ctx) {
    if (ctx.attempt > 1) return { attempt: ctx.attempt };
    setTimeout(() => { throw new Error("alone"); }, 50);
    throw new Error("not yet");
  } };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("h.out", 1).await[0]), json!({ "attempt": 2 }));
    let told = world.topic("xs.handler.h.log").iter().map(meta).collect::<Vec<_>>();
    assert!(told.iter().any(|line| line.to_string().contains("alone")), "{told:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_come_between_the_frames_of_a_backlog() {
    let source = r#"
export default { topics: "in", start: "first", state: { n: 0, ticks: 0 }, pulse: 30,
  async run(frame, ctx) {
    await new Promise((done) => setTimeout(done, 5));
    return { n: ++ctx.state.n };
  },
  tick(ctx) { return { tick: ++ctx.state.ticks, n: ctx.state.n }; } };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    for _ in 0..200 {
        world.append("in", json!({}), "");
    }
    let host = world.host().await;
    let made = || world.topic("h.out").iter().map(meta).collect::<Vec<_>>();
    world.until("all are handled", || made().iter().any(|made| made["n"] == 200)).await;
    host.stop().await;
    let (mut n, mut ticks, mut between) = (0, 0, 0);
    for made in made() {
        if made["tick"].is_u64() {
            ticks += 1;
            between += u32::from(n > 0 && n < 200);
            assert_eq!(made, json!({ "tick": ticks, "n": n }));
        } else {
            n += 1;
            assert_eq!(made, json!({ "n": n }));
        }
    }
    assert!(n == 200 && between >= 10, "{n} frames, {between} ticks between them");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_go_where_the_definition_says() {
    let source = "export default { topics: 'in', output: { topic: 'elsewhere', ttl: 'last:2', as: 'body' }, run: (f) => f.meta };";
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({ "n": 1 }), "");
    let frame = world.wait("elsewhere", 1).await.remove(0);
    assert_eq!((world.store.text(&frame).as_str(), frame.meta()), ("{\"n\":1}", &b""[..]));
    assert_eq!(frame.ttl().to_string(), "last:2");
    host.stop().await;
    assert!(world.topic("h.out").is_empty());
}

/// A handler that sleeps for each frame loses nothing of a burst.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_worked_off_however_slow_the_handler() {
    let source = r#"
export default { topics: "in", state: 0, async run(frame, ctx) {
  await new Promise((done) => setTimeout(done, 1));
  return { n: ctx.state++, of: frame.meta.n };
} };
"#;
    let count = 10_000;
    let world = World::new(&[("handlers/slow.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.slow.active", 1).await;
    for n in 0..count {
        world.append("in", json!({ "n": n }), "");
    }
    // Each part has the patience of a whole test.
    for made in (0..=count).step_by(1_000) {
        world.wait("slow.out", made).await;
    }
    host.stop().await;
    let made = world.topic("slow.out");
    assert_eq!(made.len(), count);
    let in_order = |(n, frame)| meta(frame) == json!({ "n": n, "of": n });
    assert!(made.iter().enumerate().all(in_order));
}
