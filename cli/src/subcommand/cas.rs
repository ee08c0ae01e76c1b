//! `cas get` and `cas put`: bytes by their hash, streamed both ways.

use std::path::PathBuf;

use anyhow::Context as _;
use xs_engine::BlobHash;
use xs_protocol::Client;

use super::bodies;
use crate::connect::explain;
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
    file: Option<PathBuf>,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let put = match file {
        Some(path) => {
            let file = tokio::fs::File::open(&path).await;
            client.blob_put(file.with_context(|| path.display().to_string())?).await
        }
        None => client.blob_put(tokio::io::stdin()).await,
    };
    let (hash, _) = put.map_err(explain)?;
    out.line(&hash.to_string())?;
    Ok(Exit::Ok)
}
