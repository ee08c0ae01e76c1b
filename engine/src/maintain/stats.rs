//! What a store tells about itself in numbers. Counting frames by topic visits every topic and
//! listing files every file, so this is for a person or a scraper that asks now and then.

use super::scrub::ScrubStats;
use crate::commit::CommitTimes;
use crate::format::super_file::{FileEntry, FileKey, FileKind, FileState};
use crate::log::LogView;
use crate::names::{
    DEAD, KEYS, PACK, PACK_INDEX, SEGMENT, SPARSE, TABLE, TOPICS, finished, is_manifest,
};
use crate::store::{Inner, Store, StoreInfo};
use crate::sys;
use crate::value::TopicPatterns;

/// Files of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountBytes {
    /// How many.
    pub count: u64,
    /// Bytes of all, as their lengths tell.
    pub bytes: u64,
}

/// The files of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FileStats {
    /// Copies of the manifest.
    pub manifests: CountBytes,
    /// Segments that are or may be written to. They are made ahead of use, so they are longer than
    /// what is in them.
    pub segments_active: CountBytes,
    /// Segments that never change again.
    pub segments_sealed: CountBytes,
    /// Packs that are or may be written to.
    pub packs_active: CountBytes,
    /// Packs that never change again, but for those of the next kind.
    pub packs_sealed: CountBytes,
    /// Packs that were sealed as they were written and are compressed once there is time.
    pub packs_plain: CountBytes,
    /// Files made from the others, which can be made again.
    pub derived: CountBytes,
    /// What is allocated ahead or not finished, or waits to go.
    pub other: CountBytes,
}

/// The frames of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FrameStats {
    /// Frames that are in the log, removed ones included until they are compacted away.
    pub stored: u64,
    /// Of those the ones that were not removed. Frames that expired count until they are compacted
    /// away.
    pub live: u64,
    /// Bytes of the log that readers see.
    pub log_bytes: u64,
}

/// What a store tells about itself in numbers.
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
    /// Bytes that restating the cursors takes in each new segment, at most.
    pub cursors_bytes: u64,
    /// Blobs in sealed packs, copies counted each.
    pub blobs_sealed: u64,
    /// Files that this process has mapped, of all its stores.
    pub maps_open: u64,
    /// How long the stages of commits took.
    pub commit: CommitTimes,
    /// What the scrub is at and found.
    pub scrub: ScrubStats,
}

impl Store {
    /// What the store tells about itself in numbers. It visits every topic and lists every file.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let inner = &self.inner;
        let view = inner.log.view();
        let manifest = inner.env.manifest.state();
        let topics = self.topics(&TopicPatterns::everything());
        // Not held any longer: whoever commits cursors waits for it, and holds the writer.
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
        }
    }
}

fn log_bytes(view: &LogView) -> u64 {
    view.segments.iter().map(|segment| segment.published_len()).sum()
}

impl Inner {
    /// Counts the files in the directories. One that goes meanwhile is not counted.
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

/// The base and generation that a file's name tells.
fn key_of(name: &str, kind: FileKind) -> Option<FileKey> {
    let mut parts = name.split('.');
    let (base, generation) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(FileKey { kind, base, generation })
}
