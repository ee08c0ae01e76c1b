//! The file of dead frames of a sealed segment (`.dead`): the tombstones in it, and how many of its
//! bytes stay live, now and later. Derived: one that does not verify is rebuilt from the segment.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::control::{self, Control, Tombstone};
use super::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic, check_end, push_end};
use super::record::RecordPrefix;
use super::{align8, u32_at, u64_at};

/// Maximum number of expiry times per segment.
pub(crate) const STEPS_MAX: usize = 64;

const KEPT_AT: usize = FILE_HEADER_LEN;
const STEPS_AT: usize = KEPT_AT + 8;
const COUNT_AT: usize = STEPS_AT + 4;
const BODY_AT: usize = COUNT_AT + 4;
const STEP_LEN: usize = 8 + 8;
const _: () = assert!(BODY_AT == 80);

/// How many bytes of a segment expire when, with a granularity that doubles when there are too many
/// times. Bytes are never counted as expired too early.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expiring {
    steps: BTreeMap<u64, u64>,
    shift: u32,
}

impl Expiring {
    /// Adds a frame.
    pub(crate) fn add(&mut self, expires_ms: u64, bytes: u64) {
        *self.steps.entry(round_up(expires_ms, self.shift)).or_default() += bytes;
        while self.steps.len() > STEPS_MAX {
            self.shift += 1;
            let fine = std::mem::take(&mut self.steps);
            for (at, bytes) in fine {
                *self.steps.entry(round_up(at, self.shift)).or_default() += bytes;
            }
        }
    }

    /// Bytes that have expired.
    pub(crate) fn expired(&self, now_ms: u64) -> u64 {
        self.steps.range(..=now_ms).map(|(_, bytes)| bytes).sum()
    }

    /// The next expiry time after `now_ms`.
    pub(crate) fn after(&self, now_ms: u64) -> Option<u64> {
        self.steps.range(now_ms.checked_add(1)?..).next().map(|(&at, _)| at)
    }

    /// Whether nothing ever expires.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

const fn round_up(ms: u64, shift: u32) -> u64 {
    match ms.checked_add((1 << shift) - 1) {
        Some(sum) => sum >> shift << shift,
        None => u64::MAX,
    }
}

/// Builds a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeadBuilder {
    /// Bytes of the segment that stay if no frame dies.
    pub(crate) kept: u64,
    /// When they expire.
    pub(crate) expiring: Expiring,
    tombstones: Vec<u8>,
    count: u32,
}

impl DeadBuilder {
    /// A builder for a segment of which `kept` bytes stay.
    pub(crate) fn new(kept: u64) -> Self {
        Self { kept, ..Self::default() }
    }

    /// Adds a tombstone of the batch with this seq.
    pub(crate) fn tombstone(&mut self, seq: u64, tombstone: &Tombstone<'_>) {
        let at = self.tombstones.len();
        self.tombstones.extend_from_slice(&seq.to_le_bytes());
        let encoded = control::encode(&mut self.tombstones, &Control::Tombstone(*tombstone), false);
        match encoded {
            Ok(_) => self.count += 1,
            // No topic is that long.
            Err(_) => self.tombstones.truncate(at),
        }
    }

    /// Bytes that stay if no frame dies, without tombstones: those whose frames are removed already
    /// can be dropped too.
    pub(crate) const fn kept_of_frames(&self) -> u64 {
        kept_of_frames(self.kept, self.tombstones.len(), self.count)
    }

    /// Encodes the file.
    pub(crate) fn encode(&self, header: &FileHeader) -> Vec<u8> {
        let mut out = header.encode().to_vec();
        out.extend_from_slice(&self.kept.to_le_bytes());
        out.extend_from_slice(&(self.expiring.steps.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        for (at, bytes) in &self.expiring.steps {
            out.extend_from_slice(&at.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        out.extend_from_slice(&self.tombstones);
        push_end(&mut out);
        out
    }
}

/// `kept` without the tombstones, which take `len` bytes in the file, each after a `seq`.
const fn kept_of_frames(kept: u64, len: usize, count: u32) -> u64 {
    kept.saturating_sub((len as u64).saturating_sub(8 * count as u64))
}

/// A file whose header, CRC and structure were checked.
#[derive(Debug)]
pub(crate) struct DeadFile {
    /// Bytes of the segment that stay if no frame dies.
    pub(crate) kept: u64,
    /// When they expire.
    pub(crate) expiring: Expiring,
    tombstones: Bytes,
    count: u32,
}

impl DeadFile {
    /// Checks the whole file and returns it with its header.
    pub(crate) fn read(bytes: Bytes) -> Result<(FileHeader, Self), FormatError> {
        let header = FileHeader::decode(&bytes, Magic::Dead)?;
        let kept = u64_at(&bytes, KEPT_AT).ok_or(FormatError::Short)?;
        let steps = u32_at(&bytes, STEPS_AT).ok_or(FormatError::Short)? as usize;
        let count = u32_at(&bytes, COUNT_AT).ok_or(FormatError::Short)?;
        let end = check_end(&bytes)?;
        if steps > STEPS_MAX || BODY_AT + steps * STEP_LEN > end {
            return Err(FormatError::Field("steps"));
        }
        let mut expiring = Expiring::default();
        for step in 0..steps {
            let at = BODY_AT + step * STEP_LEN;
            let expires = u64_at(&bytes, at).ok_or(FormatError::Short)?;
            let len = u64_at(&bytes, at + 8).ok_or(FormatError::Short)?;
            expiring.steps.insert(expires, len);
        }
        let tombstones = bytes.slice(BODY_AT + steps * STEP_LEN..end);
        let file = Self { kept, expiring, tombstones, count };
        let mut found = 0;
        file.walk(|_, _| found += 1)?;
        if found != count {
            return Err(FormatError::Field("count"));
        }
        Ok((header, file))
    }

    /// Bytes that stay if no frame dies, without tombstones.
    pub(crate) const fn kept_of_frames(&self) -> u64 {
        kept_of_frames(self.kept, self.tombstones.len(), self.count)
    }

    /// The tombstones, each with the seq of its batch, in log order.
    pub(crate) fn for_each(&self, visit: impl FnMut(u64, &Tombstone<'_>)) {
        // The structure was checked when the file was read.
        let _ = self.walk(visit);
    }

    fn walk(&self, mut visit: impl FnMut(u64, &Tombstone<'_>)) -> Result<(), FormatError> {
        let mut rest = &self.tombstones[..];
        while !rest.is_empty() {
            let seq = u64_at(rest, 0).ok_or(FormatError::Short)?;
            let record = rest.get(8..).ok_or(FormatError::Short)?;
            let prefix = RecordPrefix::read(record).map_err(|_| FormatError::Field("record"))?;
            let len = prefix.len as usize;
            let whole = record.get(..len).ok_or(FormatError::Short)?;
            let Ok(Control::Tombstone(tombstone)) = control::decode(whole, &prefix) else {
                return Err(FormatError::Field("record"));
            };
            visit(seq, &tombstone);
            rest = record.get(align8(len)..).ok_or(FormatError::Short)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::FrameId;

    fn header() -> FileHeader {
        FileHeader {
            magic: Magic::Dead,
            salt: 0,
            store: [1; 16],
            file: [2; 16],
            base: 7,
            generation: 3,
        }
    }

    #[test]
    fn files_round_trip_and_damage_is_found() {
        let id = FrameId::first_of_ms(3);
        let mut builder = DeadBuilder::new(500);
        builder.expiring.add(10, 100);
        builder.expiring.add(20, 50);
        let told = [(4, "a", 9), (5, "a.topic", 11)];
        for (seq, topic, offset) in told {
            builder.tombstone(seq, &Tombstone { id, offset, len: 80, topic });
        }
        let bytes = builder.encode(&header());
        assert_eq!(bytes.len() % 8, 0);
        let (read, file) = DeadFile::read(Bytes::from(bytes.clone())).unwrap();
        assert_eq!((read, file.kept), (header(), 500));
        let expired = [9, 10, 19, 20].map(|now| file.expiring.expired(now));
        assert_eq!(expired, [0, 100, 100, 150]);
        let mut found = Vec::new();
        file.for_each(|seq, tombstone| {
            found.push((seq, tombstone.topic.to_owned(), tombstone.offset));
        });
        assert_eq!(found, told.map(|(seq, topic, offset)| (seq, topic.to_owned(), offset)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(DeadFile::read(Bytes::from(damaged)).is_err(), "{at}");
            assert!(DeadFile::read(Bytes::from(bytes[..at].to_vec())).is_err(), "cut {at}");
        }
    }

    #[test]
    fn many_moments_are_rounded_up() {
        let mut expiring = Expiring::default();
        (0..1000).for_each(|n| expiring.add(1_000_000 + n * 7, 1));
        expiring.add(u64::MAX, 5);
        assert!(expiring.steps.len() <= STEPS_MAX);
        for now in (999_999..1_008_000).step_by(13) {
            let due = (0..1000).filter(|n| 1_000_000 + n * 7 <= now).count() as u64;
            let said = expiring.expired(now);
            assert!(said <= due && due - said < 80, "{now}: {said} of {due}");
        }
        assert_eq!(expiring.expired(u64::MAX - 1), 1000);
    }
}
