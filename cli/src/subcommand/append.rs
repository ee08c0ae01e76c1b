//! `append`: one frame, with its body from the command line, a file or standard input. A small body
//! is sent with the frame; a longer one is first streamed into the store.

use anyhow::Context as _;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use xs_engine::{BlobHash, Body, Frame, Meta, NewFrame};
use xs_protocol::{AppendRequest, Client};

use super::input::Input;
use super::lines;
use crate::args::{AppendArgs, meta_object};
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::Output;

pub(super) async fn run(
    client: &Client,
    append: AppendArgs,
    input: Option<Input>,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    if append.lines {
        return lines::run(client, append, stop, out).await;
    }
    let mut new = NewFrame::new(append.topic.clone());
    new.ttl = append.ttl;
    new.meta = append.meta.clone().unwrap_or_default();
    let mut content = content(client, &append, input).await?;
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
    let printed = out.frame(&frame, None).and_then(|()| out.flush());
    printed.with_context(|| format!("the event is stored, with id {}", frame.id()))?;
    Ok(Exit::Ok)
}

/// The content of a frame.
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

/// The typed content, or that of a pipe or a file. If it is too long to be sent with its frame, it
/// is stored first.
async fn content(
    client: &Client,
    append: &AppendArgs,
    input: Option<Input>,
) -> anyhow::Result<Content> {
    let Some(mut input) = input else {
        let typed = append.body.as_ref().filter(|_| !append.no_body);
        return Ok(typed.map_or(Content::None, |text| Bytes::from(text.clone()).into()));
    };
    if let Some(bytes) = input.whole(client).await? {
        return Ok(bytes.into());
    }
    let (hash, len) = input.put(client).await?;
    Ok(Content::Stored(hash, len))
}

fn json_meta(content: Content) -> anyhow::Result<Meta> {
    let fail = |text: String| ExitError::new(Exit::Usage, format!("--json: {text}"));
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
