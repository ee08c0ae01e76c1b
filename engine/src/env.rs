//! What all parts of an open store share: where it is, how its files are reached, the time.

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
    /// Tells the time.
    pub(crate) clock: Arc<dyn Clock>,
    /// How the store was opened.
    pub(crate) options: StoreOptions,
    /// Uuids and salts.
    pub(crate) random: Random,
    /// Who still needs files that are replaced.
    pub(crate) holds: Holds,
}

impl Env {
    /// Writes files of one directory that can be made again, each whole beside its name and then
    /// under it, durably. What a crash leaves unnamed is removed by the next open.
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

    /// A file of the log, by the end of its name.
    pub(crate) fn log_path(&self, base: u64, generation: u32, end: &str) -> PathBuf {
        self.log_dir().join(names::file_name(base, generation, end))
    }

    /// A file of the packs, by the end of its name.
    pub(crate) fn blob_path(&self, number: u64, generation: u32, end: &str) -> PathBuf {
        self.blob_dir().join(names::file_name(number, generation, end))
    }
}
