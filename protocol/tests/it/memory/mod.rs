//! A store in memory, as simple as possible, so that the tests exercise only the protocol.

mod blobs;
mod feeds;
mod log;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::Duration;

pub(crate) use self::feeds::LOOK_MAX;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use xs_engine::{
    BlobHash, Cursor, CursorName, Frame, FrameId, IdempotencyKey, Meta, NewFrame, Topic,
};
use xs_protocol::{AppendRequest, Appended, Done, HostClaim, Refusal, Service as _, Wake};

/// A store that commits in place, or, when `held` is set, only on [`Memory::release`].
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<State>);

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    /// Notified when something is no longer held.
    let_go: Condvar,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Waits while something is held.
    fn wait_while(&self, is_held: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        self.let_go.wait_while(&mut inner, |inner| is_held(inner));
        inner
    }

    /// Holds or releases something.
    fn hold(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.let_go.notify_all();
    }
}

#[derive(Default)]
struct Inner {
    frames: Vec<Frame>,
    ephemeral: Vec<(u64, Frame)>,
    blobs: BTreeMap<BlobHash, Bytes>,
    cursors: BTreeMap<CursorName, Cursor>,
    keys: BTreeMap<IdempotencyKey, (AppendRequest, Appended)>,
    removed: BTreeSet<u64>,
    /// A frame that only followers can read.
    damaged: Option<u64>,
    queue: Vec<(AppendRequest, Done)>,
    held: bool,
    commits: u64,
    last_id: u64,
    /// Without duplicates.
    wakes: Vec<Weak<dyn Fn() + Send + Sync>>,
    followers: usize,
    cancelled: Vec<FrameId>,
    /// Frames that followers have pulled.
    pulled: usize,
    /// Pulls of reads that do not follow.
    pulls: usize,
    /// Threads on which reads searched for the start of the last frames.
    looked_back: Vec<ThreadId>,
    /// Lists that were made for LAST.
    lists: usize,
    /// Pages that were made for TOPICS.
    pages: usize,
    /// Lookups of the newest frames in a gap.
    looks: usize,
    /// Whether requests for topics and blobs panic.
    broken: bool,
    hold_blobs: bool,
    /// Blobs opened, and bytes read from them.
    opened: usize,
    read: usize,
    hold_looks: bool,
    /// Whether lists for LAST wait before they are made, and how many do.
    hold_lists: bool,
    held_lists: usize,
    /// Time that opening a read takes.
    slow_reads: Duration,
    /// Checks that were given up because nobody waited for them.
    given_up: usize,
    /// How often the store was replaced by another one.
    others: u8,
    /// Connections that claim to run modules, and how to end each.
    hosts: Vec<(HostClaim, Wake)>,
}

impl Memory {
    /// Makes appends wait.
    pub(crate) fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Commits the waiting appends.
    pub(crate) fn release(&self) {
        self.0.lock().held = false;
        self.commit();
    }

    /// Makes the store identify itself as another one.
    pub(crate) fn become_another(&self) {
        self.0.lock().others += 1;
    }

    /// Checks that were given up because nobody waited for them.
    pub(crate) fn given_up(&self) -> usize {
        self.0.lock().given_up
    }

    /// The claims of the connections that run modules.
    pub(crate) fn hosts(&self) -> Vec<HostClaim> {
        self.0.lock().hosts.iter().map(|(claim, _)| claim.clone()).collect()
    }

    /// Frames that followers have pulled.
    pub(crate) fn pulled(&self) -> usize {
        self.0.lock().pulled
    }

    /// Pulls of reads that do not follow.
    pub(crate) fn pulls(&self) -> usize {
        self.0.lock().pulls
    }

    /// Threads on which reads searched for the start of the last frames.
    pub(crate) fn looked_back(&self) -> Vec<ThreadId> {
        self.0.lock().looked_back.clone()
    }

    /// Lists that were made for LAST.
    pub(crate) fn lists(&self) -> usize {
        self.0.lock().lists
    }

    /// Pages that were made for TOPICS.
    pub(crate) fn pages(&self) -> usize {
        self.0.lock().pages
    }

    /// Lookups of the newest frames in a gap.
    pub(crate) fn looks(&self) -> usize {
        self.0.lock().looks
    }

    /// Makes requests for topics and blobs panic.
    pub(crate) fn break_down(&self) {
        self.0.lock().broken = true;
    }

    /// Stores other bytes under the hash of a blob, as if they had been altered in transit.
    pub(crate) fn swap_blob(&self, hash: BlobHash, bytes: &[u8]) {
        self.0.lock().blobs.insert(hash, Bytes::copy_from_slice(bytes));
    }

    /// Sets whether bytes of blobs wait before they are accepted.
    pub(crate) fn hold_blobs(&self, hold: bool) {
        self.0.hold(|inner| inner.hold_blobs = hold);
    }

    /// Sets whether lookups of the newest frames in a gap wait.
    pub(crate) fn hold_looks(&self, hold: bool) {
        self.0.hold(|inner| inner.hold_looks = hold);
    }

    /// Sets whether lists for LAST wait before they are made.
    pub(crate) fn hold_lists(&self, hold: bool) {
        self.0.hold(|inner| inner.hold_lists = hold);
    }

    /// Lists for LAST that wait.
    pub(crate) fn held_lists(&self) -> usize {
        self.0.lock().held_lists
    }

    /// Makes opening a read take this long.
    pub(crate) fn slow_down(&self, time: Duration) {
        self.0.lock().slow_reads = time;
    }

    /// Damages a frame for reads that do not follow.
    pub(crate) fn damage(&self, offset: u64) {
        self.0.lock().damaged = Some(offset);
    }

    /// Blobs that were opened.
    pub(crate) fn opened(&self) -> usize {
        self.0.lock().opened
    }

    /// Bytes read from blobs.
    pub(crate) fn read(&self) -> usize {
        self.0.lock().read
    }

    /// Appends waiting.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().queue.len()
    }

    /// Groups committed.
    pub(crate) fn commits(&self) -> u64 {
        self.0.lock().commits
    }

    /// Calls that were made.
    pub(crate) fn calls(&self) -> usize {
        let inner = self.0.lock();
        inner.frames.iter().filter(|frame| frame.topic().ends_with(".call")).count()
    }

    /// Calls that were cancelled.
    pub(crate) fn cancelled(&self) -> Vec<FrameId> {
        self.0.lock().cancelled.clone()
    }

    /// Followers that still exist.
    pub(crate) fn followers(&self) -> usize {
        self.0.lock().followers
    }

    /// Wakes that a commit calls.
    pub(crate) fn wakes(&self) -> usize {
        self.0.lock().wakes.iter().filter(|wake| wake.strong_count() > 0).count()
    }

    /// Appends `count` frames of one topic, each as its own batch.
    pub(crate) fn fill(&self, count: u64, topic: &str) {
        let topic = Topic::parse(topic).unwrap();
        let mut inner = self.0.lock();
        for n in 0..count {
            let meta = Meta::parse(format!("{{\"n\":{n}}}")).unwrap();
            inner.add(&NewFrame { meta, ..NewFrame::new(topic.clone()) }).unwrap();
        }
    }

    fn commit_all(&self) -> Vec<(Done, Result<Appended, Refusal>)> {
        let mut inner = self.0.lock();
        if inner.held || inner.queue.is_empty() {
            return Vec::new();
        }
        inner.commits += 1;
        let queue = std::mem::take(&mut inner.queue);
        queue.into_iter().map(|(batch, done)| (done, inner.apply(&batch))).collect()
    }
}
