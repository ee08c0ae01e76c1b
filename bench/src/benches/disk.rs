//! Disk space per frame after everything is sealed, by kind of file.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use xs_bench::report::Row;
use xs_bench::scratch;
use xs_bench::workload::{Frames, Shape};
use xs_engine::SyncPolicy;

use crate::Setting;
use crate::benches::append::fill;

/// Maximum time to wait for sealing after the last append.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// From docs/format.md: the position of the number of blobs in a pack index.
const COUNT_AT: u64 = 64;

/// A file and the number of bytes that the filesystem allocated for it.
#[derive(Debug)]
struct Used {
    name: String,
    allocated: u64,
}

pub(crate) fn run(setting: &mut Setting) -> anyhow::Result<()> {
    let frames = setting.frames(3_000_000, 20_000);
    let about = format!("{frames} frames with meta and 256 B of JSON, as allocated, per frame");
    setting.report.begin("disk", &about)?;
    let scratch = setting.scratch()?;
    let dir = scratch.path();
    let mut options = scratch::options(SyncPolicy::None);
    if setting.quick {
        (options.segment_bytes, options.pack_bytes) = (1 << 20, 1 << 20);
    }
    let store = scratch::open(dir, options)?;
    fill(&store, &mut Frames::common(Shape::Body256), 64, frames)?;
    await_sealing(dir)?;
    store.close()?;
    let log = files(&dir.join("log"))?;
    let blobs = files(&dir.join("blobs"))?;
    let sealed_frames = base_of_last(&log).context("find a segment")?;
    let sealed = |files: &[Used], kind: &str| {
        let active = files.iter().rfind(|file| file.name.ends_with(".seg")).map(|file| &file.name);
        let of = files.iter().filter(|file| file.name.ends_with(kind));
        of.filter(|file| Some(&file.name) != active).map(|file| file.allocated).sum::<u64>()
    };
    let (packs, indexes, stored) = sealed_packs(&dir.join("blobs"), &blobs)?;
    let per = |bytes: u64, count: u64| bytes as f64 / count.max(1) as f64;
    let parts = [
        ("log", per(sealed(&log, ".seg"), sealed_frames)),
        ("index", per(sealed(&log, ".idx"), sealed_frames)),
        ("topics", per(sealed(&log, ".top"), sealed_frames)),
        ("packs", per(packs, stored)),
        ("pack indexes", per(indexes, stored)),
    ];
    let total: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let row = parts.iter().fold(Row::new("sealed"), |row, (name, b)| row.figure(*name, *b, "B"));
    setting.report.row(&row.figure("together", total, "B").target("200 B"))?;
    let all: u64 = [dir.to_owned(), dir.join("log"), dir.join("blobs")]
        .iter()
        .map(|dir| Ok(files(dir)?.iter().map(|file| file.allocated).sum::<u64>()))
        .sum::<io::Result<u64>>()?;
    let row = Row::new("the whole directory, files made ahead included")
        .figure("", all as f64 / frames as f64, "B")
        .figure("sealed frames", per(sealed_frames, frames) * 100.0, "%")
        .figure("sealed bodies", per(stored, frames) * 100.0, "%");
    Ok(setting.report.row(&row)?)
}

/// Waits until full packs are sealed.
fn await_sealing(dir: &Path) -> anyhow::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let files = files(&dir.join("blobs"))?;
        let count = |kind| files.iter().filter(|file| file.name.ends_with(kind)).count();
        // The active pack and the prepared one have no index.
        if count(".pack") <= count(".pidx") + 2 || Instant::now() > give_up {
            return Ok(());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Returns the files of a directory, sorted by name.
fn files(dir: &Path) -> io::Result<Vec<Used>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A file may be deleted while the directory is read.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push(Used { name, allocated: meta.blocks() * 512 });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Returns the base of the last segment; all frames below it are sealed.
fn base_of_last(log: &[Used]) -> Option<u64> {
    let last = log.iter().rfind(|file| file.name.ends_with(".seg"))?;
    last.name.split('.').next()?.parse().ok()
}

/// Returns the bytes of sealed packs, the bytes of their indexes, and the number of blobs in them.
fn sealed_packs(dir: &Path, blobs: &[Used]) -> anyhow::Result<(u64, u64, u64)> {
    let (mut packs, mut indexes, mut count) = (0, 0, 0);
    for index in blobs.iter().filter(|file| file.name.ends_with(".pidx")) {
        let pack = index.name.replace(".pidx", ".pack");
        let Some(pack) = blobs.iter().find(|file| file.name == pack) else { continue };
        let mut word = [0; 8];
        fs::File::open(dir.join(&index.name))?.read_exact_at(&mut word, COUNT_AT)?;
        packs += pack.allocated;
        indexes += index.allocated;
        count += u64::from_le_bytes(word);
    }
    Ok((packs, indexes, count))
}
