//! Idempotency keys, and the ids that imported frames had before. The log is the source of truth
//! for both; this index answers without reading it: the valid keys are in memory, and each segment
//! has its own in a `.key` file once it is sealed. It knows nothing of visibility.

mod content;
mod files;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::append::HashedKey;
use crate::env::Env;
use crate::error::AppendError;
use crate::format::key_index::{KeyFile, OldId, UsedKey};
use crate::format::super_file::FileKey;
use crate::index::Index;
use crate::limits::{FILES_MAX, KEY_MS, OPEN_KEY_FILES_MAX};
use crate::log::Segment;
use crate::value::FrameId;

pub(crate) use content::{content_of, key_hash, short};
use window::KeyWindow;
pub(crate) use window::expires_ms;

/// The keys and old ids of one segment.
#[derive(Debug, Default)]
pub(crate) struct SegmentKeys {
    /// The time in the id of its first frame.
    pub(crate) first_ms: Option<u64>,
    /// In the order of the log.
    pub(crate) keys: Vec<UsedKey>,
    pub(crate) old_ids: BTreeSet<OldId>,
}

/// The keys and old ids of a store.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    /// The valid keys. Only commits and sealing take this lock.
    window: Mutex<KeyWindow>,
    /// Segments whose files are not written, by base. A segment with neither keys nor old ids may
    /// be missing.
    open: RwLock<BTreeMap<u64, SegmentKeys>>,
    /// Whether some frame has an old id.
    has_old_ids: AtomicBool,
    sealed: Mutex<SealedOldIds>,
}

/// A cache of the old ids of sealed segments.
#[derive(Debug, Default)]
struct SealedOldIds {
    ranges: HashMap<FileKey, Option<(FrameId, FrameId)>>,
    loaded: VecDeque<(FileKey, Arc<KeyFile>)>,
}

impl KeyIndex {
    /// An index with the content of the unsealed segments, by base; `has_old_ids` tells whether
    /// older segments have frames with old ids.
    pub(crate) fn new(open: BTreeMap<u64, SegmentKeys>, has_old_ids: bool) -> Self {
        let has_old_ids = has_old_ids || open.values().any(|held| !held.old_ids.is_empty());
        Self { open: RwLock::new(open), has_old_ids: has_old_ids.into(), ..Self::default() }
    }

    /// Loads the valid keys: those of the open segments, and before them those of sealed ones as
    /// far back as any can be valid.
    ///
    /// # Errors
    /// The I/O error, when a key file is lost and its segment cannot be read either.
    pub(crate) fn load_window(
        &self,
        env: &Env,
        sealed: &[Arc<Segment>],
        now_ms: u64,
    ) -> io::Result<()> {
        let open = self.open.read();
        let mut window = self.window.lock();
        let is_over = |first_ms: u64| first_ms.saturating_add(KEY_MS) <= now_ms;
        let mut more = true;
        for held in open.values().rev() {
            more = more && window.extend_back(held.keys.iter().rev().copied(), now_ms);
            more &= !held.first_ms.is_some_and(is_over);
        }
        for segment in sealed.iter().rev() {
            if !more {
                break;
            }
            let file = files::load(env, segment)?;
            more = window.extend_back(file.keys_backward(), now_ms) && !is_over(file.first_ms());
        }
        window.number();
        Ok(())
    }

    /// The batch that used a key before, if the key is still valid.
    ///
    /// # Errors
    /// [`AppendError::KeyReused`] when that batch had other content.
    pub(crate) fn used(
        &self,
        key: &HashedKey,
        now_ms: u64,
    ) -> Result<Option<UsedKey>, AppendError> {
        match self.window.lock().find(&key.hash, now_ms) {
            Some(used) if used.content != short(&key.content) => {
                Err(AppendError::KeyReused { key: key.key.clone(), id: used.id })
            }
            used => Ok(used),
        }
    }

    /// Whether a key was used before and is still valid, whatever the content of that batch.
    pub(crate) fn is_used(&self, key: &HashedKey, now_ms: u64) -> bool {
        self.window.lock().find(&key.hash, now_ms).is_some()
    }

    /// Whether the KEY record of a batch is still valid, by the hash of its key and its id. An
    /// invalid one may be dropped when its segment is rewritten, and never becomes valid again.
    pub(crate) fn needs(&self, key: &[u8; 16], id: FrameId, now_ms: u64) -> bool {
        let used = self.window.lock().get(key);
        used.is_some_and(|used| used.id == id) && expires_ms(id) > now_ms
    }

    /// Adds the key and old ids of the newest batch, in the segment with this base.
    pub(crate) fn take_up(
        &self,
        base: u64,
        used: Option<UsedKey>,
        old_ids: impl Iterator<Item = OldId>,
    ) {
        let mut open = self.open.write();
        let held = open.entry(base).or_default();
        held.keys.extend(used);
        let before = held.old_ids.len();
        held.old_ids.extend(old_ids);
        if held.old_ids.len() > before {
            self.has_old_ids.store(true, Ordering::Release);
        }
        drop(open);
        if let Some(used) = used {
            self.window.lock().push(used);
        }
    }

    /// Whether some frame has an old id.
    pub(crate) fn has_old_ids(&self) -> bool {
        self.has_old_ids.load(Ordering::Acquire)
    }

    /// Writes the key file of a sealed segment.
    ///
    /// # Errors
    /// The I/O error; everything then stays in memory, and the next open writes the file.
    pub(crate) fn seal(&self, env: &Env, index: &Index, segment: &Segment) -> io::Result<()> {
        let first_ms = index.first_ms(segment.base()).unwrap_or(u64::MAX);
        let now_ms = env.clock.now_ms();
        let bytes = {
            let mut open = self.open.write();
            match open.get_mut(&segment.base()) {
                Some(held) => {
                    held.keys.retain(|used| self.needs(&used.key, used.id, now_ms));
                    files::encode(env, segment, first_ms, held)
                }
                None => files::encode(env, segment, first_ms, &SegmentKeys::default()),
            }
        };
        files::write(env, segment, &bytes)?;
        self.open.write().remove(&segment.base());
        Ok(())
    }

    /// Writes the key file of a rewritten segment, which replaces some others.
    ///
    /// # Errors
    /// The I/O error; the next lookup then writes the file.
    pub(crate) fn make(&self, env: &Env, segment: &Segment) -> io::Result<()> {
        files::load(env, segment)?;
        // Replaced segments whose files could not be written when they were sealed.
        self.open.write().retain(|base, _| !(segment.base()..segment.end()).contains(base));
        Ok(())
    }

    /// The offset, below `head`, of the newest frame that had an id before it was imported.
    /// `segments` gives the present ones.
    ///
    /// # Errors
    /// The I/O error, when a key file is lost and its segment cannot be read either.
    pub(crate) fn find_old(
        &self,
        env: &Env,
        segments: impl Fn() -> Arc<[Arc<Segment>]>,
        id: FrameId,
        head: u64,
    ) -> io::Result<Option<u64>> {
        if !self.has_old_ids() {
            return Ok(None);
        }
        let mut seen = segments();
        loop {
            let found = self.find_in(env, &seen, id, head)?;
            let now = segments();
            // One that was sealed since may have been passed over: its old ids were in memory no
            // longer, and a segment that is not sealed has no file. It was replaced before that.
            let is_there = |one: &Arc<Segment>| now.iter().any(|other| Arc::ptr_eq(one, other));
            if seen.iter().all(|segment| segment.is_sealed() || is_there(segment)) {
                return Ok(found);
            }
            seen = now;
        }
    }

    fn find_in(
        &self,
        env: &Env,
        segments: &[Arc<Segment>],
        id: FrameId,
        head: u64,
    ) -> io::Result<Option<u64>> {
        for segment in segments.iter().rev() {
            let found = match self.open.read().get(&segment.base()) {
                Some(held) => {
                    let mut of_id = held.old_ids.range((id, 0)..(id, head));
                    of_id.next_back().map(|(_, offset)| *offset)
                }
                None if segment.is_sealed() => self.find_sealed(env, segment, id, head)?,
                None => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn find_sealed(
        &self,
        env: &Env,
        segment: &Segment,
        id: FrameId,
        head: u64,
    ) -> io::Result<Option<u64>> {
        let name = segment.file_key();
        let mut sealed = self.sealed.lock();
        if let Some(range) = sealed.ranges.get(&name)
            && range.is_none_or(|(first, last)| !(first..=last).contains(&id))
        {
            return Ok(None);
        }
        if let Some((_, file)) = sealed.loaded.iter().find(|(loaded, _)| *loaded == name) {
            return Ok(file.find(id, head));
        }
        if sealed.ranges.len() > FILES_MAX {
            sealed.ranges.clear();
        }
        let file = Arc::new(files::load(env, segment)?);
        sealed.ranges.insert(name, file.old_ids_range());
        if file.old_ids_range().is_some() {
            sealed.loaded.push_back((name, Arc::clone(&file)));
            if sealed.loaded.len() > OPEN_KEY_FILES_MAX {
                sealed.loaded.pop_front();
            }
        }
        Ok(file.find(id, head))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::append::Batch;
    use crate::options::SyncPolicy;
    use crate::testing::{fast_dir, frame, open};
    use crate::value::Import;

    #[test]
    fn an_old_id_is_found_while_its_segment_is_sealed() {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        let inner = &store.inner;
        let old = FrameId::first_of_ms(7);
        let import = |n| Batch { import: Some(Import::NewIds(vec![old])), ..frame("a", n).into() };
        // The older one is not the answer either.
        let base = |offset: u64| {
            let segments = inner.log.view().segments;
            segments.iter().rev().find(|segment| segment.base() <= offset).unwrap().base()
        };
        store.append(import(0)).unwrap();
        while base(u64::MAX) == 0 {
            store.append(frame("a", 1).into()).unwrap();
        }
        assert!(inner.sealing.seal_now(inner).is_ok());
        let newest = store.append(import(2)).unwrap().frames[0].offset.unwrap();
        let (asked, stale) = (Cell::new(0), inner.log.view().segments);
        // The list of segments is taken, and then that segment is sealed and its file written.
        let segments = || {
            let seen = inner.log.view().segments;
            asked.set(asked.get() + 1);
            if asked.get() == 1 {
                assert!(!seen.last().unwrap().is_sealed());
                while base(u64::MAX) == base(newest) {
                    store.append(frame("a", 3).into()).unwrap();
                }
                assert!(inner.sealing.seal_now(inner).is_ok());
                inner.sealing.index_sealed(inner).unwrap();
                assert!(!inner.keys.open.read().contains_key(&base(newest)));
            }
            seen
        };
        let head = inner.log.head();
        let found = inner.keys.find_old(&inner.env, segments, old, head);
        assert_eq!((found.unwrap(), asked.get()), (Some(newest), 3));
        let by_stale = inner.keys.find_in(&inner.env, &stale, old, head);
        assert_eq!(by_stale.unwrap(), Some(0), "an old list alone passes it over");
        assert_eq!(store.get(old).unwrap().unwrap().offset(), Some(newest));
    }
}
