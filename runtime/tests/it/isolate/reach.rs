//! What modules can use of the web and of the machine: bodies in pieces, signatures, sockets,
//! changes of files, programs.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::json;
use xs_runtime::isolate::FailureKind;

use super::memory::{PIECE, PIECES, endless};
use super::web::{eval, eval_with};
use super::*;

/// Runs the body of a generator and returns the metas of what it yielded.
pub(super) async fn generate(
    body: &str,
    fields: &str,
    change: impl FnOnce(&mut IsolateSpec),
) -> Vec<Value> {
    let source = format!("export default {{ {fields} async *run(ctx) {{ {body} }} }};");
    let (isolate, _, memory) = start_with("generators/it.js", &source, change).await.unwrap();
    soon(isolate.run_generator()).await.unwrap();
    memory.topic("it.recv").iter().map(stored_meta).collect()
}

/// A body several times the size of the heap passes in both directions and through a
/// transformation.
#[tokio::test]
async fn bodies_stream_with_flat_memory() {
    let size = PIECE * PIECES;
    assert!(size > 3 * Limits::default().heap_bytes);
    let read = format!(
        "let n = 0; for await (const piece of ctx.blob.stream('{}')) n += piece.byteLength; return {{ n }};",
        endless()
    );
    assert_eq!(eval_with(&read, "timeout: '5m',", |_| {}).await, json!({ "n": size }));
    let copy = format!(
        "return {{ hash: await ctx.blob.put(ctx.blob.stream('{0}').pipeThrough(new TransformStream())) }};",
        endless()
    );
    let copied = eval_with(&copy, "timeout: '5m',", |_| {}).await;
    assert_eq!(copied, json!({ "hash": endless().to_string() }));
    // A body whose reading is given up halfway ends nothing and fills nothing.
    let half = format!(
        "for (let i = 0; i < 600; i++) {{ const r = ctx.blob.stream('{}').getReader(); await r.read(); await r.cancel(); }} return {{}};",
        endless()
    );
    assert_eq!(eval_with(&half, "timeout: '5m',", |_| {}).await, json!({}));
}

#[tokio::test]
async fn streamed_bodies_of_frames_are_stored_whole_or_not_at_all() {
    let made = generate(
        "const { frame } = await import('xs'); \
         const hash = await ctx.blob.put(new Blob(['piece'])); \
         const stored = await ctx.append('big', { body: ctx.blob.stream(hash), meta: { a: 1 } }); \
         yield { text: await stored.text(), same: stored.hash === hash, meta: stored.meta }; \
         yield frame({ body: new Blob(['x'.repeat(5_000_000)]), meta: { large: true } }); \
         const bad = new ReadableStream({ start(c) { c.enqueue(new Uint8Array(1)); }, pull() { throw new Error('torn'); } }); \
         try { await ctx.blob.put(bad); } catch (error) { yield { torn: error.message }; } \
         try { await ctx.blob.put(new ReadableStream({ start(c) { c.enqueue('text'); c.close(); } })); } \
         catch (error) { yield { text: error.message }; }",
        "",
        |_| {},
    )
    .await;
    assert_eq!(made[0], json!({ "text": "piece", "same": true, "meta": { "a": 1 } }));
    assert_eq!(made[1], json!({ "large": true }));
    assert_eq!(made[2], json!({ "torn": "torn" }));
    assert!(made[3]["text"].as_str().unwrap().contains("yields bytes"), "{made:?}");
}

#[tokio::test]
async fn digests_and_signatures_are_those_of_the_standards() {
    let hex = "const hex = (b) => new Uint8Array(b).toHex(); const text = (t) => new TextEncoder().encode(t); ";
    let digests = format!(
        "{hex} const v = {{}}; for (const h of ['SHA-1', 'sha-256', {{ name: 'SHA-384' }}, 'SHA-512']) \
         v[h.name ?? h] = hex(await crypto.subtle.digest(h, text('abc'))).slice(0, 16); return v;"
    );
    assert_eq!(
        eval(&digests).await,
        json!({ "SHA-1": "a9993e364706816a", "sha-256": "ba7816bf8f01cfea",
            "SHA-384": "cb00753f45a35e8b", "SHA-512": "ddaf35a193617aba" })
    );
    // RFC 4231, test case 2.
    let sign = format!(
        "{hex} const key = await crypto.subtle.importKey('raw', text('Jefe'), {{ name: 'HMAC', hash: 'SHA-256' }}, true, ['sign', 'verify']); \
         const data = text('what do ya want for nothing?'); const s = await crypto.subtle.sign('HMAC', key, data); \
         const other = await crypto.subtle.importKey('jwk', await crypto.subtle.exportKey('jwk', key), {{ name: 'HMAC', hash: 'SHA-256' }}, false, ['verify']); \
         const bent = new Uint8Array(s.slice(0)); bent[0] ^= 1; \
         const fails = async (f) => {{ try {{ await f(); return ''; }} catch (e) {{ return e.name; }} }}; \
         return {{ s: hex(s).slice(0, 16), ok: await crypto.subtle.verify('HMAC', other, s, data), bent: await crypto.subtle.verify('HMAC', other, bent, data), \
           kept: await fails(() => crypto.subtle.exportKey('raw', other)), unasked: await fails(() => crypto.subtle.sign('HMAC', other, data)), \
           odd: await fails(() => crypto.subtle.digest('MD5', data)), rsa: await fails(() => crypto.subtle.generateKey({{ name: 'RSA-PSS' }}, true, ['sign'])), \
           made: (await crypto.subtle.generateKey({{ name: 'HMAC', hash: 'SHA-512' }}, true, ['sign'])).algorithm.length }};"
    );
    assert_eq!(
        eval(&sign).await,
        json!({ "s": "5bdcc146bf60754e", "ok": true, "bent": false, "kept": "InvalidAccessError",
            "unasked": "InvalidAccessError", "odd": "NotSupportedError", "rsa": "NotSupportedError",
            "made": 1024 })
    );
}

#[tokio::test]
async fn an_event_source_reads_what_a_server_sends() {
    let body = "id: 1\ndata: a\n\nevent: named\ndata: b\ndata: c\n\n";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_head(&mut stream);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        // The stream stays open until the client closes it.
        let _ = stream.read(&mut [0]);
    });
    let listen = format!(
        "const source = new EventSource('http://127.0.0.1:{port}/'); const seen = []; \
         await new Promise((done, fail) => {{ source.onerror = () => fail(new Error('no stream')); \
           source.onmessage = (e) => seen.push([e.type, e.data, e.lastEventId]); \
           source.addEventListener('named', (e) => {{ seen.push([e.type, e.data, e.lastEventId]); done(); }}); }}); \
         source.close(); return {{ seen }};"
    );
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }},");
    let seen = eval_with(&listen, &named, |_| {}).await;
    assert_eq!(seen, json!({ "seen": [["message", "a", "1"], ["named", "b\nc", "1"]] }));
}

fn read_head(stream: &mut TcpStream) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with("\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        text.push(char::from(byte[0]));
    }
    text
}

/// A server that sends back what it receives, and closes when asked to.
pub(super) fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || echo(stream));
        }
    });
    port
}

fn echo(stream: TcpStream) {
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    use tokio_tungstenite::tungstenite::{Message, accept_hdr};
    #[expect(clippy::result_large_err, reason = "the type of the error is tungstenite's")]
    let agree = |request: &Request, mut response: Response| {
        if let Some(protocols) = request.headers().get("sec-websocket-protocol") {
            let first = protocols.to_str().unwrap().split(',').next().unwrap().to_owned();
            response.headers_mut().insert("sec-websocket-protocol", first.parse().unwrap());
        }
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr(stream, agree) else { return };
    while let Ok(message) = socket.read() {
        match &message {
            Message::Text(text) if text.as_str() == "close" => {
                let frame = CloseFrame { code: 4001.into(), reason: "asked".into() };
                socket.close(Some(frame)).unwrap();
            }
            Message::Text(text) if text.as_str() == "leave" => socket.close(None).unwrap(),
            // Sends more once nothing has arrived for a while.
            Message::Text(text) if text.as_str() == "subscribe" => {
                let quiet = Some(std::time::Duration::from_millis(300));
                socket.get_ref().set_read_timeout(quiet).unwrap();
                let is_quiet = socket.read().is_err();
                socket.get_ref().set_read_timeout(None).unwrap();
                if is_quiet {
                    socket.send(Message::text("event")).unwrap();
                }
            }
            Message::Text(text) if text.as_str() == "break" => return,
            Message::Text(text) if text.as_str() == "hold" => {
                let frame = CloseFrame { code: 4002.into(), reason: "held".into() };
                socket.close(Some(frame)).unwrap();
                // The connection stays open until the client ends it.
                let _ = std::io::copy(socket.get_mut(), &mut std::io::sink());
                return;
            }
            Message::Text(_) | Message::Binary(_) => socket.send(message).unwrap(),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_web_socket_is_the_standards() {
    let port = echo_server();
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }}, timeout: '1m',");
    let talk = format!(
        "const socket = new WebSocket('ws://127.0.0.1:{port}/', ['one', 'two']); const seen = [socket.readyState]; \
         socket.binaryType = 'arraybuffer'; \
         await new Promise((done) => {{ \
           socket.onopen = () => {{ seen.push(socket.protocol); socket.send('text \\u00e4'); socket.send(new Uint8Array([1, 2])); socket.send('close'); }}; \
           socket.onmessage = (e) => seen.push(typeof e.data === 'string' ? e.data : [...new Uint8Array(e.data)]); \
           socket.onclose = (e) => {{ seen.push([e.code, e.reason, e.wasClean, socket.readyState]); done(); }}; }}); \
         return {{ seen }};"
    );
    let seen = eval_with(&talk, &named, |_| {}).await;
    let closed = json!([4001, "asked", true, 3]);
    assert_eq!(seen, json!({ "seen": [0, "one", "text \u{e4}", [1, 2], closed] }));
    let own = format!(
        "const socket = new WebSocket('ws://127.0.0.1:{port}/'); \
         await new Promise((done) => socket.addEventListener('open', done)); socket.close(3005, 'enough'); \
         const e = await new Promise((done) => socket.onclose = done); return {{ code: e.code, clean: e.wasClean }};"
    );
    assert_eq!(eval_with(&own, &named, |_| {}).await, json!({ "code": 3005, "clean": true }));
    let denied = format!(
        "const socket = new WebSocket('ws://127.0.0.1:{port}/'); const seen = []; socket.onerror = (e) => seen.push(e.message); \
         await new Promise((done) => socket.onclose = done); return {{ seen }};"
    );
    let seen = eval(&denied).await.to_string();
    assert!(seen.contains("add permissions: { net: [") && seen.contains("127.0.0.1"), "{seen}");
}

/// A buffer that is reused holds the next message before this one is sent.
#[tokio::test]
async fn a_message_is_what_it_was_when_it_was_sent() {
    let port = echo_server();
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }}, timeout: '1m',");
    let talk = format!(
        "const socket = new WebSocket('ws://127.0.0.1:{port}/'), seen = [], view = new Uint8Array(3); \
         socket.binaryType = 'arraybuffer'; await new Promise((done) => socket.onopen = done); \
         const told = new Promise((done) => socket.onmessage = ({{ data }}) => \
           seen.push([...new Uint8Array(data)]) === 3 && done()); \
         view[1] = 1; socket.send(view.subarray(1)); view[1] = 2; socket.send(view.buffer); \
         view[1] = 3; socket.send(new DataView(view.buffer, 1, 1)); view[1] = 4; \
         await told; return {{ seen }};"
    );
    let seen = eval_with(&talk, &named, |_| {}).await;
    assert_eq!(seen, json!({ "seen": [[1, 0], [0, 2, 0], [3]] }));
}

#[tokio::test]
async fn a_socket_is_looped_over_and_told_apart_by_its_end() {
    let port = echo_server();
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }},");
    let talk = |said: &str| {
        format!(
            "async function* send() {{ {said} }} \
             try {{ for await (const message of ctx.socket('ws://127.0.0.1:{port}/', {{ send: send(), headers: {{ 'x-a': 'b' }} }})) \
               yield typeof message === 'string' ? {{ message }} : {{ bytes: message.length }}; yield {{ end: 'clean' }}; }} \
             catch (error) {{ yield {{ end: error.message }}; }}"
        )
    };
    let some = "yield 'a'; yield new Uint8Array(3); yield 'leave';";
    let seen = generate(&talk(some), &named, |_| {}).await;
    assert_eq!(seen, [json!({ "message": "a" }), json!({ "bytes": 3 }), json!({ "end": "clean" })]);
    let seen = generate(&talk("yield 'close'; await new Promise(() => {});"), &named, |_| {}).await;
    assert_eq!(seen, [json!({ "end": "the socket ended with 4001 asked" })]);
    let seen = generate(&talk("yield 'break'; await new Promise(() => {});"), &named, |_| {}).await;
    assert!(seen[0]["end"].as_str().unwrap().contains("1006"), "{seen:?}");
    let seen = generate(&talk("throw new Error('nothing to say');"), &named, |_| {}).await;
    assert_eq!(seen, [json!({ "end": "nothing to say" })]);
}

/// Regression test: it was closed after the last message, before the first answer to it.
#[tokio::test]
async fn a_socket_stays_open_behind_what_it_sends() {
    let port = echo_server();
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }},");
    let body = format!(
        "async function* send() {{ yield 'subscribe'; }} \
         for await (const message of ctx.socket('ws://127.0.0.1:{port}/', {{ send: send() }})) \
           {{ yield {{ message }}; break; }}"
    );
    assert_eq!(generate(&body, &named, |_| {}).await, [json!({ "message": "event" })]);
}

#[tokio::test]
async fn a_server_that_closes_and_does_not_hang_up_is_left() {
    let port = echo_server();
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }}, timeout: '1m',");
    let held = format!(
        "const socket = new WebSocket('ws://127.0.0.1:{port}/'); socket.onopen = () => socket.send('hold'); \
         const e = await new Promise((done) => socket.onclose = done); \
         return {{ end: [e.code, e.reason, e.wasClean] }};"
    );
    assert_eq!(eval_with(&held, &named, |_| {}).await, json!({ "end": [4002, "held", true] }));
}

#[tokio::test]
async fn what_a_socket_sends_ends_with_it() {
    let port = echo_server();
    let named = format!("permissions: {{ net: [\"127.0.0.1:{port}\"] }},");
    let body = format!(
        "let asked = 0, ended = false; const send = {{ [Symbol.asyncIterator]() {{ return this; }}, \
           next: () => asked++ === 0 ? Promise.resolve({{ value: 'close', done: false }}) : new Promise(() => {{}}), \
           async return() {{ ended = true; return {{ done: true }}; }} }}; \
         try {{ for await (const _ of ctx.socket('ws://127.0.0.1:{port}/', {{ send }})); }} catch {{}} \
         yield {{ ended }};"
    );
    assert_eq!(generate(&body, &named, |_| {}).await, [json!({ "ended": true })]);
}

#[tokio::test]
async fn cron_gives_the_times_of_its_expression() {
    let seen = generate(
        "try { ctx.cron('61 * * * *'); } catch (error) { yield { wrong: error.message }; } \
         try { ctx.cron('* * * * *', 'Mars/Base'); } catch (error) { yield { zone: error.message }; } \
         const times = ctx.cron('* * * * *'); setTimeout(() => times.return(), 20); \
         const first = await times.next(); yield { first: first.done || first.value.getSeconds() === 0 };",
        "",
        |_| {},
    )
    .await;
    assert!(seen[0]["wrong"].as_str().unwrap().contains("minute"), "{seen:?}");
    assert!(seen[1]["zone"].as_str().unwrap().contains("Mars/Base"), "{seen:?}");
    assert_eq!(seen[2], json!({ "first": true }));
}

/// A timer can wait for less than 25 days.
#[tokio::test]
async fn a_beat_of_weeks_does_not_come_at_once() {
    let seen = generate(
        "for (const interval of ['4w', '52w']) { \
           const beats = ctx.every(interval); const first = await beats.next(); let second = 'pending'; \
           const next = beats.next().then(({ done }) => second = done ? 'over' : 'early'); \
           await new Promise((done) => setTimeout(done, 100)); \
           yield { first: first.value instanceof Date, second }; \
           await beats.return(); await next; yield { second }; }",
        "",
        |_| {},
    )
    .await;
    let twice = [json!({ "first": true, "second": "pending" }), json!({ "second": "over" })];
    assert_eq!(seen, [twice.clone(), twice].concat());
}

#[tokio::test]
async fn changes_of_files_are_told() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let at = dir.path().display().to_string();
    let source = format!(
        "export default {{ permissions: {{ read: ['{at}'] }}, async *run(ctx) {{ yield {{ ready: true }}; \
         for await (const {{ path, kind }} of ctx.watch('{at}/in')) {{ yield {{ path, kind }}; if (path.endsWith('last')) return; }} }} }};"
    );
    let (isolate, _, memory) = start("generators/it.js", &source).await.unwrap();
    let run = tokio::spawn(async move { isolate.run_generator().await });
    // The watch begins a moment after this: the file is written until the change is seen.
    let told = async {
        let mut n = 0;
        while memory.topic("it.recv").len() < 3 {
            std::fs::write(dir.path().join("in/a"), format!("{n}")).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
            n += 1;
        }
    };
    soon(told).await;
    std::fs::remove_file(dir.path().join("in/a")).unwrap();
    std::fs::write(dir.path().join("in/last"), "").unwrap();
    soon(run).await.unwrap().unwrap();
    let seen: Vec<Value> = memory.topic("it.recv").iter().map(stored_meta).collect();
    assert!(seen.contains(&json!({ "path": format!("{at}/in/a"), "kind": "remove" })), "{seen:?}");
    assert!(seen.iter().skip(1).all(|change| change["path"].as_str().unwrap().starts_with(&at)));
    let denied = generate(
        "try { for await (const _ of ctx.watch('/etc')); } catch (error) { yield { e: error.message }; }",
        "",
        |_| {},
    )
    .await;
    assert!(denied[0]["e"].as_str().unwrap().contains("add permissions: { read"), "{denied:?}");
}

#[tokio::test]
async fn programs_run_where_both_sides_say_so() {
    let allowed = |spec: &mut IsolateSpec| spec.allow.run = true;
    let seen = eval_with(
        "const cat = ctx.spawn('cat', [], { stdin: 'hello', env: { A: 'b' } }); const out = await new Response(cat.stdout).text(); \
         const fail = ctx.spawn('sh', ['-c', 'echo $A$HOME; echo oops >&2; exit 3'], { env: { A: 'b' } }); \
         const text = await new Response(fail.stdout).text(), err = await new Response(fail.stderr).text(); \
         const long = ctx.spawn('sleep', ['1000']); long.kill('SIGTERM'); \
         const typed = ctx.spawn('cat'); const w = typed.stdin.getWriter(); await w.write('typed'); await w.close(); \
         return { out, ok: await cat.status, text, err, status: await fail.status, long: await long.status, \
           typed: await new Response(typed.stdout).text() };",
        "permissions: { run: ['cat', 'sh', 'sleep'] }, timeout: '1m',",
        allowed,
    )
    .await;
    assert_eq!(
        seen,
        json!({ "out": "hello", "ok": { "code": 0, "signal": null }, "text": "b\n", "err": "oops\n",
            "status": { "code": 3, "signal": null }, "long": { "code": null, "signal": "SIGTERM" },
            "typed": "typed" })
    );
    let denied = eval_with("ctx.spawn('ls');", "permissions: { run: ['cat'] },", allowed).await;
    assert!(denied["failed"].as_str().unwrap().contains("add permissions: { run: [\"ls\"]"));
    let source = "export default { topics: 'in', permissions: { run: ['cat'] }, run() {} };";
    let error = start("handlers/it.js", source).await.err().unwrap();
    assert_eq!(error.kind, FailureKind::Permission);
    assert!(error.message.contains("--allow-run"), "{error}");
}

#[tokio::test]
async fn programs_end_with_their_module() {
    let source = "export default { permissions: { run: ['sh'] }, async *run(ctx) { \
        const child = ctx.spawn('sh', ['-c', 'echo $$; sleep 1000 & wait']); \
        const { lines } = await import('xs'); for await (const line of lines(child.stdout)) yield { pid: Number(line) }; } };";
    let allowed = |spec: &mut IsolateSpec| spec.allow.run = true;
    let (isolate, _, memory) = start_with("generators/it.js", source, allowed).await.unwrap();
    let isolate = Arc::new(isolate);
    let running = Arc::clone(&isolate);
    let run = tokio::spawn(async move { running.run_generator().await });
    let pid = async {
        loop {
            if let Some(frame) = memory.topic("it.recv").first() {
                return stored_meta(frame)["pid"].as_u64().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let pid = soon(pid).await;
    assert!(std::fs::exists(format!("/proc/{pid}")).unwrap());
    run.abort();
    let _ = run.await;
    soon(Arc::into_inner(isolate).unwrap().stop()).await.unwrap();
    soon(gone(pid)).await;
}

/// The rest of the program's process group ends, and with it the outputs that it holds open.
#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let seen = generate(
        "const { lines } = await import('xs'); let pid; \
         const child = ctx.spawn('sh', ['-c', 'sleep 1000 & echo $!; exit 3']); \
         for await (const line of lines(child.stdout)) pid = Number(line); \
         yield { pid, status: await child.status };",
        "permissions: { run: ['sh'] },",
        |spec| spec.allow.run = true,
    )
    .await;
    assert_eq!(seen[0]["status"], json!({ "code": 3, "signal": null }));
    soon(gone(seen[0]["pid"].as_u64().unwrap())).await;
}

/// Code that only wants to know how a program ended has no stream to close. A module may have 256
/// streams at a time, and a program has two outputs.
#[tokio::test]
async fn outputs_that_nobody_reads_cost_nothing() {
    let seen = generate(
        "let bad = 0; const first = ctx.spawn('echo', ['first']); await first.status; \
         for (let n = 0; n < 140; n++) if ((await ctx.spawn('true').status).code !== 0) bad++; \
         const kept = Array.from({ length: 10 }, (_, n) => ctx.spawn('sh', ['-c', `echo ${n}; echo err >&2`])); \
         for (const child of kept) await child.status; \
         const texts = []; for (const child of kept) texts.push(await new Response(child.stdout).text()); \
         const err = await new Response(kept[0].stderr).text(), empty = ctx.spawn('true'); await empty.status; \
         yield { bad, right: texts.every((text, n) => text === `${n}\\n`), err, \
           empty: await new Response(empty.stdout).text() }; \
         try { await new Response(first.stdout).text(); } catch (error) { yield { gone: error.message }; }",
        "permissions: { run: ['echo', 'true', 'sh'] },",
        |spec| spec.allow.run = true,
    )
    .await;
    assert_eq!(seen[0], json!({ "bad": 0, "right": true, "err": "err\n", "empty": "" }));
    assert!(seen[1]["gone"].as_str().unwrap().contains("64 others have ended"), "{seen:?}");
}

/// The program learns of it, as with `| head`.
#[tokio::test]
async fn a_program_whose_output_is_cancelled_cannot_write_on() {
    let seen = generate(
        "const child = ctx.spawn('yes'); await child.stdout.cancel(); yield await child.status;",
        "permissions: { run: ['yes'] },",
        |spec| spec.allow.run = true,
    )
    .await;
    assert!(seen[0]["signal"] == "SIGPIPE" || seen[0]["code"] == 1, "{seen:?}");
}

/// Waits until a process has ended, even if it is still a zombie.
async fn gone(pid: u64) {
    while std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z"))
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_append_may_have_a_condition_and_a_key() {
    let source = "export default { async *run(ctx) { \
        const first = await ctx.append('a', { body: 'once', key: 'k1', meta: { n: 1 } }); yield { text: await first.text() }; \
        for (const last of ['none', 7, first.id]) try { await ctx.append('b', { expect: { last, of: ['a', 'b.*'] } }); } \
        catch (error) { yield { name: error.name, message: error.message }; } \
        try { await ctx.append('b', { expect: 7 }); } catch (error) { yield { wrong: error.message }; } \
        try { await ctx.append('b', { key: '' }); } catch (error) { yield { wrong: error.message }; } } };";
    let (isolate, _, memory) = start("generators/it.js", source).await.unwrap();
    soon(isolate.run_generator()).await.unwrap();
    let seen: Vec<Value> = memory.topic("it.recv").iter().map(stored_meta).collect();
    let conflict = json!({ "name": "Conflict", "message": "it does not hold" });
    assert_eq!(
        seen[..4],
        [json!({ "text": "once" }), conflict.clone(), conflict.clone(), conflict]
    );
    assert!(seen[4]["wrong"].as_str().unwrap().contains("expect is {"), "{seen:?}");
    let asked = memory.asked();
    assert!(asked[0].starts_with("[] Some(") && asked[0].contains("k1"), "{asked:?}");
    assert!(asked[1].starts_with("[Empty(") && asked[1].ends_with("None"), "{asked:?}");
    assert!(asked[2].contains("LastAtMost") && asked[2].contains("offset: 7"), "{asked:?}");
    assert!(asked[3].contains("offset: 0"), "{asked:?}");
}
