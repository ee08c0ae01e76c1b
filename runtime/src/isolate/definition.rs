//! A module's definition: the static fields of its default export, validated. The functions stay in
//! the isolate.

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
    /// The frame is skipped.
    Skip,
    /// The frame is recorded as parked and skipped.
    Park,
}

/// The `onError` of a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The last resort at once.
    Now(LastResort),
    /// The last resort after a number of retries.
    Retry {
        /// Attempts after the first.
        tries: u32,
        /// Delay before the first retry.
        backoff: Duration,
        /// The longest delay.
        backoff_max: Duration,
        /// What happens when all have failed.
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
    /// A number; numeric text is converted.
    Number,
    /// `true` or `false`; such text is converted.
    Boolean,
    /// Any JSON value.
    Json,
}

impl ArgType {
    /// The name used in a definition.
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

/// The permissions that a module requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PermissionList {
    /// `host:port`, `host` or `*`.
    pub net: Vec<String>,
    /// Paths, each with everything below it.
    pub read: Vec<String>,
    /// Programs, by the name they are run with.
    pub run: Vec<String>,
    /// Names of environment variables.
    pub env: Vec<String>,
    /// Topics whose frames it may remove; reserved topics are not allowed.
    pub remove: Option<TopicPatterns>,
}

/// The checked static fields of a module's default export.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The author's one-line description.
    pub about: Option<String>,
    /// Longest wall time of one handler call, or of a command without producing a result.
    pub timeout: Duration,
    /// Default configuration.
    pub config: Value,
    /// The requested permissions.
    pub permissions: PermissionList,
    /// Where results go.
    pub output: OutputSpec,
    /// Handler: the topics it reads; always set for a handler.
    pub topics: Option<TopicPatterns>,
    /// Handler: where it starts reading.
    pub start: StartAt,
    /// Handler: what happens when it throws.
    pub on_error: OnError,
    /// Handler: time between two calls of `tick`, when it has one.
    pub pulse: Option<Duration>,
    /// Generator: whether it reads input sent to it.
    pub duplex: bool,
    /// Command: its arguments; `None` when any are accepted unchecked.
    pub args: Option<Vec<ArgSpec>>,
    /// Command: calls that run concurrently.
    pub concurrency: usize,
    /// Command: whether a call cut off by a crash is rerun instead of failing.
    pub retry_after_crash: bool,
}

impl Definition {
    /// The effective configuration: the defaults, overridden by the operator's values key by key.
    pub(crate) fn config_with(&self, given: &Value) -> Value {
        match (&self.config, given) {
            (Value::Object(defaults), Value::Object(given)) => {
                let mut config = defaults.clone();
                config.extend(given.iter().map(|(key, value)| (key.clone(), value.clone())));
                Value::Object(config)
            }
            (defaults, Value::Null) => defaults.clone(),
            (_, given) => given.clone(),
        }
    }
}
