//! Loading the index of a store that is opened.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::files::{self, Loaded};
use super::floor::FloorFilter;
use super::notes::{Met, scan};
use super::removed::Removed;
use super::rewrite::Leaving;
use super::topics::{Layer, Source, Topics};
use super::{Index, Kind, SegmentIndex, merge};
use crate::env::Env;
use crate::error::{Corruption, OpenError, ReadError};
use crate::format::dead::DeadFile;
use crate::format::super_file::{FileEntry, FileKind, FileState};
use crate::format::topic_table::TableFile;
use crate::log::Segment;
use crate::planted::{Bug, is_planted};

impl Index {
    /// Loads sealed segments, given in order: those that the table covers unchanged from it, the
    /// others from their dictionaries. Files that do not verify are rebuilt. If a segment covered
    /// by the table has lost a file, all segments are loaded one by one, as what `last:n` removed
    /// depends on earlier segments. In a read-only store (`writable` is false) nothing is written:
    /// segments, or their ends, may be missing now and back at the next open.
    ///
    /// # Errors
    /// [`OpenError::Io`] when a segment whose files are lost cannot be read either.
    pub(crate) fn open(
        env: Arc<Env>,
        sealed: &[Arc<Segment>],
        writable: bool,
    ) -> Result<Self, OpenError> {
        let manifest = env.manifest.state();
        let is_sealed =
            |file: &&FileEntry| file.kind == FileKind::Segment && file.state == FileState::Sealed;
        let files = manifest.files.iter().filter(is_sealed);
        let purged = files.map(|file| (file.base, (file.end(), file.purged_seq))).collect();
        let (table, generations) = merge::find(&env, sealed, writable);
        let mut index = Self {
            env,
            segments: RwLock::new(Arc::from([])),
            next: AtomicU32::new(0),
            topics: RwLock::default(),
            purged,
            frames: AtomicU64::new(0),
            floors: FloorFilter::default(),
            partial: AtomicBool::new(false),
            removed: Removed::default(),
            rewrites: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            leaving: Leaving::default(),
            writable,
            doubt: OnceLock::new(),
            loaded: Mutex::default(),
            merging: Mutex::new(generations),
            refused: Mutex::default(),
        };
        let covered = table.map_or(0, |table| index.cover(table, sealed));
        for segment in sealed.iter().skip(covered) {
            index.add_sealed(segment)?;
            if writable && index.topics.read().mergeable() >= merge::MERGE_AT_OPEN {
                // It is a derived file: if there is no space for it, the layers serve instead.
                let _ = index.merge(&AtomicBool::new(false));
            }
        }
        Ok(index)
    }

    /// Loads the segments that a table covers. Returns their number, or 0 when one has lost a file.
    fn cover(&mut self, table: Arc<TableFile>, sealed: &[Arc<Segment>]) -> usize {
        let covered = &sealed[..table.segments().len().min(sealed.len())];
        let dead = covered.iter().map(|segment| files::load_dead(&self.env, segment));
        let Some(dead) = dead.collect::<Option<Vec<_>>>() else { return 0 };
        if !files::all_named(&self.env, covered) {
            return 0;
        }
        let list = covered.iter().map(|segment| {
            let ordinal = self.next.fetch_add(1, Ordering::Relaxed);
            let kind = Arc::new(Mutex::new(Kind::Files(Loaded::default())));
            let (segment, decay) = (segment.clone(), Arc::default());
            Arc::new(SegmentIndex { segment, ordinal, kind, decay })
        });
        let list = list.collect();
        *self.segments.get_mut() = list;
        self.floors.add_all(table.floors());
        self.topics.get_mut().table = Some(table);
        for (segment, dead) in covered.iter().zip(dead) {
            self.take_dead(&mut self.topics.write(), segment, dead);
        }
        covered.len()
    }

    fn add_sealed(&self, segment: &Arc<Segment>) -> Result<(), OpenError> {
        let topics = files::load_topics(&self.env, segment);
        let dead = match (topics, files::load_dead(&self.env, segment)) {
            (Some(file), Some(dead)) => {
                let mut topics = self.topics.write();
                self.freeze(&mut topics, true);
                // Its frames are not added one by one.
                topics.handed.clear();
                self.push(segment, Kind::Files(Loaded::default()));
                self.floors.add_all(&file.floors());
                let source = Source::File(Arc::new(file));
                topics.layers.push(Layer { of: merge::covered(segment), source });
                self.take_dead(&mut topics, segment, dead);
                return Ok(());
            }
            (_, dead) => dead,
        };
        let mut notes = self.notes(segment);
        notes.begin();
        let scanned = scan(segment, |met| match met {
            Met::Frame(noted) => notes.frame(&noted),
            Met::Tombstone(seq, tombstone) => notes.tombstone(seq, &tombstone, None),
            Met::Floor(topic, floor) => notes.floor(topic, floor),
        });
        drop(notes);
        let whole = match scanned {
            Ok(whole) => whole,
            Err(ReadError::Io { path, error }) => {
                return Err(OpenError::io("read", &path, error.into()));
            }
            Err(_) => false,
        };
        self.freeze(&mut self.topics.write(), whole);
        match dead {
            // The file also has the tombstones that the damage destroyed.
            Some(dead) if !whole && !is_planted(Bug::ForgetDead) => {
                let mut topics = self.topics.write();
                dead.for_each(|seq, tombstone| self.remove(&mut topics, seq, tombstone, None));
            }
            None if !whole => {
                let what = "it is damaged and its .dead file is lost: what it removed may be back";
                self.doubt.get_or_init(|| Corruption::new(segment.path(), 0, what));
            }
            _ => {}
        }
        // If the files cannot be written, the index stays in memory until they can.
        let _kept_in_memory = self.seal(segment);
        Ok(())
    }

    /// Applies the file of dead frames of a listed sealed segment, and counts the segment's frames.
    fn take_dead(&self, topics: &mut Topics, segment: &Segment, dead: DeadFile) {
        let manifest = self.env.manifest.state();
        let frames = manifest.file(segment.file_key()).map_or(0, |file| file.count);
        self.frames.fetch_add(frames, Ordering::Relaxed);
        dead.for_each(|seq, tombstone| self.remove(topics, seq, tombstone, None));
        if let Some(of) = self.by_key(segment) {
            of.decay.set(dead.kept_of_frames(), dead.expiring);
        }
    }
}
