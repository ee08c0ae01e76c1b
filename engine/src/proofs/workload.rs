//! The workload: operations on a store, and the expected content after each.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Holds, Rig, body, cursor_name};
use crate::append::Batch;
use crate::error::{AppendError, PutError};
use crate::io_error::IoError;
use crate::maintain::{CopyOptions, Progress};
use crate::media::sim::SimDisk;
use crate::options::CompactOptions;
use crate::options::GcOptions;
use crate::options::SyncPolicy;
use crate::store::{Inner, Store};
use crate::value::{
    Appended, Body, Condition, CursorChange, CursorValue, ExpectRevision, IdempotencyKey, Meta,
    NewFrame, Topic, Ttl,
};

/// Bytes of a blob that is put without a frame.
pub(super) const LONE_BLOB_LEN: usize = 700;

/// The directory of the backup, within that of the store.
pub(super) const BACKUP: &str = "backup";

/// An operation on the store; returns whether it and everything before it is durable afterwards.
type Act = Box<dyn FnOnce(&Store) -> Result<bool, AppendError>>;

/// A step: changes the model, and returns the operation on the store. It is passed its number.
type Step = fn(&mut Holds, u64) -> Act;

/// The steps, taken in turn. One line for each kind of operation of a store.
const STEPS: [Step; 18] = [
    small_frame,
    frame_with_body,
    large_frame,
    several_frames,
    frame_and_cursor,
    lone_blob,
    large_frame,
    ephemeral_frame,
    durable_frame,
    frame_on_condition,
    keyed_frame,
    frame_with_long_body,
    remove_frame,
    press,
    compact,
    collect,
    remove_frame,
    back_up,
];

fn meta(n: u64, len: usize) -> Meta {
    Meta::parse(format!("[{n},\"{}\"]", "x".repeat(len))).unwrap()
}

/// A frame of the model and of the store.
fn frame(holds: &mut Holds, n: u64, meta_len: usize, body_len: usize) -> NewFrame {
    holds.frames.push((holds.head, n));
    holds.head += 1;
    let bytes = Bytes::from(body(n, body_len));
    let body = if body_len == 0 { Body::None } else { Body::Inline(bytes) };
    let topic = Topic::parse(["a", "a.b", "c"][n as usize % 3]).unwrap();
    NewFrame { meta: meta(n, meta_len), body, ..NewFrame::new(topic) }
}

fn append(batch: Batch) -> Act {
    Box::new(|store| store.append(batch).map(|Appended { durable, .. }| durable))
}

fn small_frame(holds: &mut Holds, n: u64) -> Act {
    append(frame(holds, n, 0, 0).into())
}

fn large_frame(holds: &mut Holds, n: u64) -> Act {
    append(frame(holds, n, 14_000, 0).into())
}

fn frame_with_body(holds: &mut Holds, n: u64) -> Act {
    append(frame(holds, n, 20, 1000 + n as usize * 71 % 4000).into())
}

/// A body that gets a pack of its own.
fn frame_with_long_body(holds: &mut Holds, n: u64) -> Act {
    append(frame(holds, n, 20, 40_000).into())
}

/// Several frames and bodies, stored all or none.
fn several_frames(holds: &mut Holds, n: u64) -> Act {
    let frames = (0..5).map(|i| frame(holds, n * 1000 + i, 300, i as usize * 900)).collect();
    append(Batch { frames, ..Batch::default() })
}

fn frame_and_cursor(holds: &mut Holds, n: u64) -> Act {
    let state = body(n, [30, 6000, 0][n as usize % 3]);
    let name = cursor_name(n % 4);
    let set = CursorValue { offset: n, state: Bytes::from(state.clone()) };
    let frames = vec![frame(holds, n, 0, 0)];
    holds.cursors.insert(name.as_str().to_owned(), (n, state));
    let change = CursorChange { name, expect: ExpectRevision::Any, set: Some(set) };
    append(Batch { frames, cursors: vec![change], ..Batch::default() })
}

fn durable_frame(holds: &mut Holds, n: u64) -> Act {
    append(Batch { durable: true, ..frame(holds, n, 0, 100).into() })
}

fn frame_on_condition(holds: &mut Holds, n: u64) -> Act {
    let conditions = vec![Condition::HeadIs(holds.head)];
    append(Batch { conditions, ..frame(holds, n, 0, 0).into() })
}

/// A batch that is stored once, however often it is sent.
pub(super) fn keyed(holds: &mut Holds, n: u64) -> Batch {
    let key = IdempotencyKey::parse(&format!("key {n}")).unwrap();
    Batch { key: Some(key), ..frame(holds, n, 0, 0).into() }
}

fn keyed_frame(holds: &mut Holds, n: u64) -> Act {
    holds.keyed = Some((n, holds.head));
    append(keyed(holds, n))
}

fn ephemeral_frame(_: &mut Holds, n: u64) -> Act {
    let topic = Topic::parse("a").unwrap();
    let new = NewFrame { ttl: Ttl::Ephemeral, meta: meta(n, 0), ..NewFrame::new(topic) };
    append(new.into())
}

/// The error of a batch that says the same as this one.
fn told(error: PutError) -> AppendError {
    match error {
        PutError::Indeterminate(why) => AppendError::Indeterminate(why),
        PutError::Poisoned(why) => AppendError::Poisoned(why),
        PutError::StorageFull(shortage) => AppendError::StorageFull(shortage),
        PutError::Refused(why) => AppendError::BlobRefused(why),
        error => panic!("{error}"),
    }
}

fn lone_blob(holds: &mut Holds, n: u64) -> Act {
    holds.blobs.push(n);
    let bytes = body(n, LONE_BLOB_LEN);
    Box::new(move |store| {
        store.blob_put(&bytes).map_err(told)?;
        // Under `sync` it is durable, and so is everything before it.
        Ok(store.info().sync == SyncPolicy::Sync)
    })
}

/// Removes a frame in the middle.
fn remove_frame(holds: &mut Holds, _: u64) -> Act {
    let (offset, _) = holds.frames.remove(holds.frames.len() / 3);
    holds.keyed = holds.keyed.filter(|(_, keyed)| *keyed != offset);
    Box::new(move |store| {
        let frame = store.get_at(offset).unwrap().expect("a frame of the model");
        let batch = Batch { removes: vec![frame.id()], ..Batch::default() };
        store.append(batch).map(|Appended { durable, .. }| durable)
    })
}

/// Compacts away removed frames. The next compaction does what an error leaves undone.
fn compact(_: &mut Holds, _: u64) -> Act {
    let everything = CompactOptions { dead_percent: 1, bytes_per_second: None };
    Box::new(move |store| match store.compact(everything) {
        Ok(_) => Ok(false),
        Err(error) => Err(AppendError::Indeterminate(IoError::other(error))),
    })
}

/// Seals packs as written and compresses them afterwards. The store later does automatically what
/// an error leaves undone.
fn press(_: &mut Holds, _: u64) -> Act {
    Box::new(move |store| {
        store.inner.begin_changing().map_err(AppendError::from)?;
        match store.inner.blobs.press_all() {
            Ok(()) => Ok(false),
            Err(error) => Err(AppendError::Indeterminate(IoError::other(error))),
        }
    })
}

/// Collects blobs that nothing names. The next collection does what an error leaves undone.
fn collect(holds: &mut Holds, _: u64) -> Act {
    holds.blobs.clear();
    let everything = GcOptions { grace: Duration::ZERO, dead_percent: 0, ..GcOptions::default() };
    Box::new(move |store| match store.gc(&everything) {
        Ok(_) => Ok(false),
        Err(error) => Err(AppendError::Indeterminate(IoError::other(error))),
    })
}

/// Makes a backup of the store, or adds to the existing one.
fn back_up(holds: &mut Holds, n: u64) -> Act {
    holds.backup = n as usize + 1;
    Box::new(|store| {
        let (dir, files) = (backup_dir(&store.inner.env.dir), &store.inner.env.files);
        let go_on = &mut |_: &Progress<'_>| ControlFlow::Continue(());
        match store.inner.backup_on(&dir, files, CopyOptions::copies(), go_on) {
            // It holds what is durable, and begins by making everything durable.
            Ok(_) => Ok(true),
            Err(error) => Err(AppendError::Indeterminate(IoError::other(error))),
        }
    })
}

/// The place of a store's backup, on the same disk.
pub(super) fn backup_dir(home: &Path) -> PathBuf {
    home.join(BACKUP)
}

/// The blobs without a frame that must exist: a collection that was attempted may have completed.
pub(super) fn wanted_blobs(steps: &[Holds], (acknowledged, tried): (usize, usize)) -> Vec<u64> {
    let stays = |n: &&u64| steps[tried].blobs.contains(n);
    steps[acknowledged].blobs.iter().filter(stays).copied().collect()
}

/// The progress of a workload, read by threads that examine the disk meanwhile.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// Steps whose effects are durable, according to the store.
    pub(super) acknowledged: AtomicUsize,
    /// Steps that were started.
    pub(super) tried: AtomicUsize,
    /// The step after which the newest complete backup was made; 0 when there is none.
    pub(super) backed_up: AtomicUsize,
    /// The content of the store after each number of steps.
    pub(super) steps: Mutex<Arc<Vec<Holds>>>,
    /// The store in use.
    pub(super) store: Mutex<Option<Weak<Inner>>>,
    /// The epoch it wrote in.
    pub(super) epoch: AtomicU64,
}

impl Life {
    pub(super) fn new() -> Arc<Self> {
        let progress = Self::default();
        *progress.steps.lock() = Arc::new(vec![Holds::default()]);
        Arc::new(progress)
    }

    pub(super) fn steps(&self) -> Arc<Vec<Holds>> {
        Arc::clone(&self.steps.lock())
    }

    pub(super) fn bounds(&self) -> (usize, usize) {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        (acknowledged, self.tried.load(Ordering::SeqCst))
    }

    /// The head that readers of the store see now.
    pub(super) fn visible_head(&self) -> Option<u64> {
        let inner = self.store.lock().as_ref().and_then(Weak::upgrade)?;
        Some(inner.log.head())
    }

    pub(super) fn uses(&self, store: &Store) {
        *self.store.lock() = Some(Arc::downgrade(&store.inner));
    }

    /// Takes the next step. If the store reports that nothing was done, this returns that error,
    /// and the step does not count.
    pub(super) fn step(&self, store: &Store) -> Result<(), AppendError> {
        let number = self.tried.load(Ordering::SeqCst);
        self.take(store, STEPS[number % STEPS.len()])
    }

    pub(super) fn take(&self, store: &Store, step: Step) -> Result<(), AppendError> {
        let number = self.tried.load(Ordering::SeqCst);
        let mut holds = self.steps()[number].clone();
        let act = step(&mut holds, number as u64);
        {
            let mut steps = self.steps.lock();
            let steps = Arc::make_mut(&mut *steps);
            steps.truncate(number + 1);
            steps.push(holds);
        }
        self.tried.store(number + 1, Ordering::SeqCst);
        match act(store) {
            Ok(durable) => {
                self.epoch.store(store.inner.epoch, Ordering::SeqCst);
                if durable {
                    self.acknowledged.store(number + 1, Ordering::SeqCst);
                }
                if self.steps()[number + 1].backup == number + 1 {
                    self.backed_up.store(number + 1, Ordering::SeqCst);
                }
                Ok(())
            }
            Err(error) => {
                if !matches!(error, AppendError::Indeterminate(_)) {
                    self.tried.store(number, Ordering::SeqCst);
                }
                Err(error)
            }
        }
    }

    /// After a fault: the store was found at step `at`, and the following steps continue from
    /// there. Of the blobs without a frame, those that were acknowledged and not collected exist.
    pub(super) fn go_on_from(&self, steps: &[Holds], at: usize, bounds: (usize, usize)) {
        let wanted = wanted_blobs(steps, bounds);
        let mut steps = steps[..=at].to_vec();
        steps[at].blobs = wanted;
        *self.steps.lock() = Arc::new(steps);
        self.tried.store(at, Ordering::SeqCst);
        self.acknowledged.store(bounds.0, Ordering::SeqCst);
    }

    pub(super) fn durable_step(&self, store: &Store) -> Result<(), AppendError> {
        self.take(store, durable_frame)
    }

    /// A whole run: steps, a close in the middle, and one at the end. Ends at an error that affects
    /// more than one step, or when the store accepts no more; `failed` is called with the others.
    pub(super) fn live(
        &self,
        rig: &Rig,
        disk: &SimDisk,
        steps: usize,
        mut failed: impl FnMut(AppendError),
    ) -> Result<(), Option<Store>> {
        for half in [steps / 2, steps - steps / 2] {
            let store = rig.open(disk).map_err(|_| None)?;
            self.uses(&store);
            let mut poisoned = false;
            for _ in 0..half {
                match self.step(&store) {
                    Ok(()) => assert!(!poisoned, "an acknowledgement after a failure"),
                    Err(error) => {
                        poisoned |= store.inner.is_poisoned();
                        failed(error);
                    }
                }
            }
            let (_, tried) = self.bounds();
            if store.close().is_err() {
                return Err(Some(store));
            }
            self.acknowledged.store(tried, Ordering::SeqCst);
        }
        Ok(())
    }
}
