//! The store as one processor's isolate sees it: [`Backend`] over the Host's connection. Grants a
//! module nothing more; appends keep the order in which they were made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use xs_engine::{
    BlobHash, Condition, CursorChange, CursorName, CursorValue, ExpectRevision, Frame, FrameId,
    IdempotencyKey, NewFrame, ReadOptions, Topic, TopicPatterns,
};
use xs_protocol::{AppendRequest, Appended, Client};

use super::lifecycle::{Key, Versions};
use super::log_limiter::{Decision, LogLimiter};
use super::report;
use crate::isolate::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, LogLevel, TopicInfo,
};
use crate::remote::{Remote, asks_remote, refused, stored};

/// Frames that end a call, to be committed together with the command's cursor.
pub(super) struct Finish {
    /// The call.
    pub(super) call: FrameId,
    /// Its last frames; the very last is `<name>.complete`.
    pub(super) frames: Vec<NewFrame>,
    /// Receives the result once they are stored.
    pub(super) answer: oneshot::Sender<Result<Appended, BackendError>>,
}

/// One version of a processor, as a client of the store.
pub(super) struct ProcessorStore {
    remote: Remote,
    key: Key,
    create: FrameId,
    versions: Versions,
    log_limiter: Mutex<LogLimiter>,
    finishes: Option<mpsc::UnboundedSender<Finish>>,
    complete: Topic,
    /// The revisions of positions as this version last read or wrote them. After someone else
    /// resets a position, this version cannot write it: what is read from then on is for the next
    /// version.
    revisions: Arc<Mutex<HashMap<String, u64>>>,
}

impl ProcessorStore {
    /// The store for the version `create` of `key`. A command's finished calls go to `finishes`.
    pub(super) fn new(
        client: Client,
        key: Key,
        create: FrameId,
        versions: Versions,
        finishes: Option<mpsc::UnboundedSender<Finish>>,
    ) -> Self {
        let complete = key.name.topic("complete");
        let remote = Remote::new(client);
        let (log_limiter, revisions) = (Mutex::default(), Arc::default());
        Self { remote, key, create, versions, log_limiter, finishes, complete, revisions }
    }

    /// The call that these frames end, if they do.
    fn ends(&self, frames: &[NewFrame]) -> Option<FrameId> {
        let last = frames.last().filter(|frame| frame.topic == self.complete)?;
        last.origin.and_then(|origin| origin.input)
    }

    fn cursor(&self, key: &str) -> CursorName {
        position_cursor(&self.key, key)
    }
}

impl Backend for ProcessorStore {
    fn append(
        &self,
        frames: Vec<NewFrame>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        if let (Some(finishes), Some(call)) = (&self.finishes, self.ends(&frames)) {
            let (answer, answered) = oneshot::channel();
            let finish = Finish { call, frames: frames.clone(), answer };
            let sent = finishes.send(finish).is_ok();
            return Box::pin(async move {
                let gone = || BackendError::new(BackendCode::Unavailable, "the command has ended");
                let answer = if sent { answered.await.ok() } else { None };
                stored(&frames, &answer.unwrap_or_else(|| Err(gone()))?)
            });
        }
        self.remote.append(frames)
    }

    fn append_if(
        &self,
        frames: Vec<NewFrame>,
        conditions: Vec<Condition>,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        self.remote.append_if(frames, conditions, key)
    }

    fn read(&self, options: ReadOptions) -> FrameStream {
        self.remote.read(options)
    }

    fn get(&self, id: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        self.remote.get(id)
    }

    fn last(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        self.remote.last(topics)
    }

    fn last_per_topic(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        self.remote.last_per_topic(topics)
    }

    fn call(&self, request: CallRequest) -> FrameStream {
        self.remote.call(request)
    }

    asks_remote!(remote);

    fn log(&self, level: LogLevel, message: String, fields: Option<String>) {
        let Decision::Write { dropped } = self.log_limiter.lock().line(Instant::now()) else {
            return;
        };
        let mut lines = Vec::with_capacity(2);
        if dropped > 0 {
            let text = format!("{dropped} lines were dropped: at most 100 are kept per 10 s");
            lines.push(report::log(&self.key, self.create, LogLevel::Warn, &text, None));
        }
        lines.push(report::log(&self.key, self.create, level, &message, fields.as_deref()));
        // A log line is not retried: nothing waits for it, and a full store loses it.
        drop(self.remote.client.append(&AppendRequest::frames(lines)));
    }

    fn position_get(&self, key: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        let reply = self.remote.client.cursor_get(&self.cursor(&key));
        let revisions = Arc::clone(&self.revisions);
        Box::pin(async move {
            let cursor = reply.await.map_err(refused)?;
            let revision = cursor.as_ref().map_or(0, |cursor| cursor.revision);
            revisions.lock().insert(key, revision);
            Ok(cursor.map(|cursor| cursor.state))
        })
    }

    fn position_set(
        &self,
        key: String,
        value: Bytes,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        let name = self.cursor(&key);
        let known = self.revisions.lock().get(&key).copied();
        let expect = known.map_or(ExpectRevision::Any, ExpectRevision::Is);
        let reply = self.remote.client.cursor_set(CursorChange {
            name,
            expect,
            set: Some(CursorValue { offset: 0, state: value }),
        });
        let revisions = Arc::clone(&self.revisions);
        Box::pin(async move {
            let revision = reply.await.map_err(refused)?;
            revisions.lock().insert(key, revision);
            Ok(())
        })
    }

    fn processor_name(&self, create: FrameId) -> Option<String> {
        self.versions.name(create).map(|name| name.as_str().to_owned())
    }
}

/// The cursor of a processor itself.
///
/// # Panics
/// Never: a name leaves room for a kind.
#[must_use]
pub fn processor_cursor(key: &Key) -> CursorName {
    CursorName::parse(&format!("xs.{}.{}", key.kind, key.name))
        .expect("a name leaves room for a kind")
}

/// The cursor of a position under a module's key, which may be too long for a cursor name.
pub(super) fn position_cursor(processor: &Key, key: &str) -> CursorName {
    let prefix = format!("xs.{}.{}", processor.kind, processor.name);
    CursorName::parse(&format!("{prefix}:{key}")).unwrap_or_else(|_| {
        let hash = BlobHash::of(key.as_bytes());
        let short: String = hash.as_bytes()[..16].iter().map(|b| format!("{b:02x}")).collect();
        CursorName::parse(&format!("{prefix}:{short}")).expect("a name leaves room for a hash")
    })
}

/// The backend in the form isolates take.
pub(super) fn shared(store: ProcessorStore) -> Arc<dyn Backend> {
    Arc::new(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{Kind, ProcessorName};

    #[test]
    fn every_position_has_a_cursor() {
        let longest = "a".repeat(crate::name::NAME_BYTES_MAX);
        let key = Key { kind: Kind::Generator, name: ProcessorName::parse(&longest).unwrap() };
        assert_eq!(processor_cursor(&key).as_str(), format!("xs.generator.{longest}"));
        assert!(position_cursor(&key, "input").as_str().ends_with(":input"));
        let (one, two) = (position_cursor(&key, &"x".repeat(300)), position_cursor(&key, "a\nb"));
        assert_ne!(one, two);
    }
}
