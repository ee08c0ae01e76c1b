//! The requests of a client.

use bytes::Bytes;
use tokio::io::AsyncRead;
use xs_engine::limits::BATCH_RECORDS_MAX;
use xs_engine::{
    Appended, BlobHash, Bound, Cursor, CursorChange, CursorName, CursorSummary, Frame, ReadOptions,
    ResumePoint, Start, TopicPatterns, TopicSummary,
};

use super::place::Place;
use super::streams::Line;
use super::{BlobStream, CallStream, Client, Export, FrameStream, Reply, Subscription, blob};
use crate::error::ClientError;
use crate::message::{
    AppendRequest, CallRequest, ImportRequest, Imported, LastRequest, MaintainRequest, Op,
    RemoveRequest, Request, Response, Resume, SubscribeOptions, SubscribeRequest,
};

impl Client {
    /// Appends a batch. The request is queued when this returns, so batches are appended in the
    /// order of these calls, whenever their replies are awaited. The server stops reading at
    /// [`PeerLimits::requests`](crate::PeerLimits::requests) unanswered requests; further ones are
    /// queued here. When the connection is lost before the answer, a batch with a key can be sent
    /// again as it is; one without may then be stored twice.
    pub fn append(&self, batch: &AppendRequest) -> Reply<Appended> {
        let counts = [batch.frames.len(), batch.cursors.len(), batch.removes.len()];
        let records = counts.iter().sum::<usize>() + usize::from(batch.key.is_some());
        if let Some(error) = self.over_batch(records) {
            return Reply::failed(&self.handle, error);
        }
        let asked = self.handle.borrowed(Op::Append, |out| batch.put(out));
        Reply::of(&self.handle, asked, |response| match response {
            Response::Appended(appended) => Some(appended),
            _ => None,
        })
    }

    /// Removes frames: all of the given frames that exist, or none.
    pub fn remove(&self, request: &RemoveRequest) -> Reply<Appended> {
        if let Some(error) = self.over_batch(request.frames.len()) {
            return Reply::failed(&self.handle, error);
        }
        let asked = self.handle.borrowed(Op::Remove, |out| request.put(out));
        Reply::of(&self.handle, asked, |response| match response {
            Response::Appended(appended) => Some(appended),
            _ => None,
        })
    }

    /// Appends frames of another store, as [`export`](Self::export) delivers them there. Imports of
    /// one connection are done in the order of these calls. When an import is sent again after a
    /// lost connection, frames that were stored are recognized.
    pub fn import(&self, request: &ImportRequest) -> Reply<Imported> {
        if let Some(error) = self.over_batch(request.frames.len()) {
            return Reply::failed(&self.handle, error);
        }
        let asked = self.handle.borrowed(Op::Import, |out| request.put(out));
        Reply::of(&self.handle, asked, |response| match response {
            Response::Imported(imported) => Some(imported),
            _ => None,
        })
    }

    /// Reads the stored frames for another store: every frame with its body, or with the hash of a
    /// body that is too long for a message. It ends with the stored frames, even with
    /// `options.follow`.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn export(
        &self,
        options: &ReadOptions,
        resume: Option<Resume>,
    ) -> Result<Export, ClientError> {
        Export::begin(self, options, resume).await
    }

    /// Statistics of the server and the store: the JSON text of an object.
    pub fn stats(&self) -> Reply<String> {
        Reply::ask(&self.handle, &Request::Stats, |response| match response {
            Response::Told(text) => Some(text),
            _ => None,
        })
    }

    /// Runs maintenance on the store's files, which may take long: the JSON text of a report.
    pub fn maintain(&self, request: &MaintainRequest) -> Reply<String> {
        Reply::ask(&self.handle, &Request::Maintain(request.clone()), |response| match response {
            Response::Told(text) => Some(text),
            _ => None,
        })
    }

    /// The error when a batch has too many records.
    fn over_batch(&self, records: usize) -> Option<ClientError> {
        let max = self.server.limits.batch_records.min(BATCH_RECORDS_MAX as u32);
        (records > max as usize).then_some(ClientError::OverLimit {
            what: "a batch",
            size: records as u64,
            max: u64::from(max),
            advice: "send it in several batches",
        })
    }

    /// Reads what is stored, page by page. The server refuses `options.follow`.
    pub fn fetch(&self, options: &ReadOptions) -> FrameStream {
        FrameStream::new(&self.handle, options)
    }

    /// Reads what is stored and, with `options.follow`, what is appended later.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn subscribe(
        &self,
        options: &ReadOptions,
        how: SubscribeOptions,
    ) -> Result<Subscription, ClientError> {
        self.subscribe_at(options.clone(), how, None).await
    }

    /// Resumes a subscription at `point`, which overrides the start in `options` and the resume in
    /// `how`. A [`Follow`](crate::Follow) does so automatically.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses: with
    /// [`Code::CursorAhead`](crate::Code::CursorAhead) when frames that were seen are lost, with
    /// [`Code::OtherStore`](crate::Code::OtherStore) when the point is another store's.
    pub async fn subscribe_from(
        &self,
        point: &ResumePoint,
        options: &ReadOptions,
        how: SubscribeOptions,
    ) -> Result<Subscription, ClientError> {
        let start = Start::From(Bound::Offset(point.offset));
        let options = ReadOptions { start, ..options.clone() };
        let store = point.store.unwrap_or(self.server.uuid);
        let resume = Some(Resume { store, epoch: point.epoch });
        self.subscribe_at(options, SubscribeOptions { resume, ..how }, Some(point.offset)).await
    }

    /// Subscribes, after everything below `position` was received.
    pub(super) async fn subscribe_at(
        &self,
        options: ReadOptions,
        how: SubscribeOptions,
        position: Option<u64>,
    ) -> Result<Subscription, ClientError> {
        let (credit, place) = (how.credit, Place::new(&options, position));
        let request = Request::Subscribe(SubscribeRequest { options, how });
        let accepted = |response| matches!(response, Response::Accepted).then_some(());
        let (mut line, reply) = Line::open(&self.handle, credit, &request, accepted);
        match reply.await {
            Ok(()) => Ok(Subscription::new(line, place, self.server.resume())),
            Err(error) => {
                line.refused();
                Err(error)
            }
        }
    }

    /// The frame at an id or an offset.
    pub fn get(&self, at: Bound) -> Reply<Option<Frame>> {
        Reply::ask(&self.handle, &Request::Get(at), |response| match response {
            Response::Frames(frames) => Some(frames.into_iter().next()),
            _ => None,
        })
    }

    /// The newest frames, in log order.
    pub fn last(&self, request: &LastRequest) -> Reply<Vec<Frame>> {
        let request = Request::Last(request.clone());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Frames(frames) => Some(frames),
            _ => None,
        })
    }

    /// The topics in use.
    pub fn topics(&self, topics: &TopicPatterns) -> Reply<Vec<TopicSummary>> {
        let request = Request::Topics(topics.clone());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Topics(topics) => Some(topics),
            _ => None,
        })
    }

    /// Uploads a blob, reading `source` as the server takes it; returns its hash and length.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Source`] when `source` fails.
    pub async fn blob_put<R>(&self, source: R) -> Result<(BlobHash, u64), ClientError>
    where
        R: AsyncRead + Send,
    {
        blob::put(&self.handle, &self.server.limits, source).await
    }

    /// Uploads a blob whose bytes are in memory.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn blob_put_bytes(&self, bytes: Bytes) -> Result<BlobHash, ClientError> {
        let (hash, _) = blob::put_bytes(&self.handle, &self.server.limits, bytes).await?;
        Ok(hash)
    }

    /// Opens a blob; `None` when the store does not have it.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn blob_get(&self, hash: &BlobHash) -> Result<Option<BlobStream>, ClientError> {
        blob::get(&self.handle, self.credit, hash).await
    }

    /// Whether the store has a blob.
    pub fn blob_has(&self, hash: &BlobHash) -> Reply<bool> {
        Reply::ask(&self.handle, &Request::BlobHas(*hash), |response| match response {
            Response::Has(has) => Some(has),
            _ => None,
        })
    }

    /// A cursor with its state.
    pub fn cursor_get(&self, name: &CursorName) -> Reply<Option<Cursor>> {
        let request = Request::CursorGet(name.clone());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Cursor(cursor) => Some(cursor),
            _ => None,
        })
    }

    /// Changes one cursor; returns its new revision, 0 when it was removed.
    pub fn cursor_set(&self, change: CursorChange) -> Reply<u64> {
        Reply::ask(&self.handle, &Request::CursorSet(change), |response| match response {
            Response::Number(revision) => Some(revision),
            _ => None,
        })
    }

    /// All cursors, without their states.
    pub fn cursor_list(&self) -> Reply<Vec<CursorSummary>> {
        Reply::ask(&self.handle, &Request::CursorList, |response| match response {
            Response::Cursors(cursors) => Some(cursors),
            _ => None,
        })
    }

    /// Calls a command. Dropping the stream before its end cancels the call.
    ///
    /// # Errors
    /// [`ClientError`]; [`Code::UnknownCommand`](crate::Code::UnknownCommand) when there is none.
    pub async fn call(&self, request: &CallRequest) -> Result<CallStream, ClientError> {
        let name = request.name.clone();
        let request = Request::Call { credit: self.credit, call: request.clone() };
        let called = |response| match response {
            Response::Called(id) => Some(id),
            _ => None,
        };
        let (mut line, reply) = Line::open(&self.handle, self.credit, &request, called);
        match reply.await {
            Ok(id) => Ok(CallStream::new(line, id, name)),
            Err(error) => {
                line.refused();
                Err(error)
            }
        }
    }

    /// Checks that the server answers.
    pub fn ping(&self) -> Reply<()> {
        let request = Request::Ping(Bytes::new());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Pong => Some(()),
            _ => None,
        })
    }
}
