//! The engine's errors as the protocol's refusals. One place decides which code, and with it the
//! class that tells a client whether to try again.

use xs_engine::{AppendError, ReadError};
use xs_protocol::{Code, Detail, Refusal};

pub(super) fn append(error: &AppendError) -> Refusal {
    let code = match error {
        AppendError::BatchCount { .. }
        | AppendError::BatchTooLarge { .. }
        | AppendError::StateTooLarge { .. }
        | AppendError::BlobTooLarge { .. } => Code::BatchTooLarge,
        AppendError::Invalid(_) | AppendError::CursorTwice(_) => Code::InvalidValue,
        AppendError::CursorConflict { .. } => Code::CursorConflict,
        AppendError::TooManyCursors => Code::Busy,
        AppendError::UnknownBlob(_) => Code::UnknownBlob,
        AppendError::StorageFull => Code::StorageFull,
        AppendError::ReadOnly(_) => Code::ReadOnly,
        AppendError::Indeterminate => Code::Indeterminate,
        AppendError::Poisoned | AppendError::Closed => Code::Closed,
        _ => Code::Internal,
    };
    let refusal = Refusal::new(code, error.to_string());
    match error {
        AppendError::CursorConflict { name, actual, .. } => {
            refusal.with(Detail::Cursor { name: name.clone(), revision: *actual })
        }
        AppendError::BatchTooLarge { max, .. } => refusal.with(Detail::Limit(*max as u64)),
        _ => refusal,
    }
}

pub(super) fn read(error: &ReadError) -> Refusal {
    let code = match error {
        ReadError::Corrupt(_) => Code::Corrupt,
        ReadError::Options(_) => Code::InvalidRead,
        ReadError::Closed => Code::Closed,
        _ => Code::Internal,
    };
    Refusal::new(code, error.to_string())
}
