//! The content of a batch with an idempotency key, as one hash: the same key is accepted only with
//! the same content.

use sha2::{Digest as _, Sha256};

use crate::append::Pending;
use crate::format::control::{self, Control, CursorRecord, StateRecord};
use crate::format::record::{FrameFields, RecordError, encode_frame};
use crate::value::{BlobHash, CursorValue, FrameId};

/// The first 16 bytes of the SHA-256 of a key.
pub(crate) fn key_hash(key: &str) -> [u8; 16] {
    short(&BlobHash::of(key.as_bytes()))
}

/// The first 16 bytes of a hash.
pub(crate) fn short(hash: &BlobHash) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    bytes
}

/// SHA-256 of the records a batch would store, in order, with everything that the store decides set
/// to zero: ids, revisions, epochs, times. Of a body only the hash counts and its length is zero
/// too, as the length of a missing body is unknown. States count by their hash, wherever they are
/// stored. Parts of a batch that are not stored do not count: conditions and durability may differ
/// when it is sent again. Nor do removals, whose frames may no longer exist by then, so that they
/// could not be identified.
pub(crate) fn content_of(pending: &Pending) -> Result<BlobHash, RecordError> {
    let mut hasher = Sha256::new();
    let mut record = Vec::new();
    for index in 0..pending.batch.frames.len() {
        record.clear();
        let fields = pending.fields(index, FrameId::ZERO, index as u32);
        let body = fields.body.map(|(_, hash)| (0, hash));
        encode_frame(&mut record, &FrameFields { body, ..fields })?;
        hasher.update(&record);
    }
    for change in &pending.batch.cursors {
        record.clear();
        let state = match &change.set {
            Some(CursorValue { state, .. }) => {
                StateRecord::Blob(state.len() as u64, BlobHash::of(state))
            }
            None => StateRecord::Removed,
        };
        let offset = change.set.as_ref().map_or(0, |value| value.offset);
        let name = change.name.as_str();
        let cursor = CursorRecord { name, revision: 0, epoch: 0, offset, time_ms: 0, state };
        control::encode(&mut record, &Control::Cursor(cursor), false)?;
        hasher.update(&record);
    }
    Ok(BlobHash::from_bytes(hasher.finalize().into()))
}
