//! Changes of files under a watched path, as they happen. A file or directory that takes the place
//! of the watched one is watched in turn, also when a directory or a link on the way to it is
//! replaced; one that is moved away is no longer watched. Several changes between two reads by the
//! module are reported as one.

mod way;

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

use self::way::{Identity, Way};
use super::bridge::bridge;
use super::files::unreadable;
use super::streams::Source;
use crate::permissions::{Granted, ReadDenied};

/// Maximum number of changed files waiting for the module.
const WAITING_MAX: usize = 10_000;
/// How often to follow a way again because it changed meanwhile; after that, its next change is
/// waited for.
const LOOKS_MAX: usize = 16;

/// Changes reported by the kernel that the module has not read yet.
#[derive(Default)]
struct Told {
    changes: Mutex<Changes>,
    more: Notify,
}

#[derive(Default)]
struct Changes {
    /// Changes by path relative to the watched path, which itself is the empty path.
    waiting: BTreeMap<PathBuf, &'static str>,
    failed: Option<String>,
    /// The watched path, resolved; its last target while it is away.
    real: PathBuf,
    /// The way to it.
    way: Way,
    /// The file or directory at its end.
    identity: Option<Identity>,
    /// The number of the current watcher; events of others are ignored.
    listened: u64,
    /// The watched path does not exist now: events below it concern another file or directory.
    is_away: bool,
    /// There may be a new file or directory at the watched path, which must be watched.
    is_new: bool,
    /// The path may lead elsewhere now.
    is_moved: bool,
    /// Nothing would report that it exists again.
    is_lost: bool,
}

struct Watch {
    told: Arc<Told>,
    granted: Granted,
    /// The module's name for the watched path.
    path: String,
    watcher: Arc<Mutex<Option<RecommendedWatcher>>>,
}

/// Opens a watch of a file, or of a directory and everything below it; returns its stream's number.
#[op2]
pub(super) async fn op_xs_watch(
    state: Rc<RefCell<OpState>>,
    #[string] path: String,
) -> Result<u32, JsErrorBox> {
    let bridge = bridge(&state);
    let granted = bridge.granted();
    let begun = tokio::task::spawn_blocking(move || {
        // A path that is missing or may not be read is an error here; later it is waited for.
        granted.readable(&path)?;
        let (told, watcher) = (Arc::default(), Arc::default());
        let watch = Watch { told, granted, path, watcher };
        let begun = watch.told.look(&watch.granted, &watch.path, &watch.watcher);
        // What existed before the watch is not a change.
        watch.told.changes.lock().waiting.clear();
        Ok(match begun {
            Ok(()) => Ok(watch),
            Err(error) => Err(format!("cannot watch {:?}: {error}", watch.path)),
        })
    });
    let begun = begun.await.map_err(|_| JsErrorBox::generic("watching failed"))?;
    let watch = begun.map_err(|error| unreadable(&bridge, error))?;
    bridge.streams.open(Box::new(watch.map_err(JsErrorBox::generic)?))
}

impl Told {
    fn take(&self, number: u64, event: notify::Result<notify::Event>) {
        let mut changes = self.changes.lock();
        if changes.listened != number {
            return;
        }
        match event {
            Ok(event) if event.need_rescan() => {
                changes.failed = Some("changes were missed; read the directory again".to_owned());
            }
            Ok(event) => changes.event(event),
            Err(error) => changes.failed = Some(error.to_string()),
        }
        let is_more = changes.is_new || changes.is_moved || changes.failed.is_some();
        if is_more || changes.is_away || !changes.waiting.is_empty() {
            self.more.notify_one();
        }
    }

    /// Watches all directories of a way and the file or directory at its end. Also returns whether
    /// the coming and going of its end is noticed: this process may not be allowed to watch a
    /// directory above it.
    fn watch(
        self: &Arc<Self>,
        number: u64,
        way: &Way,
        real: Option<&Path>,
    ) -> notify::Result<(RecommendedWatcher, bool)> {
        let telling = Arc::clone(self);
        let notice = move |event| telling.take(number, event);
        // A link may lead to files that may not be read, or to the whole machine.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(notice, config)?;
        let mut is_noticed = false;
        for dir in way.dirs() {
            let is_watched = watcher.watch(dir, RecursiveMode::NonRecursive).is_ok();
            is_noticed |= is_watched && way.around() == Some(dir);
        }
        if let Some(real) = real.filter(|real| !is_noticed || real.is_dir()) {
            match watcher.watch(real, RecursiveMode::Recursive) {
                Err(error) if !matches!(error.kind, notify::ErrorKind::PathNotFound) => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok((watcher, is_noticed))
    }

    /// Finds out where the path leads now, and watches that from now on.
    fn look(
        self: &Arc<Self>,
        granted: &Granted,
        path: &str,
        watcher: &Mutex<Option<RecommendedWatcher>>,
    ) -> notify::Result<()> {
        let mut watcher = watcher.lock();
        let place = granted.place(path);
        for _ in 0..LOOKS_MAX {
            let way = Way::to(&place);
            let real = match granted.readable(path) {
                Ok(real) => Some(real),
                Err(ReadDenied::Io { .. }) => None,
                // It leads to something that may not be read.
                Err(ReadDenied::Denied(_)) => {
                    let mut changes = self.changes.lock();
                    (changes.is_away, changes.is_lost) = (true, true);
                    return Ok(());
                }
            };
            let number = self.changes.lock().listened + 1;
            let (made, is_noticed) = self.watch(number, &way, real.as_deref())?;
            let identity = real.as_deref().and_then(Identity::of);
            let is_same = Way::to(&place) == way && granted.readable(path).ok() == real;
            // Both watchers are active for a moment, so that no change of a file that stays in
            // place is missed.
            let mut changes = self.changes.lock();
            changes.listened = number;
            changes.lead(way, real, identity);
            changes.is_lost = !is_noticed;
            drop(changes);
            *watcher = Some(made);
            if is_same {
                break;
            }
        }
        Ok(())
    }

    /// Continues with a new file or directory at the end of the same way.
    fn go_on(
        self: &Arc<Self>,
        granted: &Granted,
        path: &str,
        watcher: &Mutex<Option<RecommendedWatcher>>,
    ) -> notify::Result<()> {
        let real = self.changes.lock().real.clone();
        match granted.readable(path) {
            Ok(found) if found == real => {}
            // It does not exist yet, or no longer; that is reported.
            Err(ReadDenied::Io { .. }) => return Ok(()),
            // The path leads to another place now.
            Ok(_) | Err(ReadDenied::Denied(_)) => return self.look(granted, path, watcher),
        }
        let identity = Identity::of(&real);
        self.changes.lock().is_away = false;
        if real.is_dir()
            && let Some(watcher) = watcher.lock().as_mut()
        {
            // Usually it is unregistered already.
            let _ = watcher.unwatch(&real);
            match watcher.watch(&real, RecursiveMode::Recursive) {
                Err(error) if !matches!(error.kind, notify::ErrorKind::PathNotFound) => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
        }
        let mut changes = self.changes.lock();
        if !changes.is_away {
            changes.identity = identity;
            changes.add(PathBuf::new(), "create");
        }
        Ok(())
    }
}

impl Changes {
    fn event(&mut self, event: notify::Event) {
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
                let is_new = self.is_new;
                self.is_new |= kind != "change";
                match kind {
                    // Reported once it is watched, so that what is created in it after the report
                    // is reported too.
                    "create" => continue,
                    // For a directory this may arrive after the event of its replacement.
                    "remove" => self.is_away = true,
                    // A write after a creation still counts as a creation.
                    _ if is_new => continue,
                    _ => {}
                }
            } else if !path.starts_with(&self.real) {
                // Changes of other entries in a directory on the way are irrelevant.
                if self.way.has(&path) && kind != "change" {
                    self.is_moved = true;
                    if kind == "remove" {
                        self.gone();
                    }
                }
                continue;
            } else if self.is_away {
                continue;
            }
            let below = path.strip_prefix(&self.real).unwrap_or(&path).to_owned();
            self.add(below, kind);
        }
    }

    /// Notes that the watched path no longer exists.
    fn gone(&mut self) {
        if !std::mem::replace(&mut self.is_away, true) {
            self.add(PathBuf::new(), "remove");
        }
    }

    /// Notes where the path leads from now on; `None` if it leads nowhere.
    fn lead(&mut self, way: Way, real: Option<PathBuf>, identity: Option<Identity>) {
        self.way = way;
        (self.is_new, self.is_moved) = (false, false);
        let Some(real) = real else { return self.gone() };
        let is_same = !self.is_away && self.real == real && self.identity == identity;
        (self.real, self.identity, self.is_away) = (real, identity, false);
        if !is_same {
            self.add(PathBuf::new(), "create");
        }
    }

    fn add(&mut self, path: PathBuf, kind: &'static str) {
        if self.waiting.len() >= WAITING_MAX {
            let text = format!("more than {WAITING_MAX} files changed; read them again");
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
                let (waiting, failed, is_new, is_moved, is_lost) = {
                    let mut changes = self.told.changes.lock();
                    let waiting = std::mem::take(&mut changes.waiting);
                    let is_empty = waiting.is_empty();
                    let is_moved = is_empty && std::mem::take(&mut changes.is_moved);
                    let is_new = is_empty && std::mem::take(&mut changes.is_new);
                    let is_lost = changes.is_lost && changes.is_away;
                    (waiting, changes.failed.take(), is_new, is_moved, is_lost)
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
                if is_lost && !is_moved {
                    return Err(self.failed(&"what was watched no longer exists"));
                }
                if is_new || is_moved {
                    self.go_on(is_moved).await?;
                } else {
                    self.told.more.notified().await;
                }
            }
        }
        .boxed_local()
    }
}

impl Watch {
    /// Continues with a new file or directory at the watched path, by the same way or by another.
    async fn go_on(&self, is_moved: bool) -> Result<(), JsErrorBox> {
        let (told, watcher) = (Arc::clone(&self.told), Arc::clone(&self.watcher));
        let (granted, path) = (self.granted.clone(), self.path.clone());
        let work = tokio::task::spawn_blocking(move || match is_moved {
            true => told.look(&granted, &path, &watcher),
            false => told.go_on(&granted, &path, &watcher),
        });
        let done = work.await.map_err(|_| JsErrorBox::generic("watching failed"))?;
        done.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> JsErrorBox {
        JsErrorBox::generic(format!("watching {:?}: {error}", self.path))
    }

    /// A path below the watched one, as the module would write it.
    fn shown(&self, below: &Path) -> String {
        match below.as_os_str().is_empty() {
            true => self.path.clone(),
            false => Path::new(&self.path).join(below).to_string_lossy().into_owned(),
        }
    }
}
