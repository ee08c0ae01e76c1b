//! Exports as one file or to a pipe: writes the events of a store into an archive, and unpacks an
//! archive into a directory from which it is imported.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use tempfile::{NamedTempFile, TempDir};
use tokio_util::sync::{CancellationToken, DropGuard};
use xs_engine::{BlobHash, Frame, ReadOptions};
use xs_protocol::{Client, Delivered};

use super::bodies::{self, Lost};
use super::cat::passed_over;
use super::transfer::told;
use crate::archive::{Writer, unpack};
use crate::args::Target;
use crate::connect::explain;
use crate::dump::{Dump, sync_dir_of};
use crate::exit::{Exit, ExitError};
use crate::json;
use crate::output::{Output, counted, notice};
use crate::progress;

/// Maximum bytes of a body that is read only once. A longer one is read twice: to check it, and to
/// write it.
const IN_MEMORY_MAX: u64 = 16 * 1024 * 1024;

pub(super) async fn export(
    client: &Client,
    options: &ReadOptions,
    target: Target<'_>,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let Target::File(path) = target else {
        if out.is_person() {
            let text = "refusing to write an archive to a terminal; give a file, or use a pipe";
            return ExitError::fail(Exit::Usage, text);
        }
        let writer = Writer::new(Piped(out), &std::env::temp_dir())?;
        let (_, Count { frames, unread }) = write(client, options, writer).await?;
        notice(&format!("{} exported", counted(frames, "event")));
        return Ok(if unread == 0 { Exit::Ok } else { Exit::Failed });
    };
    let named = || path.display().to_string();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or_else(|| Path::new("."));
    // It is renamed when complete; until then it is deleted with this process.
    let unfinished = NamedTempFile::new_in(dir).with_context(named)?;
    let writer = Writer::new(unfinished, dir).with_context(named)?;
    let (finished, Count { frames, unread }) = write(client, options, writer).await?;
    finished.as_file().sync_all().with_context(named)?;
    finished.persist(path).map_err(|error| error.error).with_context(named)?;
    sync_dir_of(path).with_context(named)?;
    told(frames, false, unread, out)
}

/// The counts of an export.
struct Count {
    frames: u64,
    /// Frames that the store cannot read, or whose bodies it cannot.
    unread: u64,
}

/// Standard output, which may be closed like any pipe.
struct Piped<'a>(&'a mut Output);

impl Write for Piped<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.bytes(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes the frames read, and counts them.
async fn write<W: Write>(
    client: &Client,
    options: &ReadOptions,
    mut writer: Writer<W>,
) -> anyhow::Result<(W, Count)> {
    let mut frames = client.export(options, None).await.map_err(explain)?;
    let bar = progress::count("exporting", client.server().head);
    let (mut count, mut unread, mut lost) = (0, 0, Lost::default());
    loop {
        let batch = frames.next().await.transpose().map_err(explain)?;
        while let Some(gap) = frames.gap() {
            unread += passed_over(gap);
        }
        let Some(batch) = batch else { break };
        for Delivered { frame, body } in batch {
            let failed = || format!("the body of {}", frame.id());
            if !add_body(client, &mut writer, &frame, body).await.with_context(failed)? {
                lost.note(&frame);
                unread += 1;
            }
            writer.line(&json::frame(&frame, None))?;
            count += 1;
        }
        bar.set_position(count);
    }
    bar.finish_and_clear();
    Ok((writer.finish()?, Count { frames: count, unread }))
}

/// Adds the body of a frame unless the archive has it; returns false when it is lost, and adds
/// nothing. Data cannot be taken back out of the archive, so the whole body is checked first.
async fn add_body<W: Write>(
    client: &Client,
    writer: &mut Writer<W>,
    frame: &Frame,
    body: Option<Bytes>,
) -> anyhow::Result<bool> {
    let Some(hash) = frame.hash().filter(|hash| !writer.has(hash)) else { return Ok(true) };
    let seen = match body {
        Some(bytes) => Seen::All(bytes),
        None => seen(client, &hash).await?,
    };
    match seen {
        Seen::Lost => return Ok(false),
        Seen::All(bytes) => {
            let mut body = writer.body(&hash, bytes.len() as u64)?;
            body.write(&bytes)?;
            body.finish()?;
        }
        Seen::Whole => {
            let Some(mut blob) = client.blob_get(&hash).await.map_err(explain)? else {
                return ExitError::fail(Exit::NotFound, "no longer in the store");
            };
            let mut body = writer.body(&hash, blob.len())?;
            while let Some(chunk) = blob.chunk().await {
                body.write(&chunk.map_err(explain)?)?;
            }
            body.finish()?;
        }
    }
    Ok(true)
}

/// The result of checking a body.
enum Seen {
    Lost,
    /// It is whole; these are its bytes.
    All(Bytes),
    /// It is whole, but too long to be kept in memory.
    Whole,
}

/// Reads a body to its end.
async fn seen(client: &Client, hash: &BlobHash) -> anyhow::Result<Seen> {
    let Some(mut blob) = bodies::find(client, hash).await? else { return Ok(Seen::Lost) };
    let keeps = blob.len() <= IN_MEMORY_MAX;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = blob.chunk().await {
        match chunk {
            Ok(chunk) if keeps => bytes.extend_from_slice(&chunk),
            Ok(_) => {}
            Err(error) if bodies::is_damage(&error) => return Ok(Seen::Lost),
            Err(error) => return Err(explain(error)),
        }
    }
    Ok(if keeps { Seen::All(bytes.freeze()) } else { Seen::Whole })
}

/// An archive unpacked into a temporary directory, which is deleted on drop.
pub(super) struct Unpacked {
    dir: TempDir,
}

impl Unpacked {
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Unpacks the import's source if it is an archive: a file, or `-` for standard input.
pub(super) async fn unpacked(path: &Path) -> anyhow::Result<Option<Unpacked>> {
    let is_input = path.as_os_str() == "-";
    if !is_input && !path.is_file() {
        return Ok(None);
    }
    let name = if is_input { "standard input".to_owned() } else { path.display().to_string() };
    let from: Box<dyn Read + Send> = if is_input {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| name.clone())?)
    };
    let dir = tempfile::Builder::new().prefix("xs-import-").tempdir().context("$TMPDIR")?;
    let dump = Dump::at(dir.path());
    let (stop, _guard) = stopping();
    let bar = progress::bytes("unpacking", 0);
    let shown = bar.clone();
    let unpacked = tokio::task::spawn_blocking(move || {
        unpack(from, &dump, &stop, |bytes| {
            shown.inc_length(bytes);
            shown.inc(bytes);
        })
    });
    // The decoder's message speaks of "frames", but means its own.
    let unpacked = unpacked.await?.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::other("the archive is truncated; nothing was imported")
        }
        _ => error,
    });
    unpacked.with_context(|| name)?;
    bar.finish_and_clear();
    Ok(Some(Unpacked { dir }))
}

/// A token that is cancelled when the guard is dropped for any reason.
fn stopping() -> (CancellationToken, DropGuard) {
    let stop = CancellationToken::new();
    (stop.clone(), stop.drop_guard())
}
