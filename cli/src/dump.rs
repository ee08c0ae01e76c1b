//! The directory that `export` writes and `import` reads: `frames.jsonl` with one frame per line,
//! in the JSON form of every subcommand, and `cas/` with the bodies, each named by its hash in
//! base64, which contains no slash. The `.export` of cross.stream writes the same format.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use xs_engine::{BlobHash, FrameId, Meta, NewFrame, Origin, Topic, Ttl};

use crate::json::BODY_IN_LINE_MAX;

/// Maximum bytes of one line: a frame's meta, at most 64 KiB, plus its other fields.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Maximum bytes of a line from elsewhere, which may hold a body, as those of `cat --with-body` do:
/// JSON may escape each byte of the body with six.
const LINE_WITH_BODY_MAX: u64 = LINE_BYTES_MAX + 6 * BODY_IN_LINE_MAX;

/// Bytes per read.
const PIECE_BYTES: usize = 64 * 1024;

/// What was exported, so that another export does not end up in the same directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Selection {
    /// The store's uuid, in hex.
    pub(crate) store: String,
    /// The topic patterns.
    pub(crate) topics: String,
    /// The time range, in milliseconds since the Unix epoch.
    pub(crate) since_ms: Option<u64>,
    pub(crate) until_ms: Option<u64>,
    /// The time range as typed: a relative time such as "2h ago" resolves differently each time.
    #[serde(default)]
    pub(crate) since: Option<String>,
    #[serde(default)]
    pub(crate) until: Option<String>,
    /// The epoch in which the export began.
    pub(crate) epoch: u64,
    /// Unreadable ranges: the first offset, and the first one after the range.
    #[serde(default)]
    pub(crate) unread: Vec<(u64, u64)>,
    /// Frames in unreadable ranges that are not listed. An export that was cut off may count some
    /// twice.
    #[serde(default)]
    pub(crate) unread_more: u64,
}

/// Maximum number of unreadable ranges stored; beyond it only their frames are counted.
const UNREAD_MAX: usize = 4096;

impl Selection {
    /// Whether it selects the same as `there`. A time typed in the same way counts as equal.
    fn is_of(&self, there: &Self) -> bool {
        let same = |typed: &Option<String>, ms, typed_there: &Option<String>, ms_there| {
            ms == ms_there || (typed.is_some() && typed == typed_there)
        };
        self.store == there.store
            && self.topics == there.topics
            && same(&self.since, self.since_ms, &there.since, there.since_ms)
            && same(&self.until, self.until_ms, &there.until, there.until_ms)
    }

    /// Records an unreadable range; returns whether it was not recorded before.
    pub(crate) fn pass_over(&mut self, from: u64, to: u64) -> bool {
        if from >= to || self.unread.iter().any(|there| there.0 <= from && to <= there.1) {
            return false;
        }
        let is_full = self.unread.len() >= UNREAD_MAX;
        match self.unread.last_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ if is_full => self.unread_more += to - from,
            _ => self.unread.push((from, to)),
        }
        true
    }

    /// The number of unreadable frames.
    pub(crate) fn unread(&self) -> u64 {
        let ranges = self.unread.iter().map(|(from, to)| to.saturating_sub(*from));
        ranges.fold(self.unread_more, u64::saturating_add)
    }
}

/// A directory of frames and bodies.
#[derive(Debug, Clone)]
pub(crate) struct Dump {
    dir: PathBuf,
}

impl Dump {
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn frames(&self) -> PathBuf {
        self.dir.join("frames.jsonl")
    }

    fn selection(&self) -> PathBuf {
        self.dir.join("export.json")
    }

    /// Creates the directories.
    pub(crate) fn make(&self) -> io::Result<()> {
        std::fs::create_dir_all(self.dir.join("cas"))?;
        sync_dir_of(&self.dir)?;
        sync_dir_of(&self.dir.join("cas"))
    }

    /// The path of the body with this hash.
    pub(crate) fn blob(&self, hash: &BlobHash) -> PathBuf {
        self.dir.join("cas").join(STANDARD.encode(hash.to_string()))
    }

    /// Creates the directory, or resumes an export that was cut off: returns the offset after its
    /// last frame, and the epoch in which that was read. `selection` becomes that of the resumed
    /// export.
    ///
    /// # Errors
    /// The directory holds another export, or something else; or it cannot be written.
    pub(crate) fn begin(&self, selection: &mut Selection) -> io::Result<Option<(u64, u64)>> {
        self.make()?;
        let path = self.selection();
        let epoch = match std::fs::read(&path) {
            Ok(bytes) => {
                let there: Selection = serde_json::from_slice(&bytes)?;
                if !selection.is_of(&there) {
                    let text = format!(
                        "{} holds a different export; choose another directory",
                        self.dir.display()
                    );
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
                let epoch = there.epoch;
                *selection = Selection { epoch: selection.epoch, ..there };
                epoch
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.frames().exists() {
                    let text = format!(
                        "{} was not written by xs export; choose another directory",
                        self.frames().display()
                    );
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
                self.select(selection)?;
                selection.epoch
            }
            Err(error) => return Err(error),
        };
        let after = self.after_last_line()?;
        // Everything after it is read again.
        let after_or_first = after.unwrap_or_default();
        selection.unread.retain(|(from, _)| *from < after_or_first);
        selection.unread.iter_mut().for_each(|(_, to)| *to = after_or_first.min(*to));
        Ok(after.map(|offset| (offset, epoch)))
    }

    /// Writes the selection, with its current epoch.
    pub(crate) fn select(&self, selection: &Selection) -> io::Result<()> {
        write_whole(&self.selection(), &serde_json::to_vec(selection)?)
    }

    /// Truncates an incomplete last line and returns the offset after the last whole one.
    fn after_last_line(&self) -> io::Result<Option<u64>> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(self.frames())?;
        sync_dir_of(&self.frames())?;
        let len = file.metadata()?.len();
        let from = len.saturating_sub(2 * LINE_BYTES_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        let whole = end.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        file.set_len(from + whole as u64)?;
        let lines = end[..whole].strip_suffix(b"\n").unwrap_or_default();
        let last = lines.rsplit(|&byte| byte == b'\n').next().filter(|line| !line.is_empty());
        let Some(last) = last else { return Ok(None) };
        let line: Line<'_> = serde_json::from_slice(last)?;
        Ok(line.offset.map(|offset| offset + 1))
    }

    /// Collects bodies that get their names together.
    pub(crate) fn keep(&self) -> Kept<'_> {
        Kept { dump: self, paths: HashSet::new() }
    }

    /// Whether a complete body is stored: it gets its name only when it is complete.
    pub(crate) fn has(&self, hash: &BlobHash) -> bool {
        self.blob(hash).exists()
    }
}

/// Bodies that are written but have no names yet. One sync makes all of them durable.
pub(crate) struct Kept<'a> {
    dump: &'a Dump,
    paths: HashSet<PathBuf>,
}

impl Kept<'_> {
    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    /// Writes a body, unless it exists.
    pub(crate) fn add(&mut self, hash: &BlobHash, bytes: &[u8]) -> io::Result<()> {
        if BlobHash::of(bytes) != *hash {
            return Err(other_bytes(hash));
        }
        let path = self.dump.blob(hash);
        if self.paths.contains(&path) || path.exists() {
            return Ok(());
        }
        File::create(unfinished(&path))?.write_all(bytes)?;
        self.paths.insert(path);
        Ok(())
    }

    /// Gives the bodies their names, durably. Must precede writing the frames that name them.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.paths.is_empty() {
            return Ok(());
        }
        let dir = File::open(self.dump.dir.join("cas"))?;
        sync_files(&dir, &self.paths)?;
        for path in self.paths.drain() {
            std::fs::rename(unfinished(&path), &path)?;
        }
        dir.sync_all()
    }
}

#[cfg(target_os = "linux")]
fn sync_files(dir: &File, _: &HashSet<PathBuf>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(dir)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_files(_: &File, paths: &HashSet<PathBuf>) -> io::Result<()> {
    paths.iter().try_for_each(|path| File::open(unfinished(path))?.sync_all())
}

/// A body being written in chunks.
pub(crate) struct Incoming {
    hash: BlobHash,
    path: PathBuf,
    file: File,
    hasher: Sha256,
}

impl Incoming {
    pub(crate) fn new(dump: &Dump, hash: &BlobHash) -> io::Result<Self> {
        let path = dump.blob(hash);
        let file = File::create(unfinished(&path))?;
        Ok(Self { hash: *hash, path, file, hasher: Sha256::new() })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    /// Deletes the incomplete file.
    pub(crate) fn discard(self) -> io::Result<()> {
        std::fs::remove_file(unfinished(&self.path))
    }

    /// Renames the complete body to its name.
    pub(crate) fn finish(self) -> io::Result<()> {
        if BlobHash::from_bytes(self.hasher.finalize().into()) != self.hash {
            return Err(other_bytes(&self.hash));
        }
        self.file.sync_all()?;
        std::fs::rename(unfinished(&self.path), &self.path)?;
        sync_dir_of(&self.path)
    }
}

pub(crate) fn other_bytes(hash: &BlobHash) -> io::Error {
    let text = format!("the store's bytes for {hash} do not match the hash; run xs verify");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(unfinished(path))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(unfinished(path), path)?;
    sync_dir_of(path)
}

/// Makes the name of a file durable, which syncing the file alone does not.
pub(crate) fn sync_dir_of(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// A line of frames.jsonl. Unknown keys are ignored: cross.stream may add some.
#[derive(Deserialize)]
struct Line<'a> {
    topic: String,
    id: String,
    #[serde(default)]
    offset: Option<u64>,
    #[serde(default)]
    hash: Option<String>,
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
    #[serde(default)]
    ttl: Option<String>,
    #[serde(default)]
    origin: Option<LineOrigin>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    body_base64: Option<String>,
}

#[derive(Deserialize)]
struct LineOrigin {
    processor: String,
    input: Option<String>,
    #[serde(default)]
    input_offset: Option<u64>,
    hops: u32,
}

/// A frame parsed from a line.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: FrameId,
    pub(crate) new: NewFrame,
    pub(crate) hash: Option<BlobHash>,
    /// The body, if the line has one that is not empty.
    pub(crate) body: Option<Bytes>,
}

/// Parses a line.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(crate) fn parse(line: &[u8]) -> Result<Stored, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let id = |text: &str| FrameId::parse(text).map_err(|error| error.to_string());
    let mut new = NewFrame::new(Topic::parse(&line.topic).map_err(|error| error.to_string())?);
    if let Some(meta) = line.meta.map(RawValue::get).filter(|meta| *meta != "null") {
        new.meta = Meta::parse(meta.to_owned()).map_err(|error| error.to_string())?;
    }
    if let Some(ttl) = line.ttl.as_deref().filter(|ttl| !ttl.is_empty()) {
        new.ttl = Ttl::parse(ttl).map_err(|error| error.to_string())?;
    }
    if let Some(origin) = line.origin {
        new.origin = Some(Origin {
            processor: id(&origin.processor)?,
            input: origin.input.as_deref().map(id).transpose()?,
            input_offset: origin.input_offset,
            hops: origin.hops,
        });
    }
    let hash = line.hash.as_deref().map(BlobHash::parse).transpose();
    let hash = hash.map_err(|error| error.to_string())?;
    let body = match (line.body, line.body_base64) {
        (None, None) => None,
        (Some(text), None) => Some(Bytes::from(text)),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text).map_err(|error| format!("body_base64: {error}"))?;
            Some(Bytes::from(bytes))
        }
        (Some(_), Some(_)) => return Err("it has both body and body_base64".to_owned()),
    };
    if let (Some(hash), Some(body)) = (&hash, &body)
        && BlobHash::of(body) != *hash
    {
        return Err("its hash is not that of its body".to_owned());
    }
    let body = body.filter(|body| !body.is_empty());
    Ok(Stored { id: id(&line.id)?, new, hash, body })
}

/// The lines of a file, with their numbers and the bytes read so far.
pub(crate) struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    read: u64,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = BufReader::with_capacity(PIECE_BYTES, File::open(path)?);
        Ok(Self { file, line: Vec::new(), number: 0, read: 0 })
    }

    /// Bytes read so far.
    pub(crate) const fn bytes(&self) -> u64 {
        self.read
    }

    /// The next line that is not empty.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        loop {
            self.line.clear();
            let mut rest = (&mut self.file).take(LINE_WITH_BODY_MAX);
            let count = rest.read_until(b'\n', &mut self.line)?;
            if count == 0 {
                return Ok(None);
            }
            (self.number, self.read) = (self.number + 1, self.read + count as u64);
            if count as u64 == LINE_WITH_BODY_MAX && self.line.last() != Some(&b'\n') {
                let line = self.number;
                let text = format!(
                    "line {line} is longer than {LINE_WITH_BODY_MAX} bytes; a body of more than \
                     {BODY_IN_LINE_MAX} bytes belongs in a file below cas/, as xs export writes it"
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        Ok(Some((self.number, self.line.trim_ascii())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_frame_or_says_what_is_wrong() {
        let id = "03g4a5lk7bc9ucnxswp2nn1gj";
        let line = format!(
            "{{\"topic\":\"a\",\"id\":\"{id}\",\"hash\":null,\"meta\":{{ \"x\": 1.0 }},\
             \"ttl\":\"last:3\",\"extra\":1}}"
        );
        let stored = parse(line.as_bytes()).unwrap();
        assert_eq!((stored.id.to_string().as_str(), stored.hash), (id, None));
        assert_eq!(stored.new.meta.as_bytes(), b"{ \"x\": 1.0 }");
        assert_eq!(stored.new.ttl.to_string(), "last:3");
        let line = format!("{{\"topic\":\"a\",\"id\":\"{id}\",\"hash\":null,\"body\":\"\"}}");
        assert_eq!(parse(line.as_bytes()).unwrap().body, None);
        for (line, said) in [
            ("{}", "missing field"),
            ("{\"topic\":\"9\",\"id\":\"x\"}", "topic"),
            ("{\"topic\":\"a\",\"id\":\"x\"}", "id"),
            ("[1]", "invalid"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[test]
    fn an_export_is_taken_up_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let dump = Dump::at(dir.path());
        let mut selection = Selection {
            store: "ab".to_owned(),
            topics: "*".to_owned(),
            since_ms: None,
            until_ms: Some(3),
            since: None,
            until: Some("1h".to_owned()),
            epoch: 1,
            unread: Vec::new(),
            unread_more: 0,
        };
        assert_eq!(dump.begin(&mut selection).unwrap(), None);
        let line = "{\"topic\":\"a\",\"id\":\"03g4a5lk7bc9ucnxswp2nn1gj\",\"offset\":41}\n";
        std::fs::write(dump.frames(), format!("{line}{{\"topic\":")).unwrap();
        let mut later = Selection { epoch: 2, until_ms: Some(4), ..selection.clone() };
        assert_eq!(dump.begin(&mut later).unwrap(), Some((42, 1)));
        assert_eq!((later.epoch, later.until_ms), (2, Some(3)), "an hour ago is when it was said");
        assert!(later.pass_over(5, 6) && later.pass_over(6, 8) && !later.pass_over(5, 8));
        assert!(later.pass_over(41, 42) && later.pass_over(42, 43));
        assert_eq!(later.unread, [(5, 8), (41, 43)]);
        dump.select(&later).unwrap();
        let mut last = Selection { epoch: 3, ..selection.clone() };
        assert_eq!(dump.begin(&mut last).unwrap(), Some((42, 2)));
        assert_eq!(last.unread(), 4, "what lies behind is read again");
        assert_eq!(std::fs::read_to_string(dump.frames()).unwrap(), line);
        let mut other = Selection { topics: "b".to_owned(), ..selection.clone() };
        assert!(dump.begin(&mut other).is_err());
        let mut other = Selection { until: None, until_ms: Some(4), ..selection };
        assert!(dump.begin(&mut other).is_err());
    }

    #[test]
    fn what_is_not_remembered_is_counted_all_the_same() {
        let mut selection = Selection {
            store: String::new(),
            topics: String::new(),
            since_ms: None,
            until_ms: None,
            since: None,
            until: None,
            epoch: 1,
            unread: Vec::new(),
            unread_more: 0,
        };
        let count = UNREAD_MAX as u64 + 3;
        assert!((0..count).all(|n| selection.pass_over(2 * n, 2 * n + 1)));
        assert_eq!((selection.unread.len(), selection.unread()), (UNREAD_MAX, count));
    }

    #[test]
    fn bodies_are_what_their_names_say() {
        let dir = tempfile::tempdir().unwrap();
        let dump = Dump::at(dir.path());
        std::fs::create_dir(dir.path().join("cas")).unwrap();
        let hash = BlobHash::of(b"whole");
        let mut kept = dump.keep();
        assert!(kept.add(&hash, b"other").is_err() && !dump.has(&hash));
        let small = BlobHash::of(b"small");
        for _ in 0..2 {
            kept.add(&small, b"small").unwrap();
            assert!(kept.len() == 1 && !dump.has(&small), "a name is for what is durable");
        }
        kept.finish().unwrap();
        assert!(kept.len() == 0 && dump.has(&small));
        let mut incoming = Incoming::new(&dump, &hash).unwrap();
        incoming.write(b"who").unwrap();
        assert!(incoming.finish().is_err() && !dump.has(&hash));
        let mut incoming = Incoming::new(&dump, &hash).unwrap();
        incoming.write(b"who").unwrap();
        incoming.write(b"le").unwrap();
        incoming.finish().unwrap();
        assert!(dump.has(&hash) && dump.blob(&hash).file_name().unwrap().len() == 68);
    }
}
