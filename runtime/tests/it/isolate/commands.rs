use serde_json::json;
use tokio_util::sync::CancellationToken;
use xs_engine::Topic;
use xs_runtime::isolate::{Call, FailureKind};

use super::*;

async fn command(source: &str) -> (Isolate, Arc<Memory>) {
    let (isolate, _, memory) = start("commands/it.js", source).await.unwrap();
    (isolate, memory)
}

pub(super) fn call(memory: &Memory, args: &Value) -> Call {
    Call {
        input: Input {
            frame: memory.add("it.call", &json!({ "args": args }), "body"),
            body: None,
            attempt: 1,
        },
        deadline_ms: None,
        complete: NewFrame::new(Topic::parse("it.complete").unwrap()),
        cancel: CancellationToken::new(),
    }
}

#[tokio::test]
async fn results_are_stored_before_complete() {
    let (isolate, memory) = command(
        r#"import { command } from "xs";
        export default command({ args: { n: "number", name: "string?" }, async *run(call, ctx) {
          for (let i = 0; i < call.args.n; i++) yield { i, name: call.args.name ?? null };
          yield await call.text();
        } });"#,
    )
    .await;
    let asked = call(&memory, &json!({ "n": "3" }));
    let id = asked.input.frame.id();
    soon(isolate.call(asked)).await.unwrap();
    let results = memory.topic("it.recv");
    assert_eq!(results.len(), 4);
    assert_eq!(stored_meta(&results[2]), json!({ "i": 2, "name": null }));
    assert_eq!(memory.body(&results[3]), "body");
    assert!(results.iter().all(|frame| frame.origin().unwrap().input == Some(id)));
    let complete = &memory.topic("it.complete")[0];
    assert!(complete.offset() > results[3].offset());
}

#[tokio::test]
async fn a_plain_return_is_one_result() {
    for run in ["run: () => ({ a: 1 })", "async run() { return { a: 1 }; }"] {
        let (isolate, memory) = command(&format!("export default {{ {run} }};")).await;
        soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
        assert_eq!(
            memory.topic("it.recv").iter().map(stored_meta).collect::<Vec<_>>(),
            [json!({ "a": 1 })]
        );
        assert_eq!(memory.topic("it.complete").len(), 1);
    }
}

#[tokio::test]
async fn arguments_are_checked_and_named() {
    let (isolate, memory) = command(
        "export default { args: { a: 'number', b: 'boolean?', c: 'json?' }, run: (call) => ({ args: call.args }) };",
    )
    .await;
    for (args, want) in [
        (json!({}), "argument \"a\" is missing (number)"),
        (json!({ "a": "x" }), "argument \"a\" is a string, not a number"),
        (json!({ "a": 1, "b": "yes" }), "argument \"b\" is a string, not a boolean"),
        (json!({ "a": 1, "z": 1 }), "unknown argument \"z\"; it takes a, b, c"),
        (json!([]), "args must be an object"),
    ] {
        let error = soon(isolate.call(call(&memory, &args))).await.unwrap_err();
        assert!(error.message.contains(want), "{args}: {error}");
        assert_eq!(error.kind, FailureKind::Args, "{args}");
    }
    soon(isolate.call(call(&memory, &json!({ "a": "1.5", "b": "true", "c": [1] })))).await.unwrap();
    let got = stored_meta(&memory.topic("it.recv")[0]);
    assert_eq!(got, json!({ "args": { "a": 1.5, "b": true, "c": [1] } }));
}

#[tokio::test]
async fn calls_run_side_by_side_and_fail_alone() {
    let (isolate, memory) = command(
        r#"let waiting = [];
        export default { async *run(call) {
          if (call.args.n === 0) throw new Error("zero");
          yield { started: call.args.n };
          await new Promise((done) => { waiting.push(done); if (waiting.length === 3) waiting.forEach((go) => go()); });
          yield { n: call.args.n };
        } };"#,
    )
    .await;
    let calls = (0..4).map(|n| isolate.call(call(&memory, &json!({ "n": n }))));
    let ended = soon(futures::future::join_all(calls)).await;
    assert!(ended[0].as_ref().is_err_and(|error| error.message == "Error: zero"));
    assert!(ended[1..].iter().all(Result::is_ok), "{ended:?}");
    assert_eq!(memory.topic("it.complete").len(), 3);
}

#[tokio::test]
async fn deadlines_and_cancels_end_a_call_with_its_signal() {
    let source = r#"export default { timeout: 100, async run(call, ctx) {
        if (call.args.deadline) { const left = ctx.deadline - Date.now(); if (left > 10_000) throw new Error("late"); }
        await new Promise((done) => ctx.signal.addEventListener("abort", () => {
          console.log(ctx.signal.reason.name); done(); }));
        return { never: true };
      } };"#;
    let (isolate, memory) = command(source).await;
    let error = soon(isolate.call(call(&memory, &json!({})))).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Timeout);
    let mut late = call(&memory, &json!({ "deadline": true }));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    late.deadline_ms = Some(u64::try_from(now.as_millis()).unwrap() + 50);
    let error = soon(isolate.call(late)).await.unwrap_err();
    assert_eq!((error.kind, error.message.contains("deadline")), (FailureKind::Timeout, true));
    let cancelled = call(&memory, &json!({}));
    cancelled.cancel.cancel();
    let error = soon(isolate.call(cancelled)).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Cancelled);
    assert_eq!(memory.topic("it.recv").len(), 0);
    assert_eq!(memory.topic("it.complete").len(), 0);
    // The isolate continues.
    assert!(soon(isolate.call(call(&memory, &json!({})))).await.is_err());
    let names: Vec<_> = memory.logs().into_iter().map(|(_, line)| line).collect();
    assert_eq!(names[..3], ["TimeoutError", "TimeoutError", "AbortError"]);
}

/// An error thrown while the call is ended does not fail concurrent calls; an iterator that cannot
/// be ended is abandoned at its next value.
#[tokio::test]
async fn a_call_that_is_cancelled_ends_alone() {
    let source = r#"let go; const gone = new Promise((done) => (go = done));
        let pulled = 0;
        export default { run(call) {
          if (call.args.kind === "sync") return (function* () {
            try { for (;;) yield { kind: "sync" }; } finally { throw new Error("cleanup failed"); } })();
          if (call.args.kind === "bare") return { [Symbol.asyncIterator]() { return this; },
            async next() { if (++pulled > 1) await gone; return { value: { kind: "bare" }, done: false }; } };
          if (call.args.kind === "go") go();
          return { pulled };
        } };"#;
    let (isolate, memory) = command(source).await;
    for kind in ["sync", "bare"] {
        let asked = call(&memory, &json!({ "kind": kind }));
        let cancel = asked.cancel.clone();
        let before = memory.topic("it.recv").len();
        let cancelled = async {
            memory.wait("it.recv", before + 1).await;
            cancel.cancel();
        };
        let (ended, ()) = soon(async { tokio::join!(isolate.call(asked), cancelled) }).await;
        assert_eq!(ended.unwrap_err().kind, FailureKind::Cancelled);
        soon(isolate.call(call(&memory, &json!({ "kind": "beside" })))).await.unwrap();
    }
    soon(isolate.call(call(&memory, &json!({ "kind": "go" })))).await.unwrap();
    soon(isolate.call(call(&memory, &json!({ "kind": "beside" })))).await.unwrap();
    // It was pulled once more, and then abandoned.
    assert_eq!(stored_meta(memory.topic("it.recv").last().unwrap()), json!({ "pulled": 2 }));
}

#[tokio::test]
async fn many_calls_leave_the_isolate_as_it_was() {
    let (isolate, memory) =
        command("export default { run: (call) => ({ n: call.args.n }) };").await;
    let started = std::time::Instant::now();
    for n in 0..5_000 {
        isolate.call(call(&memory, &json!({ "n": n }))).await.unwrap();
    }
    println!("a call: {:?}", started.elapsed() / 5_000);
    assert_eq!(memory.topic("it.complete").len(), 5_000);
}
