//! Every limit of the engine, in one place. A length from outside is compared with one of these
//! before memory is allocated for it.

/// Bytes of a topic name.
pub const TOPIC_BYTES_MAX: usize = 255;
/// Bytes of a cursor name or an idempotency key.
pub const NAME_BYTES_MAX: usize = 255;
/// Patterns in one [`TopicPatterns`](crate::TopicPatterns).
pub const PATTERNS_MAX: usize = 64;
/// Bytes of the JSON text of a frame's meta.
pub const META_BYTES_MAX: usize = 64 * 1024;
/// Nesting of a frame's meta.
pub const META_DEPTH_MAX: usize = 64;
/// Bytes of one record of the log, header included.
pub const RECORD_BYTES_MAX: usize = 128 * 1024;
/// Frames, cursor changes and removals in one batch, with its key.
pub const BATCH_RECORDS_MAX: usize = 4096;
/// Lifetime of an idempotency key in milliseconds: 24 hours.
pub const KEY_MS: u64 = 24 * 60 * 60 * 1000;
/// Valid idempotency keys at a time; the oldest are dropped first.
pub const KEYS_MAX: usize = 1_000_000;
/// Conditions of one batch.
pub const CONDITIONS_MAX: usize = 64;
/// Topics that the conditions of one batch may be compared with, when the most recent frames do not
/// decide.
pub const CONDITION_TOPICS_MAX: usize = 4096;
/// Most recent frames that the conditions of one batch are compared with, where that avoids
/// examining each topic.
pub const CONDITION_FRAMES_MAX: u64 = 1024;
/// Bytes of the records of one batch, as they are in the log.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of the inline bodies of one batch; larger bodies are put as blobs first.
pub const BATCH_BODIES_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a cursor's state.
pub const CURSOR_STATE_BYTES_MAX: usize = 1024 * 1024;
/// Maximum bytes of a cursor's state stored in its record; a longer one is stored as a blob.
pub const CURSOR_STATE_INLINE_MAX: usize = 4 * 1024;
/// Named cursors in one store.
pub const CURSORS_MAX: usize = 65_536;
/// Bytes of one blob.
pub const BLOB_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Smallest segment or pack.
pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
/// Largest segment or pack.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Smallest half of a journal.
pub const JOURNAL_HALF_BYTES_MIN: u64 = 32 * 1024;
/// Largest half of a journal.
pub const JOURNAL_HALF_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of log and packs in a group that goes through the journal; a longer one is synced in
/// place, as writing it twice would cost more than the second sync.
pub const JOURNAL_GROUP_BYTES_MAX: u64 = 256 * 1024;
/// Hops in an [`Origin`](crate::Origin) before a chain of processors is cut.
pub const HOPS_MAX: u32 = 32;
/// Ephemeral frames buffered for followers that have not taken them yet.
pub const EPHEMERAL_RING_MAX: usize = 1024;
/// Bytes of the records of buffered ephemeral frames.
pub const EPHEMERAL_RING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest interval between syncs, in milliseconds.
pub const SYNC_INTERVAL_MS_MAX: u64 = 60_000;
/// Longest pause between two background checks of a store, in milliseconds: a year.
pub const SCRUB_PAUSE_MS_MAX: u64 = 366 * 24 * 3600 * 1000;
/// Epochs the manifest remembers; the oldest are dropped first.
pub const EPOCHS_MAX: usize = 4096;
/// Files the manifest names.
pub const FILES_MAX: usize = 1024 * 1024;
/// Files that a store has mapped at a time, except those of which a reader holds bytes.
pub const MAPS_MAX: usize = 1024;
/// Sealed segments open at a time.
pub const OPEN_SEGMENTS_MAX: usize = 512;
/// Sealed segments whose `.idx` and `.top` are open at a time.
pub const OPEN_INDEXES_MAX: usize = 128;
/// Sealed segments whose `.key` is open at a time.
pub const OPEN_KEY_FILES_MAX: usize = 16;
/// Sealed packs open at a time, each with its `.pidx`.
pub const OPEN_PACKS_MAX: usize = 96;
/// Bytes of memory for the filters of sealed packs that are not open, 2 for each blob.
pub const PACK_FILTERS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Unsealed segments and packs, and files that are opened briefly.
const OPEN_OTHERS_MAX: usize = 48;
const _: () = assert!(
    OPEN_SEGMENTS_MAX
        + 2 * OPEN_INDEXES_MAX
        + OPEN_KEY_FILES_MAX
        + 2 * OPEN_PACKS_MAX
        + OPEN_OTHERS_MAX
        <= MAPS_MAX
);
/// Findings that a check of a store lists; further ones are only counted.
pub const FINDINGS_MAX: usize = 4096;
/// Batches per group.
pub const GROUP_BATCHES_MAX: usize = 4096;
