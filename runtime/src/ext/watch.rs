//! Changes of files as they happen. What happens faster than a module looks is told once.

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
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::bridge::bridge;
use super::files::denied;
use super::streams::Source;

/// Files whose changes wait for the module.
const WAITING_MAX: usize = 10_000;

/// What the kernel has told and the module has not heard yet.
#[derive(Default)]
struct Told {
    changes: Mutex<Changes>,
    more: Notify,
}

#[derive(Default)]
struct Changes {
    waiting: BTreeMap<PathBuf, &'static str>,
    failed: Option<String>,
}

struct Watch {
    told: Arc<Told>,
    /// The real path, and how the module calls it.
    real: PathBuf,
    path: String,
    _watcher: RecommendedWatcher,
}

/// Opens a watch of a file, or of a directory and all below it; gives its stream's number.
#[op2]
pub(super) async fn op_xs_watch(
    state: Rc<RefCell<OpState>>,
    #[string] path: String,
) -> Result<u32, JsErrorBox> {
    let bridge = bridge(&state);
    let granted = bridge.granted();
    let told = Arc::new(Told::default());
    let telling = Arc::clone(&told);
    let begun = tokio::task::spawn_blocking(move || {
        let real = granted.readable(&path).map_err(denied)?;
        let notice = move |event| telling.take(event);
        let watcher = notify::recommended_watcher(notice).and_then(|mut watcher| {
            watcher.watch(&real, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = watcher
            .map_err(|error| JsErrorBox::generic(format!("cannot watch {path:?}: {error}")))?;
        Ok::<_, JsErrorBox>((watcher, real, path))
    });
    let (watcher, real, path) =
        begun.await.map_err(|_| JsErrorBox::generic("watching failed"))??;
    bridge.streams.open(Box::new(Watch { told, real, path, _watcher: watcher }))
}

impl Told {
    fn take(&self, event: notify::Result<notify::Event>) {
        let mut changes = self.changes.lock();
        match event {
            Ok(event) if event.need_rescan() => {
                changes.failed = Some("changes were missed; read the directory anew".to_owned());
            }
            Ok(event) => changes.add(event),
            Err(error) => changes.failed = Some(error.to_string()),
        }
        drop(changes);
        self.more.notify_one();
    }
}

impl Changes {
    fn add(&mut self, event: notify::Event) {
        let kinds: &[&'static str] = match event.kind {
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                &["create"]
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                &["remove"]
            }
            // The kernel tells both ends of a rename by themselves, too.
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Metadata(_)) => return,
            _ => &["change"],
        };
        for (path, kind) in event.paths.into_iter().zip(kinds.iter().cycle()) {
            if self.waiting.len() >= WAITING_MAX {
                let text = format!("more than {WAITING_MAX} files changed; read them anew");
                self.failed = Some(text);
                return;
            }
            let before = self.waiting.get(&path).copied();
            // Written after it was made is still made.
            let kind = if before == Some("create") && *kind == "change" { "create" } else { kind };
            self.waiting.insert(path, kind);
        }
    }
}

impl Source<String> for Watch {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<String>, JsErrorBox>> {
        async move {
            loop {
                let (waiting, failed) = {
                    let mut changes = self.told.changes.lock();
                    (std::mem::take(&mut changes.waiting), changes.failed.take())
                };
                if let Some(error) = failed {
                    return Err(JsErrorBox::generic(format!("watching {:?}: {error}", self.path)));
                }
                if !waiting.is_empty() {
                    let shown = waiting
                        .into_iter()
                        .map(|(path, kind)| json!({ "path": self.shown(&path), "kind": kind }));
                    return Ok(Some(Value::Array(shown.collect()).to_string()));
                }
                self.told.more.notified().await;
            }
        }
        .boxed_local()
    }
}

impl Watch {
    /// A path as the module would write it.
    fn shown(&self, path: &Path) -> String {
        match path.strip_prefix(&self.real) {
            Ok(below) if below.as_os_str().is_empty() => self.path.clone(),
            Ok(below) => Path::new(&self.path).join(below).to_string_lossy().into_owned(),
            Err(_) => path.to_string_lossy().into_owned(),
        }
    }
}
