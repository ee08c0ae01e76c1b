//! The index files of sealed segments: written to a temporary file and renamed, read through maps,
//! and used only if they were made from the very segment they belong to.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::memory::MemoryIndex;
use crate::env::Env;
use crate::format::dead::DeadFile;
use crate::format::file::{FileHeader, Magic};
use crate::format::index::{self, SparseFile};
use crate::format::topic_index::TopicFile;
use crate::log::Segment;
use crate::names::{DEAD, SPARSE, TOPICS};

/// The open files of one segment.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    sparse: Option<Arc<SparseFile>>,
    topics: Option<Arc<TopicFile>>,
}

impl Loaded {
    pub(super) const fn is_empty(&self) -> bool {
        self.sparse.is_none() && self.topics.is_none()
    }

    /// The sparse index, opened if necessary; `None` when it does not verify.
    pub(super) fn sparse(&mut self, env: &Env, segment: &Segment) -> Option<Arc<SparseFile>> {
        if self.sparse.is_none() {
            self.sparse = read_sparse(open(env, segment, SPARSE).ok()?, segment).map(Arc::new);
        }
        self.sparse.clone()
    }

    /// The topic index, opened if necessary; `None` when it does not verify.
    pub(super) fn topics(&mut self, env: &Env, segment: &Segment) -> Option<Arc<TopicFile>> {
        if self.topics.is_none() {
            let file = read_topics(open(env, segment, TOPICS).ok()?, segment)?;
            file.check_postings().ok()?;
            self.topics = Some(Arc::new(file));
        }
        self.topics.clone()
    }
}

/// The topic index of a segment, its postings not checked; `None` when it does not verify.
pub(super) fn load_topics(env: &Env, segment: &Segment) -> Option<TopicFile> {
    read_topics(open(env, segment, TOPICS).ok()?, segment)
}

fn read_topics(bytes: Bytes, segment: &Segment) -> Option<TopicFile> {
    let (header, file) = TopicFile::read(bytes).ok()?;
    segment.owns(&header).then_some(file)
}

fn read_sparse(bytes: Bytes, segment: &Segment) -> Option<SparseFile> {
    let (header, file) = SparseFile::read(bytes).ok()?;
    segment.owns(&header).then_some(file)
}

/// The file of dead frames of a segment; `None` when it does not verify.
pub(super) fn load_dead(env: &Env, segment: &Segment) -> Option<DeadFile> {
    let (header, file) = DeadFile::read(open(env, segment, DEAD).ok()?).ok()?;
    segment.owns(&header).then_some(file)
}

/// Whether all these segments have a topic index file, whatever its content.
pub(super) fn all_named(env: &Env, segments: &[Arc<Segment>]) -> bool {
    let Ok(names) = env.files.list(&env.log_dir()) else { return false };
    let names: std::collections::HashSet<String> = names.into_iter().collect();
    segments.iter().all(|segment| {
        let path = env.log_path(segment.base(), segment.generation(), TOPICS);
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(name))
    })
}

fn open(env: &Env, segment: &Segment, kind: &str) -> io::Result<Bytes> {
    let path = env.log_path(segment.base(), segment.generation(), kind);
    let media = env.files.open_sealed(&path)?;
    media.view(0..media.published())
}

fn header_of(env: &Env, segment: &Segment, magic: Magic) -> FileHeader {
    FileHeader {
        magic,
        salt: 0,
        store: env.manifest.state().store,
        file: segment.uuid(),
        base: segment.base(),
        generation: segment.generation(),
    }
}

/// Writes the index files of a segment.
pub(super) fn write(env: &Env, segment: &Segment, memory: &MemoryIndex) -> io::Result<()> {
    let topics = memory.encode_topics(&header_of(env, segment, Magic::Topic));
    let topics = topics.map_err(io::Error::other)?;
    let sparse = index::encode(&header_of(env, segment, Magic::Index), memory.sparse());
    let dead = memory.dead().encode(&header_of(env, segment, Magic::Dead));
    let place = |kind| env.log_path(segment.base(), segment.generation(), kind);
    let files = [(SPARSE, sparse), (TOPICS, topics), (DEAD, dead)];
    env.write_whole(&env.log_dir(), files.map(|(kind, bytes)| (place(kind), bytes)))
}

/// Removes the files of a removed segment. What remains is removed by the next open.
pub(super) fn remove(env: &Env, segment: &Segment) {
    for kind in [SPARSE, TOPICS, DEAD] {
        let path = env.log_path(segment.base(), segment.generation(), kind);
        let _ = env.files.remove(&path);
    }
}

/// Removes the index files when one is missing or does not verify. If removal fails, the next open
/// finds the file bad again; a file that cannot be read now may be good. The file of dead frames is
/// kept: it hides them even when their tombstones are damaged.
pub(super) fn discard(env: &Env, segment: &Segment) {
    let is_bad = |kind, is_sound: fn(Bytes, &Segment) -> bool| match open(env, segment, kind) {
        Ok(bytes) => !is_sound(bytes, segment),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let sparse = |bytes, segment: &Segment| read_sparse(bytes, segment).is_some();
    let topics = |bytes, segment: &Segment| {
        read_topics(bytes, segment).is_some_and(|file| file.check_postings().is_ok())
    };
    if !is_bad(SPARSE, sparse) && !is_bad(TOPICS, topics) {
        return;
    }
    for kind in [SPARSE, TOPICS] {
        let path = env.log_path(segment.base(), segment.generation(), kind);
        if env.files.remove(&path).is_err() {
            return;
        }
    }
}
