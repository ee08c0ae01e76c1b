//! The store as a script sees it: with the rights of its user. Appends count as the user's own, and
//! file positions last as long as the script.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use xs_engine::{
    BlobHash, Condition, Frame, FrameId, IdempotencyKey, NewFrame, ReadOptions, TopicPatterns,
};
use xs_protocol::Client;

use super::Console;
use crate::host::lifecycle::{Versions, parse_topic};
use crate::isolate::{
    Backend, BackendError, ByteStream, CallRequest, FrameStream, LogLevel, TopicInfo,
};
use crate::remote::{Remote, asks_remote};

pub(super) struct ScriptStore {
    remote: Remote,
    console: Arc<dyn Console>,
    names: Names,
    positions: Mutex<HashMap<String, Bytes>>,
}

/// The names of the processors that made the frames read, looked up as they arrive.
#[derive(Clone)]
struct Names {
    remote: Remote,
    versions: Versions,
}

impl Names {
    async fn learn(&self, frame: Frame) -> Frame {
        let processor = frame.origin().map(|origin| origin.processor);
        let Some(create) = processor.filter(|create| self.versions.name(*create).is_none()) else {
            return frame;
        };
        // A frame whose maker is not found has no name.
        if let Ok(Some(made)) = self.remote.get(create).await
            && let Some((key, _)) = parse_topic(made.topic())
        {
            self.versions.insert(create, key.name);
        }
        frame
    }

    fn learn_all(self, frames: FrameStream) -> FrameStream {
        let learnt = frames.then(move |frame| {
            let names = self.clone();
            async move {
                match frame {
                    Ok(frame) => Ok(names.learn(frame).await),
                    Err(error) => Err(error),
                }
            }
        });
        learnt.boxed()
    }
}

impl ScriptStore {
    pub(super) fn new(client: Client, console: Arc<dyn Console>) -> Self {
        let remote = Remote::new(client);
        let names = Names { remote: remote.clone(), versions: Versions::default() };
        Self { remote, console, names, positions: Mutex::default() }
    }
}

/// Only a processor can be the origin of its appends.
fn without_origin(mut frames: Vec<NewFrame>) -> Vec<NewFrame> {
    frames.iter_mut().for_each(|frame| frame.origin = None);
    frames
}

impl Backend for ScriptStore {
    fn append(
        &self,
        frames: Vec<NewFrame>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        self.remote.append(without_origin(frames))
    }

    fn append_if(
        &self,
        frames: Vec<NewFrame>,
        conditions: Vec<Condition>,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        self.remote.append_if(without_origin(frames), conditions, key)
    }

    fn read(&self, options: ReadOptions) -> FrameStream {
        self.names.clone().learn_all(self.remote.read(options))
    }

    fn get(&self, id: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        let (found, names) = (self.remote.get(id), self.names.clone());
        Box::pin(async move {
            match found.await? {
                Some(frame) => Ok(Some(names.learn(frame).await)),
                None => Ok(None),
            }
        })
    }

    fn last(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        let (found, names) = (self.remote.last(topics), self.names.clone());
        Box::pin(async move {
            match found.await? {
                Some(frame) => Ok(Some(names.learn(frame).await)),
                None => Ok(None),
            }
        })
    }

    fn last_per_topic(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        let (found, names) = (self.remote.last_per_topic(topics), self.names.clone());
        Box::pin(async move {
            let mut learnt = Vec::new();
            for frame in found.await? {
                learnt.push(names.learn(frame).await);
            }
            Ok(learnt)
        })
    }

    fn call(&self, mut request: CallRequest) -> FrameStream {
        // The user is not a processor.
        request.origin = None;
        self.names.clone().learn_all(self.remote.call(request))
    }

    asks_remote!(remote);

    fn log(&self, level: LogLevel, message: String, fields: Option<String>) {
        // Output without a reader is lost.
        let _ = self.console.log(level, &message, fields.as_deref());
    }

    fn position_get(&self, key: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        let position = self.positions.lock().get(&key).cloned();
        Box::pin(async move { Ok(position) })
    }

    fn position_set(
        &self,
        key: String,
        value: Bytes,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        self.positions.lock().insert(key, value);
        Box::pin(async { Ok(()) })
    }

    fn processor_name(&self, create: FrameId) -> Option<String> {
        self.names.versions.name(create).map(|name| name.as_str().to_owned())
    }
}
