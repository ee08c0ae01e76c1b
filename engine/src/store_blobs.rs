//! The blob API of the store: put and read by hash, large ones as streams.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::blob::{BlobError, BlobReader, Incoming, Wanted};
use crate::error::{PutError, ReadError};
use crate::options::SyncPolicy;
use crate::store::{Inner, Store};
use crate::value::{BlobHash, Frame};

/// Number of bodies looked up together.
const BODIES_AHEAD: usize = 64;

impl Store {
    /// Returns a reader of a blob, if the store has it.
    ///
    /// # Errors
    /// [`ReadError`] when the packs cannot be read.
    pub fn blob(&self, hash: &BlobHash) -> Result<Option<BlobReader>, ReadError> {
        Ok(self.inner.blobs.get(hash)?)
    }

    /// Returns the whole body of a frame: the content of [`blob`](Self::blob) for its hash, but
    /// faster for frames read in the order of the log or of a topic. `None` when the frame has no
    /// body, or the store no longer has it.
    ///
    /// # Errors
    /// [`ReadError`] when the packs cannot be read, or the body has more than `max` bytes.
    pub fn body(&self, frame: &Frame, max: u64) -> Result<Option<Bytes>, ReadError> {
        let Some(hash) = frame.hash() else { return Ok(None) };
        Ok(self.inner.blobs.body(frame.topic(), &hash, max)?)
    }

    /// Returns the bodies of frames: for each the result of [`body`](Self::body), but faster for
    /// many frames in log order.
    ///
    /// # Errors
    /// Each item may be an error, as from [`body`](Self::body).
    pub fn bodies<'a>(
        &'a self,
        frames: &'a [Frame],
        max: u64,
    ) -> impl Iterator<Item = Result<Option<Bytes>, ReadError>> + 'a {
        let mut bodies = self.inner.blobs.bodies();
        let mut wanted = Vec::new();
        frames.iter().enumerate().map(move |(number, frame)| {
            if number % BODIES_AHEAD == 0 {
                let next = frames[number..].iter().take(BODIES_AHEAD);
                let fitting = next.filter(|frame| frame.body_len() <= max);
                wanted.clear();
                wanted.extend(fitting.filter_map(|frame| {
                    Some(Wanted { hash: frame.hash()?, len: frame.body_len() })
                }));
                bodies.expect(frame.topic(), &wanted);
            }
            match frame.hash() {
                Some(_) if frame.body_len() > max => {
                    Err(ReadError::TooLarge { bytes: frame.body_len(), max })
                }
                Some(hash) => Ok(bodies.next(|| frame.topic(), &hash, max)?),
                None => Ok(None),
            }
        })
    }

    /// Whether the store has a blob. A blob known to be damaged counts as missing: put it again.
    ///
    /// # Errors
    /// [`ReadError`] when a pack that may hold it cannot be read.
    pub fn has_blob(&self, hash: &BlobHash) -> Result<bool, ReadError> {
        match self.inner.blobs.len_of(hash) {
            Ok(len) => Ok(len.is_some()),
            Err(BlobError::Corrupt(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts putting a blob that need not fit into memory.
    ///
    /// # Errors
    /// [`PutError`] when the store cannot be written.
    pub fn blob_writer(&self) -> Result<BlobWriter, PutError> {
        self.inner.begin_writing()?;
        Ok(BlobWriter { incoming: self.inner.blobs.incoming(), inner: Arc::clone(&self.inner) })
    }

    /// Puts a blob. On return, the blob is as durable as the store's policy makes an append.
    ///
    /// # Errors
    /// [`PutError`]; except for [`PutError::Indeterminate`], nothing was put.
    pub fn blob_put(&self, bytes: &[u8]) -> Result<BlobHash, PutError> {
        self.inner.begin_writing()?;
        let bytes = Bytes::copy_from_slice(bytes);
        let prepared = self.inner.blobs.prepare(&bytes).map_err(PutError::refused)?;
        let hash = prepared.hash();
        let put = self.inner.blobs.put(&prepared);
        self.inner.put_done(put.map_err(PutError::from))?;
        self.inner.space.put(hash, self.inner.env.clock.now_ms());
        Ok(hash)
    }
}

impl Inner {
    /// Makes a blob that was put durable if the policy asks for that.
    fn put_done<T>(&self, put: Result<T, PutError>) -> Result<T, PutError> {
        let put = put.map_err(|error| match error {
            PutError::Indeterminate(why) => PutError::Indeterminate(self.poison(why)),
            other => other,
        })?;
        if self.env.options.sync == SyncPolicy::Sync
            && let Err(error) = self.blobs.sync()
        {
            return Err(PutError::Indeterminate(self.poison(&error)));
        }
        self.upkeep.put(self);
        Ok(put)
    }
}

/// A blob being put. Nothing of it is stored before [`finish`](Self::finish).
#[must_use = "nothing is stored before it is finished"]
#[derive(Debug)]
pub struct BlobWriter {
    incoming: Incoming,
    inner: Arc<Inner>,
}

impl BlobWriter {
    /// Completes the blob and returns its hash and length. It is then as durable as the store's
    /// policy makes an append.
    ///
    /// # Errors
    /// [`PutError`]; except for [`PutError::Indeterminate`], nothing was put.
    pub fn finish(self) -> Result<(BlobHash, u64), PutError> {
        // The store may have been closed since the writer was created.
        self.inner.begin_writing()?;
        let put = self.incoming.finish();
        let (hash, len) = self.inner.put_done(put)?;
        self.inner.space.put(hash, self.inner.env.clock.now_ms());
        Ok((hash, len))
    }
}

impl io::Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.incoming.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.incoming.flush()
    }
}
