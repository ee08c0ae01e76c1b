//! Reading the parts of a body. Each method takes the name of the part for its error; no length is
//! trusted before it is compared with what is left.

use bytes::{Buf, Bytes};
use xs_engine::{BlobHash, Bound, FrameId, TopicPattern, TopicPatterns};

use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::EXTENSIONS_MAX;

/// A receiver that does not know an extension with this tag or a higher one may ignore it.
pub(crate) const TAG_OPTIONAL: u16 = 0x8000;

/// Why a body could not be decoded: it is malformed, or it holds an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The structure is wrong: the connection closes.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// A value is wrong: this request is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<xs_engine::ValueError> for DecodeError {
    fn from(error: xs_engine::ValueError) -> Self {
        Self::Refused(error.into())
    }
}

/// A body being read.
#[derive(Debug)]
pub(crate) struct Body {
    op: &'static str,
    bytes: Bytes,
}

impl Body {
    pub(crate) const fn new(op: &'static str, bytes: Bytes) -> Self {
        Self { op, bytes }
    }

    /// The error for a wrong or missing part.
    pub(crate) const fn wrong(&self, what: &'static str) -> ProtocolError {
        ProtocolError::Malformed { op: self.op, what }
    }

    /// Bytes left.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len()
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ProtocolError> {
        let array = self.bytes.first_chunk::<N>().copied().ok_or_else(|| self.wrong(what))?;
        self.bytes.advance(N);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, ProtocolError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, ProtocolError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, ProtocolError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, ProtocolError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn id(&mut self, what: &'static str) -> Result<FrameId, ProtocolError> {
        self.array(what).map(FrameId::from_bytes)
    }

    pub(crate) fn uuid(&mut self, what: &'static str) -> Result<[u8; 16], ProtocolError> {
        self.array(what)
    }

    pub(crate) fn hash(&mut self, what: &'static str) -> Result<BlobHash, ProtocolError> {
        self.array(what).map(BlobHash::from_bytes)
    }

    /// Reserved bytes, which must be zero.
    pub(crate) fn zeros(&mut self, count: usize) -> Result<(), ProtocolError> {
        let zeros = self.take(count, "reserved bytes")?;
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(self.wrong("reserved bytes"));
        }
        Ok(())
    }

    /// The next `count` bytes, shared with the message.
    pub(crate) fn take(
        &mut self,
        count: usize,
        what: &'static str,
    ) -> Result<Bytes, ProtocolError> {
        if count > self.bytes.len() {
            return Err(self.wrong(what));
        }
        Ok(self.bytes.split_to(count))
    }

    /// All remaining bytes.
    pub(crate) fn rest(self) -> Bytes {
        self.bytes
    }

    /// Text after its 16-bit length.
    pub(crate) fn text(&mut self, what: &'static str) -> Result<Text, ProtocolError> {
        let len = self.u16(what)?;
        self.text_of(usize::from(len), what)
    }

    /// Text of a known length.
    pub(crate) fn text_of(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<Text, ProtocolError> {
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Text(bytes)),
            Err(_) => Err(self.wrong(what)),
        }
    }

    /// Requires that nothing is left.
    pub(crate) fn end(self) -> Result<(), ProtocolError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.wrong("bytes after the end")) }
    }

    /// The extensions at the end of a request that knows none. One that is not optional is refused.
    pub(crate) fn extensions(self) -> Result<(), DecodeError> {
        self.extensions_with(|_, _| Ok(false))
    }

    /// The extensions at the end of a request. `take` gets each and returns whether it knows it; an
    /// unknown one that is not optional is refused.
    pub(crate) fn extensions_with(
        mut self,
        mut take: impl FnMut(u16, Self) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut count = 0;
        while self.left() > 0 {
            count += 1;
            if count > EXTENSIONS_MAX {
                return Err(self.wrong("too many extensions").into());
            }
            let tag = self.u16("extension tag")?;
            self.zeros(2)?;
            let len = self.u32("extension length")?;
            let value = Self::new(self.op, self.take(len as usize, "extension")?);
            if !take(tag, value)? && tag < TAG_OPTIONAL {
                let text = format!("extension {tag} of {} is not known to this server", self.op);
                let refusal = Refusal::new(Code::UnknownExtension, text);
                return Err(refusal.with(Detail::Extension(tag)).into());
            }
        }
        Ok(())
    }

    /// An offset or an id.
    pub(crate) fn bound(&mut self) -> Result<Bound, ProtocolError> {
        match self.u8("kind of bound")? {
            0 => Ok(Bound::Offset(self.u64("offset")?)),
            1 => Ok(Bound::Id(self.id("id")?)),
            _ => Err(self.wrong("kind of bound")),
        }
    }

    /// A list of topic patterns.
    pub(crate) fn patterns(&mut self) -> Result<TopicPatterns, DecodeError> {
        let count = usize::from(self.u16("count of patterns")?);
        // Bounds the allocation; the constructor enforces the same limit at the end.
        let mut patterns = Vec::with_capacity(count.min(xs_engine::limits::PATTERNS_MAX));
        let mut bad = None;
        for _ in 0..count {
            let text = self.text("pattern")?;
            match TopicPattern::parse(text.as_str()) {
                Ok(pattern) if patterns.len() <= xs_engine::limits::PATTERNS_MAX => {
                    patterns.push(pattern);
                }
                Ok(_) => {}
                Err(error) => bad = Some(error),
            }
        }
        match bad {
            Some(error) => Err(error.into()),
            None => Ok(TopicPatterns::new(patterns)?),
        }
    }
}

/// Checked UTF-8 that still lives in the message's bytes.
#[derive(Debug)]
pub(crate) struct Text(Bytes);

impl Text {
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Writes an offset or an id.
pub(crate) fn put_bound(out: &mut Gather, bound: Bound) {
    match bound {
        Bound::Offset(offset) => {
            out.put_u8(0);
            out.put_u64(offset);
        }
        Bound::Id(id) => {
            out.put_u8(1);
            out.put_slice(id.as_bytes());
        }
    }
}

/// Writes a list of topic patterns.
pub(crate) fn put_patterns(out: &mut Gather, patterns: &TopicPatterns) {
    out.put_u16(patterns.as_slice().len() as u16);
    for pattern in patterns.as_slice() {
        out.put_str(&pattern.to_string());
    }
}

/// Writes an extension.
pub(crate) fn put_extension(out: &mut Gather, tag: u16, put: impl FnOnce(&mut Gather)) {
    out.put_u16(tag);
    out.put_u16(0);
    let mark = out.mark();
    out.put_u32(0);
    let before = out.message_len();
    put(out);
    out.patch_u32(mark, (out.message_len() - before) as u32);
}

/// The number that encodes an absent value.
pub(crate) const NONE: u64 = u64::MAX;
