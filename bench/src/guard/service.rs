//! A service that holds its frames in memory and stores none, so that only the protocol is
//! measured.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use xs_engine::{
    BlobHash, Bound, Cursor, CursorName, Frame, FrameId, ReadOptions, StoreUuid, Topic,
    TopicPatterns,
};
use xs_protocol::{
    AppendRequest, Appended, BlobSink, BlobSource, CallRequest, Called, Code, CursorSummary, Done,
    Feed, LastRequest, Pulled, Refusal, Service, Stamp, StoreIdentity, TopicsPage, Wake,
};

/// The service.
#[derive(Debug)]
pub(crate) struct Ready {
    frames: Arc<[Frame]>,
}

impl Ready {
    pub(crate) fn new(frames: Vec<Frame>) -> Self {
        Self { frames: frames.into() }
    }
}

fn unserved<T>() -> Result<T, Refusal> {
    Err(Refusal::new(Code::UnknownOp, "only frames are ready"))
}

impl Service for Ready {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity {
            uuid: StoreUuid::from_bytes([1; 16]),
            epoch: 1,
            head: self.frames.len() as u64,
        }
    }

    fn append(&self, batch: AppendRequest, done: Done) {
        let stamp = |_: &_| Stamp { id: FrameId::from_bytes([1; 16]), offset: Some(1) };
        let frames = batch.frames.iter().map(stamp).collect();
        done(Ok(Appended { frames, ..Appended::default() }));
    }

    fn commit(&self) {}

    fn read(&self, _options: &ReadOptions) -> Result<Box<dyn Feed>, Refusal> {
        Ok(Box::new(All { frames: Arc::clone(&self.frames), next: 0 }))
    }

    fn follow(&self, options: &ReadOptions, _wake: Wake) -> Result<Box<dyn Feed>, Refusal> {
        self.read(options)
    }

    fn get(&self, _at: Bound) -> Result<Option<Frame>, Refusal> {
        unserved()
    }

    fn last(&self, _request: &LastRequest) -> Result<Vec<Frame>, Refusal> {
        unserved()
    }

    fn topics(
        &self,
        _: &TopicPatterns,
        _: Option<&Topic>,
        _: usize,
    ) -> Result<TopicsPage, Refusal> {
        unserved()
    }

    fn has_blob(&self, _hash: &BlobHash) -> Result<bool, Refusal> {
        unserved()
    }

    fn blob(&self, _hash: &BlobHash) -> Result<Option<Box<dyn BlobSource>>, Refusal> {
        unserved()
    }

    fn bodies(&self, _: &[Frame], _: u64, _: &mut Vec<(u32, Bytes)>) {}

    fn blob_sink(&self) -> Result<Box<dyn BlobSink>, Refusal> {
        unserved()
    }

    fn cursor(&self, _name: &CursorName) -> Result<Option<Cursor>, Refusal> {
        unserved()
    }

    fn cursors(&self) -> Result<Vec<CursorSummary>, Refusal> {
        unserved()
    }

    fn call(
        &self,
        _request: CallRequest,
        _wake: Wake,
    ) -> BoxFuture<'static, Result<Called, Refusal>> {
        Box::pin(async { unserved() })
    }
}

/// Delivers all frames once.
struct All {
    frames: Arc<[Frame]>,
    next: usize,
}

impl Feed for All {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let mut left = room;
        while let Some(frame) = self.frames.get(self.next) {
            if left == 0 {
                return Ok(Pulled::More);
            }
            left = left.saturating_sub(frame.record().len());
            frames.push(frame.clone());
            self.next += 1;
        }
        Ok(Pulled::End)
    }

    fn scanned_to(&self) -> u64 {
        self.next as u64
    }
}
