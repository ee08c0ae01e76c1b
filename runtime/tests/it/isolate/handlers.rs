use std::time::Instant;

use serde_json::json;
use xs_runtime::isolate::{Blame, FailureKind, Verdict};

use super::*;

#[tokio::test]
async fn a_batch_of_sync_calls_is_one_commit() {
    let (isolate, memory) = handler(
        r#"import { handler } from "xs";
        export default handler({
          topics: "in", state: { sum: 0 },
          run(frame, ctx) {
            ctx.state.sum += frame.meta.n;
            if (frame.meta.n % 2) ctx.append("odd", { meta: { of: frame.id } });
            return { sum: ctx.state.sum };
          },
        });"#,
    )
    .await;
    let inputs = inputs(&memory, 4);
    let ids: Vec<_> = inputs.iter().map(|input| input.frame.id()).collect();
    let reply = reply(&isolate, inputs).await;
    assert_eq!((reply.done, &reply.failure), (4, &None));
    assert_eq!(state(&reply), json!({ "sum": 6 }));
    let seen: Vec<_> =
        reply.outputs.iter().map(|frame| (frame.topic.as_str(), meta(frame))).collect();
    assert_eq!(seen.len(), 6);
    assert_eq!(seen[1], ("odd", json!({ "of": ids[1].to_string() })));
    assert_eq!(seen[2], ("it.out", json!({ "sum": 1 })));
    let origin = reply.outputs[5].origin.unwrap();
    assert_eq!((origin.input, origin.hops), (Some(ids[3]), 1));
    // An unchanged state is not written again.
    let again = super::reply(&isolate, vec![input(&memory, &json!({ "n": 0 }))]).await;
    assert_eq!(again.state, None);
}

/// What slow calls have done is not lost with the rest of their batch.
#[tokio::test]
async fn a_batch_of_slow_calls_is_committed_in_parts() {
    let (isolate, memory) = handler(
        "export default { topics: 'in', state: 0, run(frame, ctx) { \
           const end = Date.now() + 60; while (Date.now() < end); \
           return { n: ++ctx.state }; } };",
    )
    .await;
    let mut handling = isolate.handle(inputs(&memory, 40)).unwrap();
    let (mut done, mut parts) = (0, 0);
    while let Some(reply) = handling.next().await.unwrap() {
        done += reply.done;
        parts += 1;
        assert_eq!((reply.outputs.len(), state(&reply)), (reply.done, json!(done)));
    }
    assert!(done == 40 && parts > 1, "{done} in {parts}");
}

/// While the output of the previous batch is not stored, calls are made, but nothing is read and
/// nothing replied: a read would miss that output, and a reply could be stored without it.
#[tokio::test]
async fn a_batch_ahead_of_a_commit_waits_for_it() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", state: 0, async run(frame, ctx) {
          console.log(`call ${frame.meta.n}`);
          if (frame.meta.n === 1) return { seen: (await ctx.last("before"))?.meta };
          ctx.state++;
        } };"#,
    )
    .await;
    let alone = |n: u64| vec![input(&memory, &json!({ "n": n }))];
    for (n, outputs) in [(0, 0), (1, 1)] {
        let mut handling = isolate.handle_ahead(alone(n)).unwrap();
        let called = async {
            while !memory.logs().iter().any(|(_, line)| *line == format!("call {n}")) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        soon(called).await;
        let early = tokio::time::timeout(Duration::from_millis(100), handling.next()).await;
        assert!(early.is_err(), "answered before: {:?}", early.unwrap());
        memory.add("before", &json!({ "n": n }), "");
        handling.before_is_committed();
        let reply = soon(handling.next()).await.unwrap().unwrap();
        assert_eq!((reply.done, reply.outputs.len(), handling.is_over()), (1, outputs, true));
        if let Some(output) = reply.outputs.first() {
            assert_eq!(meta(output), json!({ "seen": { "n": 1 } }));
        }
    }
}

#[tokio::test]
async fn a_throw_undoes_outputs_and_state() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", state: { seen: [] },
          run(frame, ctx) {
            ctx.state.seen.push(frame.meta.n);
            ctx.append("a");
            if (frame.meta.n === 1) throw new RangeError("one");
          } };"#,
    )
    .await;
    let alone = |n: u64| vec![input(&memory, &json!({ "n": n }))];
    assert_eq!(state(&reply(&isolate, alone(0)).await), json!({ "seen": [0] }));
    let failed = reply(&isolate, alone(1)).await;
    let failure = failed.failure.unwrap();
    assert_eq!((failed.outputs.len(), failed.state), (0, None));
    assert_eq!(
        (failure.blame, failure.fresh, failure.verdict),
        (Blame::Input(0), false, Verdict::Policy)
    );
    assert_eq!(failure.error.message, "RangeError: one");
    assert_eq!(
        (failure.error.file.as_deref(), failure.error.line),
        (Some("handlers/it.js"), Some(5))
    );
    assert_eq!(state(&reply(&isolate, alone(2)).await), json!({ "seen": [0, 2] }));
    // In a shared group nothing is written, and the isolate has to be replaced.
    let shared = reply(&isolate, inputs(&memory, 3)).await;
    let failure = shared.failure.unwrap();
    assert_eq!((shared.done, shared.outputs.len(), failure.blame), (0, 0, Blame::Sharing(1)));
    assert!(failure.fresh);
}

#[tokio::test]
async fn a_call_that_waits_commits_what_came_before_it() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", state: { n: 0 },
          async run(frame, ctx) {
            ctx.state.n++;
            if (frame.meta.n === 2) {
              const seen = await ctx.last("out.n");
              return { seen: seen?.meta.n ?? null };
            }
            ctx.append("out.n", { meta: { n: frame.meta.n } });
          } };"#,
    )
    .await;
    let mut handling = isolate.handle(inputs(&memory, 5)).unwrap();
    let first = handling.next().await.unwrap().unwrap();
    assert_eq!((first.done, state(&first)), (2, json!({ "n": 2 })));
    // The waiting call reads what is committed here, and did not read before.
    first.outputs.iter().for_each(|frame| drop(memory.push(frame)));
    let second = handling.next().await.unwrap().unwrap();
    assert_eq!((second.done, state(&second)), (1, json!({ "n": 3 })));
    assert_eq!(meta(&second.outputs[0]), json!({ "seen": 1 }));
    let third = handling.next().await.unwrap().unwrap();
    assert_eq!((third.done, state(&third)), (2, json!({ "n": 5 })));
    assert!(handling.next().await.unwrap().is_none());
}

/// Regression test: a reply did not wait for the commit before it, so a call read a store without
/// the appends of the previous call.
#[tokio::test]
async fn a_waiting_call_reads_what_the_waiting_call_before_it_appended() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", async run(frame, ctx) {
          await new Promise((done) => setTimeout(done, 1));
          const last = await ctx.last("it.out");
          return { n: (last?.meta.n ?? 0) + 1 };
        } };"#,
    )
    .await;
    let mut handling = isolate.handle(inputs(&memory, 4)).unwrap();
    for n in 1..=4 {
        let reply = soon(handling.next()).await.unwrap().unwrap();
        assert_eq!((reply.done, meta(&reply.outputs[0])), (1, json!({ "n": n })));
        // The commit takes its time.
        tokio::time::sleep(Duration::from_millis(20)).await;
        reply.outputs.iter().for_each(|frame| drop(memory.push(frame)));
    }
    assert!(handling.next().await.unwrap().is_none());
}

/// The first promise of a plain function in a group cannot be committed apart from the calls before
/// it.
#[tokio::test]
async fn a_first_promise_in_a_group_has_the_group_repeated() {
    let source = r#"export default { topics: "in", state: 0, run(frame, ctx) {
      ctx.state++;
      if (frame.meta.n < 2) return { n: frame.meta.n };
      return ctx.last("it.out").then((last) => ({ seen: last?.meta.n ?? null }));
    } };"#;
    let (isolate, memory) = handler(source).await;
    let reply = super::reply(&isolate, inputs(&memory, 3)).await;
    let failure = reply.failure.unwrap();
    assert_eq!((reply.outputs.len(), failure.blame), (0, Blame::UpTo(2)));
    assert!(failure.fresh, "{failure:?}");
}

/// A commit with more outputs than a whole batch of inputs with one output each saves nothing more,
/// and other appends wait for it: a flood is committed in pieces of one call.
#[tokio::test]
async fn calls_share_a_commit_up_to_as_many_outputs_as_a_batch_has_inputs() {
    for (outputs, calls) in [(1, vec![512_usize]), (300, vec![2; 4]), (512, vec![1; 8])] {
        let (isolate, memory) = handler(&format!(
            "export default {{ topics: 'in', run(frame, ctx) {{
              for (let i = 0; i < {outputs}; i++) ctx.append('o', {{ meta: {{ i }} }});
            }} }};"
        ))
        .await;
        let inputs = inputs(&memory, calls.iter().sum::<usize>() as u64);
        let replies = soon(replies(&isolate, inputs)).await.unwrap();
        let done: Vec<usize> = replies.iter().map(|reply| reply.done).collect();
        assert_eq!(done, calls, "{outputs} outputs a call");
    }
}

/// Regression test: the outputs of one group went to the store as one batch, beyond the store's
/// limits.
#[tokio::test]
async fn a_group_ends_where_a_commit_is_full() {
    let cases = [
        ("for (let i = 0; i < 50; i++) ctx.append('o', { meta: { i } });", 50),
        ("ctx.append('o', { meta: { text: 'x'.repeat(60_000) } });", 1),
        ("for (let i = 0; i < 3; i++) ctx.append('o', { body: 'x'.repeat(100_000) });", 3),
    ];
    for (body, outputs) in cases {
        let (isolate, memory) = handler(&format!(
            "export default {{ topics: 'in', state: 0, run(frame, ctx) {{ ctx.state++; {body} }} }};"
        ))
        .await;
        let replies = soon(replies(&isolate, inputs(&memory, 512))).await.unwrap();
        assert!(replies.len() > 1, "{body}");
        assert_eq!(replies.iter().map(|reply| reply.done).sum::<usize>(), 512, "{body}");
        let mut done = 0;
        for reply in &replies {
            assert_eq!(reply.failure, None, "{body}");
            done += reply.done;
            assert_eq!(state(reply), json!(done), "{body}");
            assert_eq!(reply.outputs.len(), reply.done * outputs, "{body}");
            let meta: usize = reply.outputs.iter().map(|frame| frame.meta.as_bytes().len()).sum();
            let bodies: usize = reply.outputs.iter().map(|frame| super::body(frame).len()).sum();
            assert!(reply.outputs.len() < xs_engine::limits::BATCH_RECORDS_MAX, "{body}");
            assert!(meta < xs_engine::limits::BATCH_BYTES_MAX, "{body}: {meta}");
            assert!(bodies < xs_engine::limits::BATCH_BODIES_BYTES_MAX, "{body}: {bodies}");
        }
    }
    // The output of one call is bounded too, and a state that is too large is its call's error.
    for (body, want) in [
        (
            "for (let i = 0; i < 40; i++) ctx.append('o', { meta: { t: 'x'.repeat(60_000) } });",
            "bytes of meta",
        ),
        ("ctx.state = 'x'.repeat(2e6);", "over the limit"),
    ] {
        let (isolate, memory) =
            handler(&format!("export default {{ topics: 'in', run(frame, ctx) {{ {body} }} }};"))
                .await;
        for _ in 0..2 {
            let failure = reply(&isolate, inputs(&memory, 1)).await.failure.unwrap();
            assert!(failure.error.message.contains(want), "{}", failure.error);
            assert!(!failure.fresh, "the isolate goes on");
        }
    }
}

#[tokio::test]
async fn values_become_frames_or_errors_that_name_the_fix() {
    let source = |value: &str| {
        format!(
            "import {{ frame }} from \"xs\"; export default {{ topics: \"in\", run: () => ({value}) }};"
        )
    };
    let good: [(&str, &str, Value, &str); 9] = [
        ("{ a: 1 }", "it.out", json!({ "a": 1 }), ""),
        ("'text'", "it.out", Value::Null, "text"),
        ("new Uint8Array([104, 105])", "it.out", Value::Null, "hi"),
        ("new DataView(new Uint8Array([0, 104, 105]).buffer, 1)", "it.out", Value::Null, "hi"),
        ("frame({ topic: 't', meta: { m: 1 }, body: 'b' })", "t", json!({ "m": 1 }), "b"),
        ("frame({ json: [1, 'x'] })", "it.out", Value::Null, "[1,\"x\"]"),
        ("[frame({ meta: { i: 1 } })]", "it.out", json!({ "i": 1 }), ""),
        ("Promise.resolve({ p: 1 })", "it.out", json!({ "p": 1 }), ""),
        ("({ toJSON: () => ({ j: 1 }) })", "it.out", json!({ "j": 1 }), ""),
    ];
    for (value, topic, want, text) in good {
        let (isolate, memory) = handler(&source(value)).await;
        let reply = reply(&isolate, inputs(&memory, 1)).await;
        let made = reply.outputs.first().unwrap_or_else(|| panic!("{value}: {reply:?}"));
        assert_eq!((made.topic.as_str(), meta(made), body(made)), (topic, want, text.as_bytes()));
    }
    for nothing in ["null", "undefined", "Promise.resolve()", "[]"] {
        let (isolate, memory) = handler(&source(nothing)).await;
        let reply = reply(&isolate, inputs(&memory, 1)).await;
        assert_eq!((reply.done, reply.outputs.len(), reply.failure), (1, 0, None), "{nothing}");
    }
    let bad = [
        ("42", "use { value: 42 }"),
        ("true", "use { value: true }"),
        ("Symbol('x')", "cannot become a frame"),
        ("10n", "cannot become a frame"),
        ("() => 1", "call it"),
        ("new Map()", "a Map cannot become a frame"),
        ("(function* () { yield { a: 1 }; })()", "has run(...) without *"),
        ("[1, 2]", "frame({ json: [...] })"),
        ("({ a: 10n })", "meta is not JSON"),
        ("frame({ topic: 'xs.a' })", "is reserved for xs"),
        ("frame({ topic: 'a b' })", "may hold only"),
        ("frame({ mata: {} })", "does not know \"mata\""),
        ("frame({ ttl: 'soon' })", "is not a ttl"),
        ("frame({ meta: { t: 'x'.repeat(70000) } })", "put large content into the body"),
        ("frame({ body: 'x'.repeat(5e6) })", "as a Blob"),
        ("({ get a() { throw new Error('getter') } })", "getter"),
        ("({ get then() { throw new Error('then') } })", "then"),
    ];
    for (value, want) in bad {
        let (isolate, memory) = handler(&source(value)).await;
        let reply = reply(&isolate, inputs(&memory, 1)).await;
        let message = reply.failure.unwrap_or_else(|| panic!("{value}")).error.message;
        assert!(message.contains(want), "{value}: {message}");
    }
}

#[tokio::test]
async fn a_state_that_json_would_change_is_refused_by_its_path() {
    for (value, want) in [
        ("new Date(0)", "state.a.b[0] is a Date"),
        ("undefined", "state.a.b[0] is undefined"),
        ("NaN", "state.a.b[0] is NaN"),
        ("1n", "state.a.b[0] is a bigint"),
        ("ctx.state", "state.a.b[0] contains itself"),
    ] {
        let (isolate, memory) = handler(&format!(
            "export default {{ topics: \"in\", state: {{}}, run(frame, ctx) {{ ctx.state.a = {{ b: [{value}] }}; }} }};"
        ))
        .await;
        let reply = reply(&isolate, inputs(&memory, 1)).await;
        let message = reply.failure.unwrap().error.message;
        assert!(message.contains(want), "{value}: {message}");
    }
}

#[tokio::test]
async fn a_state_is_not_lost_to_undefined() {
    let lost = "ctx.state = undefined;";
    let source =
        format!("export default {{ topics: 'in', state: {{}}, run(_, ctx) {{ {lost} }} }};");
    let (isolate, memory) = handler(&source).await;
    let failed = reply(&isolate, inputs(&memory, 1)).await.failure.unwrap();
    assert!(failed.error.message.contains("state is undefined"), "{}", failed.error.message);
    let migrate =
        "export default { topics: 'in', state: {}, run() {}, migrate(old) { old.n = 1; } };";
    let (isolate, _, _) = start("handlers/it.js", migrate).await.unwrap();
    let failed = isolate.migrate_state(Bytes::from_static(b"{}")).await;
    let message = failed.expect_err("nothing was returned").message;
    assert!(message.contains("state is undefined"), "{message}");
}

#[tokio::test]
async fn saved_state_comes_back_and_the_initial_one_is_a_copy() {
    let source = r#"const initial = { n: 0 };
        export default { topics: "in", state: initial,
          run(frame, ctx) { ctx.state.n++; return { n: ctx.state.n, initial: initial.n }; } };"#;
    let (isolate, _, memory) = start("handlers/it.js", source).await.unwrap();
    isolate.load_state(Some(Bytes::from_static(b"{\"n\":41}"))).await.unwrap();
    let reply = reply(&isolate, inputs(&memory, 1)).await;
    assert_eq!(meta(&reply.outputs[0]), json!({ "n": 42, "initial": 0 }));
    let broken = isolate.load_state(Some(Bytes::from_static(b"{"))).await;
    assert!(broken.is_err());
}

#[tokio::test]
async fn a_body_that_is_not_json_is_named() {
    let (isolate, memory) =
        handler("export default { topics: 'in', run: async (frame) => await frame.json() };").await;
    for (body, want) in [("{\"a\":", "is not JSON: "), ("", "is not JSON: it is empty")] {
        let frame = memory.add("in", &json!({}), body);
        let id = frame.id().to_string();
        let reply = reply(&isolate, vec![Input { frame, body: None, attempt: 1 }]).await;
        let message = reply.failure.unwrap().error.message;
        assert!(message.contains(&format!("the body of in {id} {want}")), "{message}");
        isolate.load_state(None).await.unwrap();
    }
}

#[tokio::test]
async fn frames_show_all_they_have() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", async run(frame, ctx) {
            const { id, offset, topic, ttl, hash, meta, cause, time } = frame;
            return { same: frame.meta === meta, offset, topic, ttl, hashed: hash !== null, meta, cause,
              time: time.getTime(), text: await frame.text(), json: await frame.json(),
              bytes: (await frame.bytes()).length, streamed: await new Response(frame.stream()).text(),
              attempt: ctx.attempt, name: ctx.name, config: ctx.config };
          } };"#,
    )
    .await;
    let frame = memory.add("in", &json!({ "\u{e4}": "\u{1F600}", "q": "\"" }), "{\"b\":1}");
    let next = memory.add("in", &json!({ "after": true }), "2");
    let inputs = vec![
        Input { frame: frame.clone(), body: None, attempt: 3 },
        Input { frame: next, body: Some(Bytes::from_static(b"2")), attempt: 1 },
    ];
    let replies = replies(&isolate, inputs).await.unwrap();
    let outputs: Vec<_> = replies.iter().flat_map(|reply| &reply.outputs).map(meta).collect();
    let first = &outputs[0];
    assert_eq!(first["meta"], json!({ "\u{e4}": "\u{1F600}", "q": "\"" }));
    assert_eq!((&first["same"], &first["text"]), (&json!(true), &json!("{\"b\":1}")));
    assert_eq!((&first["json"], &first["bytes"]), (&json!({ "b": 1 }), &json!(7)));
    assert_eq!(first["streamed"], json!("{\"b\":1}"));
    assert_eq!(first["time"], json!(frame.id().time_ms()));
    assert_eq!((&first["attempt"], &first["ttl"]), (&json!(3), &json!("forever")));
    assert_eq!((&first["name"], &first["config"]), (&json!("it"), &json!({})));
    assert_eq!(outputs[1]["meta"], json!({ "after": true }));
}

#[tokio::test]
async fn retry_and_park_are_told_apart() {
    let (isolate, memory) = handler(
        r#"import { Retry, Park } from "xs";
        export default { topics: "in", async run(frame) {
          if (frame.meta.n === 0) throw new Retry("later", { after: "2s" });
          if (frame.meta.n === 1) throw new Park("never", { cause: new Error("why") });
          throw "plain";
        } };"#,
    )
    .await;
    let mut verdicts = Vec::new();
    for n in 0..3 {
        let reply = reply(&isolate, vec![input(&memory, &json!({ "n": n }))]).await;
        let failure = reply.failure.unwrap();
        verdicts.push((failure.verdict, failure.error.message));
    }
    assert_eq!(verdicts[0].0, Verdict::Retry { after_ms: Some(2000) });
    assert_eq!(verdicts[1].0, Verdict::Park);
    assert_eq!(verdicts[1].1, "Park: never (cause: Error: why)");
    assert_eq!(verdicts[2].0, Verdict::Policy);
    assert!(verdicts[2].1.contains("threw \"plain\""), "{}", verdicts[2].1);
}

/// The verdict that a module asks for counts, whatever its cause is.
#[tokio::test]
async fn a_cause_that_cannot_be_written_changes_no_verdict() {
    let (isolate, memory) = handler(
        r#"import { Retry, Park } from "xs";
        const loop = {}; loop.loop = loop;
        const causes = [{ n: 1n }, loop, { get message() { throw 1; } }, { message: "m", name: Symbol("n") }];
        export default { topics: "in", async run({ meta: { n } }) {
          if (n < causes.length) throw new Park("never", { cause: causes[n] });
          if (n === causes.length) throw new Retry("later", { after: "2s", cause: { n: 1n } });
          if (n === causes.length + 1) throw Object.defineProperty(new Park("x"), "cause", { get() { throw 1; } });
          throw { n: 1n };
        } };"#,
    )
    .await;
    let mut verdicts = Vec::new();
    for n in 0..7 {
        let reply = reply(&isolate, vec![input(&memory, &json!({ "n": n }))]).await;
        let failure = reply.failure.unwrap();
        verdicts.push((failure.verdict, failure.error.message));
    }
    let parked = (Verdict::Park, "Park: never (cause: a value that cannot be shown)".to_owned());
    assert_eq!(verdicts[..4], vec![parked; 4]);
    let later = "Retry: later (cause: a value that cannot be shown)";
    assert_eq!(verdicts[4], (Verdict::Retry { after_ms: Some(2000) }, later.to_owned()));
    assert_eq!(verdicts[5], (Verdict::Park, "Park: x".to_owned()));
    assert_eq!(verdicts[6].0, Verdict::Policy);
    assert!(verdicts[6].1.contains("cannot be shown"), "{}", verdicts[6].1);
}

#[tokio::test]
async fn ticks_run_without_a_frame() {
    let (isolate, _, memory) = start(
        "handlers/it.js",
        r#"export default { topics: "in", pulse: "1s", state: 0, run() {},
          async tick(ctx) { await new Promise((done) => setTimeout(done, 5)); ctx.state++; return { n: ctx.state }; } };"#,
    )
    .await
    .unwrap();
    isolate.load_state(None).await.unwrap();
    let mut handling = isolate.tick().unwrap();
    let reply = soon(handling.next()).await.unwrap().unwrap();
    assert_eq!((reply.done, state(&reply)), (0, json!(1)));
    assert_eq!(meta(&reply.outputs[0]), json!({ "n": 1 }));
    assert_eq!(memory.topic("it.out").len(), 0);
}

#[tokio::test]
async fn a_call_that_takes_too_long_fails_alone() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", timeout: 50, async run(frame) {
          if (frame.meta.n === 1) await new Promise((done) => setTimeout(done, 60_000));
        } };"#,
    )
    .await;
    let replies = soon(replies(&isolate, inputs(&memory, 3))).await.unwrap();
    let failure = replies.last().unwrap().failure.clone().unwrap();
    assert_eq!((failure.error.kind, failure.blame), (FailureKind::Timeout, Blame::Input(1)));
    assert!(failure.fresh);
    assert_eq!(replies[0].done, 1);
}

/// A timer that outlived its wait would end a call of a later batch, which has waited only a
/// moment.
#[tokio::test]
async fn the_clock_of_a_wait_ends_with_it() {
    let timeout = Duration::from_secs(5);
    let (isolate, memory) = handler(&format!(
        "export default {{ topics: 'in', timeout: {}, async run() {{ \
           await new Promise((done) => setTimeout(done, 100)); }} }};",
        timeout.as_millis()
    ))
    .await;
    let began = Instant::now();
    while began.elapsed() < timeout + Duration::from_secs(1) {
        let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
        assert_eq!((reply.done, reply.failure), (1, None), "after {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn ctx_reads_the_store() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", async run(frame, ctx) {
          const read = [];
          for await (const other of ctx.read({ topics: ["a", "b"], limit: 300 })) read.push(other.meta.n);
          const topics = [];
          for await (const { topic, count } of ctx.topics("a,b")) topics.push([topic, count]);
          const latest = [];
          for await (const other of ctx.lastPerTopic("*")) latest.push(other.topic);
          const hash = await ctx.blob.put("blob");
          const called = [];
          for await (const result of ctx.call("echo", { args: { x: 1 } })) called.push(result.meta);
          let missing = null;
          try { for await (const _ of ctx.call("none")); } catch (error) { missing = error.message; }
          for await (const _ of ctx.read({ follow: true })) break;
          return { read: read.length, topics, latest, called, missing,
            blob: new TextDecoder().decode(await ctx.blob.get(hash)),
            got: (await ctx.get(frame.id)).id === frame.id, none: (await ctx.last("nope")) === undefined };
        } };"#,
    )
    .await;
    for n in 0..310 {
        memory.add(if n % 2 == 0 { "a" } else { "b" }, &json!({ "n": n }), "");
    }
    let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
    let seen = meta(reply.outputs.first().unwrap_or_else(|| panic!("{reply:?}")));
    assert_eq!((&seen["read"], &seen["topics"]), (&json!(300), &json!([["a", 155], ["b", 155]])));
    assert_eq!((&seen["got"], &seen["none"]), (&json!(true), &json!(true)));
    assert_eq!((&seen["blob"], &seen["called"]), (&json!("blob"), &json!([{ "x": 1 }])));
    assert_eq!(seen["missing"], json!("no such command"));
    assert_eq!(seen["latest"], json!(["a", "b", "in"]));
}

#[tokio::test]
async fn the_state_of_a_million_frames_stays_right() {
    let (isolate, memory) = handler(
        "export default { topics: \"in\", state: { n: 0 }, run(frame, ctx) { ctx.state.n++; } };",
    )
    .await;
    let batch = inputs(&memory, 512);
    let (rounds, started) = (600, Instant::now());
    let mut last = json!(null);
    for _ in 0..rounds {
        let reply = reply(&isolate, batch.clone()).await;
        assert_eq!(reply.done, 512);
        last = state(&reply);
    }
    let rate = f64::from(rounds) * 512.0 / started.elapsed().as_secs_f64();
    println!("a counting handler: {rate:.0} frames/s");
    assert_eq!(last, json!({ "n": 512 * rounds }));
}

/// The work may begin in `then`.
#[tokio::test]
async fn what_has_a_then_is_asked_once() {
    let (isolate, memory) = handler(
        "export default { topics: 'in', run() { let asked = 0; \
           return { then(done) { asked++; setTimeout(() => done({ asked }), 5); } }; } };",
    )
    .await;
    let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
    assert_eq!(meta(&reply.outputs[0]), json!({ "asked": 1 }));
}
