//! What runs leave behind: it ends with them, and fails nothing else.

use serde_json::json;

use super::commands::call;
use super::connections::Server;
use super::reach::{echo_server, generate};
use super::web::eval_with;
use super::*;

/// Enough garbage for the engine to collect it several times.
const GARBAGE: &str = "for (let n = 0, some = []; n < 80_000; n++) some.push({ n, some: [n] });";

async fn command(fields: &str, port: u16, body: &str) -> (Isolate, Arc<Memory>) {
    let body = body.replace("PORT", &port.to_string());
    let source = format!(
        "let n = 0; export default {{ concurrency: 400, permissions: {{ net: ['127.0.0.1'] }}, {fields} \
           async run(call, ctx) {{ {body} }} }};"
    );
    // Hundreds of concurrent requests may need more memory than a module has by default.
    let roomy = |spec: &mut IsolateSpec| spec.limits.heap_bytes = 256 << 20;
    let (isolate, _, memory) = start_with("commands/it.js", &source, roomy).await.unwrap();
    (isolate, memory)
}

/// Code that keeps only the body of an answer, or its reader, holds no reference to the answer.
#[tokio::test]
async fn a_body_that_is_read_ends_with_its_call() {
    for read in [
        "for await (const bytes of body) n += bytes.length;",
        "const reader = body.getReader(); while (!(await reader.read()).done) n++;",
    ] {
        let server = Server::start(0);
        let body = format!(
            "const {{ body }} = await fetch('http://127.0.0.1:PORT/' + call.args.path); {read} return {{ n }};"
        );
        let (isolate, memory) = command("timeout: '1m',", server.port, &body).await;
        let begun = (0..300).map(|_| {
            let one = call(&memory, &json!({ "path": "stream" }));
            let cancel = one.cancel.clone();
            (isolate.call(one), cancel)
        });
        let (calls, cancels): (Vec<_>, Vec<_>) = begun.unzip();
        let cut = async {
            // A module may have this many connections; the other calls wait for one.
            server.all_begun(64).await;
            cancels.iter().for_each(tokio_util::sync::CancellationToken::cancel);
        };
        let (ended, ()) = tokio::join!(soon(futures::future::join_all(calls)), cut);
        assert!(ended.iter().all(Result::is_err));
        server.all_ended(64).await;
        for _ in 0..3 {
            soon(isolate.call(call(&memory, &json!({ "path": "x" })))).await.unwrap();
        }
    }
}

/// deno_fetch's own means to end a body is garbage once there is an answer.
#[tokio::test]
async fn an_abort_reaches_a_body_after_garbage_was_collected() {
    let server = Server::start(0);
    for (signal, name) in [
        ("AbortSignal.timeout(ms)", "TimeoutError"),
        ("AbortSignal.any([AbortSignal.timeout(ms), ctx.signal])", "TimeoutError"),
        (
            "(() => { const gone = new AbortController(); setTimeout(() => gone.abort(), ms); return gone.signal; })()",
            "AbortError",
        ),
    ] {
        for asked in [
            format!("'http://127.0.0.1:PORT/stream', {{ signal: {signal} }}"),
            format!("new Request('http://127.0.0.1:PORT/stream', {{ signal: {signal} }})"),
        ] {
            // A busy machine may take longer to answer than the timeout: then it tries again with
            // more time.
            let read = format!(
                "for (let ms = 500;; ms *= 4) {{ let body; \
                 try {{ ({{ body }} = await fetch({asked})); }} catch {{ continue; }} {GARBAGE} \
                 const text = new Response(body).text(); \
                 return {{ name: await text.catch((error) => error.name) }}; }}"
            );
            let seen = server.eval(&read).await;
            assert_eq!(seen, json!({ "name": name }), "{asked}");
        }
    }
    server.all_ended(6).await;
}

/// A response that is read under `ctx.signal`, in a call that times out.
#[tokio::test]
async fn the_signal_of_a_call_ends_its_answers() {
    let server = Server::start(0);
    let body = format!(
        "const answer = await fetch('http://127.0.0.1:PORT/stream', {{ signal: ctx.signal }}); {GARBAGE} \
         await answer.text();"
    );
    let (isolate, memory) = command("timeout: 1000,", server.port, &body).await;
    for _ in 0..3 {
        soon(isolate.call(call(&memory, &json!({})))).await.unwrap_err();
        // On a busy machine a call may be cut off before its request arrives.
        server.all_ended(1).await;
    }
}

/// However many were cut off while they listened: 64 of each kind may be open.
#[tokio::test]
async fn sockets_and_sources_end_with_a_call_that_is_cut_off() {
    let (server, echo) = (Server::start(0), echo_server().to_string());
    let listen = [
        "const socket = new WebSocket('ws://127.0.0.1:ECHO/'); \
         await new Promise((done) => socket.onopen = done); if (call.args.stays) socket.onmessage = () => {};",
        "const socket = new EventSource('http://127.0.0.1:PORT/stream'); \
         await new Promise((done, failed) => { socket.onopen = done; socket.onerror = failed; });",
    ];
    for body in listen {
        let body = format!(
            "{body} if (call.args.stays) await new Promise(() => {{}}); socket.close(); return {{}};"
        );
        let body = body.replace("ECHO", &echo);
        let (isolate, memory) = command("timeout: '20s',", server.port, &body).await;
        for _ in 0..3 {
            let cut = (0..30).map(|_| {
                let one = call(&memory, &json!({ "stays": true }));
                let cancel = one.cancel.clone();
                (isolate.call(one), cancel)
            });
            let (calls, cancels): (Vec<_>, Vec<_>) = cut.unzip();
            let ended = async {
                // They are open once another one has been opened and closed after them.
                soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
                cancels.iter().for_each(tokio_util::sync::CancellationToken::cancel);
            };
            let (calls, ()) = tokio::join!(soon(futures::future::join_all(calls)), ended);
            assert!(calls.iter().all(Result::is_err));
        }
        soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    }
    server.all_ended(1).await;
}

/// An interval that a call has set runs until the call is cut off, and what it appends then causes
/// no failure.
#[tokio::test]
async fn timers_end_with_a_call_that_is_cut_off() {
    let body = "if (call.args.beats) { \
           setInterval(() => { n++; void ctx.append('beat', {}); }, 2); \
           setTimeout(() => void ctx.append('late', {}), 60_000); \
           if (call.args.stays) await new Promise(() => {}); return {}; } \
         while (await ctx.last(call.args.until) === undefined) await new Promise((done) => setTimeout(done, 1)); \
         let more; do { const before = n; await new Promise((done) => setTimeout(done, 60)); more = n - before; } \
         while (call.args.quiet && more > 0); return { more };";
    let source = format!("let n = 0; export default {{ async run(call, ctx) {{ {body} }} }};");
    // After a call is cut off, its code and its timers have this long.
    let short = |spec: &mut IsolateSpec| spec.limits.stop = Duration::from_millis(50);
    let (isolate, _, memory) = start_with("commands/it.js", &source, short).await.unwrap();
    let cut = call(&memory, &json!({ "beats": true, "stays": true }));
    let cancel = cut.cancel.clone();
    let steps = async {
        memory.wait("beat", 3).await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(soon(isolate.call(cut)), steps);
    ended.unwrap_err();
    memory.add("go", &json!({}), "");
    soon(isolate.call(call(&memory, &json!({ "until": "go", "quiet": true })))).await.unwrap();
    assert_eq!(stored_meta(&memory.topic("it.recv")[0]), json!({ "more": 0 }));
    // A call that returns leaves its interval running: what that appends is refused, without
    // further effect.
    soon(isolate.call(call(&memory, &json!({ "beats": true })))).await.unwrap();
    soon(isolate.call(call(&memory, &json!({ "until": "go" })))).await.unwrap();
    let more = stored_meta(memory.topic("it.recv").last().unwrap())["more"].as_u64().unwrap();
    assert!(more > 0);
}

/// Regression test: between the moment when a call is cut off and that when its code hears of it, a
/// timer fired, and what it appended failed the module. With many calls, some timer is due then.
#[tokio::test]
async fn a_timer_that_is_due_when_its_call_is_cut_off_fails_nothing() {
    let body = "if (call.args.stays) { \
           setInterval(() => { void ctx.append('beat', {}); void ctx.remove('0000000000000000000000001'); }, 1); \
           await new Promise(() => {}); } \
         return {};";
    let fields = "permissions: { remove: ['beat'] }, timeout: '5m', concurrency: 200,";
    let source = format!("export default {{ {fields} async run(call, ctx) {{ {body} }} }};");
    let (isolate, _, memory) = start_with("commands/it.js", &source, |_| {}).await.unwrap();
    for _ in 0..5 {
        let begun = (0..40).map(|_| {
            let one = call(&memory, &json!({ "stays": true }));
            let cancel = one.cancel.clone();
            (isolate.call(one), cancel)
        });
        let (calls, cancels): (Vec<_>, Vec<_>) = begun.unzip();
        let beats = memory.topic("beat").len();
        let cut = async {
            memory.wait("beat", beats + 200).await;
            cancels.iter().for_each(tokio_util::sync::CancellationToken::cancel);
        };
        let (ended, ()) = tokio::join!(soon(futures::future::join_all(calls)), cut);
        assert!(ended.iter().all(Result::is_err));
        soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    }
}

/// Regression test: the interval of a call that had returned stopped when a concurrent call was cut
/// off.
#[tokio::test]
async fn a_timer_does_not_end_with_the_call_of_another() {
    let body = "if (call.args.stays) { setInterval(() => cut++, 2); await new Promise(() => {}); } \
         if (call.args.beats) { await null; await ctx.last('none'); setInterval(() => n++, 2); \
           const gone = new Promise((done) => go = done); \
           await new Promise((done) => setTimeout(done, 1)); await ctx.append('set', {}); \
           await gone; return {}; } \
         if (call.args.go) return void go(); \
         const before = { n, cut }; await new Promise((done) => setTimeout(done, 100)); \
         return { beats: n > before.n, cut: cut > before.cut };";
    let source = format!(
        "let n = 0, cut = 0, go; export default {{ timeout: '5m', async run(call, ctx) {{ {body} }} }};"
    );
    // After a call is cut off, its code has this long.
    let short = |spec: &mut IsolateSpec| spec.limits.stop = Duration::from_millis(50);
    let (isolate, _, memory) = start_with("commands/it.js", &source, short).await.unwrap();
    let cut = call(&memory, &json!({ "stays": true }));
    let cancel = cut.cancel.clone();
    let (cut, beats) = (isolate.call(cut), isolate.call(call(&memory, &json!({ "beats": true }))));
    let steps = async {
        memory.wait("set", 1).await;
        cancel.cancel();
        isolate.call(call(&memory, &json!({ "go": true }))).await.unwrap();
    };
    let (cut, beats, ()) = soon(async { tokio::join!(cut, beats, steps) }).await;
    cut.unwrap_err();
    beats.unwrap();
    let quiet = async {
        loop {
            let (seen, before) = (call(&memory, &json!({})), memory.topic("it.recv").len());
            isolate.call(seen).await.unwrap();
            let seen = stored_meta(&memory.topic("it.recv")[before]);
            if seen["cut"] == false {
                return seen;
            }
        }
    };
    assert_eq!(soon(quiet).await, json!({ "beats": true, "cut": false }));
}

/// Like any signal that nothing waits for.
#[tokio::test]
async fn what_a_cut_call_let_go_of_is_nobodys_failure() {
    let server = Server::start(0);
    let body = "if (call.args.stays) { \
           void fetch('http://127.0.0.1:PORT/never', { signal: ctx.signal }); \
           (async () => { for (;;) { await ctx.append('beat', {}); } })(); await new Promise(() => {}); } \
         await new Promise((done) => setTimeout(done, 30)); return {};";
    let (isolate, memory) = command("", server.port, body).await;
    let cut = call(&memory, &json!({ "stays": true }));
    let cancel = cut.cancel.clone();
    let other = isolate.call(call(&memory, &json!({})));
    let steps = async {
        memory.wait("beat", 3).await;
        cancel.cancel();
    };
    let (ended, other, ()) = tokio::join!(soon(isolate.call(cut)), soon(other), steps);
    ended.unwrap_err();
    other.unwrap();
    soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
}

/// A module reads one answer after another under a long-lived signal.
#[tokio::test]
async fn a_signal_keeps_no_answer() {
    let server = Server::start(0);
    let named = format!("permissions: {{ net: ['127.0.0.1:{}'] }}, timeout: '1m',", server.port);
    let body = "const { signal } = ctx; let ok = 0; \
         for (let n = 0; n < 300; n++) ok += (await fetch('http://127.0.0.1:PORT/stream', { signal })).ok; \
         return { ok };";
    let body = body.replace("PORT", &server.port.to_string());
    assert_eq!(eval_with(&body, &named, |_| {}).await, json!({ "ok": 300 }));
}

/// Regression test: each short call left something behind for as long as the long one was open.
#[tokio::test]
async fn short_calls_leave_nothing_behind_with_a_long_one() {
    let source = "let go; const gone = new Promise((done) => (go = done));
        export default { timeout: '10m', async run(call) {
          if (call.args.stays) await gone;
          if (call.args.go) return void go();
          await new Promise((done) => setTimeout(done));
          clearTimeout(setTimeout(() => {}, 60_000));
        } };";
    let small = |spec: &mut IsolateSpec| spec.limits.heap_bytes = 8 * 1024 * 1024;
    let (isolate, _, memory) = start_with("commands/it.js", source, small).await.unwrap();
    let long = isolate.call(call(&memory, &json!({ "stays": true })));
    let short = async {
        for _ in 0..400 {
            let calls = (0..50).map(|_| isolate.call(call(&memory, &json!({}))));
            let ended = futures::future::join_all(calls).await;
            assert!(ended.iter().all(Result::is_ok), "{:?}", ended[0]);
        }
        isolate.call(call(&memory, &json!({ "go": true }))).await.unwrap();
    };
    let (long, ()) = soon(async { tokio::join!(long, short) }).await;
    long.unwrap();
}

/// Regression test: a stop waited 5 s for something that could never end.
#[tokio::test]
async fn what_waits_for_nothing_ends_with_a_stop() {
    const COMMAND: &str = "commands/it.js";
    let never = "await new Promise(() => {});";
    for (entry, run, is_cut) in [
        (COMMAND, format!("async *run() {{ yield {{}}; {never} }}"), false),
        (COMMAND, format!("async *run() {{ yield {{}}; {never} }}"), true),
        (
            COMMAND,
            format!("async *run() {{ try {{ yield {{}}; {never} }} finally {{ {never} }} }}"),
            true,
        ),
        (
            COMMAND,
            format!(
                "async *run(_, ctx) {{ try {{ yield {{}}; \
                   await new Promise((done) => ctx.signal.addEventListener('abort', done)); }} \
                 finally {{ await new Promise((done) => setTimeout(done, 100)); {never} }} }}"
            ),
            false,
        ),
        ("generators/it.js", format!("async *run() {{ yield {{}}; {never} }}"), false),
    ] {
        let source = format!("export default {{ {run} }};");
        // Longer than the patience of this test.
        let wait = |spec: &mut IsolateSpec| spec.limits.stop = 10 * PATIENCE;
        let (isolate, _, memory) = start_with(entry, &source, wait).await.unwrap();
        let asked = call(&memory, &json!({}));
        let cancel = asked.cancel.clone();
        let begun = async {
            memory.wait("it.recv", 1).await;
            if is_cut {
                cancel.cancel();
                std::future::pending().await
            }
        };
        tokio::select! {
            ended = isolate.call(asked), if entry == COMMAND => drop(ended.unwrap_err()),
            ended = isolate.run_generator(), if entry != COMMAND => panic!("{ended:?}"),
            () = soon(begun) => {}
        }
        soon(isolate.stop()).await.unwrap();
    }
}

/// A module may have at most 256 of each, and fewer of some.
#[tokio::test]
async fn a_loop_that_is_left_closes_what_it_reads() {
    let (server, dir) = (Server::start(0), TempDir::new().unwrap());
    // The next tail continues after the last line that was taken.
    std::fs::write(dir.path().join("log"), "line\n".repeat(300)).unwrap();
    let fields = format!(
        "permissions: {{ net: ['127.0.0.1'], read: ['{}'], run: ['yes'] }},",
        dir.path().display()
    );
    for source in [
        "(await fetch('http://127.0.0.1:PORT/stream')).body",
        "lines((await fetch('http://127.0.0.1:PORT/stream')).body)",
        "sse(await fetch('http://127.0.0.1:PORT/stream'))",
        "lines(ctx.spawn('yes').stdout)",
        "ctx.read({ topics: 'a', follow: true })",
        "ctx.tail('DIR/log', { first: 'start' })",
        "ctx.every('1ms')",
        "ctx.blob.stream((await ctx.last('b')).hash)",
    ] {
        let body = format!(
            "const {{ lines, sse }} = await import('xs'); let n = 0; \
             await ctx.append('a', {{}}); await ctx.append('b', {{ body: 'of some length' }}); \
             for (let times = 0; times < 300; times++) for await (const _ of {source}) {{ n++; break; }} yield {{ n }};"
        );
        let body = body.replace("PORT", &server.port.to_string());
        let body = body.replace("DIR", &dir.path().display().to_string());
        let run = |spec: &mut IsolateSpec| spec.allow.run = true;
        assert_eq!(generate(&body, &fields, run).await, [json!({ "n": 300 })], "{source}");
    }
    server.all_ended(900).await;
}
