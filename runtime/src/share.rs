//! The share of the store's connection that one module may use. All modules of a Host use the same
//! connection: a module with many requests waits for its own answers, or gets an error, without
//! delaying the others.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::isolate::{BackendCode, BackendError};

/// Streams whose lifetime a module decides: following reads, calls, blobs in chunks.
pub(crate) const STREAMS_MAX: usize = 192;
/// Bytes that the store may send ahead on each of them.
pub(crate) const STREAM_CREDIT: u32 = 256 * 1024;
/// Concurrent transfers of whole blobs, in both directions; more wait for their turn.
pub(crate) const BLOBS_MAX: usize = 16;
/// KiB of blobs waiting to be stored.
const BLOBS_KIB_MAX: u32 = 64 * 1024;
/// Other concurrent requests; more wait for their turn.
const REQUESTS_MAX: usize = 256;
/// Requests and whole blobs, including those that wait.
const WAITING_MAX: usize = 16_384;

/// The share of one module. Clones refer to the same share.
#[derive(Clone)]
pub(crate) struct Share {
    streams: Arc<Semaphore>,
    blobs: Arc<Semaphore>,
    blobs_kib: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Held while a request or a stream is in progress.
pub(crate) struct Held {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Default for Share {
    fn default() -> Self {
        let of = |permits| Arc::new(Semaphore::new(permits));
        Self {
            streams: of(STREAMS_MAX),
            blobs: of(BLOBS_MAX),
            blobs_kib: of(BLOBS_KIB_MAX as usize),
            requests: of(REQUESTS_MAX),
            waiting: of(WAITING_MAX),
        }
    }
}

impl Share {
    /// Takes a stream slot, for as long as the stream is open.
    ///
    /// # Errors
    /// When the maximum number of streams is open.
    pub(crate) fn stream(&self) -> Result<Held, BackendError> {
        let text = || {
            format!(
                "{STREAMS_MAX} reads that follow, calls and blobs in pieces are open at once in \
                 this module; end one first"
            )
        };
        Ok(Held { _permits: vec![take(&self.streams, 1, text)?] })
    }

    /// Waits for a request slot.
    ///
    /// # Errors
    /// When too many requests wait.
    pub(crate) async fn request(&self) -> Result<Held, BackendError> {
        self.turn(&self.requests, Vec::new()).await
    }

    /// Waits for a slot to read a blob.
    ///
    /// # Errors
    /// When too many requests wait.
    pub(crate) async fn blob(&self) -> Result<Held, BackendError> {
        self.turn(&self.blobs, Vec::new()).await
    }

    /// Waits for a slot to store a blob.
    ///
    /// # Errors
    /// When too many requests or bytes wait.
    pub(crate) async fn blob_of(&self, bytes: usize) -> Result<Held, BackendError> {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).saturating_add(1);
        let text = || {
            let mib = BLOBS_KIB_MAX / 1024;
            format!("{mib} MiB of blobs wait to be stored; await some of them")
        };
        let bytes = take(&self.blobs_kib, kib.min(BLOBS_KIB_MAX), text)?;
        self.turn(&self.blobs, vec![bytes]).await
    }

    async fn turn(
        &self,
        turns: &Arc<Semaphore>,
        mut permits: Vec<OwnedSemaphorePermit>,
    ) -> Result<Held, BackendError> {
        let text = || {
            format!("{WAITING_MAX} requests of this module wait for the store; await some of them")
        };
        permits.push(take(&self.waiting, 1, text)?);
        // The semaphore is never closed, so there is no error.
        permits.extend(Arc::clone(turns).acquire_owned().await);
        Ok(Held { _permits: permits })
    }
}

fn take(
    of: &Arc<Semaphore>,
    permits: u32,
    text: impl FnOnce() -> String,
) -> Result<OwnedSemaphorePermit, BackendError> {
    let taken = Arc::clone(of).try_acquire_many_owned(permits);
    taken.map_err(|_| BackendError::new(BackendCode::Refused, text()))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn streams_are_refused_and_requests_wait() {
        let share = Share::default();
        let mut open: Vec<_> = (0..STREAMS_MAX).map(|_| share.stream().unwrap()).collect();
        let told = share.stream().err().unwrap();
        assert!(told.message.contains("192 reads that follow"), "{told}");
        open.pop();
        share.stream().unwrap();
        let mut held: Vec<_> =
            (0..REQUESTS_MAX).map(|_| share.request().now_or_never().unwrap().unwrap()).collect();
        let mut next = Box::pin(share.request());
        assert!(next.as_mut().now_or_never().is_none(), "it waits");
        assert!(share.blob().now_or_never().is_some(), "a blob does not wait for it");
        held.pop();
        assert!(next.now_or_never().unwrap().is_ok());
    }

    #[test]
    fn what_waits_is_bounded() {
        let share = Share::default();
        let held: Vec<_> = (0..REQUESTS_MAX).map(|_| share.request().now_or_never()).collect();
        let more = REQUESTS_MAX..WAITING_MAX;
        let mut waiting: Vec<_> = more.map(|_| Box::pin(share.request())).collect();
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        let told = share.blob().now_or_never().unwrap().err().unwrap();
        assert!(told.message.contains("16384 requests"), "{told}");
        drop((held, waiting));
        assert!(share.blob().now_or_never().unwrap().is_ok());
        let share = Share::default();
        let whole = share.blob_of(usize::MAX).now_or_never().unwrap().unwrap();
        let told = share.blob_of(0).now_or_never().unwrap().err().unwrap();
        assert!(told.message.contains("64 MiB"), "{told}");
        drop(whole);
        assert!(share.blob_of(0).now_or_never().unwrap().is_ok());
    }
}
