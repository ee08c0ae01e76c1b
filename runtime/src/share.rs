//! What one module may have under way at its store. All modules of a Host share one connection:
//! whoever asks for much waits for its own answers, or is told, and the others go on.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::isolate::{BackendCode, BackendError};

/// Streams that are open as long as their module likes: reads that follow, calls, blobs in pieces.
pub(crate) const STREAMS_MAX: usize = 192;
/// Bytes that the store may send on each of them ahead of what its module has taken.
pub(crate) const STREAM_CREDIT: u32 = 256 * 1024;
/// Whole blobs on their way at a time, up and down; more wait for their turn.
pub(crate) const BLOBS_MAX: usize = 16;
/// KiB of the blobs that wait to be stored.
const BLOBS_KIB_MAX: u32 = 64 * 1024;
/// Other requests without an answer at a time; more wait for their turn.
const REQUESTS_MAX: usize = 256;
/// Requests and whole blobs, those that wait included.
const WAITING_MAX: usize = 16_384;

/// The share of one module. Clones are the same share.
#[derive(Clone)]
pub(crate) struct Share {
    streams: Arc<Semaphore>,
    blobs: Arc<Semaphore>,
    blobs_kib: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Held while something is under way.
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
    /// Takes a stream, for as long as it is open.
    ///
    /// # Errors
    /// When as many are open as may be.
    pub(crate) fn stream(&self) -> Result<Held, BackendError> {
        let text = || {
            format!(
                "{STREAMS_MAX} reads that follow, calls and blobs in pieces are open at once in \
                 this module; end one first"
            )
        };
        Ok(Held { _permits: vec![take(&self.streams, 1, text)?] })
    }

    /// Waits for the turn of a request.
    ///
    /// # Errors
    /// When too many wait.
    pub(crate) async fn request(&self) -> Result<Held, BackendError> {
        self.turn(&self.requests, Vec::new()).await
    }

    /// Waits for the turn of a blob that comes.
    ///
    /// # Errors
    /// When too many wait.
    pub(crate) async fn blob(&self) -> Result<Held, BackendError> {
        self.turn(&self.blobs, Vec::new()).await
    }

    /// Waits for the turn of a blob that is stored.
    ///
    /// # Errors
    /// When too many wait, or too many bytes.
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
        // It is never closed, so there is no error.
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
