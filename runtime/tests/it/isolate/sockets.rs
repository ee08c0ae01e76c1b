//! What becomes of sockets that their module no longer uses.

use std::net::TcpListener;

use serde_json::json;

use super::reach::{echo_server, generate};
use super::web::eval_with;

/// Regression test: each of them stayed open, and the 65th was refused.
#[tokio::test]
async fn a_loop_that_is_left_closes_its_socket() {
    let port = echo_server();
    let named = format!("permissions: {{ net: ['127.0.0.1:{port}'] }},");
    for (left, want) in [
        ("for await (const said of open()) { n++; break; }", 140),
        ("try { for await (const said of open()) { n++; throw new Error(said); } } catch {}", 140),
        ("await (async () => { for await (const said of open()) return n++; })();", 140),
        // No more messages arrive, so the second next() waits.
        (
            "const source = open(); await source.next(); n++; const more = source.next(); \
             await source.return(); n += (await more).done;",
            280,
        ),
        // The socket is not open yet.
        (
            "const source = open(), first = source.next(); await source.return(); await first; n++;",
            140,
        ),
    ] {
        let body = format!(
            "let n = 0; async function* send() {{ yield 'hello'; }} \
             const open = () => ctx.socket('ws://127.0.0.1:{port}/', {{ send: send() }}); \
             for (let times = 0; times < 140; times++) {{ {left} }} yield {{ n }};"
        );
        assert_eq!(generate(&body, &named, |_| {}).await, [json!({ "n": want })], "{left}");
    }
}

/// A server that accepts a socket and then reads nothing from it.
fn deaf_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            held.push(tokio_tungstenite::tungstenite::accept(stream.unwrap()).map_err(drop));
        }
    });
    port
}

/// Regression test: the close waited for messages that could not be sent.
#[tokio::test]
async fn a_close_behind_what_nobody_takes_comes_to_an_end() {
    let port = deaf_server();
    let named = format!("permissions: {{ net: ['127.0.0.1:{port}'] }}, timeout: '3m',");
    let body = format!(
        "const socket = new WebSocket('ws://127.0.0.1:{port}/'); \
         await new Promise((done) => socket.onopen = done); \
         const much = new Uint8Array(8 * 1024 * 1024); for (let n = 0; n < 4; n++) socket.send(much); \
         socket.close(1000); const e = await new Promise((done) => socket.onclose = done); \
         return {{ code: e.code, clean: e.wasClean, state: socket.readyState }};"
    );
    let seen = eval_with(&body, &named, |_| {}).await;
    assert_eq!(seen, json!({ "code": 1006, "clean": false, "state": 3 }));
}
