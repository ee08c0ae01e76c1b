//! Planted bugs. Each is a fault that a store could have and that some test must detect; built with
//! `--cfg xs_planted`, the environment enables one of them. In any other build the check is a
//! constant, and functions that only a bug calls are compiled out. `scripts/planted-bugs` tests
//! them all.

/// A bug that can be planted; the environment names it by its variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(xs_planted),
    expect(dead_code, reason = "some are only asked for where they can be")
)]
pub(crate) enum Bug {
    /// The log is not synced.
    SkipLogSync,
    /// Packs are not synced.
    SkipPackSync,
    /// The directory of the log is not synced when a segment is renamed.
    SkipDirSync,
    /// An append is acknowledged first and synced with the next group.
    AckBeforeSync,
    /// A failed sync is retried and its success believed.
    RetryFailedSync,
    /// Recovery trusts the page cache, and batches in place that may not be durable.
    TrustCache,
    /// The CRC of a record is not checked.
    IgnoreBodyCrc,
    /// The CRC of a batch header is not checked.
    IgnoreHeaderCrc,
    /// Recovery continues after a hole in the log.
    KeepBehindHole,
    /// Recovery cuts the log where acknowledged data is damaged.
    CutAtDamage,
    /// Readers see frames before they are durable.
    PublishBeforeDurable,
    /// An opening reuses the epoch of the one before it, with its lost offsets.
    ReuseEpoch,
    /// A segment is marked sealed before it is synced.
    SealBeforeSync,
    /// Recovery keeps frames whose blobs are missing.
    KeepWithoutBlob,
    /// Compaction unlinks old segments before the manifest names the new one.
    UnlinkBeforeSwitch,
    /// Compaction does not sync what it wrote.
    SkipCompactSync,
    /// Compaction drops floors together with the frames that caused them.
    ForgetFloors,
    /// Removed frames are forgotten while a reader has segments that hold them.
    ForgetWhileRead,
    /// Opening applies tombstones that were applied before.
    IgnorePurged,
    /// A blob that was put counts as durable, so a frame that names it does not wait for its sync.
    SkipHitSync,
    /// An existing copy of a blob is assumed to be whole.
    BelieveRotten,
    /// Garbage collection does not read names that were added while it ran.
    ForgetLateNames,
    /// Garbage collection removes blobs that were just put.
    IgnoreGrace,
    /// A put that finds its blob does not restart its grace period.
    ForgetTouch,
    /// Garbage collection does not count the states of cursors as names.
    ForgetStates,
    /// Garbage collection does not make durable what superseded the names that it passes over.
    SkipBury,
    /// What died since the last collection does not make the next one due.
    ForgetGone,
    /// What the last collection kept because of the grace does not make the next one due.
    ForgetYoung,
    /// Growth of the packs does not make a collection due.
    IgnoreGrowth,
    /// Garbage collection continues where the log cannot be read.
    SweepOverDamage,
    /// A sweep unlinks old packs before the manifest names the new one.
    UnlinkBeforeConfirm,
    /// A pack that is written at once is not synced.
    SkipBuildSync,
    /// The files of a backup are not synced.
    SkipBackupSync,
    /// Tombstones lost to damage are not looked up in the `.dead` file.
    ForgetDead,
    /// The journal is not synced.
    SkipJournalSync,
    /// The journal is not applied after a crash.
    SkipReplay,
    /// A half of the journal is overwritten before it is settled.
    ReuseHalf,
    /// A half of the journal counts as settled when only the log is.
    SettleLogOnly,
    /// A group goes through the journal although one before it is not durable.
    JournalBehindGap,
}

/// Whether a bug is planted.
#[cfg(xs_planted)]
pub(crate) fn is_planted(bug: Bug) -> bool {
    use std::sync::LazyLock;
    static PLANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("XS_PLANTED").ok());
    PLANTED.as_deref() == Some(&*format!("{bug:?}"))
}

/// Whether a bug is planted.
#[cfg(not(xs_planted))]
pub(crate) const fn is_planted(_: Bug) -> bool {
    false
}
