//! How space is taken back: by compaction, by garbage collection.

use std::time::Duration;

use super::OptionsError;

/// How segments are compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactOptions {
    /// A segment is rewritten once this percentage of its bytes is dead, 1 to 100.
    pub dead_percent: u8,
    /// Bytes read and written per second, at least 1; unlimited when `None`.
    pub bytes_per_second: Option<u64>,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self { dead_percent: 50, bytes_per_second: Some(32 * 1024 * 1024) }
    }
}

impl CompactOptions {
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        match (self.dead_percent, self.bytes_per_second) {
            (percent @ (0 | 101..), _) => Err(OptionsError::DeadPercent(percent)),
            (_, Some(0)) => Err(OptionsError::NoSpeed { what: "compaction" }),
            _ => Ok(()),
        }
    }
}

/// How garbage is collected.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// A blob that nothing names is kept for this long after it was put. Age is tracked per pack: a
    /// blob stays until the newest one in its pack is that old.
    pub grace: Duration,
    /// A pack is rewritten when at least this percentage of its bytes is dead, 0 to 100. With 0 and
    /// no grace every dead blob is removed, including those in the active packs.
    pub dead_percent: u8,
    /// Only report what would be done.
    pub dry_run: bool,
    /// Maximum bytes of the log and of rewritten packs read per second, at least 1; unlimited when
    /// `None`.
    pub bytes_per_second: Option<u64>,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(24 * 60 * 60),
            dead_percent: 25,
            dry_run: false,
            bytes_per_second: None,
        }
    }
}

impl GcOptions {
    /// Removes every dead blob, whatever the cost.
    #[must_use]
    pub fn everything() -> Self {
        Self { grace: Duration::ZERO, dead_percent: 0, ..Self::default() }
    }

    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        match (self.dead_percent, self.bytes_per_second) {
            (percent @ 101.., _) => Err(OptionsError::GcDeadPercent(percent)),
            (_, Some(0)) => Err(OptionsError::NoSpeed { what: "garbage collection" }),
            _ => Ok(()),
        }
    }

    pub(crate) fn grace_ms(&self) -> u64 {
        u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether packs that are written to are included: their blobs are younger than any grace.
    pub(crate) const fn takes_open(&self) -> bool {
        self.grace.is_zero() && self.dead_percent == 0
    }
}

/// When blobs that nothing names are collected automatically.
///
/// A collection is due only if something died since the last one: a frame was removed, superseded
/// or compacted away, or expired `grace` ago; a cursor's state was replaced; or blobs were too
/// young the last time. In addition, the packs must have grown since by a quarter and by
/// `grown_bytes`, or a day must have passed; an hour is enough after the store was opened or the
/// last collection failed.
///
/// A collection reads the log once, to learn what its frames name, and the packs that lose blobs,
/// at `bytes_per_second`. Then it rests for 20 times as long as it took, at most a day, so it works
/// a twentieth of the time. It takes one bit of memory for each blob, two while packs are
/// rewritten, and up to 32 MiB of names. Compaction waits for it. When another operation waits for
/// it, as a backup does, it continues without pauses and ends with the packs in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectOptions {
    /// As [`GcOptions::grace`].
    pub grace: Duration,
    /// As [`GcOptions::dead_percent`].
    pub dead_percent: u8,
    /// Minimum growth of the packs, in bytes.
    pub grown_bytes: u64,
    /// Bytes of log and packs read per second, at least 1; unlimited when `None`.
    pub bytes_per_second: Option<u64>,
}

impl Default for CollectOptions {
    fn default() -> Self {
        let GcOptions { grace, dead_percent, .. } = GcOptions::default();
        let bytes_per_second = CompactOptions::default().bytes_per_second;
        Self { grace, dead_percent, grown_bytes: 256 * 1024 * 1024, bytes_per_second }
    }
}

impl CollectOptions {
    pub(crate) fn gc(&self) -> GcOptions {
        let Self { grace, dead_percent, bytes_per_second, .. } = *self;
        GcOptions { grace, dead_percent, dry_run: false, bytes_per_second }
    }

    pub(crate) fn grace_ms(&self) -> u64 {
        self.gc().grace_ms()
    }
}
