//! The work whose instructions are counted. For most cases, valgrind counts inside one named
//! function: setup is not counted, and all of it runs on one thread. For a handler, the example
//! `crossing` of xs-runtime runs with fewer and with more frames, and the difference counts.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use xs_bench::scratch;
use xs_bench::workload::{Frames, Shape};
use xs_engine::{
    Batch, CursorChange, CursorName, CursorValue, ExpectRevision, Frame, Meta, NewFrame,
    ReadOptions, Store, SyncPolicy, Topic, TopicPatterns,
};
use xs_protocol::{
    AppendRequest, Appended, Client, ClientOptions, Reply, Role, Server, ServerOptions, SubEvent,
    SubscribeOptions,
};

use crate::service::Ready;

/// Frames of each case.
pub(crate) const FRAMES: usize = 10_000;
const BATCH: usize = 16;
/// Frames per step of a handler.
const STEP: usize = 100;
/// Buffer size in bytes of an in-memory connection.
const DUPLEX: usize = 1024 * 1024;

/// One measured kind of work.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) work: Work,
}

/// What runs for a case.
pub(crate) enum Work {
    /// The name of the function below that is counted, and the function that calls it.
    Function(&'static str, fn() -> anyhow::Result<()>),
    /// The name of a handler of `crossing`.
    Handler(&'static str),
}

const fn case(
    name: &'static str,
    about: &'static str,
    counted: &'static str,
    run: fn() -> anyhow::Result<()>,
) -> Case {
    Case { name, about, work: Work::Function(counted, run) }
}

/// All cases.
pub(crate) const CASES: &[Case] = &[
    case("append", "batches of 16, policy none", "measured_append", append),
    case("append_bodies", "the same with 256 B, mostly SHA-256", "measured_append", append_bodies),
    case("read", "all of them", "measured_read", read),
    case("read_bodies", "all of them and their bodies", "measured_read_bodies", read_bodies),
    case("encode", "APPEND in a client", "measured_encode", encode),
    case("decode", "APPEND in a server, and the answer", "measured_decode", decode),
    case("deliver", "DELIVER, both sides", "measured_deliver", deliver),
    case("step", "handler: inputs, outputs, state; no JavaScript", "measured_step", step),
    Case {
        name: "handler",
        about: "handler: its JavaScript, the way in and out; no store",
        work: Work::Handler("emits"),
    },
];

fn store() -> anyhow::Result<(TempDir, Store)> {
    let dir = tempfile::tempdir()?;
    let store = scratch::open(dir.path(), scratch::options(SyncPolicy::None))?;
    Ok((dir, store))
}

fn batches(shape: Shape) -> Vec<Vec<NewFrame>> {
    let mut frames = Frames::common(shape);
    (0..FRAMES / BATCH).map(|_| frames.take(BATCH)).collect()
}

fn filled(shape: Shape) -> anyhow::Result<(TempDir, Store)> {
    let (dir, store) = store()?;
    measured_append(&store, batches(shape))?;
    Ok((dir, store))
}

fn append() -> anyhow::Result<()> {
    let (_dir, store) = store()?;
    measured_append(&store, batches(Shape::Meta))
}

#[inline(never)]
fn measured_append(store: &Store, batches: Vec<Vec<NewFrame>>) -> anyhow::Result<()> {
    for frames in batches {
        store.append(Batch { frames, ..Batch::default() })?;
    }
    Ok(())
}

fn append_bodies() -> anyhow::Result<()> {
    let (_dir, store) = store()?;
    measured_append(&store, batches(Shape::Body256))
}

fn read() -> anyhow::Result<()> {
    let (_dir, store) = filled(Shape::Meta)?;
    measured_read(&store)
}

#[inline(never)]
fn measured_read(store: &Store) -> anyhow::Result<()> {
    let mut count = 0;
    for frame in store.read(&ReadOptions::default())? {
        std::hint::black_box(frame?);
        count += 1;
    }
    ensure!(count == FRAMES, "{count} frames were read");
    Ok(())
}

fn read_bodies() -> anyhow::Result<()> {
    let (_dir, store) = filled(Shape::Body256)?;
    measured_read_bodies(&store)
}

#[inline(never)]
fn measured_read_bodies(store: &Store) -> anyhow::Result<()> {
    let mut count = 0;
    for frame in store.read(&ReadOptions::default())? {
        let body = store.body(&frame?, 1024)?.context("a body that was stored")?;
        std::hint::black_box(body);
        count += 1;
    }
    ensure!(count == FRAMES, "{count} frames were read");
    Ok(())
}

/// Connects a client over memory to a server whose service returns `frames`.
fn connect(frames: Vec<Frame>) -> anyhow::Result<(Runtime, Client)> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = tokio.block_on(async {
        let server = Server::new(Arc::new(Ready::new(frames)), ServerOptions::default());
        let (ours, theirs) = tokio::io::duplex(DUPLEX);
        server.adopt(theirs, Role::Admin);
        Client::over(ours, ClientOptions::default()).await
    })?;
    Ok((tokio, client))
}

fn requests() -> Vec<AppendRequest> {
    batches(Shape::Body256).into_iter().map(AppendRequest::frames).collect()
}

fn encode() -> anyhow::Result<()> {
    let (tokio, client) = connect(Vec::new())?;
    // Inside the runtime, so that its tasks are spawned but do not run yet.
    let _entered = tokio.enter();
    drop(measured_encode(&client, &requests()));
    Ok(())
}

#[inline(never)]
fn measured_encode(client: &Client, requests: &[AppendRequest]) -> Vec<Reply<Appended>> {
    requests.iter().map(|request| client.append(request)).collect()
}

fn decode() -> anyhow::Result<()> {
    let (tokio, client) = connect(Vec::new())?;
    let entered = tokio.enter();
    let replies = measured_encode(&client, &requests());
    drop(entered);
    measured_decode(&tokio, replies)
}

#[inline(never)]
fn measured_decode(tokio: &Runtime, replies: Vec<Reply<Appended>>) -> anyhow::Result<()> {
    let appended = tokio.block_on(try_join_all(replies))?;
    ensure!(appended.len() == FRAMES / BATCH, "{} batches were appended", appended.len());
    Ok(())
}

fn deliver() -> anyhow::Result<()> {
    let (_dir, store) = filled(Shape::Meta)?;
    let frames = store.read(&ReadOptions::default())?.collect::<Result<Vec<_>, _>>()?;
    let (tokio, client) = connect(frames)?;
    measured_deliver(&tokio, &client)
}

#[inline(never)]
fn measured_deliver(tokio: &Runtime, client: &Client) -> anyhow::Result<()> {
    let count = tokio.block_on(async {
        let how = SubscribeOptions::default();
        let mut subscription = client.subscribe(&ReadOptions::default(), how).await?;
        let mut count = 0;
        while let Some(event) = subscription.next().await {
            if let SubEvent::Frames { frames, .. } = event? {
                count += frames.len();
            }
        }
        anyhow::Ok(count)
    })?;
    ensure!(count == FRAMES, "{count} frames were delivered");
    Ok(())
}

fn step() -> anyhow::Result<()> {
    let (_dir, store) = store()?;
    let mut inputs = Frames::on(vec![Topic::parse("in")?], Shape::Meta);
    for _ in 0..FRAMES / BATCH {
        store.append(Batch { frames: inputs.take(BATCH), ..Batch::default() })?;
    }
    let (output, meta) = (Topic::parse("echo.out")?, Meta::parse("{\"n\":1}")?);
    let name = CursorName::parse("echo")?;
    measured_step(&store, &NewFrame { meta, ..NewFrame::new(output) }, &name)
}

#[inline(never)]
fn measured_step(store: &Store, output: &NewFrame, name: &CursorName) -> anyhow::Result<()> {
    let topics = TopicPatterns::parse("in")?;
    let (mut inputs, mut revision, mut stepped) = (0, 0, 0);
    let mut reader = store.read(&ReadOptions { topics, ..ReadOptions::default() })?;
    while stepped < FRAMES {
        let mut position = 0;
        // Only this step ends when the visit does, not the reader.
        let _ = reader.visit(|frame| {
            position = frame.offset().map_or(position, |offset| offset + 1);
            inputs += 1;
            if inputs % STEP == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let expect = ExpectRevision::Is(revision);
        let set = Some(CursorValue { offset: position, state: Bytes::from_static(b"{\"n\":1}") });
        let cursors = vec![CursorChange { name: name.clone(), expect, set }];
        let frames = vec![output.clone(); STEP];
        let appended = store.append(Batch { frames, cursors, ..Batch::default() })?;
        revision = *appended.cursors.first().context("a cursor that was set")?;
        stepped += STEP;
    }
    ensure!(inputs == FRAMES, "{inputs} frames were handled");
    Ok(())
}
