//! Helpers shared by the tests: directories, options, frames, random numbers, a clock.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use xs_engine::{
    Batch, Body, Clock, Frame, JournalOptions, MediaChoice, Meta, NewFrame, ReadError, ReadOptions,
    Reader, Store, StoreOptions, SyncPolicy, Topic, TopicPatterns,
};

pub(crate) const MEDIA: [MediaChoice; 2] = [MediaChoice::Mapped, MediaChoice::Positioned];

/// A directory for stores, in memory if the machine supports that: these tests check what a store
/// does with bytes, not how fast a disk syncs.
pub(crate) fn scratch() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("xs-it-").tempdir_in(shared);
    made.or_else(|_| tempfile::tempdir()).unwrap()
}

/// The smallest segments and packs, so that few frames make many files.
pub(crate) fn options(media: MediaChoice) -> StoreOptions {
    StoreOptions {
        segment_bytes: 64 * 1024,
        pack_bytes: 64 * 1024,
        sync: SyncPolicy::None,
        media,
        compaction: None,
        ..StoreOptions::default()
    }
}

/// A journal that is used from the first group on, with halves that are soon full.
pub(crate) fn small_journal() -> JournalOptions {
    JournalOptions { half_bytes: 32 * 1024, after_groups: 0 }
}

pub(crate) fn open(dir: &Path, options: &StoreOptions) -> Arc<Store> {
    Arc::new(Store::open(dir, options.clone()).unwrap())
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

pub(crate) fn patterns(text: &str) -> TopicPatterns {
    TopicPatterns::parse(text).unwrap()
}

/// A frame whose meta is a number.
pub(crate) fn numbered(name: &str, number: u64) -> NewFrame {
    NewFrame { meta: Meta::parse(number.to_string()).unwrap(), ..NewFrame::new(topic(name)) }
}

/// The number in the meta of a frame.
pub(crate) fn number_of(frame: &Frame) -> u64 {
    std::str::from_utf8(frame.meta()).unwrap().parse().unwrap()
}

pub(crate) fn batch(frames: impl IntoIterator<Item = NewFrame>) -> Batch {
    Batch { frames: frames.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn with_body(frame: NewFrame, body: &[u8]) -> NewFrame {
    NewFrame { body: Body::Inline(Bytes::copy_from_slice(body)), ..frame }
}

pub(crate) fn everything() -> ReadOptions {
    ReadOptions { topics: TopicPatterns::everything(), ..ReadOptions::default() }
}

pub(crate) fn frames(reader: Result<Reader, ReadError>) -> Vec<Frame> {
    reader.unwrap().collect::<Result<_, _>>().unwrap()
}

/// Prints a line, even if the test passes.
pub(crate) fn say(line: &str) {
    io::stdout().lock().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Prints a count. `scripts/test` repeats these lines.
pub(crate) fn tell(line: &str) {
    say(&format!("counted: {line}"));
}

/// Reports that a test, or a part of one, cannot run here. `scripts/test` counts these lines.
pub(crate) fn skip(name: &str, reason: &str) {
    say(&format!("skipped: {name}: {reason}"));
}

/// Whether this is a long run: `scripts/test --long`.
pub(crate) fn is_long() -> bool {
    std::env::var_os("XS_TEST_LONG").is_some()
}

/// What a test lacks, of the programs and the rights of root that it needs.
pub(crate) fn lacks(programs: &[&str], root: bool) -> Option<String> {
    if root && !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let is_there =
        |program: &&&str| paths.split(':').any(|dir| Path::new(dir).join(program).exists());
    let missing = programs.iter().find(|program| !is_there(program))?;
    Some(format!("{missing} is not installed (scripts/setup says how)"))
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) {
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program).args(args).env("PATH", paths).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {told}");
}

/// A mounted filesystem, unmounted when this value is dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    /// A tmpfs.
    pub(crate) fn tmpfs(bytes: u64) -> Self {
        let dir = scratch();
        let size = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", dir.path().to_str().unwrap()]);
        Self { dir }
    }

    /// An ext4 in a file.
    pub(crate) fn ext4(image: &Path) -> Self {
        let dir = scratch();
        let place = dir.path().to_str().unwrap();
        run("mount", &["-t", "ext4", "-o", "loop", image.to_str().unwrap(), place]);
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            // Still in use, for example after a panic: it is unmounted after its last use.
            let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        }
    }
}

/// An image with an empty ext4.
pub(crate) fn ext4_image(dir: &Path, bytes: u64) -> PathBuf {
    let image = dir.join("image");
    fs::File::create(&image).unwrap().set_len(bytes).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-b", "4096", image.to_str().unwrap()]);
    image
}

/// Copies a store as a killed process leaves it. Threads of the store may seal files meanwhile;
/// then the copy is repeated, as no kill leaves a mixture.
pub(crate) fn copy_store(from: &Path, to: &Path) {
    loop {
        let before = names_and_manifest(from);
        let copied = copy_dir(from, to);
        if copied.is_ok() && names_and_manifest(from) == before {
            return;
        }
        fs::remove_dir_all(to).unwrap();
    }
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What changes when files of a store are created, sealed, renamed or removed.
fn names_and_manifest(dir: &Path) -> Vec<(PathBuf, u64, Vec<u8>)> {
    let mut found = Vec::new();
    for sub in ["", "log", "blobs"] {
        for entry in fs::read_dir(dir.join(sub)).unwrap().filter_map(Result::ok) {
            let path = entry.path();
            let is_manifest = entry.file_name().to_string_lossy().starts_with("super.");
            let bytes = if is_manifest { fs::read(&path).unwrap_or_default() } else { Vec::new() };
            found.push((path, entry.metadata().map_or(0, |metadata| metadata.len()), bytes));
        }
    }
    found.sort();
    found
}

/// The segments of a store, oldest first.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    files(&dir.join("log"), "seg")
}

/// Files in a directory that end in `.<kind>`, by name.
pub(crate) fn files(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        listed.filter(|path| path.extension().is_some_and(|found| found == kind)).collect();
    found.sort();
    found
}

/// Random numbers from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A clock that moves only when set.
#[derive(Debug)]
pub(crate) struct TestClock(pub(crate) AtomicU64);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1_700_000_000_000)))
    }

    pub(crate) fn forward(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}
