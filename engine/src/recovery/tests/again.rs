//! Steps that could not be done at the open, done later and more than once.

use std::sync::Arc;

use rustix::io::Errno;
use tempfile::TempDir;

use super::super::open_with;
use super::range;
use crate::format::super_file::FileEntry;
use crate::media::Disk;
use crate::media::faulty::{Faults, FaultyFiles};
use crate::options::{MediaChoice, SyncPolicy};
use crate::store::Store;
use crate::testing::{crash, fast_dir, frame, numbers, open, options};

#[test]
fn a_plan_that_was_carried_out_may_be_carried_out_again() {
    let image = image_of_two_unmarked();
    let faults = Faults::none();
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    let disk = Disk::new(MediaChoice::Auto, image.path());
    let files = Arc::new(FaultyFiles::new(disk, &faults));
    let inner = open_with(image.path(), options(SyncPolicy::None), files).unwrap();
    let store = Store { inner: Arc::new(inner) };
    let (inner, expected) = (&store.inner, numbers(&store));
    faults.clear();
    {
        let writer = inner.writer.lock();
        let plan = writer.deferred.as_ref().expect("there was no room to carry it out");
        // The state after an error that follows the change of the manifest.
        plan.carry_out(&inner.env, &inner.blobs, &inner.open_files).unwrap();
    }
    store.append(frame("a", expected.len() as u64).into()).unwrap();
    let lines = inner.env.manifest.state().files.clone();
    let mut keys: Vec<_> = lines.iter().map(FileEntry::key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), lines.len(), "{lines:?}");
    drop(store);
    assert_eq!(numbers(&open(image.path(), SyncPolicy::None)), range(expected.len() as u64 + 1));
}

/// The crash image right after a roll: neither segment is marked.
fn image_of_two_unmarked() -> TempDir {
    let dir = fast_dir();
    let disk = Arc::new(Disk::new(MediaChoice::Auto, dir.path()));
    // Without the thread that would seal it.
    let inner = open_with(dir.path(), options(SyncPolicy::None), disk).unwrap();
    let store = Store { inner: Arc::new(inner) };
    let mut n = 0;
    while store.inner.sealing.waiting().is_none() {
        store.append(frame("a", n).into()).unwrap();
        n += 1;
    }
    crash(dir.path())
}
