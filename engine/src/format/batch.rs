//! Batches: the records of one append under one header. A batch is whole or absent.

use super::record::{PREFIX_LEN, RecordError, RecordPrefix};
use super::{u32_at, u64_at};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::planted::{Bug, is_planted};

/// Bytes of the header.
pub const BATCH_HEADER_LEN: usize = 64;
/// The first bytes of a batch.
pub const BATCH_MAGIC: [u8; 4] = *b"XSB1";

const HEADER_CRC_AT: usize = 4;
const LENGTH_AT: usize = HEADER_CRC_AT + size_of::<u32>();
const COUNT_AT: usize = LENGTH_AT + size_of::<u32>();
const BASE_AT: usize = COUNT_AT + size_of::<u32>();
const EPOCH_AT: usize = BASE_AT + size_of::<u64>();
const DURABLE_AT: usize = EPOCH_AT + size_of::<u64>();
const SALT_AT: usize = DURABLE_AT + size_of::<u64>();
const RECORDS_CRC_AT: usize = SALT_AT + size_of::<u32>();
const SEQ_AT: usize = RECORDS_CRC_AT + size_of::<u32>();
const PREV_CRC_AT: usize = SEQ_AT + size_of::<u64>();
const RESERVED_AT: usize = PREV_CRC_AT + size_of::<u32>();
const _: () = assert!(RESERVED_AT + size_of::<u32>() == BATCH_HEADER_LEN);

/// What is wrong with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// No batch begins here: the bytes are zero or the file ends.
    #[error("no batch is here")]
    Absent,
    /// The file ends within the batch.
    #[error("batch is cut short")]
    Short,
    /// The bytes do not begin with the magic.
    #[error("batch has a wrong magic")]
    Magic,
    /// The header's CRC does not match.
    #[error("batch header fails its CRC")]
    HeaderCrc,
    /// A field has an invalid value.
    #[error("batch header holds a wrong {0}")]
    Field(&'static str),
    /// The header is sound but does not follow the one before it: it belongs elsewhere or is older.
    #[error("batch is out of place: wrong {0}")]
    Chain(&'static str),
    /// A record in it is invalid.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The records are sound, but not those the header was written for.
    #[error("batch does not hold the records its header names")]
    RecordsCrc,
}

/// The header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// CRC of the header; computed by [`encode`](Self::encode).
    pub header_crc: u32,
    /// Bytes of the records.
    pub length: u32,
    /// Number of records.
    pub count: u32,
    /// Offset of the next FRAME when it was written.
    pub base_offset: u64,
    /// Epoch of the opening that wrote it.
    pub epoch: u64,
    /// Every batch with a lower seq was durable when it was written.
    pub durable_upto: u64,
    /// The segment's salt.
    pub salt: u32,
    /// CRC of the records' CRCs.
    pub records_crc: u32,
    /// Sequence number of the batch.
    pub seq: u64,
    /// CRC of the previous header in the segment.
    pub prev_crc: u32,
}

/// The expected place of a batch in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// The segment's salt.
    pub salt: u32,
    /// The seq of the batch; `None` for the first of a segment whose seq is not known.
    pub seq: Option<u64>,
    /// CRC of the previous header, 0 for the first.
    pub prev_crc: u32,
}

impl BatchHeader {
    /// Encodes the header; the CRC of the rest is set in the bytes and in `self`.
    pub fn encode(&mut self) -> [u8; BATCH_HEADER_LEN] {
        let mut out = [0; BATCH_HEADER_LEN];
        out[..HEADER_CRC_AT].copy_from_slice(&BATCH_MAGIC);
        out[LENGTH_AT..COUNT_AT].copy_from_slice(&self.length.to_le_bytes());
        out[COUNT_AT..BASE_AT].copy_from_slice(&self.count.to_le_bytes());
        out[BASE_AT..EPOCH_AT].copy_from_slice(&self.base_offset.to_le_bytes());
        out[EPOCH_AT..DURABLE_AT].copy_from_slice(&self.epoch.to_le_bytes());
        out[DURABLE_AT..SALT_AT].copy_from_slice(&self.durable_upto.to_le_bytes());
        out[SALT_AT..RECORDS_CRC_AT].copy_from_slice(&self.salt.to_le_bytes());
        out[RECORDS_CRC_AT..SEQ_AT].copy_from_slice(&self.records_crc.to_le_bytes());
        out[SEQ_AT..PREV_CRC_AT].copy_from_slice(&self.seq.to_le_bytes());
        out[PREV_CRC_AT..RESERVED_AT].copy_from_slice(&self.prev_crc.to_le_bytes());
        self.header_crc = crc32fast::hash(&out[LENGTH_AT..]);
        out[HEADER_CRC_AT..LENGTH_AT].copy_from_slice(&self.header_crc.to_le_bytes());
        out
    }

    /// Reads the header that `bytes` begin with and checks it by itself: magic, CRC, limits.
    ///
    /// # Errors
    /// [`BatchError`] says what is wrong; [`BatchError::Absent`] when nothing was written here.
    pub fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        match bytes.first_chunk() {
            None | Some([0, 0, 0, 0]) => return Err(BatchError::Absent),
            Some(magic) if *magic != BATCH_MAGIC => return Err(BatchError::Magic),
            Some(_) => {}
        }
        let header = bytes.get(..BATCH_HEADER_LEN).ok_or(BatchError::Short)?;
        let word = |at| u32_at(header, at).ok_or(BatchError::Short);
        let long = |at| u64_at(header, at).ok_or(BatchError::Short);
        let header_crc = word(HEADER_CRC_AT)?;
        let covered = header.get(LENGTH_AT..).ok_or(BatchError::Short)?;
        if crc32fast::hash(covered) != header_crc && !is_planted(Bug::IgnoreHeaderCrc) {
            return Err(BatchError::HeaderCrc);
        }
        let (length, count) = (word(LENGTH_AT)?, word(COUNT_AT)?);
        if length as usize > BATCH_BYTES_MAX || !length.is_multiple_of(8) {
            return Err(BatchError::Field("length"));
        }
        let fits = count as usize <= length as usize / PREFIX_LEN;
        if count as usize > BATCH_RECORDS_MAX || count == 0 || !fits {
            return Err(BatchError::Field("count"));
        }
        if word(RESERVED_AT)? != 0 {
            return Err(BatchError::Field("reserved field"));
        }
        Ok(Self {
            header_crc,
            length,
            count,
            base_offset: long(BASE_AT)?,
            epoch: long(EPOCH_AT)?,
            durable_upto: long(DURABLE_AT)?,
            salt: word(SALT_AT)?,
            records_crc: word(RECORDS_CRC_AT)?,
            seq: long(SEQ_AT)?,
            prev_crc: word(PREV_CRC_AT)?,
        })
    }

    /// Returns the length of the whole batch in bytes.
    #[must_use]
    pub const fn batch_len(&self) -> u64 {
        BATCH_HEADER_LEN as u64 + self.length as u64
    }

    /// Whether the header follows the previous one in its segment.
    ///
    /// # Errors
    /// [`BatchError::Chain`] names what differs.
    pub fn check_place(&self, expect: &Expect) -> Result<(), BatchError> {
        if self.salt != expect.salt {
            return Err(BatchError::Chain("salt"));
        }
        if expect.seq.is_some_and(|seq| seq != self.seq) {
            return Err(BatchError::Chain("sequence"));
        }
        if self.prev_crc != expect.prev_crc {
            return Err(BatchError::Chain("predecessor"));
        }
        Ok(())
    }

    /// Checks the records of the batch: every CRC, their number, length and `records_crc`.
    ///
    /// # Errors
    /// [`BatchError`] says what is wrong.
    pub fn check_records(&self, records: &[u8]) -> Result<(), BatchError> {
        self.check_each(records, |_, _| {})
    }

    /// Checks the records of the batch: every CRC, their number, length and `records_crc`. `visit`
    /// gets the position and the prefix of each sound record, even if a later one is not.
    pub(crate) fn check_each(
        &self,
        records: &[u8],
        mut visit: impl FnMut(usize, &RecordPrefix),
    ) -> Result<(), BatchError> {
        if records.len() != self.length as usize {
            return Err(BatchError::Short);
        }
        let (mut crcs, mut count) = (RecordsCrc::default(), 0);
        for record in Records::new(records) {
            let (at, prefix) = record?;
            let record = records.get(at..at + prefix.len as usize).ok_or(BatchError::Short)?;
            prefix.verify(record)?;
            let padding = records.get(at + prefix.len as usize..at + prefix.stride());
            if padding.is_none_or(|bytes| bytes.iter().any(|&byte| byte != 0)) {
                return Err(RecordError::Field("padding").into());
            }
            crcs.add(prefix.crc);
            count += 1;
            visit(at, &prefix);
        }
        if count != self.count || crcs.value() != self.records_crc {
            return Err(BatchError::RecordsCrc);
        }
        Ok(())
    }
}

/// The CRC over the CRCs of a batch's records.
#[derive(Debug, Clone, Default)]
pub struct RecordsCrc(crc32fast::Hasher);

impl RecordsCrc {
    /// Adds the next record's CRC.
    pub fn add(&mut self, crc: u32) {
        self.0.update(&crc.to_le_bytes());
    }

    /// Returns the CRC so far.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.0.clone().finalize()
    }
}

/// Walks the records of a batch without checking their CRCs: positions and prefixes.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// Walks the bytes that follow a batch header.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<(usize, RecordPrefix), RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let at = self.at;
        match RecordPrefix::read(rest) {
            Ok(prefix) if prefix.stride() <= rest.len() => {
                self.at += prefix.stride();
                Some(Ok((at, prefix)))
            }
            other => {
                // The rest cannot be walked; the walk ends with one error.
                self.at = self.bytes.len();
                Some(Err(other.err().unwrap_or(RecordError::Short)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::{FrameFields, encode_frame};
    use crate::value::{FrameId, NewFrame, Topic};

    fn batch() -> (BatchHeader, Vec<u8>) {
        let (mut records, mut crcs) = (Vec::new(), RecordsCrc::default());
        for delta in 0..2 {
            let new = NewFrame::new(Topic::parse("a.b").unwrap());
            let id = FrameId::first_of_ms(9);
            let fields = FrameFields::of(&new, id, delta, None);
            crcs.add(encode_frame(&mut records, &fields).unwrap());
        }
        let mut header = BatchHeader {
            header_crc: 0,
            length: records.len() as u32,
            count: 2,
            base_offset: 1,
            epoch: 2,
            durable_upto: 3,
            salt: 4,
            records_crc: crcs.value(),
            seq: 5,
            prev_crc: 6,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(records);
        (header, bytes)
    }

    fn check(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = BatchHeader::read(bytes)?;
        header.check_place(&Expect { salt: 4, seq: Some(5), prev_crc: 6 })?;
        let end = header.batch_len() as usize;
        header.check_records(bytes.get(BATCH_HEADER_LEN..end).ok_or(BatchError::Short)?)?;
        Ok(header)
    }

    #[test]
    fn the_header_is_pinned() {
        let (header, bytes) = batch();
        let mut golden = b"XSB1".to_vec();
        golden.extend(header.header_crc.to_le_bytes());
        golden
            .extend(b"\x50\0\0\0\x02\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        golden.extend(b"\x04\0\0\0".iter().chain(&header.records_crc.to_le_bytes()));
        golden.extend(b"\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0");
        assert_eq!(bytes[..BATCH_HEADER_LEN], golden[..]);
        assert_eq!(check(&bytes), Ok(header));
    }

    #[test]
    fn damage_is_found_at_every_bit_and_cut() {
        let (_, bytes) = batch();
        for at in 0..bytes.len() {
            assert!(check(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                assert!(check(&bytes).is_err(), "{at}.{bit}");
            }
        }
    }

    #[test]
    fn a_batch_from_elsewhere_is_out_of_place() {
        let (header, _) = batch();
        for (salt, seq, prev_crc) in [(0, 5, 6), (4, 6, 6), (4, 5, 0)] {
            let place = header.check_place(&Expect { salt, seq: Some(seq), prev_crc });
            assert!(matches!(place, Err(BatchError::Chain(_))));
        }
        assert_eq!(BatchHeader::read(&[0; 64]), Err(BatchError::Absent));
        assert_eq!(BatchHeader::read(&[]), Err(BatchError::Absent));
    }
}
