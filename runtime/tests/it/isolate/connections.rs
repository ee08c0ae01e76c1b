//! How many connections one module may have: a bound that leaves some for the others.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Condvar, Mutex};

use serde_json::json;

use super::web::eval_with;
use super::*;

/// What a server sees.
#[derive(Default)]
struct Seen {
    /// Requests that wait for their answer: now, and at most.
    waiting: usize,
    waiting_max: usize,
    asked: usize,
    by_path: HashMap<String, usize>,
    /// Answers below /stream that the client has not ended yet: now, and in total.
    streams: usize,
    streamed: usize,
    /// The newest request.
    head: String,
}

/// A server that answers once it has received a number of requests. It never answers one below
/// /never; an answer below /stream begins and does not end.
pub(super) struct Server {
    pub(super) port: u16,
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Server {
    pub(super) fn start(answers_from: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<(Mutex<Seen>, Condvar)>::default();
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seen) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &seen, answers_from));
            }
        });
        Self { port, seen }
    }

    fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.0.lock().unwrap())
    }

    /// Waits until `streamed` answers below /stream have begun.
    pub(super) async fn all_begun(&self, streamed: usize) {
        self.until(|seen| seen.streamed >= streamed).await;
    }

    /// Waits until `streamed` answers below /stream have begun and all have been ended.
    pub(super) async fn all_ended(&self, streamed: usize) {
        self.until(|seen| seen.streams == 0 && seen.streamed >= streamed).await;
    }

    async fn until(&self, is_so: impl Fn(&Seen) -> bool) {
        let waited = async {
            while !self.seen(&is_so) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(waited).await;
    }

    pub(super) async fn eval(&self, body: &str) -> Value {
        let named = format!("permissions: {{ net: ['127.0.0.1:{}'] }}, timeout: '1m',", self.port);
        eval_with(&body.replace("PORT", &self.port.to_string()), &named, |_| {}).await
    }
}

fn serve(mut stream: std::net::TcpStream, seen: &(Mutex<Seen>, Condvar), answers_from: usize) {
    let mut bytes = [0_u8; 4096];
    loop {
        let mut text = String::new();
        while !text.contains("\r\n\r\n") {
            match stream.read(&mut bytes) {
                Ok(count) if count > 0 => text.push_str(&String::from_utf8_lossy(&bytes[..count])),
                _ => return,
            }
        }
        let path = text.split(' ').nth(1).unwrap().to_owned();
        let (lock, changed) = seen;
        let mut now = lock.lock().unwrap();
        now.asked += 1;
        now.waiting += 1;
        now.waiting_max = now.waiting_max.max(now.waiting);
        *now.by_path.entry(path.clone()).or_default() += 1;
        now.head = text;
        changed.notify_all();
        if path.starts_with("/never") {
            drop(now);
            let _ = stream.read(&mut bytes);
            return;
        }
        if path.starts_with("/stream") {
            now.streams += 1;
            now.streamed += 1;
            drop(now);
            return stream_to(stream, lock);
        }
        now = changed.wait_while(now, |now| now.asked < answers_from).unwrap();
        now.waiting -= 1;
        drop(now);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let answered = match path.as_str() {
            "/events" => write!(stream, "{head}\r\ndata: a\n\n"),
            _ => write!(stream, "{head}content-length: 5\r\n\r\nhello"),
        };
        if answered.is_err() {
            return;
        }
    }
}

/// Writes the beginning of an answer, and then nothing until the client ends it.
fn stream_to(mut stream: std::net::TcpStream, seen: &Mutex<Seen>) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let begun = write!(stream, "{head}transfer-encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n");
    let mut bytes = [0_u8; 64];
    while begun.is_ok() && stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
    seen.lock().unwrap().streams -= 1;
}

#[tokio::test]
async fn requests_take_turns() {
    let server = Server::start(64);
    let seen = server
        .eval(
            "const gone = new AbortController(); \
             const all = Array.from({ length: 200 }, async (_, n) => (await fetch(`http://127.0.0.1:PORT/${n}`)).text()); \
             const late = fetch('http://127.0.0.1:PORT/late', { signal: gone.signal }).catch((e) => e.name); \
             const body = { method: 'POST', body: 'x' }, wrong = fetch('nowhere:', body).catch((e) => e.name); \
             gone.abort(); const name = await late; \
             return { all: (await Promise.all(all)).every((text) => text === 'hello'), name, wrong: await wrong };",
        )
        .await;
    assert_eq!(seen, json!({ "all": true, "name": "AbortError", "wrong": "TypeError" }));
    assert_eq!(server.seen(|seen| (seen.asked, seen.by_path.contains_key("/late"))), (200, false));
    assert!(server.seen(|seen| seen.waiting_max) <= 64, "{}", server.seen(|seen| seen.waiting_max));
}

/// A module need not read an answer it does not want, even if it keeps much in memory: then the
/// engine seldom collects garbage.
#[tokio::test]
async fn answers_that_nobody_reads_are_forgotten() {
    let server = Server::start(0);
    let seen = server
        .eval(
            "const { signal } = ctx, kept = Array.from({ length: 200_000 }, (_, n) => ({ n })); let ok = 0; \
             for (let n = 0; n < 700; n++) ok += (await fetch('http://127.0.0.1:PORT/', { signal })).ok; \
             return { ok, kept: kept.length };",
        )
        .await;
    assert_eq!(seen, json!({ "ok": 700, "kept": 200_000 }));
}

#[tokio::test]
async fn answers_that_are_kept_and_not_read_have_a_bound() {
    let server = Server::start(0);
    let seen = server
        .eval(
            "const get = () => fetch('http://127.0.0.1:PORT/'); \
             const all = await Promise.allSettled(Array.from({ length: 300 }, get)); \
             const good = all.filter((one) => one.status === 'fulfilled').map((one) => one.value); \
             const why = all.find((one) => one.status === 'rejected').reason.message; \
             for (const one of good.slice(1)) await one.text(); \
             return { good: good.length, why, after: await (await get()).text(), first: await good[0].text() };",
        )
        .await;
    let why =
        "256 requests are under way or were not read; read or cancel the body of each response";
    assert_eq!(seen, json!({ "good": 256, "why": why, "after": "hello", "first": "hello" }));
}

#[tokio::test]
async fn event_sources_have_a_bound() {
    let server = Server::start(0);
    let seen = server
        .eval(
            "const open = [], why = new Set(); \
             const more = () => { try { open.push(new EventSource('http://127.0.0.1:PORT/events')); } catch (error) { why.add(error.message); } }; \
             for (let n = 0; n < 200; n++) more(); \
             await new Promise((done) => open[0].onmessage = done); \
             const count = open.length; open[0].close(); more(); more(); \
             for (const one of open) one.close(); \
             return { count, then: open.length, why: [...why], is: open[0] instanceof EventSource && open[0] instanceof EventTarget };",
        )
        .await;
    let why = ["64 EventSources are already open; close one first"];
    assert_eq!(seen, json!({ "count": 64, "then": 65, "why": why, "is": true }));
}

/// Each socket occupies a slot before it is connected.
#[tokio::test]
async fn sockets_have_a_bound_while_they_connect() {
    let server = Server::start(0);
    let seen = server
        .eval(
            "const why = {}; const sockets = Array.from({ length: 200 }, () => new WebSocket('ws://127.0.0.1:PORT/never')); \
             const refused = new Promise((done) => { let left = 200 - 64; for (const socket of sockets) \
               socket.onerror = (e) => { why[e.message] = (why[e.message] ?? 0) + 1; if (--left === 0) done(); }; }); \
             await refused; return { why };",
        )
        .await;
    assert_eq!(seen, json!({ "why": { "64 sockets are already open; close one first": 136 } }));
    assert!(server.seen(|seen| seen.asked) <= 64);
}

/// However many calls timed out while they waited for an answer.
#[tokio::test]
async fn requests_end_with_their_calls() {
    let server = Server::start(1);
    let source = format!(
        "export default {{ timeout: '5m', concurrency: 400, permissions: {{ net: ['127.0.0.1'] }}, \
           async run(call) {{ const url = 'http://127.0.0.1:{}/' + call.args.path; \
             return {{ text: await (await fetch(url)).text() }}; }} }};",
        server.port
    );
    let (isolate, _, memory) = start("commands/it.js", &source).await.unwrap();
    let soon_over = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() + 300;
    let calls = (0..300).map(|_| {
        let mut call = super::commands::call(&memory, &json!({ "path": "never" }));
        call.deadline_ms = Some(u64::try_from(soon_over).unwrap());
        isolate.call(call)
    });
    let ended = soon(futures::future::join_all(calls)).await;
    assert!(ended.iter().all(Result::is_err));
    for _ in 0..3 {
        let call = super::commands::call(&memory, &json!({ "path": "x" }));
        soon(isolate.call(call)).await.unwrap();
    }
}

/// Whatever the request was for, and also when no call is left that waits for it.
#[tokio::test]
async fn a_request_that_a_call_leaves_behind_is_nobodys_failure() {
    let server = Server::start(1);
    let source = format!(
        "export default {{ concurrency: 4, permissions: {{ net: ['127.0.0.1'] }}, \
           async run(call, ctx) {{ const url = 'http://127.0.0.1:{}/'; \
             if (call.args.until !== undefined) {{ \
               while (await ctx.last(call.args.until) === undefined) \
                 await new Promise((done) => setTimeout(done, 1)); \
               return {{}}; }} \
             const answer = fetch(url + call.args.path); \
             if (call.args.stays) await new Promise(() => {{}}); \
             return {{ url }}; }} }};",
        server.port
    );
    let (isolate, _, memory) = start("commands/it.js", &source).await.unwrap();
    let call = |args: Value| super::commands::call(&memory, &args);
    let begun = |count: usize| server.seen(|seen| seen.asked) >= count;
    for asked in 1..=3 {
        soon(isolate.call(call(json!({ "path": "never" })))).await.unwrap();
        while !begun(asked) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for beside in [true, false] {
        let cut = call(json!({ "path": "never", "stays": true }));
        let (cancel, asked) = (cut.cancel.clone(), server.seen(|seen| seen.asked));
        let other = async {
            if beside {
                soon(isolate.call(call(json!({ "until": "go" })))).await.unwrap();
            }
        };
        let steps = async {
            while !begun(asked + 1) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            cancel.cancel();
        };
        let ended = async {
            let ended = soon(isolate.call(cut)).await;
            // The concurrent call lasts until now.
            memory.add("go", &json!({}), "");
            ended
        };
        let ((), (), ended) = tokio::join!(other, steps, ended);
        ended.unwrap_err();
        soon(isolate.call(call(json!({ "path": "x" })))).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_keeps_what_it_says_within_a_call() {
    let server = Server::start(1);
    let source = format!(
        "export default {{ permissions: {{ net: ['127.0.0.1'] }}, async run() {{ \
           const old = new Request('http://127.0.0.1:{0}/old', {{ method: 'PUT', headers: {{ 'x-of': 't' }} }}); \
           return {{ text: await (await fetch('http://127.0.0.1:{0}/new', old)).text() }}; }} }};",
        server.port
    );
    let (isolate, _, memory) = start("commands/it.js", &source).await.unwrap();
    soon(isolate.call(super::commands::call(&memory, &json!({})))).await.unwrap();
    let head = server.seen(|seen| seen.head.clone());
    assert!(head.starts_with("PUT /new ") && head.contains("x-of: t"), "{head}");
}
