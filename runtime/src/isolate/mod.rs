//! One module, evaluated on its own thread: [`Isolate`] is the handle that the Host holds. The
//! isolate turns frames into calls and results into frames; it decides nothing about restarts,
//! cursors or lifecycle, and reaches the store only through [`Backend`].

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

/// Everything needed to make an isolate.
#[derive(Debug, Clone)]
pub struct IsolateSpec {
    /// The processor's name; results go to `<name>.recv` or `<name>.out`.
    pub name: String,
    /// The kind of processor it must define.
    pub kind: Kind,
    /// The `xs.<kind>.<name>.create` frame, which is the origin of what it appends.
    pub create: FrameId,
    /// Its source with all imports.
    pub graph: Arc<ModuleGraph>,
    /// Configuration that overrides the definition's defaults, key by key.
    pub config: Value,
    /// Environment variables the operator offers; a module sees those it names in
    /// `permissions.env`.
    pub env: BTreeMap<String, String>,
    /// Its limits.
    pub limits: Limits,
    /// The permissions that the operator lets modules request.
    pub allow: Allow,
    /// The base directory of relative paths in `permissions.read` and `ctx.fs`.
    pub base: PathBuf,
    /// Whether nothing outside can be reached, whatever the module asks for and the operator
    /// allows.
    pub sealed: bool,
    /// The simulated environment of a module under trial.
    pub trial: Option<Arc<Trial>>,
    /// The trials it may create, if it is a test.
    pub(crate) trials: Option<Arc<Trials>>,
    /// The task of a user's script, and where its output goes.
    pub(crate) script: Option<Arc<Script>>,
}

impl IsolateSpec {
    /// A module with the default limits, no configuration and no permissions.
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
    /// Its body, if delivered with it; otherwise it is fetched when the module asks for it.
    pub body: Option<Bytes>,
    /// 1 for the first attempt of this frame, more under `retry`.
    pub attempt: u32,
}

/// The result of some inputs of one [`Isolate::handle`]. Its contents must be committed as one
/// batch before [`Handling::next`] is called again.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerReply {
    /// How many further inputs are finished. 0 together with a failure, and for a `tick`.
    pub done: usize,
    /// The frames that their calls appended and returned, in order, with topic, ttl and origin set.
    pub outputs: Vec<NewFrame>,
    /// Frames to remove in the same commit.
    pub removes: Vec<FrameId>,
    /// The state as JSON, if it changed since the last commit.
    pub state: Option<Bytes>,
    /// Why the input after those could not be handled; set only in the last reply.
    pub failure: Option<HandlerFailure>,
}

/// Why a handler call failed. Its outputs and state changes are discarded.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerFailure {
    /// What happened.
    pub error: ModuleError,
    /// Which input of the batch given to [`Isolate::handle`] is to blame.
    pub blame: Blame,
    /// The isolate cannot continue and has to be replaced, even when the frame is skipped. Always
    /// so for [`Blame::UpTo`].
    pub fresh: bool,
    /// What the module itself asked for by throwing `Retry` or `Park`.
    pub verdict: Verdict,
}

/// Which input of a batch is to blame for a failure, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// This one: nothing else is undone with it.
    Input(usize),
    /// This one, too, but the unfinished inputs before it are undone with it, as they shared a
    /// commit: a fresh isolate has to repeat them without it.
    Sharing(usize),
    /// One of the unfinished inputs up to this one, which shared a commit and are undone together:
    /// a fresh isolate has to repeat them one by one.
    UpTo(usize),
}

impl Blame {
    /// The same, for the inputs after the first `done`.
    #[must_use]
    pub(crate) const fn after(self, done: usize) -> Self {
        match self {
            Self::Input(index) => Self::Input(index.saturating_sub(done)),
            Self::Sharing(index) => Self::Sharing(index.saturating_sub(done)),
            Self::UpTo(index) => Self::UpTo(index.saturating_sub(done)),
        }
    }

    /// Whether other inputs are undone with it.
    pub(crate) const fn is_shared(self) -> bool {
        matches!(self, Self::Sharing(_) | Self::UpTo(_))
    }

    /// When the isolate ended, with this many inputs unfinished and `last` the index of the last:
    /// the culprit among several is unknown.
    pub(crate) const fn of_end(unfinished: usize, last: usize) -> Self {
        if unfinished > 1 { Self::UpTo(last) } else { Self::Input(last) }
    }
}

/// What to do with a frame whose handler threw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Follow the definition's `onError`.
    #[default]
    Policy,
    /// `throw new Retry(reason, { after })`: retry, after this many milliseconds if given.
    Retry {
        /// The requested delay.
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
    /// When the caller gives up, in milliseconds since the Unix epoch; without it, the definition's
    /// `timeout` restarts after each result.
    pub deadline_ms: Option<u64>,
    /// The frame to append after the last result, in one batch with it.
    pub complete: NewFrame,
    /// Fires when the caller cancels.
    pub cancel: CancellationToken,
}
