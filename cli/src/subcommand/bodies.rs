//! Bodies of frames: fetched by hash when they were not delivered with the frame.

use bytes::Bytes;
use xs_engine::{BlobHash, Frame, FrameId};
use xs_protocol::{BlobStream, Client, ClientError, Code};

use crate::args::BodyArgs;
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::json::BODY_IN_LINE_MAX;
use crate::output::{Output, notice};

/// Maximum bytes of a body held in memory: for a line of JSON, or to be verified before any of it
/// is written.
const BODY_HELD_MAX: u64 = BODY_IN_LINE_MAX;
/// Maximum number of frames with lost bodies that are named individually.
const NAMED_MAX: u64 = 20;

/// Why a body cannot be printed although the store answers: it is lost or damaged.
struct Missing {
    why: anyhow::Error,
    /// Bytes printed before the damage was met, of a body too long to be held.
    printed: u64,
}

impl From<Missing> for anyhow::Error {
    fn from(missing: Missing) -> Self {
        cut_off(missing.why, missing.printed)
    }
}

/// The error for a body of which `printed` bytes are already printed.
fn cut_off(why: anyhow::Error, printed: u64) -> anyhow::Error {
    match printed {
        0 => why,
        _ => why.context(format!("the body is incomplete, cut off after {printed} bytes")),
    }
}

/// Prints a frame, its body, or both, as wanted.
pub(super) async fn print(
    client: &Client,
    frame: &Frame,
    wanted: &BodyArgs,
    out: &mut Output,
) -> anyhow::Result<()> {
    let mut begun = None;
    match attempt(client, frame, wanted, &mut begun, out).await {
        Ok(printed) => Ok(printed?),
        Err(error) => Err(cut_off(error, begun.map_or(0, |begun| begun.printed))),
    }
}

/// [`print()`] for one of many frames: a lost body is reported and does not end the read.
pub(super) async fn print_among(
    client: &Client,
    frame: &Frame,
    wanted: &BodyArgs,
    lost: &mut Lost,
    out: &mut Output,
) -> anyhow::Result<()> {
    let attempted = attempt(client, frame, wanted, &mut lost.begun, out).await;
    let missing = match attempted {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(missing)) => missing,
        Err(error) => {
            let printed = lost.begun.as_ref().map_or(0, |begun| begun.printed);
            return Err(cut_off(error, printed));
        }
    };
    lost.begun = None;
    match missing.printed {
        0 => lost.note(frame),
        printed => lost.note_cut_off(frame, printed),
    }
    if !wanted.only {
        out.frame(frame, None)?;
    }
    Ok(())
}

async fn attempt(
    client: &Client,
    frame: &Frame,
    wanted: &BodyArgs,
    begun: &mut Option<Begun>,
    out: &mut Output,
) -> anyhow::Result<Result<(), Missing>> {
    match frame.hash() {
        Some(hash) if wanted.only => match open(client, &hash, || lost(frame, &hash)).await? {
            Ok(blob) => return pour(blob, frame.id(), begun, out).await,
            Err(missing) => return Ok(Err(missing)),
        },
        None if wanted.only => {}
        // A body that is too long must not end a read that may be endless. The frame has its hash.
        Some(hash) if wanted.with_frame() && frame.body_len() > BODY_HELD_MAX => {
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
    let blob = open(client, hash, unknown).await??;
    let mut begun = None;
    match pour(blob, FrameId::ZERO, &mut begun, out).await {
        Ok(poured) => Ok(poured?),
        Err(error) => Err(cut_off(error, begun.map_or(0, |begun| begun.printed))),
    }
}

/// A partly printed body; the rest follows over another connection.
struct Begun {
    of: FrameId,
    printed: u64,
}

/// Prints the body of a frame. A body that can be held is verified before any of it is printed;
/// damage may be met in the middle of a longer one.
async fn pour(
    mut blob: BlobStream,
    of: FrameId,
    begun: &mut Option<Begun>,
    out: &mut Output,
) -> anyhow::Result<Result<(), Missing>> {
    if blob.len() <= BODY_HELD_MAX {
        let body = match held(blob).await {
            Ok(body) => body,
            Err(error) => return missing(error, 0).map(Err),
        };
        if out.body_begin(&body)? {
            out.body_end(body.last().copied())?;
        }
        return Ok(Ok(()));
    }
    let before = begun.take().filter(|begun| begun.of == of).map_or(0, |begun| begun.printed);
    let (mut seen, mut last) = (0, None);
    while let Some(chunk) = blob.chunk().await {
        let printed = seen.max(before);
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                *begun = (printed > 0).then_some(Begun { of, printed });
                return missing(error, printed).map(Err);
            }
        };
        seen += chunk.len() as u64;
        let Some(new) = seen.checked_sub(printed).filter(|new| *new > 0) else { continue };
        let new = &chunk[chunk.len() - usize::try_from(new).unwrap_or(chunk.len())..];
        match printed {
            0 if !out.body_begin(new)? => return Ok(Ok(())),
            0 => {}
            _ => out.bytes(new)?,
        }
        last = new.last().copied();
    }
    out.body_end(last)?;
    Ok(Ok(()))
}

async fn held(blob: BlobStream) -> Result<Bytes, ClientError> {
    blob.bytes(usize::try_from(BODY_HELD_MAX).unwrap_or(usize::MAX)).await
}

/// The body of a frame, empty when it has none.
pub(super) async fn whole(client: &Client, frame: &Frame) -> anyhow::Result<Bytes> {
    Ok(fetch(client, frame).await??)
}

async fn fetch(client: &Client, frame: &Frame) -> anyhow::Result<Result<Bytes, Missing>> {
    let Some(hash) = frame.hash() else { return Ok(Ok(Bytes::new())) };
    if frame.body_len() > BODY_HELD_MAX {
        return ExitError::fail(Exit::Failed, too_long(frame, &hash));
    }
    match open(client, &hash, || lost(frame, &hash)).await? {
        Ok(blob) => match held(blob).await {
            Ok(body) => Ok(Ok(body)),
            Err(error) => missing(error, 0).map(Err),
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
    error.code() == Some(Code::Corrupt) || matches!(error, ClientError::Integrity(_))
}

/// Counts frames written without their body because it is lost.
#[derive(Default)]
pub(super) struct Lost {
    count: u64,
    /// The partly printed body.
    begun: Option<Begun>,
}

impl Lost {
    /// The number of these frames.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Reports a partly printed body. Never suppressed: a reader must know of each.
    fn note_cut_off(&mut self, frame: &Frame, printed: u64) {
        self.count += 1;
        notice(&format!(
            "the body of {} is printed incompletely: after {printed} of its {} bytes the rest \
             cannot be read",
            frame.id(),
            frame.body_len()
        ));
    }

    /// Reports a frame without its body.
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
        "frame {} has a body of {} bytes, too long for a line; get it with xs cas get {hash}, or \
         move all of them with xs export",
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
        Ok(None) => {
            let why = ExitError::new(Exit::NotFound, unknown()).into();
            Ok(Err(Missing { why, printed: 0 }))
        }
        Err(error) => missing(error, 0).map(Err),
    }
}

/// The [`Missing`] for a damaged body.
///
/// # Errors
/// The error is a different one: the store could not answer.
fn missing(error: ClientError, printed: u64) -> anyhow::Result<Missing> {
    let is_damage = is_damage(&error);
    let why = explain(error);
    if is_damage { Ok(Missing { why, printed }) } else { Err(why) }
}
