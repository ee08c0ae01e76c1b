//! Names of the files of a store: `BASE.GENERATION.KIND` below `log/` and `blobs/`, with the suffix
//! `.tmp` while a file is temporary; next to them the lock, the manifest, the journal and the topic
//! tables. This module opens no file, and a name says nothing about a file's content: the manifest
//! and the file's header do.

use std::path::{Path, PathBuf};

use crate::format::super_file::{FileEntry, FileKey, FileKind};

/// The lock file, locked by the process that has the store open.
pub const LOCK: &str = "LOCK";
/// The two copies of the manifest.
pub const MANIFESTS: [&str; 2] = ["super.a", "super.b"];
/// The journal.
pub(crate) const JOURNAL: &str = "journal";
/// The directory of the log.
pub const LOG_DIR: &str = "log";
/// The directory of the packs.
pub const BLOB_DIR: &str = "blobs";

/// A segment.
pub(crate) const SEGMENT: &str = "seg";
/// The sparse index of a segment.
pub(crate) const SPARSE: &str = "idx";
/// The topic index of a segment.
pub(crate) const TOPICS: &str = "top";
/// The dead frames of a segment.
pub(crate) const DEAD: &str = "dead";
/// The keys of a segment.
pub(crate) const KEYS: &str = "key";
/// A pack.
pub(crate) const PACK: &str = "pack";
/// The index of a pack.
pub(crate) const PACK_INDEX: &str = "pidx";

/// Prefix of the names of topic tables.
pub(crate) const TABLE: &str = "topics.";
/// Suffix of temporary files.
pub(crate) const UNFINISHED: &str = "tmp";

/// Whether a directory holds a store, or what is left of one.
#[must_use]
pub fn is_store(dir: &Path) -> bool {
    MANIFESTS.iter().any(|name| dir.join(name).exists())
}

/// Whether a file of this name is a copy of the manifest.
pub(crate) fn is_manifest(name: &str) -> bool {
    MANIFESTS.contains(&name)
}

impl FileKind {
    /// The directory of such files.
    pub(crate) const fn dir(self) -> &'static str {
        match self {
            Self::Segment => LOG_DIR,
            Self::Pack => BLOB_DIR,
        }
    }

    /// The suffix of such files.
    pub(crate) const fn end(self) -> &'static str {
        match self {
            Self::Segment => SEGMENT,
            Self::Pack => PACK,
        }
    }

    /// Suffixes of the files that are derived from one such file alone.
    pub(crate) const fn derived(self) -> &'static [&'static str] {
        match self {
            Self::Segment => &[SPARSE, TOPICS, KEYS, DEAD],
            Self::Pack => &[PACK_INDEX],
        }
    }
}

impl FileEntry {
    /// The path of the file in a store's directory.
    pub(crate) fn path_in(&self, store: &Path) -> PathBuf {
        self.path_of(store, self.kind.end())
    }

    /// The path of the file with another suffix.
    pub(crate) fn path_of(&self, store: &Path, end: &str) -> PathBuf {
        store.join(self.kind.dir()).join(file_name(self.base, self.generation, end))
    }

    /// The common prefix of the names of the file and of those derived from it.
    pub(crate) fn stem(&self) -> String {
        format!("{:020}.{}", self.base, self.generation)
    }
}

/// The name of a file with this base, generation and suffix.
pub(crate) fn file_name(base: u64, generation: u32, end: &str) -> String {
    format!("{base:020}.{generation}.{end}")
}

/// The temporary name of a file: before it is published, or once it is no longer needed.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension(UNFINISHED)
}

/// The final name of a temporary file, if `name` is one.
pub(crate) fn finished(name: &str) -> Option<&str> {
    name.strip_suffix(UNFINISHED)?.strip_suffix('.')
}

/// The manifest of a store that is being copied, until all of its files have their names. If it
/// exists and the manifest does not, the files are those of an unfinished copy.
pub(crate) fn begun_manifest(dir: &Path) -> PathBuf {
    unfinished(&dir.join(MANIFESTS[0]))
}

/// Base and generation of a name with one of these suffixes.
pub(crate) fn parse(name: &str, ends: &[&str]) -> Option<(u64, u32)> {
    let (stem, end) = name.rsplit_once('.')?;
    let (base, generation) = stem.split_once('.').filter(|_| ends.contains(&end))?;
    Some((base.parse().ok()?, generation.parse().ok()?))
}

/// The key of a file of this kind, parsed from its name.
pub(crate) fn parse_key(name: &str, kind: FileKind) -> Option<FileKey> {
    let (base, generation) = parse(name, &[kind.end()])?;
    Some(FileKey { kind, base, generation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let name = file_name(7, 2, SEGMENT);
        assert_eq!(name, "00000000000000000007.2.seg");
        assert_eq!(parse(&name, &[PACK, SEGMENT]), Some((7, 2)));
        let path = unfinished(Path::new(&name));
        assert_eq!(finished(path.to_str().unwrap()), Some(name.as_str()));
        assert_eq!(finished(&name), None);
        for other in ["spare.tmp", "7.seg", "7.0.idx", "x.0.seg", "7.0.seg.bak", "tmp", ""] {
            assert_eq!(parse(other, &[SEGMENT]), None, "{other}");
        }
    }
}
