//! The tail of a growing file for modules, across rotations: the open file is read to its end even
//! after its name has passed to another file, and the next run resumes where this one stopped.
//! Never writes.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::bridge::{Bridge, bridge};
use super::files::unreadable;
use super::place::{Given, SourcePlaces};
use super::streams::Source;
use crate::isolate::LogLevel;
use crate::permissions::{Granted, ReadDenied};

/// Polling interval of a file without new data.
const PERIOD: Duration = Duration::from_millis(100);
/// Bytes per read.
const READ_BYTES: usize = 64 * 1024;
/// Maximum bytes of one line; a longer one is handed over in pieces.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// A line without an end that has reached this many bytes is cut. What remains is then always more
/// than a lone carriage return, so the last piece is not empty, whatever the line ending.
const PARTIAL_BYTES_MAX: usize = LINE_BYTES_MAX + 2;
/// A replaced file is abandoned once nothing was added to it for this long: the program that writes
/// it may still have it open.
const REST: Duration = Duration::from_secs(1);
/// A replaced file that keeps growing is abandoned after this time all the same.
const REST_MAX: Duration = Duration::from_secs(60);

/// A tail's position: which file, and the byte after the last line handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    device: u64,
    inode: u64,
    /// The file's creation time, in nanoseconds since the Unix epoch, if known: the inode number is
    /// reused once the file is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    birth: Option<u64>,
    offset: u64,
}

impl Position {
    fn new(meta: &Metadata, offset: u64) -> Self {
        Self { device: meta.dev(), inode: meta.ino(), birth: birth(meta), offset }
    }

    fn is_in(&self, meta: &Metadata) -> bool {
        let other = Self::new(meta, self.offset);
        let is_born_then =
            self.birth.is_none() || other.birth.is_none() || self.birth == other.birth;
        is_born_then && (self.device, self.inode) == (other.device, other.inode)
    }

    fn to_bytes(self) -> Bytes {
        Bytes::from(json!(self).to_string())
    }
}

/// When a file was created, in nanoseconds since the Unix epoch.
fn birth(meta: &Metadata) -> Option<u64> {
    let since = meta.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

/// A file found under the path.
struct Opened {
    file: File,
    meta: Metadata,
    /// Its resolved path.
    place: PathBuf,
}

/// The open file of a tail.
struct Reading {
    file: File,
    position: Position,
    /// Bytes of a line whose end has not been written yet.
    partial: Vec<u8>,
}

/// The file that has replaced the one being read.
struct Next {
    file: Opened,
    seen: Instant,
    /// When something was last read from the replaced file.
    rests: Instant,
}

impl Next {
    /// Whether to switch to it, if the replaced file has nothing left.
    fn is_due(&self) -> bool {
        self.rests.elapsed() >= REST || self.seen.elapsed() >= REST_MAX
    }
}

/// A line, and the offset of the next one.
struct Line {
    text: String,
    end: u64,
}

/// How a tail starts.
#[derive(Clone, Copy)]
enum Begin {
    /// The stored position has not been read yet.
    Unread,
    /// The stored position, if any; no file could be opened since it was read.
    Saved(Option<Position>),
    /// It has started.
    Begun,
}

struct Tail {
    bridge: Rc<Bridge>,
    given: Rc<Given>,
    granted: Granted,
    path: String,
    from_start: bool,
    begin: Begin,
    reading: Option<Reading>,
    next: Option<Next>,
}

/// Opens a tail and returns its stream's number.
#[op2]
pub(super) async fn op_xs_tail(
    state: Rc<RefCell<OpState>>,
    run: u32,
    #[string] path: String,
    from_start: bool,
) -> Result<u32, JsErrorBox> {
    let bridge = bridge(&state);
    let granted = bridge.granted();
    // A missing file is waited for; one that may never be read is an error now.
    if let Err(error @ ReadDenied::Denied { .. }) = granted.readable(&path) {
        return Err(unreadable(&bridge, error));
    }
    let Some(outbox) = bridge.runs.borrow().get(&run).map(|run| Rc::clone(&run.outbox)) else {
        return Err(JsErrorBox::generic("this run has ended"));
    };
    let given = Given::new(SourcePlaces::of(&bridge, outbox, format!("tail:{path}")));
    let noted = Rc::downgrade(&given);
    let source = Tail {
        bridge: Rc::clone(&bridge),
        given,
        granted,
        path,
        from_start,
        begin: Begin::Unread,
        reading: None,
        next: None,
    };
    let id = bridge.streams.open(Box::new(source))?;
    bridge.places.note(id, noted);
    Ok(id)
}

impl Source<String> for Tail {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<String>, JsErrorBox>> {
        async move {
            // A request for more means that the previous lines are done.
            self.given.all_taken();
            let given = Rc::clone(&self.given);
            given.place.unless_lost(self.more()).await
        }
        .boxed_local()
    }
}

impl Tail {
    /// Waits for lines.
    async fn more(&mut self) -> Result<Option<String>, JsErrorBox> {
        if let Begin::Unread = self.begin {
            let saved = self.given.place.get().await?;
            let saved = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            self.begin = Begin::Saved(saved);
        }
        loop {
            let lines = self.look()?;
            if let Some(reading) = self.reading.as_ref().filter(|_| !lines.is_empty()) {
                let ends: Vec<_> = lines.iter().map(|line| line.end).collect();
                let position = reading.position;
                let behind = move |at: usize| Position { offset: ends[at], ..position }.to_bytes();
                self.given.hand_over(lines.len(), behind);
                let text: Vec<_> = lines.into_iter().map(|line| line.text).collect();
                return Ok(Some(json!(text).to_string()));
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    fn open(&self) -> Result<Option<Opened>, JsErrorBox> {
        let (file, place) = match self.granted.open(&self.path) {
            Ok(opened) => opened,
            // Between two files of a rotation there may be none: retried at the next poll.
            Err(ReadDenied::Io { .. }) => return Ok(None),
            Err(error) => return Err(unreadable(&self.bridge, error)),
        };
        Ok(file.metadata().ok().map(|meta| Opened { file, meta, place }))
    }

    /// Finds where to start: at the stored position, or at the present end of the file.
    fn start(&mut self, saved: Option<Position>) -> Result<(), JsErrorBox> {
        let Some(opened) = self.open()? else {
            // A file that does not exist yet is new as a whole.
            self.from_start |= saved.is_none() && self.granted.is_missing(&self.path);
            return Ok(());
        };
        self.begin = Begin::Begun;
        let len = opened.meta.len();
        match saved {
            Some(saved) if saved.is_in(&opened.meta) => {
                self.read(
                    opened.file,
                    &opened.meta,
                    if saved.offset <= len { saved.offset } else { 0 },
                );
            }
            // It was rotated while nothing was reading: the rest of the old file comes first, if it
            // still exists.
            Some(saved) => match self.moved(&opened, saved) {
                Some((file, meta)) => {
                    self.read(file, &meta, saved.offset);
                    let (now, next) = (Instant::now(), self.after(saved, opened));
                    self.next = Some(Next { file: next, seen: now, rests: now });
                }
                None => {
                    let next = self.after(saved, opened);
                    self.read(next.file, &next.meta, 0);
                    let text = format!(
                        "ctx.tail({:?}): the file that was being read is gone; the rest of it is \
                         not read",
                        self.path
                    );
                    self.bridge.backend.log(LogLevel::Warn, text, None);
                }
            },
            None => self.read(opened.file, &opened.meta, if self.from_start { 0 } else { len }),
        }
        self.keep();
        Ok(())
    }

    /// The file read before, under its new name.
    fn moved(&self, now: &Opened, saved: Position) -> Option<(File, Metadata)> {
        let file = self.granted.open_moved(&now.place, saved.device, saved.inode)?;
        let meta = file.metadata().ok()?;
        (saved.is_in(&meta) && saved.offset <= meta.len()).then_some((file, meta))
    }

    /// The file that comes after another one: the oldest that was created after it and rotated away
    /// before it was read, or else the present one.
    fn after(&self, before: Position, now: Opened) -> Opened {
        let (Some(from), Some(to)) = (before.birth, birth(&now.meta)) else { return now };
        let between = |meta: &Metadata| birth(meta).filter(|&at| from < at && at < to);
        match self.granted.open_rotated(&now.place, between) {
            Some((file, meta)) => Opened { file, meta, ..now },
            None => now,
        }
    }

    fn read(&mut self, file: File, meta: &Metadata, offset: u64) {
        let position = Position::new(meta, offset);
        self.reading = Some(Reading { file, position, partial: Vec::new() });
    }

    /// The lines available now; moves on to the next file once the current one is used up.
    fn look(&mut self) -> Result<Vec<Line>, JsErrorBox> {
        if let Begin::Saved(saved) = self.begin {
            self.start(saved)?;
        }
        let Some(reading) = self.reading.as_mut() else { return Ok(Vec::new()) };
        loop {
            // Checked before reading: data added while this thread was suspended is read first.
            let is_due = self.next.as_ref().is_some_and(Next::is_due);
            let piece = reading.piece().map_err(|error| {
                JsErrorBox::generic(format!("cannot read {:?}: {error}", self.path))
            })?;
            if let (Piece::Lines(_) | Piece::Part, Some(next)) = (&piece, &mut self.next) {
                next.rests = Instant::now();
            }
            match piece {
                Piece::Lines(lines) => return Ok(lines),
                Piece::Part => {}
                Piece::End => return self.move_on(is_due),
            }
        }
    }

    /// At the end of a file: switches to its replacement, after a while.
    fn move_on(&mut self, is_due: bool) -> Result<Vec<Line>, JsErrorBox> {
        let Some(reading) = self.reading.as_ref() else { return Ok(Vec::new()) };
        let (here, at) = (reading.position, reading.at());
        if reading.file.metadata().is_ok_and(|meta| meta.len() < at) {
            // It was truncated: everything in it is new.
            self.next = None;
            let Some(opened) = self.open()? else { return Ok(Vec::new()) };
            return Ok(self.turn_to(opened));
        }
        if self.next.is_some() && !is_due {
            return Ok(Vec::new());
        }
        let Some(opened) = self.open()? else { return Ok(Vec::new()) };
        if here.is_in(&opened.meta) {
            self.next = None;
            return Ok(Vec::new());
        }
        match self.next.take() {
            Some(next) => Ok(self.turn_to(next.file)),
            None => {
                let (now, next) = (Instant::now(), self.after(here, opened));
                self.next = Some(Next { file: next, seen: now, rests: now });
                Ok(Vec::new())
            }
        }
    }

    /// Starts another file. The rest of a file that was moved away counts as a line, with or
    /// without a newline.
    fn turn_to(&mut self, opened: Opened) -> Vec<Line> {
        let last = self.reading.take().map(|reading| reading.partial).unwrap_or_default();
        self.read(opened.file, &opened.meta, 0);
        if last.is_empty() {
            // No line of the previous file is outstanding.
            self.keep();
            return Vec::new();
        }
        vec![Line { text: text(&last), end: 0 }]
    }

    /// Stores the current position, for the next run to resume from.
    fn keep(&self) {
        if let Some(reading) = &self.reading {
            self.given.place.reached(reading.position.to_bytes());
        }
    }
}

/// The result of one read.
enum Piece {
    /// Whole lines.
    Lines(Vec<Line>),
    /// Part of a line.
    Part,
    /// Nothing: the file ends here.
    End,
}

impl Reading {
    /// The offset of the next read.
    fn at(&self) -> u64 {
        self.position.offset + self.partial.len() as u64
    }

    /// The whole lines of the next chunk of the file.
    fn piece(&mut self) -> std::io::Result<Piece> {
        self.file.seek(SeekFrom::Start(self.at()))?;
        let before = self.partial.len();
        let more = READ_BYTES.min(PARTIAL_BYTES_MAX - before);
        (&self.file).take(more as u64).read_to_end(&mut self.partial)?;
        if self.partial.len() == before {
            return Ok(Piece::End);
        }
        let end = match self.partial.iter().rposition(|&byte| byte == b'\n') {
            Some(newline) => newline + 1,
            None if self.partial.len() >= PARTIAL_BYTES_MAX => boundary(&self.partial),
            None => return Ok(Piece::Part),
        };
        let rest = self.partial.split_off(end);
        let whole = std::mem::replace(&mut self.partial, rest);
        let lines = whole.split_inclusive(|&byte| byte == b'\n').map(|line| {
            self.position.offset += line.len() as u64;
            Line { text: text(line), end: self.position.offset }
        });
        Ok(Piece::Lines(lines.collect()))
    }
}

/// Where to cut a line that is too long: not within a character.
fn boundary(line: &[u8]) -> usize {
    let continues = |at: usize| line.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
    // Anywhere, if it is not UTF-8.
    (LINE_BYTES_MAX - 3..=LINE_BYTES_MAX).rfind(|at| !continues(*at)).unwrap_or(LINE_BYTES_MAX)
}

/// A line without its line ending.
fn text(line: &[u8]) -> String {
    let line = match line.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => line,
    };
    String::from_utf8_lossy(line).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Lines up to the present end of the file.
    fn lines(reading: &mut Reading) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            match reading.piece().unwrap() {
                Piece::Lines(lines) => all.extend(lines.into_iter().map(|line| line.text)),
                Piece::Part => {}
                Piece::End => return all,
            }
        }
    }

    /// Regression test: a line ending that was written after the rest of its line was handed over
    /// as an empty piece.
    #[test]
    fn the_end_of_a_line_that_was_cut_is_no_piece() {
        for (beyond, end, pieces) in [
            (0, "\n", &[LINE_BYTES_MAX][..]),
            (0, "\r\n", &[LINE_BYTES_MAX]),
            (1, "\n", &[LINE_BYTES_MAX + 1]),
            (1, "\r\n", &[LINE_BYTES_MAX, 1]),
            (2, "\n", &[LINE_BYTES_MAX, 2]),
            (2, "\r\n", &[LINE_BYTES_MAX, 2]),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            let position = Position::new(&file.metadata().unwrap(), 0);
            file.write_all("x".repeat(LINE_BYTES_MAX + beyond).as_bytes()).unwrap();
            let read = file.try_clone().unwrap();
            let mut reading = Reading { file: read, position, partial: Vec::new() };
            let mut found = lines(&mut reading);
            for rest in [end, "end\n"] {
                file.seek(SeekFrom::End(0)).unwrap();
                file.write_all(rest.as_bytes()).unwrap();
                found.extend(lines(&mut reading));
            }
            assert_eq!(found.pop().as_deref(), Some("end"), "{beyond} {end:?}");
            let lengths: Vec<_> = found.iter().map(String::len).collect();
            assert_eq!(lengths, pieces, "{beyond} {end:?}");
        }
    }

    #[test]
    fn a_cut_falls_between_characters() {
        for (text, cut) in [("x", 0), ("\u{e9}", 1), ("\u{20ac}", 1), ("\u{1f600}", 3)] {
            let line = format!("{}{}", "x".repeat(LINE_BYTES_MAX - cut), text.repeat(2));
            assert_eq!(boundary(line.as_bytes()), LINE_BYTES_MAX - cut, "{text}");
        }
        assert_eq!(boundary(&vec![0x80; LINE_BYTES_MAX + 2]), LINE_BYTES_MAX);
    }
}
