//! Checks everything except the log: the manifest, the packs, and other files in the directories.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::derived;
use super::error::MaintainError;
use super::finding::{Finding, Problem, Severity};
use super::survey::find_salt;
use super::verify::Checker;
use crate::blob::{BadEntry, LookedAt, check_pack_file, find_pack_salt, pack_entries};
use crate::format::file::{FileHeader, FormatError, Magic};
use crate::format::super_file::{FileEntry, FileKind, FileState, SUPER_BYTES_MAX, SuperState};
use crate::media::{Media, is_lost, prefix};
use crate::names::{MANIFESTS, TABLE, UNFINISHED, finished, unfinished};

/// How often to retry opening a file of a running store that is being replaced, and the pause
/// between tries.
const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// A file with a valid header, and its salt.
type Opened = (Arc<dyn Media>, u32);

impl Checker<'_> {
    /// Checks both copies of the manifest.
    pub(super) fn manifest(&mut self) {
        let mut bad = Vec::new();
        let mut good = 0;
        for name in MANIFESTS {
            let path = self.env.dir.join(name);
            let bytes = match self.env.files.read(&path, SUPER_BYTES_MAX) {
                Ok(bytes) => bytes,
                // The second copy is written with the first change.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    bad.push((path, error.to_string()));
                    continue;
                }
            };
            self.report.files += 1;
            self.report.bytes += bytes.len() as u64;
            match SuperState::decode(&bytes) {
                Ok(_) => good += 1,
                // A running store may be writing it right now.
                Err(_) if self.live => good += 1,
                Err(error) => bad.push((path, error.to_string())),
            }
        }
        let severity = if good > 0 { Severity::Derived } else { Severity::Lost };
        for (path, what) in bad {
            self.report.add(Finding::new(severity, Problem::Manifest, &path, 0, what));
        }
    }

    /// Reports files that do not belong to the store.
    pub(super) fn strangers(&mut self, files: &[FileEntry]) -> Result<(), MaintainError> {
        for kind in [FileKind::Segment, FileKind::Pack] {
            let dir = self.env.dir.join(kind.dir());
            let stems: HashSet<String> =
                (files.iter().filter(|file| file.kind == kind)).map(FileEntry::stem).collect();
            let names = self.env.files.list(&dir);
            for name in names.map_err(|error| MaintainError::io("list", &dir, error))? {
                let (stem, end) = name.rsplit_once('.').unwrap_or((&name, ""));
                if stems.contains(stem) || self.live {
                    continue;
                }
                let what = match end {
                    UNFINISHED => "is unfinished",
                    _ => "does not belong to the store",
                };
                let path = dir.join(&name);
                self.report.add(Finding::new(Severity::Unused, Problem::Stranger, &path, 0, what));
            }
        }
        let dir = self.env.dir.clone();
        let names = self.env.files.list(&dir);
        for name in names.map_err(|error| MaintainError::io("list", &dir, error))? {
            if name.starts_with(TABLE) && finished(&name).is_none() {
                derived::table(self, &dir.join(&name));
            }
        }
        Ok(())
    }

    /// Checks a pack, and returns what lookups in it need.
    pub(super) fn pack(&mut self, file: &FileEntry) -> Result<Option<LookedAt>, MaintainError> {
        let path = file.path_in(&self.env.dir);
        let before = self.report.findings_total;
        let Some((media, salt)) = self.open(file, &path, Magic::Pack)? else {
            self.rotten.note(None);
            return Ok(None);
        };
        let state = self.env.manifest.state();
        let open_end = file.state == FileState::Unmarked && !state.clean;
        // What a running store appends is not checked.
        let end = if open_end { media.len() } else { file.length };
        let media = prefix(media, end);
        let failed = |error| MaintainError::io("read", &path, error);
        let mut at = 0;
        let mut stopped = None;
        let blobs = check_pack_file(&media, salt, &mut |position, hash, bad| {
            let passed = position.saturating_sub(at);
            at = at.max(position);
            if *bad != BadEntry::None {
                let severity = if open_end { Severity::Unused } else { Severity::Lost };
                let finding = Finding::new(severity, Problem::Blob, &path, position, bad);
                self.report.add(finding.blob(hash));
                self.suspect(hash);
                if !open_end {
                    self.rotten.note(hash);
                }
            }
            match self.advance(&path, passed) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    stopped = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        self.report.blobs += blobs.map_err(failed)?;
        stopped.map_or(Ok(()), Err)?;
        self.advance(&path, media.len().saturating_sub(at))?;
        if self.holes(media.path(), u64::MAX) {
            self.is_blind = true;
            self.rotten.note(None);
        }
        if self.is_exact(file) && self.report.findings_total == before {
            self.file_crc(file, &path, &media)?;
            let entries = pack_entries(&media, salt).map_err(failed)?;
            derived::pack(self, file, &entries);
        }
        Ok(Some((*file, media, salt)))
    }

    /// Opens a file of the manifest and checks its header and length.
    pub(super) fn open(
        &mut self,
        file: &FileEntry,
        path: &Path,
        magic: Magic,
    ) -> Result<Option<Opened>, MaintainError> {
        let media = match self.open_named(file, path) {
            Ok(media) => media,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.is_replaced(file) {
                    let (severity, problem) = (Severity::Lost, Problem::Missing);
                    let finding = Finding::new(severity, problem, path, 0, "the file is missing");
                    self.report.add(self.all_of(file, finding));
                }
                return Ok(None);
            }
            Err(error) if is_lost(&error) => {
                let finding = Finding::unreadable(path, &(0..file.length), error);
                self.report.add(self.all_of(file, finding));
                return Ok(None);
            }
            Err(error) => return Err(MaintainError::io("open", path, error)),
        };
        self.report.files += 1;
        let (problem, what) = match self.header_of(&media, magic) {
            Ok(header) if file.owns(&header) => {
                if media.len() < file.length || self.is_exact(file) && media.len() != file.length {
                    let what = format!("has {} bytes, not {}", media.len(), file.length);
                    let severity = match media.len() < file.length {
                        true => Severity::Lost,
                        false => Severity::Unused,
                    };
                    let position = media.len().min(file.length);
                    let finding = Finding::new(severity, Problem::Length, path, position, what);
                    self.report.add(finding);
                }
                return Ok(Some((media, header.salt)));
            }
            Ok(_) => (Problem::Header, "is not the file the manifest names".to_owned()),
            Err(error @ FormatError::Version { .. }) => (Problem::Version, error.to_string()),
            Err(error) => {
                let salt = match magic {
                    Magic::Segment => find_salt(&*media),
                    Magic::Pack => find_pack_salt(&*media),
                    _ => None,
                };
                if let Some(salt) = salt {
                    // What is after the header is read with the salt of the batches or entries.
                    let (severity, problem) = (Severity::Derived, Problem::Header);
                    self.report.add(Finding::new(severity, problem, path, 0, error));
                    return Ok(Some((media, salt)));
                }
                (Problem::Header, error.to_string())
            }
        };
        let finding = Finding::new(Severity::Lost, problem, path, 0, what);
        self.report.add(self.all_of(file, finding));
        Ok(None)
    }

    /// Opens a file of the manifest, also under its temporary name while a switch of files is
    /// incomplete: the next open renames it.
    fn open_named(&self, file: &FileEntry, path: &Path) -> io::Result<Arc<dyn Media>> {
        for _ in 0..ATTEMPTS {
            match self.env.files.open_scan(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
            if !self.is_written() || self.is_replaced(file) {
                break;
            }
            // It is being replaced: the manifest will say so soon.
            std::thread::sleep(PAUSE);
        }
        self.env.files.open_scan(&unfinished(path))
    }

    /// Whether a file was sealed when the check began. The snapshot of a running store also marks
    /// files as sealed that are still written to; their CRC is unknown.
    pub(super) fn is_exact(&self, file: &FileEntry) -> bool {
        file.state == FileState::Sealed && !(self.live && file.crc == 0)
    }

    /// Extends a finding to all frames of a file.
    fn all_of(&self, file: &FileEntry, finding: Finding) -> Finding {
        let end = (file.state == FileState::Sealed).then(|| file.end());
        match file.kind {
            FileKind::Segment => finding.frames(file.base, end, None),
            FileKind::Pack => finding,
        }
    }

    pub(super) fn header_of(
        &self,
        media: &Arc<dyn Media>,
        magic: Magic,
    ) -> Result<FileHeader, FormatError> {
        let head = media.view(0..media.len().min(crate::format::file::FILE_HEADER_LEN as u64));
        FileHeader::decode(&head.map_err(|_| FormatError::Short)?, magic)
    }

    /// Compares a sealed file with its CRC in the manifest. Called when all its parts verify.
    pub(super) fn file_crc(
        &mut self,
        file: &FileEntry,
        path: &Path,
        media: &Arc<dyn Media>,
    ) -> Result<(), MaintainError> {
        if !self.is_exact(file) {
            return Ok(());
        }
        let (mut crc, mut at) = (crc32fast::Hasher::new(), 0);
        while at < media.len() {
            let upto = (at + super::verify::PIECE_LEN).min(media.len());
            let bytes = media.view(at..upto);
            crc.update(&bytes.map_err(|error| MaintainError::io("read", path, error))?);
            at = upto;
            self.pace(path)?;
        }
        if crc.finalize() != file.crc {
            let what = "the file fails the CRC of its sealing, though all its parts verify";
            let finding = Finding::new(Severity::Unused, Problem::FileCrc, path, 0, what);
            self.report.add(finding);
        }
        Ok(())
    }
}
