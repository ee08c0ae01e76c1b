//! One module, evaluated on a thread of its own: [`Isolate`] is the handle that the Host holds. The
//! isolate turns frames into calls and results into frames; it decides nothing about restarts,
//! cursors or lifecycle, and talks to the store through [`Backend`] only.

mod backend;
mod blank;
mod definition;
mod engine;
mod failure;
pub(crate) mod handle;
mod heap;
mod interrupt;
pub(crate) mod limits;
mod parse;
mod place;
mod secrets;
pub(crate) mod stop;
mod thread;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use xs_engine::{Frame, FrameId, NewFrame};

pub use backend::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, LogLevel, TopicInfo,
};
pub(crate) use blank::{Blank, Mould};
pub use definition::{
    ArgSpec, ArgType, Definition, Kind, LastResort, OnError, OutputSpec, PermissionList, StartAt,
};
pub(crate) use engine::NO_BYTECODE_CACHE;
pub use engine::prepare_by_exec;
pub use failure::{FailureKind, ModuleError};
pub use handle::{Handling, Isolate};
pub use limits::{INPUTS_MAX, Limits};
pub(crate) use secrets::Secrets;

use crate::loader::ModuleGraph;
use crate::permissions::Allow;
use crate::script::Script;
use crate::trial::{Trial, Trials};

/// Everything an isolate is made from.
#[derive(Debug, Clone)]
pub struct IsolateSpec {
    /// The processor's name; results go to `<name>.recv` or `<name>.out`.
    pub name: String,
    /// What it must define.
    pub kind: Kind,
    /// The `xs.<kind>.<name>.create` frame, which becomes the origin of what it appends.
    pub create: FrameId,
    /// Its source and all that it imports.
    pub graph: Arc<ModuleGraph>,
    /// Configuration that overrides the definition's defaults, key by key.
    pub config: Value,
    /// Variables the operator offers; a module sees those that it names in `permissions.env`.
    pub env: BTreeMap<String, String>,
    /// What it may use.
    pub limits: Limits,
    /// What the operator lets modules ask for.
    pub allow: Allow,
    /// Directory that relative paths in `permissions.read` and `ctx.fs` start from.
    pub base: PathBuf,
    /// Whether nothing outside may be reached, whatever it names and the operator allows.
    pub sealed: bool,
    /// What a test has made up for it, when it is under trial.
    pub trial: Option<Arc<Trial>>,
    /// The trials it may make, when it is a test.
    pub(crate) trials: Option<Arc<Trials>>,
    /// What a user's code is given to do, and where it shows things.
    pub(crate) script: Option<Arc<Script>>,
}

impl IsolateSpec {
    /// A module with the default limits, no configuration and nothing allowed.
    #[must_use]
    pub fn new(name: &str, kind: Kind, create: FrameId, graph: ModuleGraph) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            create,
            graph: Arc::new(graph),
            config: Value::Null,
            env: BTreeMap::new(),
            limits: Limits::default(),
            allow: Allow::default(),
            base: PathBuf::from("/"),
            sealed: false,
            trial: None,
            trials: None,
            script: None,
        }
    }
}

/// A frame handed to a handler or a command.
#[derive(Debug, Clone)]
pub struct Input {
    /// The frame.
    pub frame: Frame,
    /// Its body, when it travelled along; otherwise it is fetched when the module asks for it.
    pub body: Option<Bytes>,
    /// 1 for the first try of this frame, more under `retry`.
    pub attempt: u32,
}

/// What came of some of the inputs of one [`Isolate::handle`]. What it holds is to be committed as
/// one batch before [`Handling::next`] is called again.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerReply {
    /// How many further inputs are finished. 0 together with a failure, and for a `tick`.
    pub done: usize,
    /// What their calls appended and returned, in order, with topic, ttl and origin set.
    pub outputs: Vec<NewFrame>,
    /// Frames that are to be gone, in the same commit.
    pub removes: Vec<FrameId>,
    /// The state as JSON when it is not what it was at the last commit.
    pub state: Option<Bytes>,
    /// Why the input after those could not be handled; the last reply when set.
    pub failure: Option<HandlerFailure>,
}

/// Why a handler call did not succeed. Its outputs and state changes are gone.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerFailure {
    /// What happened.
    pub error: ModuleError,
    /// Index of the failing input in the batch given to [`Isolate::handle`]; of the last one where
    /// the isolate ended and it is not known which of the unfinished inputs ended it.
    pub index: usize,
    /// Calls before it shared its commit and are undone with it: a fresh isolate has to repeat the
    /// unfinished inputs up to this one by one.
    pub shared: bool,
    /// The isolate cannot go on and has to be replaced, also when the frame is skipped.
    pub fresh: bool,
    /// What the module itself asked for by throwing `Retry` or `Park`.
    pub verdict: Verdict,
}

/// What is to happen to a frame whose handler threw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// What the definition's `onError` says.
    #[default]
    Policy,
    /// `throw new Retry(reason, { after })`: try again, after so many milliseconds if given.
    Retry {
        /// The wait asked for.
        after_ms: Option<u64>,
    },
    /// `throw new Park(reason)`.
    Park,
}

/// A call of a command.
#[derive(Debug, Clone)]
pub struct Call {
    /// The `<name>.call` frame; its meta's `args` are the arguments.
    pub input: Input,
    /// When the caller gives up, in milliseconds since 1970; without it the definition's `timeout`
    /// counts anew after each result.
    pub deadline_ms: Option<u64>,
    /// The frame to append behind the last result, in one batch with it.
    pub complete: NewFrame,
    /// Fires when the caller cancels.
    pub cancel: CancellationToken,
}
