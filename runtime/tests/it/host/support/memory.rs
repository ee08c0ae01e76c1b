//! An in-memory store, served over the real protocol, for the tests of the Host.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use xs_engine::{
    BlobHash, Body, Bound, Cursor, CursorName, CursorValue, ExpectRevision, Frame, FrameId,
    ReadOptions, Start, Topic, TopicPatterns, Ttl,
};
use xs_protocol::{
    AppendRequest, Appended, BlobSink, BlobSource, CallRequest, Called, Code, CursorSummary, Done,
    Feed, LastRequest, Pulled, Refusal, Service, Stamp, StoreIdentity, TopicsPage, Wake,
};

#[derive(Default)]
struct Inner {
    frames: Vec<Frame>,
    /// Ephemeral frames, each with the offset of the next stored frame.
    ephemeral: Vec<(u64, Frame)>,
    blobs: HashMap<BlobHash, Bytes>,
    cursors: HashMap<CursorName, Cursor>,
    wakes: Vec<Wake>,
    last: Option<FrameId>,
    commits: u64,
    slow: Option<Slow>,
    /// A topic for whose frames there is no room, and the number of refusals because of that.
    full: Option<(String, u64)>,
    /// A topic whose frames are always refused.
    denied: Option<String>,
    denials: u32,
    /// How many more times to be busy when blobs are requested, and when frames of a topic are
    /// followed.
    busy_blobs: u32,
    busy_follows: Option<(String, u32)>,
}

/// A slow commit.
struct Slow {
    /// It is the next one with a frame of this topic.
    topic: String,
    /// It is done just before a commit with a frame of this topic.
    until: String,
    held: Option<(AppendRequest, Done)>,
}

/// An in-memory store. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Inner>>);

impl Memory {
    /// Every stored frame.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.0.lock().frames.clone()
    }

    /// Stored frames of a topic.
    pub(crate) fn topic(&self, topic: &str) -> Vec<Frame> {
        let inner = self.0.lock();
        inner.frames.iter().filter(|frame| frame.topic() == topic).cloned().collect()
    }

    /// Number of stored frames of a topic.
    pub(crate) fn count(&self, topic: &str) -> usize {
        self.0.lock().frames.iter().filter(|frame| frame.topic() == topic).count()
    }

    /// The current value of a cursor.
    pub(crate) fn cursor_now(&self, name: &str) -> Option<Cursor> {
        self.0.lock().cursors.get(&CursorName::parse(name).unwrap()).cloned()
    }

    /// Loses the body of a frame.
    pub(crate) fn lose_body(&self, frame: &Frame) {
        self.0.lock().blobs.remove(&frame.hash().unwrap());
    }

    /// Number of batches stored so far.
    pub(crate) fn commits(&self) -> u64 {
        self.0.lock().commits
    }

    /// The text of a frame's body.
    pub(crate) fn text(&self, frame: &Frame) -> String {
        let blob = frame.hash().and_then(|hash| self.0.lock().blobs.get(&hash).cloned());
        String::from_utf8(blob.unwrap_or_default().to_vec()).unwrap()
    }

    /// Appends without a connection.
    pub(crate) fn put(&self, batch: AppendRequest) -> Appended {
        let stored = self.0.lock().append(batch).unwrap();
        self.wake();
        stored
    }

    /// Has no room for frames of `topic`; `None` makes room for all.
    pub(crate) fn fill(&self, topic: Option<&str>) {
        self.0.lock().full = topic.map(|topic| (topic.to_owned(), 0));
    }

    /// Refuses frames of `topic`; `None` accepts all again.
    pub(crate) fn deny<'a>(&self, topic: impl Into<Option<&'a str>>) {
        self.0.lock().denied = topic.into().map(str::to_owned);
    }

    /// How many frames were refused that way.
    pub(crate) fn denials(&self) -> u32 {
        self.0.lock().denials
    }

    /// Has no stream for the next `times` requests of blobs.
    pub(crate) fn be_busy_with_blobs(&self, times: u32) {
        self.0.lock().busy_blobs = times;
    }

    /// Has no stream for the next `times` followers of `topic`, among others.
    pub(crate) fn be_busy_with(&self, topic: &str, times: u32) {
        self.0.lock().busy_follows = Some((topic.to_owned(), times));
    }

    /// How many more times it will be busy.
    pub(crate) fn busy_left(&self) -> u32 {
        let inner = self.0.lock();
        inner.busy_blobs + inner.busy_follows.as_ref().map_or(0, |(_, times)| *times)
    }

    /// Whether anything was refused for lack of room.
    pub(crate) fn has_refused(&self) -> bool {
        self.refusals() > 0
    }

    /// How often something was.
    pub(crate) fn refusals(&self) -> u64 {
        self.0.lock().full.as_ref().map_or(0, |(_, count)| *count)
    }

    /// Holds the next batch that has a frame of `topic`, up to the first one with a frame of
    /// `until`.
    pub(crate) fn hold(&self, topic: &str, until: &str) {
        let (topic, until) = (topic.to_owned(), until.to_owned());
        self.0.lock().slow = Some(Slow { topic, until, held: None });
    }

    /// Whether a batch is held.
    pub(crate) fn holds(&self) -> bool {
        self.0.lock().slow.as_ref().is_some_and(|slow| slow.held.is_some())
    }

    fn wake(&self) {
        let wakes = self.0.lock().wakes.clone();
        wakes.iter().for_each(|wake| wake());
    }

    fn feed(&self, options: &ReadOptions, wake: Option<Wake>) -> MemoryFeed {
        let mut inner = self.0.lock();
        let head = inner.frames.len() as u64;
        let offset_of = |bound: Bound| match bound {
            Bound::Offset(offset) => offset,
            Bound::Id(id) => inner.frames.partition_point(|frame| frame.id() < id) as u64,
        };
        let next = match options.start {
            Start::First => 0,
            Start::From(bound) => offset_of(bound),
            Start::After(Bound::Id(id)) => offset_of(Bound::Id(id.next())),
            Start::After(Bound::Offset(offset)) => offset + 1,
            Start::New => head,
            Start::Last(n) => {
                let matching = inner.frames.iter().rev();
                let mut matching = matching.filter(|frame| options.topics.matches(frame.topic()));
                let nth = matching.nth(usize::try_from(n).unwrap().saturating_sub(1));
                nth.and_then(Frame::offset).unwrap_or(0)
            }
        };
        let ephemeral = inner.ephemeral.len();
        inner.wakes.extend(wake.clone());
        let follow = wake.is_some();
        let (topics, call) = (options.topics.clone(), None);
        MemoryFeed { store: self.clone(), topics, call, next, ephemeral, head, follow, told: false }
    }
}

impl Inner {
    fn append(&mut self, batch: AppendRequest) -> Result<Appended, Refusal> {
        for change in &batch.cursors {
            let revision = self.cursors.get(&change.name).map_or(0, |cursor| cursor.revision);
            if matches!(change.expect, ExpectRevision::Is(expected) if expected != revision) {
                return Err(Refusal::new(Code::CursorConflict, "another revision"));
            }
        }
        self.commits += 1;
        let mut stamps = Vec::new();
        for mut new in batch.frames {
            let body = match std::mem::take(&mut new.body) {
                Body::None => None,
                Body::Inline(bytes) if bytes.is_empty() => None,
                Body::Inline(bytes) => {
                    let hash = BlobHash::of(&bytes);
                    let len = bytes.len() as u64;
                    self.blobs.insert(hash, bytes);
                    Some((len, hash))
                }
                Body::Stored(hash) => {
                    let blob = self.blobs.get(&hash);
                    let len = blob.ok_or_else(|| Refusal::new(Code::UnknownBlob, "no blob"))?.len();
                    Some((len as u64, hash))
                }
            };
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
            let id = FrameId::first_of_ms(u64::try_from(now).unwrap());
            let id = self.last.map_or(id, |last| last.next().max(id));
            self.last = Some(id);
            let head = self.frames.len() as u64;
            let offset = (new.ttl != Ttl::Ephemeral).then_some(head);
            let frame = Frame::assemble(&new, id, offset, body).unwrap();
            match offset {
                Some(_) => self.frames.push(frame),
                None => self.ephemeral.push((head, frame)),
            }
            stamps.push(Stamp { id, offset });
        }
        let mut revisions = Vec::new();
        for change in batch.cursors {
            let revision = self.cursors.get(&change.name).map_or(0, |cursor| cursor.revision) + 1;
            match change.set {
                Some(CursorValue { offset, state }) => {
                    let cursor = Cursor { revision, epoch: 1, offset, time_ms: 0, state };
                    self.cursors.insert(change.name, cursor);
                    revisions.push(revision);
                }
                None => {
                    self.cursors.remove(&change.name);
                    revisions.push(0);
                }
            }
        }
        let head = self.frames.len() as u64;
        let durable = true;
        Ok(Appended { frames: stamps, cursors: revisions, durable, head, ..Appended::default() })
    }
}

struct MemoryFeed {
    store: Memory,
    topics: TopicPatterns,
    /// Only the results of this call, up to its end.
    call: Option<FrameId>,
    next: u64,
    ephemeral: usize,
    head: u64,
    follow: bool,
    told: bool,
}

impl MemoryFeed {
    fn wants(&self, frame: &Frame) -> bool {
        match self.call {
            Some(call) => frame.origin().is_some_and(|origin| origin.input == Some(call)),
            None => self.topics.matches(frame.topic()),
        }
    }
}

impl Feed for MemoryFeed {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let store = self.store.clone();
        let inner = store.0.lock();
        let mut taken = 0;
        loop {
            if self.follow && !self.told && self.next >= self.head {
                self.told = true;
                return Ok(Pulled::CaughtUp { head: self.head });
            }
            if taken >= room {
                return Ok(Pulled::More);
            }
            let due = inner.ephemeral.get(self.ephemeral).filter(|(at, _)| *at <= self.next);
            let frame = if let Some((_, frame)) = due {
                self.ephemeral += 1;
                frame
            } else if let Some(frame) = inner.frames.get(usize::try_from(self.next).unwrap()) {
                self.next += 1;
                frame
            } else if self.follow {
                return Ok(Pulled::Idle);
            } else {
                return Ok(Pulled::End);
            };
            if self.wants(frame) {
                taken += frame.record().len();
                frames.push(frame.clone());
                let ends =
                    frame.topic().ends_with(".complete") || frame.topic().ends_with(".error");
                if self.call.is_some() && ends {
                    self.follow = false;
                    self.next = u64::from(u32::MAX);
                    return Ok(Pulled::End);
                }
            }
        }
    }

    fn scanned_to(&self) -> u64 {
        self.next
    }
}

struct Whole(Bytes, u64);

impl BlobSource for Whole {
    fn len(&self) -> u64 {
        self.1
    }

    fn read(&mut self, max: usize) -> Result<Bytes, Refusal> {
        Ok(self.0.split_to(max.min(self.0.len())))
    }
}

struct Sink(Memory, Vec<u8>);

impl BlobSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.1.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(BlobHash, u64), Refusal> {
        let (hash, len) = (BlobHash::of(&self.1), self.1.len() as u64);
        self.0.0.lock().blobs.insert(hash, Bytes::from(self.1));
        Ok((hash, len))
    }
}

impl Service for Memory {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity {
            uuid: xs_engine::StoreUuid::from_bytes([7; 16]),
            epoch: 1,
            head: self.0.lock().frames.len() as u64,
        }
    }

    fn append(&self, batch: AppendRequest, done: Done) {
        let has = |topic: &str| batch.frames.iter().any(|frame| frame.topic.as_str() == topic);
        let mut inner = self.0.lock();
        if let Some((_, count)) = inner.full.as_mut().filter(|(topic, _)| has(topic)) {
            *count += 1;
            drop(inner);
            return done(Err(Refusal::new(Code::StorageFull, "no room")));
        }
        if inner.denied.as_deref().is_some_and(has) {
            inner.denials += 1;
            drop(inner);
            return done(Err(Refusal::new(Code::Denied, "not this")));
        }
        match &mut inner.slow {
            Some(slow) if slow.held.is_none() && has(&slow.topic) => {
                slow.held = Some((batch, done));
                return;
            }
            Some(slow) if has(&slow.until) => {
                let held = inner.slow.take().and_then(|slow| slow.held);
                drop(inner);
                if let Some((batch, done)) = held {
                    let stored = self.0.lock().append(batch);
                    done(stored);
                }
            }
            _ => drop(inner),
        }
        let stored = self.0.lock().append(batch);
        done(stored);
        self.wake();
    }

    fn commit(&self) {}

    fn read(&self, options: &ReadOptions) -> Result<Box<dyn Feed>, Refusal> {
        Ok(Box::new(self.feed(options, None)))
    }

    fn follow(&self, options: &ReadOptions, wake: Wake) -> Result<Box<dyn Feed>, Refusal> {
        let mut inner = self.0.lock();
        if let Some((topic, times)) = &mut inner.busy_follows
            && *times > 0
            && options.topics.matches(topic)
        {
            *times -= 1;
            return Err(Refusal::new(Code::TooManyStreams, "no stream is left"));
        }
        drop(inner);
        Ok(Box::new(self.feed(options, Some(wake))))
    }

    fn get(&self, at: Bound) -> Result<Option<Frame>, Refusal> {
        let inner = self.0.lock();
        Ok(inner
            .frames
            .iter()
            .find(|frame| match at {
                Bound::Id(id) => frame.id() == id,
                Bound::Offset(offset) => frame.offset() == Some(offset),
            })
            .cloned())
    }

    fn last(&self, request: &LastRequest) -> Result<Vec<Frame>, Refusal> {
        let inner = self.0.lock();
        let mut counts: HashMap<String, u64> = HashMap::new();
        let newest = inner.frames.iter().rev().filter(|frame| {
            let topic = if request.per_topic { frame.topic() } else { "" };
            let count = counts.entry(topic.to_owned()).or_default();
            let wanted = request.topics.matches(frame.topic()) && *count < request.n;
            *count += u64::from(wanted);
            wanted
        });
        let mut frames: Vec<Frame> = newest.cloned().collect();
        frames.reverse();
        Ok(frames)
    }

    fn topics(
        &self,
        _: &TopicPatterns,
        _: Option<&Topic>,
        _: usize,
    ) -> Result<TopicsPage, Refusal> {
        Ok((Vec::new(), None))
    }

    fn has_blob(&self, hash: &BlobHash) -> Result<bool, Refusal> {
        Ok(self.0.lock().blobs.contains_key(hash))
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal> {
        let mut inner = self.0.lock();
        if inner.busy_blobs > 0 {
            inner.busy_blobs -= 1;
            return Err(Refusal::new(Code::TooManyStreams, "no stream is left"));
        }
        let blob = inner.blobs.get(hash).cloned();
        Ok(blob.map(|bytes| {
            let len = bytes.len() as u64;
            Box::new(Whole(bytes, len)) as Box<dyn BlobSource>
        }))
    }

    fn bodies(&self, frames: &[Frame], max: u64, out: &mut Vec<(u32, Bytes)>) {
        let inner = self.0.lock();
        let body = |frame: &Frame| {
            inner.blobs.get(&frame.hash()?).filter(|body| body.len() as u64 <= max).cloned()
        };
        out.extend((0..).zip(frames).filter_map(|(index, frame)| Some((index, body(frame)?))));
    }

    fn blob_sink(&self) -> Result<Box<dyn BlobSink>, Refusal> {
        Ok(Box::new(Sink(self.clone(), Vec::new())))
    }

    fn cursor(&self, name: &CursorName) -> Result<Option<Cursor>, Refusal> {
        Ok(self.0.lock().cursors.get(name).cloned())
    }

    fn cursors(&self) -> Result<Vec<CursorSummary>, Refusal> {
        Ok(Vec::new())
    }

    fn call(
        &self,
        request: CallRequest,
        wake: Wake,
    ) -> BoxFuture<'static, Result<Called, Refusal>> {
        let store = self.clone();
        Box::pin(async move {
            let topic = format!("{}.call", request.name);
            let mut new = xs_engine::NewFrame::new(xs_engine::Topic::parse(&topic)?);
            let args = String::from_utf8_lossy(request.args.as_bytes()).into_owned();
            let args = if args.is_empty() { "{}".to_owned() } else { args };
            new.meta = xs_engine::Meta::parse(format!("{{\"args\":{args}}}"))?;
            new.body = Body::Inline(request.body);
            let id = store.put(AppendRequest::frames(vec![new])).frames[0].id;
            let start = Start::After(Bound::Id(id));
            let options = ReadOptions { start, follow: true, ..ReadOptions::default() };
            let mut feed = store.feed(&options, Some(wake));
            feed.call = Some(id);
            Ok(Called { id, feed: Box::new(feed) })
        })
    }
}
