//! `append`: one frame, its body from the command line, a file or standard input. A body that fits
//! travels with the frame; a longer one is streamed into the store first.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;
use xs_engine::{BlobHash, Body, Frame, Meta, NewFrame};
use xs_protocol::{AppendRequest, Client};

use super::lines;
use crate::args::{AppendArgs, meta_object};
use crate::connect::explain;
use crate::exit::{Exit, Fault};
use crate::output::Output;

/// Bytes of a body that travels with its frame.
const INLINE_BYTES_MAX: usize = 1024 * 1024;

pub(super) async fn run(
    client: &Client,
    append: AppendArgs,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    if append.lines {
        return lines::run(client, append, stop, out).await;
    }
    let mut new = NewFrame::new(append.topic.clone());
    new.ttl = append.ttl;
    new.meta = append.meta.clone().unwrap_or_default();
    let mut content = content(client, &append).await?;
    if append.json {
        new.meta = json_meta(content)?;
        content = Content::None;
    }
    let known = match content {
        Content::None => None,
        Content::Bytes(bytes) => {
            let known = (bytes.len() as u64, BlobHash::of(&bytes));
            new.body = Body::Inline(bytes);
            Some(known)
        }
        Content::Stored(hash, len) => {
            new.body = Body::Stored(hash);
            Some((len, hash))
        }
    };
    let request = AppendRequest {
        conditions: append.expect.iter().map(|expect| expect.condition(&new.topic)).collect(),
        key: append.key.clone(),
        ..AppendRequest::frames(vec![new.clone()])
    };
    let appended = client.append(&request).await.map_err(explain)?;
    let stamp = appended.frames.first().context("the server confirmed no frame")?;
    let frame = Frame::assemble(&new, stamp.id, stamp.offset, known)?;
    out.frame(&frame, None)?;
    Ok(Exit::Ok)
}

/// Where the bytes of a frame are.
enum Content {
    None,
    Bytes(Bytes),
    Stored(BlobHash, u64),
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::None } else { Self::Bytes(bytes) }
    }
}

async fn content(client: &Client, append: &AppendArgs) -> anyhow::Result<Content> {
    if append.no_body {
        return Ok(Content::None);
    }
    if let Some(path) = append.file.as_ref().filter(|path| path.as_os_str() != "-") {
        let name = || format!("--file {}", path.display());
        let file = tokio::fs::File::open(path).await.with_context(name)?;
        return take(client, file).await.with_context(name);
    }
    match append.body.as_deref() {
        Some("-") => take(client, tokio::io::stdin()).await,
        Some(text) => Ok(Bytes::copy_from_slice(text.as_bytes()).into()),
        // Nobody who types a topic on a terminal expects to be asked for a body.
        None if append.file.is_none() && std::io::stdin().is_terminal() => Ok(Content::None),
        None => take(client, tokio::io::stdin()).await,
    }
}

/// Reads to the end; from the length that no longer travels with its frame on, into the store.
async fn take(
    client: &Client,
    mut source: impl AsyncRead + Send + Unpin,
) -> anyhow::Result<Content> {
    let mut head = BytesMut::with_capacity(8 * 1024);
    while head.len() <= INLINE_BYTES_MAX {
        if source.read_buf(&mut head).await? == 0 {
            return Ok(head.freeze().into());
        }
    }
    let (hash, len) = client.blob_put(head.as_ref().chain(source)).await.map_err(explain)?;
    Ok(Content::Stored(hash, len))
}

fn json_meta(content: Content) -> anyhow::Result<Meta> {
    let fail = |text: String| Fault::new(Exit::Usage, format!("--json: {text}"));
    let bytes = match content {
        Content::Bytes(bytes) => bytes,
        Content::None => return Err(fail("there is no input".to_owned()).into()),
        Content::Stored(_, len) => {
            return Err(fail(format!("{len} bytes are too many for meta")).into());
        }
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| fail(error.to_string()))?;
    meta_object(text).map_err(|error| fail(error).into())
}
