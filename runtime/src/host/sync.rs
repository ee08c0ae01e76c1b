//! Makes the log agree with the files: appends `create` for a file whose import graph or config
//! differs from what was last taken from it, and `term` for a deleted file. Ignores what runs: a
//! stop, or a version appended by an admin, stays until the file changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use xs_engine::{Body, NewFrame};
use xs_protocol::{AppendRequest, ClientError};

use super::complaint::Complaint;
use super::config::{Config, ConfigError, ModuleConfig};
use super::driver::is_lost;
use super::files::{self, CONFIG_FILE, Scan};
use super::identity::{Refused, identity};
use super::lifecycle::{Event, Key, Lifecycle, Taken};
use super::part::Part;
use super::report;
use super::version::{GRAPH, Shared};
use crate::isolate::{FailureKind, ModuleError};
use crate::loader::ModuleGraph;

/// Maximum bytes of a source sent inside its frame; a larger one is first stored as a blob.
const INLINE_MAX: usize = 1024 * 1024;

/// The current content of a file.
pub(super) struct Found {
    taken: Taken,
    pub(super) source: Vec<u8>,
    pub(super) config: ModuleConfig,
    pub(super) error: Option<ModuleError>,
}

/// The result of syncing the files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Synced {
    /// The offset after the last frame about a module that was appended, if any.
    pub(super) behind: Option<u64>,
    /// Whether the store took everything; if not, the same must be offered again.
    pub(super) is_done: bool,
}

impl Synced {
    /// Records the result of appending a frame about a processor; returns whether it is stored.
    fn take(
        &mut self,
        key: &Key,
        appended: Result<Option<u64>, ClientError>,
    ) -> Result<bool, ClientError> {
        match appended {
            Ok(behind) => self.behind = behind.or(self.behind),
            Err(error) if is_lost(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(processor = %key, %error, "the store cannot take its change now");
                self.is_done = false;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Appends what the files ask for, and reports whether `xs.toml` is valid. What the store refuses
/// is skipped, and what runs keeps running.
///
/// # Errors
/// [`ClientError`] when the connection to the store is lost.
pub(super) async fn sync(
    shared: &Arc<Shared>,
    lifecycle: &Lifecycle,
    complaint: &mut Complaint,
) -> Result<Synced, ClientError> {
    let (dir, part) = (shared.dir.clone(), shared.part.clone());
    let known: Vec<(Key, Taken)> = lifecycle
        .iter()
        .filter(|(key, _)| part.has(&key.name))
        .filter_map(|(key, slots)| Some((key.clone(), slots.taken()?.clone())))
        .collect();
    let mut synced = Synced { behind: None, is_done: true };
    let looked = tokio::task::spawn_blocking(move || look(&dir, &part, &known)).await;
    let (config, gone, found) = match looked {
        Ok(Ok(looked)) => looked,
        Ok(Err(Unusable::Config(error))) => {
            synced.is_done = complaint.bad(shared, &error).await?;
            return Ok(synced);
        }
        Ok(Err(Unusable::Dir(error))) => {
            let dir = shared.dir.display();
            tracing::error!("the modules are left unchanged: cannot read {dir}: {error}");
            return Ok(synced);
        }
        Err(error) => {
            tracing::error!(%error, "scanning the modules failed; they are left unchanged");
            return Ok(synced);
        }
    };
    synced.is_done = complaint.good(shared).await?;
    *shared.config.write() = config;
    let mut kept = BTreeSet::new();
    for (key, taken) in gone {
        let mut frame = NewFrame::new(key.name.event_topic(key.kind, Event::Term));
        frame.meta = report::meta_of(Map::from_iter([("file".to_owned(), json!(taken.file))]));
        let appended = append(shared, frame).await;
        if !synced.take(&key, appended)? {
            kept.insert(key.name);
        }
    }
    // A name still held by a processor of another kind is not free yet.
    for (key, found) in found.into_iter().filter(|(key, _)| !kept.contains(&key.name)) {
        let appended = match create_frame(shared, &key, found).await {
            Ok(frame) => append(shared, frame).await,
            Err(error) => Err(error),
        };
        synced.take(&key, appended)?;
    }
    Ok(synced)
}

async fn append(shared: &Shared, frame: NewFrame) -> Result<Option<u64>, ClientError> {
    let appended = shared.client.append(&AppendRequest::frames(vec![frame])).await?;
    Ok(appended.frames.first().and_then(|stamp| stamp.offset).map(|offset| offset + 1))
}

async fn create_frame(shared: &Shared, key: &Key, found: Found) -> Result<NewFrame, ClientError> {
    let mut meta = Map::new();
    meta.insert("file".to_owned(), json!(found.taken.file));
    meta.insert("hash".to_owned(), json!(found.taken.hash));
    if !found.config.config.is_empty() {
        meta.insert("config".to_owned(), Value::Object(found.config.config));
    }
    match &found.error {
        Some(error) => meta.insert("error".to_owned(), Value::Object(report::error_fields(error))),
        None => meta.insert("format".to_owned(), json!(GRAPH)),
    };
    let mut frame = NewFrame::new(key.name.event_topic(key.kind, Event::Create));
    frame.meta = report::meta_of(meta);
    let source = Bytes::from(found.source);
    frame.body = if source.len() <= INLINE_MAX {
        Body::Inline(source)
    } else {
        Body::Stored(shared.client.blob_put_bytes(source).await?)
    };
    Ok(frame)
}

/// Why the files cannot be used now.
enum Unusable {
    Config(ConfigError),
    Dir(io::Error),
}

type Looked = (Config, Vec<(Key, Taken)>, Vec<(Key, Found)>);

/// Finds the files that were deleted or changed since they were last taken. Blocks.
fn look(dir: &Path, part: &Part, known: &[(Key, Taken)]) -> Result<Looked, Unusable> {
    let config = Config::load(dir).map_err(Unusable::Config)?;
    let scan = files::scan(dir).map_err(Unusable::Dir)?;
    for (file, error) in &scan.misnamed {
        tracing::warn!(file, %error, "not a valid processor name");
    }
    for (file, why) in &scan.strays {
        tracing::warn!(file, why, "not run");
    }
    for name in nobody(&config, &scan) {
        tracing::warn!("{CONFIG_FILE} names a module {name}, which does not exist");
    }
    let gone = known.iter().filter(|(key, _)| !scan.modules.contains_key(key)).cloned().collect();
    let mut changed = Vec::new();
    for key in scan.modules.keys().filter(|key| part.has(&key.name)) {
        let found = find(dir, &scan, key, config.module(&key.name));
        let before = known.iter().find(|(known, _)| known == key).map(|(_, taken)| taken);
        if before != Some(&found.taken) {
            changed.push((key.clone(), found));
        }
    }
    Ok((config, gone, changed))
}

/// The configured names that belong to no module.
pub(super) fn nobody<'c>(config: &'c Config, scan: &Scan) -> impl Iterator<Item = &'c str> {
    let names: BTreeSet<_> = scan.modules.keys().map(|key| key.name.as_str().to_owned()).collect();
    config.names().filter(move |name| !names.contains(*name))
}

/// The current definition of a processor. Blocks.
pub(super) fn find(dir: &Path, scan: &Scan, key: &Key, config: ModuleConfig) -> Found {
    let own = scan.modules.get(key).map(Vec::as_slice).unwrap_or_default();
    let file = own.first().cloned().unwrap_or_default();
    let claims = scan.claims(key);
    let (loaded, mut read) = if claims.len() > 1 {
        let text = format!("{} all define {}; rename all but one", claims.join(", "), key.name);
        let error = ModuleError::new(FailureKind::Definition, text);
        (Err(error), BTreeMap::from([(file.clone(), ModuleGraph::text(dir, &file))]))
    } else {
        ModuleGraph::load_with_texts(dir, &file)
    };
    let (source, hash, error) = match loaded {
        Ok(graph) => {
            let source = graph.to_bytes();
            let hash = identity(&source, &config, None);
            (source, hash, None)
        }
        // A file that cannot be loaded is stored as text, so that the log shows what was wrong:
        // only text that the loader has read, nothing that it would refuse to read.
        Err(error) => {
            let source = read.remove(&file).unwrap_or_default().into_bytes();
            let refused = Refused { error: &error, claims: &claims, read: &read };
            let hash = identity(&source, &config, Some(&refused));
            (source, hash, Some(error))
        }
    };
    Found { taken: Taken { file, hash: hash.to_string() }, source, config, error }
}
