//! Proofs that a store keeps its guarantees: a workload, a model of the store's content after each
//! step, and the check that what is found after a fault is the content after one of the steps, not
//! before the last acknowledged one and not after the last attempted one.

mod bit_flips;
mod failing;
mod full;
mod journal;
mod power_cut;
mod torn_tail;
mod unsynced;
mod workload;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::error::{OpenError, ReadOnlyReason};
use crate::limits::JOURNAL_HALF_BYTES_MIN;
use crate::media::Files;
use crate::media::sim::{Image, SimDisk};
use crate::options::{CompressOptions, JournalOptions, MediaChoice, StoreOptions, SyncPolicy};
use crate::store::{Health, Inner, Store};
use crate::testing::{StillClock, fast_dir, open_on, options};
use crate::value::{BlobHash, CursorName, CursorSummary, FrameId, ReadOptions, TopicPatterns};

const MEDIA: [MediaChoice; 2] = [MediaChoice::Mapped, MediaChoice::Positioned];

/// Whether this is a long run: `scripts/test --long`.
fn is_long() -> bool {
    std::env::var_os("XS_TEST_LONG").is_some()
}

/// The content of a store, as far as it is modelled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Holds {
    /// Offsets and numbers of the frames.
    frames: Vec<(u64, u64)>,
    /// The offset after the last frame that ever existed.
    head: u64,
    /// Offsets and states.
    cursors: BTreeMap<String, (u64, Vec<u8>)>,
    /// Number and offset of the newest frame that was sent with a key.
    keyed: Option<(u64, u64)>,
    /// The step after which the newest backup was attempted; 0 when none was. Not compared.
    backup: usize,
    /// Blobs that no frame names. Not compared: they come and go outside the order of the log.
    blobs: Vec<u64>,
}

impl Holds {
    fn is(&self, seen: &Self) -> bool {
        (&self.frames, &self.cursors) == (&seen.frames, &seen.cursors)
    }
}

/// The body of the frame or blob with a number; some of these bytes compress and some do not.
fn body(n: u64, len: usize) -> Vec<u8> {
    let mut seed = n;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        let word = crate::media::sim::random(&mut seed).to_le_bytes();
        bytes.extend(if n.is_multiple_of(2) { word } else { [word[0]; 8] });
    }
    bytes.truncate(len);
    bytes
}

/// The content of a store. Panics when a frame is out of order, or has the wrong body.
fn look(store: &Store, what: &str) -> Holds {
    let everything = ReadOptions { topics: TopicPatterns::everything(), ..ReadOptions::default() };
    let mut holds = Holds { head: store.info().head, ..Holds::default() };
    let mut last = (None, FrameId::ZERO);
    for frame in store.read(&everything).expect(what) {
        let frame = frame.expect(what);
        let n = number(frame.meta());
        assert!((frame.offset(), frame.id()) > last && frame.id() > last.1, "{what}: order");
        last = (frame.offset(), frame.id());
        if let Some(hash) = frame.hash() {
            let blob = store.blob(&hash).expect(what).expect(what);
            let bytes = blob.bytes(1 << 20).expect(what);
            assert!(bytes == body(n, frame.body_len() as usize), "{what}: body of {n}");
        }
        holds.frames.push((frame.offset().expect(what), n));
    }
    for CursorSummary { name, .. } in store.cursors() {
        let cursor = store.cursor(&name).expect(what).expect(what);
        holds.cursors.insert(name.as_str().to_owned(), (cursor.offset, cursor.state.to_vec()));
    }
    holds
}

/// The number at the beginning of a meta `[n,"padding"]`.
fn number(meta: &[u8]) -> u64 {
    let text = std::str::from_utf8(meta).unwrap();
    let digits = text.trim_start_matches('[').split(',').next();
    digits.unwrap().parse().unwrap()
}

/// Options of stores on simulated disks: only the locks are on a real one.
struct Rig {
    dir: TempDir,
    options: StoreOptions,
}

impl Rig {
    fn new(sync: SyncPolicy, media: MediaChoice) -> Self {
        let clock = StillClock::at(1_700_000_000_000);
        let dir = fast_dir();
        std::fs::create_dir(workload::backup_dir(dir.path())).unwrap();
        // One pack is sealed as written, as if the store were busy; the next is not.
        let compress = CompressOptions { busy_bytes_per_second: 0, backlog_bytes: 1 };
        Self { dir, options: StoreOptions { media, clock, compress, ..options(sync) } }
    }

    /// Options with a small journal, used from the first group on.
    fn journaled(media: MediaChoice) -> Self {
        let mut rig = Self::new(SyncPolicy::Sync, media);
        let half_bytes = JOURNAL_HALF_BYTES_MIN;
        rig.options.journal = JournalOptions { half_bytes, after_groups: 0 };
        rig
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A disk that holds an image.
    fn disk(&self, image: &Image) -> SimDisk {
        SimDisk::new(image, self.path(), self.options.media)
    }

    fn open(&self, disk: &SimDisk) -> Result<Store, OpenError> {
        open_on(self.path(), self.options.clone(), Arc::new(disk.clone()))
    }

    /// Opens without the housekeeping thread: nothing happens unless requested.
    fn open_quietly(&self, disk: &(impl Files + Clone + 'static)) -> Result<Store, OpenError> {
        let files = Arc::new(disk.clone());
        let inner: Inner = crate::recovery::open_with(self.path(), self.options.clone(), files)?;
        Ok(Store { inner: Arc::new(inner) })
    }
}

/// Opens a store that must be usable, and returns the model's step that it is at.
fn check(
    rig: &Rig,
    disk: &SimDisk,
    steps: &[Holds],
    (acknowledged, tried): (usize, usize),
    what: &str,
) -> (Store, usize) {
    let store = rig.open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(store.info().health, Health::Writable, "{what}");
    let seen = look(&store, what);
    let at = (acknowledged..=tried).rev().find(|&at| steps[at].is(&seen));
    let Some(at) = at else {
        let somewhere = steps.iter().position(|step| step.is(&seen));
        let frames: Vec<_> = seen.frames.iter().map(|frame| frame.1).collect();
        panic!(
            "{what}: the store holds {frames:?} and cursors {:?}, the state after step \
             {somewhere:?}, but {acknowledged} steps are acknowledged and {tried} tried",
            seen.cursors.keys().collect::<Vec<_>>(),
        );
    };
    for n in workload::wanted_blobs(steps, (acknowledged, tried)) {
        let hash = BlobHash::of(&body(n, workload::LONE_BLOB_LEN));
        let blob = store.blob(&hash).expect(what).unwrap_or_else(|| panic!("{what}: blob {n}"));
        blob.bytes(1 << 20).expect(what);
    }
    if let Some((n, offset)) = steps[at].keyed {
        let again = store.append(workload::keyed(&mut Holds::default(), n)).expect(what);
        assert!(again.repeated, "{what}: frame {n} is stored twice under one key");
        assert_eq!(again.frames[0].offset, Some(offset), "{what}: frame {n}");
    }
    (store, at)
}

/// Opens the backup on a disk; it must be that of step `done` or of a later one that was attempted.
fn check_backup(rig: &Rig, disk: &SimDisk, steps: &[Holds], done: usize, what: &str) {
    let dir = workload::backup_dir(rig.path());
    if ["super.a", "super.b"].iter().all(|name| disk.len_of(&dir.join(name)).is_err()) {
        return assert_eq!(done, 0, "{what}: the backup is gone");
    }
    let backup = crate::recovery::open_with(&dir, rig.options.clone(), Arc::new(disk.clone()));
    let inner = backup.unwrap_or_else(|error| panic!("{what}: the backup: {error}"));
    let backup = Store { inner: Arc::new(inner) };
    let what = format!("{what}: the backup");
    let seen = look(&backup, &what);
    let tried = steps.iter().map(|step| step.backup).max().unwrap_or(0);
    let at = (done..=tried).find(|&at| steps[at].is(&seen));
    assert!(at.is_some(), "{what}: {seen:?} is none of {done} to {tried}");
    // A backup that was cut off at its very beginning is not a backup yet, but an empty store.
    let is_whole = backup.info().health == Health::ReadOnly(ReadOnlyReason::Backup);
    assert!(is_whole || done == 0 && seen.head == 0, "{what}: {:?}", backup.info().health);
}

fn cursor_name(n: u64) -> CursorName {
    CursorName::parse(format!("reader {n}").as_str()).unwrap()
}
