//! Input of the index: the frames and tombstones of a group, added under one lock, or a scan of a
//! whole segment.

use std::sync::Arc;

use parking_lot::RwLockWriteGuard;

use super::topics::Topics;
use super::{Index, Noted};
use crate::error::ReadError;
use crate::format::control::{self, Control, Tombstone};
use crate::format::record::{RecordKind, RecordPrefix};
use crate::log::{Segment, position_of};
use crate::read::walk::{WINDOW_SCAN, Walk};
use crate::value::Ttl;

/// The index, locked to add frames of one group in one segment.
pub(crate) struct Notes<'a> {
    index: &'a Index,
    segment: &'a Arc<Segment>,
    topics: RwLockWriteGuard<'a, Topics>,
    group: Option<u64>,
    /// Frames added.
    frames: u64,
    /// Those of topics where `last:n` hides frames.
    hiding: u64,
}

impl Drop for Notes<'_> {
    fn drop(&mut self) {
        self.index.count_frames(self.frames);
        self.index.count_gone(self.hiding);
    }
}

impl<'a> Notes<'a> {
    pub(super) fn new(index: &'a Index, segment: &'a Arc<Segment>) -> Self {
        let topics = index.topics.write();
        Notes { index, segment, topics, group: None, frames: 0, hiding: 0 }
    }

    /// Lists the segment, even if it is empty.
    pub(super) fn begin(&mut self) {
        self.index.activate(&mut self.topics, self.segment);
    }

    /// Adds the next frame.
    pub(crate) fn frame(&mut self, noted: &Noted<'_>) {
        // A segment with only cursors may be dropped again; it is listed with its first frame or
        // tombstone.
        let group = *self.group.get_or_insert_with(|| {
            self.index.activate(&mut self.topics, self.segment);
            noted.offset
        });
        let mut keep = match noted.ttl {
            Ttl::Last(n) => Some(n.get()),
            _ => None,
        };
        if let Some(n) = keep
            && !self.index.prepare_floor(&mut self.topics, noted, n)
        {
            keep = None;
        }
        let Topics { active, handed, .. } = &mut *self.topics;
        let Some((_, active)) = active else { return };
        let number = active.note(noted);
        if active.count(number) == 1
            && !handed.is_empty()
            && let Some(recent) = handed.take(noted.topic)
        {
            active.set_recent(noted.topic, recent);
        }
        self.frames += 1;
        if active.apply_last(number, noted, group, keep) {
            self.index.floors.add(noted.topic);
            self.hiding += 1;
        }
    }

    /// Adds a tombstone of the batch with this seq, for readers with a head of at least `from`; for
    /// all when the store is being opened.
    pub(crate) fn tombstone(&mut self, seq: u64, tombstone: &Tombstone<'_>, from: Option<u64>) {
        self.begin();
        if let Some((_, memory)) = &mut self.topics.active {
            memory.note_tombstone(seq, tombstone);
        }
        self.index.remove(&mut self.topics, seq, tombstone, from);
    }

    /// Applies a FLOOR record.
    pub(super) fn floor(&mut self, topic: &str, floor: u64) {
        // A floor hides only earlier frames: a topic without any has nothing hidden.
        if self.topics.holds(topic) {
            self.index.floors.add(topic);
        }
        let Topics { active, handed, .. } = &mut *self.topics;
        if let Some((_, memory)) = active {
            memory.note_floor(topic, floor);
        }
        if let Some(recent) = handed.get_mut(topic) {
            recent.keep_from(floor);
        }
    }
}

/// An item of a segment that matters to an index.
pub(super) enum Met<'a> {
    Frame(Noted<'a>),
    /// With the seq of its batch.
    Tombstone(u64, Tombstone<'a>),
    Floor(&'a str, u64),
}

/// Reads a segment from its beginning and passes every such item to `visit`. Returns whether all of
/// it was sound.
pub(super) fn scan(
    segment: &Arc<Segment>,
    mut visit: impl FnMut(Met<'_>),
) -> Result<bool, ReadError> {
    let start = crate::format::file::FILE_HEADER_LEN as u64;
    let mut walk = Walk::new(segment.clone(), start, segment.base(), WINDOW_SCAN).with_controls();
    let mut whole = true;
    while let Some(found) = walk.next() {
        let found = match found {
            Ok(found) => found,
            Err(ReadError::Corrupt(_)) => {
                whole = false;
                continue;
            }
            Err(error) => return Err(error),
        };
        if found.prefix.kind != RecordKind::Frame {
            let record = walk.peek(&found);
            let checked =
                RecordPrefix::check(record).and_then(|prefix| control::decode(record, &prefix));
            match checked {
                Ok(Control::Tombstone(tombstone)) => {
                    visit(Met::Tombstone(walk.batch_seq(), tombstone));
                }
                Ok(Control::Floor { offset, topic }) => visit(Met::Floor(topic, offset)),
                Ok(_) => {}
                Err(_) => whole = false,
            }
            continue;
        }
        match walk.frame(&found) {
            Ok(frame) => visit(Met::Frame(Noted {
                offset: found.offset,
                id: frame.id(),
                topic: frame.topic(),
                batch: position_of(found.batch),
                record: position_of(found.position),
                record_len: found.prefix.len,
                body_len: frame.body_len(),
                ttl: frame.ttl(),
            })),
            Err(ReadError::Corrupt(_)) => whole = false,
            Err(error) => return Err(error),
        }
    }
    Ok(whole)
}
