//! Checks every byte of every file of a store and reports what is wrong. It never edits, reads
//! sequentially, and takes no more memory for a large store than for a small one.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::backup::lock_to_read;
use super::copy::Watch;
use super::error::MaintainError;
use super::finding::{Finding, Problem, Progress, Severity, VerifyReport};
use super::read_only::{ReadOnlyFiles, Unreadable};
use super::repair_log::Rotten;
use super::snapshot::Snapshot;
use super::visible::Visible;
use crate::blob::PackView;
use crate::entropy::Random;
use crate::env::Env;
use crate::format::super_file::{FileEntry, FileKind, FileState, SuperState};
use crate::limits::FINDINGS_MAX;
use crate::manifest::Manifest;
use crate::media::{Disk, Files, is_lost};
use crate::names::{JOURNAL, is_store};
use crate::options::{MediaChoice, StoreOptions};
use crate::store::{Inner, Store};
use crate::value::{BlobHash, Frame};

/// Bytes read at a time.
pub(super) const PIECE_LEN: u64 = 1024 * 1024;
/// Maximum length of a derived file that is read.
const DERIVED_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// A check in progress.
pub(super) struct Checker<'a> {
    /// The store as it was when the check began, read-only.
    pub(super) env: Arc<Env>,
    /// The store, if it is open in this process.
    inner: Option<&'a Inner>,
    pub(super) live: bool,
    pub(super) report: VerifyReport,
    packs: Option<PackView>,
    pub(super) unreadable: Unreadable,
    /// Places of packs cannot be read. The open store would read them through its maps, which would
    /// kill the process.
    pub(super) is_blind: bool,
    /// What readers of a closed store would see, computed on first use.
    visible: OnceCell<Visible>,
    /// Blobs with a damaged copy: that they are found proves nothing.
    bad_blobs: HashSet<BlobHash>,
    /// Those whose damaged copy is in a pack that the next open uses as it is.
    pub(super) rotten: Rotten,
    /// There are too many to remember each, or it is unknown which they are.
    many_bad: bool,
    watch: Watch<'a>,
    bytes: u64,
    bytes_total: u64,
}

impl Store {
    /// Checks every byte of the store as it is now; appends continue meanwhile. `watch` is called
    /// as the check proceeds, at least once for each batch, blob and few MiB, and can stop it by
    /// breaking.
    ///
    /// # Errors
    /// [`MaintainError`] when the check cannot continue; problems of the store are not errors but
    /// are in the report.
    pub fn verify(
        &self,
        watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<VerifyReport, MaintainError> {
        self.inner.verify(watch)
    }
}

/// Checks every byte of the store in `dir`, which must not be open. Nothing is changed, including
/// what the next open will clean up.
///
/// # Errors
/// [`MaintainError`] when the check cannot continue: the store is open somewhere, there is none, or
/// neither copy of its manifest is readable. Problems of the store are not errors but are in the
/// report.
pub fn verify(
    dir: impl AsRef<Path>,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<VerifyReport, MaintainError> {
    let dir = dir.as_ref();
    if !is_store(dir) {
        return Err(MaintainError::NoStore { dir: dir.to_owned() });
    }
    let _lock = lock_to_read(dir)?;
    verify_files(dir, Arc::new(Disk::new(MediaChoice::Positioned, dir)), watch)
}

/// Checks a store through `files`, without the lock.
pub(crate) fn verify_files(
    dir: &Path,
    files: Arc<dyn Files>,
    watch: Watch<'_>,
) -> Result<VerifyReport, MaintainError> {
    let manifest = Manifest::load(dir, Arc::clone(&files))?;
    let manifest = manifest.ok_or_else(|| MaintainError::NoStore { dir: dir.to_owned() })?;
    let state = SuperState::clone(&manifest.state());
    let files = ReadOnlyFiles::of_closed(dir, files, Some(&state))?;
    let (finding, unreadable) = (files.finding(dir), files.unreadable());
    let env = Arc::new(looked_at(dir, files, state)?);
    let mut checker = Checker::new((env, unreadable), None, watch);
    checker.holes(&dir.join(JOURNAL), u64::MAX);
    finding.into_iter().for_each(|finding| checker.report.add(finding));
    checker.run()
}

impl Inner {
    pub(super) fn verify(&self, watch: Watch<'_>) -> Result<VerifyReport, MaintainError> {
        let (snapshot, _) = Snapshot::of_open(self)?;
        let files = ReadOnlyFiles::of_open(Arc::clone(&self.env.files));
        let unreadable = files.unreadable();
        let env = Arc::new(looked_at(&self.env.dir, files, snapshot.state)?);
        Checker::new((env, unreadable), Some(self), watch).run()
    }
}

/// An environment for a store that is only inspected.
pub(super) fn looked_at(
    dir: &Path,
    files: ReadOnlyFiles,
    state: SuperState,
) -> Result<Env, MaintainError> {
    let files: Arc<dyn Files> = Arc::new(files);
    let options = StoreOptions::default();
    let random = Random::new(&*options.entropy);
    Ok(Env {
        dir: dir.to_owned(),
        manifest: Manifest::unwritten(dir, Arc::clone(&files), state),
        files,
        clock: Arc::clone(&options.clock),
        options,
        random: random.map_err(|error| MaintainError::io("seed ids for", dir, error))?,
        holds: crate::holds::Holds::default(),
    })
}

impl<'a> Checker<'a> {
    fn new(
        (env, unreadable): (Arc<Env>, Unreadable),
        inner: Option<&'a Inner>,
        watch: Watch<'a>,
    ) -> Self {
        let bytes_total = env.manifest.state().files.iter().map(|file| file.length).sum();
        Self {
            env,
            inner,
            live: inner.is_some(),
            report: VerifyReport::default(),
            packs: None,
            unreadable,
            is_blind: false,
            visible: OnceCell::new(),
            bad_blobs: HashSet::new(),
            rotten: Rotten::default(),
            many_bad: false,
            watch,
            bytes: 0,
            bytes_total,
        }
    }

    fn run(mut self) -> Result<VerifyReport, MaintainError> {
        self.manifest();
        let mut files = self.env.manifest.state().files.clone();
        files.sort_unstable_by_key(|file| (file.base, file.generation));
        self.strangers(&files)?;
        files.retain(|file| file.state != FileState::Dropped);
        let of = |kind| move |file: &&FileEntry| file.kind == kind;
        // The packs first: checking the log looks up the blobs it names.
        let (mut sealed, mut open) = (Vec::new(), Vec::new());
        for file in files.iter().filter(of(FileKind::Pack)) {
            match self.pack(file)? {
                Some(_) if self.is_exact(file) => sealed.push(*file),
                other => open.extend(other),
            }
        }
        if !self.live || self.is_blind {
            self.packs = Some(PackView::new(&self.env, &sealed, &open));
        }
        drop(open);
        let segments: Vec<FileEntry> =
            files.iter().filter(of(FileKind::Segment)).copied().collect();
        self.log(&segments)?;
        Ok(self.report)
    }

    /// Whether a sound copy of a blob exists.
    pub(super) fn has_blob(&self, hash: &BlobHash) -> bool {
        let suspect = self.many_bad || self.bad_blobs.contains(hash);
        match (&self.packs, self.inner) {
            (Some(packs), _) => {
                let there = match suspect {
                    true => packs.contains_sound(hash),
                    false => packs.contains(hash),
                };
                // A blob that is not in these may be in a newer pack that replaced them.
                there || self.has_new_packs()
            }
            (None, Some(inner)) if suspect => inner.blobs.contains_sound(hash),
            (None, Some(inner)) => inner.blobs.contains(hash),
            (None, None) => true,
        }
    }

    fn has_new_packs(&self) -> bool {
        let state = self.env.manifest.state();
        let mut packs = state.files.iter().filter(|file| file.kind == FileKind::Pack);
        self.live && packs.any(|file| self.is_replaced(file))
    }

    /// Reports the unreadable places of a file; from `end` on it holds nothing. Returns whether
    /// there are any.
    pub(super) fn holes(&mut self, path: &Path, end: u64) -> bool {
        let mut findings = self.unreadable.findings(path);
        for finding in &mut findings {
            if finding.position >= end {
                finding.severity = Severity::Unused;
            }
        }
        let found = !findings.is_empty();
        findings.into_iter().for_each(|finding| self.report.add(finding));
        found
    }

    /// Records a blob with a damaged copy.
    pub(super) fn suspect(&mut self, hash: Option<BlobHash>) {
        self.many_bad |= hash.is_none() || self.bad_blobs.len() >= FINDINGS_MAX;
        self.bad_blobs.extend(hash.filter(|_| !self.many_bad));
    }

    /// Whether readers may see a frame: a removed frame may have lost its blob.
    pub(super) fn is_visible(&self, frame: &Frame) -> bool {
        match self.inner {
            Some(inner) => inner.is_visible(frame, inner.log.head()),
            None => self.visible.get_or_init(|| Visible::of(&self.env)).sees(frame),
        }
    }

    /// Whether files are created and deleted during the check.
    pub(super) fn is_written(&self) -> bool {
        self.inner.is_some_and(|inner| inner.read_only.is_none())
    }

    /// Whether a file of a running store was replaced since the check began.
    pub(super) fn is_replaced(&self, file: &FileEntry) -> bool {
        self.inner.is_some_and(|inner| inner.env.manifest.state().file(file.key()).is_none())
    }

    /// Counts bytes read, and checks whether to stop.
    pub(super) fn advance(&mut self, path: &Path, bytes: u64) -> Result<(), MaintainError> {
        self.report.bytes += bytes;
        self.bytes += bytes;
        self.pace(path)
    }

    /// Checks whether to stop.
    pub(super) fn pace(&mut self, path: &Path) -> Result<(), MaintainError> {
        let (bytes, bytes_total) = (self.bytes, self.bytes_total.max(self.bytes));
        match (self.watch)(&Progress { path, bytes, bytes_total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(MaintainError::Stopped),
        }
    }

    /// The bytes of a derived file, if it exists and can be read.
    pub(super) fn read_derived(&mut self, path: &Path) -> Option<Bytes> {
        let len = self.env.files.len_of(path).ok()?;
        if len > DERIVED_BYTES_MAX {
            return None;
        }
        let media = match self.env.files.open_sealed(path) {
            Err(error) if is_lost(&error) => {
                let (severity, problem) = (Severity::Derived, Problem::Index);
                self.report.add(Finding::new(severity, problem, path, 0, error));
                return None;
            }
            opened => opened.ok()?,
        };
        self.report.files += 1;
        self.report.bytes += len;
        media.view(0..media.len()).ok()
    }
}
