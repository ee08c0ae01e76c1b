//! Bodies of frames: fetched by hash when they were not delivered with the frame.

use bytes::Bytes;
use xs_engine::{BlobHash, Frame};
use xs_protocol::{BlobStream, Client, ClientError, Code};

use crate::args::BodyArgs;
use crate::connect::explain;
use crate::exit::{Exit, Fault};
use crate::output::{Output, notice};

/// Maximum bytes of a body held in memory for a line of JSON.
const BODY_IN_JSON_MAX: u64 = 64 * 1024 * 1024;
/// Maximum number of frames with lost bodies that are named individually.
const NAMED_MAX: u64 = 20;

/// Prints a frame, its body, or both, as requested.
pub(super) async fn print(
    client: &Client,
    frame: &Frame,
    wanted: &BodyArgs,
    out: &mut Output,
) -> anyhow::Result<()> {
    match frame.hash() {
        Some(hash) if wanted.only => {
            let blob = open(client, &hash, || lost(frame, &hash)).await?;
            pour(blob, out).await
        }
        None if wanted.only => Ok(()),
        // One frame with too long a body must not end an endless read. The frame shows its hash.
        Some(hash) if wanted.with_frame() && frame.body_len() > BODY_IN_JSON_MAX => {
            notice(&too_long(frame, &hash));
            Ok(out.frame(frame, None)?)
        }
        _ if wanted.with_frame() => {
            let body = whole(client, frame).await?;
            Ok(out.frame(frame, Some(&body))?)
        }
        _ => Ok(out.frame(frame, None)?),
    }
}

/// Writes a blob to the output in chunks.
pub(super) async fn copy(client: &Client, hash: &BlobHash, out: &mut Output) -> anyhow::Result<()> {
    let unknown =
        || format!("the store has no bytes with hash {hash}; events show the hashes of theirs");
    pour(open(client, hash, unknown).await?, out).await
}

async fn pour(mut blob: BlobStream, out: &mut Output) -> anyhow::Result<()> {
    let mut last = None;
    while let Some(chunk) = blob.chunk().await {
        let chunk = chunk.map_err(explain)?;
        match last {
            None if !out.body_begin(&chunk)? => return Ok(()),
            None => {}
            Some(_) => out.bytes(&chunk)?,
        }
        last = chunk.last().copied().or(last);
    }
    Ok(out.body_end(last)?)
}

/// The body of a frame, empty when it has none.
pub(super) async fn whole(client: &Client, frame: &Frame) -> anyhow::Result<Bytes> {
    let Some(hash) = frame.hash() else { return Ok(Bytes::new()) };
    if frame.body_len() > BODY_IN_JSON_MAX {
        return Fault::fail(Exit::Failed, too_long(frame, &hash));
    }
    let max = usize::try_from(BODY_IN_JSON_MAX).unwrap_or(usize::MAX);
    open(client, &hash, || lost(frame, &hash)).await?.bytes(max).await.map_err(explain)
}

/// The bytes of a blob; `None` when they were lost to damage and the caller can do without.
///
/// # Errors
/// The store could not answer.
pub(super) async fn find(client: &Client, hash: &BlobHash) -> anyhow::Result<Option<BlobStream>> {
    match client.blob_get(hash).await {
        Ok(blob) => Ok(blob),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(explain(error)),
    }
}

/// Whether the bytes are damaged, so that a retry is useless.
pub(super) fn is_damage(error: &ClientError) -> bool {
    error.code() == Some(Code::Corrupt)
}

/// Counts frames written without their body because it is lost.
#[derive(Debug, Default)]
pub(super) struct Lost {
    count: u64,
}

impl Lost {
    /// Reports one.
    pub(super) fn note(&mut self, frame: &Frame) {
        self.count += 1;
        if self.count <= NAMED_MAX {
            notice(&format!("the body of {} cannot be read: left out", frame.id()));
        } else if self.count == NAMED_MAX + 1 {
            notice("more bodies cannot be read that are not named");
        }
    }
}

fn too_long(frame: &Frame, hash: &BlobHash) -> String {
    format!(
        "frame {} has a body of {} bytes, too long for a line; get it with xs cas get {hash}",
        frame.id(),
        frame.body_len()
    )
}

/// The message for a frame whose body is missing: gc keeps every body that an event names.
fn lost(frame: &Frame, hash: &BlobHash) -> String {
    format!(
        "the body of frame {} is not in the store ({hash}): the event has just been removed or has \
         expired, or damage took it; xs verify tells, and without bodies events are printed all \
         the same",
        frame.id()
    )
}

async fn open(
    client: &Client,
    hash: &BlobHash,
    missing: impl FnOnce() -> String,
) -> anyhow::Result<BlobStream> {
    match client.blob_get(hash).await.map_err(explain)? {
        Some(blob) => Ok(blob),
        None => Fault::fail(Exit::NotFound, missing()),
    }
}
