//! Looks whether the modules of a directory could run: reads, evaluates and checks each as a Host
//! does, and runs none of them. No store is there to be asked.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use serde_json::Value;
use xs_engine::{
    BlobHash, Condition, Frame, FrameId, IdempotencyKey, NewFrame, ReadOptions, TopicPatterns,
};

use super::config::Config;
use super::files;
use super::lifecycle::Key;
use super::sync::find;
use crate::isolate::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, Isolate, IsolateSpec,
    Limits, LogLevel, ModuleError, TopicInfo,
};
use crate::loader::ModuleGraph;
use crate::permissions::Allow;

/// What became of one file.
#[derive(Debug)]
pub struct Checked {
    /// The processor it defines.
    pub key: Key,
    /// The file, relative to the directory.
    pub file: String,
    /// What is wrong with it, if anything is.
    pub error: Option<ModuleError>,
}

/// Checks every module of a directory, in the order of their names.
///
/// # Errors
/// When the directory or its `xs.toml` cannot be read.
pub async fn check(dir: &Path, allow: &Allow) -> io::Result<Vec<Checked>> {
    let scan = files::scan(dir)?;
    let config = Config::load(dir).map_err(io::Error::other)?;
    let mut all = Vec::with_capacity(scan.modules.len());
    for (key, own) in &scan.modules {
        let found = find(dir, &scan, key, config.module(&key.name));
        let allow = config.module(&key.name).widen(allow);
        let error = match found.error {
            Some(error) => Some(error),
            None => evaluate(dir, key, &found.source, &found.config.config, allow).await.err(),
        };
        let file = own.first().cloned().unwrap_or_default();
        all.push(Checked { key: key.clone(), file, error });
    }
    Ok(all)
}

async fn evaluate(
    dir: &Path,
    key: &Key,
    source: &[u8],
    config: &serde_json::Map<String, Value>,
    allow: Allow,
) -> Result<(), ModuleError> {
    let spec = IsolateSpec {
        name: key.name.as_str().to_owned(),
        kind: key.kind,
        create: FrameId::ZERO,
        graph: Arc::new(ModuleGraph::from_bytes(source)?),
        config: Value::Object(config.clone()),
        env: BTreeMap::new(),
        limits: Limits::default(),
        allow,
        base: dir.to_owned(),
        sealed: false,
        trial: None,
        trials: None,
        script: None,
    };
    let (isolate, _) = Isolate::start(spec, Arc::new(NoStore)).await?;
    if key.kind == crate::name::Kind::Handler {
        isolate.load_state(None).await?;
    }
    isolate.stop().await
}

/// The store of a module that is not run: it has nothing and takes nothing.
#[derive(Debug)]
pub struct NoStore;

fn absent<T: Send + 'static>() -> BoxFuture<'static, Result<T, BackendError>> {
    Box::pin(async { Err(no_store()) })
}

fn no_store() -> BackendError {
    BackendError::new(BackendCode::Unavailable, "the module is only checked: there is no store")
}

fn no_frames() -> FrameStream {
    stream::iter([Err(no_store())]).boxed()
}

impl Backend for NoStore {
    fn append(&self, _: Vec<NewFrame>) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        absent()
    }

    fn append_if(
        &self,
        _: Vec<NewFrame>,
        _: Vec<Condition>,
        _: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        absent()
    }

    fn remove(
        &self,
        _: Vec<FrameId>,
        _: Option<TopicPatterns>,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        absent()
    }

    fn read(&self, _: ReadOptions) -> FrameStream {
        no_frames()
    }

    fn get(&self, _: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        absent()
    }

    fn last(&self, _: TopicPatterns) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        absent()
    }

    fn last_per_topic(
        &self,
        _: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        absent()
    }

    fn topics(&self, _: TopicPatterns) -> BoxFuture<'static, Result<Vec<TopicInfo>, BackendError>> {
        absent()
    }

    fn blob_put(&self, _: Bytes) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        absent()
    }

    fn blob_get(
        &self,
        _: BlobHash,
        _: u64,
    ) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        absent()
    }

    fn blob_chunks(
        &self,
        _: BlobHash,
    ) -> BoxFuture<'static, Result<Option<ByteStream>, BackendError>> {
        absent()
    }

    fn blob_put_from(&self, _: ByteStream) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        absent()
    }

    fn call(&self, _: CallRequest) -> FrameStream {
        no_frames()
    }

    fn log(&self, _: LogLevel, _: String, _: Option<String>) {}

    fn position_get(&self, _: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        absent()
    }

    fn position_set(&self, _: String, _: Bytes) -> BoxFuture<'static, Result<(), BackendError>> {
        absent()
    }

    fn processor_name(&self, _: FrameId) -> Option<String> {
        None
    }
}
