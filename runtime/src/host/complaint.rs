//! Reports that `xs.toml` cannot be used: as a frame in the store's log, which the commands that
//! show the state of modules read, and as a line in the process's log. A Host that runs a single
//! module leaves this to the Host of the other modules.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use xs_engine::{NewFrame, Topic, TopicPatterns};
use xs_protocol::{AppendRequest, ClientError, Code, LastRequest};

use super::config::ConfigError;
use super::driver::is_lost;
use super::files::CONFIG_FILE;
use super::part::Part;
use super::report;
use super::version::Shared;

/// The topic that reports whether `xs.toml` can be used. Only the newest frame is kept.
pub const CONFIG_TOPIC: &str = "xs.host.config";

/// Identifies one content of the file: its length and modification time.
type Stamp = (u64, Option<SystemTime>);

/// The last reported state.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    /// Whether the newest frame says that something is wrong.
    is_bad: bool,
    /// The content that the process's log has already reported.
    logged: Option<Stamp>,
}

impl Complaint {
    /// Reads what the previous Host reported.
    ///
    /// # Errors
    /// [`ClientError`] when the store cannot be read.
    pub(super) async fn read(shared: &Shared) -> Result<Self, ClientError> {
        let topics = TopicPatterns::from(topic());
        let request = LastRequest { topics, n: 1, per_topic: false };
        let newest = shared.client.last(&request).await?.pop();
        let is_bad = newest.is_some_and(|frame| {
            let meta: Value = serde_json::from_slice(frame.meta()).unwrap_or_default();
            !meta["error"].is_null()
        });
        Ok(Self { is_bad, logged: None })
    }

    /// Records that the file is valid. Returns `false` if that has yet to be reported.
    ///
    /// # Errors
    /// [`ClientError`] when the connection to the store is lost.
    pub(super) async fn good(&mut self, shared: &Arc<Shared>) -> Result<bool, ClientError> {
        self.logged = None;
        if self.is_bad {
            self.is_bad = !tell(shared, Value::Null).await?;
        }
        Ok(!self.is_bad)
    }

    /// Records that the file cannot be used, so no change of a module was applied. Returns `false`
    /// if that has yet to be reported.
    ///
    /// # Errors
    /// The errors of [`Complaint::good`].
    pub(super) async fn bad(
        &mut self,
        shared: &Arc<Shared>,
        error: &ConfigError,
    ) -> Result<bool, ClientError> {
        let stamp = stamp(&shared.dir);
        if speaks(&shared.part) && self.logged.replace(stamp) != Some(stamp) {
            // On lines of its own: the message shows the offending line of the file.
            tracing::error!(target: report::TOLD, "the modules are left unchanged: {error}");
        }
        self.is_bad = true;
        let error = Value::Object(report::error_fields(&error.to_module_error()));
        tell(shared, error).await
    }
}

const fn speaks(part: &Part) -> bool {
    !matches!(part, Part::Only(_))
}

fn stamp(dir: &Path) -> Stamp {
    let meta = std::fs::metadata(dir.join(CONFIG_FILE));
    meta.map_or((0, None), |meta| (meta.len(), meta.modified().ok()))
}

fn topic() -> Topic {
    Topic::parse(CONFIG_TOPIC).expect("a constant that parses")
}

/// Reports the state, if that is this Host's task. Returns `false` if the store refuses, for lack
/// of space for example: that stops no module.
async fn tell(shared: &Arc<Shared>, error: Value) -> Result<bool, ClientError> {
    if !speaks(&shared.part) {
        return Ok(true);
    }
    let mut frame = NewFrame::new(topic());
    frame.ttl = report::last(1);
    let fields = [("file", json!(CONFIG_FILE)), ("error", error)];
    frame.meta =
        report::meta_of(Map::from_iter(fields.map(|(name, value)| (name.to_owned(), value))));
    match shared.client.append(&AppendRequest::frames(vec![frame])).await {
        Ok(_) => Ok(true),
        Err(error) if is_lost(&error) => Err(error),
        // An older server does not know the topic.
        Err(error) if error.code() == Some(Code::Denied) => Ok(true),
        Err(error) => {
            tracing::warn!(%error, "cannot report the state of {CONFIG_FILE} to the store");
            Ok(false)
        }
    }
}
