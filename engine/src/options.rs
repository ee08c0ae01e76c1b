//! How a store is opened, and how it takes back space.

mod reclaim;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::entropy::{Entropy, SystemEntropy};
use crate::limits::{
    JOURNAL_HALF_BYTES_MAX, JOURNAL_HALF_BYTES_MIN, SCRUB_PAUSE_MS_MAX, SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN, SYNC_INTERVAL_MS_MAX,
};
pub use reclaim::{CollectOptions, CompactOptions, GcOptions};

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Bytes of a segment of the log: a power of two from 64 KiB to 1 GiB. Segments are longer
    /// while the store has more cursors than a quarter of one holds, as after it was opened with
    /// larger ones.
    pub segment_bytes: u64,
    /// Bytes of a pack of blobs: a power of two from 64 KiB to 1 GiB. A larger blob gets a pack of
    /// its own.
    pub pack_bytes: u64,
    /// When appends are made durable.
    pub sync: SyncPolicy,
    /// How files are written.
    pub media: MediaChoice,
    /// Fill files with zeros before they are used, instead of only allocating them. A sync is then
    /// slightly faster, but writing the zeros delays other writes. Worthwhile for a store with idle
    /// time.
    pub zero_ahead: bool,
    /// The file that makes small groups durable.
    pub journal: JournalOptions,
    /// When the blobs of full packs are compressed.
    pub compress: CompressOptions,
    /// When sealed segments are compacted automatically; `None` compacts on request only.
    pub compaction: Option<CompactOptions>,
    /// When blobs that nothing names are collected automatically, by the thread that compacts:
    /// never without `compaction`. `None` collects on request only.
    pub collection: Option<CollectOptions>,
    /// Source of the time in ids.
    pub clock: Arc<dyn Clock>,
    /// Source of the random bytes of uuids, salts and ids.
    pub entropy: Arc<dyn Entropy>,
    /// Check every byte in the background, repeatedly; off by default.
    pub scrub: Option<ScrubOptions>,
}

/// The file that makes small groups durable, with one sync where log and packs need two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalOptions {
    /// Bytes of each of its halves: a multiple of 4 KiB from 32 KiB to 64 MiB. A group may take a
    /// quarter of one. 0 disables the journal.
    pub half_bytes: u64,
    /// Groups that are synced before the journal is created: a store that is opened for one append
    /// needs none.
    pub after_groups: u32,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { half_bytes: 4 * 1024 * 1024, after_groups: 64 }
    }
}

/// When the blobs of full packs are compressed. Compression takes more processor time than
/// ingesting them, so it waits while many arrive: their packs are sealed as written, and rewritten
/// when there is time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressOptions {
    /// While blobs arrive faster than this per second, compression waits. With 0 it always waits,
    /// within `backlog_bytes`.
    pub busy_bytes_per_second: u64,
    /// Maximum bytes of full packs left uncompressed, and never more than are free on the disk.
    /// Beyond it a pack is compressed as soon as it is full, unless packs fill faster than
    /// compression runs. With 0 no pack waits.
    pub backlog_bytes: u64,
}

impl Default for CompressOptions {
    fn default() -> Self {
        Self { busy_bytes_per_second: 16 * 1024 * 1024, backlog_bytes: 8 * 1024 * 1024 * 1024 }
    }
}

/// How a store is checked in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Average bytes read per second; at least 1.
    pub bytes_per_second: u64,
    /// Milliseconds from the end of a pass to the beginning of the next, 366 days at most.
    pub pause_ms: u64,
}

impl Default for ScrubOptions {
    fn default() -> Self {
        Self { bytes_per_second: 10 * 1000 * 1000, pause_ms: 7 * 24 * 3600 * 1000 }
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            pack_bytes: 64 * 1024 * 1024,
            sync: SyncPolicy::Sync,
            media: MediaChoice::Auto,
            zero_ahead: false,
            journal: JournalOptions::default(),
            compress: CompressOptions::default(),
            compaction: Some(CompactOptions::default()),
            collection: Some(CollectOptions::default()),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            scrub: None,
        }
    }
}

/// An option that is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A file size that is not allowed.
    #[error("{what} of {bytes} bytes: a power of two from 64 KiB to 1 GiB is needed")]
    FileBytes {
        /// The option's name.
        what: &'static str,
        /// Its value.
        bytes: u64,
    },
    /// A size of the journal that is not allowed.
    #[error(
        "a journal with halves of {0} bytes: a multiple of 4 KiB from 32 KiB to 64 MiB is needed"
    )]
    JournalBytes(u64),
    /// An interval between syncs that is not allowed.
    #[error(
        "a sync every {ms} ms or {bytes} bytes: 1 to {SYNC_INTERVAL_MS_MAX} ms, and at least a \
         byte, are needed"
    )]
    SyncInterval {
        /// The interval, in milliseconds.
        ms: u64,
        /// The interval, in bytes.
        bytes: u64,
    },
    /// A background check with an invalid rate or pause.
    #[error(
        "a scrub of {bytes_per_second} bytes a second with pauses of {pause_ms} ms: at least a \
         byte, and at most {SCRUB_PAUSE_MS_MAX} ms, are needed"
    )]
    Scrub {
        /// The rate.
        bytes_per_second: u64,
        /// The pause.
        pause_ms: u64,
    },
    /// A share of dead bytes that is not allowed as the threshold of compaction.
    #[error("segments compacted once {0} percent of their bytes are dead: 1 to 100 are needed")]
    DeadPercent(u8),
    /// A share of dead bytes that is not allowed as the threshold for rewriting packs.
    #[error("packs rewritten once {0} percent of their bytes are dead: 0 to 100 are needed")]
    GcDeadPercent(u8),
    /// A rate of 0 for compacting segments or sweeping packs.
    #[error("{what} at 0 bytes a second: at least a byte is needed, or no limit")]
    NoSpeed {
        /// The operation, which would make no progress.
        what: &'static str,
    },
    /// Not a sync policy.
    #[error("{0:?} is not a sync policy; expected: sync, interval:50ms (1ms to 60000ms) or none")]
    SyncPolicy(String),
}

impl StoreOptions {
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        for (what, bytes) in [("segment", self.segment_bytes), ("pack", self.pack_bytes)] {
            let in_range = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes);
            if !in_range || !bytes.is_power_of_two() {
                return Err(OptionsError::FileBytes { what, bytes });
            }
        }
        let half = self.journal.half_bytes;
        let in_range = (JOURNAL_HALF_BYTES_MIN..=JOURNAL_HALF_BYTES_MAX).contains(&half);
        if half != 0 && !(in_range && half.is_multiple_of(4096)) {
            return Err(OptionsError::JournalBytes(half));
        }
        if let SyncPolicy::Interval { ms, bytes } = self.sync
            && !((1..=SYNC_INTERVAL_MS_MAX).contains(&ms) && bytes > 0)
        {
            return Err(OptionsError::SyncInterval { ms, bytes });
        }
        if let Some(compaction) = self.compaction {
            compaction.check()?;
        }
        if let Some(collection) = self.collection {
            collection.gc().check()?;
        }
        match self.scrub {
            Some(ScrubOptions { bytes_per_second, pause_ms })
                if bytes_per_second == 0 || pause_ms > SCRUB_PAUSE_MS_MAX =>
            {
                Err(OptionsError::Scrub { bytes_per_second, pause_ms })
            }
            _ => Ok(()),
        }
    }
}

/// When appends are made durable, and with that what survives. Under every policy a killed process
/// loses nothing that was acknowledged; the policies differ in what a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncPolicy {
    /// Before an append is acknowledged or any reader sees it. A power cut takes nothing
    /// acknowledged.
    #[default]
    Sync,
    /// `ms` milliseconds after a write, or once `bytes` bytes are unsynced, whichever comes first.
    /// A power cut may take the acknowledged appends of the last interval, always the newest ones.
    Interval {
        /// Milliseconds, 1 to 60,000.
        ms: u64,
        /// Bytes, at least 1.
        bytes: u64,
    },
    /// When a segment is sealed and when the store is closed. A power cut may take any number of
    /// the newest appends.
    None,
}

impl SyncPolicy {
    /// The `bytes` of [`SyncPolicy::Interval`] when only a time was given.
    pub const INTERVAL_BYTES: u64 = 4 * 1024 * 1024;
}

impl fmt::Display for SyncPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sync => f.write_str("sync"),
            Self::Interval { ms, .. } => write!(f, "interval:{ms}ms"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for SyncPolicy {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let refuse = || OptionsError::SyncPolicy(text.chars().take(80).collect());
        match text {
            "sync" => return Ok(Self::Sync),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let ms = text.strip_prefix("interval:").ok_or_else(refuse)?;
        let ms: u64 = ms.strip_suffix("ms").unwrap_or(ms).parse().map_err(|_| refuse())?;
        if !(1..=SYNC_INTERVAL_MS_MAX).contains(&ms) {
            return Err(refuse());
        }
        Ok(Self::Interval { ms, bytes: Self::INTERVAL_BYTES })
    }
}

/// How files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MediaChoice {
    /// Memory-mapped on ext4, xfs and tmpfs, positioned elsewhere.
    #[default]
    Auto,
    /// Through a shared map. On a copy-on-write filesystem a full disk then kills the process.
    Mapped,
    /// With `pwrite`.
    Positioned,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::OpenError;

    #[test]
    fn policies_are_read_and_written() {
        for text in ["sync", "none", "interval:50ms"] {
            assert_eq!(text.parse::<SyncPolicy>().unwrap().to_string(), text);
        }
        for bad in ["", "Sync", "interval", "interval:", "interval:0", "interval:-1ms"] {
            assert!(bad.parse::<SyncPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        let with = |bytes| StoreOptions { segment_bytes: bytes, ..StoreOptions::default() };
        for good in [SEGMENT_BYTES_MIN, 1 << 20, SEGMENT_BYTES_MAX] {
            assert!(with(good).check().is_ok());
        }
        for bad in [0, SEGMENT_BYTES_MIN - 1, SEGMENT_BYTES_MIN + 8, SEGMENT_BYTES_MAX * 2] {
            assert!(with(bad).check().is_err());
        }
    }

    #[test]
    fn what_text_cannot_say_cannot_be_built_either() {
        let dir = tempfile::tempdir().unwrap();
        let open = |options: StoreOptions| match crate::Store::open(dir.path(), options) {
            Err(crate::OpenError::Options(error)) => Err(error),
            Err(error) => panic!("{error}"),
            Ok(_) => Ok(()),
        };
        let every = |ms, bytes| {
            let sync = SyncPolicy::Interval { ms, bytes };
            open(StoreOptions { sync, ..StoreOptions::default() })
        };
        for (ms, bytes) in [(0, 1), (SYNC_INTERVAL_MS_MAX + 1, 1), (u64::MAX, 1), (1, 0)] {
            assert_eq!(every(ms, bytes), Err(OptionsError::SyncInterval { ms, bytes }));
        }
        assert_eq!((every(1, u64::MAX), every(SYNC_INTERVAL_MS_MAX, 1)), (Ok(()), Ok(())));
        let scrub = |bytes_per_second, pause_ms| {
            let scrub = Some(ScrubOptions { bytes_per_second, pause_ms });
            open(StoreOptions { scrub, ..StoreOptions::default() })
        };
        for (bytes_per_second, pause_ms) in [(0, 1), (1, SCRUB_PAUSE_MS_MAX + 1), (1, u64::MAX)] {
            let refused = Err(OptionsError::Scrub { bytes_per_second, pause_ms });
            assert_eq!(scrub(bytes_per_second, pause_ms), refused);
        }
        assert_eq!((scrub(1, 0), scrub(u64::MAX, SCRUB_PAUSE_MS_MAX)), (Ok(()), Ok(())));
        let compaction = |dead_percent| {
            let compaction = Some(CompactOptions { dead_percent, ..CompactOptions::default() });
            open(StoreOptions { compaction, ..StoreOptions::default() })
        };
        for percent in [0, 101, u8::MAX] {
            assert_eq!(compaction(percent), Err(OptionsError::DeadPercent(percent)));
        }
        assert_eq!((compaction(1), compaction(100)), (Ok(()), Ok(())));
        let store = crate::Store::open(dir.path(), StoreOptions::default()).unwrap();
        let refused = store.compact(CompactOptions { dead_percent: 0, bytes_per_second: None });
        assert_eq!(refused, Err(OptionsError::DeadPercent(0).into()));
    }

    #[test]
    fn what_takes_back_space_does_so_from_a_share_on_and_at_a_speed() {
        let dir = crate::testing::fast_dir();
        let still = CompactOptions { bytes_per_second: Some(0), ..CompactOptions::default() };
        let no_speed = OptionsError::NoSpeed { what: "compaction" };
        let options = StoreOptions { compaction: Some(still), ..StoreOptions::default() };
        let opened = crate::Store::open(dir.path(), options);
        assert!(matches!(opened, Err(OpenError::Options(error)) if error == no_speed));
        let store = crate::Store::open(dir.path(), StoreOptions::default()).unwrap();
        assert_eq!(store.compact(still), Err(no_speed.into()));
        let collect = |collection: CollectOptions| {
            let collection = Some(collection);
            let options = StoreOptions { collection, ..StoreOptions::default() };
            options.check().unwrap_err()
        };
        let default = CollectOptions::default();
        let refused = collect(CollectOptions { dead_percent: 101, ..default });
        assert_eq!(refused, OptionsError::GcDeadPercent(101));
        let refused = collect(CollectOptions { bytes_per_second: Some(0), ..default });
        assert_eq!(refused, OptionsError::NoSpeed { what: "garbage collection" });
        for dry_run in [false, true] {
            let gc = GcOptions { dry_run, ..GcOptions::default() };
            for dead_percent in [101, u8::MAX] {
                let refused = store.gc(&GcOptions { dead_percent, ..gc });
                assert_eq!(refused, Err(OptionsError::GcDeadPercent(dead_percent).into()));
            }
            let refused = store.gc(&GcOptions { bytes_per_second: Some(0), ..gc });
            let no_speed = OptionsError::NoSpeed { what: "garbage collection" };
            assert_eq!(refused, Err(no_speed.into()));
            for dead_percent in [0, 100] {
                store.gc(&GcOptions { dead_percent, bytes_per_second: Some(1), ..gc }).unwrap();
            }
        }
    }
}
