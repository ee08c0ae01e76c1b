//! The guarantees of a handler: state, exactly once inside the store, and errors that undo.

use std::time::Instant;

use serde_json::json;
use xs_engine::{FrameId, NewFrame, Origin, Topic};
use xs_protocol::AppendRequest;

use super::support::{World, meta};

const SUM: &str = r#"
import { handler } from "xs";
export default handler({
  topics: "in", start: "first", state: { sum: 0 },
  run(frame, ctx) {
    if (frame.meta.bad) { ctx.append("side", {}); throw new TypeError("bad input"); }
    ctx.state.sum += frame.meta.n;
    ctx.append("side", { meta: { of: frame.id } });
    return { sum: ctx.state.sum };
  },
});
"#;

fn sums(world: &World) -> Vec<u64> {
    world.topic("sum.out").iter().map(|frame| meta(frame)["sum"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn state_threads_through_and_survives_a_host() {
    let world = World::new(&[("handlers/sum.ts", SUM)]);
    let inputs: Vec<FrameId> =
        (1..=600).map(|n| world.append("in", json!({ "n": n }), "")).collect();
    let host = world.host().await;
    world.wait("sum.out", 600).await;
    host.stop().await;
    world.append("in", json!({ "n": 1 }), "");
    let host = world.host().await;
    world.wait("sum.out", 601).await;
    host.stop().await;
    let expected: Vec<u64> = (1..=600).map(|n| n * (n + 1) / 2).chain([180_301]).collect();
    assert_eq!(sums(&world), expected);
    let sides = world.topic("side");
    let of: Vec<String> = inputs.iter().map(ToString::to_string).collect();
    assert!(sides.iter().zip(&of).all(|(side, of)| meta(side)["of"] == **of));
    let origin = sides[0].origin().unwrap();
    assert_eq!((origin.input, origin.input_offset), (Some(inputs[0]), Some(0)));
    assert_eq!(world.store.cursor_now("xs.handler.sum").unwrap().offset, {
        let last = world.topic("in").last().unwrap().offset().unwrap();
        last + 1
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_doubles_and_loses_nothing() {
    let world = World::new(&[("handlers/sum.ts", SUM)]);
    for round in 1..=8u64 {
        for _ in 0..500 {
            world.append("in", json!({ "n": 1 }), "");
        }
        let host = world.host().await;
        world.wait("sum.out", usize::try_from(round * 500 - 499).unwrap()).await;
        host.cut().await;
    }
    let host = world.host().await;
    world.wait("sum.out", 4_000).await;
    host.stop().await;
    assert_eq!(sums(&world), (1..=4_000).collect::<Vec<u64>>());
    assert_eq!(world.topic("side").len(), 4_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throw_undoes_its_call_and_unregisters() {
    let world = World::new(&[("handlers/sum.ts", SUM)]);
    world.append("in", json!({ "n": 1 }), "");
    world.append("in", json!({ "n": 2 }), "");
    let bad = world.append("in", json!({ "bad": true }), "");
    world.append("in", json!({ "n": 3 }), "");
    let host = world.host().await;
    let fin = world.wait("xs.handler.sum.fin.error", 1).await;
    let told = meta(&fin[0]);
    assert_eq!(told["message"], "TypeError: bad input");
    assert_eq!(told["frame"], bad.to_string());
    assert_eq!((&told["file"], &told["line"]), (&json!("handlers/sum.ts"), &json!(6)));
    assert!(told["column"].as_u64().unwrap() > 1);
    assert_eq!(sums(&world), [1, 3]);
    assert_eq!(world.topic("side").len(), 2, "what the failing call appended is undone");
    host.stop().await;
    // It stays down while its source is unchanged; once that changes, it continues with the failing
    // frame.
    let host = world.host().await;
    world.save("handlers/sum.ts", &SUM.replace("throw new TypeError(\"bad input\")", "return"));
    world.wait("sum.out", 3).await;
    assert_eq!(sums(&world), [1, 3, 6]);
    assert_eq!(world.topic("xs.handler.sum.fin.error").len(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skip_and_park_go_on() {
    for (policy, record) in [("skip", "xs.handler.sum.log"), ("park", "sum.parked")] {
        let source = SUM.replace("start:", &format!("onError: \"{policy}\", start:"));
        let world = World::new(&[("handlers/sum.ts", &source)]);
        world.append("in", json!({ "n": 1 }), "");
        let bad = world.append("in", json!({ "bad": true }), "");
        world.append("in", json!({ "n": 3 }), "");
        let host = world.host().await;
        world.wait("sum.out", 2).await;
        host.stop().await;
        assert_eq!(sums(&world), [1, 4]);
        let records = world.topic(record);
        assert_eq!(records.len(), 1);
        assert!(String::from_utf8_lossy(records[0].meta()).contains(&bad.to_string()));
    }
}

/// The results of many calls are handed over together; an error in one still concerns only its own
/// input.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_cannot_be_a_frame_fails_its_own_input() {
    let source = r#"
export default { topics: "in", start: "first", onError: "park", run(frame) {
  let deep = {};
  if (frame.meta.n === 2) for (let i = 0; i < 200; i++) deep = { deep };
  return { n: frame.meta.n, deep };
} };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    let inputs: Vec<_> = (0..5).map(|n| world.append("in", json!({ "n": n }), "")).collect();
    let host = world.host().await;
    world.wait("h.out", 4).await;
    host.stop().await;
    let made = world.topic("h.out");
    let numbers = made.iter().map(|frame| meta(frame)["n"].as_u64().unwrap());
    assert!(numbers.eq([0, 1, 3, 4]));
    let parked = world.topic("h.parked");
    assert_eq!(parked.len(), 1);
    assert_eq!(meta(&parked[0])["frame"], inputs[2].to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_frame_holds_the_later_ones() {
    let source = r#"
export default {
  topics: "in", start: "first", onError: { retry: 5, backoff: 10, then: "skip" },
  run(frame, ctx) {
    if (frame.meta.n === 1 && ctx.attempt < 3) throw new Error("not yet");
    return { n: frame.meta.n, attempt: ctx.attempt };
  },
};
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    for n in 0..3 {
        world.append("in", json!({ "n": n }), "");
    }
    let host = world.host().await;
    let frames = world.wait("h.out", 3).await;
    let made: Vec<_> = frames.iter().map(meta).collect();
    assert_eq!(
        made,
        [
            json!({ "n": 0, "attempt": 1 }),
            json!({ "n": 1, "attempt": 3 }),
            json!({ "n": 2, "attempt": 1 }),
        ]
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn own_output_is_not_fed_back_and_rings_are_cut() {
    let echo = r#"export default { topics: "loop.*", run(frame, ctx) { ctx.append("loop.again", {}); } };"#;
    let world = World::new(&[("handlers/echo.js", echo)]);
    let host = world.host().await;
    world.wait("xs.handler.echo.active", 1).await;
    world.append("loop.begin", json!({}), "");
    world.wait("loop.again", 1).await;
    world.append("done", json!({}), "");
    host.stop().await;
    assert_eq!(world.topic("loop.again").len(), 1);

    let ring = |from: &str, to: &str| {
        format!(
            "export default {{ topics: '{from}', run(f, ctx) {{ ctx.append('{to}', {{}}); }} }};"
        )
    };
    let world =
        World::new(&[("handlers/a.js", &ring("x", "y")), ("handlers/b.js", &ring("y", "x"))]);
    let host = world.host().await;
    world.wait("xs.handler.a.active", 1).await;
    world.wait("xs.handler.b.active", 1).await;
    world.append("x", json!({}), "");
    let logs = world.wait("xs.handler.a.log", 1).await;
    assert_eq!(meta(&logs[0])["fields"]["code"], "hops");
    assert_eq!(world.topic("x").len() + world.topic("y").len(), 33);
    host.stop().await;
}

/// An input after a commit that waits for room is not handled before the stop, and is delivered
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_found_no_room_before_the_stop_is_stored_after_it() {
    let source = "export default { topics: 'in', start: 'first', run: () => ({ n: 1 }) };";
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.store.fill(Some("h.out"));
    let mut frames = vec![NewFrame::new(Topic::parse("in").unwrap()); 2];
    // The second one is skipped, and causes nothing that needs room.
    let processor = FrameId::first_of_ms(1);
    frames[1].origin = Some(Origin { processor, input: None, input_offset: None, hops: 32 });
    world.store.put(AppendRequest::frames(frames));
    world.until("there is no room", || world.store.has_refused()).await;
    host.stop().await;
    world.store.fill(None);
    let host = world.host().await;
    world.wait("h.out", 1).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_appended_after_the_file_was_taken_is_new() {
    let source = r#"export default { topics: "in", run(frame) { return { n: frame.meta.n }; } };"#;
    let world = World::new(&[("handlers/h.js", source)]);
    world.append("in", json!({ "n": 1 }), "");
    let host = world.host().await;
    world.wait("xs.handler.h.create", 1).await;
    world.append("in", json!({ "n": 2 }), "");
    let frames = world.wait("h.out", 1).await;
    assert_eq!(meta(&frames[0])["n"], 2);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_without_outputs_moves_seldom() {
    let source = r#"export default { topics: "in", start: "first", run() {} };"#;
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    let (before, began) = (world.store.commits(), Instant::now());
    for _ in 0..200 {
        world.append("in", json!({}), "");
    }
    let moved = async {
        while world.store.cursor_now("xs.handler.h").unwrap().offset < 200 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(super::support::PATIENCE, moved).await.unwrap();
    // Once a second: on a slow machine the work takes several seconds.
    let moves = world.store.commits() - before - 200;
    assert!(moves <= 1 + began.elapsed().as_secs(), "{moves} in {:?}", began.elapsed());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_begins_again() {
    let world = World::new(&[("handlers/sum.ts", SUM)]);
    world.append("in", json!({ "n": 1 }), "");
    let host = world.host().await;
    world.wait("sum.out", 1).await;
    let name = xs_engine::CursorName::parse("xs.handler.sum").unwrap();
    let expect = xs_engine::ExpectRevision::Any;
    let change = xs_engine::CursorChange { name, expect, set: None };
    world.store.put(xs_protocol::AppendRequest { cursors: vec![change], ..Default::default() });
    world.append("in", json!({ "n": 2 }), "");
    world.wait("sum.out", 3).await;
    assert_eq!(sums(&world), [1, 1, 3]);
    host.stop().await;
}

/// The old version must not handle what the reset skips, however long the new one takes to start.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_to_what_is_new_skips_the_backlog() {
    let source = r#"export default { topics: "in", async run(frame, ctx) {
      console.log("begun");
      if (frame.meta.n === 0) for await (const f of ctx.read({ topics: "go", follow: true })) break;
      return { n: frame.meta.n };
    } };"#;
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    for n in 0..5 {
        world.append("in", json!({ "n": n }), "");
    }
    world.wait("xs.handler.h.log", 1).await;
    let slow = "await new Promise((done) => setTimeout(done, 4000));";
    world.save("handlers/h.js", &format!("{slow} {source}"));
    world.wait("xs.handler.h.create", 2).await;
    let name = xs_engine::CursorName::parse("xs.handler.h").unwrap();
    let expect = xs_engine::ExpectRevision::Any;
    let change = xs_engine::CursorChange { name, expect, set: None };
    world.store.put(xs_protocol::AppendRequest { cursors: vec![change], ..Default::default() });
    world.append("in", json!({ "n": 5 }), "");
    world.append("go", json!({}), "");
    world.wait("xs.handler.h.active", 2).await;
    world.append("in", json!({ "n": 6 }), "");
    world.wait("h.out", 2).await;
    host.stop().await;
    let made: Vec<_> = world.topic("h.out").iter().map(|frame| meta(frame)["n"].clone()).collect();
    assert_eq!(made, [5, 6]);
}

/// It has started before: that it fails to start now says nothing about its frames.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_is_tried_again() {
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let world = World::new(&[]);
    let host = world.host().await;
    let (mut tries, mut died, mut ms) = (0, 0, 3_000);
    loop {
        // Some time after its start it fails to start for a while. How long that must be depends on
        // how slow this machine is.
        let (from, active) = (now() + ms, world.topic("xs.handler.h.active").len());
        let until = from + ms;
        let source = format!(
            "const now = Date.now(); if (now >= {from} && now < {until}) throw new Error('not now');
             export default {{ topics: 'in', onError: 'skip', run(frame) {{
               if (frame.meta.die) setTimeout(() => {{ throw new Error('alone'); }}, 0);
               else return {{ n: frame.meta.n }};
             }} }};"
        );
        world.save("handlers/h.js", &source);
        tries += 1;
        let told = || (world.topic("xs.handler.h.active"), world.topic("xs.handler.h.invalid"));
        let either = || told().0.len() > active || told().1.len() + died == tries;
        world.until("it is active or was too slow", either).await;
        ms *= 2;
        if world.topic("xs.handler.h.active").len() == active {
            continue;
        }
        world.until("it does not start any more", || now() >= from).await;
        world.append("in", json!({ "die": true }), "");
        died += 1;
        world.wait("xs.handler.h.log", died).await;
        world.append("in", json!({ "n": died }), "");
        assert_eq!(meta(&world.wait("h.out", died).await[died - 1])["n"], died);
        if let Some(retrying) = world.topic("xs.handler.h.retrying").first() {
            assert_eq!(meta(retrying)["message"], "Error: not now", "{}", meta(retrying));
            break;
        }
    }
    assert!(world.topic("xs.handler.h.fin.error").is_empty());
    host.stop().await;
}
