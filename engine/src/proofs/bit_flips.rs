//! Flips every bit of a small, cleanly closed store, one at a time. Each flip is reported by any
//! read that meets it, or repaired from the source of truth, or lies where nothing is ever read;
//! frames and bodies never differ from what was stored, and the frames next to the damage stay
//! readable.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::path::Path;

use super::workload::{BACKUP, LONE_BLOB_LEN, Life};
use super::{Holds, MEDIA, Rig, body, is_long, look, number};
use crate::format::batch::{BatchHeader, Records};
use crate::format::file::FILE_HEADER_LEN;
use crate::format::pack::{ENTRY_HEADER_LEN, EntryHeader};
use crate::format::super_file::{FileEntry, FileKind, FileState, SuperState};
use crate::media::sim::{Image, SimDisk};
use crate::options::{MediaChoice, SyncPolicy};
use crate::store::{Health, Store};
use crate::testing::tell;
use crate::value::{BlobHash, CursorSummary, Frame, ReadOptions, TopicPatterns};

const STEPS: usize = 44;
/// Frames of the largest batch of the workload.
const BATCH_MAX: usize = 5;

/// A store, and everything it should return.
struct Subject {
    image: Image,
    manifest: SuperState,
    frames: BTreeMap<u64, Frame>,
    holds: Holds,
    /// Offsets and numbers of frames that were removed.
    removed: BTreeSet<(u64, u64)>,
    /// By topic: what the postings find.
    by_topic: Vec<u64>,
    blobs: Vec<(BlobHash, u64)>,
}

/// The effect of a flipped bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// A read reports it.
    Told,
    /// No read meets it, but a check of the whole store does.
    Verified,
    /// No answer changes.
    Silent,
}

fn subject(rig: &Rig) -> Subject {
    let disk = rig.disk(&Image::new());
    let life = Life::new();
    let lived = life.live(rig, &disk, STEPS, |error| panic!("{error}"));
    assert!(lived.is_ok());
    // An open that reads everything creates the derived files that are missing.
    let store = rig.open_quietly(&disk).unwrap();
    assert!(is_sound(&store));
    let holds = look(&store, "whole");
    let frames = frames(&store, TopicPatterns::everything());
    let frames: BTreeMap<_, _> =
        frames.map(|frame| (frame.as_ref().unwrap().offset().unwrap(), frame.unwrap())).collect();
    let by_topic = topic_frames(&store).unwrap();
    let blobs = frames.values().filter_map(|frame| Some((frame.hash()?, frame.body_len())));
    let (_, tried) = life.bounds();
    let lone = life.steps()[tried].blobs.clone().into_iter();
    let lone = lone.map(|n| (BlobHash::of(&body(n, LONE_BLOB_LEN)), LONE_BLOB_LEN as u64));
    // States of cursors, including superseded ones: their blobs still exist.
    let steps = life.steps();
    let states = steps.iter().flat_map(|step| step.cursors.values());
    let states = states.map(|(_, state)| (BlobHash::of(state), state.len() as u64));
    let states = states.filter(|(hash, _)| store.has_blob(hash).unwrap());
    let ever: BTreeSet<_> = steps.iter().flat_map(|step| step.frames.clone()).collect();
    let removed = ever.difference(&holds.frames.iter().copied().collect()).copied().collect();
    let blobs = blobs.chain(lone).chain(states).collect::<BTreeMap<_, _>>().into_iter().collect();
    let manifest = SuperState::clone(&store.inner.env.manifest.state());
    drop(store);
    // The backup is an independent store.
    let mut image = disk.image();
    image.retain(|path, _| !path.starts_with(BACKUP));
    Subject { image, manifest, frames, holds, removed, by_topic, blobs }
}

fn frames(
    store: &Store,
    topics: TopicPatterns,
) -> impl Iterator<Item = Result<Frame, crate::ReadError>> {
    store.read(&ReadOptions { topics, ..ReadOptions::default() }).unwrap()
}

/// Whether a check of the whole store finds nothing.
fn is_sound(store: &Store) -> bool {
    let checked = store.verify(&mut |_| ControlFlow::Continue(()));
    checked.is_ok_and(|report| report.findings_total == 0)
}

/// Offsets of the frames of a topic, or `None` if damage was reported.
fn topic_frames(store: &Store) -> Option<Vec<u64>> {
    let found = frames(store, TopicPatterns::parse("a.b").unwrap());
    found.map(|frame| frame.ok().and_then(|frame| frame.offset())).collect()
}

impl Subject {
    fn entry(&self, path: &Path) -> Option<&FileEntry> {
        let name = path.file_name()?.to_str()?;
        self.manifest.files.iter().find(|file| {
            let kind = match file.kind {
                FileKind::Segment => "seg",
                FileKind::Pack => "pack",
            };
            name == format!("{:020}.{}.{kind}", file.base, file.generation)
        })
    }

    /// The older copy of the manifest.
    fn is_older_manifest(&self, path: &Path) -> bool {
        let sequence = |path: &Path| SuperState::decode(&self.image[path]).map(|read| read.0).ok();
        match path.to_str() {
            Some("super.a") => sequence(path) < sequence(Path::new("super.b")),
            Some("super.b") => sequence(path) < sequence(Path::new("super.a")),
            _ => false,
        }
    }

    /// Ranges of a file whose bytes are never read.
    fn unused(&self, path: &Path) -> Vec<Range<usize>> {
        let bytes = &self.image[path];
        if self.is_older_manifest(path) {
            return std::iter::once(0..bytes.len()).collect();
        }
        let Some(entry) = self.entry(path) else { return Vec::new() };
        let end = match entry.state {
            FileState::Sealed | FileState::Dropped => bytes.len(),
            FileState::Unmarked => entry.length as usize,
        };
        let mut unused = match entry.kind {
            FileKind::Segment => unused_of_segment(&bytes[..end]),
            FileKind::Pack => unused_of_pack(&bytes[..end]),
        };
        unused.push(end..bytes.len());
        unused
    }

    /// Opens the store with a flipped bit and queries everything.
    fn ask(&self, rig: &Rig, disk: &SimDisk, what: &str) -> (Fate, usize) {
        let Ok(store) = rig.open_quietly(disk) else { return (Fate::Told, 0) };
        let (told, lost) = self.read(&store, what);
        let fate = match told {
            true => Fate::Told,
            false if is_sound(&store) => Fate::Silent,
            false => Fate::Verified,
        };
        (fate, lost)
    }

    /// Whether damage is reported, and frames that are missing.
    fn read(&self, store: &Store, what: &str) -> (bool, usize) {
        let info = store.info();
        let mut told = info.health != Health::Writable || !info.recovery.clean;
        let (mut found, mut back) = (0, 0);
        for frame in frames(store, TopicPatterns::everything()) {
            match frame {
                Ok(frame) => {
                    let offset = frame.offset().unwrap();
                    if self.removed.contains(&(offset, number(frame.meta()))) {
                        // The tombstone is damaged; that must be reported.
                        back += 1;
                        continue;
                    }
                    let stored = self.frames.get(&offset);
                    assert_eq!(stored, Some(&frame), "{what}: a frame that was never stored");
                    found += 1;
                }
                Err(_) => told = true,
            }
        }
        match topic_frames(store) {
            Some(by_topic) => assert!(told || by_topic == self.by_topic, "{what}: a topic"),
            None => told = true,
        }
        for (hash, len) in &self.blobs {
            match store.blob(hash).map(|blob| blob.map(|blob| blob.bytes(1 << 20))) {
                Ok(Some(Ok(bytes))) => {
                    assert!(BlobHash::of(&bytes) == *hash && bytes.len() as u64 == *len, "{what}");
                }
                Ok(None | Some(Err(_))) | Err(_) => told = true,
            }
        }
        for CursorSummary { name, .. } in store.cursors() {
            match store.cursor(&name) {
                Ok(Some(cursor)) => {
                    let held = (cursor.offset, cursor.state.to_vec());
                    let known = self.holds.cursors.get(name.as_str());
                    assert!(told || known == Some(&held), "{what}: cursor {name}");
                }
                _ => told = true,
            }
        }
        assert!(told || store.cursors().len() == self.holds.cursors.len(), "{what}: cursors");
        assert!(told || back == 0, "{what}: {back} removed frames are back");
        (told, self.frames.len() - found)
    }
}

fn unused_of_segment(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut unused = Vec::new();
    let mut at = FILE_HEADER_LEN;
    while let Ok(header) = BatchHeader::read(&bytes[at..]) {
        let (start, end) =
            (at + crate::format::batch::BATCH_HEADER_LEN, at + header.batch_len() as usize);
        for (position, prefix) in Records::new(&bytes[start..end]).flatten() {
            let record = start + position;
            unused.push(record + prefix.len as usize..record + prefix.stride());
        }
        at = end;
    }
    unused
}

fn unused_of_pack(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut unused = Vec::new();
    let mut at = FILE_HEADER_LEN;
    while let Ok(header) = bytes.get(at..).map_or_else(|| EntryHeader::read(&[]), EntryHeader::read)
    {
        let stored_end = at + ENTRY_HEADER_LEN + header.stored_len as usize;
        unused.push(stored_end..stored_end.next_multiple_of(8));
        let end = at + header.stride() as usize;
        unused.push(
            end - header.crc_list_len().next_multiple_of(8) as usize
                + header.crc_list_len() as usize..end,
        );
        at = end;
    }
    unused
}

/// Flips every bit, or one bit of every `step`th byte.
fn turn(media: MediaChoice, step: usize) {
    let rig = Rig::new(SyncPolicy::None, media);
    let subject = subject(&rig);
    let mut disk = rig.disk(&subject.image);
    let (mut turned, mut fates) = (0, BTreeMap::new());
    for (path, bytes) in &subject.image {
        let name = path.display().to_string();
        let unused = subject.unused(path);
        let is_derived = subject.entry(path).is_none() && !name.starts_with("super.");
        for at in (0..bytes.len()).step_by(if is_long() { 1 } else { step }) {
            let bits = if is_long() { 0..8 } else { at / step % 8..at / step % 8 + 1 };
            for bit in bits {
                let what = format!("bit {bit} of byte {at} of {name}");
                disk.flip(path, at, 1 << bit);
                let (fate, lost) = subject.ask(&rig, &disk, &what);
                turned += 1;
                *fates.entry((name.clone(), fate)).or_insert(0) += 1;
                let is_unused = unused.iter().any(|range| range.contains(&at));
                if is_derived {
                    assert!(fate != Fate::Told && lost == 0, "{what} is derived");
                } else if !is_unused {
                    assert_ne!(fate, Fate::Silent, "{what} passes in silence");
                }
                assert!(lost <= BATCH_MAX, "{what} costs {lost} frames");
                assert!(lost == 0 || fate == Fate::Told, "{what} hides {lost} frames");
                if disk.count() > 0 {
                    disk = rig.disk(&subject.image);
                } else {
                    disk.flip(path, at, 1 << bit);
                }
            }
        }
    }
    for ((name, fate), count) in &fates {
        tell(&format!("{count:8} {fate:?} in {name}"));
    }
    let sealed =
        |file: &FileEntry| file.kind == FileKind::Segment && file.state == FileState::Sealed;
    assert!(subject.manifest.files.iter().any(sealed), "no segment is sealed");
    let bits: usize = subject.image.values().map(|bytes| bytes.len() * 8).sum();
    assert!(bits >= 524_288, "{bits}");
    tell(&format!("{turned} bits turned of {bits}, {media:?}"));
}

#[test]
fn every_bit_of_a_mapped_store() {
    turn(MEDIA[0], 37);
}

#[test]
fn every_bit_of_a_positioned_store() {
    turn(MEDIA[1], 41);
}
