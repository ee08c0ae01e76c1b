//! Reports when the files of a directory have changed and settled. Kernel notifications only say
//! when to look; a fingerprint decides, so a missed or spurious notification is harmless.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::files;

/// A save is complete once nothing was noticed for this long: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// Interval of scans without a notification: some filesystems send none.
const RESCAN: Duration = Duration::from_secs(2);
/// The most windows of [`SETTLE`] to wait for a directory that keeps changing.
const SETTLE_WINDOWS_MAX: usize = 50;

/// Watches a directory until it is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    changes: mpsc::Receiver<()>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Starts watching. Every change made after this returns is reported.
    #[must_use]
    pub(super) fn start(dir: &Path) -> Self {
        let (notices, noticed) = mpsc::channel(1);
        let notify = notices_of(dir, notices.clone());
        let (changed, changes) = mpsc::channel(1);
        let watch = Watch { dir: dir.to_owned(), noticed, _notices: notices, _notify: notify };
        let first = files::fingerprint(dir).ok();
        Self { changes, task: tokio::spawn(watch.run(first, changed)) }
    }

    /// Waits for the next change; cancelling it loses none.
    pub(super) async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watching task never ends on its own; without it there is nothing to report.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watch {
    dir: PathBuf,
    noticed: mpsc::Receiver<()>,
    /// Kept so that `noticed` stays open when the kernel sends no notifications.
    _notices: mpsc::Sender<()>,
    _notify: Option<RecommendedWatcher>,
}

type Print = Option<Vec<(PathBuf, u64, Option<std::time::SystemTime>)>>;

impl Watch {
    async fn run(mut self, mut last: Print, changed: mpsc::Sender<()>) {
        loop {
            // A notification and a timeout lead to the same scan.
            let _ = timeout(RESCAN, self.noticed.recv()).await;
            let mut now = self.look().await;
            if now == last {
                continue;
            }
            for _ in 0..SETTLE_WINDOWS_MAX {
                let _ = timeout(SETTLE, std::future::pending::<()>()).await;
                while self.noticed.try_recv().is_ok() {}
                let next = self.look().await;
                let rests = next == now;
                now = next;
                if rests {
                    break;
                }
            }
            if now == last {
                continue;
            }
            last = now;
            if changed.send(()).await.is_err() {
                return;
            }
        }
    }

    /// `None` while the directory cannot be read, which counts as a content of its own.
    async fn look(&self) -> Print {
        let dir = self.dir.clone();
        let print = tokio::task::spawn_blocking(move || files::fingerprint(&dir).ok()).await;
        print.unwrap_or_default()
    }
}

fn notices_of(dir: &Path, notices: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let root = dir.to_owned();
    let unwatched = move |path: &PathBuf| {
        let below = path.strip_prefix(&root).unwrap_or(path);
        below.iter().any(|part| part.to_str().is_none_or(files::unwatched))
    };
    let notice = move |event: notify::Result<notify::Event>| {
        // A scan opens directories, which is notified too and must not trigger another scan; nor
        // must a store below the directory, which `xs dev` keeps in `.xs`.
        if event.is_ok_and(|event| event.kind.is_access() || event.paths.iter().all(&unwatched)) {
            return;
        }
        // A full channel already holds a notification, and one is enough.
        let _ = notices.try_send(());
    };
    // A link may lead to the whole machine. Files behind one are scanned without notifications.
    let config = Config::default().with_follow_symlinks(false);
    let watcher = RecommendedWatcher::new(notice, config).and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "cannot watch the modules; scanning every {RESCAN:?} instead");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    /// Whether the kernel notifies this process about a directory.
    fn is_watched(dir: &Path) -> bool {
        let inode = format!(" ino:{:x} ", fs::metadata(dir).unwrap().ino());
        fs::read_dir("/proc/self/fdinfo").unwrap().flatten().any(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            text.lines().any(|line| line.starts_with("inotify ") && line.contains(&inode))
        })
    }

    /// A link to `/` once caused the whole machine to be watched.
    #[test]
    fn links_are_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("handlers")).unwrap();
        symlink(outside.path(), dir.path().join("handlers/link")).unwrap();
        let watcher = notices_of(dir.path(), mpsc::channel(1).0).unwrap();
        assert!(is_watched(&dir.path().join("handlers")));
        assert!(!is_watched(outside.path()));
        drop(watcher);
    }

    #[tokio::test]
    async fn a_save_is_told_once_it_rests() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("handlers")).unwrap();
        let mut watcher = Watcher::start(dir.path());
        fs::write(dir.path().join("handlers/a.js"), "one").unwrap();
        timeout(Duration::from_secs(10), watcher.changed()).await.unwrap();
        fs::write(dir.path().join("handlers/.a.js.swp"), "not a source").unwrap();
        assert!(timeout(Duration::from_millis(500), watcher.changed()).await.is_err());
        fs::remove_file(dir.path().join("handlers/a.js")).unwrap();
        timeout(Duration::from_secs(10), watcher.changed()).await.unwrap();
        // Not a module itself, but a module may import it.
        fs::write(dir.path().join("handlers/_shared.js"), "one").unwrap();
        timeout(Duration::from_secs(10), watcher.changed()).await.unwrap();
    }
}
