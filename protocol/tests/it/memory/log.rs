//! The effect of a batch on frames, blobs and cursors, and where reads begin and end.

use xs_engine::{
    BlobHash, Body, Bound, Condition, Cursor, CursorChange, CursorValue, ExpectRevision, Frame,
    FrameId, NewFrame, ReadOptions, Removal, Start, TopicPatterns, Ttl,
};
use xs_protocol::{AppendRequest, Appended, Code, Detail, Refusal, Stamp};

use super::Inner;

impl Inner {
    pub(super) fn head(&self) -> u64 {
        self.frames.len() as u64
    }

    pub(super) fn add(&mut self, new: &NewFrame) -> Result<Stamp, Refusal> {
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

    pub(super) fn apply(&mut self, batch: &AppendRequest) -> Result<Appended, Refusal> {
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

    fn remove(&mut self, batch: &AppendRequest) -> Result<Vec<Removal>, Refusal> {
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
        let gone = found.into_iter().map(|at| match at.is_some_and(|at| self.removed.insert(at)) {
            true => Removal::Removed,
            false => Removal::Absent,
        });
        Ok(gone.collect())
    }

    /// The frame at a position, if a reader may see it.
    pub(super) fn visible(&self, at: Bound) -> Option<&Frame> {
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
            Some(value) => {
                let CursorValue { offset, state } = value.clone();
                let cursor = Cursor { revision, epoch: 1, offset, time_ms: 5, state };
                self.cursors.insert(change.name.clone(), cursor);
                revision
            }
        }
    }

    pub(super) fn at(&self, bound: Bound) -> u64 {
        match bound {
            Bound::Offset(offset) => offset,
            Bound::Id(id) => self.frames.partition_point(|frame| frame.id() < id) as u64,
        }
    }

    /// The range of a read that is being opened.
    pub(super) fn open(&mut self, options: &ReadOptions) -> (u64, u64) {
        if matches!(options.start, Start::Last(_)) && !options.reverse {
            self.looked_back.push(std::thread::current().id());
        }
        self.range(options)
    }

    /// The range of offsets that options select, before topics and limit.
    pub(super) fn range(&self, options: &ReadOptions) -> (u64, u64) {
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
        // A follower waits for a start that lies ahead.
        (if options.follow { start } else { start.min(end) }, end)
    }
}
