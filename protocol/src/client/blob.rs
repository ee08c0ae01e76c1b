//! Blob uploads and downloads in pieces: neither side holds more than a window of a blob.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use xs_engine::BlobHash;

use super::Reply;
use super::core::{Handle, Item};
use super::streams::{Line, misplaced};
use crate::error::{ClientError, Code};
use crate::limits::CHUNK_BYTES_MAX;
use crate::message::{BlobGetRequest, PeerLimits, Request, Response, StreamEvent};

/// An upload in progress.
struct Upload {
    handle: Arc<Handle>,
    line: Line,
    reply: Reply<(BlobHash, u64)>,
    /// Bytes that may be sent before the server grants more.
    window: u64,
}

impl Upload {
    fn begin(handle: &Arc<Handle>, limits: &PeerLimits) -> Self {
        let stored = |response| match response {
            Response::Stored(hash, len) => Some((hash, len)),
            _ => None,
        };
        let (line, reply) = Line::open(handle, 0, &Request::BlobPut, stored);
        let window = u64::from(limits.upload_window);
        Self { handle: Arc::clone(handle), line, reply, window }
    }

    /// Sends a piece once the window has room for it. An error means that the server refused the
    /// upload.
    async fn send(&mut self, bytes: Bytes, last: bool) -> Result<(), ClientError> {
        while (bytes.len() as u64) > self.window {
            self.hear().await?;
        }
        self.window -= bytes.len() as u64;
        self.handle.tell(&Request::BlobChunk { bytes, last }, self.line.sub)
    }

    /// Waits for the server's next word on the upload: a grant, or an error. Cancel safe.
    async fn hear(&mut self) -> Result<(), ClientError> {
        tokio::select! {
            biased;
            refused = poll_fn(|cx| self.reply.poll_reply(cx)) => {
                self.line.refused();
                refused.and_then(|_| Err(misplaced()))
            }
            item = self.line.item() => match item {
                Some(Item::Granted(more)) => {
                    self.window = self.window.saturating_add(more);
                    Ok(())
                }
                Some(Item::Failed(error)) => Err(error.of_request()),
                _ => Err(misplaced()),
            },
        }
    }

    async fn end(mut self) -> Result<(BlobHash, u64), ClientError> {
        let stored = (&mut self.reply).await;
        // Answered either way: there is no stream to cancel.
        self.line.refused();
        stored
    }
}

/// Uploads what a reader yields.
pub(super) async fn put<R: AsyncRead + Send>(
    handle: &Arc<Handle>,
    limits: &PeerLimits,
    source: R,
) -> Result<(BlobHash, u64), ClientError> {
    let mut upload = Upload::begin(handle, limits);
    tokio::pin!(source);
    let chunk = chunk_len(limits);
    loop {
        let mut piece = BytesMut::with_capacity(chunk);
        let mut last = false;
        while piece.len() < chunk && !last {
            let mut room = (&mut source).take((chunk - piece.len()) as u64);
            // The source may stay silent for hours after the connection is lost.
            let read = tokio::select! {
                biased;
                heard = upload.hear() => {
                    heard?;
                    continue;
                }
                read = room.read_buf(&mut piece) => read,
            };
            last = read.map_err(|error| unread(&error))? == 0;
        }
        upload.send(piece.freeze(), last).await?;
        if last {
            return upload.end().await;
        }
    }
}

fn unread(error: &io::Error) -> ClientError {
    ClientError::Source { kind: error.kind(), reason: error.to_string() }
}

/// Uploads bytes that are in memory.
pub(super) async fn put_bytes(
    handle: &Arc<Handle>,
    limits: &PeerLimits,
    mut bytes: Bytes,
) -> Result<(BlobHash, u64), ClientError> {
    let mut upload = Upload::begin(handle, limits);
    let chunk = chunk_len(limits);
    loop {
        let piece = bytes.split_to(bytes.len().min(chunk));
        upload.send(piece, bytes.is_empty()).await?;
        if bytes.is_empty() {
            return upload.end().await;
        }
    }
}

/// Piece size of an upload in bytes, clamped to a sane range whatever the server advertises.
fn chunk_len(limits: &PeerLimits) -> usize {
    (limits.chunk_bytes.min(limits.upload_window) as usize).clamp(1, CHUNK_BYTES_MAX)
}

/// Opens a blob; `None` when there is none.
pub(super) async fn get(
    handle: &Arc<Handle>,
    credit: u32,
    hash: &BlobHash,
) -> Result<Option<BlobStream>, ClientError> {
    let get = BlobGetRequest { hash: *hash, credit };
    let found = |response| match response {
        Response::Number(len) => Some(len),
        _ => None,
    };
    let (mut line, reply) = Line::open(handle, credit, &Request::BlobGet(get), found);
    match reply.await {
        Ok(len) => Ok(Some(BlobStream { line, hash: *hash, len, left: len, sum: Sha256::new() })),
        Err(error) => {
            line.refused();
            if error.code() == Some(Code::UnknownBlob) { Ok(None) } else { Err(error) }
        }
    }
}

/// A blob being downloaded. Dropping it cancels the download. The bytes are verified against the
/// hash: if they differ, an error is returned instead of the last piece.
#[must_use = "dropping a download cancels it"]
pub struct BlobStream {
    line: Line,
    hash: BlobHash,
    len: u64,
    /// Bytes still to be received.
    left: u64,
    /// Hash of what was received so far.
    sum: Sha256,
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream")
            .field("hash", &self.hash)
            .field("len", &self.len)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl BlobStream {
    /// Bytes of the whole blob.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the blob has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// [`ClientError::Integrity`] instead of the last piece when the bytes do not match the hash;
    /// any other error when the download failed.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, ClientError>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// All remaining bytes.
    ///
    /// # Errors
    /// [`ClientError::OverLimit`] when the blob is longer than `max` bytes, before any are taken;
    /// otherwise the errors of [`chunk`](Self::chunk).
    pub async fn bytes(mut self, max: usize) -> Result<Bytes, ClientError> {
        if self.len > max as u64 {
            return Err(ClientError::OverLimit {
                what: "a blob",
                size: self.len,
                max: max as u64,
                advice: "read it in chunks",
            });
        }
        // The first piece of a small blob is the whole blob: return it without a copy.
        let Some(first) = self.chunk().await else { return Ok(Bytes::new()) };
        let first = first?;
        if first.len() as u64 == self.len {
            return Ok(first);
        }
        let mut all = BytesMut::from(&first[..]);
        while let Some(piece) = self.chunk().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all.freeze())
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ClientError>>> {
        loop {
            let Some(item) = ready!(self.line.poll_item(cx)) else { return Poll::Ready(None) };
            let result = match item {
                Item::Chunk { bytes, last } => {
                    self.line.took(bytes.len());
                    match self.left.checked_sub(bytes.len() as u64) {
                        Some(left) if !last || left == 0 => self.left = left,
                        _ => return Poll::Ready(Some(Err(misplaced()))),
                    }
                    self.sum.update(&bytes);
                    if bytes.is_empty() && !last {
                        continue;
                    }
                    match last
                        && BlobHash::from_bytes(self.sum.finalize_reset().into()) != self.hash
                    {
                        true => Err(ClientError::Integrity(self.hash)),
                        false => Ok(bytes),
                    }
                }
                Item::Event(StreamEvent::Dropped { refusal, .. }) => Err(refusal.into()),
                Item::Failed(error) => Err(error),
                Item::Deliver { .. } | Item::Event(_) | Item::Granted(_) => Err(misplaced()),
            };
            if matches!(&result, Ok(bytes) if bytes.is_empty()) {
                return Poll::Ready(None);
            }
            return Poll::Ready(Some(result));
        }
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_chunk(cx)
    }
}
