//! `append --lines`: one frame per line of input. Lines that arrive together share a batch; a batch
//! is sent at once when the input is idle. Several batches may be in flight. On a failure or a
//! stop, the number of stored lines is reported.

use std::collections::VecDeque;
use std::future::pending;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio_util::sync::CancellationToken;
use xs_engine::{Body, FrameId, IdempotencyKey, NewFrame, Topic, ValueError};
use xs_protocol::{AppendRequest, Appended, Class, Client, Reply};

use crate::args::{AppendArgs, meta_object};
use crate::connect::{explain, while_served};
use crate::exit::{self, Exit, ExitError};
use crate::output::{Output, notice};

/// Maximum bytes of one line.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Maximum lines of one batch.
const BATCH_LINES_MAX: usize = 512;
/// Bytes at which a batch is sent.
const BATCH_BYTES: usize = 1024 * 1024;
/// Maximum number of unacknowledged batches.
const BATCHES_MAX: usize = 8;
/// Bytes per read.
const READ_BYTES: usize = 64 * 1024;
/// Chunks read ahead of the appends.
const READ_AHEAD: usize = 8;
/// Assumed overhead of a frame besides its meta and body, in bytes.
const FRAME_BYTES: usize = 512;

pub(super) async fn run(
    client: &Client,
    append: AppendArgs,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let file = append.file.as_deref().filter(|path| path.as_os_str() != "-");
    let pieces = tokio::select! {
        pieces = Pieces::of(file) => pieces?,
        () = stop.cancelled() => return Ok(Exit::Interrupted),
    };
    let mut lines = Lines::new(&append);
    let mut sender = Sender::new(client, append.key.clone())?;
    let fed = feed(pieces, &mut lines, &mut sender, stop).await;
    let settled = sender.settle_all().await;
    match fed.and_then(|ended| settled.map(|()| ended)) {
        Ok(Ended::AtEnd) => {}
        Ok(Ended::Stopped) => {
            notice(&(sender.told(lines.count) + sender.advice(None)));
            return Ok(Exit::Interrupted);
        }
        Ok(Ended::At(wrong)) => {
            let before = match sender.stored {
                0 => "nothing is stored".to_owned(),
                // The other lines of its batch are not stored until the line is corrected.
                stored if sender.key.is_some() => {
                    format!(
                        "{stored} lines are stored; when that line is mended, the same command \
                         stores the rest"
                    )
                }
                1 => "the line before it is stored".to_owned(),
                stored => format!("the {stored} lines before it are stored"),
            };
            return ExitError::fail(Exit::Failed, format!("{wrong}; {before}"));
        }
        Err(error) => {
            let told = sender.told(lines.count) + sender.advice(Some(&error));
            return Err(error).context(told);
        }
    }
    let text = |id: Option<FrameId>| id.map(|id| id.to_string());
    let line = match (out.is_person(), sender.first, sender.last) {
        (true, Some(first), Some(last)) => {
            format!("{} lines stored, {first} to {last}", sender.stored)
        }
        (_, first, last) => {
            json!({ "lines": sender.stored, "first": text(first), "last": text(last) }).to_string()
        }
    };
    let printed = out.line(&line).and_then(|()| out.flush());
    printed.with_context(|| format!("{} lines are stored", sender.stored))?;
    Ok(Exit::Ok)
}

/// How reading ended.
enum Ended {
    AtEnd,
    /// An unfinished line is not stored.
    Stopped,
    /// At an invalid line, with the reason.
    At(String),
}

/// Splits chunks into lines, groups lines into batches, and sends the batches, until the end of the
/// input or `stop`.
async fn feed(
    mut pieces: Pieces,
    lines: &mut Lines,
    sender: &mut Sender<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<Ended> {
    while let Some(piece) = next_piece(&mut pieces, lines, sender, stop).await? {
        let is_end = piece.is_empty();
        lines.push(&piece);
        loop {
            match lines.next_line(is_end) {
                Ok(true) if lines.batch_is_full() => sender.send(lines.take_batch()).await?,
                Ok(true) => {}
                Ok(false) => break,
                Err(wrong) => {
                    // The lines before it cannot be read again.
                    sender.send(lines.take_begun()).await?;
                    return Ok(Ended::At(wrong));
                }
            }
        }
        if is_end {
            sender.send(lines.take_batch()).await?;
            return Ok(Ended::AtEnd);
        }
    }
    sender.send(lines.take_begun()).await?;
    Ok(Ended::Stopped)
}

/// The next chunk, empty at the end of the input; `None` when everything read before `stop` has
/// been returned. Sends the pending batch while waiting.
async fn next_piece(
    pieces: &mut Pieces,
    lines: &mut Lines,
    sender: &mut Sender<'_>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Bytes>> {
    let client = sender.client;
    let piece = loop {
        let is_stopped = stop.is_cancelled();
        if is_stopped {
            pieces.reading.is_over.store(true, SeqCst);
        }
        // Loaded before the receive: a read that was in progress may have delivered meanwhile.
        let is_at_input = pieces.reading.is_at_input.load(SeqCst);
        match pieces.receiver.try_recv() {
            Ok(piece) => break Some(piece),
            Err(TryRecvError::Disconnected) => break None,
            Err(TryRecvError::Empty) if is_stopped && is_at_input => break None,
            Err(TryRecvError::Empty) => {}
        }
        sender.send(lines.take_begun()).await?;
        tokio::select! {
            piece = pieces.receiver.recv() => break piece,
            settled = sender.settle_one(), if !sender.waiting.is_empty() => settled?,
            // The server may go away while the input is silent, for hours perhaps.
            gone = while_served(client, pending::<anyhow::Result<()>>()) => gone?,
            () = stop.cancelled(), if !is_stopped => {}
        }
    };
    match piece.transpose() {
        Ok(piece) => Ok(piece),
        Err(error) => {
            // The lines before it cannot be read again.
            sender.send(lines.take_begun()).await?;
            Err(error).context("cannot read the input")
        }
    }
}

/// The chunks of the input as they arrive, with an empty one at its end.
struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    reading: Arc<Reading>,
}

/// The state of the reading thread.
#[derive(Default)]
struct Reading {
    /// Set to make it stop reading.
    is_over: AtomicBool,
    /// It has handed over everything it read, and waits for more.
    is_at_input: AtomicBool,
}

impl Pieces {
    /// Reads on a separate thread, because reading standard input blocks.
    async fn of(file: Option<&Path>) -> anyhow::Result<Self> {
        let source: Box<dyn Read + Send> = match file {
            Some(path) => {
                // Opened asynchronously: opening a named pipe blocks until a writer appears.
                let file = tokio::fs::File::open(path).await;
                Box::new(file.with_context(|| path.display().to_string())?.into_std().await)
            }
            None => {
                if io::stdin().is_terminal() {
                    notice("each line is stored as you enter it; Ctrl-D exits");
                }
                Box::new(io::stdin())
            }
        };
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        let reading = Arc::new(Reading::default());
        let told = Arc::clone(&reading);
        std::thread::Builder::new()
            .name("xs-input".to_owned())
            .spawn(move || told.read_on(source, &sender))
            .context("cannot start a thread that reads the input")?;
        Ok(Self { receiver, reading })
    }
}

impl Reading {
    fn read_on(&self, mut source: Box<dyn Read + Send>, sender: &mpsc::Sender<io::Result<Bytes>>) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            self.is_at_input.store(true, SeqCst);
            if self.is_over.load(SeqCst) {
                return;
            }
            let piece = match source.read(&mut buffer) {
                Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            self.is_at_input.store(false, SeqCst);
            let is_last = piece.as_ref().map_or(true, Bytes::is_empty);
            if sender.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    }
}

/// The lines read so far and the current batch.
struct Lines {
    template: NewFrame,
    json: bool,
    /// The field of a line that is appended to the topic, as keys that lead to it.
    topic_from: Option<Vec<String>>,
    pending: BytesMut,
    /// Bytes of `pending` known to contain no line feed.
    searched: usize,
    batch: Batch,
    batch_bytes: usize,
    /// Whether batches end at the same lines however the input arrives.
    is_keyed: bool,
    count: u64,
}

/// Frames, and the line number of the first.
#[derive(Default)]
struct Batch {
    frames: Vec<NewFrame>,
    first: u64,
}

impl Lines {
    fn new(append: &AppendArgs) -> Self {
        let mut template = NewFrame::new(append.topic.clone());
        template.ttl = append.ttl;
        template.meta = append.meta.clone().unwrap_or_default();
        Self {
            template,
            json: append.json,
            topic_from: append
                .topic_from
                .as_ref()
                .map(|path| path.split('.').map(str::to_owned).collect()),
            pending: BytesMut::new(),
            searched: 0,
            batch: Batch::default(),
            batch_bytes: 0,
            is_keyed: append.key.is_some(),
            count: 0,
        }
    }

    fn push(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
    }

    /// Moves one line into the batch; returns false when none is complete. At the end of the input
    /// the rest is a line too.
    ///
    /// # Errors
    /// The reason why a line is invalid.
    fn next_line(&mut self, at_end: bool) -> Result<bool, String> {
        let feed = self.pending[self.searched..].iter().position(|&byte| byte == b'\n');
        let mut line = match feed {
            Some(at) => {
                let mut line = self.pending.split_to(self.searched + at + 1);
                line.truncate(line.len() - 1);
                line
            }
            None if at_end && !self.pending.is_empty() => self.pending.split(),
            None => {
                self.searched = self.pending.len();
                if self.searched > LINE_BYTES_MAX {
                    let line = self.count + 1;
                    return Err(format!("line {line} is longer than {LINE_BYTES_MAX} bytes"));
                }
                return Ok(false);
            }
        };
        self.searched = 0;
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        self.count += 1;
        self.take_in(line.freeze())?;
        Ok(true)
    }

    fn take_in(&mut self, line: Bytes) -> Result<(), String> {
        let mut frame = self.template.clone();
        if self.json {
            if line.trim_ascii().is_empty() {
                return Ok(());
            }
            // The line number within a single line is meaningless.
            let fail = |text: String| {
                format!("line {}: {}", self.count, text.replace(" at line 1 column", " at column"))
            };
            let text = std::str::from_utf8(&line).map_err(|error| fail(error.to_string()))?;
            frame.meta = meta_object(text).map_err(fail)?;
            if let Some(path) = &self.topic_from {
                frame.topic = topic_below(&frame.topic, text, path).map_err(fail)?;
            }
        } else if !line.is_empty() {
            frame.body = Body::Inline(line.clone());
        }
        self.batch_bytes += FRAME_BYTES + line.len() + self.template.meta.as_bytes().len();
        if self.batch.frames.is_empty() {
            self.batch.first = self.count;
        }
        self.batch.frames.push(frame);
        Ok(())
    }

    fn batch_is_full(&self) -> bool {
        self.batch.frames.len() >= BATCH_LINES_MAX || self.batch_bytes >= BATCH_BYTES
    }

    /// Takes what there is of a batch.
    fn take_batch(&mut self) -> Batch {
        self.batch_bytes = 0;
        std::mem::take(&mut self.batch)
    }

    /// Takes what there is of a batch, if it may end at any line.
    fn take_begun(&mut self) -> Batch {
        if self.is_keyed { Batch::default() } else { self.take_batch() }
    }
}

/// The batches in flight, and the totals of the acknowledged ones.
struct Sender<'a> {
    client: &'a Client,
    key: Option<IdempotencyKey>,
    waiting: VecDeque<(u64, Reply<Appended>)>,
    stored: u64,
    /// Lines whose outcome is unknown, because the connection was lost before the answer.
    unknown: u64,
    first: Option<FrameId>,
    last: Option<FrameId>,
}

impl<'a> Sender<'a> {
    fn new(client: &'a Client, key: Option<IdempotencyKey>) -> anyhow::Result<Self> {
        if let Some(key) = &key {
            // The key of the last possible line, which is the longest.
            key_of(key, u64::MAX).map_err(|error| {
                ExitError::new(Exit::Usage, format!("--key with the number of a line: {error}"))
            })?;
        }
        let waiting = VecDeque::new();
        Ok(Self { client, key, waiting, stored: 0, unknown: 0, first: None, last: None })
    }

    async fn send(&mut self, batch: Batch) -> anyhow::Result<()> {
        if batch.frames.is_empty() {
            return Ok(());
        }
        self.settle(BATCHES_MAX - 1).await?;
        let key = self.key.as_ref().map(|key| key_of(key, batch.first)).transpose()?;
        let lines = batch.frames.len() as u64;
        let request = AppendRequest { key, ..AppendRequest::frames(batch.frames) };
        self.waiting.push_back((lines, self.client.append(&request)));
        Ok(())
    }

    /// Says how many of the lines read are stored.
    fn told(&self, read: u64) -> String {
        let Self { stored, unknown, .. } = self;
        match unknown {
            0 => format!("{stored} of {read} lines read are stored"),
            _ => format!(
                "at least {stored} of {read} lines read are stored, and up to {unknown} more may be"
            ),
        }
    }

    /// Advice for getting the rest stored, after an error or a stop.
    fn advice(&self, error: Option<&anyhow::Error>) -> &'static str {
        match (&self.key, error.map(exit::of)) {
            (None, _) => "",
            // The same lines would be refused again.
            (Some(_), Some(Exit::Condition)) => {
                "; the key was used with other lines: give those again, or another key"
            }
            (Some(_), _) => "; the same command with the same input stores the rest",
        }
    }

    /// Waits until at most `left` batches are unacknowledged.
    async fn settle(&mut self, left: usize) -> anyhow::Result<()> {
        while self.waiting.len() > left {
            self.settle_one().await?;
        }
        Ok(())
    }

    /// Waits for all batches, including those after a refused one.
    async fn settle_all(&mut self) -> anyhow::Result<()> {
        let mut settled = Ok(());
        while !self.waiting.is_empty() {
            settled = settled.and(self.settle_one().await);
        }
        settled
    }

    /// Waits for the oldest batch. Its reply stays in the queue until it arrives, so that the wait
    /// can be cancelled safely.
    async fn settle_one(&mut self) -> anyhow::Result<()> {
        let Some((lines, reply)) = self.waiting.front_mut() else { return Ok(()) };
        let (lines, appended) = (*lines, reply.await);
        self.waiting.pop_front();
        let appended = appended.map_err(|error| {
            if error.class() == Class::Unknown {
                self.unknown += lines;
            }
            explain(error)
        })?;
        self.stored += appended.frames.len() as u64;
        self.first = self.first.or_else(|| appended.frames.first().map(|stamp| stamp.id));
        self.last = appended.frames.last().map(|stamp| stamp.id).or(self.last);
        Ok(())
    }
}

/// The topic of a line: `topic`, a dot and the field of the line that `path` leads to.
fn topic_below(topic: &Topic, line: &str, path: &[String]) -> Result<Topic, String> {
    let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let named = path.join(".");
    let field = match path.iter().try_fold(&line, |value, key| value.get(key.as_str())) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
        Some(_) => return Err(format!("{named} is neither text nor a whole number")),
        None => return Err(format!("there is no {named}")),
    };
    Topic::parse(&format!("{topic}.{field}")).map_err(|error| error.to_string())
}

/// The key of the batch that begins with a line.
fn key_of(key: &IdempotencyKey, line: u64) -> Result<IdempotencyKey, ValueError> {
    IdempotencyKey::parse(&format!("{key}:{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Program, StoreSubcommand, Subcommand};
    use clap::Parser as _;

    fn split(options: &str, pieces: &[&str]) -> Result<Vec<String>, String> {
        let line = format!("xs append t --lines {options}");
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        let Program::Subcommand(Subcommand::Store(StoreSubcommand::Append(append))) = args.program
        else {
            unreachable!("a line of append")
        };
        let mut lines = Lines::new(&append);
        for piece in pieces {
            lines.push(piece.as_bytes());
            while lines.next_line(false)? {}
        }
        lines.next_line(true)?;
        let shown = lines.take_batch().frames.into_iter().map(|frame| match frame.body {
            Body::Inline(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => String::from_utf8_lossy(frame.meta.as_bytes()).into_owned(),
        });
        Ok(shown.collect())
    }

    #[test]
    fn lines_are_found_across_pieces() {
        assert_eq!(split("", &["a\nb", "c\r\n", "\n", "d"]).unwrap(), ["a", "bc", "", "d"]);
        assert_eq!(split("", &["", "a\n"]).unwrap(), ["a"]);
        assert!(split("", &[]).unwrap().is_empty());
    }

    #[test]
    fn json_lines_become_meta_and_others_name_their_line() {
        assert_eq!(
            split("--json", &["{\"a\":1}\n\n", " {\"b\":2} "]).unwrap(),
            ["{\"a\":1}", "{\"b\":2}"]
        );
        let error = split("--json", &["{}\n[1]\n"]).unwrap_err();
        assert!(error.starts_with("line 2: a JSON object is expected"), "{error}");
        let error = split("--json", &["{}\nTraceback\n"]).unwrap_err();
        assert_eq!(error, "line 2: not JSON: expected value at column 1");
    }

    #[test]
    fn a_field_of_a_line_becomes_the_end_of_its_topic() {
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        let of = |line: &str, field: &str| {
            topic_below(&Topic::parse("t").unwrap(), line, &path(field))
                .map(|topic| topic.to_string())
        };
        let line = r#"{"a":"x.y","n":80,"o":{"b":"z"},"f":1.5,"w":"a b","e":"","l":["q"]}"#;
        assert_eq!(of(line, "a").unwrap(), "t.x.y");
        assert_eq!(of(line, "n").unwrap(), "t.80");
        assert_eq!(of(line, "o.b").unwrap(), "t.z");
        assert_eq!(of(line, "f").unwrap_err(), "f is neither text nor a whole number");
        assert_eq!(of(line, "o").unwrap_err(), "o is neither text nor a whole number");
        assert_eq!(of(line, "none").unwrap_err(), "there is no none");
        assert_eq!(of(line, "a.b").unwrap_err(), "there is no a.b");
        assert_eq!(of(line, "l.0").unwrap_err(), "there is no l.0");
        assert!(of(line, "w").is_err() && of(line, "e").is_err());
        let error = split("--json --topic-from a", &["{\"a\":\"b\"}\n{}\n"]).unwrap_err();
        assert_eq!(error, "line 2: there is no a");
    }

    #[test]
    fn a_line_has_a_longest() {
        let long = "a".repeat(LINE_BYTES_MAX + 1);
        assert!(split("", &[&long]).unwrap_err().starts_with("line 1 is longer"));
    }
}
