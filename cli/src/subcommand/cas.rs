//! `cas get` and `cas put`: bytes by their hash, streamed both ways.

use anyhow::Context as _;
use xs_engine::BlobHash;
use xs_protocol::Client;

use super::bodies;
use super::input::Input;
use crate::exit::Exit;
use crate::output::Output;

pub(super) async fn get(
    client: &Client,
    hash: &BlobHash,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    bodies::copy(client, hash, out).await?;
    Ok(Exit::Ok)
}

pub(super) async fn put(
    client: &Client,
    input: Option<Input>,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let input = input.context("there is nothing to read")?;
    let (hash, _) = input.put(client).await?;
    out.line(&hash.to_string())?;
    Ok(Exit::Ok)
}
