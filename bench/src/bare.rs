//! Loops without a store that measure what the machine can do, for comparison. Each does the
//! minimum work on the same bytes; they are no model for how to write a store.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::fs::FallocateFlags;
use sha2::{Digest as _, Sha256};

/// Size of the buffer that copies go to before they start again at its beginning: larger than the
/// processor caches.
const ARENA: usize = 64 * 1024 * 1024;
/// Bytes of a file that is preallocated, written and synced.
pub const PREPARED: u64 = 64 * 1024 * 1024;
const PIECE: usize = 1024 * 1024;

/// Returns the time to copy `count` chunks of `len` bytes to consecutive positions.
pub fn copy(len: usize, count: u64) -> Duration {
    // Not zeros: memory that was never written causes page faults.
    let (from, mut to) = (vec![7; len], vec![1; ARENA]);
    let begun = Instant::now();
    let mut at = 0;
    for _ in 0..count {
        if at + len > ARENA {
            at = 0;
            std::hint::black_box(&to);
        }
        to[at..at + len].copy_from_slice(std::hint::black_box(&from));
        at += len;
    }
    std::hint::black_box(&to);
    begun.elapsed()
}

/// Returns the time to compute the SHA-256 of `count` chunks of `len` bytes.
pub fn sha256(len: usize, count: u64) -> Duration {
    timed(len, count, |bytes| u32::from(Sha256::digest(bytes)[0]))
}

/// Returns the time to compute the CRC of `count` chunks of `len` bytes.
pub fn crc(len: usize, count: u64) -> Duration {
    timed(len, count, crc32fast::hash)
}

fn timed(len: usize, count: u64, sum: impl Fn(&[u8]) -> u32) -> Duration {
    let mut bytes = vec![7; len];
    let begun = Instant::now();
    for n in 0..count {
        bytes[0] = n as u8;
        std::hint::black_box(sum(std::hint::black_box(&bytes)));
    }
    begun.elapsed()
}

/// Returns the time to write this many bytes to files that are preallocated and are synced when
/// they are full.
///
/// # Errors
/// If the files cannot be written.
pub fn write_back(dir: &Path, bytes: u64) -> io::Result<Duration> {
    let piece = vec![7; PIECE];
    let begun = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let len = left.min(PREPARED);
        let file = tempfile::tempfile_in(dir)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, PREPARED)?;
        for at in (0..len).step_by(PIECE) {
            file.write_all_at(&piece[..(len - at).min(PIECE as u64) as usize], at)?;
        }
        file.sync_data()?;
        left -= len;
    }
    Ok(begun.elapsed())
}

/// A log file and a pack file whose space was written and synced before, and a thread for the
/// second sync. Where one sync is enough, the log file stands for the journal.
pub struct SyncLoop {
    log: File,
    pack: File,
    len: u64,
    at: u64,
    ask: Option<SyncSender<()>>,
    answers: Receiver<io::Result<()>>,
    helper: Option<JoinHandle<()>>,
}

impl fmt::Debug for SyncLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncLoop")
            .field("len", &self.len)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl SyncLoop {
    /// Creates files of `len` bytes.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn new(dir: &Path, len: u64) -> io::Result<Self> {
        let (log, pack) = (prepared(dir, len)?, prepared(dir, len)?);
        let (ask, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let second = pack.try_clone()?;
        let helper = std::thread::spawn(move || {
            while asked.recv().is_ok() && answer.send(second.sync_data()).is_ok() {}
        });
        Ok(Self { log, pack, len, at: 0, ask: Some(ask), answers, helper: Some(helper) })
    }

    /// Writes bytes to one file and syncs it.
    ///
    /// # Errors
    /// The error of the write or the sync.
    pub fn once(&mut self, bytes: &[u8]) -> io::Result<()> {
        let at = self.place(bytes.len());
        self.log.write_all_at(bytes, at)?;
        self.log.sync_data()
    }

    /// Writes bytes to each file and syncs both concurrently.
    ///
    /// # Errors
    /// The error of a write or a sync.
    pub fn twice(&mut self, log: &[u8], pack: &[u8]) -> io::Result<()> {
        let at = self.place(log.len().max(pack.len()));
        self.log.write_all_at(log, at)?;
        self.pack.write_all_at(pack, at)?;
        let gone = || io::Error::other("the syncing thread is gone");
        self.ask.as_ref().ok_or_else(gone)?.send(()).map_err(|_| gone())?;
        let first = self.log.sync_data();
        self.answers.recv().map_err(|_| gone())?.and(first)
    }

    /// Returns the position for the next `len` bytes: after the previous ones, or 0 when they do
    /// not fit.
    fn place(&mut self, len: usize) -> u64 {
        let at = if self.at + len as u64 > self.len { 0 } else { self.at };
        self.at = at + (len as u64).next_multiple_of(8);
        at
    }
}

impl Drop for SyncLoop {
    fn drop(&mut self) {
        drop(self.ask.take());
        // The thread returns nothing.
        let _ = self.helper.take().map(JoinHandle::join);
    }
}

fn prepared(dir: &Path, len: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(dir)?;
    let zeros = vec![0; PIECE];
    for at in (0..len).step_by(PIECE) {
        file.write_all_at(&zeros, at)?;
        file.sync_data()?;
    }
    Ok(file)
}

/// Iterates over the FRAME records of segments in memory and checks each CRC. Returns the number of
/// frames and the time, without the time to read the files.
///
/// # Errors
/// If a file cannot be read or a record is damaged.
pub fn walk(segments: &[PathBuf]) -> anyhow::Result<(u64, Duration)> {
    let (mut frames, mut time) = (0, Duration::ZERO);
    for path in segments {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let begun = Instant::now();
        frames += walk_one(&bytes).with_context(|| format!("walk {}", path.display()))?;
        time += begun.elapsed();
    }
    Ok((frames, time))
}

/// Parses the layout of docs/format.md in as few steps as possible.
fn walk_one(bytes: &[u8]) -> anyhow::Result<u64> {
    const FILE_HEADER: usize = 64;
    const BATCH_HEADER: usize = 64;
    const FRAME: u8 = 1;
    let word = |at: usize| {
        let word = bytes.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
        word.map(|bytes| u32::from_le_bytes(*bytes))
    };
    let (mut at, mut frames) = (FILE_HEADER, 0);
    while bytes.get(at..at + 4) == Some(b"XSB1") {
        let length = word(at + 8).context("a batch is cut short")? as usize;
        at += BATCH_HEADER;
        let end = at + length;
        while at < end {
            let (crc, len) = word(at).zip(word(at + 4)).context("a record is cut short")?;
            let record = bytes.get(at + 4..at + len as usize).context("a record is cut short")?;
            ensure!(crc32fast::hash(record) == crc, "a record at {at} fails its CRC");
            frames += u64::from(record.get(4) == Some(&FRAME));
            at += (len as usize).next_multiple_of(8);
        }
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use xs_engine::{Batch, Store, StoreOptions, SyncPolicy};

    use super::*;
    use crate::workload::{Frames, Shape};

    #[test]
    fn the_bare_walk_finds_every_frame_and_every_damage() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { sync: SyncPolicy::None, ..StoreOptions::default() };
        let store = Store::open(dir.path(), options).unwrap();
        for size in [1, 3, 64] {
            let frames = Frames::common(Shape::Meta).take(size);
            store.append(Batch { frames, ..Batch::default() }).unwrap();
        }
        store.close().unwrap();
        let path = dir.path().join("log").join(format!("{:020}.0.seg", 0));
        assert_eq!(walk(std::slice::from_ref(&path)).unwrap().0, 68);
        let mut bytes = std::fs::read(&path).unwrap();
        // Corrupts the meta of the first frame, after the checkpoint's batch.
        let at = bytes.windows(5).position(|meta| meta == b"{\"n\":").unwrap();
        bytes[at] ^= 1;
        assert!(walk_one(&bytes).is_err());
    }

    #[test]
    fn the_synced_loop_begins_anew_at_the_end_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut bare = SyncLoop::new(dir.path(), PIECE as u64).unwrap();
        let bytes = vec![1; PIECE - 8];
        bare.once(&bytes).unwrap();
        bare.twice(&bytes[..64], &bytes[..128]).unwrap();
        assert_eq!(bare.at, 128);
    }
}
