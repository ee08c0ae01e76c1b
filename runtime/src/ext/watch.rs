//! Changes of files as they happen, under the watched path: a file or directory that takes the
//! place of the watched one is watched too, one that is moved away no longer is. Several changes
//! between two reads of the module are reported as one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use notify::event::{ModifyKind, RenameMode};
use notify::{Config, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::bridge::bridge;
use super::files::unreadable;
use super::streams::Source;
use crate::permissions::{Granted, ReadDenied};

/// Maximum number of changed files waiting for the module.
const WAITING_MAX: usize = 10_000;

/// Changes reported by the kernel that the module has not read yet.
struct Told {
    /// The watched path, resolved.
    real: PathBuf,
    changes: Mutex<Changes>,
    more: Notify,
}

#[derive(Default)]
struct Changes {
    waiting: BTreeMap<PathBuf, &'static str>,
    failed: Option<String>,
    /// The watched path does not exist now: events below it concern another place.
    is_away: bool,
    /// There may be a new file or directory in its place, which must be watched.
    is_new: bool,
    /// Its return cannot be noticed.
    is_lost: bool,
}

struct Watch {
    told: Arc<Told>,
    granted: Granted,
    /// The module's name for the watched path.
    path: String,
    watcher: Arc<Mutex<RecommendedWatcher>>,
}

/// Opens a watch of a file, or of a directory and everything below it; returns its stream's number.
#[op2]
pub(super) async fn op_xs_watch(
    state: Rc<RefCell<OpState>>,
    #[string] path: String,
) -> Result<u32, JsErrorBox> {
    let bridge = bridge(&state);
    let granted = bridge.granted();
    let begun = tokio::task::spawn_blocking(move || match granted.readable(&path) {
        Ok(real) => begin(real)
            .map(|(told, watcher)| Ok(Watch { told, granted, watcher, path: path.clone() }))
            .map_err(|error| JsErrorBox::generic(format!("cannot watch {path:?}: {error}"))),
        Err(error) => Ok(Err(error)),
    });
    let begun = begun.await.map_err(|_| JsErrorBox::generic("watching failed"))??;
    let watch = begun.map_err(|error| unreadable(&bridge, error))?;
    bridge.streams.open(Box::new(watch))
}

type Begun = (Arc<Told>, Arc<Mutex<RecommendedWatcher>>);

/// Watches a resolved path. Its parent directory reports that it is replaced, and also reports
/// changes of a file; if the parent cannot be watched, a replaced path is lost.
fn begin(real: PathBuf) -> notify::Result<Begun> {
    let told = Told { real, changes: Mutex::default(), more: Notify::new() };
    let told = Arc::new(told);
    let telling = Arc::clone(&told);
    let notice = move |event| telling.take(event);
    // A link may lead to files that may not be read, or to the whole machine.
    let config = Config::default().with_follow_symlinks(false);
    let mut watcher = RecommendedWatcher::new(notice, config)?;
    let is_told = told
        .around()
        .is_some_and(|around| watcher.watch(around, RecursiveMode::NonRecursive).is_ok());
    if !is_told || told.real.is_dir() {
        watcher.watch(&told.real, RecursiveMode::Recursive)?;
    }
    told.changes.lock().is_lost = !is_told;
    Ok((told, Arc::new(Mutex::new(watcher))))
}

impl Told {
    /// The parent directory of the watched path.
    fn around(&self) -> Option<&Path> {
        self.real.parent()
    }

    fn take(&self, event: notify::Result<notify::Event>) {
        let mut changes = self.changes.lock();
        match event {
            Ok(event) if event.need_rescan() => {
                changes.failed = Some("changes were missed; read the directory anew".to_owned());
            }
            Ok(event) => self.add(&mut changes, event),
            Err(error) => changes.failed = Some(error.to_string()),
        }
        drop(changes);
        self.more.notify_one();
    }

    fn add(&self, changes: &mut Changes, event: notify::Event) {
        let kind = match event.kind {
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => "create",
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                "remove"
            }
            // The kernel also reports both ends of a rename separately.
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Metadata(_)) => return,
            _ => "change",
        };
        for path in event.paths {
            if path == self.real {
                let is_new = changes.is_new;
                changes.is_new |= kind != "change";
                match kind {
                    // Reported once it is watched: what is created in it from then on is reported
                    // too.
                    "create" => continue,
                    // For a directory this may arrive after the event of its replacement.
                    "remove" => changes.is_away = true,
                    // A write after a creation still counts as a creation.
                    _ if is_new => continue,
                    _ => {}
                }
            } else if path.starts_with(&self.real) {
                if changes.is_away {
                    continue;
                }
            } else {
                if kind == "remove" && self.around() == Some(&path) {
                    changes.is_lost = true;
                    changes.is_away = true;
                    changes.add(self.real.clone(), kind);
                }
                // Another entry of the parent directory.
                continue;
            }
            changes.add(path, kind);
        }
    }

    /// Continues with whatever took the place of the watched path.
    fn go_on(
        &self,
        granted: &Granted,
        path: &str,
        watcher: &Mutex<RecommendedWatcher>,
    ) -> notify::Result<()> {
        match granted.readable(path) {
            Ok(real) if real == self.real => {}
            // Nothing is there yet, or no longer, which is reported.
            Err(ReadDenied::Io { .. }) => return Ok(()),
            // The path resolves to another place now.
            Ok(_) | Err(ReadDenied::Denied(_)) => {
                let mut changes = self.changes.lock();
                (changes.is_away, changes.is_lost) = (true, true);
                return Ok(());
            }
        }
        self.changes.lock().is_away = false;
        if self.real.is_dir() {
            let mut watcher = watcher.lock();
            // Usually it is unregistered already.
            let _ = watcher.unwatch(&self.real);
            match watcher.watch(&self.real, RecursiveMode::Recursive) {
                Err(error) if !matches!(error.kind, notify::ErrorKind::PathNotFound) => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
        }
        let mut changes = self.changes.lock();
        if !changes.is_away {
            changes.add(self.real.clone(), "create");
        }
        Ok(())
    }
}

impl Changes {
    fn add(&mut self, path: PathBuf, kind: &'static str) {
        if self.waiting.len() >= WAITING_MAX {
            let text = format!("more than {WAITING_MAX} files changed; read them anew");
            self.failed = Some(text);
            return;
        }
        let before = self.waiting.get(&path).copied();
        // A write after a creation still counts as a creation.
        let kind = if before == Some("create") && kind == "change" { "create" } else { kind };
        self.waiting.insert(path, kind);
    }
}

impl Source<String> for Watch {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<String>, JsErrorBox>> {
        async move {
            loop {
                let (waiting, failed, is_new, is_lost) = {
                    let mut changes = self.told.changes.lock();
                    let waiting = std::mem::take(&mut changes.waiting);
                    let is_new = waiting.is_empty() && std::mem::take(&mut changes.is_new);
                    let is_lost = changes.is_lost && changes.is_away;
                    (waiting, changes.failed.take(), is_new, is_lost)
                };
                if let Some(error) = failed {
                    return Err(self.failed(&error));
                }
                if !waiting.is_empty() {
                    let shown = waiting
                        .into_iter()
                        .map(|(path, kind)| json!({ "path": self.shown(&path), "kind": kind }));
                    return Ok(Some(Value::Array(shown.collect()).to_string()));
                }
                if is_lost {
                    return Err(self.failed(&"what was watched is gone"));
                }
                if is_new {
                    self.go_on().await?;
                } else {
                    self.told.more.notified().await;
                }
            }
        }
        .boxed_local()
    }
}

impl Watch {
    /// Watches whatever took the place of the watched path.
    async fn go_on(&self) -> Result<(), JsErrorBox> {
        let (told, watcher) = (Arc::clone(&self.told), Arc::clone(&self.watcher));
        let (granted, path) = (self.granted.clone(), self.path.clone());
        let work = tokio::task::spawn_blocking(move || told.go_on(&granted, &path, &watcher));
        let done = work.await.map_err(|_| JsErrorBox::generic("watching failed"))?;
        done.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> JsErrorBox {
        JsErrorBox::generic(format!("watching {:?}: {error}", self.path))
    }

    /// A path as the module would write it.
    fn shown(&self, path: &Path) -> String {
        match path.strip_prefix(&self.told.real) {
            Ok(below) if below.as_os_str().is_empty() => self.path.clone(),
            Ok(below) => Path::new(&self.path).join(below).to_string_lossy().into_owned(),
            Err(_) => path.to_string_lossy().into_owned(),
        }
    }
}
