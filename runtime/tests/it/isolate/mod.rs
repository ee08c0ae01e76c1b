//! Isolates against an in-memory store.

mod commands;
mod connections;
mod contents;
mod dates;
mod definitions;
mod escapes;
mod exhausted;
mod floods;
mod generators;
mod handlers;
mod hostile;
mod language;
mod left;
mod losses;
mod memory;
mod reach;
mod remove;
mod secrets;
mod sockets;
mod tails;
mod types;
mod watches;
mod web;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use xs_engine::{Body, Frame, FrameId, NewFrame};
use xs_runtime::isolate::{
    Definition, HandlerReply, Input, Isolate, IsolateSpec, Kind, Limits, ModuleError,
};
use xs_runtime::loader::ModuleGraph;
use xs_runtime::permissions::Allow;

use memory::Memory;

/// A modules directory with some files.
pub(crate) struct Modules(pub(crate) TempDir);

impl Modules {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        for (path, source) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, source).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn graph(&self, entry: &str) -> Result<ModuleGraph, ModuleError> {
        ModuleGraph::load(self.0.path(), entry)
    }
}

pub(crate) fn kind_of(entry: &str) -> Kind {
    match entry.split('/').next() {
        Some("generators") => Kind::Generator,
        Some("commands") => Kind::Command,
        _ => Kind::Handler,
    }
}

pub(crate) fn spec(entry: &str, graph: ModuleGraph) -> IsolateSpec {
    let mut spec = IsolateSpec::new("it", kind_of(entry), FrameId::first_of_ms(1), graph);
    spec.env = [("TOKEN".to_owned(), "secret".to_owned())].into();
    spec.allow.net_private = true;
    spec
}

pub(crate) async fn start_with(
    entry: &str,
    source: &str,
    change: impl FnOnce(&mut IsolateSpec),
) -> Result<(Isolate, Definition, Arc<Memory>), ModuleError> {
    let modules = Modules::new(&[(entry, source)]);
    let mut spec = spec(entry, modules.graph(entry)?);
    change(&mut spec);
    let memory = Memory::new();
    let (isolate, definition) = Isolate::start(spec, memory.clone()).await?;
    Ok((isolate, definition, memory))
}

pub(crate) async fn start(
    entry: &str,
    source: &str,
) -> Result<(Isolate, Definition, Arc<Memory>), ModuleError> {
    start_with(entry, source, |_| {}).await
}

/// A handler with its state loaded.
pub(crate) async fn handler(source: &str) -> (Isolate, Arc<Memory>) {
    let (isolate, _, memory) = start("handlers/it.js", source).await.unwrap();
    isolate.load_state(None).await.unwrap();
    (isolate, memory)
}

pub(crate) fn input(memory: &Memory, meta: &Value) -> Input {
    let frame = memory.add("in", meta, "");
    Input { frame, body: None, attempt: 1 }
}

pub(crate) fn inputs(memory: &Memory, count: u64) -> Vec<Input> {
    (0..count).map(|n| input(memory, &json!({ "n": n }))).collect()
}

/// All replies to a batch.
pub(crate) async fn replies(
    isolate: &Isolate,
    inputs: Vec<Input>,
) -> Result<Vec<HandlerReply>, ModuleError> {
    let mut handling = isolate.handle(inputs)?;
    let mut replies = Vec::new();
    while let Some(reply) = handling.next().await? {
        replies.push(reply);
    }
    Ok(replies)
}

/// The only reply to a batch.
pub(crate) async fn reply(isolate: &Isolate, inputs: Vec<Input>) -> HandlerReply {
    let mut replies = replies(isolate, inputs).await.unwrap();
    assert_eq!(replies.len(), 1, "{replies:?}");
    replies.remove(0)
}

pub(crate) fn meta(frame: &NewFrame) -> Value {
    serde_json::from_slice(frame.meta.as_bytes()).unwrap_or(Value::Null)
}

pub(crate) fn stored_meta(frame: &Frame) -> Value {
    serde_json::from_slice(frame.meta()).unwrap_or(Value::Null)
}

pub(crate) fn body(frame: &NewFrame) -> &[u8] {
    match &frame.body {
        Body::Inline(bytes) => bytes,
        Body::None | Body::Stored(_) => b"",
    }
}

pub(crate) fn state(reply: &HandlerReply) -> Value {
    reply.state.as_ref().map_or(Value::Null, |text: &Bytes| serde_json::from_slice(text).unwrap())
}

/// The longest wait for anything a test expects: a machine may be slow or busy.
const PATIENCE: Duration = Duration::from_secs(240);

/// Fails instead of hanging when something never ends.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends in time")
}
