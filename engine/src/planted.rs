//! Bugs on purpose. Each is what a store could do wrong and what some test must notice; built with
//! `--cfg xs_planted` one of them is switched on by the environment. In any other build the
//! question is answered when the code is compiled, and functions that only a bug calls are not
//! there. `scripts/planted-bugs` asks them all.

/// A bug that can be planted; its name in the environment is the variant's.
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
    /// The directory of the log is not synced when a segment gets its name.
    SkipDirSync,
    /// An append is acknowledged first and synced with the next group.
    AckBeforeSync,
    /// A sync that failed is called again and believed.
    RetryFailedSync,
    /// Recovery believes the page cache, and batches that may not be durable where they lie.
    TrustCache,
    /// The CRC of a record is not compared.
    IgnoreBodyCrc,
    /// The CRC of a batch header is not compared.
    IgnoreHeaderCrc,
    /// Recovery goes on behind a hole in the log.
    KeepBehindHole,
    /// Recovery cuts the log where acknowledged data is damaged.
    CutAtDamage,
    /// Readers see frames before they are durable.
    PublishBeforeDurable,
    /// An opening has the epoch of the one before it, and its lost offsets.
    ReuseEpoch,
    /// A segment is marked sealed before it is synced.
    SealBeforeSync,
    /// Recovery keeps frames whose blobs are missing.
    KeepWithoutBlob,
    /// Compaction unlinks old segments before the manifest names the new one.
    UnlinkBeforeSwitch,
    /// Compaction does not sync what it wrote.
    SkipCompactSync,
    /// Compaction forgets floors with the frames that caused them.
    ForgetFloors,
    /// Removed frames are forgotten while a reader has segments that hold them.
    ForgetWhileRead,
    /// Opening takes tombstones for new that had their effect before.
    IgnorePurged,
    /// A blob that was put counts as durable, so a frame that finds it does not wait for its sync.
    SkipHitSync,
    /// A copy of a blob that is there is believed to be whole.
    BelieveRotten,
    /// Garbage collection does not read what came to name a blob while it was at work.
    ForgetLateNames,
    /// Garbage collection takes blobs that were put a moment ago.
    IgnoreGrace,
    /// A put that finds its blob does not begin its grace anew.
    ForgetTouch,
    /// Garbage collection does not take the states of cursors for names.
    ForgetStates,
    /// Garbage collection goes on where the log cannot be read.
    SweepOverDamage,
    /// A sweep unlinks old packs before the manifest names the new one.
    UnlinkBeforeConfirm,
    /// A pack that is written in one go is not synced.
    SkipBuildSync,
    /// What a backup copies is not synced.
    SkipBackupSync,
    /// Tombstones that damage took are not looked for in the `.dead` file.
    ForgetDead,
    /// The journal is not synced.
    SkipJournalSync,
    /// What the journal holds is not put in its place after a crash.
    SkipReplay,
    /// A half of the journal is written again before what it held is settled.
    ReuseHalf,
    /// A half of the journal counts as settled when the log alone is.
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
