//! The records that are not frames: TOMBSTONE, CURSOR, KEY, MARK, CHECKPOINT and FLOOR.

use super::record::{self, FLAG_RESTATED, PREFIX_LEN, RecordError, RecordKind, RecordPrefix};
use super::{align8, bytes_at, u32_at, u64_at};
use crate::limits::NAME_BYTES_MAX;
use crate::value::{BlobHash, FrameId};

const CURSOR_STATE_BLOB: u8 = 1;
const CURSOR_REMOVED: u8 = 1 << 1;
const CURSOR_FIXED_LEN: usize = 4 * 8;
const STATE_BLOB_LEN: usize = 8 + 32;
const KEY_FIXED_LEN: usize = 8 + 16 + 8 + 32;
const CHECKPOINT_OLD_IDS: u8 = 1;
const TOMBSTONE_FIXED_LEN: usize = 16 + 8 + 4 + 4;
const FLOOR_FIXED_LEN: usize = 8;
/// Bytes of a TOMBSTONE without the topic.
pub const TOMBSTONE_LEN: usize = PREFIX_LEN + TOMBSTONE_FIXED_LEN;
/// Bytes of a MARK.
pub const MARK_LEN: usize = PREFIX_LEN + 4 + 4 + 8;
/// Bytes of a CHECKPOINT.
pub const CHECKPOINT_LEN: usize = PREFIX_LEN + 8 + 8 + 8 + 16;
const _: () = assert!(TOMBSTONE_LEN == 48 && MARK_LEN == 32 && CHECKPOINT_LEN == 56);

/// The blob that a record names, given that its CRC was checked: the body of a FRAME or the state
/// of a CURSOR. A blob named here is kept, any other may be swept.
pub(crate) fn named_blob(record: &[u8], prefix: &RecordPrefix) -> Option<BlobHash> {
    match prefix.kind {
        RecordKind::Frame => record::body_hash(record, prefix),
        RecordKind::Cursor => match decode(record, prefix) {
            Ok(Control::Cursor(CursorRecord { state: StateRecord::Blob(_, hash), .. })) => {
                Some(hash)
            }
            _ => None,
        },
        _ => None,
    }
}

/// A record that is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control<'a> {
    /// A frame is removed.
    Tombstone(Tombstone<'a>),
    /// A cursor's value.
    Cursor(CursorRecord<'a>),
    /// An idempotency key was used.
    Key {
        /// When it expires, in ms since 1970.
        expires_ms: u64,
        /// The first frame of the batch that used it.
        id: FrameId,
        /// Offset of the first frame of that batch that was stored.
        offset: u64,
        /// Hash of that batch's content.
        content: BlobHash,
        /// The key.
        key: &'a str,
    },
    /// Everything before it is durable.
    Mark {
        /// Why it was written.
        what: Mark,
        /// When, in ms since 1970.
        time_ms: u64,
    },
    /// The tables are restated from here on.
    Checkpoint(Checkpoint),
    /// A floor set by `last:n`, recorded once the frames that set it may be removed.
    Floor {
        /// Frames of the topic with a lower offset are removed.
        offset: u64,
        /// The topic.
        topic: &'a str,
    },
}

/// The content of a TOMBSTONE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone<'a> {
    /// Id of the frame that is removed.
    pub id: FrameId,
    /// Its offset.
    pub offset: u64,
    /// Bytes of its record without padding.
    pub len: u32,
    /// Its topic.
    pub topic: &'a str,
}

impl Tombstone<'_> {
    /// Returns the length of the removed frame's record, with padding.
    #[must_use]
    pub const fn target_len(&self) -> u64 {
        align8(self.len as usize) as u64
    }

    /// Returns the length of this record, with padding.
    #[must_use]
    pub const fn record_len(&self) -> u64 {
        align8(TOMBSTONE_LEN + self.topic.len()) as u64
    }
}

/// Why a MARK was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The log was synced.
    Sync,
    /// The store was closed cleanly.
    CleanClose,
}

/// The content of a CHECKPOINT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Records that restate the tables.
    pub count: u64,
    /// Offset of the next frame.
    pub next_offset: u64,
    /// Seq of the batch that holds the record.
    pub next_seq: u64,
    /// The newest id given.
    pub last_id: FrameId,
    /// Whether frames before it have old ids.
    pub has_old_ids: bool,
}

/// The content of a CURSOR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CursorRecord<'a> {
    /// Its name, UTF-8 of 1 to 255 bytes.
    pub name: &'a str,
    /// 1 for the first value, one more for each change.
    pub revision: u64,
    /// Epoch of the change.
    pub epoch: u64,
    /// First frame not yet handled.
    pub offset: u64,
    /// Time of the change, in ms since 1970.
    pub time_ms: u64,
    /// The state stored with it.
    pub state: StateRecord<'a>,
}

/// The state in a CURSOR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateRecord<'a> {
    /// In the record.
    Inline(&'a [u8]),
    /// In the pack: length and hash.
    Blob(u64, BlobHash),
    /// The cursor is removed.
    Removed,
}

/// Appends a record with its padding to `out` and returns its CRC. `restated` marks it as part of a
/// checkpoint.
///
/// # Errors
/// [`RecordError::TooLarge`] when the parts do not fit; `out` is then unchanged.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    control: &Control<'_>,
    restated: bool,
) -> Result<u32, RecordError> {
    let restated = if restated { FLAG_RESTATED } else { 0 };
    match *control {
        Control::Tombstone(Tombstone { id, offset, len, topic }) => {
            let at = record::begin(out, RecordKind::Tombstone, restated, name_len(topic)?);
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(topic.as_bytes());
            record::finish(out, at)
        }
        Control::Floor { offset, topic } => {
            let at = record::begin(out, RecordKind::Floor, restated, name_len(topic)?);
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(topic.as_bytes());
            record::finish(out, at)
        }
        Control::Cursor(ref cursor) => encode_cursor(out, cursor, restated),
        Control::Key { expires_ms, id, offset, content, key } => {
            let at = record::begin(out, RecordKind::Key, restated, name_len(key)?);
            out.extend_from_slice(&expires_ms.to_le_bytes());
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(content.as_bytes());
            out.extend_from_slice(key.as_bytes());
            record::finish(out, at)
        }
        Control::Mark { what, time_ms } => {
            let at = record::begin(out, RecordKind::Mark, restated, 0);
            let what: u32 = match what {
                Mark::Sync => 1,
                Mark::CleanClose => 2,
            };
            out.extend_from_slice(&what.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&time_ms.to_le_bytes());
            record::finish(out, at)
        }
        Control::Checkpoint(Checkpoint { count, next_offset, next_seq, last_id, has_old_ids }) => {
            let flags = if has_old_ids { CHECKPOINT_OLD_IDS } else { 0 };
            let at = record::begin(out, RecordKind::Checkpoint, flags | restated, 0);
            for number in [count, next_offset, next_seq] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(last_id.as_bytes());
            record::finish(out, at)
        }
    }
}

/// Bytes of a KEY, including padding.
pub(crate) const fn key_len(key: &str) -> usize {
    super::align8(PREFIX_LEN + KEY_FIXED_LEN + key.len())
}

fn name_len(name: &str) -> Result<u8, RecordError> {
    u8::try_from(name.len()).map_err(|_| RecordError::TooLarge(name.len()))
}

fn encode_cursor(
    out: &mut Vec<u8>,
    cursor: &CursorRecord<'_>,
    restated: u8,
) -> Result<u32, RecordError> {
    let flags = match cursor.state {
        StateRecord::Inline(_) => 0,
        StateRecord::Blob(..) => CURSOR_STATE_BLOB,
        StateRecord::Removed => CURSOR_REMOVED,
    };
    let at = record::begin(out, RecordKind::Cursor, flags | restated, name_len(cursor.name)?);
    for number in [cursor.revision, cursor.epoch, cursor.offset, cursor.time_ms] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    if let StateRecord::Blob(len, hash) = cursor.state {
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(hash.as_bytes());
    }
    out.extend_from_slice(cursor.name.as_bytes());
    if let StateRecord::Inline(state) = cursor.state {
        out.extend_from_slice(state);
    }
    record::finish(out, at)
}

/// Reads a record whose CRC was checked. `record` is the whole record without padding.
///
/// # Errors
/// [`RecordError`] when it is a frame or its structure is wrong.
pub fn decode<'a>(record: &'a [u8], prefix: &RecordPrefix) -> Result<Control<'a>, RecordError> {
    let name_len = usize::from(prefix.name_len);
    let (fixed, flags) = match prefix.kind {
        RecordKind::Frame => return Err(RecordError::Field("kind")),
        RecordKind::Tombstone => (Some(TOMBSTONE_LEN + name_len), 0),
        RecordKind::Cursor => (None, CURSOR_STATE_BLOB | CURSOR_REMOVED),
        RecordKind::Key => (Some(PREFIX_LEN + KEY_FIXED_LEN + name_len), 0),
        RecordKind::Mark => (Some(MARK_LEN), 0),
        RecordKind::Checkpoint => (Some(CHECKPOINT_LEN), CHECKPOINT_OLD_IDS),
        RecordKind::Floor => (Some(PREFIX_LEN + FLOOR_FIXED_LEN + name_len), 0),
    };
    if prefix.flags & !(flags | FLAG_RESTATED) != 0 {
        return Err(RecordError::Field("flag"));
    }
    if fixed.is_some_and(|len| len != record.len()) || prefix.len as usize != record.len() {
        return Err(RecordError::Field("length"));
    }
    let named = !matches!(prefix.kind, RecordKind::Mark | RecordKind::Checkpoint);
    if prefix.ttl != 0 || prefix.offset_delta != 0 || named != (name_len != 0) {
        return Err(RecordError::Field("reserved field"));
    }
    let long = |at| u64_at(record, at).ok_or(RecordError::Short);
    let id = |at| bytes_at(record, at).map(FrameId::from_bytes).ok_or(RecordError::Short);
    const AT: usize = PREFIX_LEN;
    Ok(match prefix.kind {
        RecordKind::Frame => return Err(RecordError::Field("kind")),
        RecordKind::Tombstone => Control::Tombstone(Tombstone {
            id: id(AT)?,
            offset: long(AT + 16)?,
            len: match (u32_at(record, AT + 24), u32_at(record, AT + 28)) {
                (Some(len), Some(0)) => len,
                _ => return Err(RecordError::Field("reserved field")),
            },
            topic: text_at(record, TOMBSTONE_LEN, name_len)?,
        }),
        RecordKind::Cursor => Control::Cursor(decode_cursor(record, prefix)?),
        RecordKind::Key => Control::Key {
            expires_ms: long(AT)?,
            id: id(AT + 8)?,
            offset: long(AT + 24)?,
            content: bytes_at(record, AT + 32)
                .map(BlobHash::from_bytes)
                .ok_or(RecordError::Short)?,
            key: text_at(record, AT + KEY_FIXED_LEN, name_len)?,
        },
        RecordKind::Mark => Control::Mark {
            what: match (u32_at(record, AT), u32_at(record, AT + 4)) {
                (Some(1), Some(0)) => Mark::Sync,
                (Some(2), Some(0)) => Mark::CleanClose,
                _ => return Err(RecordError::Field("mark")),
            },
            time_ms: long(AT + 8)?,
        },
        RecordKind::Checkpoint => Control::Checkpoint(Checkpoint {
            count: long(AT)?,
            next_offset: long(AT + 8)?,
            next_seq: long(AT + 16)?,
            last_id: id(AT + 24)?,
            has_old_ids: prefix.flags & CHECKPOINT_OLD_IDS != 0,
        }),
        RecordKind::Floor => Control::Floor {
            offset: long(AT)?,
            topic: text_at(record, AT + FLOOR_FIXED_LEN, name_len)?,
        },
    })
}

fn decode_cursor<'a>(
    record: &'a [u8],
    prefix: &RecordPrefix,
) -> Result<CursorRecord<'a>, RecordError> {
    let long = |at| u64_at(record, at).ok_or(RecordError::Short);
    let blob_at = PREFIX_LEN + CURSOR_FIXED_LEN;
    let has_blob = prefix.flags & CURSOR_STATE_BLOB != 0;
    let removed = prefix.flags & CURSOR_REMOVED != 0;
    let name_at = blob_at + if has_blob { STATE_BLOB_LEN } else { 0 };
    let name_len = usize::from(prefix.name_len);
    let name = text_at(record, name_at, name_len)?;
    let rest = record.get(name_at + name_len..).ok_or(RecordError::Short)?;
    if (has_blob || removed) && !rest.is_empty() || has_blob && removed {
        return Err(RecordError::Field("state"));
    }
    let state = if removed {
        StateRecord::Removed
    } else if has_blob {
        let hash = bytes_at(record, blob_at + 8).ok_or(RecordError::Short)?;
        StateRecord::Blob(long(blob_at)?, BlobHash::from_bytes(hash))
    } else {
        StateRecord::Inline(rest)
    };
    Ok(CursorRecord {
        name,
        revision: long(PREFIX_LEN)?,
        epoch: long(PREFIX_LEN + 8)?,
        offset: long(PREFIX_LEN + 16)?,
        time_ms: long(PREFIX_LEN + 24)?,
        state,
    })
}

fn text_at(record: &[u8], at: usize, len: usize) -> Result<&str, RecordError> {
    let bytes = record.get(at..at + len).ok_or(RecordError::Short)?;
    match std::str::from_utf8(bytes) {
        Ok(text) if (1..=NAME_BYTES_MAX).contains(&len) => Ok(text),
        _ => Err(RecordError::Field("name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Control<'static>> {
        let id = FrameId::first_of_ms(77);
        let checkpoint = |has_old_ids| {
            let (count, next_offset, next_seq, last_id) = (1, 2, 3, id);
            Control::Checkpoint(Checkpoint { count, next_offset, next_seq, last_id, has_old_ids })
        };
        let cursor = |state| {
            Control::Cursor(CursorRecord {
                name: "a",
                revision: 1,
                epoch: 2,
                offset: 3,
                time_ms: 4,
                state,
            })
        };
        vec![
            Control::Tombstone(Tombstone { id, offset: 9, len: 100, topic: "a.b" }),
            cursor(StateRecord::Inline(b"{}")),
            cursor(StateRecord::Inline(b"")),
            cursor(StateRecord::Blob(7, BlobHash::of(b"state"))),
            cursor(StateRecord::Removed),
            Control::Key { expires_ms: 1, id, offset: 2, content: BlobHash::of(b""), key: "k" },
            Control::Mark { what: Mark::Sync, time_ms: 5 },
            Control::Mark { what: Mark::CleanClose, time_ms: 6 },
            checkpoint(false),
            checkpoint(true),
            Control::Floor { offset: 7, topic: "a.b" },
        ]
    }

    #[test]
    fn records_round_trip_and_their_lengths_are_those_of_the_page() {
        let lengths = [51, 51, 49, 89, 49, 81, 32, 32, 56, 56, 27];
        for (control, len) in samples().iter().zip(lengths) {
            for restated in [false, true] {
                let mut out = Vec::new();
                let crc = encode(&mut out, control, restated).unwrap();
                assert!(out.len().is_multiple_of(8));
                let prefix = RecordPrefix::check(&out[..len]).unwrap();
                assert_eq!((prefix.crc, prefix.flags & FLAG_RESTATED != 0), (crc, restated));
                assert_eq!(decode(&out[..len], &prefix).unwrap(), *control);
            }
        }
    }

    #[test]
    fn a_key_is_pinned() {
        let (id, content) = (FrameId::first_of_ms(7), BlobHash::of(b"content"));
        let key = Control::Key { expires_ms: 1, id, offset: 2, content, key: "one" };
        let mut out = Vec::new();
        let crc = encode(&mut out, &key, false).unwrap();
        let mut golden = crc.to_le_bytes().to_vec();
        golden.extend(b"\x53\0\0\0\x04\0\x03\0\0\0\0\0\x01\0\0\0\0\0\0\0");
        golden.extend(b"\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        golden.extend(content.as_bytes().iter().chain(b"one\0\0\0\0\0"));
        assert_eq!((out.len(), out), (key_len("one"), golden));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        for control in samples() {
            let mut out = Vec::new();
            encode(&mut out, &control, false).unwrap();
            let prefix = RecordPrefix::read(&out).unwrap();
            for at in PREFIX_LEN..prefix.len as usize {
                let cut = RecordPrefix { len: at as u32, ..prefix };
                let _ = decode(&out[..at], &cut);
            }
            for flags in 0..=255 {
                for name_len in [0, 1, 2, 255] {
                    let changed = RecordPrefix { flags, name_len, ..prefix };
                    let _ = decode(&out[..prefix.len as usize], &changed);
                }
            }
        }
    }
}
