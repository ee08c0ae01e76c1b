//! What a command promises: each call ends exactly once, whatever else happens.

use serde_json::json;
use xs_engine::{CursorChange, CursorName, ExpectRevision, Frame, FrameId, NewFrame, Topic, Ttl};
use xs_protocol::{AppendRequest, CallRequest, Role};
use xs_runtime::host::HostEnd;

use super::support::{World, meta};

const REPORT: &str = r#"
import { command } from "xs";
export default command({ args: { n: "number" }, async *run(call, ctx) {
  if (call.args.n < 0) throw new RangeError("negative");
  for (let i = 1; i <= call.args.n; i++) yield { i };
} });
"#;

const WAIT: &str = r#"
export default { async *run(call, ctx) {
  yield { began: call.args.id };
  const go = ctx.read({ topics: "go", follow: true, new: true });
  for await (const frame of go) if (frame.meta.id === call.args.id) break;
  yield { ended: call.args.id };
} };
"#;

/// The topics of the frames that answer a call.
fn answers(world: &World, call: FrameId) -> Vec<String> {
    let answers = |frame: &Frame| frame.origin().is_some_and(|origin| origin.input == Some(call));
    let frames = world.store.frames().into_iter().filter(answers);
    frames.map(|frame| frame.topic().to_owned()).collect()
}

/// Ends a call that waits. Repeats the signal until the call has ended, because its read may begin
/// after the first one.
async fn go(world: &World, id: usize, ended: usize) {
    let is_heard = || {
        let is_so = world.topic("wait.complete").len() >= ended;
        if !is_so {
            world.append("go", json!({ "id": id }), "");
        }
        is_so
    };
    world.until(&format!("{ended} calls have ended"), is_heard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_stream_and_are_completed() {
    let world = World::new(&[("commands/report.ts", REPORT)]);
    let host = world.host().await;
    world.wait("xs.command.report.active", 1).await;
    let client = world.client(Role::Append).await;
    let mut request = CallRequest::new(Topic::parse("report").unwrap());
    request.args = xs_engine::Meta::parse("{\"n\":3}").unwrap();
    let mut call = client.call(&request).await.unwrap();
    let mut seen = Vec::new();
    while let Some(result) = call.next().await {
        let frame = result.unwrap().frame;
        seen.push((frame.topic().to_owned(), meta(&frame)));
    }
    let recv = |i: u64| ("report.recv".to_owned(), json!({ "i": i }));
    let complete = ("report.complete".to_owned(), json!({ "call": call.id().to_string() }));
    assert_eq!(seen, [recv(1), recv(2), recv(3), complete]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_call_harms_no_other() {
    let world = World::new(&[("commands/report.ts", REPORT)]);
    let host = world.host().await;
    world.wait("xs.command.report.active", 1).await;
    let bad = world.append("report.call", json!({ "args": { "n": -1 } }), "");
    let none = world.append("report.call", json!({ "args": { "n": 0 } }), "");
    let good = world.append("report.call", json!({ "args": { "n": 1 } }), "");
    world.wait("report.complete", 2).await;
    let error = meta(&world.wait("report.error", 1).await[0]);
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("throw"), &json!("RangeError: negative"))
    );
    assert_eq!((&error["file"], &error["line"]), (&json!("commands/report.ts"), &json!(4)));
    assert_eq!(answers(&world, bad), ["report.error"]);
    assert_eq!(answers(&world, none), ["report.complete"]);
    assert_eq!(answers(&world, good), ["report.recv", "report.complete"]);
    host.stop().await;
}

/// Only one isolate fails: a call on another one, of the previous version, ends normally.
#[tokio::test(flavor = "multi_thread")]
async fn calls_on_the_version_before_end_while_the_new_one_starts_again() {
    let world = World::new(&[("commands/wait.js", WAIT)]);
    let host = world.host().await;
    world.wait("xs.command.wait.active", 1).await;
    let old = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    world.wait("wait.recv", 1).await;
    let fails = "export default { run(call) { if (call.args.id) \
                 return new Promise(() => setTimeout(() => { throw new Error('boom'); })); } };";
    world.save("commands/wait.js", fails);
    world.wait("xs.command.wait.active", 2).await;
    let bad = world.append("wait.call", json!({ "args": { "id": 2 } }), "");
    let error = world.wait("wait.error", 1).await;
    assert!(meta(&error[0])["message"].as_str().unwrap().contains("boom"), "{:?}", meta(&error[0]));
    // A call that arrives before the isolate has ended may fail with it.
    world.wait("xs.command.wait.log", 1).await;
    let next = world.append("wait.call", json!({ "args": { "id": 0 } }), "");
    world.wait("wait.complete", 1).await;
    assert_eq!(answers(&world, next), ["wait.complete"], "on a fresh isolate");
    let bad_too = world.append("wait.call", json!({ "args": { "id": 2 } }), "");
    world.wait("wait.error", 2).await;
    // At once, while the new version waits for its next start.
    go(&world, 1, 2).await;
    assert_eq!(answers(&world, old), ["wait.recv", "wait.recv", "wait.complete"]);
    assert_eq!([bad, bad_too].map(|call| answers(&world, call).len()), [1, 1]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_overlap_and_can_be_cancelled() {
    let world = World::new(&[("commands/wait.js", WAIT)]);
    let host = world.host().await;
    world.wait("xs.command.wait.active", 1).await;
    let calls: Vec<FrameId> =
        (0..3).map(|id| world.append("wait.call", json!({ "args": { "id": id } }), "")).collect();
    world.wait("wait.recv", 3).await;
    world.append("xs.command.wait.cancel", json!({ "call": calls[0].to_string() }), "");
    let error = world.wait("wait.error", 1).await;
    assert_eq!(meta(&error[0])["code"], "cancelled");
    for id in [2, 1] {
        // The read may begin after the first signal, so it is repeated.
        go(&world, id, 3 - id).await;
    }
    let ended = [2, 1].map(|id: usize| calls[id].to_string());
    let completes = world.topic("wait.complete");
    assert!(completes.iter().zip(&ended).all(|(frame, call)| meta(frame)["call"] == **call));
    host.stop().await;
}

/// While the queue is full, no more of the log is read, and the cancels are there.
#[tokio::test(flavor = "multi_thread")]
async fn calls_can_be_cancelled_while_more_wait_than_are_queued() {
    const CALLS: usize = 2_500;
    let one = WAIT
        .replace("{ async", "{ concurrency: 1, async")
        .replace("  const go", "  if (call.args.id !== 0) return;\n  const go");
    let world = World::new(&[("commands/wait.js", &one)]);
    let host = world.host().await;
    world.wait("xs.command.wait.active", 1).await;
    let begun = world.append("wait.call", json!({ "args": { "id": 0 } }), "");
    world.wait("wait.recv", 1).await;
    // Long enough that the calls do not all arrive at once.
    let pad = "x".repeat(4_000);
    let call = |id| world.append("wait.call", json!({ "args": { "id": id }, "pad": pad }), "");
    let waiting: Vec<FrameId> = (1..=CALLS).map(call).collect();
    let (queued, beyond) = (waiting[3], waiting[CALLS - 1]);
    for call in [queued, beyond, begun] {
        let mut cancel = NewFrame::new(Topic::parse("xs.command.wait.cancel").unwrap());
        cancel.meta =
            xs_engine::Meta::parse(json!({ "call": call.to_string() }).to_string()).unwrap();
        cancel.ttl = Ttl::Ephemeral;
        world.store.put(AppendRequest { frames: vec![cancel], ..AppendRequest::default() });
    }
    world.wait("wait.complete", CALLS - 2).await;
    let errors = world.wait("wait.error", 3).await;
    assert!(errors.iter().all(|error| meta(error)["code"] == "cancelled"), "{errors:?}");
    assert_eq!(answers(&world, begun), ["wait.recv", "wait.error"]);
    assert_eq!([queued, beyond].map(|call| answers(&world, call)), [["wait.error"]; 2]);
    host.stop().await;
}

/// Regression test: they were kept forever, whatever the operator had set.
#[tokio::test(flavor = "multi_thread")]
async fn the_ends_of_calls_are_kept_as_long_as_the_operator_says() {
    let world = World::new(&[("commands/report.ts", REPORT)]);
    let host = world.host().await;
    world.wait("xs.command.report.active", 1).await;
    let call = |n: i64| world.append("report.call", json!({ "args": { "n": n } }), "");
    call(1);
    let kept = world.wait("report.complete", 1).await;
    assert_eq!(kept[0].ttl(), Ttl::Forever);
    world.save("xs.toml", "[modules.report]\ncalls_ttl = \"time:2h\"\n");
    let active = world.wait("xs.command.report.active", 2).await;
    let shown = active.iter().map(|frame| meta(frame)["calls_ttl"].clone());
    assert_eq!(shown.collect::<Vec<_>>(), [json!(null), json!("time:7200000")]);
    call(1);
    call(-1);
    let ends = [world.wait("report.complete", 2).await, world.wait("report.error", 1).await];
    for end in ends.iter().filter_map(|frames| frames.last()) {
        assert_eq!(end.ttl(), Ttl::TimeMs(2 * 60 * 60 * 1000), "{}", end.topic());
    }
    assert_eq!(world.topic("report.recv")[1].ttl(), Ttl::Forever, "output.ttl says that");
    host.stop().await;
}

/// Its timeout passes while the store has no room for its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_ended_while_the_disk_is_full_completes_once_there_is_room() {
    let once = "export default { timeout: 200, run: () => ({ n: 1 }) };";
    let world = World::new(&[("commands/once.js", once)]);
    let host = world.host().await;
    world.wait("xs.command.once.active", 1).await;
    world.store.fill(Some("once.complete"));
    let calls = [(), ()].map(|()| world.append("once.call", json!({ "args": {} }), ""));
    // The store is asked once a second.
    world.until("the store has refused it for longer", || world.store.refusals() >= 3).await;
    world.store.fill(None);
    world.wait("once.complete", 2).await;
    let later = world.append("once.call", json!({ "args": {} }), "");
    world.wait("once.complete", 3).await;
    for call in [calls[0], calls[1], later] {
        assert_eq!(answers(&world, call), ["once.recv", "once.complete"]);
    }
    assert!(world.topic("once.error").is_empty());
    host.stop().await;
}

/// Each isolate leaves memory behind that only the end of the process frees.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_made_many_isolates_lets_calls_end_and_makes_room() {
    let world = World::new(&[("commands/wait.js", WAIT), ("handlers/h.js", "")]);
    let host = world.host_that_spends(2).await;
    world.wait("xs.command.wait.active", 1).await;
    let begun = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    world.wait("wait.recv", 1).await;
    for n in 0..3 {
        world.save("handlers/h.js", &format!("export default {{ topics: 'a', run: () => {n} }};"));
        world.wait("xs.handler.h.active", n + 1).await;
    }
    let later = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    // The first call ends normally; the second waits for the next Host.
    go(&world, 1, 1).await;
    assert!(matches!(host.ended().await, HostEnd::Worn));
    assert_eq!(answers(&world, begun), ["wait.recv", "wait.recv", "wait.complete"]);
    assert!(answers(&world, later).is_empty());
    assert!(world.topic("wait.error").is_empty());
    let host = world.host().await;
    world.wait("xs.handler.h.active", 4).await;
    go(&world, 1, 2).await;
    assert_eq!(answers(&world, later), ["wait.recv", "wait.recv", "wait.complete"]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outlive_their_host() {
    let world = World::new(&[("commands/wait.js", WAIT), ("commands/report.ts", REPORT)]);
    let host = world.host().await;
    world.wait("xs.command.report.active", 1).await;
    let cut = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    world.wait("wait.recv", 1).await;
    host.cut().await;
    let waiting = world.append("report.call", json!({ "args": { "n": 1 } }), "");
    let late = world.append("report.call", json!({ "args": { "n": 1 }, "deadline": 1 }), "");
    let host = world.host().await;
    let error = world.wait("wait.error", 1).await;
    assert_eq!(meta(&error[0])["code"], "interrupted");
    world.wait("report.complete", 1).await;
    let error = world.wait("report.error", 1).await;
    assert_eq!(meta(&error[0])["code"], "timeout");
    host.stop().await;
    assert_eq!(answers(&world, cut), ["wait.recv", "wait.error"]);
    assert_eq!(answers(&world, waiting), ["report.recv", "report.complete"]);
    assert_eq!(answers(&world, late), ["report.error"]);
}

/// The last commit of a Host may be stored after the next Host has read the place.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_end_was_stored_late_is_not_answered_again() {
    let world = World::new(&[("commands/report.ts", REPORT)]);
    let host = world.host().await;
    world.wait("xs.command.report.active", 1).await;
    world.store.hold("report.complete", "report.error");
    let call = world.append("report.call", json!({ "args": { "n": 1 } }), "");
    world.until("the end is held", || world.store.holds()).await;
    host.cut().await;
    let host = world.host().await;
    world.wait("report.complete", 1).await;
    let next = world.append("report.call", json!({ "args": { "n": 0 } }), "");
    world.wait("report.complete", 2).await;
    assert_eq!(answers(&world, call), ["report.recv", "report.complete"]);
    assert_eq!(answers(&world, next), ["report.complete"]);
    host.stop().await;
}

/// When an operator sets its cursor, a command continues from there; running calls end normally.
#[tokio::test(flavor = "multi_thread")]
async fn an_operators_word_about_its_place_counts() {
    let world = World::new(&[("commands/report.ts", REPORT), ("commands/wait.js", WAIT)]);
    let host = world.host().await;
    world.wait("xs.command.report.active", 1).await;
    world.wait("xs.command.wait.active", 1).await;
    let calls: Vec<FrameId> =
        (0..2).map(|_| world.append("report.call", json!({ "args": { "n": 0 } }), "")).collect();
    world.wait("report.complete", 2).await;
    let second = world.topic("report.call")[1].offset().unwrap();
    world.set_cursor("xs.command.report", second, "");
    let third = world.append("report.call", json!({ "args": { "n": 0 } }), "");
    world.wait("report.complete", 4).await;
    assert_eq!(answers(&world, calls[0]).len(), 1);
    assert_eq!(answers(&world, calls[1]).len(), 2, "once more");
    assert_eq!(answers(&world, third).len(), 1);
    let running = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    world.wait("wait.recv", 1).await;
    let drop = CursorChange {
        name: CursorName::parse("xs.command.wait").unwrap(),
        expect: ExpectRevision::Any,
        set: None,
    };
    world.store.put(AppendRequest { cursors: vec![drop], ..AppendRequest::default() });
    let other = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    world.wait("wait.recv", 2).await;
    go(&world, 1, 2).await;
    for call in [running, other] {
        assert_eq!(answers(&world, call), ["wait.recv", "wait.recv", "wait.complete"]);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_a_crash_cut_off_is_run_again_where_that_is_wanted() {
    let again = WAIT.replace("export default {", "export default { onCrash: 'retry',");
    let world = World::new(&[("commands/wait.js", &again)]);
    let host = world.host().await;
    world.wait("xs.command.wait.active", 1).await;
    let call = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    let (late, deadline) = begun_in_time(&world).await;
    let answered = async |call, topics: &[&str]| {
        world.until("the call is answered so", || answers(&world, call) == topics).await;
    };
    answered(call, &["wait.recv"]).await;
    host.cut().await;
    world.until("the deadline has passed", || wall_ms() >= deadline).await;
    let host = world.host().await;
    answered(late, &["wait.recv", "wait.error"]).await;
    let of = |call: FrameId| {
        let error = |frame: &Frame| meta(frame)["call"] == call.to_string();
        meta(world.topic("wait.error").iter().find(|frame| error(frame)).unwrap())
    };
    assert_eq!(of(late)["code"], "timeout");
    answered(call, &["wait.recv"; 2]).await;
    host.cut().await;
    let host = world.host().await;
    answered(call, &["wait.recv"; 3]).await;
    host.cut().await;
    // Three times are enough: the call may be what crashes its process.
    let host = world.host().await;
    answered(call, &["wait.recv", "wait.recv", "wait.recv", "wait.error"]).await;
    assert_eq!(of(call)["code"], "interrupted");
    host.stop().await;
    assert_eq!(answers(&world, late), ["wait.recv", "wait.error"]);
}

/// A call that has begun before its deadline, with a deadline as short as the machine allows.
async fn begun_in_time(world: &World) -> (FrameId, u64) {
    let mut ms = 2_000;
    loop {
        let deadline = wall_ms() + ms;
        let short = json!({ "args": { "id": 2 }, "deadline": deadline });
        let call = world.append("wait.call", short, "");
        world.until("the call is answered", || !answers(world, call).is_empty()).await;
        if answers(world, call) == ["wait.recv"] {
            return (call, deadline);
        }
        ms *= 4;
    }
}

/// More often than a call may be rerun after crashes: a stop is not the fault of the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_a_stop_cut_off_is_run_again_where_that_is_wanted() {
    let again = WAIT.replace("export default {", "export default { onCrash: 'retry',");
    let world = World::new(&[("commands/wait.js", &again), ("commands/once.js", WAIT)]);
    let host = world.host().await;
    world.wait("xs.command.wait.active", 1).await;
    world.wait("xs.command.once.active", 1).await;
    let call = world.append("wait.call", json!({ "args": { "id": 1 } }), "");
    let once = world.append("once.call", json!({ "args": { "id": 1 } }), "");
    world.wait("once.recv", 1).await;
    let mut running = host;
    for begun in 1..=5 {
        world.wait("wait.recv", begun).await;
        assert!(matches!(running.stop().await, HostEnd::Stopped));
        assert!(world.topic("wait.error").is_empty(), "it is not answered");
        running = world.host().await;
    }
    world.wait("once.error", 1).await;
    assert_eq!(answers(&world, once), ["once.recv", "once.error"]);
    world.wait("wait.recv", 6).await;
    go(&world, 1, 1).await;
    let ended = answers(&world, call);
    assert_eq!(ended.iter().filter(|topic| *topic != "wait.recv").count(), 1, "{ended:?}");
    // An operator who stops the command itself does not want its calls to continue.
    let stopped = world.append("wait.call", json!({ "args": { "id": 2 } }), "");
    let has_begun = || answers(&world, stopped).iter().any(|topic| topic == "wait.recv");
    world.until("the call has begun", has_begun).await;
    world.append("xs.command.wait.term", json!({}), "");
    world.wait("xs.command.wait.fin.term", 1).await;
    assert_eq!(answers(&world, stopped), ["wait.recv", "wait.error"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_calls_than_may_run_wait_for_their_turn() {
    let two = WAIT.replace("export default {", "export default { concurrency: 2,");
    let world = World::new(&[("commands/wait.js", &two)]);
    let host = world.host().await;
    world.wait("xs.command.wait.active", 1).await;
    for id in 0..6 {
        world.append("wait.call", json!({ "args": { "id": id } }), "");
    }
    for ended in 0..6 {
        let begun =
            || world.topic("wait.recv").iter().filter(|f| meta(f)["began"].is_u64()).count();
        assert!(begun() <= ended + 2, "more than two run");
        go(&world, ended, ended + 1).await;
    }
    host.stop().await;
    assert!(world.topic("wait.error").is_empty());
}

fn wall_ms() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// Each call ends once, after all the output that was handed over: the one that loops and the
/// concurrent one.
#[tokio::test(flavor = "multi_thread")]
async fn results_before_an_endless_loop_come_before_the_error() {
    let source = r#"
export default { args: { loop: "boolean" }, async *run(call, ctx) {
  yield { n: 1 };
  if (!call.args.loop) await new Promise(() => ctx.signal);
  yield { n: 2 };
  for (;;) {}
} };
"#;
    let world = World::new(&[("commands/c.js", source)]);
    let host = world.host().await;
    world.wait("xs.command.c.active", 1).await;
    let beside = world.append("c.call", json!({ "args": { "loop": false } }), "");
    world.wait("c.recv", 1).await;
    let call = world.append("c.call", json!({ "args": { "loop": true } }), "");
    let errors = world.wait("c.error", 2).await;
    let own = errors.iter().find(|error| meta(error)["call"] == call.to_string()).unwrap();
    assert_eq!(meta(own)["code"], "cpu", "{}", meta(own));
    assert_eq!(answers(&world, call), ["c.recv", "c.recv", "c.error"]);
    assert_eq!(answers(&world, beside), ["c.recv", "c.error"]);
    host.stop().await;
}

/// The command that ends does not take over the new version: its own end is logged, and then the
/// new version starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_comes_while_its_command_ends_follows_it() {
    let lingers = r#"
export default { async run(call, ctx) {
  await ctx.append("begun", {});
  await new Promise((done) => ctx.signal.addEventListener("abort", done));
  await new Promise((done) => setTimeout(done, 3000));
} };
"#;
    let world = World::new(&[("commands/c.js", lingers)]);
    let host = world.host().await;
    let first = world.wait("xs.command.c.active", 1).await.remove(0);
    world.append("c.call", json!({}), "");
    world.wait("begun", 1).await;
    // A call past its deadline is answered at once; the command ends because the store refuses the
    // answer.
    world.store.deny("c.error");
    world.append("c.call", json!({ "deadline": 1 }), "");
    world.until("the answer is refused", || world.store.denials() > 0).await;
    // Before there is a second version, which would end as well.
    world.store.deny(None);
    world.save("commands/c.js", "export default { run: () => ({ v: 2 }) };");
    let second = world.wait("xs.command.c.create", 2).await.remove(1);
    world.wait("xs.command.c.active", 2).await;
    let call = world.append("c.call", json!({}), "");
    world.until("it is answered", || answers(&world, call).len() == 2).await;
    assert_eq!(answers(&world, call), ["c.recv", "c.complete"]);
    let fin = world.topic("xs.command.c.fin.error");
    let creates: Vec<_> = fin.iter().map(|frame| meta(frame)["create"].clone()).collect();
    assert_eq!(creates, [meta(&first)["create"].clone()]);
    let active: Vec<_> =
        world.topic("xs.command.c.active").iter().map(|f| meta(f)["create"].clone()).collect();
    assert_eq!(active, [meta(&first)["create"].clone(), json!(second.id().to_string())]);
    assert!(fin[0].offset() < world.topic("xs.command.c.active")[1].offset());
    host.stop().await;
}

const LEAVES: &str = r#"
export default { async *run(call, ctx) {
  try {
    yield { began: true };
    await new Promise((done) => ctx.signal.addEventListener("abort", done));
  } finally {
    await new Promise((done) => setTimeout(done, 200));
    ctx.log.info("left");
    await ctx.append("late", {}).catch((error) => ctx.log.info(error.message));
  }
} };
"#;

/// Regression test: it was killed as soon as its calls were answered.
#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_a_call_that_is_cut_off_has_time_to_leave() {
    for (is_swapped, is_cancelled) in [(false, false), (true, false), (true, true)] {
        let world = World::new(&[("commands/c.js", LEAVES)]);
        let host = world.host().await;
        world.wait("xs.command.c.active", 1).await;
        let call = world.append("c.call", json!({}), "");
        world.wait("c.recv", 1).await;
        if is_swapped {
            world.save("commands/c.js", &format!("{LEAVES} // Another one."));
            world.wait("xs.command.c.active", 2).await;
        }
        if is_cancelled {
            world.append("xs.command.c.cancel", json!({ "call": call.to_string() }), "");
            world.wait("c.error", 1).await;
        }
        host.stop().await;
        let error = world.topic("c.error").remove(0);
        let code = if is_cancelled { "cancelled" } else { "interrupted" };
        assert_eq!(meta(&error)["code"], code);
        let lines = world.topic("xs.command.c.log");
        assert!(error.offset() < lines[0].offset(), "the caller waited for the code to leave");
        let lines: Vec<_> = lines.iter().map(|line| meta(line)["message"].clone()).collect();
        let refused = "this run has ended and can append nothing more";
        assert_eq!(lines, ["left", refused], "{is_swapped} {is_cancelled}");
        assert!(world.topic("late").is_empty());
        assert_eq!(answers(&world, call), ["c.recv", "c.error"]);
    }
}

/// Regression test: its sleep never returned.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cut_off_while_it_sleeps_comes_to_its_finally() {
    for work in [
        "for (;;) { await sleep(); yield; }",
        "while (!ctx.signal.aborted) await sleep();",
        "for await (const _ of beats()) yield;",
    ] {
        let source = format!(
            "const sleep = () => new Promise((done) => setTimeout(done, 200)); \
             async function* beats() {{ for (;;) yield await sleep(); }} \
             export default {{ timeout: 500, async *run(call, ctx) {{ \
               try {{ {work} }} finally {{ ctx.log.info('left'); }} }} }};"
        );
        let world = World::new(&[("commands/c.js", &source)]);
        let host = world.host().await;
        world.wait("xs.command.c.active", 1).await;
        world.append("c.call", json!({}), "");
        world.wait("c.error", 1).await;
        assert_eq!(meta(&world.topic("c.error")[0])["code"], "timeout");
        world.wait("xs.command.c.log", 1).await;
        assert_eq!(meta(&world.topic("xs.command.c.log")[0])["message"], "left", "{work}");
        host.stop().await;
    }
}
