//! The protocol's [`Service`] over a [`Store`]. It also chooses the thread that commits, and logs
//! what becomes of Hosts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::Notify;
use xs_engine::{
    AppendError, Appended, Batch, BlobHash, BlobReader, Bound, Cursor, CursorName, CursorSummary,
    Frame, Meta, NewFrame, ReadError, ReadOptions, ResumePoint, Store, SyncPolicy, Topic,
    TopicPatterns,
};
use xs_protocol::limits::LAST_MAX;
use xs_protocol::{
    AppendRequest, BlobSink, BlobSource, CallRequest, Called, Code, Done, DoneImport, Feed,
    HostClaim, HostGuard, ImportRequest, LastRequest, MaintainRequest, Refusal, Resume, Service,
    StoreIdentity, TopicsPage, Wake,
};

use super::commit::Committer;
use super::feed::{FollowFeed, StoredFeed};
use super::fullness::{Fullness, Put};
use super::hooks::Hooks;
use super::hosts::Hosts;
use super::import::Imports;
use super::maintain::Turn;
use super::upload::{self, Uploads};
use super::{call, import, newest, refuse, remove, stats};

/// The topic of the frame that reports the arrival of a remote Host.
const HOST_START: &str = "xs.host.start";

/// A store as the protocol serves it.
pub(crate) struct StoreService {
    core: Arc<Core>,
    hosts: Arc<Hosts>,
    maintenance: Turn,
    uploads: Arc<Uploads>,
}

/// What appends need, shared with calls in progress.
pub(super) struct Core {
    pub(super) store: Arc<Store>,
    pub(super) hooks: Arc<Hooks>,
    pub(super) committer: Committer,
    syncs: bool,
    /// A queued append asks for a sync although the policy does not.
    sync_asked: AtomicBool,
    pub(super) imports: Imports,
    /// Notified when a write failed, after which the store takes no more.
    failed: Arc<Notify>,
    /// Records whether there was space for each append.
    fullness: Arc<Fullness>,
}

impl StoreService {
    /// A service over `store`. `runs_modules`: whether the server has its own Host. `failed` is
    /// notified when the store's files fail; `fullness` records whether they have space.
    pub(crate) fn new(
        store: Arc<Store>,
        runs_modules: bool,
        failed: Arc<Notify>,
        fullness: Arc<Fullness>,
    ) -> std::io::Result<Self> {
        let core = Core {
            committer: Committer::start(Arc::clone(&store))?,
            syncs: store.sync_policy() == SyncPolicy::Sync,
            store,
            hooks: Arc::default(),
            sync_asked: AtomicBool::new(false),
            imports: Imports::default(),
            failed,
            fullness,
        };
        let core = Arc::new(core);
        let seen = Topic::parse(HOST_START).is_ok_and(|topic| {
            core.store.last(&topic.into(), 1).is_ok_and(|frames| !frames.is_empty())
        });
        let told = Arc::clone(&core);
        let tell = move |instance, is_there| told.tell_of_host(instance, is_there);
        let hosts = Hosts::new(runs_modules, seen, Box::new(tell));
        Ok(Self { core, hosts, maintenance: Turn::default(), uploads: Uploads::new() })
    }
}

impl Core {
    /// Queues a batch.
    pub(super) fn submit(
        &self,
        batch: Batch,
        done: impl FnOnce(Result<Appended, AppendError>) + Send + 'static,
    ) {
        if batch.durable {
            self.sync_asked.store(true, Ordering::Release);
        }
        let (failed, fullness) = (Arc::clone(&self.failed), Arc::clone(&self.fullness));
        self.store.submit_with(batch, move |result| {
            if matches!(result, Err(AppendError::Indeterminate(_) | AppendError::Poisoned(_))) {
                failed.notify_one();
            }
            match &result {
                Ok(_) => fullness.note(Put::Batch, None),
                Err(AppendError::StorageFull(shortage)) => {
                    fullness.note(Put::Batch, Some(*shortage));
                }
                Err(_) => {}
            }
            done(result);
        });
    }

    /// Reports in the log that a remote Host has arrived or left.
    fn tell_of_host(&self, instance: [u8; 16], is_there: bool) {
        let word = if is_there { "connected" } else { "disconnected" };
        tracing::info!("a remote Host {word}");
        let Some(frame) = frame_of_host(instance, is_there) else { return };
        self.submit(Batch::from(frame), |result| {
            if let Err(error) = result {
                tracing::error!(%error, "cannot append a frame about a Host");
            }
        });
        // Not committed here: the caller holds a lock.
        self.committer.wake();
    }

    /// Commits what is queued. A commit that only copies runs here. One that syncs runs on the
    /// committer thread, and more batches gather meanwhile. A single batch would only be delayed by
    /// two threads waking each other, so its task syncs it itself.
    pub(super) fn commit(&self) {
        if !self.syncs && !self.sync_asked.swap(false, Ordering::AcqRel) {
            while self.store.lead() {}
            return;
        }
        let done = self.store.waits_alone() && may_block() && {
            // Other tasks of this thread move to another one.
            tokio::task::block_in_place(|| self.store.lead_once())
        };
        if !done {
            self.committer.wake();
        }
    }
}

/// A frame that reports that a remote Host has arrived or left.
fn frame_of_host(instance: [u8; 16], is_there: bool) -> Option<NewFrame> {
    let topic = if is_there { HOST_START } else { "xs.host.end" };
    let instance: String = instance.iter().map(|byte| format!("{byte:02x}")).collect();
    let meta = Meta::parse(format!("{{\"instance\":\"{instance}\"}}")).ok()?;
    Some(NewFrame { meta, ..NewFrame::new(Topic::parse(topic).ok()?) })
}

/// Whether a task may block its thread without blocking its runtime.
fn may_block() -> bool {
    let runtime = tokio::runtime::Handle::try_current();
    runtime.is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
}

impl Service for StoreService {
    fn identity(&self) -> StoreIdentity {
        let store = &self.core.store;
        StoreIdentity { uuid: store.uuid(), epoch: store.epoch(), head: store.head() }
    }

    fn head(&self) -> u64 {
        self.core.store.head()
    }

    fn append(&self, batch: AppendRequest, done: Done) {
        let (batch, removes) = match remove::resolve(&self.core.store, batch) {
            Ok(resolved) => resolved,
            Err(refusal) => return done(Err(refusal)),
        };
        if let Some(nothing) = removes.nothing_to_do(&self.core.store, &batch) {
            return done(Ok(nothing));
        }
        if let Some(refusal) = refuse::cursor_ahead(&batch, self.core.store.head()) {
            return done(Err(refusal));
        }
        self.core.submit(batch, move |result| {
            let result = result.map(|result| removes.outcome(result));
            done(result.map_err(|error| refuse::append(&error)));
        });
    }

    fn remove_now(&self, batch: AppendRequest) -> Result<xs_protocol::Appended, Refusal> {
        remove::now(&self.core.store, batch)
    }

    fn import(&self, request: ImportRequest, done: DoneImport) {
        import::submit(&self.core, request, done);
    }

    fn stats(&self) -> Result<String, Refusal> {
        self.core.fullness.refresh();
        Ok(stats::text(&self.core.store.stats(), self.core.fullness.shortage()))
    }

    fn maintain(
        &self,
        request: &MaintainRequest,
        given_up: &dyn Fn() -> bool,
    ) -> Result<String, Refusal> {
        self.maintenance.run(&self.core.store, request, given_up)
    }

    fn check_resume(&self, from: Resume, offset: u64) -> Result<(), Refusal> {
        let point = ResumePoint { store: Some(from.store), epoch: from.epoch, offset };
        self.core.store.check_resume(&point).map_err(read_refusal)
    }

    fn commit(&self) {
        self.core.commit();
    }

    fn read(&self, options: &ReadOptions) -> Result<Box<dyn Feed>, Refusal> {
        Ok(Box::new(StoredFeed(self.core.store.read(options).map_err(read_refusal)?)))
    }

    fn follow(&self, options: &ReadOptions, wake: Wake) -> Result<Box<dyn Feed>, Refusal> {
        let hook = self.core.hooks.add(&self.core.store, wake);
        let follower = self.core.store.follow(options).map_err(read_refusal)?;
        Ok(Box::new(FollowFeed { follower, _hook: hook }))
    }

    fn get(&self, at: Bound) -> Result<Option<Frame>, Refusal> {
        match at {
            Bound::Id(id) => self.core.store.get(id),
            Bound::Offset(offset) => self.core.store.get_at(offset),
        }
        .map_err(read_refusal)
    }

    fn last(&self, request: &LastRequest) -> Result<Vec<Frame>, Refusal> {
        let LastRequest { topics, n, per_topic } = request;
        match per_topic {
            false => self.core.store.last(topics, *n).map_err(read_refusal),
            true => newest::of_each(&self.core.store, topics, *n, LAST_MAX),
        }
    }

    fn newest(&self, topics: &TopicPatterns, range: Range<u64>) -> Result<Vec<u64>, Refusal> {
        newest::in_range(&self.core.store, topics, range, LAST_MAX)
    }

    fn topics(
        &self,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<TopicsPage, Refusal> {
        Ok(self.core.store.topics_page(topics, after, limit))
    }

    fn has_blob(&self, hash: &BlobHash) -> Result<bool, Refusal> {
        self.core.store.has_blob(hash).map_err(read_refusal)
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal> {
        let reader = self.core.store.blob(hash).map_err(read_refusal)?;
        Ok(reader.map(|reader| Box::new(Source(reader)) as Box<dyn BlobSource>))
    }

    fn bodies(&self, frames: &[Frame], max: u64, out: &mut Vec<(u32, Bytes)>) {
        let bodies = (0..).zip(self.core.store.bodies(frames, max));
        out.extend(bodies.filter_map(|(index, body)| Some((index, body.ok()??))));
    }

    fn blob_sink(&self) -> Result<Box<dyn BlobSink>, Refusal> {
        let writer = self.core.store.blob_writer().map_err(|error| {
            upload::note(&self.core.fullness, &error);
            refuse::put(&error)
        })?;
        Ok(Box::new(self.uploads.begin(writer, Arc::clone(&self.core.fullness))))
    }

    fn cursor(&self, name: &CursorName) -> Result<Option<Cursor>, Refusal> {
        self.core.store.cursor(name).map_err(read_refusal)
    }

    fn cursors(&self) -> Result<Vec<CursorSummary>, Refusal> {
        Ok(self.core.store.cursors())
    }

    fn host_comes(&self, claim: HostClaim, end: Wake) -> Result<HostGuard, Refusal> {
        self.hosts.come(claim, end).map(|part| Box::new(part) as HostGuard)
    }

    fn call(
        &self,
        request: CallRequest,
        wake: Wake,
    ) -> BoxFuture<'static, Result<Called, Refusal>> {
        if !self.hosts.answer_calls() {
            let text = "this server runs no modules; start it with xs serve --modules DIR, or run \
                        them elsewhere: xs host DIR -a ADDR";
            let refusal = Refusal::new(Code::UnknownCommand, text);
            return futures::future::ready(Err(refusal)).boxed();
        }
        call::start(Arc::clone(&self.core), request, wake).boxed()
    }
}

fn read_refusal(error: ReadError) -> Refusal {
    refuse::read(&error)
}

/// A blob being read.
struct Source(BlobReader);

impl BlobSource for Source {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read(&mut self, max: usize) -> Result<Bytes, Refusal> {
        let bytes = self.0.next_bytes(max);
        bytes.map_err(|error| Refusal::new(Code::Corrupt, error.to_string()))
    }
}
