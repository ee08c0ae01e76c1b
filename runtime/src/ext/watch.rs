//! Changes of files as they happen, under the path that is watched: what is put in the place of the
//! file or directory there is watched too, what is moved away from there is not any more. What
//! happens faster than a module looks is told once.

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

/// Files whose changes wait for the module.
const WAITING_MAX: usize = 10_000;

/// What the kernel has told and the module has not heard yet.
struct Told {
    /// The real path that is watched.
    real: PathBuf,
    changes: Mutex<Changes>,
    more: Notify,
}

#[derive(Default)]
struct Changes {
    waiting: BTreeMap<PathBuf, &'static str>,
    failed: Option<String>,
    /// What was watched is not there: what is told of what was below it is of another place.
    is_away: bool,
    /// There may be something else in its place, which is to be watched.
    is_new: bool,
    /// Nothing will tell when there is.
    is_lost: bool,
}

struct Watch {
    told: Arc<Told>,
    granted: Granted,
    /// How the module calls what is watched.
    path: String,
    watcher: Arc<Mutex<RecommendedWatcher>>,
}

/// Opens a watch of a file, or of a directory and all below it; gives its stream's number.
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

/// Watches a real path. The directory around it tells when it is replaced, and is what tells of a
/// file; where it cannot be watched, a replaced path is lost.
fn begin(real: PathBuf) -> notify::Result<Begun> {
    let told = Told { real, changes: Mutex::default(), more: Notify::new() };
    let told = Arc::new(told);
    let telling = Arc::clone(&told);
    let notice = move |event| telling.take(event);
    // A link leads to what may not be read, or to all of the machine.
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
    /// The directory around what is watched.
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
            // The kernel tells both ends of a rename by themselves, too.
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Metadata(_)) => return,
            _ => "change",
        };
        for path in event.paths {
            if path == self.real {
                let is_new = changes.is_new;
                changes.is_new |= kind != "change";
                match kind {
                    // Told once it is watched: what is made in it from then on is told too.
                    "create" => continue,
                    // Of a directory it may come after that of the one that has replaced it.
                    "remove" => changes.is_away = true,
                    // Written after it was made is still made.
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
                // Something else in the directory around it.
                continue;
            }
            changes.add(path, kind);
        }
    }

    /// Goes on with what is in the place of what was watched, if anything is.
    fn go_on(
        &self,
        granted: &Granted,
        path: &str,
        watcher: &Mutex<RecommendedWatcher>,
    ) -> notify::Result<()> {
        match granted.readable(path) {
            Ok(real) if real == self.real => {}
            // Nothing yet, or not any more, which is told.
            Err(ReadDenied::Io { .. }) => return Ok(()),
            // The path leads elsewhere now.
            Ok(_) | Err(ReadDenied::Denied(_)) => {
                let mut changes = self.changes.lock();
                (changes.is_away, changes.is_lost) = (true, true);
                return Ok(());
            }
        }
        self.changes.lock().is_away = false;
        if self.real.is_dir() {
            let mut watcher = watcher.lock();
            // Mostly it is forgotten already.
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
        // Written after it was made is still made.
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
    /// Watches what is in the place of what was watched, if anything is.
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
