//! A client that receives arbitrary bytes after a valid answer to its HELLO: each request ends with
//! a value or an error, and nothing panics.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};
use xs_engine::{BlobHash, Bound, CursorName, ReadOptions, TopicPatterns};
use xs_protocol::codec::PREFACE;
use xs_protocol::{
    Client, ClientOptions, ImportIds, ImportRequest, LastRequest, RemoveRequest, SubscribeOptions,
};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// The answer to HELLO in protocol/vectors/server.json.
static HELLO_REPLY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let digits = include_str!("hello_reply.hex").trim().as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(|pair| byte(pair).expect("two digits")).collect()
});

fuzz_target!(|messages: &[u8]| {
    RUNTIME.block_on(async {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (mut from, mut to) = tokio::io::split(theirs);
        let server = async {
            for part in [&PREFACE[..], &HELLO_REPLY, messages] {
                // The client may already have closed.
                if to.write_all(part).await.is_err() {
                    break;
                }
            }
            let _ = to.shutdown().await;
            let mut requests = vec![0; 64 * 1024];
            while from.read(&mut requests).await.is_ok_and(|count| count > 0) {}
        };
        tokio::join!(server, talk(ours));
    });
});

async fn talk(stream: tokio::io::DuplexStream) {
    let Ok(client) = Client::over(stream, ClientOptions::default()).await else { return };
    let name = CursorName::parse("c").expect("a name");
    let last = LastRequest { topics: TopicPatterns::all(), n: 3, per_topic: false };
    let all = (
        client.ping(),
        client.get(Bound::Offset(0)),
        client.last(&last),
        client.topics(&TopicPatterns::all()),
        client.cursor_get(&name),
        client.cursor_list(),
        client.blob_has(&BlobHash::of(b"")),
    );
    let _ = tokio::join!(all.0, all.1, all.2, all.3, all.4, all.5, all.6);
    if let Ok(Some(blob)) = client.blob_get(&BlobHash::of(b"")).await {
        let _ = blob.bytes(1 << 20).await;
    }
    let options = ReadOptions::default();
    let mut fetched = client.fetch(&options);
    while let Some(Ok(_)) = fetched.next().await {}
    if let Ok(mut live) = client.subscribe(&options, SubscribeOptions::default()).await {
        while let Some(Ok(_)) = live.next().await {}
    }
    let remove = RemoveRequest { frames: vec![Bound::Offset(0)], ..RemoveRequest::default() };
    let _ = tokio::join!(client.remove(&remove), client.stats());
    let mut frames = Vec::new();
    if let Ok(mut export) = client.export(&options, None).await {
        while let Some(Ok(more)) = export.next().await {
            frames.extend(more);
        }
    }
    let import = ImportRequest { frames, ids: ImportIds::New, durable: false };
    let _ = client.import(&import).await;
    let _ = client.closed().await;
}
