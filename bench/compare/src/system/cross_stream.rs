//! cross.stream over its Unix socket, which its users choose on one machine, with hyper like its
//! own client, but on connections that are kept. HTTP/1.1 allows one request at a time on each, so
//! there are as many connections as outstanding requests.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use xs_bench::daemon::Daemon;

use super::{Feed, Link, Promise, Setup, System, topics_from, until};

/// Requests outstanding at a time, and connections.
const OUTSTANDING: usize = 512;
/// Bodies that a reader requests at a time: more do not make it faster.
const BODIES: usize = 8;
/// The name of the JSON that is stored in the frame itself.
const META: &str = "xs-meta";

#[derive(Debug)]
pub(crate) struct CrossStream {
    daemon: Daemon,
    socket: PathBuf,
    promise: Promise,
}

#[derive(Debug, Clone)]
pub(crate) struct CrossStreamLink {
    pool: Rc<Pool>,
    promise: Promise,
}

/// A task takes frames as they arrive, however long their bodies take: a reader that is more than
/// 1,024 frames behind is cut off.
pub(crate) struct CrossStreamFeed {
    hashes: UnboundedReceiver<anyhow::Result<String>>,
    pool: Rc<Pool>,
}

/// Connections that wait for the next request.
struct Pool {
    socket: PathBuf,
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
    room: Semaphore,
}

/// Frames as they arrive, one per line.
pub(crate) struct Frames {
    lines: Incoming,
    buffer: Vec<u8>,
    read: usize,
}

/// The fields of a frame that are used.
#[derive(Debug, Deserialize)]
pub(crate) struct Frame {
    pub(crate) topic: String,
    /// The hash of its body.
    hash: Option<String>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("socket", &self.socket).finish_non_exhaustive()
    }
}

async fn connect(socket: &Path) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with the sender.
    tokio::spawn(connection);
    Ok(sender)
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header(hyper::header::HOST, "localhost")
}

/// Sends a request and returns the body of the answer.
async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Incoming> {
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    if status != StatusCode::OK {
        let said = response.into_body().collect().await?.to_bytes();
        bail!("cross.stream answered {status}: {}", String::from_utf8_lossy(&said));
    }
    Ok(response.into_body())
}

impl Pool {
    /// Sends a request and passes on its answer chunk by chunk.
    async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        mut each: impl FnMut(Bytes),
    ) -> anyhow::Result<()> {
        let _room = self.room.acquire().await?;
        let kept = self.idle.borrow_mut().pop();
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(&self.socket).await?,
        };
        let mut answer = send(&mut sender, request).await?;
        while let Some(piece) = answer.frame().await {
            if let Ok(piece) = piece?.into_data() {
                each(piece);
            }
        }
        self.idle.borrow_mut().push(sender);
        Ok(())
    }

    async fn get(&self, path: &str, each: impl FnMut(Bytes)) -> anyhow::Result<()> {
        self.ask(request(Method::GET, path).body(Full::default())?, each).await
    }

    /// Returns frames, over a connection of their own.
    async fn frames(&self, query: &str) -> anyhow::Result<Frames> {
        let mut sender = connect(&self.socket).await?;
        let request = request(Method::GET, &format!("/{query}")).body(Full::default())?;
        let lines = send(&mut sender, request).await?;
        Ok(Frames { lines, buffer: Vec::new(), read: 0 })
    }

    /// Returns a whole body.
    async fn body(&self, hash: &str) -> anyhow::Result<Bytes> {
        let mut pieces = Vec::new();
        self.get(&format!("/cas/{hash}"), |piece| pieces.push(piece)).await?;
        match &pieces[..] {
            [whole] => Ok(whole.clone()),
            _ => Ok(pieces.concat().into()),
        }
    }
}

impl Frames {
    /// Returns the next frame; `None` at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Frame>> {
        loop {
            let rest = &self.buffer[self.read..];
            if let Some(len) = rest.iter().position(|byte| *byte == b'\n') {
                let frame = serde_json::from_slice(&rest[..len]).context("read a frame")?;
                self.read += len + 1;
                return Ok(Some(frame));
            }
            self.buffer.drain(..self.read);
            self.read = 0;
            match self.lines.frame().await {
                None => return Ok(None),
                Some(piece) => {
                    self.buffer.extend_from_slice(&piece?.into_data().unwrap_or_default());
                }
            }
        }
    }

    /// Returns the hash of the next body.
    async fn next_hash(&mut self) -> anyhow::Result<Option<String>> {
        while let Some(frame) = self.next().await? {
            if frame.hash.is_some() {
                return Ok(frame.hash);
            }
        }
        Ok(None)
    }
}

impl System for CrossStream {
    type Link = CrossStreamLink;
    const NAME: &'static str = "cross.stream";
    const BATCHES: bool = false;
    const MESSAGES_MAX: u64 = 10_000;

    fn settings(promise: Promise) -> &'static str {
        match promise {
            Promise::Process => "as it is, over its Unix socket; syncs the frame of each append",
            Promise::Power => "the same; messages in meta, as a body in a file is not synced",
        }
    }

    async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let store = setup.dir.join("store");
        let mut command = Command::new(&setup.program);
        command.arg("serve").arg(&store);
        let mut daemon = Daemon::start(command, setup.log())?;
        let socket = store.join("sock");
        let pool = pool(&socket);
        until(&mut daemon, || pool.get("/version", drop)).await?;
        Ok(Self { daemon, socket, promise: setup.promise })
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    async fn link(&self) -> anyhow::Result<CrossStreamLink> {
        let pool = pool(&self.socket);
        pool.get("/version", drop).await?;
        Ok(CrossStreamLink { pool: Rc::new(pool), promise: self.promise })
    }

    fn kill(self) -> anyhow::Result<()> {
        Ok(self.daemon.kill()?)
    }
}

impl CrossStream {
    /// Returns the server's output so far.
    pub(crate) fn said(&self) -> String {
        self.daemon.said()
    }
}

fn pool(socket: &Path) -> Pool {
    let room = Semaphore::new(OUTSTANDING);
    Pool { socket: socket.to_owned(), idle: RefCell::default(), room }
}

impl CrossStreamLink {
    /// Appends a frame with a body, with JSON in it, or both.
    pub(crate) async fn append_to(
        &self,
        topic: &str,
        meta: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<()> {
        let mut request = request(Method::POST, &format!("/append/{topic}"));
        if let Some(meta) = meta {
            request = request.header(META, STANDARD.encode(meta));
        }
        let mut answered = false;
        self.pool.ask(request.body(Full::new(body))?, |_| answered = true).await?;
        ensure!(answered, "an append has no answer");
        Ok(())
    }

    /// Returns the frames that a query selects.
    pub(crate) async fn frames(&self, query: &str) -> anyhow::Result<Frames> {
        self.pool.frames(query).await
    }
}

impl Link for CrossStreamLink {
    type Feed = CrossStreamFeed;
    type Name = String;

    async fn append(&self, topic: u64, body: Bytes) -> anyhow::Result<()> {
        let topic = format!("t{topic}");
        match self.promise {
            Promise::Process => self.append_to(&topic, None, body).await,
            Promise::Power => {
                let meta = format!("{{\"body\":\"{}\"}}", STANDARD.encode(&body));
                self.append_to(&topic, Some(&meta), Bytes::new()).await
            }
        }
    }

    /// One after the other, because concurrent appends have no order.
    async fn append_all(&self, topic: u64, bodies: Vec<Bytes>) -> anyhow::Result<()> {
        for (topic, body) in topics_from(topic).zip(bodies) {
            self.append(topic, body).await?;
        }
        Ok(())
    }

    async fn read(&self, topic: Option<u64>, seen: &Cell<u64>) -> anyhow::Result<()> {
        let query = topic.map_or_else(String::new, |topic| format!("?topic=t{topic}"));
        let frames = self.frames(&query).await?;
        let hashes = stream::try_unfold(frames, |mut frames| async move {
            let hash = frames.next_hash().await?;
            anyhow::Ok(hash.map(|hash| (hash, frames)))
        });
        let body = |hash: String| async move { self.pool.body(&hash).await };
        let bodies = hashes.map_ok(body).try_buffered(BODIES);
        let count = |body| {
            std::hint::black_box(body);
            seen.set(seen.get() + 1);
            async { Ok(()) }
        };
        bodies.try_for_each(count).await
    }

    async fn last(&self, topic: u64) -> anyhow::Result<()> {
        let mut pieces = Vec::new();
        let path = format!("/last/t{topic}");
        self.pool.get(&path, |piece| pieces.extend_from_slice(&piece)).await?;
        let frame: Frame = serde_json::from_slice(&pieces).context("a topic without frames")?;
        let hash = frame.hash.context("a frame without a body")?;
        self.pool.body(&hash).await.map(drop)
    }

    async fn follow(&self) -> anyhow::Result<CrossStreamFeed> {
        let mut frames = self.frames("?follow=true&new=true").await?;
        let (sender, hashes) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(hash) = frames.next_hash().await.transpose() {
                if sender.send(hash).is_err() {
                    break;
                }
            }
        });
        Ok(CrossStreamFeed { hashes, pool: Rc::clone(&self.pool) })
    }

    async fn put(&self, _number: u64, blob: Bytes) -> anyhow::Result<String> {
        let mut hash = Vec::new();
        let request = request(Method::POST, "/cas").body(Full::new(blob))?;
        self.pool.ask(request, |piece| hash.extend_from_slice(&piece)).await?;
        Ok(String::from_utf8(hash)?)
    }

    async fn get(&self, name: &String) -> anyhow::Result<u64> {
        let mut len = 0;
        self.pool.get(&format!("/cas/{name}"), |piece| len += piece.len() as u64).await?;
        Ok(len)
    }
}

impl Feed for CrossStreamFeed {
    async fn next(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        let mut hashes = vec![self.hashes.recv().await.context("a stream ended")??];
        while hashes.len() < BODIES
            && let Ok(hash) = self.hashes.try_recv()
        {
            hashes.push(hash?);
        }
        let bodies = try_join_all(hashes.iter().map(|hash| self.pool.body(hash))).await?;
        bodies.iter().for_each(|body| each(body));
        Ok(())
    }
}
