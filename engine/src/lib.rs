//! The store of xs: an append-only log of frames in memory-mapped segment files and a
//! content-addressed pack of blobs beside it. Synchronous; knows no network and no JavaScript.
//!
//! A [`Store`] is shared by any number of threads of one process. What [`Store::append`] answers is
//! durable under the default [`SyncPolicy`]; a [`Reader`] sees the log as it was when it began, and
//! a [`Follower`] goes on with what is appended later, without a gap or a double.
//!
//! ```
//! use std::time::Duration;
//!
//! use xs_engine::{Body, Live, Meta, NewFrame, ReadOptions, Store, StoreOptions, Topic};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().join("store");
//! let store = Store::open(&dir, StoreOptions::default())?;
//!
//! let topic = Topic::parse("door.opened")?;
//! let frame = NewFrame {
//!     meta: Meta::parse(r#"{"door": 3}"#)?,
//!     body: Body::Inline("a photo".into()),
//!     ..NewFrame::new(topic.clone())
//! };
//! let appended = store.append(frame.into())?;
//! assert_eq!(appended.frames[0].offset, Some(0));
//!
//! for frame in store.read(&ReadOptions::default())? {
//!     let frame = frame?;
//!     assert_eq!((frame.topic(), frame.meta()), ("door.opened", &br#"{"door": 3}"#[..]));
//!     assert_eq!(store.body(&frame, 1024)?.as_deref(), Some(&b"a photo"[..]));
//! }
//!
//! let mut follower = store.follow(&ReadOptions { follow: true, ..ReadOptions::default() })?;
//! assert!(matches!(follower.next()?, Some(Live::Frame(_))));
//! assert!(matches!(follower.next()?, Some(Live::CaughtUp { head: 1 })));
//! store.append(NewFrame::new(topic).into())?;
//! while follower.wait(Duration::from_secs(10)) {
//!     if let Some(Live::Frame(frame)) = follower.next()? {
//!         assert_eq!(frame.offset(), Some(1));
//!         break;
//!     }
//! }
//! store.close()?;
//! # Ok(())
//! # }
//! ```

mod append;
mod blob;
mod clock;
mod commit;
mod compact;
mod cursors;
mod entropy;
mod env;
mod error;
pub mod format;
mod gc;
mod holds;
mod ids;
mod index;
mod journal;
mod keys;
pub mod limits;
mod log;
mod maintain;
mod manifest;
mod media;
mod names;
mod options;
mod planted;
#[cfg(test)]
mod proofs;
mod read;
mod recovery;
mod remove;
mod store;
mod store_blobs;
mod sys;
mod tail;
#[cfg(test)]
mod testing;
mod upkeep;
mod value;

pub use append::{Appended, Batch, Removal, Stamp};
pub use blob::BlobReader;
pub use clock::{Clock, SystemClock};
pub use commit::{CommitTimes, Histogram, Ticket};
pub use compact::{CompactOptions, CompactReport};
pub use cursors::CursorSummary;
pub use entropy::{Entropy, SystemEntropy};
pub use error::{
    AppendError, CompactError, Corruption, OpenError, ReadError, ReadOnlyReason, Shortage,
    StoreError,
};
pub use format::record::RecordError;
pub use gc::{GcError, GcOptions, GcReport};
pub use maintain::{
    CopyOptions, CopyReport, CountBytes, FileStats, Finding, FrameStats, MaintainError, Problem,
    Progress, RepairReport, ScrubStats, Severity, StoreStats, UpgradeReport, VerifyReport, repair,
    restore, upgrade, verify,
};
pub use options::{
    CompressOptions, JournalOptions, MediaChoice, OptionsError, ScrubOptions, StoreOptions,
    SyncPolicy,
};
pub use read::{Follower, Live, Reader, ResumePoint, TopicStats};
pub use recovery::{Cut, RecoveryReport};
pub use store::{Health, Store, StoreInfo};
pub use store_blobs::BlobWriter;
pub use sys::name_faults;
pub use tail::PublishHook;
pub use value::{
    BlobHash, Body, Bound, Condition, Cursor, CursorChange, CursorName, ExpectRevision, Frame,
    FrameId, FrameRef, IdempotencyKey, Import, Meta, NewFrame, Origin, ReadOptions, Start, Topic,
    TopicPattern, TopicPatterns, Ttl, Unmet, ValueError,
};
