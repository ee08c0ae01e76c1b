//! The interface between a server and a store. The `xs` binary implements it over the engine, tests
//! in memory. The server handles everything about bytes, roles, credit and order; a service only
//! reads and writes frames, and never sees a socket.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use xs_engine::{
    Appended, BlobHash, Bound, Cursor, CursorName, CursorSummary, Frame, FrameId, ReadOptions,
    StoreUuid, Topic, TopicPatterns, TopicSummary,
};

use crate::error::{Code, Refusal};
use crate::message::{
    AppendRequest, CallRequest, HostClaim, ImportRequest, Imported, LastRequest, MaintainRequest,
    Resume,
};

/// Called, from any thread and any number of times, when an idle [`Feed`] may have more. It only
/// sets a flag and wakes a task, so it may be called inside a commit. All feeds of a connection get
/// the same one: calling it once for all of them is enough.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Receives the result of an append, once, on any thread, possibly inside [`Service::append`].
pub type Done = Box<dyn FnOnce(Result<Appended, Refusal>) + Send>;

/// Receives the result of an import, like [`Done`] for an append.
pub type DoneImport = Box<dyn FnOnce(Result<Imported, Refusal>) + Send>;

/// Some of the topics, and the name after which the next page begins.
pub type TopicsPage = (Vec<TopicSummary>, Option<Topic>);

/// Represents a connection of the Host; dropped when the connection ends.
pub type HostGuard = Box<dyn Send>;

/// The store's identity as sent in HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The store's uuid.
    pub uuid: StoreUuid,
    /// Its current epoch.
    pub epoch: u64,
    /// The offset of the next frame.
    pub head: u64,
}

/// A store that a server serves.
///
/// Methods are called on a connection's task, on a thread of the runtime, unless their
/// documentation says that they may block. The others may access memory and the page cache and
/// nothing slower.
pub trait Service: Send + Sync + 'static {
    /// The current uuid, epoch and head.
    fn identity(&self) -> StoreIdentity;

    /// The offset of the next frame.
    fn head(&self) -> u64 {
        self.identity().head
    }

    /// Queues a batch and returns without waiting for it. Batches of one connection arrive in order
    /// and must be committed in that order. Roles were checked before.
    fn append(&self, batch: AppendRequest, done: Done);

    /// Queues frames of another store, in order with the appends. A frame that cannot be stored
    /// does not affect the others.
    fn import(&self, import: ImportRequest, done: DoneImport) {
        drop(import);
        done(Err(unserved("IMPORT")));
    }

    /// Removes frames and returns when none of their bytes is left in the store's files. May block
    /// for as long as rewriting the files takes.
    ///
    /// # Errors
    /// [`Refusal`]; the frames may be removed while their bytes still exist.
    fn remove_now(&self, batch: AppendRequest) -> Result<Appended, Refusal> {
        drop(batch);
        Err(unserved("REMOVE with NOW"))
    }

    /// Statistics of the store: the JSON text of an object. May block.
    ///
    /// # Errors
    /// [`Refusal`] when they cannot be computed.
    fn stats(&self) -> Result<String, Refusal> {
        Err(unserved("STATS"))
    }

    /// Maintains the store's files, and returns a report: the JSON text of an object. May block for
    /// as long as the work takes. `given_up` returns whether the requester has disconnected: work
    /// that can be stopped then stops.
    ///
    /// # Errors
    /// [`Refusal`] when it could not be done.
    fn maintain(
        &self,
        request: &MaintainRequest,
        given_up: &dyn Fn() -> bool,
    ) -> Result<String, Refusal> {
        let _ = (request, given_up);
        Err(unserved("MAINTAIN"))
    }

    /// Checks that an offset seen elsewhere, or earlier, still stands for the same frames.
    ///
    /// # Errors
    /// [`Refusal`] with [`Code::CursorAhead`] or [`Code::OtherStore`] when it does not.
    fn check_resume(&self, from: Resume, offset: u64) -> Result<(), Refusal> {
        let store = self.identity();
        if from.store != store.uuid {
            return Err(Refusal::new(Code::OtherStore, "the position belongs to another store"));
        }
        if from.epoch != store.epoch || offset > store.head {
            let text = "the position lies beyond what is known of its epoch";
            return Err(Refusal::new(Code::CursorAhead, text));
        }
        Ok(())
    }

    /// Called after the last of the appends that were read from a socket together: the time to
    /// commit what is queued. Must not wait for a sync: if one is needed, another thread does it.
    fn commit(&self);

    /// Opens a bounded read; `options.follow` is false. May block when it starts with the last N
    /// frames and reads forward.
    ///
    /// # Errors
    /// [`Refusal`] when the options contradict each other or the log cannot be read.
    fn read(&self, options: &ReadOptions) -> Result<Box<dyn Feed>, Refusal>;

    /// Opens a read that continues with what is appended later. The feed keeps `wake`. May block
    /// like [`read`](Self::read).
    ///
    /// # Errors
    /// [`Refusal`] when the options contradict each other or the log cannot be read.
    fn follow(&self, options: &ReadOptions, wake: Wake) -> Result<Box<dyn Feed>, Refusal>;

    /// The frame at a position, if it exists.
    ///
    /// # Errors
    /// [`Refusal`] when the log cannot be read.
    fn get(&self, at: Bound) -> Result<Option<Frame>, Refusal>;

    /// The newest frames, in log order. May block.
    ///
    /// # Errors
    /// [`Refusal`] when the log cannot be read, or with [`Code::InvalidRead`] when they are more
    /// than [`LAST_MAX`](crate::limits::LAST_MAX).
    fn last(&self, request: &LastRequest) -> Result<Vec<Frame>, Refusal>;

    /// The offset of the newest frame of each topic, in order, of those that lie in a range. May
    /// block. The default finds the newest frames of all topics first; override it for stores with
    /// many topics.
    ///
    /// # Errors
    /// [`Refusal`] when the log cannot be read, or with [`Code::TooSlow`] when they are more than
    /// [`LAST_MAX`](crate::limits::LAST_MAX).
    fn newest(&self, topics: &TopicPatterns, range: Range<u64>) -> Result<Vec<u64>, Refusal> {
        let newest = self.last(&LastRequest { topics: topics.clone(), n: 1, per_topic: true })?;
        Ok(newest.iter().filter_map(Frame::offset).filter(|at| range.contains(at)).collect())
    }

    /// The topics in use, in byte order: at most `limit` of those after `after`, and the name after
    /// which the next page begins, if there is one. May block.
    ///
    /// # Errors
    /// [`Refusal`] when the log cannot be read.
    fn topics(
        &self,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<TopicsPage, Refusal>;

    /// Whether the store has a blob.
    ///
    /// # Errors
    /// [`Refusal`] when that cannot be determined.
    fn has_blob(&self, hash: &BlobHash) -> Result<bool, Refusal>;

    /// Opens a blob for reading; `None` when it does not exist. May block.
    ///
    /// # Errors
    /// [`Refusal`] when it cannot be read.
    fn blob(&self, hash: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal>;

    /// Adds the whole bodies of frames to `out`, each with the index of its frame in `frames`. A
    /// body of more than `max` bytes or that cannot be read is omitted: a request for the blob
    /// reports why.
    fn bodies(&self, frames: &[Frame], max: u64, out: &mut Vec<(u32, Bytes)>);

    /// Starts a new blob. May block.
    ///
    /// # Errors
    /// [`Refusal`] when the store accepts none.
    fn blob_sink(&self) -> Result<Box<dyn BlobSink>, Refusal>;

    /// A cursor, if it exists.
    ///
    /// # Errors
    /// [`Refusal`] when its state cannot be read.
    fn cursor(&self, name: &CursorName) -> Result<Option<Cursor>, Refusal>;

    /// All cursors, without their states, in byte order of their names. May block.
    ///
    /// # Errors
    /// [`Refusal`] when they cannot be read.
    fn cursors(&self) -> Result<Vec<CursorSummary>, Refusal>;

    /// A connection claims to run modules of the store; its role allows that. The returned guard is
    /// dropped when the connection has ended. `end` closes the connection, for a service that
    /// learns that it is dead; it may be called from any thread, even after the connection has
    /// ended.
    ///
    /// # Errors
    /// [`Refusal`] with [`Code::OwnHost`] or [`Code::OtherHost`] when another Host runs them.
    fn host_comes(&self, claim: HostClaim, end: Wake) -> Result<HostGuard, Refusal> {
        let _ = (claim, end);
        Err(Refusal::new(Code::OwnHost, "no Host is taken here"))
    }

    /// Appends the frame of a call and opens the feed of its results. The feed ends after
    /// `<name>.complete` or `<name>.error`; dropping it before that cancels the call.
    fn call(&self, request: CallRequest, wake: Wake)
    -> BoxFuture<'static, Result<Called, Refusal>>;
}

/// The refusal of a service that does not implement an op.
fn unserved(op: &str) -> Refusal {
    Refusal::new(Code::UnknownOp, format!("{op} is not known to this server"))
}

/// A call in progress.
pub struct Called {
    /// Id of the frame `<name>.call`.
    pub id: FrameId,
    /// Its results.
    pub feed: Box<dyn Feed>,
}

impl fmt::Debug for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Called").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Frames, pulled as the peer has credit for them.
pub trait Feed: Send {
    /// Pushes frames to `frames` until their records have `room` bytes or more, or there is
    /// something else to report, or it has examined as much as is fair to others in one call. The
    /// return value comes after the pushed frames.
    ///
    /// # Errors
    /// [`Refusal`] ends the feed.
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal>;

    /// The offset the feed will examine next (backward: the lowest it has examined), so that a
    /// filtered reader may resume from there although nothing matched.
    fn scanned_to(&self) -> u64;
}

/// Why [`Feed::pull`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// The room is used up, or enough was examined; pull again for more.
    More,
    /// Nothing more for now; the wake will be called.
    Idle,
    /// Everything stored when the read began was pulled; only for feeds that follow, once.
    CaughtUp {
        /// The offset of the next frame at that time.
        head: u64,
    },
    /// Ephemeral frames were lost here because the reader was slow.
    Lost {
        /// How many.
        ephemeral: u64,
    },
    /// Stored frames that cannot be read were skipped.
    Gap {
        /// The first.
        from: u64,
        /// The one after the last.
        to: u64,
    },
    /// The end of the feed.
    End,
}

/// A blob being read. Methods may block.
pub trait BlobSource: Send {
    /// Bytes of the whole blob.
    fn len(&self) -> u64;

    /// Whether the blob has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next bytes, at most `max`; empty at the end.
    ///
    /// # Errors
    /// [`Refusal`] when the blob is damaged.
    fn read(&mut self, max: usize) -> Result<Bytes, Refusal>;
}

/// A blob being written. Methods may block. Dropping it discards the blob.
pub trait BlobSink: Send {
    /// Adds bytes.
    ///
    /// # Errors
    /// [`Refusal`] ends the upload.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal>;

    /// Completes it and makes it as durable as the store's policy asks for.
    ///
    /// # Errors
    /// [`Refusal`] when the blob was not stored.
    fn finish(self: Box<Self>) -> Result<(BlobHash, u64), Refusal>;
}
