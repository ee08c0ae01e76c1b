//! Blobs being downloaded and uploaded.

use bytes::Bytes;
use xs_engine::BlobHash;
use xs_protocol::{BlobSink, BlobSource, Code, Refusal};

use super::Memory;

pub(super) struct Source {
    pub(super) store: Memory,
    pub(super) len: u64,
    pub(super) bytes: Bytes,
}

impl BlobSource for Source {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, max: usize) -> Result<Bytes, Refusal> {
        let bytes = self.bytes.split_to(self.bytes.len().min(max));
        self.store.0.lock().read += bytes.len();
        Ok(bytes)
    }
}

pub(super) struct Sink {
    pub(super) store: Memory,
    pub(super) bytes: Vec<u8>,
}

impl BlobSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        drop(self.store.0.wait_while(|inner| inner.hold_blobs));
        if bytes.starts_with(b"full") {
            return Err(Refusal::new(Code::StorageFull, "the disk is full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(BlobHash, u64), Refusal> {
        let (hash, len) = (BlobHash::of(&self.bytes), self.bytes.len() as u64);
        self.store.0.lock().blobs.insert(hash, Bytes::from(self.bytes));
        Ok((hash, len))
    }
}
