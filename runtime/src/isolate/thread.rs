//! The thread of an isolate.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{Fate, Request};
use super::{Backend, Definition, IsolateSpec, ModuleError};

/// How a thread is told to end.
pub(crate) struct Stop;

impl Stop {
    pub(crate) fn ask(&self) {}
    pub(crate) fn kill(&self) {}
}

pub(crate) fn spawn(
    spec: IsolateSpec,
    backend: Arc<dyn Backend>,
    requests: mpsc::UnboundedReceiver<Request>,
    started: oneshot::Sender<Result<Definition, ModuleError>>,
    fate: watch::Sender<Fate>,
) -> Result<Arc<Stop>, ModuleError> {
    drop((spec, backend, requests, started, fate));
    Ok(Arc::new(Stop))
}
