//! Scans segments before they are rewritten and decides about each record. Every reason to drop a
//! frame is permanent: a frame that was removed, has expired or lies below a floor stays so.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::pace::Pace;
use super::{Stop, Stopped};
use crate::format::align8;
use crate::format::batch::BATCH_HEADER_LEN;
use crate::format::control::{self, Control};
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{PREFIX_LEN, RecordKind, RecordPrefix};
use crate::index::{Candidate, GoneOf, Marks, Stays};
use crate::keys::key_hash;
use crate::log::{RESTATED_BYTES, RESTATED_COUNT};
use crate::planted::{Bug, is_planted};
use crate::read::walk::{FoundRecord, WINDOW_SCAN, Walk};
use crate::store::Inner;

/// One bit per record of a segment: whether it is kept.
#[derive(Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.len.is_multiple_of(64) {
            self.words.push(0);
        }
        if let Some(word) = self.words.last_mut() {
            *word |= u64::from(bit) << (self.len % 64);
        }
        self.len += 1;
    }

    pub(super) fn get(&self, at: usize) -> bool {
        self.words.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 != 0)
    }
}

/// The decisions about consecutive segments.
pub(super) struct Survey {
    pub(super) inputs: Vec<Candidate>,
    /// Which records of each segment are kept.
    pub(super) keep: Vec<Bits>,
    /// What is kept of each segment, in bytes.
    pub(super) stays: Vec<Stays>,
    /// Bytes of the batches that are kept, without floors.
    pub(super) kept_len: u64,
    /// What is dropped of each topic in them.
    pub(super) gone: HashMap<Arc<str>, GoneOf>,
    /// Number of dropped frames.
    pub(super) dropped: u64,
    /// Offsets of the dropped frames.
    pub(super) left_out: Marks,
    /// Floors that hide frames in other segments.
    pub(super) floors: Vec<(Arc<str>, u64)>,
    /// Floors that hide only dropped frames.
    pub(super) spent: HashMap<Arc<str>, u64>,
    /// The removed frames that were applied.
    pub(super) marks: Marks,
    /// The offsets that the segments cover.
    pub(super) offsets: Range<u64>,
}

impl Survey {
    /// The ordinals of the segments.
    pub(super) fn replaced(&self) -> RangeInclusive<u32> {
        let ordinal = |of: Option<&Candidate>| of.map_or(0, |of| of.ordinal);
        ordinal(self.inputs.first())..=ordinal(self.inputs.last())
    }

    /// Bytes of the segments now.
    pub(super) fn input_len(&self) -> u64 {
        self.inputs.iter().map(|input| input.segment.published_len()).sum()
    }

    /// Upper bound of the bytes that are kept.
    pub(super) fn output_len(&self) -> u64 {
        self.kept_len + floors_len(self.floors.iter().map(|(topic, _)| &**topic))
    }

    /// Upper bound of the bytes of the file to write.
    pub(super) fn file_len(&self) -> u64 {
        match self.output_len() {
            0 => 0,
            len => FILE_HEADER_LEN as u64 + len,
        }
    }

    /// Adds the next segment.
    fn take(&mut self, input: &Candidate, part: Part, len: u64) {
        self.stays.push(Stays { bytes: len, control: part.control_len });
        self.offsets.end = input.segment.end().max(self.offsets.end);
        self.inputs.push(input.clone());
        self.keep.push(part.keep);
        self.kept_len += part.kept_len;
        self.dropped += part.dropped;
        for (topic, gone) in part.gone {
            self.gone.entry(topic).or_default().frames += gone.frames;
        }
    }

    /// Whether a frame was dropped that no tombstone had removed at the time: it had expired, or
    /// was below a floor.
    pub(super) fn has_left_out(&self, offset: u64) -> bool {
        self.left_out.contains(offset) && !self.marks.contains(offset)
    }
}

/// Upper bound of the bytes of the floors of these topics, with their batches.
fn floors_len<'t>(topics: impl Iterator<Item = &'t str>) -> u64 {
    let (mut count, mut bytes) = (0, 0);
    for topic in topics {
        count += 1;
        bytes += align8(PREFIX_LEN + 8 + topic.len());
    }
    let batches = match count {
        0 => 0,
        count => 1 + count / RESTATED_COUNT + bytes / RESTATED_BYTES,
    };
    (bytes + batches * BATCH_HEADER_LEN) as u64
}

/// Decides about the records of segments: of the first ones that together fit into one of at most
/// `limit` bytes, but at least of one. `marks` are the removed frames in them.
pub(super) fn survey(
    inner: &Inner,
    inputs: &[Candidate],
    marks: Marks,
    limit: u64,
    pace: &mut Pace<'_>,
) -> Stopped<Survey> {
    let base = inputs.first().map_or(0, |input| input.segment.base());
    let now_ms = inner.env.clock.now_ms();
    let left_out = Marks::default();
    let mut deciding = Deciding { inner, now_ms, base, marks, left_out, floors: HashMap::new() };
    let mut survey = Survey {
        inputs: Vec::new(),
        keep: Vec::new(),
        stays: Vec::new(),
        kept_len: 0,
        gone: HashMap::new(),
        dropped: 0,
        left_out: Marks::default(),
        floors: Vec::new(),
        spent: HashMap::new(),
        marks: Marks::default(),
        offsets: base..base,
    };
    let mut sum = FILE_HEADER_LEN as u64;
    for input in inputs {
        let part = deciding.segment(input, pace)?;
        let len = deciding.len_with(&part, &survey);
        sum += len;
        if !survey.inputs.is_empty() && sum > limit {
            // The notes about its offsets are never used.
            break;
        }
        survey.take(input, part, len);
    }
    (survey.marks, survey.left_out) = (deciding.marks, deciding.left_out);
    let replaced = survey.replaced();
    for topic in survey.gone.keys() {
        let (floor, beside) = inner.index.floor_beside(topic, &replaced);
        // A higher floor hides frames after these segments; records after them carry it.
        let floor = floor.min(survey.offsets.end);
        match (floor, beside) {
            (0, _) => {}
            (_, true) if is_planted(Bug::ForgetFloors) => {}
            (_, true) => survey.floors.push((topic.clone(), floor)),
            (_, false) => _ = survey.spent.insert(topic.clone(), floor),
        }
    }
    survey.floors.sort_unstable();
    if let [alone] = &mut survey.stays[..]
        && alone.bytes > 0
    {
        alone.bytes += FILE_HEADER_LEN as u64;
    }
    Ok(survey)
}

/// The decisions about one segment.
#[derive(Default)]
struct Part {
    keep: Bits,
    kept_len: u64,
    /// Bytes of it that belong to no frame.
    control_len: u64,
    /// What is dropped of each topic in it.
    gone: HashMap<Arc<str>, GoneOf>,
    dropped: u64,
}

struct Deciding<'a> {
    inner: &'a Inner,
    now_ms: u64,
    /// Base of the first segment.
    base: u64,
    marks: Marks,
    left_out: Marks,
    floors: HashMap<Arc<str>, u64>,
}

impl Deciding<'_> {
    fn segment(&mut self, input: &Candidate, pace: &mut Pace<'_>) -> Stopped<Part> {
        let mut walk = walk(input);
        let mut part = Part::default();
        let offsets = self.base..input.segment.end();
        let mut batch = 0;
        while let Some(found) = walk.next() {
            let found = found?;
            let keep = self.record(&mut walk, &found, &offsets, &mut part)?;
            part.keep.push(keep);
            if keep {
                if batch != found.batch {
                    batch = found.batch;
                    part.kept_len += BATCH_HEADER_LEN as u64;
                }
                part.kept_len += found.prefix.stride() as u64;
                if found.prefix.kind != RecordKind::Frame {
                    // Counted as if it were alone in its batch; the next survey corrects that.
                    part.control_len += (found.prefix.stride() + BATCH_HEADER_LEN) as u64;
                }
            }
            pace.pass(found.prefix.stride())?;
        }
        Ok(part)
    }

    /// Bytes that a segment adds to the earlier ones: what is kept, and the floors of its topics.
    fn len_with(&mut self, part: &Part, survey: &Survey) -> u64 {
        let new = part.gone.keys().filter(|&topic| !survey.gone.contains_key(topic));
        part.kept_len + floors_len(new.filter(|topic| self.floor(topic) > 0).map(|topic| &**topic))
    }

    fn record(
        &mut self,
        walk: &mut Walk,
        found: &FoundRecord,
        offsets: &Range<u64>,
        part: &mut Part,
    ) -> Stopped<bool> {
        if found.prefix.kind == RecordKind::Frame {
            return self.frame(walk, found, part);
        }
        let record = walk.peek(found);
        let decoded = RecordPrefix::check(record)
            .and_then(|prefix| control::decode(record, &prefix))
            .map_err(|_| walk.damaged(found))?;
        Ok(match decoded {
            // A tombstone of a frame in these segments is before them in `marks`, and is applied
            // now.
            Control::Tombstone(tombstone) => {
                let here = offsets.contains(&tombstone.offset);
                !here && self.inner.index.is_removed(tombstone.offset)
            }
            Control::Key { id, key, .. } => self.inner.keys.needs(&key_hash(key), id, self.now_ms),
            // Later segments restate cursors, and floors are rewritten below.
            Control::Floor { topic, .. } => {
                gone_of(&mut part.gone, topic);
                false
            }
            Control::Cursor(_) | Control::Mark { .. } | Control::Checkpoint(_) => false,
        })
    }

    fn frame(&mut self, walk: &mut Walk, found: &FoundRecord, part: &mut Part) -> Stopped<bool> {
        let frame = walk.frame(found)?;
        let offset = found.offset;
        let hidden = offset < self.floor(frame.topic()) || self.marks.contains(offset);
        let expired = frame.expires_ms().is_some_and(|at| at <= self.now_ms);
        let gone = gone_of(&mut part.gone, frame.topic());
        if !hidden && !expired {
            return Ok(true);
        }
        gone.frames += 1;
        part.dropped += 1;
        self.left_out.set(offset);
        Ok(false)
    }

    fn floor(&mut self, topic: &str) -> u64 {
        if let Some(&floor) = self.floors.get(topic) {
            return floor;
        }
        let floor = self.inner.index.floor(topic, u64::MAX);
        self.floors.insert(Arc::from(topic), floor);
        floor
    }
}

fn gone_of<'s>(gone: &'s mut HashMap<Arc<str>, GoneOf>, topic: &str) -> &'s mut GoneOf {
    if !gone.contains_key(topic) {
        gone.insert(Arc::from(topic), GoneOf::default());
    }
    gone.get_mut(topic).expect("it was put there when it was missing")
}

/// A walk over all records of a segment.
pub(super) fn walk(input: &Candidate) -> Walk {
    let start = FILE_HEADER_LEN as u64;
    let segment = input.segment.clone();
    let base = segment.base();
    Walk::new(segment, start, base, WINDOW_SCAN).with_controls()
}

impl From<crate::error::ReadError> for Stop {
    fn from(error: crate::error::ReadError) -> Self {
        match error {
            crate::error::ReadError::Corrupt(corruption) => Self::Damaged(corruption),
            error => Self::Unreadable(error),
        }
    }
}
