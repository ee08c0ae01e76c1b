//! Records: the common prefix, and FRAME in full. The other kinds are in `control`.

use std::num::NonZeroU64;

use super::{align8, bytes_at, u32_at, u64_at};
use crate::limits::{META_BYTES_MAX, RECORD_BYTES_MAX};
use crate::planted::{Bug, is_planted};
use crate::value::{BlobHash, FrameId, NewFrame, Origin, Ttl};

/// Bytes of the prefix common to all records.
pub const PREFIX_LEN: usize = 16;
const CRC_AT: usize = 0;
const LEN_AT: usize = CRC_AT + size_of::<u32>();
const KIND_AT: usize = LEN_AT + size_of::<u32>();
const FLAGS_AT: usize = KIND_AT + 1;
const NAME_LEN_AT: usize = FLAGS_AT + 1;
const TTL_AT: usize = NAME_LEN_AT + 1;
const DELTA_AT: usize = TTL_AT + 1;
const _: () = assert!(DELTA_AT + size_of::<u32>() == PREFIX_LEN);

const ID_AT: usize = PREFIX_LEN;
const FIXED_LEN: usize = ID_AT + 16;
const TTL_VALUE_LEN: usize = 8;
const BODY_LEN: usize = 8 + 32;
const ORIGIN_LEN: usize = 16 + 16 + 8 + 4 + 4;
const OLD_ID_LEN: usize = 16;

const FLAG_BODY: u8 = 1;
const FLAG_ORIGIN: u8 = 1 << 1;
/// Flag of a FRAME: the frame was imported and has its old id.
pub(crate) const FLAG_OLD_ID: u8 = 1 << 2;
/// Flag of every kind: the record restates older state after a CHECKPOINT.
pub const FLAG_RESTATED: u8 = 1 << 7;

const NO_OFFSET: u64 = u64::MAX;

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A frame; the only kind that takes an offset.
    Frame = 1,
    /// The removal of a frame.
    Tombstone = 2,
    /// A cursor's value.
    Cursor = 3,
    /// An idempotency key.
    Key = 4,
    /// A sync mark or a clean close.
    Mark = 5,
    /// The beginning of a restatement of cursors.
    Checkpoint = 6,
    /// A floor of a topic that `last:n` set, in a compacted segment.
    Floor = 7,
}

impl RecordKind {
    #[inline]
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Frame),
            2 => Some(Self::Tombstone),
            3 => Some(Self::Cursor),
            4 => Some(Self::Key),
            5 => Some(Self::Mark),
            6 => Some(Self::Checkpoint),
            7 => Some(Self::Floor),
            _ => None,
        }
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Fewer bytes than the record needs.
    #[error("record is cut short")]
    Short,
    /// More bytes than a record may have.
    #[error("record of {0} bytes is over the limit of {RECORD_BYTES_MAX}")]
    TooLarge(usize),
    /// The CRC does not match the bytes.
    #[error("record fails its CRC")]
    Crc,
    /// A field has an invalid value.
    #[error("record holds a wrong {0}")]
    Field(&'static str),
}

/// The prefix of a record, read before its CRC is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPrefix {
    /// CRC of everything after it in the record.
    pub crc: u32,
    /// Bytes of the record without padding.
    pub len: u32,
    /// The kind of the record.
    pub kind: RecordKind,
    /// Flags of the kind.
    pub flags: u8,
    /// Bytes of the topic, name or key.
    pub name_len: u8,
    /// Kind of ttl of a FRAME.
    pub ttl: u8,
    /// A FRAME's offset minus the base of its batch.
    pub offset_delta: u32,
}

impl RecordPrefix {
    /// Reads the first 16 bytes of `bytes`, which may be longer than the record.
    ///
    /// # Errors
    /// [`RecordError`] when there are too few bytes or a field is out of its range.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Self, RecordError> {
        let prefix: [u8; PREFIX_LEN] = bytes_at(bytes, 0).ok_or(RecordError::Short)?;
        let word = |at| u32_at(&prefix, at).ok_or(RecordError::Short);
        let len = word(LEN_AT)?;
        if len as usize > RECORD_BYTES_MAX {
            return Err(RecordError::TooLarge(len as usize));
        }
        if (len as usize) < PREFIX_LEN {
            return Err(RecordError::Field("length"));
        }
        Ok(Self {
            crc: word(CRC_AT)?,
            len,
            kind: RecordKind::from_byte(prefix[KIND_AT]).ok_or(RecordError::Field("kind"))?,
            flags: prefix[FLAGS_AT],
            name_len: prefix[NAME_LEN_AT],
            ttl: prefix[TTL_AT],
            offset_delta: word(DELTA_AT)?,
        })
    }

    /// Reads the prefix and checks the CRC of the whole record, which must be exactly `record`.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong.
    pub fn check(record: &[u8]) -> Result<Self, RecordError> {
        let prefix = Self::read(record)?;
        prefix.verify(record)?;
        Ok(prefix)
    }

    /// Checks the CRC of the record that this was read from.
    #[inline]
    pub(crate) fn verify(&self, record: &[u8]) -> Result<(), RecordError> {
        if record.len() < self.len as usize {
            return Err(RecordError::Short);
        }
        if record.len() != self.len as usize {
            return Err(RecordError::Field("length"));
        }
        match record.get(LEN_AT..) {
            _ if is_planted(Bug::IgnoreBodyCrc) => Ok(()),
            Some(covered) if crc32fast::hash(covered) == self.crc => Ok(()),
            _ => Err(RecordError::Crc),
        }
    }

    /// Returns the distance from the beginning of this record to the next.
    #[inline]
    #[must_use]
    pub const fn stride(&self) -> usize {
        align8(self.len as usize)
    }
}

/// Appends the prefix without CRC and length; [`finish`] fills them in.
pub(crate) fn begin(out: &mut Vec<u8>, kind: RecordKind, flags: u8, name_len: u8) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[kind as u8, flags, name_len, 0, 0, 0, 0, 0]);
    at
}

/// Sets length and CRC of the record from `at` to the end of `out`, pads it, and returns its CRC.
pub(crate) fn finish(out: &mut Vec<u8>, at: usize) -> Result<u32, RecordError> {
    let len = out.len() - at;
    if len > RECORD_BYTES_MAX {
        out.truncate(at);
        return Err(RecordError::TooLarge(len));
    }
    out[at + LEN_AT..at + KIND_AT].copy_from_slice(&(len as u32).to_le_bytes());
    let crc = seal(&mut out[at..]);
    out.resize(at + align8(len), 0);
    Ok(crc)
}

/// Computes the CRC of a whole, unpadded record and stores it.
fn seal(record: &mut [u8]) -> u32 {
    let crc = crc32fast::hash(&record[LEN_AT..]);
    record[..LEN_AT].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// The fields of a FRAME record.
#[derive(Debug, Clone, Copy)]
pub struct FrameFields<'a> {
    /// The id.
    pub id: FrameId,
    /// Its offset minus the batch's base.
    pub offset_delta: u32,
    /// Time to live.
    pub ttl: Ttl,
    /// Length and hash of the body.
    pub body: Option<(u64, BlobHash)>,
    /// Where the frame comes from.
    pub origin: Option<Origin>,
    /// The id it had before it was imported.
    pub old_id: Option<FrameId>,
    /// The topic, already validated.
    pub topic: &'a str,
    /// JSON text, already validated, or empty.
    pub meta: &'a [u8],
}

impl<'a> FrameFields<'a> {
    /// Returns the fields of a frame about to be appended.
    #[must_use]
    pub fn of(
        new: &'a NewFrame,
        id: FrameId,
        offset_delta: u32,
        body: Option<(u64, BlobHash)>,
    ) -> Self {
        Self {
            id,
            offset_delta,
            ttl: new.ttl,
            body,
            origin: new.origin,
            old_id: None,
            topic: new.topic.as_str(),
            meta: new.meta.as_bytes(),
        }
    }
}

/// Returns the length of the record of a frame, without padding.
#[must_use]
pub fn frame_len(fields: &FrameFields<'_>) -> usize {
    let ttl = match fields.ttl {
        Ttl::Forever | Ttl::Ephemeral => 0,
        Ttl::TimeMs(_) | Ttl::Last(_) => TTL_VALUE_LEN,
    };
    let body = if fields.body.is_some() { BODY_LEN } else { 0 };
    let origin = if fields.origin.is_some() { ORIGIN_LEN } else { 0 };
    let old_id = if fields.old_id.is_some() { OLD_ID_LEN } else { 0 };
    FIXED_LEN + ttl + body + origin + old_id + fields.topic.len() + fields.meta.len()
}

/// Appends a FRAME record with its padding to `out` and returns its CRC.
///
/// # Errors
/// [`RecordError::TooLarge`] when the parts do not fit; `out` is then unchanged.
pub fn encode_frame(out: &mut Vec<u8>, fields: &FrameFields<'_>) -> Result<u32, RecordError> {
    let name_len =
        u8::try_from(fields.topic.len()).map_err(|_| RecordError::TooLarge(fields.topic.len()))?;
    let (ttl_byte, ttl_value) = match fields.ttl {
        Ttl::Forever => (0, None),
        Ttl::Ephemeral => (1, None),
        Ttl::TimeMs(ms) => (2, Some(ms)),
        Ttl::Last(n) => (3, Some(n.get())),
    };
    let mut flags = 0;
    flags |= if fields.body.is_some() { FLAG_BODY } else { 0 };
    flags |= if fields.origin.is_some() { FLAG_ORIGIN } else { 0 };
    flags |= if fields.old_id.is_some() { FLAG_OLD_ID } else { 0 };
    let at = begin(out, RecordKind::Frame, flags, name_len);
    out[at + TTL_AT] = ttl_byte;
    out[at + DELTA_AT..at + PREFIX_LEN].copy_from_slice(&fields.offset_delta.to_le_bytes());
    out.extend_from_slice(fields.id.as_bytes());
    if let Some(value) = ttl_value {
        out.extend_from_slice(&value.to_le_bytes());
    }
    if let Some((len, hash)) = fields.body {
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(hash.as_bytes());
    }
    if let Some(origin) = fields.origin {
        out.extend_from_slice(origin.processor.as_bytes());
        out.extend_from_slice(origin.input.unwrap_or(FrameId::ZERO).as_bytes());
        out.extend_from_slice(&origin.input_offset.unwrap_or(NO_OFFSET).to_le_bytes());
        out.extend_from_slice(&origin.hops.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }
    if let Some(old_id) = fields.old_id {
        out.extend_from_slice(old_id.as_bytes());
    }
    out.extend_from_slice(fields.topic.as_bytes());
    out.extend_from_slice(fields.meta);
    finish(out, at)
}

/// The id of a FRAME record whose CRC was checked.
pub(crate) fn frame_id(record: &[u8]) -> Option<FrameId> {
    bytes_at(record, ID_AT).map(FrameId::from_bytes)
}

/// SHA-256 of the body of a FRAME record whose CRC was checked, if it has one.
pub(super) fn body_hash(record: &[u8], prefix: &RecordPrefix) -> Option<BlobHash> {
    let at = FIXED_LEN + if prefix.ttl >= 2 { TTL_VALUE_LEN } else { 0 } + size_of::<u64>();
    let hash = bytes_at(record, at).filter(|_| prefix.flags & FLAG_BODY != 0);
    hash.map(BlobHash::from_bytes)
}

/// The bytes of the topic of a FRAME record whose CRC may not have been checked yet.
#[inline]
pub(crate) fn peek_topic<'a>(record: &'a [u8], prefix: &RecordPrefix) -> Option<&'a [u8]> {
    let mut at = FIXED_LEN;
    at += if prefix.ttl >= 2 { TTL_VALUE_LEN } else { 0 };
    at += if prefix.flags & FLAG_BODY != 0 { BODY_LEN } else { 0 };
    at += if prefix.flags & FLAG_ORIGIN != 0 { ORIGIN_LEN } else { 0 };
    at += if prefix.flags & FLAG_OLD_ID != 0 { OLD_ID_LEN } else { 0 };
    record.get(at..at + usize::from(prefix.name_len))
}

/// The positions of the parts of a checked FRAME record. Its methods take the record it was made
/// from. Kept small, as one is made and moved for each frame read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameLayout {
    offset_delta: u32,
    meta_at: u16,
    body_at: u8,
    origin_at: u8,
    old_id_at: u8,
    topic_at: u8,
    ttl: u8,
}

const _: () = assert!(FIXED_LEN + TTL_VALUE_LEN + BODY_LEN + ORIGIN_LEN + OLD_ID_LEN < 256);

impl FrameLayout {
    /// Parses a record whose CRC was checked.
    #[inline]
    pub(crate) fn of_checked(record: &[u8], prefix: &RecordPrefix) -> Result<Self, RecordError> {
        if prefix.kind != RecordKind::Frame {
            return Err(RecordError::Field("kind"));
        }
        if prefix.flags & !(FLAG_BODY | FLAG_ORIGIN | FLAG_OLD_ID) != 0 {
            return Err(RecordError::Field("flag"));
        }
        let mut at = FIXED_LEN;
        if prefix.ttl >= 2 {
            let value = u64_at(record, at).ok_or(RecordError::Short)?;
            if prefix.ttl > 3 || (prefix.ttl == 3 && value == 0) {
                return Err(RecordError::Field("ttl"));
            }
            at += TTL_VALUE_LEN;
        }
        let body_at = at;
        at += if prefix.flags & FLAG_BODY != 0 { BODY_LEN } else { 0 };
        let origin_at = at;
        at += if prefix.flags & FLAG_ORIGIN != 0 { ORIGIN_LEN } else { 0 };
        let old_id_at = at;
        at += if prefix.flags & FLAG_OLD_ID != 0 { OLD_ID_LEN } else { 0 };
        let topic_at = at;
        let meta_at = topic_at + usize::from(prefix.name_len);
        let topic = record.get(topic_at..meta_at).ok_or(RecordError::Short)?;
        if !crate::value::is_topic(topic) {
            return Err(RecordError::Field("topic"));
        }
        if record.len() - meta_at > META_BYTES_MAX {
            return Err(RecordError::Field("meta"));
        }
        Ok(Self {
            offset_delta: prefix.offset_delta,
            meta_at: meta_at as u16,
            body_at: body_at as u8,
            origin_at: origin_at as u8,
            old_id_at: old_id_at as u8,
            topic_at: topic_at as u8,
            ttl: prefix.ttl,
        })
    }

    /// The length field of a record that was just encoded.
    pub(crate) fn unpadded_len(record: &[u8]) -> Result<usize, RecordError> {
        RecordPrefix::read(record).map(|prefix| prefix.len as usize)
    }

    pub(crate) const fn offset_delta(&self) -> u32 {
        self.offset_delta
    }

    #[inline]
    pub(crate) fn ttl(&self, record: &[u8]) -> Ttl {
        let value = || u64_at(record, FIXED_LEN).unwrap_or_default();
        match self.ttl {
            0 => Ttl::Forever,
            2 => Ttl::TimeMs(value()),
            3 => NonZeroU64::new(value()).map_or(Ttl::Forever, Ttl::Last),
            _ => Ttl::Ephemeral,
        }
    }

    /// The expiry time relative to the time in its id, in milliseconds, if it expires.
    #[inline]
    pub(crate) fn expires_after_ms(&self, record: &[u8]) -> Option<u64> {
        if self.ttl == 2 { u64_at(record, FIXED_LEN) } else { None }
    }

    pub(crate) fn id(&self, record: &[u8]) -> FrameId {
        FrameId::from_bytes(bytes_at(record, ID_AT).unwrap_or_default())
    }

    pub(crate) fn topic<'a>(&self, record: &'a [u8]) -> &'a str {
        let topic = record.get(usize::from(self.topic_at)..usize::from(self.meta_at));
        topic.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn meta<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        record.get(usize::from(self.meta_at)..).unwrap_or_default()
    }

    pub(crate) fn body(&self, record: &[u8]) -> Option<(u64, BlobHash)> {
        if self.body_at == self.origin_at {
            return None;
        }
        let at = usize::from(self.body_at);
        Some((u64_at(record, at)?, BlobHash::from_bytes(bytes_at(record, at + 8)?)))
    }

    pub(crate) fn origin(&self, record: &[u8]) -> Option<Origin> {
        if self.origin_at == self.old_id_at {
            return None;
        }
        let at = usize::from(self.origin_at);
        let input = FrameId::from_bytes(bytes_at(record, at + 16)?);
        let input_offset = u64_at(record, at + 32)?;
        Some(Origin {
            processor: FrameId::from_bytes(bytes_at(record, at)?),
            input: (input != FrameId::ZERO).then_some(input),
            input_offset: (input_offset != NO_OFFSET).then_some(input_offset),
            hops: u32_at(record, at + 40)?,
        })
    }

    pub(crate) fn old_id(&self, record: &[u8]) -> Option<FrameId> {
        if self.old_id_at == self.topic_at {
            return None;
        }
        bytes_at(record, usize::from(self.old_id_at)).map(FrameId::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::value::{Frame, Meta, Topic};

    fn full() -> NewFrame {
        NewFrame {
            meta: Meta::parse(r#"{"n":1}"#).unwrap(),
            ttl: Ttl::Last(NonZeroU64::MIN),
            origin: Some(Origin {
                processor: FrameId::first_of_ms(1),
                input: None,
                input_offset: Some(7),
                hops: 3,
            }),
            ..NewFrame::new(Topic::parse("a.b").unwrap())
        }
    }

    #[test]
    fn frames_round_trip() {
        let id = FrameId::first_of_ms(1_700_000_000_000).next();
        let body = Some((5, BlobHash::of(b"hello")));
        for (new, body) in [(full(), body), (NewFrame::new(Topic::parse("t").unwrap()), None)] {
            let frame = Frame::assemble(&new, id, Some(9), body).unwrap();
            let fields = FrameFields::of(&new, id, 0, body);
            assert_eq!(frame.record().len(), frame_len(&fields));
            assert_eq!((frame.id(), frame.offset()), (id, Some(9)));
            assert_eq!((frame.topic(), frame.meta()), (new.topic.as_str(), new.meta.as_bytes()));
            assert_eq!((frame.ttl(), frame.origin()), (new.ttl, new.origin));
            assert_eq!(frame.hash().map(|hash| (frame.body_len(), hash)), body);
            assert_eq!(frame.old_id(), None);
            let mut record = Vec::new();
            let imported = FrameFields { old_id: Some(FrameId::MAX), ..fields };
            encode_frame(&mut record, &imported).unwrap();
            record.truncate(frame_len(&imported));
            let prefix = RecordPrefix::check(&record).unwrap();
            assert_eq!(peek_topic(&record, &prefix), Some(new.topic.as_str().as_bytes()));
            let kept = Frame::from_record(Bytes::from(record), Some(9)).unwrap();
            assert_eq!((kept.old_id(), kept.origin()), (Some(FrameId::MAX), new.origin));
            assert_eq!((kept.topic(), kept.meta()), (frame.topic(), frame.meta()));
            assert_ne!(kept, frame);
        }
    }

    #[test]
    fn damage_is_found_at_every_byte_and_cut() {
        let frame = Frame::assemble(&full(), FrameId::MAX, None, None).unwrap();
        let record = frame.record();
        for at in 0..record.len() {
            assert!(Frame::from_record(record.slice(..at), None).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bytes = record.to_vec();
                bytes[at] ^= 1 << bit;
                assert!(Frame::from_record(Bytes::from(bytes), None).is_err(), "{at}.{bit}");
            }
        }
    }
}
