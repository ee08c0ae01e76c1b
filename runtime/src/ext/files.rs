//! Reading files for modules: whole ones, directories, and the tail of a growing one. Never writes.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use deno_core::convert::Uint8Array;
use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bridge::{Bridge, NOT_CAPABLE, bridge};
use super::place::Place;
use super::streams::Source;
use crate::isolate::limits::READ_BYTES_MAX;
use crate::permissions::{Granted, ReadDenied};

/// Time between two looks at a tailed file that has nothing new.
const TAIL_PERIOD: Duration = Duration::from_millis(100);
/// Bytes read from a tailed file at once.
const TAIL_BYTES: usize = 64 * 1024;
/// Bytes of one line of a tailed file; a longer one is handed over in pieces.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Entries of a directory listing.
const ENTRIES_MAX: usize = 100_000;

pub(super) fn denied(error: ReadDenied) -> JsErrorBox {
    match error {
        ReadDenied::Denied { .. } => JsErrorBox::new(NOT_CAPABLE, error.to_string()),
        ReadDenied::Io { .. } => JsErrorBox::generic(error.to_string()),
    }
}

/// Runs file work on a thread that may block.
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
        Ok(result) => result.map_err(|error| bridge.denied(denied(error))),
        Err(_) => Err(JsErrorBox::generic("reading the file failed")),
    }
}

/// Reads to the end of the file, whatever size it claims: files in /proc claim none.
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

/// What the file system knows about a path, as JSON.
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

/// Where a tail is: which file, and the byte after the last line handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    device: u64,
    inode: u64,
    offset: u64,
}

/// The open file of a tail.
struct Reading {
    file: File,
    position: Position,
    /// Bytes of a line whose end has not been written yet.
    partial: Vec<u8>,
}

struct Tail {
    place: Rc<Place>,
    granted: Granted,
    path: String,
    from_start: bool,
    reading: Option<Reading>,
    begun: bool,
    /// Where the lines end that were handed over.
    given: Option<Position>,
}

/// Opens a tail; gives its stream's number.
#[op2]
pub(super) async fn op_xs_tail(
    state: Rc<RefCell<OpState>>,
    run: u32,
    #[string] path: String,
    from_start: bool,
) -> Result<u32, JsErrorBox> {
    let bridge = bridge(&state);
    let granted = bridge.granted();
    // A file that is not there yet is waited for; one that may never be read is an error now.
    if let Err(error @ ReadDenied::Denied { .. }) = granted.readable(&path) {
        return Err(denied(error));
    }
    let Some(outbox) = bridge.runs.borrow().get(&run).map(|run| Rc::clone(&run.outbox)) else {
        return Err(JsErrorBox::generic("this run is over"));
    };
    let place = Place::new(&bridge, outbox, format!("tail:{path}"));
    let (reading, begun, given) = (None, false, None);
    let source = Tail { place, granted, path, from_start, reading, begun, given };
    bridge.streams.open(Box::new(source))
}

impl Source<String> for Tail {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<String>, JsErrorBox>> {
        async move {
            // Who asks for more has done with what was handed over.
            self.keep();
            let place = Rc::clone(&self.place);
            place.unless_lost(self.more()).await
        }
        .boxed_local()
    }
}

impl Tail {
    /// Waits for lines.
    async fn more(&mut self) -> Result<Option<String>, JsErrorBox> {
        if !self.begun {
            self.begin().await?;
        }
        loop {
            let lines = self.look()?;
            if !lines.is_empty() {
                self.given = self.reading.as_ref().map(|reading| reading.position);
                return Ok(Some(json!(lines).to_string()));
            }
            tokio::time::sleep(TAIL_PERIOD).await;
        }
    }

    /// Finds the place to begin: where it was, or the end of the file as it is now.
    async fn begin(&mut self) -> Result<(), JsErrorBox> {
        let saved = self.place.get().await?;
        let saved = saved.and_then(|bytes| serde_json::from_slice::<Position>(&bytes).ok());
        self.begun = true;
        let Ok(Some((file, meta))) = self.open() else { return Ok(()) };
        let offset = match saved {
            Some(saved) if (saved.device, saved.inode) == (meta.dev(), meta.ino()) => {
                if saved.offset <= meta.len() { saved.offset } else { 0 }
            }
            // The file was rotated while nobody looked: all of the new one is new.
            Some(_) => 0,
            None if self.from_start => 0,
            None => meta.len(),
        };
        self.start(file, &meta, offset);
        self.given = self.reading.as_ref().map(|reading| reading.position);
        self.keep();
        Ok(())
    }

    fn open(&self) -> Result<Option<(File, Metadata)>, JsErrorBox> {
        let file = match self.granted.open(&self.path) {
            Ok((file, _)) => file,
            // Between two files of a rotation there may be none: looked for again next time.
            Err(ReadDenied::Io { .. }) => return Ok(None),
            Err(error) => return Err(denied(error)),
        };
        Ok(file.metadata().ok().map(|meta| (file, meta)))
    }

    fn start(&mut self, file: File, meta: &Metadata, offset: u64) {
        let position = Position { device: meta.dev(), inode: meta.ino(), offset };
        self.reading = Some(Reading { file, position, partial: Vec::new() });
    }

    /// Lines that are there now; moves on to the next file once the present one is used up.
    fn look(&mut self) -> Result<Vec<String>, JsErrorBox> {
        let Some(reading) = self.reading.as_mut() else {
            if let Some((file, meta)) = self.open()? {
                self.start(file, &meta, 0);
            }
            return Ok(Vec::new());
        };
        let lines = reading.lines().map_err(|error| {
            JsErrorBox::generic(format!("cannot read {:?}: {error}", self.path))
        })?;
        if !lines.is_empty() {
            return Ok(lines);
        }
        let (here, at) = (reading.position, reading.position.offset + reading.partial.len() as u64);
        let truncated = reading.file.metadata().is_ok_and(|meta| meta.len() < at);
        let Some((file, meta)) = self.open()? else { return Ok(Vec::new()) };
        if (meta.dev(), meta.ino()) == (here.device, here.inode) && !truncated {
            return Ok(Vec::new());
        }
        // What stands at the end of a file that was moved away is a line, ended or not.
        let last = self.reading.take().map(|reading| reading.partial).unwrap_or_default();
        self.start(file, &meta, 0);
        Ok(if last.is_empty() { Vec::new() } else { vec![text(&last)] })
    }

    /// Lets the next run go on behind the lines that were handed over.
    fn keep(&mut self) {
        if let Some(position) = self.given.take() {
            self.place.keep(Bytes::from(json!(position).to_string()));
        }
    }
}

impl Reading {
    /// Whole lines of the next piece of the file.
    fn lines(&mut self) -> std::io::Result<Vec<String>> {
        let at = self.position.offset + self.partial.len() as u64;
        self.file.seek(SeekFrom::Start(at))?;
        let before = self.partial.len();
        (&self.file).take(TAIL_BYTES as u64).read_to_end(&mut self.partial)?;
        if self.partial.len() == before {
            return Ok(Vec::new());
        }
        let end = match self.partial.iter().rposition(|&byte| byte == b'\n') {
            Some(newline) => newline + 1,
            None if self.partial.len() >= LINE_BYTES_MAX => self.partial.len(),
            None => return Ok(Vec::new()),
        };
        let rest = self.partial.split_off(end);
        let mut whole = std::mem::replace(&mut self.partial, rest);
        self.position.offset += whole.len() as u64;
        if whole.last() == Some(&b'\n') {
            whole.pop();
        }
        Ok(whole.split(|&byte| byte == b'\n').map(text).collect())
    }
}

fn text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}
