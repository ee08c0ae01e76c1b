//! What the kernel reports about processes: anonymous memory and processor time.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// Returns the bytes of anonymous memory (without a file behind it) of this process.
///
/// # Errors
/// If the kernel does not report it.
pub fn rss_anon() -> anyhow::Result<u64> {
    memory("self", "RssAnon")
}

/// Returns bytes of memory of a process, by a name in `/proc/PID/status` such as `VmRSS`.
///
/// # Errors
/// If the kernel does not report it.
pub fn memory(pid: &str, name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("find {name} in {path}"))? * 1024)
}

/// How threads spent their time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Running on a processor.
    pub busy: Duration,
    /// Ready to run while others had the processors.
    pub queued: Duration,
}

impl Times {
    /// Returns the times of this thread so far.
    pub fn of_this_thread() -> Self {
        Self::read(Path::new("/proc/thread-self/schedstat"))
    }

    /// Returns the times so far of the other threads of this process that exist now.
    pub fn of_the_others() -> Self {
        let me = fs::read_link("/proc/thread-self").unwrap_or_default();
        Self::of_threads("self", |thread| !me.ends_with(thread))
    }

    /// Returns the times so far of the threads of a process that exist now.
    #[must_use]
    pub fn of_process(pid: u32) -> Self {
        Self::of_threads(&pid.to_string(), |_| true)
    }

    fn of_threads(pid: &str, counts: impl Fn(&OsStr) -> bool) -> Self {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let counted = tasks.filter(|task| counts(&task.file_name()));
        counted.map(|task| Self::read(&task.path().join("schedstat"))).fold(
            Self::default(),
            |sum, times| Self { busy: sum.busy + times.busy, queued: sum.queued + times.queued },
        )
    }

    /// Returns the difference to earlier times.
    pub fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            queued: self.queued.saturating_sub(before.queued),
        }
    }

    /// A `schedstat` begins with the nanoseconds on a processor and the nanoseconds of waiting for
    /// one.
    fn read(schedstat: &Path) -> Self {
        let text = fs::read_to_string(schedstat).unwrap_or_default();
        let mut nanos = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        let mut next = || Duration::from_nanos(nanos.next().unwrap_or(0));
        Self { busy: next(), queued: next() }
    }
}
