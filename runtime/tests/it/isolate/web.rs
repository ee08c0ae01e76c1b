use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use serde_json::json;
use xs_runtime::isolate::{FailureKind, LogLevel};

use super::*;

/// Runs the body of an async function in a module and returns its result.
pub(crate) async fn eval(body: &str) -> Value {
    eval_with(body, "", |_| {}).await
}

pub(crate) async fn eval_with(
    body: &str,
    fields: &str,
    change: impl FnOnce(&mut IsolateSpec),
) -> Value {
    let source = format!(
        "export default {{ topics: \"in\", {fields} async run(frame, ctx) {{ {body} }} }};"
    );
    let (isolate, _, memory) = start_with("handlers/it.js", &source, change).await.unwrap();
    isolate.load_state(None).await.unwrap();
    let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
    match reply.outputs.first() {
        Some(made) => meta(made),
        None => json!({ "failed": reply.failure.unwrap().error.message }),
    }
}

#[tokio::test]
async fn a_variable_that_was_not_asked_for_is_told_once() {
    let body = "void ctx.env.TOKEN; void ctx.env.TOKEN; void ctx.env.UNSET; void ctx.env.toJSON;
        return { env: ctx.env, keys: Object.keys(ctx.env) }";
    let source = format!(
        "export default {{ topics: 'in', permissions: {{ env: ['UNSET'] }},
           async run(frame, ctx) {{ {body} }} }};"
    );
    let (isolate, _, memory) = start("handlers/it.js", &source).await.unwrap();
    isolate.load_state(None).await.unwrap();
    let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
    assert_eq!(meta(&reply.outputs[0]), json!({ "env": {}, "keys": [] }));
    let told = memory.logs();
    let lines: Vec<_> = told.iter().map(|(_, line)| line.as_str()).collect();
    let line = "ctx.env.TOKEN was not asked for; \
                add permissions: { env: [\"TOKEN\"] } to the definition";
    assert_eq!(lines, [line]);
}

/// Like any uncaught error: with its message and its line.
#[tokio::test]
async fn what_a_listener_throws_is_told() {
    for (listen, fire) in [
        (
            "const own = new EventTarget(); own.addEventListener('x',",
            "own.dispatchEvent(new Event('x'));",
        ),
        (
            "const { port1, port2 } = new MessageChannel(); port1.onmessage = (",
            "port2.postMessage(1);",
        ),
    ] {
        let source = format!(
            "export default {{ async *run(ctx) {{\n{listen} () => {{\nthrow new Error('mine'); }});\n\
               {fire}\nawait new Promise((done) => setTimeout(done, 60_000)); }} }};"
        );
        let (isolate, _, _) = start("generators/it.js", &source).await.unwrap();
        let error = soon(isolate.run_generator()).await.unwrap_err();
        assert_eq!((error.message.as_str(), error.line), ("Error: mine", Some(3)), "{listen}");
    }
}

#[tokio::test]
async fn globals_are_the_committed_list() {
    let seen = eval("return { keys: Reflect.ownKeys(globalThis).map(String) }").await;
    let mut seen: Vec<&str> =
        seen["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    seen.sort_unstable();
    let mut list: Vec<&str> = include_str!("../../../js/globals.txt").lines().collect();
    list.sort_unstable();
    assert_eq!(seen, list);
    for gone in
        ["Deno", "gc", "ShadowRealm", "__bootstrap", "Atomics", "WebAssembly", "SharedArrayBuffer"]
    {
        let probe = format!(
            "return {{ there: typeof {gone}, made: new Function('return typeof {gone}')() }}"
        );
        assert_eq!(
            eval(&probe).await,
            json!({ "there": "undefined", "made": "undefined" }),
            "{gone}"
        );
    }
}

/// The engine reads `console` while it restores a snapshot, and crashes on an accessor.
#[tokio::test]
async fn the_console_is_a_plain_value() {
    let seen = eval(
        "const { value, get } = Object.getOwnPropertyDescriptor(globalThis, 'console'); \
         return { value: typeof value, get: typeof get };",
    )
    .await;
    assert_eq!(seen, json!({ "value": "object", "get": "undefined" }));
}

#[tokio::test]
async fn the_web_platform_works_without_imports() {
    let cases = [
        ("return { v: new URL('../b?q=1', 'https://x.y/a/c').href }", json!("https://x.y/b?q=1")),
        ("return { v: new URLSearchParams({ a: '1 2' }).toString() }", json!("a=1+2")),
        (
            "return { v: new TextDecoder().decode(new TextEncoder().encode('\\u00e4')) }",
            json!("\u{e4}"),
        ),
        ("return { v: atob(btoa('xs')) }", json!("xs")),
        ("return { v: structuredClone(new Map([['a', 1]])).get('a') }", json!(1)),
        ("return { v: await new Blob(['a', 'b']).text() }", json!("ab")),
        ("return { v: await new Response('body').text() }", json!("body")),
        ("return { v: new Headers({ A: 'b' }).get('a') }", json!("b")),
        ("return { v: new Request('https://x.y', { method: 'POST' }).method }", json!("POST")),
        ("return { v: typeof performance.now() }", json!("number")),
        ("return { v: /^[0-9a-f-]{36}$/.test(crypto.randomUUID()) }", json!(true)),
        ("return { v: crypto.getRandomValues(new Uint8Array(8)).some((b) => b > 0) }", json!(true)),
        ("const c = new AbortController(); c.abort(); return { v: c.signal.aborted }", json!(true)),
        ("return { v: await AbortSignal.timeout(5).aborted === false }", json!(true)),
        (
            "const s = new ReadableStream({ start(c) { c.enqueue('a'); c.enqueue('b'); c.close(); } }); \
             let v = ''; for await (const x of s) v += x; return { v }",
            json!("ab"),
        ),
        (
            "const s = new Blob(['zip']).stream().pipeThrough(new CompressionStream('gzip')) \
             .pipeThrough(new DecompressionStream('gzip')); return { v: await new Response(s).text() }",
            json!("zip"),
        ),
        ("let v = 0; queueMicrotask(() => v++); await null; return { v }", json!(1)),
        ("return { v: await new Promise((done) => setTimeout(done, 1, 'timer')) }", json!("timer")),
        ("return { v: ctx.env.TOKEN ?? null }", json!(null)),
        ("const e = new Event('x'); return { v: e.type }", json!("x")),
        (
            "const d = new DOMException('m', 'AbortError'); return { v: d.name }",
            json!("AbortError"),
        ),
        ("const f = new FormData(); f.set('a', 'b'); return { v: f.get('a') }", json!("b")),
    ];
    for (body, want) in cases {
        assert_eq!(eval(body).await, json!({ "v": want }), "{body}");
    }
    let lines = eval(
        "const { lines, sse } = await import('xs'); const v = []; \
         for await (const l of lines(new Blob(['a\\r\\nb\\n\\nc']).stream())) v.push(l); \
         for await (const e of sse(new Response('event: x\\nid: 7\\ndata: 1\\ndata: 2\\n\\n:no\\ndata: 3\\n\\n'))) v.push(e); \
         return { v }",
    )
    .await;
    let first = json!({ "event": "x", "data": "1\n2", "id": "7" });
    let second = json!({ "event": "message", "data": "3", "id": "7" });
    assert_eq!(lines["v"], json!(["a", "b", "", "c", first, second]));
}

/// The time origin is set when the module starts.
#[tokio::test]
async fn the_clock_of_performance_has_an_origin() {
    let body = "const { timeOrigin } = performance, now = performance.now(), at = Date.now(); \
        return { near: Math.abs(timeOrigin + now - at) < 60_000, json: performance.toJSON().timeOrigin === timeOrigin, \
          of: new Date(timeOrigin).getFullYear() >= 2024, same: performance.timeOrigin === timeOrigin };";
    let want = json!({ "near": true, "json": true, "of": true, "same": true });
    assert_eq!(eval(body).await, want);
    // Also if something else of it is used first.
    let body = "performance.mark('a'); return { v: typeof Performance.prototype.toJSON.call(performance).timeOrigin };";
    assert_eq!(eval(body).await, json!({ "v": "number" }));
}

/// Regression test: an error of an op for which the language has no class was caught as
/// `undefined`.
#[tokio::test]
async fn what_the_web_throws_is_a_dom_exception() {
    for (call, name) in [
        ("atob('a')", "InvalidCharacterError"),
        ("atob('ab=c')", "InvalidCharacterError"),
        ("btoa('\\u0100')", "InvalidCharacterError"),
        ("crypto.getRandomValues(new Uint8Array(65537))", "QuotaExceededError"),
        ("await crypto.subtle.digest('MD5', new Uint8Array(1))", "NotSupportedError"),
        (
            "await crypto.subtle.importKey('raw', new Uint8Array(0), { name: 'HMAC', hash: 'SHA-1' }, true, ['sign'])",
            "DataError",
        ),
    ] {
        let body = format!(
            "try {{ {call}; }} catch (error) {{ \
               return {{ name: error.name, is: error instanceof DOMException, told: error.message.length > 0 }} }}"
        );
        assert_eq!(eval(&body).await, json!({ "name": name, "is": true, "told": true }), "{call}");
    }
    let failed = eval("crypto.getRandomValues(new Uint8Array(65537))").await;
    assert_eq!(
        failed["failed"],
        "QuotaExceededError: at most 65536 random bytes can be requested at a time"
    );
}

/// Wherever the chunks of a body end.
#[tokio::test]
async fn lines_end_where_their_standard_says() {
    let seen = eval(
        "const { lines, sse } = await import('xs'); const v = []; \
         const pieces = (...texts) => new Response(new ReadableStream({ start(c) { \
           for (const text of texts) c.enqueue(new TextEncoder().encode(text)); c.close(); } })); \
         for await (const e of sse(pieces('data: a\\r', '\\ndata: b\\r\\rda', 'ta: c\\r', '\\n', '\\r', '\\ndata: d\\n\\r'))) v.push(e.data); \
         for await (const l of lines(pieces('a\\r', '\\nb\\rc', 'd', '\\n', '\\nlast').body)) v.push(l); \
         let long = 0; for await (const l of lines(pieces(...Array(2000).fill('x'.repeat(1000)), '\\n').body)) long += l.length; \
         return { v, long }",
    )
    .await;
    let v = json!(["a\nb", "c", "d", "a", "b\rcd", "", "last"]);
    assert_eq!(seen, json!({ "v": v, "long": 2_000_000 }));
}

#[tokio::test]
async fn the_console_and_the_log_go_to_the_backend() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", run(frame, ctx) {
          console.log("hi %s", "there", { a: [1] }); console.error(new Error("bad").message);
          console.debug("d"); ctx.log.warn("careful", { n: 1 }); console.log("x".repeat(20_000));
        } };"#,
    )
    .await;
    reply(&isolate, inputs(&memory, 1)).await;
    let logs = memory.logs();
    assert_eq!(logs[0], (LogLevel::Info, "hi there { a: [ 1 ] }".to_owned()));
    assert_eq!(logs[1], (LogLevel::Error, "bad".to_owned()));
    assert_eq!(logs[2], (LogLevel::Debug, "d".to_owned()));
    assert_eq!(logs[3], (LogLevel::Warn, "careful {\"n\":1}".to_owned()));
    assert_eq!(logs[4].1.len(), 10_003);
}

/// Answers each connection with one response; returns the port and the requests.
fn server(response: &'static str) -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (requests, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0_u8; 4096];
            let mut text = String::new();
            while !text.contains("\r\n\r\n") {
                let count = stream.read(&mut bytes).unwrap();
                text.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
            stream.write_all(response.as_bytes()).unwrap();
            if requests.send(text).is_err() {
                return;
            }
        }
    });
    (port, received)
}

#[tokio::test]
async fn fetch_reaches_what_was_named_and_nothing_else() {
    let (port, requests) =
        server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\nx-a: b\r\n\r\nhello");
    let fetch = format!(
        "const r = await fetch('http://127.0.0.1:{port}/p', {{ headers: {{ x: 'y' }} }}); \
         return {{ status: r.status, header: r.headers.get('x-a'), text: await r.text() }}"
    );
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }},");
    let seen = eval_with(&fetch, &named, |_| {}).await;
    assert_eq!(seen, json!({ "status": 200, "header": "b", "text": "hello" }));
    let request = requests.recv().unwrap();
    assert!(request.starts_with("GET /p HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("x: y\r\n"), "{request}");
    // The host is not named: the error has the line to add.
    let denied = eval(&fetch).await;
    let line = format!("add permissions: {{ net: [\"127.0.0.1:{port}\"] }} to the definition");
    assert!(denied["failed"].as_str().unwrap().contains(&line), "{denied}");
    assert!(requests.try_recv().is_err());
    // Private addresses need the operator's permission.
    let source = format!("export default {{ topics: \"in\", {named} run() {{}} }};");
    let refused =
        start_with("handlers/it.js", &source, |spec| spec.allow.net_private = false).await;
    let error = refused.err().unwrap();
    assert_eq!(error.kind, FailureKind::Permission);
    assert!(error.message.contains("--allow-net-private"), "{error}");
    // Neither a name that resolves to one nor an equivalent address is a way around that.
    for host in ["localhost.localdomain", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"] {
        let source = format!(
            "export default {{ topics: \"in\", permissions: {{ net: [\"{host}:{port}\"] }}, \
             async run() {{ await fetch('http://{host}:{port}/'); }} }};"
        );
        let shut = |spec: &mut IsolateSpec| spec.allow.net_private = false;
        if let Ok((isolate, _, memory)) = start_with("handlers/it.js", &source, shut).await {
            isolate.load_state(None).await.unwrap();
            let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
            assert!(reply.failure.is_some(), "{host}");
        }
        assert!(requests.try_recv().is_err(), "{host}");
    }
    // Nor is asking for every host, where that is allowed.
    let source = format!(
        "export default {{ topics: \"in\", permissions: {{ net: [\"*\"] }}, \
         async run() {{ await fetch('http://[::ffff:127.0.0.1]:{port}/'); }} }};"
    );
    let any = |spec: &mut IsolateSpec| {
        spec.allow = Allow { net_any: true, ..Allow::default() };
    };
    let (isolate, _, memory) = start_with("handlers/it.js", &source, any).await.unwrap();
    isolate.load_state(None).await.unwrap();
    assert!(soon(reply(&isolate, inputs(&memory, 1))).await.failure.is_some());
    assert!(requests.try_recv().is_err());
}

/// It runs before the permissions of the module are known.
#[tokio::test]
async fn the_top_level_of_a_module_reaches_nothing() {
    let (port, requests) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let definition = format!(
        "export default {{ topics: 'in', permissions: {{ net: ['127.0.0.1:{port}'] }}, \
           async run() {{ return {{ seen: await seen }}; }} }};"
    );
    let source = format!("await fetch('http://127.0.0.1:{port}/'); {definition}");
    let error = start("handlers/it.js", &source).await.err().unwrap();
    assert_eq!(error.kind, FailureKind::Permission);
    assert!(error.message.contains("top level of a module; ask for it in run"), "{error}");
    for (line, said) in [
        ("const seen = (await fetch('data:,x')).text();", "x"),
        (
            "const socket = new WebSocket('ws://127.0.0.1:PORT/'); \
             const seen = new Promise((done) => socket.onerror = (e) => done(e.message));",
            "network access to 127.0.0.1:PORT is not allowed at the top level of a module; \
             ask for it in run, where the permissions of the definition hold",
        ),
        (
            "const source = new EventSource('http://127.0.0.1:PORT/'); \
             const seen = new Promise((done) => source.onerror = () => { source.close(); done('no'); });",
            "no",
        ),
    ] {
        let [line, said] = [line, said].map(|text| text.replace("PORT", &port.to_string()));
        let (isolate, memory) = handler(&format!("{line} {definition}")).await;
        let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
        assert_eq!(meta(&reply.outputs[0]), json!({ "seen": said }));
    }
    assert!(requests.try_recv().is_err());
}

/// Permissions from before the definition was known do not persist.
#[tokio::test]
async fn what_was_fetched_at_the_top_level_opens_no_way_later() {
    let (port, requests) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let source = format!(
        "await fetch('data:,x'); export default {{ topics: 'in', permissions: {{ net: ['*'] }}, \
         async run() {{ await fetch('http://localhost:{port}/'); }} }};"
    );
    for (net_private, reached) in [(false, false), (true, true)] {
        let any = |spec: &mut IsolateSpec| {
            spec.allow = Allow { net_any: true, net_private, ..Allow::default() };
        };
        let (isolate, _, memory) = start_with("handlers/it.js", &source, any).await.unwrap();
        isolate.load_state(None).await.unwrap();
        let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
        assert_eq!(reply.failure.is_none(), reached, "{:?}", reply.failure);
        // The server reports the request after its answer.
        assert_eq!(
            if reached { requests.recv().is_ok() } else { requests.try_recv().is_ok() },
            reached
        );
    }
}

#[tokio::test]
async fn redirects_are_checked_again() {
    let (target, reached) =
        server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let response: &'static str = format!(
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{target}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    .leak();
    let (port, _requests) = server(response);
    let fetch = format!("await fetch('http://127.0.0.1:{port}/'); return {{}}");
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }},");
    let seen = eval_with(&fetch, &named, |_| {}).await;
    let message = seen["failed"].as_str().unwrap();
    assert!(message.contains(&format!("127.0.0.1:{target}")), "{message}");
    assert!(reached.try_recv().is_err());
}

#[tokio::test]
async fn an_aborted_fetch_ends_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = format!(
        "const signal = AbortSignal.timeout(50); \
         try {{ await fetch('http://127.0.0.1:{port}/', {{ signal }}); }} \
         catch (error) {{ return {{ name: error.name }} }}"
    );
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }},");
    assert_eq!(eval_with(&body, &named, |_| {}).await, json!({ "name": "TimeoutError" }));
}

#[tokio::test]
async fn files_are_read_where_it_was_named() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("a.txt"), "alpha").unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
    let at = dir.path().display();
    let named = format!("permissions: {{ read: [\"{at}\", \"/proc/self\"] }},");
    let body = format!(
        "const s = await ctx.fs.stat('{at}/a.txt'); \
         return {{ text: await ctx.fs.text('{at}/a.txt'), list: await ctx.fs.list('{at}'), size: s.size, \
           kind: s.kind, date: s.modified instanceof Date, bytes: (await ctx.fs.bytes('{at}/a.txt')).length, \
           proc: (await ctx.fs.text('/proc/self/status')).length > 100 }}"
    );
    let seen = eval_with(&body, &named, |_| {}).await;
    assert_eq!(
        seen,
        json!({ "text": "alpha", "list": ["a.txt", "link", "sub"], "size": 5, "kind": "file",
            "date": true, "bytes": 5, "proc": true })
    );
    for path in ["/etc/passwd", &format!("{at}/../x"), &format!("{at}/link"), &format!("{at}x")] {
        let seen =
            eval_with(&format!("return {{ t: await ctx.fs.text('{path}') }}"), &named, |_| {})
                .await;
        let message = seen["failed"].as_str().unwrap_or_else(|| panic!("{path}: {seen}"));
        assert!(message.contains("permissions: { read: ["), "{message}");
    }
    let store = dir.path().to_owned();
    let body = format!("return {{ t: await ctx.fs.text('{at}/a.txt') }}");
    let seen = eval_with(&body, &named, |spec| spec.allow.read_denied = vec![store]).await;
    assert!(seen["failed"].is_string(), "{seen}");
}

#[tokio::test]
async fn variables_are_seen_when_named_and_config_is_merged() {
    let fields = "permissions: { env: [\"TOKEN\", \"HOME\"] }, config: { a: 1, b: { c: 2 } },";
    let seen = eval_with("return { env: ctx.env, config: ctx.config }", fields, |spec| {
        spec.config = json!({ "b": 3 });
    })
    .await;
    assert_eq!(seen, json!({ "env": { "TOKEN": "secret" }, "config": { "a": 1, "b": 3 } }));
}
