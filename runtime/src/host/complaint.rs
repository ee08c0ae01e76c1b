//! What is told of `xs.toml` while it cannot be used: a frame in the log of the store, which those
//! read that ask how the modules are, and a line in the log of the process. A Host that runs one
//! module alone tells nothing: the Host of the others does.

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

/// Where it is told how `xs.toml` is. Only the newest frame is kept.
pub const CONFIG_TOPIC: &str = "xs.host.config";

/// What tells one content of the file from another: its length and when it was written.
type Stamp = (u64, Option<SystemTime>);

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    /// Whether the newest frame says that something is wrong.
    is_bad: bool,
    /// The content of which the log of the process has spoken.
    logged: Option<Stamp>,
}

impl Complaint {
    /// Reads what the Host before this one told.
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

    /// The file is as it should be. Whether that was told, if it had to be.
    ///
    /// # Errors
    /// [`ClientError`] when the connection to the store is gone.
    pub(super) async fn good(&mut self, shared: &Arc<Shared>) -> Result<bool, ClientError> {
        self.logged = None;
        if self.is_bad {
            self.is_bad = !tell(shared, Value::Null).await?;
        }
        Ok(!self.is_bad)
    }

    /// The file cannot be used, so no change of a module was acted on. Whether that was told.
    ///
    /// # Errors
    /// As [`Complaint::good`].
    pub(super) async fn bad(
        &mut self,
        shared: &Arc<Shared>,
        error: &ConfigError,
    ) -> Result<bool, ClientError> {
        let stamp = stamp(&shared.dir);
        if speaks(&shared.part) && self.logged.replace(stamp) != Some(stamp) {
            // On lines of its own: it shows the place in the file.
            tracing::error!(target: report::TOLD, "the modules are left as they are: {error}");
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

/// Whether it was told, as far as this Host has to. What the store refuses, for want of space for
/// one, ends no module.
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
        // A server of another age does not know the topic.
        Err(error) if error.code() == Some(Code::Denied) => Ok(true),
        Err(error) => {
            tracing::warn!(%error, "the store was not told how {CONFIG_FILE} is");
            Ok(false)
        }
    }
}
