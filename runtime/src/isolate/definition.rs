//! What a module says about itself: the static fields of its default export, checked. The functions
//! stay in the isolate.

use std::time::Duration;

use serde_json::Value;
use xs_engine::{FrameId, Topic, TopicPatterns, Ttl};

pub use crate::name::Kind;

/// Where a handler without a cursor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// With the first frame appended from now on.
    #[default]
    New,
    /// With the first frame of the log.
    First,
    /// With the frame after this one.
    After(FrameId),
}

/// What happens to a frame whose handler threw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LastResort {
    /// The handler stops until its source changes.
    #[default]
    Unregister,
    /// The frame is passed over.
    Skip,
    /// The frame is recorded as parked and passed over.
    Park,
}

/// The `onError` of a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// At once.
    Now(LastResort),
    /// After so many further tries.
    Retry {
        /// Tries after the first.
        tries: u32,
        /// Wait before the first of them.
        backoff: Duration,
        /// The longest wait.
        backoff_max: Duration,
        /// What happens when all failed.
        then: LastResort,
    },
}

impl Default for OnError {
    fn default() -> Self {
        Self::Now(LastResort::Unregister)
    }
}

/// The type of one argument of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgType {
    /// Text.
    String,
    /// A number; text that is one is converted.
    Number,
    /// `true` or `false`; that text is converted.
    Boolean,
    /// Any JSON value.
    Json,
}

impl ArgType {
    /// As a definition says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Json => "json",
        }
    }
}

/// One argument of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgSpec {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ArgType,
    /// Whether a call may leave it out.
    pub optional: bool,
}

/// The `output` of a definition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputSpec {
    /// The topic of results, instead of `<name>.recv` or `<name>.out`.
    pub topic: Option<Topic>,
    /// The ttl of results.
    pub ttl: Ttl,
    /// `as: "body"`: objects become a JSON body instead of meta.
    pub objects_as_body: bool,
}

/// What a module asks to be allowed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PermissionList {
    /// `host:port`, `host` or `*`.
    pub net: Vec<String>,
    /// Paths, each with everything below it.
    pub read: Vec<String>,
    /// Programs, as they are called.
    pub run: Vec<String>,
    /// Names of environment variables.
    pub env: Vec<String>,
    /// Topics that it may remove frames of, none of the store's own.
    pub remove: Option<TopicPatterns>,
}

/// The checked static fields of a module's default export.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The author's one line about it.
    pub about: Option<String>,
    /// Longest wall time of one handler call, or of a command without a result.
    pub timeout: Duration,
    /// Defaults of the configuration.
    pub config: Value,
    /// What it asks to be allowed.
    pub permissions: PermissionList,
    /// Where results go.
    pub output: OutputSpec,
    /// Handler: what it reacts to; always set for one.
    pub topics: Option<TopicPatterns>,
    /// Handler: where it begins.
    pub start: StartAt,
    /// Handler: what happens when it throws.
    pub on_error: OnError,
    /// Handler: time between two calls of `tick`, when it has one.
    pub pulse: Option<Duration>,
    /// Generator: whether it reads what is sent to it.
    pub duplex: bool,
    /// Command: its arguments; `None` when any are taken as they are.
    pub args: Option<Vec<ArgSpec>>,
    /// Command: calls that run side by side.
    pub concurrency: usize,
    /// Command: whether a call that a crash cut off is run again instead of failing.
    pub retry_after_crash: bool,
}
