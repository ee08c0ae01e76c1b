//! The store of xs: an append-only log of frames in memory-mapped segment files and a
//! content-addressed pack of blobs next to it. Synchronous; knows no network and no JavaScript.
//!
//! ```
//! use xs_engine::{
//!     Batch, Body, FollowerEvent, Meta, NewFrame, ReadOptions, Store, StoreOptions, Topic,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let store = Store::open(dir.path(), StoreOptions::default())?;
//!
//! // A batch is stored whole or not at all; when this returns, a power cut cannot take it.
//! let mut note = NewFrame::new(Topic::parse("notes")?);
//! note.meta = Meta::parse(r#"{"urgent":true}"#)?;
//! note.body = Body::Inline("buy milk".into());
//! let stored = store.append(Batch::from(note))?;
//! assert_eq!(stored.frames[0].offset, Some(0));
//!
//! // What is stored now.
//! for frame in store.read(&ReadOptions::default())? {
//!     let frame = frame?;
//!     assert_eq!((frame.topic(), frame.meta()), ("notes", &br#"{"urgent":true}"#[..]));
//!     assert_eq!(store.body(&frame, 1024)?.as_deref(), Some(&b"buy milk"[..]));
//! }
//!
//! // The same, and then what is appended: here one frame more.
//! let follow = ReadOptions { follow: true, limit: Some(2), ..ReadOptions::default() };
//! let mut follower = store.follow(&follow)?;
//! store.append(NewFrame::new(Topic::parse("notes.done")?).into())?;
//! let mut topics = Vec::new();
//! while let Some(event) = follower.recv()? {
//!     match event {
//!         FollowerEvent::Frame(frame) => topics.push(frame.topic().to_owned()),
//!         // All that was stored when it began has been handed out.
//!         FollowerEvent::CaughtUp { head } => assert_eq!(head, 1),
//!         // Ephemeral frames came faster than they were taken.
//!         FollowerEvent::Lost { .. } => {}
//!     }
//! }
//! assert_eq!(topics, ["notes", "notes.done"]);
//! store.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # The types to know
//!
//! - [`Store`]: one open directory. Threads share it (`&Store`, `Arc<Store>`); no other process can
//!   open it meanwhile.
//! - [`NewFrame`] becomes a [`Frame`]: topic, [`Meta`] (JSON), [`Body`], [`Ttl`]; then an offset,
//!   which counts from 0, and a [`FrameId`], which orders by time. A body is a blob of the store,
//!   identified by its [`BlobHash`].
//! - [`Batch`]: frames, removals, moves of [`Cursor`]s and [`Condition`]s that are stored together
//!   or not at all. [`Store::append`] waits for it; [`Store::submit`] returns an [`AppendHandle`],
//!   which can be waited for later.
//! - [`ReadOptions`]: what [`Store::read`] (a [`Reader`]) and [`Store::follow`] (a [`Follower`])
//!   select. A [`ResumePoint`] continues later, and detects that frames seen before are lost.
//!
//! # Durability
//!
//! - A killed process loses nothing that was acknowledged, whatever the [`SyncPolicy`].
//! - A power cut loses nothing either under [`SyncPolicy::Sync`], the default; under
//!   [`SyncPolicy::Interval`] at most the last interval, under [`SyncPolicy::None`] more.
//! - [`Batch::durable`] asks for a sync whatever the policy; [`Appended::durable`] says whether a
//!   power cut can still take the batch.
//!
//! Every byte on disk is in `docs/format.md`, and in code in [`mod@format`]; what happens after a
//! crash or damage is in `docs/recovery.md`. All lengths and counts have a maximum in [`limits`].
//!
//! # Features
//!
//! Without the feature `store`, which is on by default, this is the part that clients of a store
//! share with it: the values, their limits, and the layout of a frame's record. That part depends
//! on no C code and opens no file.

#![deny(unsafe_code)]
#![cfg_attr(
    not(feature = "store"),
    expect(dead_code, reason = "values and layouts have parts that only the store uses")
)]

#[cfg(feature = "store")]
mod append;
#[cfg(feature = "store")]
mod blob;
#[cfg(feature = "store")]
mod clock;
#[cfg(feature = "store")]
mod commit;
#[cfg(feature = "store")]
mod compact;
#[cfg(feature = "store")]
mod cursors;
#[cfg(feature = "store")]
mod entropy;
#[cfg(feature = "store")]
mod env;
#[cfg(feature = "store")]
mod error;
pub mod format;
#[cfg(feature = "store")]
mod gc;
#[cfg(feature = "store")]
mod holds;
#[cfg(feature = "store")]
mod ids;
#[cfg(feature = "store")]
mod index;
#[cfg(feature = "store")]
mod io_error;
#[cfg(feature = "store")]
mod journal;
#[cfg(feature = "store")]
mod keys;
pub mod limits;
#[cfg(feature = "store")]
mod log;
#[cfg(feature = "store")]
mod maintain;
#[cfg(feature = "store")]
mod manifest;
#[cfg(feature = "store")]
mod media;
#[cfg(feature = "store")]
pub mod names;
#[cfg(feature = "store")]
mod options;
mod planted;
#[cfg(feature = "store")]
#[cfg(test)]
mod proofs;
#[cfg(feature = "store")]
mod read;
#[cfg(feature = "store")]
mod recovery;
#[cfg(feature = "store")]
mod remove;
#[cfg(feature = "store")]
mod space;
#[cfg(feature = "store")]
mod store;
#[cfg(feature = "store")]
mod store_blobs;
#[cfg(feature = "store")]
#[expect(unsafe_code, reason = "maps, system calls and signals need it; nothing else does")]
mod sys;
#[cfg(feature = "store")]
mod tail;
#[cfg(feature = "store")]
#[cfg(test)]
mod testing;
#[cfg(feature = "store")]
mod upkeep;
mod value;
#[cfg(feature = "store")]
mod worker;

#[cfg(feature = "store")]
pub use append::Batch;
#[cfg(feature = "store")]
pub use blob::BlobReader;
#[cfg(feature = "store")]
pub use clock::{Clock, SystemClock};
#[cfg(feature = "store")]
pub use commit::{AppendHandle, CommitTimes, Histogram};
#[cfg(feature = "store")]
pub use compact::CompactReport;
#[cfg(feature = "store")]
pub use entropy::{Entropy, SystemEntropy};
#[cfg(feature = "store")]
pub use error::{
    AppendError, CloseError, CompactError, Corruption, GcError, OpenError, PutError, ReadError,
    ReadOnlyReason, RemoveNowError, Shortage,
};
pub use format::record::RecordError;
#[cfg(feature = "store")]
pub use gc::GcReport;
#[cfg(feature = "store")]
pub use io_error::IoError;
#[cfg(feature = "store")]
pub use maintain::{
    CopyOptions, CopyReport, CountBytes, FileStats, Finding, FrameStats, MaintainError, Problem,
    Progress, RepairReport, ScrubStats, Severity, StoreStats, UpgradeReport, VerifyReport, repair,
    restore, upgrade, verify,
};
#[cfg(feature = "store")]
pub use options::{
    CollectOptions, CompactOptions, CompressOptions, GcOptions, JournalOptions, MediaChoice,
    OptionsError, ScrubOptions, StoreOptions, SyncPolicy,
};
#[cfg(feature = "store")]
pub use read::{Follower, FollowerEvent, Reader};
#[cfg(feature = "store")]
pub use recovery::{Cut, RecoveryReport};
#[cfg(feature = "store")]
pub use space::SpaceStats;
#[cfg(feature = "store")]
pub use store::{Health, Store, StoreInfo};
#[cfg(feature = "store")]
pub use store_blobs::BlobWriter;
#[cfg(feature = "store")]
pub use sys::name_faults;
#[cfg(feature = "store")]
pub use tail::PublishHook;
pub use value::{
    Appended, BlobHash, Body, Bound, Condition, Cursor, CursorChange, CursorName, CursorSummary,
    CursorValue, ExpectRevision, Frame, FrameId, FrameRef, IdempotencyKey, Import, Meta, NewFrame,
    Origin, ReadOptions, Removal, ResumePoint, Stamp, Start, StoreUuid, Topic, TopicPattern,
    TopicPatterns, TopicSummary, Ttl, Unmet, ValueError,
};
