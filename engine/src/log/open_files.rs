//! The sealed segments that are open. A process can map only a limited number of files; the least
//! recently used are closed, and stay mapped only as long as a reader holds bytes of them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::segment::Segment;
use crate::format::super_file::FileKey;
use crate::limits::OPEN_SEGMENTS_MAX;
use crate::media::{Files, Media};

/// Open sealed segments.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    files: Arc<dyn Files>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<FileKey, (Arc<dyn Media>, u64)>,
    tick: u64,
}

impl OpenFiles {
    pub(crate) fn new(files: Arc<dyn Files>) -> Self {
        Self { files, table: Mutex::default() }
    }

    /// The medium of a sealed segment, opened if necessary.
    pub(super) fn get(&self, segment: &Segment) -> io::Result<Arc<dyn Media>> {
        let key = segment.file_key();
        let mut table = self.table.lock();
        table.tick += 1;
        let now = table.tick;
        if let Some((media, used)) = table.open.get_mut(&key) {
            *used = now;
            return Ok(Arc::clone(media));
        }
        let media = self.files.open_sealed(segment.path())?;
        if table.open.len() >= OPEN_SEGMENTS_MAX {
            let oldest = table.open.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.and_then(|key| table.open.remove(&key));
        }
        table.open.insert(key, (Arc::clone(&media), now));
        Ok(media)
    }

    /// Stops keeping the file of a segment open: it is about to be unlinked.
    pub(super) fn forget(&self, segment: &Segment) {
        self.table.lock().open.remove(&segment.file_key());
    }
}
