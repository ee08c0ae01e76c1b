//! Moves a segment's index from memory to files once the segment is sealed. Derived files that
//! could not be written are retried; until then they only cost memory.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::files::{self, Loaded};
use super::topics::Source;
use super::{Index, Kind, SegmentIndex, merge};
use crate::log::Segment;
use crate::media::is_full;

impl Index {
    /// Writes the index files of a sealed segment, and from now on reads it through `segment`.
    ///
    /// # Errors
    /// The I/O error. The index stays in memory until [`Self::seal_refused`] or the next open
    /// writes the files.
    pub(crate) fn seal(&self, segment: &Arc<Segment>) -> io::Result<()> {
        let Some(old) = self.by_key(segment).filter(|_| self.writable) else { return Ok(()) };
        {
            let mut topics = self.topics.write();
            if topics.active.as_ref().is_some_and(|(ordinal, _)| *ordinal == old.ordinal) {
                self.freeze(&mut topics, true);
            }
        }
        let (index, whole) = match &*old.kind.lock() {
            Kind::Frozen { index, whole } => (index.clone(), *whole),
            Kind::Active | Kind::Files(_) => return Ok(()),
        };
        let written = if whole { files::write(&self.env, segment, &index) } else { Ok(()) };
        let file = match &written {
            Ok(()) if whole => files::load_topics(&self.env, segment),
            _ => None,
        };
        let mut topics = self.topics.write();
        if self.by_key(segment).is_none_or(|of| of.ordinal != old.ordinal) {
            // Compaction has replaced it meanwhile, and another segment may have its position.
            drop(topics);
            files::remove(&self.env, segment);
            return Ok(());
        }
        let layer = topics.layers.iter_mut().find(|layer| layer.is_of(&index));
        let kind = match (file, layer) {
            (Some(file), Some(layer)) => {
                (layer.of, layer.source) = (merge::covered(segment), Source::File(Arc::new(file)));
                Kind::Files(Loaded::default())
            }
            _ => Kind::Frozen { index, whole },
        };
        let new = Arc::new(old.changed(segment, Arc::new(Mutex::new(kind))));
        let mut segments = self.segments.write();
        let replace = |of: &Arc<SegmentIndex>| match of.ordinal == new.ordinal {
            true => new.clone(),
            false => of.clone(),
        };
        *segments = segments.iter().map(replace).collect();
        drop((segments, topics));
        written.inspect_err(|_| self.refused.lock().push(segment.clone()))
    }

    /// Writes the files that could not be written before; returns whether any were written.
    ///
    /// # Errors
    /// The first error of this attempt.
    pub(crate) fn seal_refused(&self) -> io::Result<bool> {
        let (mut any, mut first) = (false, Ok(()));
        // Segments that fail again are queued again in `refused`, so each is tried once.
        let mut again = std::mem::take(&mut *self.refused.lock()).into_iter();
        while let Some(segment) = again.next() {
            match self.seal(&segment) {
                Ok(()) => any = true,
                Err(error) => {
                    let no_room = is_full(&error);
                    first = first.and(Err(error));
                    if no_room {
                        self.refused.lock().extend(again);
                        break;
                    }
                }
            }
        }
        first.map(|()| any)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use crate::media::Disk;
    use crate::options::{MediaChoice, SyncPolicy};
    use crate::recovery::open_with;
    use crate::testing::{fast_dir, files_in, frame, open, options};

    /// The files of one segment cannot be written, those of others are lost: an open creates the
    /// lost ones again, and the rest is written as soon as possible.
    #[test]
    fn files_that_an_open_could_not_write_keep_no_others_back() {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        let mut count = 0;
        while store.info().segments < 4 {
            store.append(frame("a", count).into()).unwrap();
            count += 1;
        }
        store.close().unwrap();
        drop(store);
        let topics = files_in(&dir.path().join("log"), "top");
        assert_eq!(topics.len(), 3);
        for path in &topics {
            fs::remove_file(path).unwrap();
            // A file cannot replace a directory.
            fs::create_dir(path).unwrap();
        }
        let files = Arc::new(Disk::new(MediaChoice::Auto, dir.path()));
        let inner = open_with(dir.path(), options(SyncPolicy::None), files).unwrap();
        let index = &inner.index;
        assert_eq!(index.layers_in_memory(), 3);
        for path in &topics[..2] {
            fs::remove_dir(path).unwrap();
        }
        inner.sealing.index_sealed(&inner).unwrap_err();
        assert_eq!(index.layers_in_memory(), 1, "one of them still has no place");
        fs::remove_dir(&topics[2]).unwrap();
        assert!(inner.sealing.index_sealed(&inner).unwrap());
        assert_eq!((index.layers_in_memory(), index.frames()), (0, count));
        assert!(!inner.sealing.index_sealed(&inner).unwrap(), "twice");
    }
}
