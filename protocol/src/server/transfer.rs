//! Uploads and downloads of blobs. The store is read and written on blocking threads, one piece at
//! a time for each blob; never more than a window of it is in memory, in buffers of twice that
//! size.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use xs_engine::BlobHash;

use super::mailbox::{Mail, Mailbox};
use super::work::Next;
use crate::error::{Code, Refusal};
use crate::limits::CHUNK_BYTES_MAX;
use crate::message::StreamEvent;
use crate::service::{BlobSink, BlobSource, Service};
use crate::session::{ServerSession, Ticket};

/// Minimum length of an upload's piece that is kept as received. A shorter one is copied after
/// others: each would otherwise keep the whole buffer that it was read into.
const PIECE_KEPT_MIN: usize = CHUNK_BYTES_MAX / 2;

/// A blob being uploaded.
pub(crate) struct Upload {
    pub(crate) ticket: Ticket,
    sink: Option<Box<dyn BlobSink>>,
    chunks: Vec<Bytes>,
    /// Short pieces after them.
    short: BytesMut,
    /// A blocking thread has the sink.
    busy: bool,
    ended: bool,
}

impl Upload {
    pub(crate) fn new(ticket: Ticket) -> Self {
        let (chunks, short) = (Vec::new(), BytesMut::new());
        Self { ticket, sink: None, chunks, short, busy: false, ended: false }
    }

    /// Adds a received piece.
    pub(crate) fn push(&mut self, bytes: Bytes, last: bool) {
        if self.ended {
            return;
        }
        self.ended = last;
        if bytes.len() < PIECE_KEPT_MIN {
            self.short.extend_from_slice(&bytes);
        } else {
            self.close_short();
            self.chunks.push(bytes);
        }
    }

    /// Appends the short pieces to the others.
    fn close_short(&mut self) {
        if !self.short.is_empty() {
            self.chunks.push(std::mem::take(&mut self.short).freeze());
        }
    }

    /// The blocking thread returned the sink.
    pub(crate) fn returned(&mut self, sink: Box<dyn BlobSink>) {
        (self.sink, self.busy) = (Some(sink), false);
    }

    /// Passes received pieces to a blocking thread.
    pub(crate) fn step(&mut self, sub: u32, service: &Arc<dyn Service>, mailbox: &Arc<Mailbox>) {
        if self.busy {
            return;
        }
        self.close_short();
        if self.chunks.is_empty() && !self.ended {
            return;
        }
        self.busy = true;
        let (chunks, sink, ended) =
            (std::mem::take(&mut self.chunks), self.sink.take(), self.ended);
        let service = Arc::clone(service);
        mailbox.post_from(move || {
            let write = || {
                let mut sink = sink.map_or_else(|| service.blob_sink(), Ok)?;
                chunks.iter().try_for_each(|chunk| sink.write(chunk))?;
                Ok((sink, chunks.iter().map(|chunk| chunk.len() as u64).sum()))
            };
            let written = write();
            match (written, ended) {
                (Ok((sink, _)), true) => Mail::Stored { sub, result: sink.finish() },
                (Err(refusal), true) => Mail::Stored { sub, result: Err(refusal) },
                (result, false) => Mail::Taken { sub, result },
            }
        });
    }
}

/// A blob being downloaded.
pub(crate) struct Download {
    /// `None` while a blocking thread uses it.
    source: Option<Box<dyn BlobSource>>,
    /// Bytes not yet sent, once the blob is open.
    pub(crate) left: u64,
    /// Bytes that the pending read requested.
    asked: usize,
}

impl Download {
    /// Opens a blob on a blocking thread and reads its first bytes, if there is room for them.
    pub(crate) fn open(
        ticket: Ticket,
        sub: u32,
        hash: BlobHash,
        session: &mut ServerSession,
        service: &Arc<dyn Service>,
        mailbox: &Arc<Mailbox>,
    ) -> Self {
        let service = Arc::clone(service);
        let asked = if session.has_room() { piece_len(session.credit(sub)) } else { 0 };
        session.reserve(asked);
        mailbox.post_from(move || {
            let open = || {
                let Some(mut source) = service.blob(&hash)? else {
                    let text = format!("the store has no blob {hash}");
                    return Err(Refusal::new(Code::UnknownBlob, text));
                };
                let first = if asked == 0 { Bytes::new() } else { source.read(asked)? };
                Ok((source, first))
            };
            Mail::Opened { ticket, sub, asked, result: open() }
        });
        Self { source: None, left: 0, asked }
    }

    /// Sends a piece and, if there is credit, starts reading the next one.
    pub(crate) fn sent(
        &mut self,
        sub: u32,
        source: Box<dyn BlobSource>,
        bytes: &Bytes,
        session: &mut ServerSession,
    ) -> Next {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if bytes.is_empty() && self.left > 0 && self.asked > 0 {
            let refusal = Refusal::new(Code::Corrupt, "the blob ended before its length");
            session.event(sub, &StreamEvent::Dropped { refusal, resume: 0 });
            return Next::Done;
        }
        if !bytes.is_empty() || self.left == 0 {
            session.chunk(sub, bytes, self.left == 0);
        }
        self.source = Some(source);
        if self.left == 0 { Next::Done } else { Next::Again }
    }

    /// Starts reading the next piece, if there is credit and no pending read. There is room for it.
    pub(crate) fn step(
        &mut self,
        sub: u32,
        session: &mut ServerSession,
        mailbox: &Arc<Mailbox>,
    ) -> Next {
        let credit = session.credit(sub);
        if credit > 0
            && let Some(mut source) = self.source.take()
        {
            let asked = piece_len(credit);
            self.asked = asked;
            session.reserve(asked);
            mailbox.post_from(move || {
                let result = source.read(asked);
                Mail::Piece { sub, asked, source, result }
            });
        }
        Next::Wait
    }
}

fn piece_len(credit: i64) -> usize {
    usize::try_from(credit).unwrap_or(0).min(CHUNK_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_pieces_keep_no_buffers() {
        let read = Bytes::from(vec![7; 2 * PIECE_KEPT_MIN]);
        let mut upload = Upload::new(Ticket::of(crate::message::Op::BlobPut));
        for _ in 0..1000 {
            upload.push(read.slice(..1), false);
        }
        upload.push(read.slice(..PIECE_KEPT_MIN), false);
        upload.push(read.slice(..2), false);
        upload.push(Bytes::new(), true);
        upload.push(read.clone(), false);
        upload.close_short();
        let lengths: Vec<_> = upload.chunks.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [1000, PIECE_KEPT_MIN, 2]);
        let is_read = |chunk: &Bytes| chunk.as_ptr() == read.as_ptr();
        assert_eq!(upload.chunks.iter().filter(|chunk| is_read(chunk)).count(), 1);
    }
}
