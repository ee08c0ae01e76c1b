//! What a failure may cost: a failure of an input, of the store, of code that belongs to no input.

use serde_json::json;
use xs_engine::{Frame, FrameId, Meta, NewFrame, Topic, Ttl};
use xs_protocol::AppendRequest;
use xs_runtime::host::HostEnd;

use super::support::{World, meta};

fn numbers(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(|frame| meta(frame)["n"].as_u64().unwrap()).collect()
}

fn inputs(world: &World, count: u64) -> Vec<FrameId> {
    (0..count).map(|n| world.append("in", json!({ "n": n }), "")).collect()
}

/// Regression test: each input of the group cost an isolate, and a second of CPU time.
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
    // One for the inputs one by one, and one for those after the parked input.
    let host = world.host_that_spends(2).await;
    let made = world.wait("h.out", 7).await;
    assert!(matches!(host.stop().await, HostEnd::Stopped), "it made more isolates");
    assert_eq!(numbers(&made), [0, 1, 2, 3, 4, 6, 7]);
    let parked = world.topic("h.parked");
    assert_eq!(parked.len(), 1);
    assert_eq!(meta(&parked[0])["frame"], inputs[5].to_string());
}

const REFUSED: &str = r#"
export default { topics: "in", start: "first", state: 0, onError: POLICY, run(frame, ctx) {
  ctx.state++;
  if (frame.meta.n === 2) ctx.append("secret", {});
  return { n: frame.meta.n, state: ctx.state };
} };
"#;

/// Regression test: it ended the handler, whatever `onError` said, and again after each start.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_is_the_failure_of_one_input() {
    let records = [
        ("\"park\"", "h.parked"),
        ("\"skip\"", "xs.handler.h.log"),
        ("{ retry: 1, backoff: 1, then: \"park\" }", "h.parked"),
    ];
    for (policy, record) in records {
        let world = World::new(&[("handlers/h.js", &REFUSED.replace("POLICY", policy))]);
        world.store.deny("secret");
        let inputs = inputs(&world, 5);
        let host = world.host().await;
        let made = world.wait("h.out", 4).await;
        host.stop().await;
        assert_eq!(numbers(&made), [0, 1, 3, 4], "{policy}");
        let states = made.iter().map(|frame| meta(frame)["state"].as_u64().unwrap());
        assert!(states.eq(1..=4), "{policy}: what is refused changes no state");
        let told = world.topic(record);
        let told = String::from_utf8_lossy(told.last().unwrap().meta()).into_owned();
        assert!(told.contains(&inputs[2].to_string()) && told.contains("refused"), "{told}");
        assert!(world.topic("xs.handler.h.fin.error").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_ends_of_a_refusal_names_the_input() {
    let world = World::new(&[("handlers/h.js", &REFUSED.replace("POLICY", "undefined"))]);
    world.store.deny("secret");
    let inputs = inputs(&world, 5);
    let host = world.host().await;
    let fin = world.wait("xs.handler.h.fin.error", 1).await;
    host.stop().await;
    assert_eq!(meta(&fin[0])["frame"], inputs[2].to_string());
    assert_eq!(numbers(&world.topic("h.out")), [0, 1]);
}

/// An ephemeral input no longer exists when inputs are handled again one by one. Regression test:
/// so no policy was ever applied to it.
#[tokio::test(flavor = "multi_thread")]
async fn so_is_what_comes_of_an_input_that_is_not_stored() {
    let world = World::new(&[("handlers/h.js", &REFUSED.replace("POLICY", "undefined"))]);
    world.store.deny("secret");
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    // The first refusal shows that there are such inputs, the next one is that of its input.
    let publish = || {
        let mut brief = NewFrame::new(Topic::parse("in").unwrap());
        (brief.meta, brief.ttl) = (Meta::parse(r#"{"n":2}"#).unwrap(), Ttl::Ephemeral);
        world.store.put(AppendRequest::frames(vec![brief]));
    };
    world
        .until("it ended", || {
            publish();
            !world.topic("xs.handler.h.fin.error").is_empty()
        })
        .await;
    host.stop().await;
    assert!(meta(&world.topic("xs.handler.h.fin.error")[0])["frame"].is_string());
}

/// Regression test: 25 isolates were made in a second, and the Host ended after ten.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_that_fail_by_themselves_are_replaced_ever_more_slowly() {
    let tick = "pulse: 10, tick() { throw new Error('no'); }";
    // An error thrown before that would be a failure to start.
    let interval = "let runs = false; setInterval(() => { if (runs) throw new Error('no'); }, 10);";
    for (top, own) in [("", tick), (interval, "pulse: 10, tick() { runs = true; }")] {
        let source =
            format!("{top} export default {{ topics: 'in', onError: 'skip', run() {{}}, {own} }};");
        let world = World::new(&[("handlers/h.js", &source)]);
        let host = world.host().await;
        let said = world.wait("xs.handler.h.log", 3).await;
        // It can be stopped while it waits.
        assert!(matches!(host.stop().await, HostEnd::Stopped));
        let ms = |frame: &Frame| frame.id().time_ms();
        let took = ms(&said[2]) - ms(&said[0]);
        assert!(took >= 1_400, "{took} ms for a wait of half a second and one of a whole");
    }
}

/// Regression test: the first isolate of each name was not counted, so the memory of removed names
/// was never freed.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_come_and_go_wear_a_host_out_too() {
    let handler = "export default { topics: 'in', run: () => ({ n: 1 }) };";
    let world = World::new(&[("handlers/stays.js", handler)]);
    let host = world.host_that_spends(3).await;
    world.wait("xs.handler.stays.active", 1).await;
    // Up to three isolates are spent on removed names; the next one is too many.
    for n in 0..4 {
        let (file, topic) = (format!("handlers/h{n}.js"), format!("xs.handler.h{n}"));
        world.save(&file, handler);
        world.wait(&format!("{topic}.active"), 1).await;
        world.delete(&file);
        world.wait(&format!("{topic}.fin.term"), 1).await;
    }
    assert!(matches!(host.ended().await, HostEnd::Worn));
    let host = world.host().await;
    world.wait("xs.handler.stays.active", 2).await;
    host.stop().await;
}

/// Regression test: the handler was recreated each time, until its Host was worn; a saved file was
/// called invalid; and the command ended the Host.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_busy_is_asked_again() {
    let handler = "export default { topics: 'in', run: () => ({ n: 1 }) };";
    let world = World::new(&[("handlers/h.js", handler)]);
    world.store.be_busy_with("in", 4);
    world.store.be_busy_with_blobs(2);
    let host = world.host_that_spends(0).await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({}), "");
    world.wait("h.out", 1).await;
    assert_eq!(world.store.busy_left(), 0);
    world.store.be_busy_with("c.call", 2);
    world.save("commands/c.js", "export default { run: () => ({ n: 2 }) };");
    world.wait("xs.command.c.active", 1).await;
    world.append("c.call", json!({}), "");
    world.wait("c.complete", 1).await;
    assert_eq!(world.store.busy_left(), 0);
    assert!(matches!(host.stop().await, HostEnd::Stopped));
    let invalid = |frame: &Frame| frame.topic().ends_with(".invalid");
    assert!(!world.store.frames().iter().any(invalid));
}

/// Regression test: the wait wrapped around into the past, so the frame was retried at once,
/// forever.
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

/// A module that holds as many streams as it may have leaves the others theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_with_many_streams_starves_no_other() {
    let hog = r#"
export default { async *run(ctx) {
  const open = [];
  let error;
  while (error === undefined && open.length < 1000) {
    const read = ctx.read({ topics: "none", follow: true })[Symbol.asyncIterator]();
    const next = read.next().then(() => {}, (refused) => { error = refused.message; });
    await Promise.race([next, new Promise((done) => setTimeout(done, 1))]);
    open.push(read);
  }
  while (error === undefined) await new Promise((done) => setTimeout(done, 1));
  yield { n: open.length, error };
  await new Promise((done) => ctx.signal.addEventListener("abort", done));
} };
"#;
    let world = World::new(&[("generators/hog.js", hog)]);
    let host = world.host_that_spends(0).await;
    let told = meta(&world.wait("hog.recv", 1).await[0]);
    assert!(told["error"].as_str().unwrap().contains("192 reads that follow"), "{told}");
    for n in 0..70 {
        let handler = "export default { topics: 'in', run: () => ({ n: 1 }) };";
        world.save(&format!("handlers/h{n}.js"), handler);
    }
    for n in 0..70 {
        world.wait(&format!("xs.handler.h{n}.active"), 1).await;
    }
    world.append("in", json!({}), "");
    for n in 0..70 {
        world.wait(&format!("h{n}.out"), 1).await;
    }
    assert!(matches!(host.stop().await, HostEnd::Stopped));
}

/// More concurrent blobs than a connection has streams: they wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_are_asked_for_together_take_turns() {
    let source = r#"
export default { topics: "in", start: "first", async run(frame, ctx) {
  const put = await Promise.all([...Array(600).keys()].map((n) => ctx.blob.put(`blob ${n}`)));
  const got = await Promise.all(put.map((hash) => ctx.blob.get(hash)));
  return { n: got.filter((bytes, n) => new TextDecoder().decode(bytes) === `blob ${n}`).length };
} };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    inputs(&world, 1);
    let host = world.host().await;
    let made = world.wait("h.out", 1).await;
    host.stop().await;
    assert_eq!(numbers(&made), [600]);
}

const COUNTS: &str = "export default { topics: 'in', start: 'first', run: () => ({ n: 1 }) };";

/// Regression test: it ended the Host, and no module ran until there was room.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_store_has_no_room_for_is_taken_later() {
    let world = World::new(&[("handlers/a.js", COUNTS)]);
    let host = world.host().await;
    world.wait("xs.handler.a.active", 1).await;
    for topic in ["xs.handler.b.create", "xs.handler.b.term"] {
        world.store.fill(Some(topic));
        match topic.ends_with("create") {
            true => world.save("handlers/b.js", COUNTS),
            false => world.delete("handlers/b.js"),
        }
        world.until("it was refused", || world.store.has_refused()).await;
        let before = world.topic("a.out").len();
        world.append("in", json!({}), "");
        world.wait("a.out", before + 1).await;
        assert!(world.topic(topic).is_empty());
        world.store.fill(None);
        let done = if topic.ends_with("create") { "active" } else { "fin.term" };
        world.wait(&format!("xs.handler.b.{done}"), 1).await;
    }
    assert_eq!(world.topic("xs.handler.a.active").len(), 1);
    assert!(matches!(host.stop().await, HostEnd::Stopped));
}

/// Regression test: a Host that could not report what it found did not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_starts_although_the_store_has_no_room() {
    let world = World::new(&[("handlers/a.js", COUNTS), ("handlers/bad.js", COUNTS)]);
    let host = world.host().await;
    world.wait("xs.handler.a.active", 1).await;
    let crashed = meta(&world.wait("xs.handler.bad.active", 1).await[0])["create"].clone();
    assert!(matches!(host.stop().await, HostEnd::Stopped));
    world.save("handlers/b.js", COUNTS);
    world.store.fill(Some("xs.handler.bad.fin.error"));
    let host = world.host_after(&[crashed.as_str().unwrap()]).await;
    world.wait("xs.handler.a.active", 2).await;
    world.wait("xs.handler.b.active", 1).await;
    world.until("it was refused", || world.store.has_refused()).await;
    world.store.fill(None);
    let fin = world.wait("xs.handler.bad.fin.error", 1).await;
    assert_eq!(meta(&fin[0])["create"], crashed);
    // The version that crashed the previous Host was not started meanwhile.
    assert_eq!(world.topic("xs.handler.bad.active").len(), 1);
    assert!(matches!(host.stop().await, HostEnd::Stopped));
}

/// Regression test: it failed with a timeout, although it waited only for the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_its_time_however_long_what_came_before_it_finds_no_room() {
    let source = r#"
export default { topics: "in", start: "first", timeout: 500, async run(frame, ctx) {
  if (frame.meta.n === 0) return { n: 0 };
  return { n: 1, seen: (await ctx.last("h.out")).meta.n };
} };
"#;
    let world = World::new(&[("handlers/h.js", source)]);
    world.store.fill(Some("h.out"));
    inputs(&world, 2);
    let host = world.host().await;
    // One a second.
    world.until("it has waited", || world.store.refusals() >= 3).await;
    world.store.fill(None);
    let out = world.wait("h.out", 2).await;
    assert_eq!(meta(&out[1]), json!({ "n": 1, "seen": 0 }));
    host.stop().await;
    let failed = ["xs.handler.h.retrying", "xs.handler.h.fin.error"];
    assert!(failed.iter().all(|topic| world.topic(topic).is_empty()));
    assert_eq!(world.topic("xs.handler.h.active").len(), 1);
}
