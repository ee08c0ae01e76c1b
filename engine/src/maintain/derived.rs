//! Compares derived files with their sources. A missing one is not a finding: it is rebuilt when
//! needed.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::finding::{Finding, Problem, Severity};
use super::verify::Checker;
use crate::format::dead::DeadFile;
use crate::format::file::{FileHeader, FormatError};
use crate::format::index::{self, SparseFile};
use crate::format::key_index::KeyFile;
use crate::format::pack_index::{IndexEntry, PackIndex};
use crate::format::super_file::FileEntry;
use crate::format::topic_index::{TopicEntry, TopicFile};
use crate::format::topic_table::TableFile;
use crate::index::MemoryIndex;
use crate::names::{DEAD, KEYS, PACK_INDEX, SPARSE, TOPICS};

/// Compares `.idx` and `.top` of a sealed segment with an index built from it.
pub(super) fn segment(checker: &mut Checker<'_>, file: &FileEntry, made: &MemoryIndex) {
    let path = file.path_of(&checker.env.dir, SPARSE);
    if let Some(bytes) = checker.read_derived(&path) {
        let read = SparseFile::read(bytes.clone()).map(|(header, _)| header);
        let same = |header: &FileHeader| index::encode(header, made.sparse()) == bytes;
        judge(checker, file, &path, read, same);
    }
    let path = file.path_of(&checker.env.dir, TOPICS);
    if let Some(bytes) = checker.read_derived(&path) {
        let read = TopicFile::read(bytes);
        let read = read.and_then(|(header, topics)| {
            topics.check_postings()?;
            Ok((header, topics))
        });
        match read {
            Ok((header, topics)) => {
                judge(checker, file, &path, Ok(header), |header| {
                    says_the_same(header, &topics, made)
                });
            }
            Err(error) => judge(checker, file, &path, Err(error), |_| true),
        }
    }
}

/// Checks `.key` and `.dead`. Their content depends on when they were made, so only checks that
/// they are sound and belong to this file.
pub(super) fn sound(checker: &mut Checker<'_>, file: &FileEntry) {
    let path = file.path_of(&checker.env.dir, KEYS);
    if let Some(bytes) = checker.read_derived(&path) {
        judge(checker, file, &path, KeyFile::read(bytes).map(|(header, _)| header), |_| true);
    }
    let path = file.path_of(&checker.env.dir, DEAD);
    if let Some(bytes) = checker.read_derived(&path) {
        judge(checker, file, &path, DeadFile::read(bytes).map(|(header, _)| header), |_| true);
    }
}

/// Compares the entries of two topic indexes, ignoring what `last:n` of later frames removed.
fn says_the_same(header: &FileHeader, topics: &TopicFile, made: &MemoryIndex) -> bool {
    let Ok(made) = made.encode_topics(header) else { return true };
    let Ok((_, made)) = TopicFile::read(Bytes::from(made)) else { return true };
    let list = |file: &TopicFile| {
        let mut all = BTreeMap::new();
        // Of a topic without frames only the floor is known.
        file.for_each(|name, entry| {
            if entry.count > 0 {
                all.insert(name.to_owned(), TopicEntry { floor: 0, ..*entry });
            }
        });
        all
    };
    let (found, expected) = (list(topics), list(&made));
    let places = |file: &TopicFile, entry: &TopicEntry| -> Vec<_> {
        file.postings(entry, header.base).forward().collect()
    };
    let same = |(name, entry): (&String, &TopicEntry)| {
        expected
            .get(name)
            .is_some_and(|other| entry == other && places(topics, entry) == places(&made, other))
    };
    found.len() == expected.len() && found.iter().all(same)
}

/// Compares `.pidx` with the locations of the blobs in its pack.
pub(super) fn pack(checker: &mut Checker<'_>, file: &FileEntry, entries: &[IndexEntry]) {
    let path = file.path_of(&checker.env.dir, PACK_INDEX);
    let Some(bytes) = checker.read_derived(&path) else { return };
    let read = PackIndex::open(bytes).and_then(|index| {
        index.check_filter()?;
        index.check_entries()?;
        Ok(index)
    });
    match read {
        Ok(index) => {
            let holds = |entry: &IndexEntry| {
                index.may_hold(entry.prefix) && index.find(entry.prefix).any(|e| e == *entry)
            };
            let same = index.count() == entries.len() && entries.iter().all(holds);
            judge(checker, file, &path, Ok(*index.header()), |_| same);
        }
        Err(error) => judge(checker, file, &path, Err(error), |_| true),
    }
}

fn judge(
    checker: &mut Checker<'_>,
    file: &FileEntry,
    path: &Path,
    read: Result<FileHeader, FormatError>,
    says_the_same: impl FnOnce(&FileHeader) -> bool,
) {
    let (problem, what) = match read {
        Err(error) => (Problem::Index, error.to_string()),
        Ok(header) if !file.owns(&header) => {
            (Problem::IndexContent, "is made from another file".to_owned())
        }
        Ok(header) if !says_the_same(&header) => {
            (Problem::IndexContent, "does not say what the file it is made from says".to_owned())
        }
        Ok(_) => return,
    };
    checker.report.add(Finding::new(Severity::Derived, problem, path, 0, what));
}

/// Checks a topic table alone: it is made from many files, so there is nothing to compare it with.
pub(super) fn table(checker: &mut Checker<'_>, path: &Path) {
    let Some(bytes) = checker.read_derived(path) else { return };
    if let Err(error) = TableFile::read(bytes) {
        checker.report.add(Finding::new(Severity::Derived, Problem::Index, path, 0, error));
    }
}
