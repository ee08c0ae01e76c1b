//! Bodies of frames: fetched by hash when they were not delivered with the frame.

use bytes::Bytes;
use xs_engine::{BlobHash, Frame};
use xs_protocol::{BlobStream, Client, ClientError, Code};

use crate::args::BodyArgs;
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, notice};

/// Maximum bytes of a body held in memory for a line of JSON.
const BODY_IN_JSON_MAX: u64 = 64 * 1024 * 1024;
/// Maximum number of frames with lost bodies that are named individually.
const NAMED_MAX: u64 = 20;

/// Why there is no body to print, of a store that answers: damage took it.
struct Missing(anyhow::Error);

/// Prints a frame, its body, or both, as wanted.
pub(super) async fn print(
    client: &Client,
    frame: &Frame,
    wanted: &BodyArgs,
    out: &mut Output,
) -> anyhow::Result<()> {
    match attempt(client, frame, wanted, out).await? {
        Ok(()) => Ok(()),
        Err(Missing(why)) => Err(why),
    }
}

/// The same of one of many frames: a body that is lost is told of, and ends nothing.
pub(super) async fn print_among(
    client: &Client,
    frame: &Frame,
    wanted: &BodyArgs,
    lost: &mut Lost,
    out: &mut Output,
) -> anyhow::Result<()> {
    if let Err(Missing(_)) = attempt(client, frame, wanted, out).await? {
        lost.note(frame);
        if !wanted.only {
            out.frame(frame, None)?;
        }
    }
    Ok(())
}

async fn attempt(
    client: &Client,
    frame: &Frame,
    wanted: &BodyArgs,
    out: &mut Output,
) -> anyhow::Result<Result<(), Missing>> {
    match frame.hash() {
        Some(hash) if wanted.only => match open(client, &hash, || lost(frame, &hash)).await? {
            Ok(blob) => return pour(blob, out).await,
            Err(missing) => return Ok(Err(missing)),
        },
        None if wanted.only => {}
        // One frame with too long a body must not end what goes on for ever. Its hash is there.
        Some(hash) if wanted.with_frame() && frame.body_len() > BODY_IN_JSON_MAX => {
            notice(&too_long(frame, &hash));
            out.frame(frame, None)?;
        }
        _ if wanted.with_frame() => match fetch(client, frame).await? {
            Ok(body) => out.frame(frame, Some(&body))?,
            Err(missing) => return Ok(Err(missing)),
        },
        _ => out.frame(frame, None)?,
    }
    Ok(Ok(()))
}

/// Writes a blob to the output in chunks.
pub(super) async fn copy(client: &Client, hash: &BlobHash, out: &mut Output) -> anyhow::Result<()> {
    let unknown =
        || format!("the store has no body with hash {hash}; xs cat shows the hashes of events");
    let poured = match open(client, hash, unknown).await? {
        Ok(blob) => pour(blob, out).await?,
        Err(missing) => Err(missing),
    };
    poured.map_err(|Missing(why)| why)
}

/// Damage may be met in the middle.
async fn pour(mut blob: BlobStream, out: &mut Output) -> anyhow::Result<Result<(), Missing>> {
    let mut last = None;
    while let Some(chunk) = blob.chunk().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return missing(error).map(Err),
        };
        match last {
            None if !out.body_begin(&chunk)? => return Ok(Ok(())),
            None => {}
            Some(_) => out.bytes(&chunk)?,
        }
        last = chunk.last().copied().or(last);
    }
    out.body_end(last)?;
    Ok(Ok(()))
}

/// The body of a frame, empty when it has none.
pub(super) async fn whole(client: &Client, frame: &Frame) -> anyhow::Result<Bytes> {
    fetch(client, frame).await?.map_err(|Missing(why)| why)
}

async fn fetch(client: &Client, frame: &Frame) -> anyhow::Result<Result<Bytes, Missing>> {
    let Some(hash) = frame.hash() else { return Ok(Ok(Bytes::new())) };
    if frame.body_len() > BODY_IN_JSON_MAX {
        return ExitError::fail(Exit::Failed, too_long(frame, &hash));
    }
    let max = usize::try_from(BODY_IN_JSON_MAX).unwrap_or(usize::MAX);
    match open(client, &hash, || lost(frame, &hash)).await? {
        Ok(blob) => match blob.bytes(max).await {
            Ok(body) => Ok(Ok(body)),
            Err(error) => missing(error).map(Err),
        },
        Err(missing) => Ok(Err(missing)),
    }
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
    /// How many.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Tells of one.
    pub(super) fn note(&mut self, frame: &Frame) {
        self.count += 1;
        if self.count <= NAMED_MAX {
            let id = frame.id();
            let at = frame.offset().map_or_else(String::new, |at| format!(" (offset {at})"));
            notice(&format!("the body of {id}{at} cannot be read: skipped"));
        } else if self.count == NAMED_MAX + 1 {
            notice("more bodies cannot be read; they are not listed");
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
         expired, or the store is damaged; run xs verify to find out. Without bodies, events are \
         still printed",
        frame.id()
    )
}

async fn open(
    client: &Client,
    hash: &BlobHash,
    unknown: impl FnOnce() -> String,
) -> anyhow::Result<Result<BlobStream, Missing>> {
    match client.blob_get(hash).await {
        Ok(Some(blob)) => Ok(Ok(blob)),
        Ok(None) => Ok(Err(Missing(ExitError::new(Exit::NotFound, unknown()).into()))),
        Err(error) => missing(error).map(Err),
    }
}

/// The error of bytes that damage took.
///
/// # Errors
/// It is another, and the store cannot be asked.
fn missing(error: ClientError) -> anyhow::Result<Missing> {
    let is_damage = is_damage(&error);
    let error = explain(error);
    if is_damage { Ok(Missing(error)) } else { Err(error) }
}
