//! Finds the files of a damaged store, whatever the manifest says, and identifies each.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::error::MaintainError;
use super::finding::{Finding, Problem, Severity};
use super::repair::Rescue;
use super::survey::find_salt;
use crate::blob::find_pack_salt;
use crate::error::OpenError;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use crate::format::super_file::{FileEntry, FileKey, FileKind, FileState};
use crate::log::{SegmentKey, unmarked};
use crate::media::{Media, is_lost};
use crate::names;
use crate::value::StoreUuid;

/// An existing file, named by the manifest or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) base: u64,
    pub(super) generation: u32,
    named: bool,
    /// It has its temporary name: a switch of files was interrupted.
    aside: bool,
}

/// An opened file and its salt.
pub(super) type Opened = (Arc<dyn Media>, u32);

impl Candidate {
    /// The key of the file, which is of this kind.
    pub(super) const fn file(&self, kind: FileKind) -> FileKey {
        FileKey { kind, base: self.base, generation: self.generation }
    }

    /// The identity of a segment, without its uuid.
    pub(super) const fn key(&self, salt: u32) -> SegmentKey {
        SegmentKey { base: self.base, generation: self.generation, uuid: [0; 16], salt }
    }
}

impl Rescue<'_> {
    /// The files of a kind, one for each base: the one the manifest names, or the newest.
    pub(super) fn candidates(&mut self, kind: FileKind) -> Result<Vec<Candidate>, MaintainError> {
        let dir = self.from.join(kind.dir());
        let names = match self.from_files.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(|error| MaintainError::io("list", &dir, error))?,
        };
        let mut found: BTreeMap<u64, Candidate> = BTreeMap::new();
        for name in names {
            let (whole, aside) = match names::finished(&name) {
                Some(whole) => (whole, true),
                None => (name.as_str(), false),
            };
            let Some(key) = names::parse_key(whole, kind) else { continue };
            let FileKey { base, generation, .. } = key;
            let entry = self.known.as_ref().and_then(|known| known.file(key));
            if entry.is_some_and(|file| file.state == FileState::Dropped) {
                continue;
            }
            let named = entry.is_some();
            self.bytes_total += self.from_files.len_of(&dir.join(&name)).unwrap_or(0);
            // Of files with temporary names the older one is certainly complete.
            let rank = |named: bool, aside: bool, generation: u32| {
                (named, !aside, if aside { u32::MAX - generation } else { generation })
            };
            let new = rank(named, aside, generation);
            let better = |old: &Candidate| new > rank(old.named, old.aside, old.generation);
            if found.get(&base).is_none_or(better) {
                found.insert(base, Candidate { base, generation, named, aside });
            }
        }
        Ok(found.into_values().collect())
    }

    fn entry(kind: FileKind, one: &Candidate) -> FileEntry {
        FileEntry { kind, ..unmarked(&one.key(0)) }
    }

    /// Opens a file and finds its salt. `None` when it cannot be identified.
    pub(super) fn open(
        &mut self,
        kind: FileKind,
        one: &Candidate,
        tell: bool,
    ) -> Result<Option<Opened>, MaintainError> {
        let path = Self::entry(kind, one).path_in(self.from);
        let path = if one.aside { names::unfinished(&path) } else { path };
        let media = match self.from_files.open_scan(&path) {
            Err(error) if is_lost(&error) => {
                if tell {
                    let len = self.from_files.len_of(&path).unwrap_or_default();
                    self.lose(Finding::unreadable(&path, &(0..len), error));
                }
                return Ok(None);
            }
            opened => opened.map_err(|error| MaintainError::io("open", &path, error))?,
        };
        let len = media.len().min(FILE_HEADER_LEN as u64);
        let head = media.view(0..len).map_err(|error| MaintainError::io("read", &path, error))?;
        let magic = if kind == FileKind::Segment { Magic::Segment } else { Magic::Pack };
        let error = match FileHeader::decode(&head, magic) {
            Ok(header) => {
                if self.report.source.is_none() {
                    self.report.source = StoreUuid::known(header.store);
                }
                return Ok(Some((media, header.salt)));
            }
            Err(FormatError::Version { found }) => {
                return Err(OpenError::Version { path, found }.into());
            }
            Err(error) => error,
        };
        let salt = match kind {
            FileKind::Segment => find_salt(&*media),
            FileKind::Pack => find_pack_salt(&*media),
        };
        if salt.is_none() && tell {
            self.lose(Finding::new(Severity::Lost, Problem::Header, &path, 0, error));
        }
        Ok(salt.map(|salt| (media, salt)))
    }
}
