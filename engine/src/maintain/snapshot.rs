//! A snapshot of a store: its manifest as if it had just been closed. Copying the files it names,
//! up to the lengths it names, gives a store that was closed cleanly.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::MaintainError;
use super::read_only::aside;
use crate::clock::{Clock as _, SystemClock};
use crate::error::Corruption;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, Magic};
use crate::format::super_file::{FileEntry, FileKey, FileKind, FileState, SuperState};
use crate::log::SegmentKey;
use crate::manifest::Manifest;
use crate::media::{Files, Media};
use crate::recovery::scan::scan;
use crate::store::Inner;

/// Attempts to get the manifest and the open files consistent.
const ATTEMPTS: usize = 64;

/// A snapshot of a store.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// The manifest as after a clean close; the CRC of unmarked files is not known.
    pub(super) state: SuperState,
    /// Offset of the next frame.
    pub(super) head: u64,
    /// Files that still have a temporary name, mapped to it.
    aside: HashMap<PathBuf, PathBuf>,
    /// It names a file that is missing or wrong.
    incomplete: bool,
}

impl Snapshot {
    /// A snapshot of an open store, all of it durable.
    pub(super) fn of_durable(inner: &Inner) -> Result<Self, MaintainError> {
        let (snapshot, media) = Self::of_open(inner)?;
        if let Some(reason) = inner.read_only.clone().filter(|_| snapshot.incomplete) {
            return Err(MaintainError::ReadOnly(reason));
        }
        if inner.read_only.is_none()
            && let Err(error) = inner.sync_files(&media.iter().collect::<Vec<_>>())
        {
            return Err(MaintainError::Poisoned(inner.poison(&error)));
        }
        Ok(snapshot)
    }

    /// A snapshot of an open store as readers see it.
    pub(super) fn of_open(inner: &Inner) -> Result<(Self, Vec<Arc<dyn Media>>), MaintainError> {
        for _ in 0..ATTEMPTS {
            if inner.closed.load(Ordering::Acquire) {
                return Err(MaintainError::Closed);
            }
            if let Some(why) = inner.failure.get() {
                return Err(MaintainError::Poisoned(why.clone()));
            }
            let (mut snapshot, lengths, media, deferred) = {
                let writer = inner.writer.lock();
                if inner.read_only.is_none() {
                    // So that only one segment is written to. If sealing fails, the segment is
                    // taken as it is.
                    let _ = inner.sealing.seal_now(inner);
                }
                // Under the writer's lock, everything written is published.
                let state = SuperState::clone(&inner.env.manifest.state());
                let view = inner.log.view();
                let waiting = inner.sealing.waiting();
                let media: Vec<_> =
                    waiting.into_iter().chain(writer.appender().media().cloned()).collect();
                let lengths: Vec<_> =
                    (view.segments.iter()).map(|s| (s.file_key(), s.published_len())).collect();
                let aside = HashMap::new();
                let snapshot = Self { state, head: view.head, aside, incomplete: false };
                (snapshot, lengths, media, writer.is_deferred())
            };
            // After the frames: every blob they name was published before them.
            let packs = inner.blobs.open_packs();
            let length = |file: &FileEntry| {
                let known = match file.kind {
                    FileKind::Segment => &lengths,
                    FileKind::Pack => &packs,
                };
                known.iter().find(|(key, _)| *key == file.key()).map(|(_, length)| *length)
            };
            if deferred {
                // The deferred recovery will drop the segments that readers do not see.
                let seen = |file: &FileEntry| {
                    (file.kind, file.state) != (FileKind::Segment, FileState::Unmarked)
                        || length(file).is_some()
                };
                snapshot.state.files.retain(seen);
            }
            // A read-only store seals no file: files that are not open are missing or wrong.
            if !snapshot.close(inner.env.clock.now_ms(), length) && inner.read_only.is_none() {
                // A file was sealed between the two reads.
                std::thread::yield_now();
                continue;
            }
            return Ok((snapshot, media));
        }
        Err(MaintainError::Changing)
    }

    /// A snapshot of a store on disk that is not open and was closed cleanly.
    pub(super) fn of_closed(dir: &Path, files: &Arc<dyn Files>) -> Result<Self, MaintainError> {
        let manifest = Manifest::load(dir, Arc::clone(files))?;
        let manifest = manifest.ok_or_else(|| MaintainError::NoStore { dir: dir.to_owned() })?;
        let state = SuperState::clone(&manifest.state());
        if !state.clean {
            return Err(MaintainError::NotClosed { dir: dir.to_owned() });
        }
        let aside = aside(&**files, dir, &state);
        let mut snapshot = Self { state, head: 0, aside, incomplete: false };
        snapshot.close(SystemClock.now_ms(), |file| Some(file.length));
        snapshot.head = snapshot.end(dir, files)?;
        Ok(snapshot)
    }

    /// The actual path of a file, in the directory of the store.
    pub(super) fn path_of(&self, dir: &Path, file: &FileEntry) -> PathBuf {
        let path = file.path_in(dir);
        self.aside.get(&path).cloned().unwrap_or(path)
    }

    /// Offset of the next frame, from the last segment.
    fn end(&self, dir: &Path, files: &Arc<dyn Files>) -> Result<u64, MaintainError> {
        let segments = self.state.files.iter().filter(|file| file.kind == FileKind::Segment);
        let Some(last) = segments.max_by_key(|file| file.base) else { return Ok(0) };
        if last.state == FileState::Sealed {
            return Ok(last.end());
        }
        let path = self.path_of(dir, last);
        let failed = |error| MaintainError::io("read", &path, error);
        let media = files.open_scan(&path).map_err(failed)?;
        let head = media.view(0..media.len().min(FILE_HEADER_LEN as u64)).map_err(failed)?;
        let corrupt = |error| MaintainError::Corrupt(Corruption::new(&path, 0, error));
        let FileHeader { base, generation, file: uuid, salt, .. } =
            FileHeader::decode(&head, Magic::Segment).map_err(corrupt)?;
        let key = SegmentKey { base, generation, uuid, salt };
        let scanned = scan(&media, &key, last.length.min(media.len())).map_err(failed)?;
        Ok(scanned.next_offset)
    }

    /// Sets the lengths of unmarked files and drops empty ones. Returns false when a length is
    /// unknown: such a file stays unmarked.
    fn close(&mut self, now_ms: u64, length: impl Fn(&FileEntry) -> Option<u64>) -> bool {
        let mut unknown = Vec::new();
        for file in &mut self.state.files {
            if file.state == FileState::Unmarked {
                match length(file) {
                    Some(length) => file.length = length,
                    None => unknown.push(file.key()),
                }
            }
        }
        self.incomplete = !unknown.is_empty();
        (self.state.clean, self.state.journal) = (true, 0);
        let segments: Vec<FileKey> = (self.state.files.iter())
            .filter(|file| file.kind == FileKind::Segment)
            .map(FileEntry::key)
            .collect();
        self.state.files.retain_mut(|file| match (file.kind, file.state) {
            _ if unknown.contains(&file.key()) => true,
            (FileKind::Pack, FileState::Unmarked) => {
                // A pack is valid at any length, so it counts as sealed.
                (file.state, file.newest_ms) = (FileState::Sealed, now_ms);
                file.length > FILE_HEADER_LEN as u64
            }
            (FileKind::Segment, FileState::Unmarked) => {
                let behind = segments.iter().filter(|key| **key > file.key());
                match behind.min() {
                    // A segment without frames, whose tables the next one restates.
                    Some(next) if next.base == file.base => false,
                    Some(next) => {
                        file.state = FileState::Sealed;
                        file.count = next.base - file.base;
                        true
                    }
                    None => true,
                }
            }
            (_, FileState::Dropped) => false,
            (_, FileState::Sealed) => true,
        });
        !self.incomplete
    }
}
