//! Frames: stored events, and events about to be stored.

use std::fmt;

use bytes::Bytes;

use super::{BlobHash, FrameId, Meta, Topic, Ttl};
use crate::format::record::{FrameFields, FrameLayout, RecordError, RecordPrefix, encode_frame};

/// Where a frame derived by a processor comes from. Only a Host may set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Id of the `xs.<kind>.<name>.create` frame of the processor that made the frame.
    pub processor: FrameId,
    /// Id of the frame it responds to.
    pub input: Option<FrameId>,
    /// Offset of that frame, if it was a stored one.
    pub input_offset: Option<u64>,
    /// Frames in the chain of causes before this one.
    pub hops: u32,
}

/// The body of a frame about to be appended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Body {
    /// No body and no hash. Zero bytes count as no body.
    #[default]
    None,
    /// Bytes that are stored as a blob in the same group as the frame.
    Inline(Bytes),
    /// A blob that the store already has.
    Stored(BlobHash),
}

/// A frame about to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFrame {
    /// Its topic.
    pub topic: Topic,
    /// Its meta.
    pub meta: Meta,
    /// Its body.
    pub body: Body,
    /// How long it is kept.
    pub ttl: Ttl,
    /// Where it comes from, when a processor made it.
    pub origin: Option<Origin>,
}

impl NewFrame {
    /// Creates a frame with only a topic.
    #[must_use]
    pub fn new(topic: Topic) -> Self {
        Self { topic, meta: Meta::none(), body: Body::None, ttl: Ttl::Forever, origin: None }
    }
}

/// One stored event: its FRAME record as it is in the log, verified, and its offset. Clones are
/// cheap and share the bytes, which may be part of a mapped segment.
#[derive(Clone)]
pub struct Frame {
    record: Bytes,
    layout: FrameLayout,
    offset: Option<u64>,
}

impl Frame {
    /// Checks the CRC and the structure of a FRAME record and keeps it. `record` holds exactly the
    /// record, without padding; `base_offset` is that of the batch it is from, `None` for an
    /// ephemeral frame.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong with the record.
    pub fn from_record(record: Bytes, base_offset: Option<u64>) -> Result<Self, RecordError> {
        let prefix = RecordPrefix::read(&record)?;
        Self::of_prefix(record, &prefix, base_offset)
    }

    /// Checks a FRAME record whose prefix was read already, and keeps it.
    #[inline]
    pub(crate) fn of_prefix(
        record: Bytes,
        prefix: &RecordPrefix,
        base_offset: Option<u64>,
    ) -> Result<Self, RecordError> {
        prefix.verify(&record)?;
        let layout = FrameLayout::of_checked(&record, prefix)?;
        let offset = match base_offset {
            Some(base) => Some(
                base.checked_add(u64::from(layout.offset_delta()))
                    .ok_or(RecordError::Field("offset"))?,
            ),
            None => None,
        };
        Ok(Self { record, layout, offset })
    }

    /// Builds the frame that `new` becomes with this id and offset. Its record has an offset delta
    /// of 0. `body` is the length and hash of its body.
    ///
    /// # Errors
    /// [`RecordError`] when the parts do not fit into one record.
    pub fn assemble(
        new: &NewFrame,
        id: FrameId,
        offset: Option<u64>,
        body: Option<(u64, BlobHash)>,
    ) -> Result<Self, RecordError> {
        let mut record = Vec::new();
        encode_frame(&mut record, &FrameFields::of(new, id, 0, body))?;
        record.truncate(FrameLayout::unpadded_len(&record)?);
        Self::from_record(Bytes::from(record), offset)
    }

    /// Returns the frame's id.
    #[must_use]
    #[inline]
    pub fn id(&self) -> FrameId {
        self.layout.id(&self.record)
    }

    /// Returns the frame's offset; an ephemeral frame has none.
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Returns the frame's topic.
    #[must_use]
    #[inline]
    pub fn topic(&self) -> &str {
        self.layout.topic(&self.record)
    }

    /// Returns the JSON text of the meta; empty when the frame has none.
    #[must_use]
    pub fn meta(&self) -> &[u8] {
        self.layout.meta(&self.record)
    }

    /// Returns the hash of the body.
    #[must_use]
    pub fn hash(&self) -> Option<BlobHash> {
        self.layout.body(&self.record).map(|(_, hash)| hash)
    }

    /// Returns the length of the body in bytes.
    #[must_use]
    pub fn body_len(&self) -> u64 {
        self.layout.body(&self.record).map_or(0, |(len, _)| len)
    }

    /// Returns how long the frame is kept.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.layout.ttl(&self.record)
    }

    /// Milliseconds since 1970 when it expires, if it does.
    #[inline]
    pub(crate) fn expires_ms(&self) -> Option<u64> {
        self.borrow().expires_ms()
    }

    /// Returns where the frame comes from.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.layout.origin(&self.record)
    }

    /// Returns the id that the frame had before it was imported under a new one.
    #[must_use]
    pub fn old_id(&self) -> Option<FrameId> {
        self.layout.old_id(&self.record)
    }

    /// Returns the FRAME record, without padding.
    #[must_use]
    pub const fn record(&self) -> &Bytes {
        &self.record
    }

    /// Returns the difference between the frame's offset and the batch's base.
    #[must_use]
    pub const fn offset_delta(&self) -> u32 {
        self.layout.offset_delta()
    }
}

impl Frame {
    /// Borrows the frame.
    pub(crate) fn borrow(&self) -> FrameRef<'_> {
        FrameRef { record: &self.record, layout: self.layout, offset: self.offset }
    }
}

/// A borrowed frame: its FRAME record, verified, and its offset.
#[derive(Debug, Clone, Copy)]
pub struct FrameRef<'a> {
    record: &'a [u8],
    layout: FrameLayout,
    offset: Option<u64>,
}

impl<'a> FrameRef<'a> {
    /// The frame of a record whose CRC was checked.
    #[inline]
    pub(crate) fn of_checked(
        record: &'a [u8],
        prefix: &RecordPrefix,
        offset: u64,
    ) -> Result<Self, RecordError> {
        let layout = FrameLayout::of_checked(record, prefix)?;
        Ok(Self { record, layout, offset: Some(offset) })
    }

    /// Returns the frame's id.
    #[must_use]
    pub fn id(&self) -> FrameId {
        self.layout.id(self.record)
    }

    /// Returns the frame's offset; an ephemeral frame has none.
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Returns the frame's topic.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        self.layout.topic(self.record)
    }

    /// Returns the JSON text of the meta; empty when the frame has none.
    #[must_use]
    pub fn meta(&self) -> &'a [u8] {
        self.layout.meta(self.record)
    }

    /// Returns the length and hash of the body.
    #[must_use]
    pub fn body(&self) -> Option<(u64, BlobHash)> {
        self.layout.body(self.record)
    }

    /// Returns how long the frame is kept.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.layout.ttl(self.record)
    }

    /// Returns the FRAME record, without padding.
    #[must_use]
    pub const fn record(&self) -> &'a [u8] {
        self.record
    }

    /// Milliseconds since 1970 when it expires, if it does.
    #[inline]
    pub(crate) fn expires_ms(&self) -> Option<u64> {
        let after = self.layout.expires_after_ms(self.record)?;
        Some(self.id().time_ms().saturating_add(after))
    }
}

impl PartialEq for Frame {
    /// Two frames are equal when everything a reader can see of them is; their place in a batch
    /// does not count.
    fn eq(&self, other: &Self) -> bool {
        let key = |frame: &Self| {
            (frame.id(), frame.offset, frame.ttl(), frame.hash(), frame.body_len(), frame.origin())
        };
        key(self) == key(other)
            && self.old_id() == other.old_id()
            && self.topic() == other.topic()
            && self.meta() == other.meta()
    }
}

impl Eq for Frame {}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("id", &self.id())
            .field("offset", &self.offset)
            .field("topic", &self.topic())
            .field("meta", &String::from_utf8_lossy(self.meta()))
            .field("hash", &self.hash())
            .field("ttl", &self.ttl())
            .field("origin", &self.origin())
            .field("old_id", &self.old_id())
            .finish()
    }
}
