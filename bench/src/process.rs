//! What the kernel says of processes: memory that no file backs, time on a processor.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// Bytes of memory of this process that no file backs.
pub(crate) fn rss_anon() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("find RssAnon in /proc/self/status")? * 1024)
}

/// What threads have done with their time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    /// On a processor.
    pub(crate) busy: Duration,
    /// Ready to run while others had the processors: time that neighbours took.
    pub(crate) queued: Duration,
}

impl Times {
    /// Of this thread so far.
    pub(crate) fn of_this_thread() -> Self {
        Self::read(Path::new("/proc/thread-self/schedstat"))
    }

    /// Of the other threads of this process that run now, so far.
    pub(crate) fn of_the_others() -> Self {
        let me = fs::read_link("/proc/thread-self").unwrap_or_default();
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let others = tasks.filter(|task| !me.ends_with(task.file_name()));
        others.map(|task| Self::read(&task.path().join("schedstat"))).fold(
            Self::default(),
            |sum, times| Self { busy: sum.busy + times.busy, queued: sum.queued + times.queued },
        )
    }

    /// What came on top since then.
    pub(crate) fn since(self, before: Self) -> Self {
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
