//! The store as the server sees it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use xs_engine::{
    BlobHash, Body, Bound, Cursor, CursorName, Frame, NewFrame, Origin, ReadOptions, StoreUuid,
    Topic, TopicPatterns,
};
use xs_protocol::{
    AppendRequest, Appended, BlobSink, BlobSource, CallRequest, Called, Code, CursorSummary,
    Delivered, Done, DoneImport, Feed, HostClaim, HostGuard, ImportOutcome, ImportRequest,
    Imported, LastRequest, MaintainRequest, Refusal, Service, StoreIdentity, TopicSummary,
    TopicsPage, Wake,
};

use super::Memory;
use super::blobs::{Sink, Source};
use super::feeds::{Bounded, Follow, Results};

/// A connected Host, until this is dropped.
struct Leaves(Memory, HostClaim);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.0.lock().hosts.retain(|(claim, _)| *claim != self.1);
    }
}

impl Service for Memory {
    fn identity(&self) -> StoreIdentity {
        let inner = self.0.lock();
        StoreIdentity {
            uuid: StoreUuid::from_bytes([7 + inner.others; 16]),
            epoch: 1,
            head: inner.head(),
        }
    }

    /// A batch with a frame of the topic `lost` is dropped.
    fn append(&self, batch: AppendRequest, done: Done) {
        let is_lost = |frame: &NewFrame| frame.topic.as_str() == "lost";
        if !batch.frames.iter().any(is_lost) {
            self.0.lock().queue.push((batch, done));
        }
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

    /// One connection for each processor, of any Host.
    fn host_comes(&self, claim: HostClaim, end: Wake) -> Result<HostGuard, Refusal> {
        let mut inner = self.0.lock();
        if let Some((_, end)) = inner.hosts.iter().find(|(other, _)| other.alone == claim.alone) {
            end();
            return Err(Refusal::new(Code::OtherHost, "there is one"));
        }
        inner.hosts.push((claim.clone(), end));
        Ok(Box::new(Leaves(self.clone(), claim)))
    }

    fn stats(&self) -> Result<String, Refusal> {
        Ok(format!("{{\"head\":{}}}", self.0.lock().head()))
    }

    /// A check runs for as long as somebody waits for it.
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
        let slow = self.0.lock().slow_reads;
        std::thread::sleep(slow);
        let mut inner = self.0.lock();
        let (start, end) = inner.open(options);
        let at = if options.reverse { end } else { start };
        let (topics, limit) = (options.topics.clone(), options.limit);
        let (store, reverse) = (self.clone(), options.reverse);
        Ok(Box::new(Bounded { store, start, end, at, topics, limit, reverse }))
    }

    fn follow(&self, options: &ReadOptions, wake: Wake) -> Result<Box<dyn Feed>, Refusal> {
        let mut inner = self.0.lock();
        let (at, threshold) = inner.open(options);
        inner.wakes.retain(|wake| wake.strong_count() > 0);
        let weak = Arc::downgrade(&wake);
        if !inner.wakes.iter().any(|other| other.ptr_eq(&weak)) {
            inner.wakes.push(weak);
        }
        inner.followers += 1;
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
        self.0.lock().held_lists += 1;
        let mut inner = self.0.wait_while(|inner| inner.hold_lists);
        inner.held_lists -= 1;
        inner.lists += 1;
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

    fn newest(&self, topics: &TopicPatterns, range: Range<u64>) -> Result<Vec<u64>, Refusal> {
        let found = self.last(&LastRequest { topics: topics.clone(), n: 1, per_topic: true })?;
        self.0.lock().looks += 1;
        drop(self.0.wait_while(|inner| inner.hold_looks));
        Ok(found.iter().filter_map(Frame::offset).filter(|at| range.contains(at)).collect())
    }

    fn topics(
        &self,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<TopicsPage, Refusal> {
        assert!(!self.0.lock().broken, "a panic on purpose");
        self.0.lock().pages += 1;
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
        let behind = all.into_values().filter(|one| after.is_none_or(|after| one.topic > *after));
        let page: Vec<_> = behind.take(limit).collect();
        let next = page.last().filter(|_| page.len() == limit).map(|one| one.topic.clone());
        Ok((page, next))
    }

    fn has_blob(&self, hash: &BlobHash) -> Result<bool, Refusal> {
        Ok(self.0.lock().blobs.contains_key(hash))
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal> {
        assert!(!self.0.lock().broken, "a panic on purpose");
        let bytes = self.0.lock().blobs.get(hash).cloned();
        self.0.lock().opened += 1;
        let source = |bytes: Bytes| Source { store: self.clone(), len: bytes.len() as u64, bytes };
        Ok(bytes.map(|bytes| Box::new(source(bytes)) as _))
    }

    fn bodies(&self, frames: &[Frame], max: u64, out: &mut Vec<(u32, Bytes)>) {
        let inner = self.0.lock();
        let body = |frame: &Frame| {
            inner.blobs.get(&frame.hash()?).filter(|body| body.len() as u64 <= max).cloned()
        };
        out.extend((0..).zip(frames).filter_map(|(index, frame)| Some((index, body(frame)?))));
    }

    fn blob_sink(&self) -> Result<Box<dyn BlobSink>, Refusal> {
        assert!(!self.0.lock().broken, "a panic on purpose");
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

    /// `echo` answers with its body and completes; `hang` never answers; `panic` panics; there are
    /// no other commands. While appends are held, calls are too.
    fn call(
        &self,
        request: CallRequest,
        wake: Wake,
    ) -> BoxFuture<'static, Result<Called, Refusal>> {
        let name = request.name.as_str().to_owned();
        if name == "panic" {
            return Box::pin(async { panic!("on purpose") });
        }
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
