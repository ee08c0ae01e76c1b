//! A store in memory, as plain as can be, so that what the tests see is the protocol's doing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use xs_engine::{
    BlobHash, Body, Bound, Condition, Cursor, CursorChange, CursorName, ExpectRevision, Frame,
    FrameId, IdempotencyKey, Meta, NewFrame, Origin, ReadOptions, Start, Topic, TopicPatterns, Ttl,
};
use xs_protocol::{
    AppendRequest, Appended, BlobSink, BlobSource, CallRequest, Called, Code, CursorSummary,
    Delivered, Detail, Done, DoneImport, Feed, ImportOutcome, ImportRequest, Imported, LastRequest,
    MaintainRequest, Pulled, Refusal, Service, Stamp, StoreIdentity, TopicSummary, Wake,
};

/// A store that commits in place, or, when `held` is set, only on [`Memory::release`].
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    frames: Vec<Frame>,
    ephemeral: Vec<(u64, Frame)>,
    blobs: BTreeMap<BlobHash, Bytes>,
    cursors: BTreeMap<CursorName, Cursor>,
    keys: BTreeMap<IdempotencyKey, (AppendRequest, Appended)>,
    removed: BTreeSet<u64>,
    queue: Vec<(AppendRequest, Done)>,
    held: bool,
    commits: u64,
    last_id: u64,
    wakes: Vec<Weak<dyn Fn() + Send + Sync>>,
    cancelled: Vec<FrameId>,
    /// Frames that followers have pulled.
    pulled: usize,
    hold_blobs: bool,
    /// Checks that nobody waited for any more.
    given_up: usize,
}

impl Memory {
    /// From now on appends wait.
    pub(crate) fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Commits what waits.
    pub(crate) fn release(&self) {
        self.0.lock().held = false;
        self.commit();
    }

    /// Checks that nobody waited for any more.
    pub(crate) fn given_up(&self) -> usize {
        self.0.lock().given_up
    }

    /// Frames that followers have pulled.
    pub(crate) fn pulled(&self) -> usize {
        self.0.lock().pulled
    }

    /// Whether bytes of blobs wait before they are taken.
    pub(crate) fn hold_blobs(&self, hold: bool) {
        self.0.lock().hold_blobs = hold;
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

    /// Calls that were given up.
    pub(crate) fn cancelled(&self) -> Vec<FrameId> {
        self.0.lock().cancelled.clone()
    }

    /// Followers that still exist.
    pub(crate) fn followers(&self) -> usize {
        self.0.lock().wakes.iter().filter(|wake| wake.strong_count() > 0).count()
    }

    /// Puts `count` frames of one topic into the log, each a batch of its own.
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

impl Inner {
    fn head(&self) -> u64 {
        self.frames.len() as u64
    }

    fn add(&mut self, new: &NewFrame) -> Result<Stamp, Refusal> {
        self.last_id += 1;
        let id = FrameId::first_of_ms(1_700_000_000_000 + self.last_id);
        let body = match &new.body {
            Body::None => None,
            Body::Inline(bytes) => {
                let hash = BlobHash::of(bytes);
                self.blobs.insert(hash, bytes.clone());
                Some((bytes.len() as u64, hash))
            }
            Body::Stored(hash) => {
                let missing = || Refusal::new(Code::UnknownBlob, format!("no blob {hash}"));
                Some((self.blobs.get(hash).ok_or_else(missing)?.len() as u64, *hash))
            }
        };
        let offset = (new.ttl != Ttl::Ephemeral).then_some(self.head());
        let frame = Frame::assemble(new, id, offset, body).unwrap();
        match offset {
            Some(_) => self.frames.push(frame),
            None => self.ephemeral.push((self.head(), frame)),
        }
        Ok(Stamp { id, offset })
    }

    /// The first condition that does not hold.
    fn unmet(&self, conditions: &[Condition]) -> Option<Refusal> {
        let newest = |topics: &TopicPatterns| {
            self.frames.iter().rposition(|frame| topics.matches(frame.topic()))
        };
        conditions.iter().zip(0..).find_map(|(condition, index)| {
            let found = match condition {
                Condition::HeadIs(head) => Some(self.head()).filter(|found| found != head),
                Condition::Empty(topics) => newest(topics).map(|found| found as u64),
                Condition::LastAtMost { topics, offset } => {
                    newest(topics).map(|found| found as u64).filter(|found| found > offset)
                }
            }?;
            let text = format!("condition {index} is not met");
            let detail = Detail::Condition { index, found };
            Some(Refusal::new(Code::ConditionFailed, text).with(detail))
        })
    }

    fn apply(&mut self, batch: &AppendRequest) -> Result<Appended, Refusal> {
        let Some(key) = &batch.key else { return self.store(batch) };
        if let Some((before, appended)) = self.keys.get(key) {
            if before.frames == batch.frames {
                return Ok(Appended { repeated: true, ..appended.clone() });
            }
            let detail = Detail::Frame(appended.frames[0].id);
            return Err(Refusal::new(Code::KeyReused, "another batch has the key").with(detail));
        }
        let appended = self.store(batch)?;
        self.keys.insert(key.clone(), (batch.clone(), appended.clone()));
        Ok(appended)
    }

    fn store(&mut self, batch: &AppendRequest) -> Result<Appended, Refusal> {
        if let Some(refusal) = self.unmet(&batch.conditions) {
            return Err(refusal);
        }
        for CursorChange { name, expect, .. } in &batch.cursors {
            let actual = self.cursors.get(name).map_or(0, |cursor| cursor.revision);
            if let ExpectRevision::Is(expected) = expect
                && *expected != actual
            {
                let text = format!("cursor {name} has revision {actual}, not {expected}");
                let detail = Detail::Cursor { name: name.clone(), revision: actual };
                return Err(Refusal::new(Code::CursorConflict, text).with(detail));
            }
        }
        let removed = self.remove(batch)?;
        let frames = batch.frames.iter().map(|new| self.add(new)).collect::<Result<_, _>>()?;
        let cursors = batch.cursors.iter().map(|change| self.set(change)).collect();
        let (durable, head) = (true, self.head());
        Ok(Appended { frames, cursors, removed, durable, head, ..Appended::default() })
    }

    fn remove(&mut self, batch: &AppendRequest) -> Result<Vec<bool>, Refusal> {
        let mut found = Vec::new();
        for &at in &batch.removes {
            let frame = self.visible(at);
            if let Some((frame, topics)) = frame.zip(batch.removes_within.as_ref())
                && !topics.matches(frame.topic())
            {
                let refusal = Refusal::new(Code::Denied, "it has another topic");
                return Err(refusal.with(Detail::Frame(frame.id())));
            }
            found.push(frame.and_then(Frame::offset));
        }
        let gone = found.into_iter().map(|at| at.is_some_and(|at| self.removed.insert(at)));
        Ok(gone.collect())
    }

    /// The frame at a place, when a reader may see it.
    fn visible(&self, at: Bound) -> Option<&Frame> {
        let frame = self.frames.get(self.at(at) as usize)?;
        let is_it = match at {
            Bound::Offset(offset) => frame.offset() == Some(offset),
            Bound::Id(id) => frame.id() == id,
        };
        let gone = frame.offset().is_some_and(|offset| self.removed.contains(&offset));
        (is_it && !gone).then_some(frame)
    }

    fn set(&mut self, change: &CursorChange) -> u64 {
        let revision = self.cursors.get(&change.name).map_or(0, |cursor| cursor.revision) + 1;
        match &change.set {
            None => {
                self.cursors.remove(&change.name);
                0
            }
            Some((offset, state)) => {
                let (offset, state) = (*offset, state.clone());
                let cursor = Cursor { revision, epoch: 1, offset, time_ms: 5, state };
                self.cursors.insert(change.name.clone(), cursor);
                revision
            }
        }
    }

    fn at(&self, bound: Bound) -> u64 {
        match bound {
            Bound::Offset(offset) => offset,
            Bound::Id(id) => self.frames.partition_point(|frame| frame.id() < id) as u64,
        }
    }

    /// The range of offsets that options select, before topics and limit.
    fn range(&self, options: &ReadOptions) -> (u64, u64) {
        let end = options.before.map_or(u64::MAX, |bound| self.at(bound)).min(self.head());
        let start = match options.start {
            Start::First => 0,
            Start::From(bound) => self.at(bound),
            Start::After(Bound::Offset(offset)) => offset + 1,
            Start::After(Bound::Id(id)) => self.at(Bound::Id(id.next())),
            Start::Last(n) => {
                let frames = self.frames[..end as usize].iter().rev();
                let chosen = frames.filter(|frame| options.topics.matches(frame.topic()));
                chosen.take(n as usize).last().and_then(Frame::offset).unwrap_or(end)
            }
            Start::New => self.head(),
        };
        (start.min(end), end)
    }
}

impl Service for Memory {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { uuid: [7; 16], epoch: 1, head: self.0.lock().head() }
    }

    fn append(&self, batch: AppendRequest, done: Done) {
        self.0.lock().queue.push((batch, done));
    }

    fn import(&self, import: ImportRequest, done: DoneImport) {
        let mut inner = self.0.lock();
        let mut outcomes = Vec::new();
        for Delivered { frame, body } in &import.frames {
            let topic = Topic::parse(frame.topic()).unwrap();
            let is_there = inner.frames.iter().any(|one| one.id() == frame.id());
            outcomes.push(match (is_there, frame.hash(), body) {
                (true, ..) => ImportOutcome::There,
                (false, Some(_), None) => ImportOutcome::Refused(Code::UnknownBlob),
                _ => {
                    let body = body.clone().map_or(Body::None, Body::Inline);
                    inner.add(&NewFrame { body, ..NewFrame::new(topic) }).unwrap();
                    ImportOutcome::New
                }
            });
        }
        let head = inner.head();
        drop(inner);
        done(Ok(Imported { outcomes, durable: true, head }));
    }

    fn remove_now(&self, batch: AppendRequest) -> Result<Appended, Refusal> {
        self.0.lock().apply(&batch)
    }

    fn stats(&self) -> Result<String, Refusal> {
        Ok(format!("{{\"head\":{}}}", self.0.lock().head()))
    }

    /// A check goes on for as long as somebody waits for it.
    fn maintain(
        &self,
        request: &MaintainRequest,
        given_up: &dyn Fn() -> bool,
    ) -> Result<String, Refusal> {
        if *request == MaintainRequest::Verify {
            while !given_up() {
                std::thread::yield_now();
            }
            self.0.lock().given_up += 1;
        }
        Ok(format!("{{\"did\":\"{request:?}\"}}"))
    }

    fn commit(&self) {
        let outcomes = self.commit_all();
        if outcomes.is_empty() {
            return;
        }
        let wakes: Vec<_> = self.0.lock().wakes.iter().filter_map(Weak::upgrade).collect();
        wakes.iter().for_each(|wake| wake());
        outcomes.into_iter().for_each(|(done, result)| done(result));
    }

    fn read(&self, options: &ReadOptions) -> Result<Box<dyn Feed>, Refusal> {
        let inner = self.0.lock();
        let (start, end) = inner.range(options);
        let at = if options.reverse { end } else { start };
        let (topics, limit) = (options.topics.clone(), options.limit);
        let (store, reverse) = (self.clone(), options.reverse);
        Ok(Box::new(Bounded { store, start, end, at, topics, limit, reverse }))
    }

    fn follow(&self, options: &ReadOptions, wake: Wake) -> Result<Box<dyn Feed>, Refusal> {
        let mut inner = self.0.lock();
        let (at, threshold) = inner.range(options);
        inner.wakes.retain(|wake| wake.strong_count() > 0);
        inner.wakes.push(Arc::downgrade(&wake));
        let seen_ephemeral = inner.ephemeral.len();
        drop(inner);
        let store = self.clone();
        let caught_up = false;
        let options = options.clone();
        Ok(Box::new(Follow { store, options, at, threshold, caught_up, seen_ephemeral, wake }))
    }

    fn get(&self, at: Bound) -> Result<Option<Frame>, Refusal> {
        Ok(self.0.lock().visible(at).cloned())
    }

    fn last(&self, request: &LastRequest) -> Result<Vec<Frame>, Refusal> {
        let inner = self.0.lock();
        let mut counts = BTreeMap::new();
        let mut found: Vec<Frame> = inner
            .frames
            .iter()
            .rev()
            .filter(|frame| request.topics.matches(frame.topic()))
            .filter(|frame| {
                let key = if request.per_topic { frame.topic() } else { "" };
                let count = counts.entry(key.to_owned()).or_insert(0u64);
                *count += 1;
                *count <= request.n
            })
            .cloned()
            .collect();
        found.reverse();
        Ok(found)
    }

    fn topics(&self, topics: &TopicPatterns) -> Result<Vec<TopicSummary>, Refusal> {
        let mut all = BTreeMap::<String, TopicSummary>::new();
        for frame in self.0.lock().frames.iter().filter(|f| topics.matches(f.topic())) {
            let offset = frame.offset().unwrap();
            all.entry(frame.topic().to_owned())
                .and_modify(|one| {
                    one.count += 1;
                    one.bytes += frame.record().len() as u64;
                    (one.last, one.last_offset) = (frame.id(), offset);
                })
                .or_insert_with(|| TopicSummary {
                    topic: Topic::parse(frame.topic()).unwrap(),
                    count: 1,
                    bytes: frame.record().len() as u64,
                    first: frame.id(),
                    last: frame.id(),
                    last_offset: offset,
                });
        }
        Ok(all.into_values().collect())
    }

    fn has_blob(&self, hash: &BlobHash) -> Result<bool, Refusal> {
        Ok(self.0.lock().blobs.contains_key(hash))
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal> {
        let bytes = self.0.lock().blobs.get(hash).cloned();
        Ok(bytes.map(|bytes| Box::new(Source { len: bytes.len() as u64, bytes }) as _))
    }

    fn small_blob(&self, hash: &BlobHash, max: usize) -> Result<Option<Bytes>, Refusal> {
        Ok(self.0.lock().blobs.get(hash).filter(|bytes| bytes.len() <= max).cloned())
    }

    fn blob_sink(&self) -> Result<Box<dyn BlobSink>, Refusal> {
        Ok(Box::new(Sink { store: self.clone(), bytes: Vec::new() }))
    }

    fn cursor(&self, name: &CursorName) -> Result<Option<Cursor>, Refusal> {
        Ok(self.0.lock().cursors.get(name).cloned())
    }

    fn cursors(&self) -> Result<Vec<CursorSummary>, Refusal> {
        let inner = self.0.lock();
        let summary = |(name, cursor): (&CursorName, &Cursor)| CursorSummary {
            name: name.clone(),
            revision: cursor.revision,
            epoch: cursor.epoch,
            offset: cursor.offset,
            time_ms: cursor.time_ms,
            state_bytes: cursor.state.len() as u64,
        };
        Ok(inner.cursors.iter().map(summary).collect())
    }

    /// `echo` answers with its body and completes; `hang` never answers; there is nothing else.
    /// While appends are held, calls are too.
    fn call(
        &self,
        request: CallRequest,
        wake: Wake,
    ) -> BoxFuture<'static, Result<Called, Refusal>> {
        let name = request.name.as_str().to_owned();
        if name != "echo" && name != "hang" {
            let refusal = Refusal::new(Code::UnknownCommand, format!("no command {name}"));
            return Box::pin(async { Err(refusal) });
        }
        let topic = |event: &str| Topic::parse(&format!("{name}.{event}")).unwrap();
        let body = if request.body.is_empty() { Body::None } else { Body::Inline(request.body) };
        let mut inner = self.0.lock();
        let call =
            NewFrame { body: body.clone(), meta: request.args, ..NewFrame::new(topic("call")) };
        let id = inner.add(&call).unwrap().id;
        let (at, mut left) = (inner.head(), 0);
        if name == "echo" {
            let (processor, input_offset) = (id, None);
            let origin = Some(Origin { processor, input: Some(id), input_offset, hops: 1 });
            inner.add(&NewFrame { body, origin, ..NewFrame::new(topic("recv")) }).unwrap();
            inner.add(&NewFrame { origin, ..NewFrame::new(topic("complete")) }).unwrap();
            left = 2;
        }
        drop(inner);
        let feed =
            Box::new(Results { store: self.clone(), id, at, left, ended: false, _wake: wake });
        let memory = self.clone();
        Box::pin(async move {
            while memory.0.lock().held {
                tokio::task::yield_now().await;
            }
            Ok(Called { id, feed })
        })
    }
}

struct Bounded {
    store: Memory,
    start: u64,
    end: u64,
    at: u64,
    topics: TopicPatterns,
    limit: Option<u64>,
    reverse: bool,
}

impl Feed for Bounded {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let inner = self.store.0.lock();
        let mut bytes = 0;
        while bytes < room {
            let last = if self.reverse { self.start } else { self.end };
            if self.at == last || self.limit == Some(0) {
                return Ok(Pulled::End);
            }
            let index = if self.reverse { self.at - 1 } else { self.at };
            let frame = &inner.frames[index as usize];
            self.at = if self.reverse { self.at - 1 } else { self.at + 1 };
            if self.topics.matches(frame.topic()) && !inner.removed.contains(&index) {
                bytes += frame.record().len();
                frames.push(frame.clone());
                self.limit = self.limit.map(|limit| limit - 1);
            }
        }
        Ok(Pulled::More)
    }

    fn scanned_to(&self) -> u64 {
        self.at
    }
}

struct Follow {
    store: Memory,
    options: ReadOptions,
    at: u64,
    threshold: u64,
    caught_up: bool,
    seen_ephemeral: usize,
    /// Keeps the wake registered.
    wake: Wake,
}

impl Feed for Follow {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let _ = &self.wake;
        let store = self.store.clone();
        let mut inner = store.0.lock();
        let before = frames.len();
        let pulled = self.pull_from(&inner, frames, room);
        inner.pulled += frames.len() - before;
        Ok(pulled)
    }

    fn scanned_to(&self) -> u64 {
        self.at
    }
}

impl Follow {
    fn pull_from(&mut self, inner: &Inner, frames: &mut Vec<Frame>, room: usize) -> Pulled {
        let mut bytes = 0;
        while bytes < room {
            if !self.caught_up && self.at >= self.threshold {
                self.caught_up = true;
                return Pulled::CaughtUp { head: self.threshold };
            }
            if self.options.limit == Some(0) {
                return Pulled::End;
            }
            let ephemeral = inner.ephemeral.get(self.seen_ephemeral);
            let frame = match ephemeral.filter(|(at, _)| *at <= self.at) {
                Some((_, frame)) => {
                    self.seen_ephemeral += 1;
                    frame
                }
                None => match inner.frames.get(self.at as usize) {
                    Some(frame) => {
                        self.at += 1;
                        if inner.removed.contains(&(self.at - 1)) {
                            continue;
                        }
                        frame
                    }
                    None => return Pulled::Idle,
                },
            };
            if self.options.topics.matches(frame.topic()) {
                bytes += frame.record().len();
                frames.push(frame.clone());
                self.options.limit = self.options.limit.map(|limit| limit - 1);
            }
        }
        Pulled::More
    }
}

struct Results {
    store: Memory,
    id: FrameId,
    at: u64,
    left: u64,
    ended: bool,
    _wake: Wake,
}

impl Feed for Results {
    fn pull(&mut self, frames: &mut Vec<Frame>, _room: usize) -> Result<Pulled, Refusal> {
        let inner = self.store.0.lock();
        if self.left == 0 {
            return Ok(Pulled::Idle);
        }
        frames.extend(inner.frames[self.at as usize..][..self.left as usize].iter().cloned());
        self.at += self.left;
        self.ended = true;
        Ok(Pulled::End)
    }

    fn scanned_to(&self) -> u64 {
        self.at
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        if !self.ended {
            self.store.0.lock().cancelled.push(self.id);
        }
    }
}

struct Source {
    len: u64,
    bytes: Bytes,
}

impl BlobSource for Source {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, max: usize) -> Result<Bytes, Refusal> {
        Ok(self.bytes.split_to(self.bytes.len().min(max)))
    }
}

struct Sink {
    store: Memory,
    bytes: Vec<u8>,
}

impl BlobSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        while self.store.0.lock().hold_blobs {
            std::thread::yield_now();
        }
        if bytes.starts_with(b"full") {
            return Err(Refusal::new(Code::StorageFull, "the disk is full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(BlobHash, u64), Refusal> {
        let (hash, len) = (BlobHash::of(&self.bytes), self.bytes.len() as u64);
        self.store.0.lock().blobs.insert(hash, Bytes::from(self.bytes));
        Ok((hash, len))
    }
}
