//! What figures depend on besides the code, printed before the first one: machine, filesystem,
//! compiler, commit, load, and the current costs of a sync and of fresh memory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::histogram::Histogram;
use crate::report::Report;

/// Bytes written before each measured sync.
const SYNC_BYTES: usize = 4096;
const SYNCS: u64 = 200;
/// Bytes of memory touched for the first time.
const FRESH_BYTES: usize = 128 << 20;
const PAGE_BYTES: usize = 4096;
/// What is printed for a fact that cannot be found out.
const UNKNOWN: &str = "unknown";

/// Prints what the figures of this run depend on.
///
/// # Errors
/// If the directory or the output cannot be written to.
pub fn print(report: &mut Report, scratch: &Path) -> io::Result<()> {
    let syncs = sync_latency(scratch)?;
    let (p50, p99) = (syncs.micros(0.5), syncs.micros(0.99));
    let mut facts = facts(scratch);
    facts.push(("fdatasync", format!("4 KiB into zeros: p50 {p50:.0} us, p99 {p99:.0} us")));
    let page_ns = fresh_page_ns();
    facts.push(("memory page", format!("4 KiB touched for the first time: {page_ns:.0} ns")));
    for (name, fact) in &facts {
        report.line(&format!("{name:<12}{fact}"))?;
    }
    let facts = facts.iter().map(|(name, fact)| ((*name).to_owned(), json!(fact)));
    report.json(&json!({
        "environment": serde_json::Map::from_iter(facts),
        "fdatasync_p50_us": p50,
        "fdatasync_p99_us": p99,
        "memory_page_ns": page_ns,
    }))
}

/// Returns machine, filesystem, compiler, commit and load, each with its name.
pub fn facts(scratch: &Path) -> Vec<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    vec![
        ("cpu", cpu()),
        ("cores", cores.to_string()),
        ("memory", line_of("/proc/meminfo", "MemTotal:")),
        ("kernel", text_of("/proc/sys/kernel/osrelease")),
        ("scratch", scratch.display().to_string()),
        ("filesystem", filesystem(scratch)),
        ("rustc", output("rustc", &["--version"])),
        ("commit", commit()),
        ("load", text_of("/proc/loadavg")),
    ]
}

/// Measures syncs in a directory, into space that was written before.
///
/// # Errors
/// If the directory cannot be written to.
pub fn sync_latency(dir: &Path) -> io::Result<Histogram> {
    let file = tempfile::tempfile_in(dir)?;
    let file: &File = &file;
    let block = [1; SYNC_BYTES];
    file.write_all_at(&vec![0; SYNC_BYTES * SYNCS as usize], 0)?;
    file.sync_all()?;
    let mut times = Histogram::default();
    for n in 0..SYNCS {
        let begun = Instant::now();
        file.write_all_at(&block, n * SYNC_BYTES as u64)?;
        file.sync_data()?;
        times.record(begun.elapsed());
    }
    Ok(times)
}

/// Measures what the first access to a page costs. A virtual machine that returns freed memory to
/// its host pays about ten times as much as others, for pages of files too, which limits how fast
/// files can grow.
fn fresh_page_ns() -> f64 {
    let mut memory = vec![0u8; FRESH_BYTES];
    let begun = Instant::now();
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    let time = begun.elapsed();
    std::hint::black_box(&memory);
    time.as_nanos() as f64 / (FRESH_BYTES / PAGE_BYTES) as f64
}

fn text_of(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

/// Returns the rest of the first line that begins with `word`.
fn line_of(path: &str, word: &str) -> String {
    let text = text_of(path);
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or(UNKNOWN).trim().to_owned()
}

fn cpu() -> String {
    line_of("/proc/cpuinfo", "model name").trim_start_matches([':', ' ', '\t']).to_owned()
}

/// Returns kind, device and options of the filesystem of a directory.
fn filesystem(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    mount_of(&text_of("/proc/mounts"), &dir).unwrap_or_else(|| UNKNOWN.to_owned())
}

fn mount_of(mounts: &str, dir: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?, words.next()?, words.next()?))
    });
    let over = mounts.filter(|(_, point, ..)| dir.starts_with(point));
    // Of several mounts at the same path, the last one is visible.
    let (device, _, kind, options) = over.max_by_key(|(_, point, ..)| point.len())?;
    Some(format!("{kind} on {device} ({options})"))
}

fn output(program: &str, args: &[&str]) -> String {
    let run = Command::new(program).args(args).output().ok().filter(|run| run.status.success());
    run.map_or_else(
        || UNKNOWN.to_owned(),
        |run| String::from_utf8_lossy(&run.stdout).trim().to_owned(),
    )
}

fn commit() -> String {
    let tree = env!("CARGO_MANIFEST_DIR");
    let changed = output("git", &["-C", tree, "status", "--porcelain", "--untracked-files=no"]);
    let id = output("git", &["-C", tree, "rev-parse", "--short=12", "HEAD"]);
    let is_changed = id != UNKNOWN && !changed.is_empty();
    if is_changed { format!("{id} with changes") } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_the_innermost_and_latest() {
        let mounts = "/dev/a / ext4 rw 0 0\nnone /tmp tmpfs rw 0 0\n/dev/b /tmp xfs ro 0 0\n\
                      /dev/c /tmp/x/y ext4 rw 0 0\n";
        let found = |dir: &str| mount_of(mounts, Path::new(dir));
        assert_eq!(found("/tmp/x").as_deref(), Some("xfs on /dev/b (ro)"));
        assert_eq!(found("/tmpx").as_deref(), Some("ext4 on /dev/a (rw)"));
        assert_eq!(mount_of("", Path::new("/")), None);
    }
}
