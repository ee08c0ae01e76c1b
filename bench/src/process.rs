//! What the kernel says of processes: memory that no file backs, time on a processor.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// Bytes of memory of this process that no file backs.
///
/// # Errors
/// When the kernel does not tell.
pub fn rss_anon() -> anyhow::Result<u64> {
    memory("self", "RssAnon")
}

/// Bytes of memory of a process, by a name of `/proc/PID/status` such as `VmRSS`.
///
/// # Errors
/// When the kernel does not tell.
pub fn memory(pid: &str, name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("find {name} in {path}"))? * 1024)
}

/// What threads have done with their time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// On a processor.
    pub busy: Duration,
    /// Ready to run while others had the processors: time that neighbours took.
    pub queued: Duration,
}

impl Times {
    /// Of this thread so far.
    pub fn of_this_thread() -> Self {
        Self::read(Path::new("/proc/thread-self/schedstat"))
    }

    /// Of the other threads of this process that run now, so far.
    pub fn of_the_others() -> Self {
        let me = fs::read_link("/proc/thread-self").unwrap_or_default();
        Self::of_threads("self", |thread| !me.ends_with(thread))
    }

    /// Of the threads of a process that run now, so far.
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

    /// What came on top since then.
    pub fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            queued: self.queued.saturating_sub(before.queued),
        }
    }

    /// A `schedstat` begins with nanoseconds on a processor and nanoseconds in the queue for one.
    fn read(schedstat: &Path) -> Self {
        let text = fs::read_to_string(schedstat).unwrap_or_default();
        let mut nanos = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        let mut next = || Duration::from_nanos(nanos.next().unwrap_or(0));
        Self { busy: next(), queued: next() }
    }
}
