//! Maps the engine's errors to the protocol's refusals. The only place that decides the code, and
//! with it the class that tells a client whether to retry.

use std::io::{self, ErrorKind};
use std::path::Path;

use xs_engine::limits::BLOB_BYTES_MAX;
use xs_engine::{
    AppendError, Batch, CompactError, CursorChange, GcError, MaintainError, OpenError, PutError,
    ReadError, RemoveNowError, Shortage, Ttl,
};
use xs_protocol::{Code, Detail, Refusal};

/// The refusal of a batch.
pub(super) fn append(error: &AppendError) -> Refusal {
    let code = match error {
        // An empty batch is invalid, whatever the limit.
        AppendError::BatchCount { count: 0, .. } => Code::InvalidValue,
        AppendError::BatchCount { .. }
        | AppendError::BatchTooLarge { .. }
        | AppendError::StateTooLarge { .. }
        | AppendError::TooManyConditions { .. }
        | AppendError::ConditionsTooWide { .. } => Code::BatchTooLarge,
        AppendError::Invalid(_)
        | AppendError::CursorTwice(_)
        | AppendError::KeyWithoutFrame
        | AppendError::ImportCount { .. }
        | AppendError::ImportEphemeral { .. }
        | AppendError::ImportId(_)
        | AppendError::ImportKey => Code::InvalidValue,
        AppendError::ImportOrder { .. } => Code::ImportOrder,
        AppendError::KeyReused { .. } => Code::KeyReused,
        AppendError::CursorConflict { .. } => Code::CursorConflict,
        AppendError::ConditionNotMet(_) => Code::ConditionFailed,
        AppendError::TooManyCursors => Code::TooManyCursors,
        AppendError::UnknownBlob(_) => Code::UnknownBlob,
        AppendError::StorageFull(_) => Code::StorageFull,
        AppendError::ConditionUnread { error, .. } | AppendError::Unreadable(error) => {
            read_code(error)
        }
        AppendError::BlobRefused(_) => Code::Unreadable,
        AppendError::ReadOnly(_) => Code::ReadOnly,
        AppendError::Indeterminate(_) => Code::Indeterminate,
        AppendError::Poisoned(_) | AppendError::Closed => Code::Closed,
        _ => Code::Internal,
    };
    let refusal = Refusal::new(code, error.to_string());
    let limit = |max: usize| Detail::Limit(max as u64);
    match error {
        AppendError::CursorConflict { name, actual, .. } => {
            refusal.with(Detail::Cursor { name: name.clone(), revision: *actual })
        }
        AppendError::ConditionNotMet(unmet) => {
            let index = u32::try_from(unmet.index).unwrap_or(u32::MAX);
            refusal.with(Detail::Condition { index, found: unmet.found })
        }
        AppendError::KeyReused { id, .. } => refusal.with(Detail::Frame(*id)),
        AppendError::BatchCount { max, .. }
        | AppendError::BatchTooLarge { max, .. }
        | AppendError::StateTooLarge { max, .. }
        | AppendError::TooManyConditions { max, .. }
        | AppendError::ConditionsTooWide { max } => refusal.with(limit(*max)),
        _ => refusal,
    }
}

/// The refusal of a blob.
pub(super) fn put(error: &PutError) -> Refusal {
    let code = match error {
        PutError::TooLarge { .. } => Code::BatchTooLarge,
        PutError::Refused(_) => Code::Unreadable,
        PutError::StorageFull(_) => Code::StorageFull,
        PutError::ReadOnly(_) => Code::ReadOnly,
        PutError::Indeterminate(_) => Code::Indeterminate,
        PutError::Poisoned(_) | PutError::Closed => Code::Closed,
        _ => Code::Internal,
    };
    let refusal = Refusal::new(code, error.to_string());
    match error {
        PutError::TooLarge { max } => refusal.with(Detail::Limit(*max)),
        _ => refusal,
    }
}

/// The refusal of a batch that sets a cursor above the head, to which its own frames count: a
/// reader that began there would wait in silence, and miss frames until the log was as long.
pub(super) fn cursor_ahead(batch: &Batch, head: u64) -> Option<Refusal> {
    let stored = batch.frames.iter().filter(|frame| frame.ttl != Ttl::Ephemeral).count();
    let most = head.saturating_add(stored as u64);
    let offset_of = |change: &CursorChange| change.set.as_ref().map_or(0, |value| value.offset);
    let ahead = batch.cursors.iter().find(|change| offset_of(change) > most)?;
    let (name, offset) = (&ahead.name, offset_of(ahead));
    let text = format!("cursor {name} cannot be set to {offset}: the next frame gets {most}");
    Some(Refusal::new(Code::CursorAhead, text).with(Detail::Offset(most)))
}

/// The refusal of bytes of a streamed blob.
pub(super) fn blob_bytes(error: &io::Error) -> Refusal {
    if let Some(shortage) = Shortage::of(error) {
        return put(&PutError::StorageFull(shortage));
    }
    match error.kind() {
        // The system's own file size limit is not the blob's.
        ErrorKind::FileTooLarge if error.raw_os_error().is_none() => {
            put(&PutError::TooLarge { max: BLOB_BYTES_MAX })
        }
        _ => Refusal::new(Code::Internal, format!("cannot store the blob: {error}")),
    }
}

/// The refusal of a read.
pub(super) fn read(error: &ReadError) -> Refusal {
    let refusal = Refusal::new(read_code(error), error.to_string());
    match error {
        ReadError::CursorAhead { offset } => refusal.with(Detail::Offset(*offset)),
        ReadError::TooLarge { max, .. } => refusal.with(Detail::Limit(*max)),
        _ => refusal,
    }
}

/// The refusal of a compaction.
pub(super) fn compact(error: &CompactError) -> Refusal {
    let code = match error {
        CompactError::Unreadable(error) => return read(error),
        CompactError::Options(_) => Code::InvalidValue,
        CompactError::StorageFull(_) => Code::StorageFull,
        CompactError::ReadOnly(_) => Code::ReadOnly,
        CompactError::Poisoned(_) | CompactError::Closed => Code::Closed,
        CompactError::Io(_) => Code::Unreadable,
        _ => Code::Internal,
    };
    Refusal::new(code, error.to_string())
}

/// The refusal of a removal that leaves no bytes.
pub(super) fn remove_now(error: &RemoveNowError) -> Refusal {
    match error {
        RemoveNowError::Append(error) => append(error),
        RemoveNowError::Compact(error) => compact(error),
        RemoveNowError::Blobs(error) => gc(error),
        RemoveNowError::Left(_) => Refusal::new(Code::Corrupt, error.to_string()),
        _ => Refusal::new(Code::Internal, error.to_string()),
    }
}

/// The refusal of a blob garbage collection.
pub(super) fn gc(error: &GcError) -> Refusal {
    Refusal::new(gc_code(error), error.to_string())
}

/// The refusal of a check of the store, or of a copy to the client's path.
pub(super) fn maintain(error: &MaintainError, to: Option<&Path>) -> Refusal {
    // Also for a directory above it: the store's own files lie elsewhere.
    let is_named = |path: &Path| to.is_some_and(|to| path.starts_with(to) || to.starts_with(path));
    let code = match error {
        MaintainError::NotEmpty { .. }
        | MaintainError::OtherStore { .. }
        | MaintainError::Nested { .. } => Code::InvalidValue,
        MaintainError::Corrupt(_) => Code::Corrupt,
        MaintainError::ReadOnly(_) => Code::ReadOnly,
        MaintainError::Io { error, .. }
        | MaintainError::Open(OpenError::Io { error, .. } | OpenError::Lock { error, .. })
            if error.kind() == ErrorKind::StorageFull =>
        {
            Code::StorageFull
        }
        MaintainError::Io { path, .. }
        | MaintainError::Open(OpenError::Io { path, .. } | OpenError::Lock { path, .. })
            if is_named(path) =>
        {
            Code::InvalidValue
        }
        MaintainError::Io { .. } => Code::Unreadable,
        // Abandoned because the client has hung up, or the server is stopping.
        MaintainError::Changing | MaintainError::Stopped => Code::Busy,
        MaintainError::Poisoned(_) | MaintainError::Closed => Code::Closed,
        _ => Code::Internal,
    };
    Refusal::new(code, error.to_string())
}

const fn gc_code(error: &GcError) -> Code {
    match error {
        GcError::Options(_) => Code::InvalidValue,
        GcError::Read(error) => read_code(error),
        GcError::ReadOnly(_) => Code::ReadOnly,
        GcError::StorageFull(_) => Code::StorageFull,
        GcError::Poisoned(_) | GcError::Closed => Code::Closed,
        _ => Code::Internal,
    }
}

const fn read_code(error: &ReadError) -> Code {
    match error {
        ReadError::Corrupt(_) | ReadError::MissingBlob(_) => Code::Corrupt,
        ReadError::Io { .. } => Code::Unreadable,
        ReadError::Options(_) | ReadError::TooLarge { .. } => Code::InvalidRead,
        ReadError::CursorAhead { .. } => Code::CursorAhead,
        ReadError::OtherStore { .. } => Code::OtherStore,
        ReadError::Closed => Code::Closed,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use xs_engine::{
        BlobHash, Condition, CursorName, CursorValue, ExpectRevision, FrameId, IdempotencyKey,
        NewFrame, ReadOnlyReason, RecordError, Topic, Unmet,
    };

    use super::*;

    #[test]
    fn what_a_client_asked_for_is_no_fault_of_the_store() {
        let at = |path: &str, kind: ErrorKind| MaintainError::Io {
            what: "make",
            path: path.into(),
            error: kind.into(),
        };
        let locked = |path: &str| OpenError::Lock {
            path: path.into(),
            error: ErrorKind::PermissionDenied.into(),
        };
        let cases = [
            (at("/a/copy", ErrorKind::PermissionDenied), Code::InvalidValue),
            (at("/a/copy/log/1.seg", ErrorKind::InvalidFilename), Code::InvalidValue),
            (at("/a", ErrorKind::NotFound), Code::InvalidValue),
            (locked("/a/copy/LOCK").into(), Code::InvalidValue),
            (at("/a/copy", ErrorKind::StorageFull), Code::StorageFull),
            (at("/a/store/log/1.seg", ErrorKind::PermissionDenied), Code::Unreadable),
            (MaintainError::Stopped, Code::Busy),
        ];
        for (error, code) in cases {
            assert_eq!(maintain(&error, Some(Path::new("/a/copy"))).code, code, "{error}");
        }
    }

    fn unmet() -> AppendError {
        let condition = Condition::HeadIs(3);
        AppendError::ConditionNotMet(Unmet { index: 1, condition, found: 9 })
    }

    #[test]
    fn every_error_of_an_append_has_its_code() {
        let (id, hash) = (FrameId::MAX, BlobHash::of(b"x"));
        let cursor = CursorName::parse("c").unwrap();
        let key = IdempotencyKey::parse("k").unwrap();
        let conflict = AppendError::CursorConflict { name: cursor.clone(), expected: 1, actual: 2 };
        let unread = AppendError::ConditionUnread { index: 0, error: ReadError::MissingBlob(hash) };
        let cases = [
            (AppendError::BatchCount { count: 0, max: 2 }, Code::InvalidValue),
            (AppendError::BatchCount { count: 3, max: 2 }, Code::BatchTooLarge),
            (AppendError::BatchTooLarge { bytes: 3, max: 2 }, Code::BatchTooLarge),
            (
                AppendError::StateTooLarge { name: cursor.clone(), bytes: 3, max: 2 },
                Code::BatchTooLarge,
            ),
            (AppendError::TooManyConditions { count: 65, max: 64 }, Code::BatchTooLarge),
            (AppendError::Invalid(RecordError::Short), Code::InvalidValue),
            (AppendError::CursorTwice(cursor), Code::InvalidValue),
            (AppendError::KeyWithoutFrame, Code::InvalidValue),
            (AppendError::ImportCount { frames: 1, ids: 2 }, Code::InvalidValue),
            (AppendError::ImportEphemeral { index: 0 }, Code::InvalidValue),
            (AppendError::ImportId(id), Code::InvalidValue),
            (AppendError::ImportKey, Code::InvalidValue),
            (AppendError::ImportOrder { index: 0, id, newest: id }, Code::ImportOrder),
            (AppendError::KeyReused { key, id }, Code::KeyReused),
            (conflict, Code::CursorConflict),
            (unmet(), Code::ConditionFailed),
            (unread, Code::Corrupt),
            (AppendError::Unreadable(ReadError::Closed), Code::Closed),
            (AppendError::TooManyCursors, Code::TooManyCursors),
            (AppendError::UnknownBlob(hash), Code::UnknownBlob),
            (AppendError::BlobRefused(Arc::from("why")), Code::Unreadable),
            (AppendError::StorageFull(Shortage::Space), Code::StorageFull),
            (AppendError::ReadOnly(ReadOnlyReason::Backup), Code::ReadOnly),
            (AppendError::Indeterminate(std::io::Error::other("why").into()), Code::Indeterminate),
            (AppendError::Poisoned(std::io::Error::other("why").into()), Code::Closed),
            (AppendError::Closed, Code::Closed),
        ];
        for (error, code) in cases {
            assert_eq!(append(&error).code, code, "{error}");
        }
    }

    #[test]
    fn a_blob_is_refused_as_a_batch_is() {
        let why = || std::io::Error::other("why").into();
        let cases = [
            (PutError::Refused(Arc::from("why")), AppendError::BlobRefused(Arc::from("why"))),
            (
                PutError::StorageFull(Shortage::Descriptors),
                AppendError::StorageFull(Shortage::Descriptors),
            ),
            (
                PutError::ReadOnly(ReadOnlyReason::Backup),
                AppendError::ReadOnly(ReadOnlyReason::Backup),
            ),
            (PutError::Poisoned(why()), AppendError::Poisoned(why())),
            (PutError::Closed, AppendError::Closed),
        ];
        for (put, batch) in cases {
            let (blob, batch) = (super::put(&put), append(&batch));
            assert_eq!((blob.code, blob.message), (batch.code, batch.message));
        }
        let refusal = put(&PutError::Indeterminate(why()));
        assert_eq!(refusal.code, Code::Indeterminate);
        let refusal = put(&PutError::TooLarge { max: 2 });
        assert_eq!((refusal.code, refusal.details), (Code::BatchTooLarge, vec![Detail::Limit(2)]));
    }

    #[test]
    fn a_long_body_that_does_not_fit_is_refused_as_a_short_one_is() {
        use rustix::io::Errno;
        for (shortage, errno) in
            [(Shortage::Space, Errno::NOSPC), (Shortage::Descriptors, Errno::MFILE)]
        {
            let full = append(&AppendError::StorageFull(shortage));
            let refusal = blob_bytes(&io::Error::from_raw_os_error(errno.raw_os_error()));
            assert_eq!((refusal.code, refusal.message), (full.code, full.message));
        }
        assert_eq!(blob_bytes(&io::Error::other("why")).code, Code::Internal);
        let refusal = blob_bytes(&ErrorKind::FileTooLarge.into());
        let limit = Detail::Limit(16 << 30);
        assert_eq!((refusal.code, refusal.details), (Code::BatchTooLarge, vec![limit]));
        let errno = rustix::io::Errno::FBIG.raw_os_error();
        assert_eq!(blob_bytes(&io::Error::from_raw_os_error(errno)).code, Code::Internal);
    }

    #[test]
    fn a_cursor_may_lie_behind_the_frames_of_its_batch_and_no_further() {
        let change = |offset| CursorChange {
            name: CursorName::parse("c").unwrap(),
            expect: ExpectRevision::Any,
            set: Some(CursorValue { offset, ..CursorValue::default() }),
        };
        let frame = NewFrame::new(Topic::parse("a").unwrap());
        let unkept = NewFrame { ttl: Ttl::Ephemeral, ..frame.clone() };
        let batch = |offset| Batch {
            frames: vec![frame.clone(), unkept.clone()],
            cursors: vec![change(0), change(offset)],
            ..Batch::default()
        };
        assert_eq!(cursor_ahead(&batch(8), 7), None);
        let refusal = cursor_ahead(&batch(9), 7).unwrap();
        assert_eq!((refusal.code, refusal.details), (Code::CursorAhead, vec![Detail::Offset(8)]));
        let removed = CursorChange { set: None, ..change(0) };
        assert_eq!(cursor_ahead(&Batch { cursors: vec![removed], ..Batch::default() }, 0), None);
    }

    #[test]
    fn details_tell_what_is_there() {
        let id = FrameId::MAX;
        assert_eq!(append(&unmet()).details, [Detail::Condition { index: 1, found: 9 }]);
        let reused = AppendError::KeyReused { key: IdempotencyKey::parse("k").unwrap(), id };
        assert_eq!(append(&reused).details, [Detail::Frame(id)]);
        let ahead = read(&ReadError::CursorAhead { offset: 7 });
        assert_eq!((ahead.code, ahead.details), (Code::CursorAhead, vec![Detail::Offset(7)]));
        assert_eq!(
            read(&ReadError::OtherStore { store: xs_engine::StoreUuid::from_bytes([1; 16]) }).code,
            Code::OtherStore
        );
        let io = ReadError::Io { path: "x".into(), error: std::io::Error::other("why").into() };
        assert_eq!(read(&io).code, Code::Unreadable);
    }
}
