//! Checks whether the modules of a directory could run: reads, evaluates and validates each as a
//! Host does, but runs none and needs no store.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use xs_engine::FrameId;

use super::config::Config;
use super::files::{self, CONFIG_FILE};
use super::lifecycle::Key;
use super::sync::{find, nobody};
use crate::isolate::{
    Backend, BackendCode, BackendError, FailureKind, Isolate, IsolateSpec, Limits, LogLevel,
    ModuleError,
};
use crate::loader::ModuleGraph;
use crate::permissions::Allow;

/// The result of checking one file.
#[derive(Debug)]
pub struct Checked {
    /// The processor it defines; `None` when a server would ignore the file.
    pub key: Option<Key>,
    /// The file, relative to the directory: a module, or `xs.toml`.
    pub file: String,
    /// What is wrong with it, if anything is.
    pub error: Option<ModuleError>,
}

/// Checks every module of a directory, ordered by name, then lists what looks like a module but
/// would not be run.
///
/// # Errors
/// When the directory or its `xs.toml` cannot be read.
pub async fn check(dir: &Path, allow: &Allow) -> io::Result<Vec<Checked>> {
    let scan = files::scan(dir)?;
    let config = Config::load(dir).map_err(io::Error::other)?;
    let mut all = Vec::with_capacity(scan.modules.len());
    for (key, own) in &scan.modules {
        let found = find(dir, &scan, key, config.module(&key.name));
        let allow = config.module(&key.name).widen(allow);
        let error = match found.error {
            Some(error) => Some(error),
            None => evaluate(dir, key, &found.source, &found.config.config, allow).await.err(),
        };
        let file = own.first().cloned().unwrap_or_default();
        all.push(Checked { key: Some(key.clone()), file, error });
    }
    let unused = nobody(&config, &scan).map(|name| {
        (CONFIG_FILE.to_owned(), format!("names a module {name}, which does not exist"))
    });
    let unused: Vec<_> = unused.collect();
    let misnamed = scan.misnamed.into_iter().map(|(file, error)| (file, error.to_string()));
    let strays = scan.strays.into_iter().map(|(file, why)| (file, format!("not run: {why}")));
    all.extend(misnamed.chain(strays).chain(unused).map(|(file, why)| {
        let error = Some(ModuleError::new(FailureKind::Definition, why));
        Checked { key: None, file, error }
    }));
    Ok(all)
}

async fn evaluate(
    dir: &Path,
    key: &Key,
    source: &[u8],
    config: &serde_json::Map<String, Value>,
    allow: Allow,
) -> Result<(), ModuleError> {
    let spec = IsolateSpec {
        name: key.name.as_str().to_owned(),
        kind: key.kind,
        create: FrameId::ZERO,
        graph: Arc::new(ModuleGraph::from_bytes(source)?),
        config: Value::Object(config.clone()),
        env: BTreeMap::new(),
        limits: Limits::default(),
        allow,
        base: dir.to_owned(),
        sealed: false,
        trial: None,
        trials: None,
        script: None,
    };
    let (isolate, _) = Isolate::start(spec, Arc::new(NoStore)).await?;
    if key.kind == crate::name::Kind::Handler {
        isolate.load_state(None).await?;
    }
    isolate.stop().await
}

/// The store of a module that is only checked: it is empty and refuses every request.
#[derive(Debug)]
pub struct NoStore;

impl Backend for NoStore {
    fn refusal(&self) -> BackendError {
        BackendError::new(
            BackendCode::Unavailable,
            "no store is available while a module is being checked",
        )
    }

    fn log(&self, _: LogLevel, _: String, _: Option<String>) {}

    fn processor_name(&self, _: FrameId) -> Option<String> {
        None
    }
}
