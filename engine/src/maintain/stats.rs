//! Statistics of a store. Counting frames by topic visits every topic, and listing files every
//! file, so this is for occasional use by people or a metrics scraper.

use super::scrub::ScrubStats;
use crate::commit::CommitTimes;
use crate::format::super_file::{FileEntry, FileKey, FileKind, FileState};
use crate::log::LogView;
use crate::names::{
    DEAD, KEYS, PACK, PACK_INDEX, SEGMENT, SPARSE, TABLE, TOPICS, finished, is_manifest,
};
use crate::space::SpaceStats;
use crate::store::{Inner, Store, StoreInfo};
use crate::sys;
use crate::value::TopicPatterns;

/// Files of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountBytes {
    /// How many.
    pub count: u64,
    /// Total bytes, by file length.
    pub bytes: u64,
}

/// The files of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FileStats {
    /// Copies of the manifest.
    pub manifests: CountBytes,
    /// Segments that are or may be written to. They are preallocated, so they are longer than their
    /// content.
    pub segments_active: CountBytes,
    /// Segments that never change again.
    pub segments_sealed: CountBytes,
    /// Packs that are or may be written to.
    pub packs_active: CountBytes,
    /// Packs that never change again, except for those counted in `packs_plain`.
    pub packs_sealed: CountBytes,
    /// Packs that were sealed as written and will be compressed later.
    pub packs_plain: CountBytes,
    /// Derived files, which can be rebuilt.
    pub derived: CountBytes,
    /// Files that are preallocated, temporary, or waiting to be deleted.
    pub other: CountBytes,
}

/// The frames of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FrameStats {
    /// Frames in the log, including removed ones until they are compacted away.
    pub stored: u64,
    /// Those of them that were not removed. Expired frames count until they are compacted away.
    pub live: u64,
    /// Bytes of the log that readers see.
    pub log_bytes: u64,
}

/// Statistics of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Identity, health, and what opening it found and did.
    pub info: StoreInfo,
    /// Its files.
    pub files: FileStats,
    /// Its frames.
    pub frames: FrameStats,
    /// Topics with at least one frame.
    pub topics: u64,
    /// Cursors.
    pub cursors: u64,
    /// Upper bound of the bytes that restating the cursors takes in each new segment.
    pub cursors_bytes: u64,
    /// Blobs in sealed packs, counting every copy.
    pub blobs_sealed: u64,
    /// Files mapped by this process, over all its stores.
    pub maps_open: u64,
    /// How long the stages of commits took.
    pub commit: CommitTimes,
    /// State and results of the scrub.
    pub scrub: ScrubStats,
    /// Dead space, and space that was freed.
    pub space: SpaceStats,
}

impl Store {
    /// Returns statistics of the store. Visits every topic and lists every file.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let inner = &self.inner;
        let view = inner.log.view();
        let manifest = inner.env.manifest.state();
        let topics = self.topics(&TopicPatterns::everything());
        // Released at once: a commit of cursors waits for this lock while it holds the writer.
        let (cursors, cursors_bytes) = {
            let cursors = inner.cursors.read();
            (cursors.len() as u64, cursors.restated_bytes() as u64)
        };
        let packs = manifest.files.iter().filter(|file| file.kind == FileKind::Pack);
        StoreStats {
            info: self.info(),
            files: inner.file_stats(&manifest.files),
            frames: FrameStats {
                stored: inner.index.frames(),
                live: topics.iter().map(|topic| topic.count).sum(),
                log_bytes: log_bytes(&view),
            },
            topics: topics.len() as u64,
            cursors,
            cursors_bytes,
            blobs_sealed: packs.map(|pack| pack.count).sum(),
            maps_open: sys::maps_open(),
            commit: inner.timing.snapshot(),
            scrub: inner.scrub.stats(),
            space: inner.space.stats(inner),
        }
    }
}

fn log_bytes(view: &LogView) -> u64 {
    view.segments.iter().map(|segment| segment.published_len()).sum()
}

impl Inner {
    /// Counts the files in the directories. A file deleted meanwhile is not counted.
    fn file_stats(&self, named: &[FileEntry]) -> FileStats {
        let mut stats = FileStats::default();
        let env = &self.env;
        for (dir, kind) in [
            (env.dir.clone(), None),
            (env.log_dir(), Some(FileKind::Segment)),
            (env.blob_dir(), Some(FileKind::Pack)),
        ] {
            for name in env.files.list(&dir).unwrap_or_default() {
                let Ok(bytes) = env.files.len_of(&dir.join(&name)) else { continue };
                let key = kind.and_then(|kind| key_of(&name, kind));
                let state = named.iter().find(|file| Some(file.key()) == key);
                let counted = match (kind, name.rsplit_once('.').map(|(_, end)| end)) {
                    (None, _) if is_manifest(&name) => &mut stats.manifests,
                    (None, _) if name.starts_with(TABLE) && finished(&name).is_none() => {
                        &mut stats.derived
                    }
                    (None, _) => continue,
                    (Some(_), Some(SPARSE | TOPICS | KEYS | DEAD | PACK_INDEX)) => {
                        &mut stats.derived
                    }
                    (Some(kind), Some(SEGMENT | PACK)) => match state.map(|file| file.state) {
                        Some(FileState::Sealed) if kind == FileKind::Segment => {
                            &mut stats.segments_sealed
                        }
                        Some(FileState::Sealed) if state.is_some_and(FileEntry::is_plain_pack) => {
                            &mut stats.packs_plain
                        }
                        Some(FileState::Sealed) => &mut stats.packs_sealed,
                        Some(FileState::Dropped) => &mut stats.other,
                        Some(_) if kind == FileKind::Segment => &mut stats.segments_active,
                        Some(_) => &mut stats.packs_active,
                        None => &mut stats.other,
                    },
                    _ => &mut stats.other,
                };
                counted.count += 1;
                counted.bytes += bytes;
            }
        }
        stats
    }
}

/// The base and generation in a file's name.
fn key_of(name: &str, kind: FileKind) -> Option<FileKey> {
    let mut parts = name.split('.');
    let (base, generation) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(FileKey { kind, base, generation })
}
