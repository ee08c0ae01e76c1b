//! Bodies in chunks, both ways: however large a body is, an isolate holds only a few of its chunks.
//! Also the ops by which JavaScript pulls bytes from any source.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;
use deno_core::convert::Uint8Array;
use deno_core::{JsBuffer, OpState, op2};
use deno_error::JsErrorBox;
use futures::future::LocalBoxFuture;
use futures::stream;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use xs_engine::BlobHash;

use super::bridge::{Bridge, bridge, type_error};
use super::streams::Source;
use crate::isolate::limits::STREAMS_MAX;
use crate::isolate::{BackendCode, BackendError, ByteStream};

/// Chunks of an upload that wait for the store.
const PIECES_WAITING_MAX: usize = 2;

fn refused(error: BackendError) -> JsErrorBox {
    JsErrorBox::generic(error.message)
}

/// The chunks of a blob.
struct Pieces(ByteStream);

impl Source<Bytes> for Pieces {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Bytes>, JsErrorBox>> {
        async move { self.0.next().await.transpose().map_err(refused) }.boxed_local()
    }
}

/// Opens a blob and returns the number of its byte source.
#[op2]
pub(super) async fn op_xs_blob_open(
    state: Rc<RefCell<OpState>>,
    #[string] hash: String,
) -> Result<u32, JsErrorBox> {
    let bridge = bridge(&state);
    let parsed = BlobHash::parse(&hash).map_err(type_error)?;
    let pieces = match bridge.body_at_hand(parsed) {
        Some(bytes) => Some(stream::iter([Ok(bytes)]).boxed()),
        None => bridge.backend.blob_chunks(parsed).await.map_err(refused)?,
    };
    let pieces =
        pieces.ok_or_else(|| JsErrorBox::generic(format!("the store has no blob {hash}")))?;
    bridge.bytes.open(Box::new(Pieces(pieces)))
}

/// The next bytes of a source; empty at its end.
#[op2]
pub(super) async fn op_xs_bytes_next(
    state: Rc<RefCell<OpState>>,
    number: u32,
) -> Result<Uint8Array, JsErrorBox> {
    let bytes = bridge(&state).bytes.next(number).await?;
    Ok(bytes.unwrap_or_default().to_vec().into())
}

/// Closes a byte source.
#[op2(fast)]
pub(super) fn op_xs_bytes_close(state: &mut OpState, number: u32) {
    state.borrow::<Rc<Bridge>>().bytes.close(number);
}

/// Uploads to the store.
#[derive(Default)]
pub(super) struct Uploads {
    open: RefCell<HashMap<u32, Upload>>,
    next: Cell<u32>,
}

struct Upload {
    pieces: mpsc::Sender<Result<Bytes, BackendError>>,
    stored: oneshot::Receiver<Result<BlobHash, BackendError>>,
}

/// Begins an upload and returns its number.
#[op2(fast)]
pub(super) fn op_xs_upload(state: &mut OpState) -> Result<u32, JsErrorBox> {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let mut open = bridge.uploads.open.borrow_mut();
    if open.len() >= STREAMS_MAX {
        let text =
            format!("{STREAMS_MAX} bodies are already being stored; await some of them first");
        return Err(JsErrorBox::range_error(text));
    }
    let (pieces, waiting) = mpsc::channel(PIECES_WAITING_MAX);
    let (answer, stored) = oneshot::channel();
    let source = stream::unfold(waiting, |mut waiting| async move {
        waiting.recv().await.map(|piece| (piece, waiting))
    });
    let storing = bridge.backend.blob_put_from(source.boxed());
    drop(deno_core::unsync::spawn(async move {
        // The module may have dropped the upload.
        let _ = answer.send(storing.await);
    }));
    let number = bridge.uploads.next.get();
    bridge.uploads.next.set(number.wrapping_add(1));
    open.insert(number, Upload { pieces, stored });
    Ok(number)
}

/// Hands over the next chunk once there is room; returns whether more is wanted.
#[op2]
pub(super) async fn op_xs_upload_write(
    state: Rc<RefCell<OpState>>,
    number: u32,
    #[buffer] bytes: JsBuffer,
) -> bool {
    let bridge = bridge(&state);
    let pieces = bridge.uploads.open.borrow().get(&number).map(|upload| upload.pieces.clone());
    match pieces {
        Some(pieces) => pieces.send(Ok(Bytes::copy_from_slice(&bytes))).await.is_ok(),
        None => false,
    }
}

/// Ends an upload and returns the hash.
#[op2]
#[string]
pub(super) async fn op_xs_upload_end(
    state: Rc<RefCell<OpState>>,
    number: u32,
) -> Result<String, JsErrorBox> {
    let upload = bridge(&state).uploads.open.borrow_mut().remove(&number);
    let Some(Upload { pieces, stored }) = upload else {
        return Err(JsErrorBox::generic("the upload has ended"));
    };
    drop(pieces);
    match stored.await {
        Ok(hash) => Ok(hash.map_err(refused)?.to_string()),
        Err(_) => Err(JsErrorBox::generic("the upload was cancelled")),
    }
}

/// Cancels an upload: nothing is stored.
#[op2(fast)]
pub(super) fn op_xs_upload_drop(state: &mut OpState, number: u32) {
    let upload = state.borrow::<Rc<Bridge>>().uploads.open.borrow_mut().remove(&number);
    if let Some(Upload { pieces, .. }) = upload {
        drop(deno_core::unsync::spawn(async move {
            let error = BackendError::new(BackendCode::Refused, "the upload was cancelled");
            // There is no receiver if the store gave it up earlier.
            let _ = pieces.send(Err(error)).await;
        }));
    }
}
