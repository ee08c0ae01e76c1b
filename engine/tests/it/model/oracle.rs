//! The list that a store is compared with: every frame ever stored, and what is visible of it.

use std::collections::BTreeMap;

use xs_engine::{
    Appended, Batch, BlobHash, Body, Bound, Condition, CursorValue, Frame, FrameId, IdempotencyKey,
    Import, Meta, NewFrame, ReadOptions, Removal, Stamp, Start, TopicPatterns, Ttl,
};

use crate::support::Rng;

/// A frame as a reader must see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) id: FrameId,
    pub(super) offset: Option<u64>,
    topic: String,
    meta: Vec<u8>,
    hash: Option<BlobHash>,
    ttl: Ttl,
    old_id: Option<FrameId>,
}

impl From<Frame> for Expected {
    fn from(frame: Frame) -> Self {
        Self {
            id: frame.id(),
            offset: frame.offset(),
            topic: frame.topic().to_owned(),
            meta: frame.meta().to_vec(),
            hash: frame.hash(),
            ttl: frame.ttl(),
            old_id: frame.old_id(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    stored: Vec<Expected>,
    /// For each stored frame, whether a later `last:n` or a removal removed it.
    removed: Vec<bool>,
    ephemeral: Vec<FrameId>,
    keys: BTreeMap<IdempotencyKey, Used>,
}

/// What a batch stores, wherever its bodies come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    frames: Vec<(String, Meta, Option<BlobHash>, Ttl)>,
    cursors: Vec<(String, Option<CursorValue>)>,
    removes: Vec<FrameId>,
    old_ids: Vec<FrameId>,
}

impl Content {
    pub(super) fn of(batch: &Batch) -> Self {
        let frame = |new: &NewFrame| {
            (new.topic.as_str().to_owned(), new.meta.clone(), hash_of(new), new.ttl)
        };
        Self {
            frames: batch.frames.iter().map(frame).collect(),
            cursors: batch
                .cursors
                .iter()
                .map(|change| (change.name.as_str().to_owned(), change.set.clone()))
                .collect(),
            removes: batch.removes.clone(),
            old_ids: batch.import.as_ref().map_or(Vec::new(), |import| import.ids().to_vec()),
        }
    }
}

/// A key, the last batch that used it, and its answer.
#[derive(Debug, Clone)]
pub(super) struct Used {
    pub(super) content: Content,
    batch: Batch,
    stamps: Vec<Stamp>,
}

impl Used {
    pub(super) fn id(&self) -> FrameId {
        self.stamps[0].id
    }

    /// The answer to a repetition: all frames, unless one after the first was not stored.
    pub(super) fn told(&self) -> &[Stamp] {
        match self.stamps[1..].iter().all(|stamp| stamp.offset.is_some()) {
            true => &self.stamps,
            false => &self.stamps[..1],
        }
    }
}

fn hash_of(new: &NewFrame) -> Option<BlobHash> {
    match &new.body {
        Body::Inline(bytes) if !bytes.is_empty() => Some(BlobHash::of(bytes)),
        Body::Stored(hash) => Some(*hash),
        _ => None,
    }
}

impl Oracle {
    pub(super) fn head(&self) -> u64 {
        self.stored.len() as u64
    }

    /// The batch that used a key, if that has not expired.
    pub(super) fn used(&self, key: &IdempotencyKey, now: u64) -> Option<Used> {
        const DAY_MS: u64 = 24 * 3_600_000;
        self.keys.get(key).filter(|used| used.id().time_ms() + DAY_MS > now).cloned()
    }

    /// The batch that was sent with a key.
    pub(super) fn sent(&self, key: &IdempotencyKey) -> Option<Batch> {
        self.keys.get(key).map(|used| used.batch.clone())
    }

    pub(super) fn take_key(&mut self, batch: &Batch, appended: &Appended) {
        if let Some(key) = &batch.key {
            let (content, stamps) = (Content::of(batch), appended.frames.clone());
            self.keys.insert(key.clone(), Used { content, batch: batch.clone(), stamps });
        }
    }

    /// The newest id assigned.
    pub(super) fn newest(&self) -> FrameId {
        self.newest_stored().max(self.ephemeral.last().copied().unwrap_or(FrameId::ZERO))
    }

    /// The newest id of a stored frame.
    pub(super) fn newest_stored(&self) -> FrameId {
        self.stored.last().map_or(FrameId::ZERO, |frame| frame.id)
    }

    /// Whether a batch would keep ids that are not above the existing ones.
    pub(super) fn is_behind(&self, batch: &Batch) -> bool {
        match &batch.import {
            Some(Import::Verbatim(ids)) => ids.first().is_some_and(|id| *id <= self.newest()),
            _ => false,
        }
    }

    pub(super) fn append(
        &mut self,
        new: &NewFrame,
        stamp: &Stamp,
        old_id: Option<FrameId>,
    ) -> Expected {
        let hash = hash_of(new);
        let frame = Expected {
            id: stamp.id,
            offset: stamp.offset,
            topic: new.topic.as_str().to_owned(),
            meta: new.meta.as_bytes().to_vec(),
            hash,
            ttl: new.ttl,
            old_id,
        };
        if new.ttl == Ttl::Ephemeral {
            assert_eq!(stamp.offset, None);
            self.ephemeral.push(stamp.id);
            return frame;
        }
        assert_eq!(stamp.offset, Some(self.head()));
        assert!(self.stored.last().is_none_or(|last| last.id < stamp.id));
        self.stored.push(frame.clone());
        self.removed.push(false);
        if let Ttl::Last(n) = new.ttl {
            // The newest n of the existing frames, not counting removed or expired ones.
            let now = stamp.id.time_ms();
            let of_topic = (0..self.stored.len()).rev();
            let of_topic = of_topic.filter(|&at| self.stored[at].topic == frame.topic);
            let of_topic = of_topic.filter(|&at| self.is_visible(&self.stored[at], now));
            for at in of_topic.skip(n.get() as usize).collect::<Vec<_>>() {
                self.removed[at] = true;
            }
        }
        frame
    }

    pub(super) fn is_visible(&self, frame: &Expected, now: u64) -> bool {
        let Some(offset) = frame.offset else { return true };
        let expired = matches!(frame.ttl, Ttl::TimeMs(ms) if frame.id.time_ms() + ms <= now);
        !expired && !self.removed[offset as usize]
    }

    /// Removes the frames that a reader could see. All ids are looked up before anything is
    /// removed; a frame that two of them mean is removed once.
    pub(super) fn remove(&mut self, ids: &[FrameId], now: u64) -> Vec<Removal> {
        let found = |&id| self.get_by_id(id, now).and_then(|frame| frame.offset);
        let found: Vec<_> = ids.iter().map(found).collect();
        let remove = |offset: Option<u64>| match offset {
            Some(offset) if !std::mem::replace(&mut self.removed[offset as usize], true) => {
                Removal::Removed
            }
            _ => Removal::Absent,
        };
        found.into_iter().map(remove).collect()
    }

    /// The bodies of the frames that have an id, or had it before.
    pub(super) fn bodies_of(&self, id: FrameId) -> Vec<BlobHash> {
        let of_id = self.stored.iter().filter(|frame| frame.id == id || frame.old_id == Some(id));
        of_id.filter_map(|frame| frame.hash).collect()
    }

    /// An id of any frame, including ephemeral ones.
    pub(super) fn any_id(&self, rng: &mut Rng) -> FrameId {
        let nth = rng.below(self.head() + self.ephemeral.len() as u64 + 1) as usize;
        let stored = self.stored.get(nth).map(|frame| frame.id);
        let ephemeral = nth.checked_sub(self.stored.len()).and_then(|nth| self.ephemeral.get(nth));
        stored.or_else(|| ephemeral.copied()).unwrap_or(FrameId::ZERO)
    }

    pub(super) fn get(&self, is: impl Fn(&Expected) -> bool, now: u64) -> Option<Expected> {
        self.stored.iter().find(|frame| is(frame) && self.is_visible(frame, now)).cloned()
    }

    /// The visible frame with an id, or else the newest visible one that had it before.
    pub(super) fn get_by_id(&self, id: FrameId, now: u64) -> Option<Expected> {
        let visible = || self.stored.iter().filter(|frame| self.is_visible(frame, now));
        let stored = visible().find(|frame| frame.id == id);
        stored.or_else(|| visible().rfind(|frame| frame.old_id == Some(id))).cloned()
    }

    pub(super) fn select(&self, options: &ReadOptions, now: u64) -> Vec<Expected> {
        let at_or_after = |frame: &Expected, bound: Bound| match bound {
            Bound::Offset(offset) => frame.offset >= Some(offset),
            Bound::Id(id) => frame.id >= id,
        };
        let is = |frame: &Expected, bound: Bound| match bound {
            Bound::Offset(offset) => frame.offset == Some(offset),
            Bound::Id(id) => frame.id == id,
        };
        let mut found: Vec<_> = self
            .stored
            .iter()
            .filter(|frame| match options.start {
                Start::First | Start::Last(_) => true,
                Start::From(bound) => at_or_after(frame, bound),
                Start::After(bound) => at_or_after(frame, bound) && !is(frame, bound),
                Start::New => false,
            })
            .filter(|frame| options.before.is_none_or(|bound| !at_or_after(frame, bound)))
            .filter(|frame| options.since_ms.is_none_or(|since| frame.id.time_ms() >= since))
            .filter(|frame| options.until_ms.is_none_or(|until| frame.id.time_ms() < until))
            .filter(|frame| options.topics.matches(&frame.topic))
            .filter(|frame| self.is_visible(frame, now))
            .cloned()
            .collect();
        if let Start::Last(n) = options.start {
            found.drain(..found.len().saturating_sub(n as usize));
        }
        if options.reverse {
            found.reverse();
        }
        found.truncate(options.limit.unwrap_or(u64::MAX) as usize);
        found
    }

    /// The first condition that does not hold, and what it finds.
    pub(super) fn unmet(&self, conditions: &[Condition], now: u64) -> Option<(usize, u64)> {
        let newest = |topics: &TopicPatterns| {
            let topics = topics.clone();
            let last = ReadOptions { topics, start: Start::Last(1), ..ReadOptions::default() };
            self.select(&last, now).first().and_then(|frame| frame.offset)
        };
        let found = |condition: &Condition| match condition {
            Condition::HeadIs(head) => Some(self.head()).filter(|found| found != head),
            Condition::Empty(topics) => newest(topics),
            Condition::LastAtMost { topics, offset } => {
                newest(topics).filter(|found| found > offset)
            }
        };
        let mut numbered = conditions.iter().enumerate();
        numbered.find_map(|(index, condition)| Some((index, found(condition)?)))
    }

    pub(super) fn last_per_topic(&self, topics: &TopicPatterns, now: u64) -> Vec<Expected> {
        let all = ReadOptions { topics: topics.clone(), ..ReadOptions::default() };
        let mut last: BTreeMap<String, Expected> = BTreeMap::new();
        for frame in self.select(&all, now) {
            last.insert(frame.topic.clone(), frame);
        }
        let mut last: Vec<_> = last.into_values().collect();
        last.sort_by_key(|frame| frame.offset);
        last
    }

    /// For each topic the ids of the frames that count; the marked ones have expired and may be
    /// missing.
    pub(super) fn topics(
        &self,
        topics: &TopicPatterns,
        now: u64,
    ) -> BTreeMap<String, Vec<(FrameId, bool)>> {
        let mut counted: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for (frame, _) in self.stored.iter().zip(&self.removed).filter(|(_, removed)| !**removed) {
            if topics.matches(&frame.topic) {
                let ids = counted.entry(frame.topic.clone()).or_default();
                ids.push((frame.id, !self.is_visible(frame, now)));
            }
        }
        counted
    }

    /// The offset of a stored frame.
    pub(super) fn offset_of(&self, id: FrameId) -> Option<u64> {
        self.stored.iter().find(|frame| frame.id == id).and_then(|frame| frame.offset)
    }
}
