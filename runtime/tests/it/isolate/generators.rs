use std::io::Write as _;

use serde_json::json;
use xs_engine::{FrameId, Meta, NewFrame, Origin};
use xs_runtime::isolate::{BackendCode, BackendError, FailureKind};

use super::*;

async fn generator(source: &str) -> (Isolate, Arc<Memory>) {
    let (isolate, _, memory) = start("generators/it.js", source).await.unwrap();
    (isolate, memory)
}

#[tokio::test]
async fn what_it_yields_is_stored_in_order() {
    let (isolate, memory) = generator(
        r#"import { generator, frame } from "xs";
        export default generator({ async *run(ctx) {
          for (let n = 0; n < 1000; n++) yield { n };
          const stored = await ctx.append("other", { json: [1] });
          yield frame({ topic: "last", meta: { of: stored.id, offset: stored.offset } });
        } });"#,
    )
    .await;
    soon(isolate.run_generator()).await.unwrap();
    let frames = memory.topic("it.recv");
    assert_eq!(frames.len(), 1000);
    assert!(frames.iter().enumerate().all(|(n, frame)| stored_meta(frame) == json!({ "n": n })));
    let other = &memory.topic("other")[0];
    assert_eq!(memory.body(other), "[1]");
    let of = json!({ "of": other.id().to_string(), "offset": 1000 });
    assert_eq!(stored_meta(&memory.topic("last")[0]), of);
    assert_eq!(other.origin().unwrap().hops, 0);
}

#[tokio::test]
async fn plain_iterators_and_promises_do_as_well() {
    for (run, want) in [
        ("*run() { yield { n: 1 }; yield 'two'; }", 2),
        ("async run(ctx) { await ctx.append('it.recv', { meta: { n: 1 } }); }", 1),
        ("run() { return new ReadableStream({ start(c) { c.enqueue('a'); c.close(); } }); }", 1),
    ] {
        let (isolate, memory) = generator(&format!("export default {{ {run} }};")).await;
        soon(isolate.run_generator()).await.unwrap();
        assert_eq!(memory.topic("it.recv").len(), want, "{run}");
    }
}

#[tokio::test]
async fn a_throw_ends_it_with_its_place() {
    let (isolate, memory) =
        generator("export default { async *run() {\n  yield { n: 1 };\n  null.x;\n} };").await;
    let error = soon(isolate.run_generator()).await.unwrap_err();
    assert_eq!((error.kind, error.line), (FailureKind::Throw, Some(3)), "{error:?}");
    assert_eq!(memory.topic("it.recv").len(), 1);
}

#[tokio::test]
async fn a_bad_value_is_thrown_at_its_yield() {
    let (isolate, memory) = generator(
        r#"export default { async *run() {
          try { yield 42; } catch (error) { yield { caught: error.message.includes("{ value: 42 }") }; }
        } };"#,
    )
    .await;
    soon(isolate.run_generator()).await.unwrap();
    assert_eq!(stored_meta(&memory.topic("it.recv")[0]), json!({ "caught": true }));
}

#[tokio::test]
async fn an_iterator_that_takes_no_errors_is_ended() {
    let (isolate, memory) = generator(
        "export default { run(ctx) { return { [Symbol.asyncIterator]() { return this; }, \
           async next() { return { value: 42, done: false }; }, \
           async return() { ctx.log.info('ended'); throw new Error('late'); } }; } };",
    )
    .await;
    let error = soon(isolate.run_generator()).await.unwrap_err();
    assert!(error.message.contains("{ value: 42 }"), "{error}");
    assert_eq!(memory.logs()[0].1, "ended");
}

/// More streams than may be open at the same time.
#[tokio::test]
async fn a_stream_that_is_left_while_it_opens_is_closed() {
    let (isolate, memory) = generator(
        "export default { async *run(ctx) { for (let n = 0; n < 300; n++) { \
           const read = ctx.read({ topics: 'none', follow: true }); const next = read.next(); \
           await read.return(); if (!(await next).done) throw new Error('not over'); } \
           for await (const frame of ctx.call('echo', { args: { n: 1 } })) yield { n: frame.meta.n }; } };",
    )
    .await;
    soon(isolate.run_generator()).await.unwrap();
    assert_eq!(stored_meta(&memory.topic("it.recv")[0]), json!({ "n": 1 }));
}

#[tokio::test]
async fn a_refusal_of_the_store_ends_it() {
    let (isolate, memory) =
        generator("export default { async *run() { for (;;) yield { n: 1 }; } };").await;
    memory.refuse(Some(BackendError::new(BackendCode::Unavailable, "the disk is full")));
    let error = soon(isolate.run_generator()).await.unwrap_err();
    assert!(error.message.contains("the disk is full"), "{error}");
}

#[tokio::test]
async fn stopping_fires_the_signal_and_runs_finally() {
    for wait in [
        "for await (const _ of ctx.every(10)) yield { beat: 1 };",
        "yield { beat: 1 }; await new Promise((done) => ctx.signal.addEventListener('abort', done));",
        "yield { beat: 1 }; for await (const _ of ctx.read({ follow: true, topics: 'none' }));",
        // It is waiting for something else, so it gets the error at its next yield.
        "for (;;) { yield { beat: 1 }; await new Promise((done) => setTimeout(done, 50)); }",
    ] {
        let (isolate, memory) = generator(&format!(
            "export default {{ async *run(ctx) {{ try {{ {wait} }} finally {{ \
               await new Promise((done) => setTimeout(done, 1)); await ctx.append('closed'); \
               console.log('closed', ctx.signal.aborted); }} }} }};"
        ))
        .await;
        let mut run = Box::pin(isolate.run_generator());

        tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            _ = memory.wait("it.recv", 1) => {}
        }
        drop(run);
        soon(isolate.stop()).await.unwrap();
        assert_eq!(memory.logs()[0].1, "closed true", "{wait}");
        assert_eq!(memory.topic("closed").len(), 1, "{wait}");
    }
}

#[tokio::test]
async fn one_that_does_not_stop_is_terminated() {
    for run in [
        "async *run() { yield { n: 1 }; await new Promise((done) => setTimeout(done, 60_000)); }",
        "async *run() { try { yield { n: 1 }; await new Promise((done) => setTimeout(done, 60_000)); } finally { for (;;) {} } }",
    ] {
        let source = format!("export default {{ {run} }};");
        let short = |spec: &mut IsolateSpec| spec.limits.stop = Duration::from_millis(200);
        let (isolate, _, memory) = start_with("generators/it.js", &source, short).await.unwrap();
        let mut run = Box::pin(isolate.run_generator());

        tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            _ = memory.wait("it.recv", 1) => {}
        }
        drop(run);
        soon(isolate.stop()).await.unwrap();
    }
}

#[tokio::test]
async fn a_tail_goes_on_where_it_was() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "old\n").unwrap();
    let at = path.display().to_string();
    let source = format!(
        "export default {{ permissions: {{ read: [\"{at}\"] }}, async *run(ctx) {{ \
           yield {{ begun: true }}; for await (const line of ctx.tail('{at}')) yield line; }} }};"
    );
    let append = |text: &str| {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let (isolate, _, memory) = start("generators/it.js", &source).await.unwrap();
    let bodies = |frames: Vec<Frame>| -> Vec<String> {
        frames.iter().skip(1).map(|frame| memory.body(frame)).collect()
    };
    let mut run = Box::pin(isolate.run_generator());

    let position = format!("tail:{at}");
    let steps = async {
        while memory.position(&position).is_none() {
            memory.wait("it.recv", 1).await;
            tokio::task::yield_now().await;
        }
        append("one\r\ntw");
        memory.wait("it.recv", 2).await;
        append("o\nthree\n");
        memory.wait("it.recv", 4).await;
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        append("four\n");
        memory.wait("it.recv", 5).await;
        std::fs::write(&path, "").unwrap();
        append("5\n");
        memory.wait("it.recv", 6).await
    };
    let frames = tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        frames = soon(steps) => frames,
    };
    assert_eq!(bodies(frames), ["one", "two", "three", "four", "5"]);
    let denied = start(
        "generators/it.js",
        "export default { async *run(ctx) { yield* ctx.tail('/etc/passwd'); } };",
    );
    let (isolate, ..) = denied.await.unwrap();
    let error = soon(isolate.run_generator()).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Permission);
    assert!(error.message.contains("permissions: { read: [\"/etc/passwd\"] }"), "{error}");
}

/// Each of several concurrent calls of `next` gets an item of its own, in order.
#[tokio::test]
async fn items_of_a_stream_are_given_once_whoever_waits() {
    let (isolate, memory) = generator(
        "export default { async *run(ctx) { const read = ctx.read({ topics: 'a' }); \
           for (;;) { const steps = await Promise.all([read.next(), read.next(), read.next()]); \
             for (const { done, value } of steps) { if (done) return; yield { n: value.meta.n }; } } } };",
    )
    .await;
    (0..1000).for_each(|n| drop(memory.add("a", &json!({ "n": n }), "")));
    soon(isolate.run_generator()).await.unwrap();
    let seen: Vec<_> = memory.topic("it.recv").iter().map(stored_meta).collect();
    assert!(seen.iter().enumerate().all(|(n, seen)| *seen == json!({ "n": n })), "{seen:?}");
    assert_eq!(seen.len(), 1000);
}

/// However much output the generator has in flight by then.
#[tokio::test]
async fn the_place_of_the_input_follows_what_is_stored() {
    let (isolate, memory) = generator(
        "export default { duplex: true, async *run(ctx) { \
           for await (const { meta } of ctx.input) { yield { of: meta.n }; \
             await new Promise((done) => setTimeout(done, 1)); \
             if (meta.n === 9) ctx.log.info('all'); } } };",
    )
    .await;
    (0..10).for_each(|n| drop(memory.add("it.send", &json!({ "n": n }), "")));
    let answers = memory.hold();
    let kept = async {
        while memory.logs().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The first is answered; the others are in flight and never answered.
        answers.add_permits(1);
        while memory.position("input").is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = isolate.run_generator() => panic!("{ended:?}"),
        () = soon(kept) => {}
    }
    assert_eq!(memory.position("input").unwrap(), r#"{"offset":1}"#);
}

#[tokio::test]
async fn the_results_of_a_call_are_what_it_yields() {
    let (isolate, memory) = generator(
        "export default { async *run(ctx) { \
           for await (const frame of ctx.call('echo', { args: { n: 1 } })) yield { of: frame.topic }; \
           try { for await (const frame of ctx.call('fails')) yield { of: frame.topic }; } \
           catch (error) { yield { name: error.name, message: error.message, code: error.code, \
             topic: error.frame.topic }; } } };",
    )
    .await;
    soon(isolate.run_generator()).await.unwrap();
    let seen: Vec<_> = memory.topic("it.recv").iter().map(stored_meta).collect();
    let failure = json!({ "name": "CommandFailed", "message": "fails: it is broken",
        "code": "throw", "topic": "fails.error" });
    assert_eq!(seen, [json!({ "of": "echo.recv" }), json!({ "of": "fails.recv" }), failure]);
}

/// The hops of a chain of processors are counted through a generator too.
#[tokio::test]
async fn hops_go_through_an_input() {
    let (isolate, memory) = generator(
        "export default { duplex: true, async *run(ctx) { \
           for await (const { meta } of ctx.input) { yield { of: meta.n }; \
             await ctx.append('own', { meta: { of: meta.n } }); \
             if (meta.n === 1) break; } \
           const next = ctx.input[Symbol.asyncIterator]().next(); \
           await ctx.append('soon'); await ctx.append('later'); await next; } };",
    )
    .await;
    for (n, hops) in [(0, 7), (1, 0)] {
        let mut new = NewFrame::new("it.send".parse().unwrap());
        new.meta = Meta::parse(json!({ "n": n }).to_string()).unwrap();
        let processor = FrameId::first_of_ms(77);
        new.origin = Some(Origin { processor, input: None, input_offset: None, hops });
        memory.push(&new);
    }
    tokio::select! {
        ended = isolate.run_generator() => panic!("{ended:?}"),
        _ = soon(memory.wait("later", 1)) => {}
    }
    // Once the next frame is requested, output is no longer attributed to the previous one.
    assert_eq!(memory.topic("later")[0].origin().unwrap().hops, 0);
    for topic in ["it.recv", "own"] {
        let frames = memory.topic(topic);
        let hops = frames.iter().map(|frame| frame.origin().unwrap().hops);
        assert!(hops.eq([8, 1]), "{topic}");
    }
}

/// An input that is left and opened again continues after the frame that was taken; one that is
/// left before its frame arrives does not lose it.
#[tokio::test]
async fn an_input_that_is_opened_again_goes_on() {
    const FRAMES: usize = 200;
    let (isolate, memory) = generator(
        "const turn = () => new Promise((done) => setTimeout(done)); \
         export default { duplex: true, async *run(ctx) { \
           for (let n = 0; n < 20; n++) for await (const { meta } of ctx.input) { yield { of: meta.n }; break; } \
           for (let n = 0;; n++) { const input = ctx.input[Symbol.asyncIterator](); \
             const next = input.next(); \
             for (let k = 0; k < n % 30; k++) await (k % 10 === 9 ? turn() : null); \
             await input.return(); \
             const step = await next; if (!step.done) yield { of: step.value.meta.n }; } } };",
    )
    .await;
    (0..FRAMES).for_each(|n| drop(memory.add("it.send", &json!({ "n": n }), "")));
    let frames = tokio::select! {
        ended = isolate.run_generator() => panic!("{ended:?}"),
        frames = soon(memory.wait("it.recv", FRAMES)) => frames,
    };
    let of: Vec<_> = frames.iter().map(stored_meta).collect();
    let told: Vec<_> = (0..FRAMES).map(|n| json!({ "of": n })).collect();
    assert_eq!(of, told);
}

/// An error after a wait names the line of the module, like one thrown at once.
#[tokio::test]
async fn a_request_that_fails_names_its_line() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for run in ["async *run()", "async run()"] {
        let source = format!(
            "export default {{ permissions: {{ net: [\"127.0.0.1:{port}\"] }}, {run} {{\n  \
               const url = \"http://127.0.0.1:{port}/\";\n  \
               await fetch(url);\n\
             }} }};"
        );
        let (isolate, _) = generator(&source).await;
        let error = soon(isolate.run_generator()).await.unwrap_err();
        let place = (error.file.as_deref(), error.line);
        assert_eq!(place, (Some("generators/it.js"), Some(3)), "{run}: {error:?}");
        assert!(error.message.contains("refused"), "{error}");
    }
}
