//! Long work stops within a file: a body of gigabytes is one file, and a stop must not wait for it.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::{check, go_on, none, tell, with_body};
use crate::error::ReadError;
use crate::maintain::{CopyOptions, MaintainError, Progress, repair, restore, verify};
use crate::store::Store;
use crate::testing::{fast_dir, files_in, frame, noise};
use crate::value::BlobHash;

/// Much longer than what is read between two questions.
const LONG: usize = 24 << 20;
/// How often at least somebody is asked who reads so much.
const QUESTIONS: usize = 4;

/// A closed store whose packs hold a long body as it came and one that compresses well.
fn long_store(dir: &Path) -> BlobHash {
    let store = Store::open(dir, none()).unwrap();
    let bytes = noise(5, LONG);
    store.append(with_body(frame("a", 1), b"short").into()).unwrap();
    let hash = store.blob_put(&bytes).unwrap();
    store.blob_put(&vec![7; LONG]).unwrap();
    store.close().unwrap();
    hash
}

/// Breaks at a question within a file, counted from its first one; notes the file.
struct Within {
    number: usize,
    asked: usize,
    path: PathBuf,
    broken: bool,
}

impl Within {
    fn at(number: usize) -> Self {
        Self { number, asked: 0, path: PathBuf::new(), broken: false }
    }

    fn ask(&mut self, progress: &Progress<'_>) -> ControlFlow<()> {
        assert!(!self.broken, "asked again after it was to stop");
        if self.path != progress.path {
            (self.path, self.asked) = (progress.path.to_owned(), 0);
        }
        self.asked += 1;
        self.broken =
            self.asked == self.number && self.path.extension().is_some_and(|e| e == "pack");
        if self.broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn a_backup_stops_within_a_file_and_is_taken_up() {
    let (dir, dest) = (fast_dir(), fast_dir());
    let hash = long_store(dir.path());
    let store = Store::open(dir.path(), none()).unwrap();
    let copies = CopyOptions { check_blobs: true, ..CopyOptions::copies() };
    // The first ones while it is copied, the others while it is checked.
    let mut stopped = 0;
    for number in 2.. {
        let mut within = Within::at(number);
        let ended = store.backup(dest.path(), copies, &mut |progress| within.ask(progress));
        if ended.is_ok() {
            break;
        }
        assert!(matches!(ended, Err(MaintainError::Stopped)), "{ended:?}");
        let name = within.path.file_name().unwrap().to_owned();
        let place = dest.path().join("blobs").join(name);
        assert!(!place.exists() && place.with_added_extension("tmp").exists());
        stopped += 1;
        if stopped > 3 * QUESTIONS {
            store.backup(dest.path(), copies, &mut go_on).unwrap();
            break;
        }
    }
    assert!(stopped > QUESTIONS, "{stopped}");
    assert!(files_in(&dest.path().join("blobs"), "tmp").is_empty());
    assert!(check(dest.path()).is_clean());
    let backup = Store::open(dest.path(), none()).unwrap();
    assert!(tell(&backup) == tell(&store));
    assert_eq!(backup.blob(&hash).unwrap().unwrap().bytes(u64::MAX).unwrap().len(), LONG);
}

#[test]
fn a_restore_that_stops_within_a_file_leaves_no_store() {
    let (dir, dest) = (fast_dir(), fast_dir());
    long_store(dir.path());
    let copies = CopyOptions::copies();
    let mut within = Within::at(QUESTIONS);
    let stopped = restore(dir.path(), dest.path(), copies, &mut |progress| within.ask(progress));
    assert!(matches!(stopped, Err(MaintainError::Stopped)), "{stopped:?}");
    assert!(!crate::names::is_store(dest.path()));
    restore(dir.path(), dest.path(), copies, &mut go_on).unwrap();
    assert!(check(dest.path()).is_clean());
}

#[test]
fn a_check_stops_within_a_blob() {
    let dir = fast_dir();
    long_store(dir.path());
    let mut seen = Vec::new();
    let report = verify(dir.path(), &mut |progress| {
        seen.push((progress.path.to_owned(), progress.bytes));
        ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert!(report.is_clean());
    // What was asked about in between counts no byte twice.
    assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    let files = [dir.path().join("log"), dir.path().join("blobs")];
    let bytes = files.iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    let bytes: u64 = bytes.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(report.bytes <= bytes + 64 * 1024, "{} of {bytes}", report.bytes);
    for number in [2, QUESTIONS] {
        let mut within = Within::at(number);
        let stopped = verify(dir.path(), &mut |progress| within.ask(progress));
        assert!(matches!(stopped, Err(MaintainError::Stopped)), "{stopped:?}");
    }
}

/// While it checks the old body, copies it, and reads the new one back.
#[test]
fn a_repair_stops_within_a_blob_and_leaves_nothing() {
    let (dir, into) = (fast_dir(), fast_dir());
    let hash = long_store(dir.path());
    let mut stopped = 0;
    for number in 1.. {
        let mut within = Within::at(number);
        let ended = repair(dir.path(), into.path(), &mut |progress| within.ask(progress));
        if ended.is_ok() {
            break;
        }
        assert!(matches!(ended, Err(MaintainError::Stopped)), "{ended:?}");
        for sub in ["log", "blobs"] {
            assert_eq!(fs::read_dir(into.path().join(sub)).unwrap().count(), 0, "{number}");
        }
        stopped += 1;
    }
    assert!(stopped > 3 * QUESTIONS, "{stopped}");
    let repaired = Store::open(into.path(), none()).unwrap();
    let read = repaired.blob(&hash).unwrap().unwrap().bytes(u64::MAX);
    assert!(matches!(read.map(|bytes| bytes.len()), Ok::<_, ReadError>(LONG)));
}
