//! What a Host is started with, and how it ends.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use xs_protocol::{Client, ClientError};

use super::Part;
use crate::isolate::Limits;
use crate::permissions::Allow;

/// The settings of a Host.
pub struct HostOptions {
    /// The connection to the store, with the role host.
    pub client: Client,
    /// The directory of the modules; without one, only what admins append runs.
    pub modules: Option<PathBuf>,
    /// Environment variables that modules may request.
    pub env: BTreeMap<String, String>,
    /// Permissions that modules may request.
    pub allow: Allow,
    /// Limits of each isolate.
    pub limits: Limits,
    /// The threads on which the previous Host crashed, as reported by [`crate::supervise`].
    pub culprits: Vec<String>,
    /// Isolates it may create beyond the first of each processor before it ends as
    /// [`HostEnd::Worn`].
    pub spent_isolates_max: usize,
    /// Processors it runs at the same time, at most [`PROCESSORS_MAX`](super::PROCESSORS_MAX); more
    /// wait until one ends.
    pub processors_max: usize,
    /// The processors it runs.
    pub part: Part,
    /// How the process is confined: each measure and its status.
    pub confined: Vec<(&'static str, String)>,
}

impl fmt::Debug for HostOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostOptions")
            .field("modules", &self.modules)
            .field("allow", &self.allow)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Why a Host ended.
#[derive(Debug)]
pub enum HostEnd {
    /// It was stopped on request.
    Stopped,
    /// A module's thread does not end, or none can be started for another module: a new process has
    /// to take over.
    Wedged,
    /// The isolates it created have leaked enough memory for a fresh process to take over.
    Worn,
}

/// Why a Host could not continue.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The store refused a request, or the connection to it is lost.
    #[error("the connection to the store ended: {0}")]
    Store(ClientError),
    /// The directory cannot be used.
    #[error("cannot read the modules in {dir}: {error}")]
    Modules {
        /// The directory.
        dir: PathBuf,
        /// The I/O error.
        error: std::io::Error,
    },
}

impl From<ClientError> for HostError {
    fn from(error: ClientError) -> Self {
        Self::Store(error)
    }
}
