//! Reading files for modules: whole files and directories. Never writes.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::UNIX_EPOCH;

use deno_core::convert::Uint8Array;
use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use serde_json::json;

use super::bridge::{Bridge, bridge};
use crate::isolate::limits::READ_BYTES_MAX;
use crate::permissions::ReadDenied;

/// Maximum entries of a directory listing.
const ENTRIES_MAX: usize = 100_000;

/// The error for a path that cannot be read.
pub(super) fn unreadable(bridge: &Bridge, error: ReadDenied) -> JsErrorBox {
    match error {
        ReadDenied::Denied(denial) => bridge.denied(&denial),
        ReadDenied::Io { .. } => JsErrorBox::generic(error.to_string()),
    }
}

/// Runs file work on a blocking thread.
async fn blocking<T: Send + 'static>(
    bridge: &Bridge,
    path: String,
    work: impl FnOnce(File) -> std::io::Result<T> + Send + 'static,
) -> Result<T, JsErrorBox> {
    let granted = bridge.granted();
    let done = tokio::task::spawn_blocking(move || {
        let (file, _) = granted.open(&path)?;
        work(file).map_err(|error| ReadDenied::Io { path, error: error.to_string() })
    });
    match done.await {
        Ok(result) => result.map_err(|error| unreadable(bridge, error)),
        Err(_) => Err(JsErrorBox::generic("reading the file failed")),
    }
}

/// Reads to the end of the file, whatever size it reports: files in /proc report 0.
fn read_all(file: File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > READ_BYTES_MAX {
        let message = format!("it is larger than {READ_BYTES_MAX} bytes; use ctx.tail() for it");
        return Err(std::io::Error::other(message));
    }
    Ok(bytes)
}

/// A file as text.
#[op2]
#[string]
pub(super) async fn op_xs_fs_text(
    state: Rc<RefCell<OpState>>,
    #[string] path: String,
) -> Result<String, JsErrorBox> {
    let bytes = blocking(&bridge(&state), path, read_all).await?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// A file as bytes.
#[op2]
pub(super) async fn op_xs_fs_bytes(
    state: Rc<RefCell<OpState>>,
    #[string] path: String,
) -> Result<Uint8Array, JsErrorBox> {
    Ok(blocking(&bridge(&state), path, read_all).await?.into())
}

/// The names in a directory, sorted, as JSON.
#[op2]
#[string]
pub(super) async fn op_xs_fs_list(
    state: Rc<RefCell<OpState>>,
    #[string] path: String,
) -> Result<String, JsErrorBox> {
    let list = |dir: File| {
        let mut names = Vec::new();
        for entry in
            std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()))?.take(ENTRIES_MAX)
        {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    Ok(json!(blocking(&bridge(&state), path, list).await?).to_string())
}

/// The metadata of a path, as JSON.
#[op2]
#[string]
pub(super) async fn op_xs_fs_stat(
    state: Rc<RefCell<OpState>>,
    #[string] path: String,
) -> Result<String, JsErrorBox> {
    let meta = blocking(&bridge(&state), path, |file| file.metadata()).await?;
    let kind = match (meta.is_file(), meta.is_dir()) {
        (true, _) => "file",
        (_, true) => "dir",
        _ => "other",
    };
    let since = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = since.map_or(0.0, |since| since.as_secs_f64() * 1000.0);
    Ok(json!({ "size": meta.len(), "modified": modified, "kind": kind }).to_string())
}
