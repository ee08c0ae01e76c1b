//! What a server needs of a store. The `xs` binary implements it over the engine, tests in memory.
//! The server does everything that concerns bytes, roles, credit and order; a service only reads
//! and writes frames, and never sees a socket.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use xs_engine::{
    Appended, BlobHash, Bound, Cursor, CursorName, CursorSummary, Frame, FrameId, ReadOptions,
    Topic, TopicPatterns, TopicSummary,
};

use crate::error::{Code, Refusal};
use crate::message::{
    AppendRequest, CallRequest, HostClaim, ImportRequest, Imported, LastRequest, MaintainRequest,
    Resume,
};

/// Called, from any thread and as often as one likes, when a [`Feed`] that was idle may have more.
/// It only sets a flag and wakes a task: it may be called inside a commit. All feeds of a
/// connection are given the same one: it is enough to call it once for all.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Takes the outcome of an append, once, from any thread, also from inside [`Service::append`].
pub type Done = Box<dyn FnOnce(Result<Appended, Refusal>) + Send>;

/// Takes the outcome of an import, as [`Done`] that of an append.
pub type DoneImport = Box<dyn FnOnce(Result<Imported, Refusal>) + Send>;

/// Some of the topics, and the name behind which others follow.
pub type TopicsPage = (Vec<TopicSummary>, Option<Topic>);

/// Stands for a connection of the Host, and is dropped when the connection has ended.
pub type HostGuard = Box<dyn Send>;

/// The store that HELLO tells about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The store's uuid.
    pub uuid: [u8; 16],
    /// Its present epoch.
    pub epoch: u64,
    /// The offset that the next frame will get.
    pub head: u64,
}

/// A store that a server serves.
///
/// Methods are called on the task of a connection, on a thread of the runtime, unless their text
/// says that they may block. The others may touch memory and the page cache and nothing slower.
pub trait Service: Send + Sync + 'static {
    /// Uuid, epoch and head as they are now.
    fn identity(&self) -> StoreIdentity;

    /// The offset that the next frame will get.
    fn head(&self) -> u64 {
        self.identity().head
    }

    /// Takes a batch into the queue and returns without waiting for it. Batches of one connection
    /// come in their order and must be committed in it. Roles were checked before.
    fn append(&self, batch: AppendRequest, done: Done);

    /// Takes frames of another store into the queue, in order with the appends. A frame that cannot
    /// be stored keeps none of the others out.
    fn import(&self, import: ImportRequest, done: DoneImport) {
        drop(import);
        done(Err(unserved("IMPORT")));
    }

    /// Removes frames and returns when none of their bytes is left in the store's files. May block
    /// for as long as rewriting them takes.
    ///
    /// # Errors
    /// [`Refusal`]; the frames may be removed and their bytes still be there.
    fn remove_now(&self, batch: AppendRequest) -> Result<Appended, Refusal> {
        drop(batch);
        Err(unserved("REMOVE with NOW"))
    }

    /// What the store tells about itself: the JSON text of an object. May block.
    ///
    /// # Errors
    /// [`Refusal`] when it cannot be told.
    fn stats(&self) -> Result<String, Refusal> {
        Err(unserved("STATS"))
    }

    /// Works on the store's files, and tells what was done: the JSON text of an object. May block
    /// for as long as the work takes. `given_up` says whether nobody waits for it any more: work
    /// that can be stopped is stopped then.
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

    /// Whether an offset that was seen elsewhere, or earlier, still stands for the same frames.
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

    /// Follows after the last of the appends that were read from a socket together: the time to
    /// commit what is queued. Must not wait for a sync: where one is needed, another thread does
    /// it.
    fn commit(&self);

    /// Opens a bounded read; `options.follow` is false. May block when it begins with the last so
    /// many frames and does not go backwards.
    ///
    /// # Errors
    /// [`Refusal`] when the options contradict each other or the log cannot be read.
    fn read(&self, options: &ReadOptions) -> Result<Box<dyn Feed>, Refusal>;

    /// Opens a read that goes on with what is appended later. `wake` is kept by the feed. May block
    /// as [`read`](Self::read) may.
    ///
    /// # Errors
    /// [`Refusal`] when the options contradict each other or the log cannot be read.
    fn follow(&self, options: &ReadOptions, wake: Wake) -> Result<Box<dyn Feed>, Refusal>;

    /// The frame at a place, if it is there.
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
    /// block. Whoever may have many topics does better than to find the newest of all first.
    ///
    /// # Errors
    /// [`Refusal`] when the log cannot be read, or with [`Code::TooSlow`] when they are more than
    /// [`LAST_MAX`](crate::limits::LAST_MAX).
    fn newest(&self, topics: &TopicPatterns, range: Range<u64>) -> Result<Vec<u64>, Refusal> {
        let newest = self.last(&LastRequest { topics: topics.clone(), n: 1, per_topic: true })?;
        Ok(newest.iter().filter_map(Frame::offset).filter(|at| range.contains(at)).collect())
    }

    /// The topics that are in use, in byte order: at most `limit` of those behind `after`, and the
    /// name behind which others follow, if any do. May block.
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
    /// [`Refusal`] when that cannot be found out.
    fn has_blob(&self, hash: &BlobHash) -> Result<bool, Refusal>;

    /// Opens a blob for reading; `None` when there is none. May block.
    ///
    /// # Errors
    /// [`Refusal`] when it cannot be read.
    fn blob(&self, hash: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal>;

    /// Adds the whole bodies of frames to `out`, each with the place of its frame in `frames`. One
    /// that has more than `max` bytes or cannot be read is left out: who asks for the blob is told
    /// why.
    fn bodies(&self, frames: &[Frame], max: u64, out: &mut Vec<(u32, Bytes)>);

    /// Begins a new blob. May block.
    ///
    /// # Errors
    /// [`Refusal`] when the store takes none.
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

    /// A connection says that it runs modules of the store; it may, as far as its role goes. What
    /// is returned is dropped when it has ended. `end` has it ended, for a service that learns that
    /// the connection is dead; it may be called from any thread, and later than that.
    ///
    /// # Errors
    /// [`Refusal`] with [`Code::OwnHost`] or [`Code::OtherHost`] when others run them.
    fn host_comes(&self, claim: HostClaim, end: Wake) -> Result<HostGuard, Refusal> {
        let _ = (claim, end);
        Err(Refusal::new(Code::OwnHost, "no Host is taken here"))
    }

    /// Appends the frame of a call and opens the feed of its results. The feed ends after
    /// `<name>.complete` or `<name>.error`; dropping it before that cancels the call.
    fn call(&self, request: CallRequest, wake: Wake)
    -> BoxFuture<'static, Result<Called, Refusal>>;
}

/// The refusal of a service that does not keep what an op is about.
fn unserved(op: &str) -> Refusal {
    Refusal::new(Code::UnknownOp, format!("{op} is not known to this server"))
}

/// A call under way.
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
    /// Pushes frames to `frames` until their records have `room` bytes or more, or until there is
    /// something else to say, or when it has looked at as much as is fair to others for one call.
    /// What it returns comes after the frames it pushed.
    ///
    /// # Errors
    /// [`Refusal`] ends the feed.
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal>;

    /// The offset the feed will look at next (reading backwards: the lowest it has looked at), so
    /// that a filtered reader may go on from there although nothing matched.
    fn scanned_to(&self) -> u64;
}

/// Why [`Feed::pull`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// The room is used up, or enough was looked at; pull again for more.
    More,
    /// Nothing more at present; the wake will be called.
    Idle,
    /// All that was stored when the read began was pulled; only for feeds that follow, once.
    CaughtUp {
        /// The offset the next frame had then.
        head: u64,
    },
    /// So many ephemeral frames were lost here because the reader was slow.
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
    /// There will be no more.
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

/// A blob being written. Methods may block. Dropping it forgets the blob.
pub trait BlobSink: Send {
    /// Adds bytes.
    ///
    /// # Errors
    /// [`Refusal`] ends the upload.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal>;

    /// Ends it and makes it as durable as the store's policy asks for.
    ///
    /// # Errors
    /// [`Refusal`] when the blob was not kept.
    fn finish(self: Box<Self>) -> Result<(BlobHash, u64), Refusal>;
}
