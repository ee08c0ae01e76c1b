//! What the kernel says of processes: memory that no file backs, time on a processor.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Bytes of memory of this process that no file backs.
pub(crate) fn rss_anon() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("find RssAnon in /proc/self/status")? * 1024)
}

/// Time this thread has spent on a processor.
pub(crate) fn thread_time() -> Duration {
    time_of("/proc/thread-self/schedstat")
}

/// Time that the other threads of this process have spent on a processor, by their names; those of
/// one name together.
pub(crate) fn times_of_others() -> Vec<(String, Duration)> {
    let mut times: Vec<(String, Duration)> = Vec::new();
    let me = fs::read_link("/proc/thread-self").unwrap_or_default();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        if me.ends_with(task.file_name()) {
            continue;
        }
        let path = task.path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let time = time_of(&path.join("schedstat").to_string_lossy());
        match times.iter_mut().find(|(known, _)| known == name.trim()) {
            Some((_, sum)) => *sum += time,
            None => times.push((name.trim().to_owned(), time)),
        }
    }
    times
}

/// The first number of a `schedstat` is nanoseconds on a processor.
fn time_of(path: &str) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
