//! The part of the packs that is not durable, taken out to be made durable in the journal.

use std::sync::Arc;

use bytes::Bytes;

use super::open_pack::OpenPack;
use crate::format::journal::{PIECES_MAX, PieceAt};

/// The ends of packs that are not durable.
#[derive(Debug)]
pub(crate) struct Undurable {
    ends: Vec<(Arc<OpenPack>, u64, Bytes)>,
}

impl Undurable {
    pub(super) fn of(packs: &[Arc<OpenPack>], max: u64) -> Option<Self> {
        let (mut ends, mut len) = (Vec::new(), 0);
        for pack in packs {
            let range = pack.undurable();
            if range.is_empty() {
                continue;
            }
            len += range.end - range.start;
            if len > max || ends.len() + 1 == PIECES_MAX {
                return None;
            }
            ends.push((Arc::clone(pack), range.start, pack.media().view(range).ok()?));
        }
        Some(Self { ends })
    }

    /// Their bytes, and where they belong.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (PieceAt, &[u8])> {
        self.ends.iter().map(|(pack, position, bytes)| {
            let line = pack.line();
            let place = PieceAt {
                kind: line.kind,
                file: line.uuid,
                base: line.base,
                generation: line.generation,
                position: *position,
            };
            (place, &bytes[..])
        })
    }

    /// Marks them as durable.
    pub(crate) fn note_durable(&self) {
        for (pack, position, bytes) in &self.ends {
            pack.note_durable(position + bytes.len() as u64);
        }
    }
}
