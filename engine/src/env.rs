//! What all parts of an open store share: its directory, file access, the clock.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Clock;
use crate::entropy::Random;
use crate::holds::Holds;
use crate::manifest::Manifest;
use crate::media::Files;
use crate::names;
use crate::options::StoreOptions;

/// Shared by all parts of an open store.
#[derive(Debug)]
pub(crate) struct Env {
    /// The store's directory.
    pub(crate) dir: PathBuf,
    /// Every file operation goes through these.
    pub(crate) files: Arc<dyn Files>,
    /// Which files belong to the store.
    pub(crate) manifest: Manifest,
    /// The source of time.
    pub(crate) clock: Arc<dyn Clock>,
    /// How the store was opened.
    pub(crate) options: StoreOptions,
    /// Uuids and salts.
    pub(crate) random: Random,
    /// Keeps replaced files while a copy of the store is in progress.
    pub(crate) holds: Holds,
}

impl Env {
    /// Writes derived files of one directory, each to a temporary file that is then renamed,
    /// durably. The next open removes temporary files that a crash leaves.
    pub(crate) fn write_whole(
        &self,
        dir: &Path,
        files: impl IntoIterator<Item = (PathBuf, impl AsRef<[u8]>)>,
    ) -> io::Result<()> {
        for (path, bytes) in files {
            let unfinished = names::unfinished(&path);
            self.files.write_new(&unfinished, bytes.as_ref())?;
            self.files.rename(&unfinished, &path)?;
        }
        self.files.sync_dir(dir)
    }

    /// The directory of the log.
    pub(crate) fn log_dir(&self) -> PathBuf {
        self.dir.join(names::LOG_DIR)
    }

    /// The directory of the packs.
    pub(crate) fn blob_dir(&self) -> PathBuf {
        self.dir.join(names::BLOB_DIR)
    }

    /// The journal.
    pub(crate) fn journal_path(&self) -> PathBuf {
        self.dir.join(names::JOURNAL)
    }

    /// A file of the log with this suffix.
    pub(crate) fn log_path(&self, base: u64, generation: u32, end: &str) -> PathBuf {
        self.log_dir().join(names::file_name(base, generation, end))
    }

    /// A file of the packs with this suffix.
    pub(crate) fn blob_path(&self, number: u64, generation: u32, end: &str) -> PathBuf {
        self.blob_dir().join(names::file_name(number, generation, end))
    }
}
