//! Drives a generator: runs it, and runs it again after a wait whenever it ends or throws. What it
//! yields goes from the isolate straight to the store. A generator that has run once is never given
//! up; only its owner stops it.

use std::time::{Duration, Instant};

use serde_json::{Map, json};
use tokio_util::sync::CancellationToken;
use xs_protocol::AppendRequest;

use super::backoff::{Backoff, random};
use super::driver::{Ending, is_wedged, stop_isolate};
use super::lifecycle::Event;
use super::report;
use super::version::{Started, Version};
use crate::isolate::ModuleError;

/// A generator that is ready to run.
pub(super) struct Generator {
    version: Version,
    backoff: Backoff,
}

impl Generator {
    /// A generator of this version.
    pub(super) fn new(version: Version) -> Self {
        Self { version, backoff: Backoff::default() }
    }

    /// Runs until it is stopped. Each run has an isolate of its own: a generator keeps nothing from
    /// one run to the next.
    pub(super) async fn run(mut self, started: Started, stop: CancellationToken) -> Ending {
        let mut first = Some(started);
        loop {
            let began = Instant::now();
            let started = match first.take() {
                Some(started) => Ok(started),
                None => self.version.start().await,
            };
            let result = match started {
                Ok(Started { isolate, .. }) => {
                    let result = tokio::select! {
                        biased;
                        () = stop.cancelled() => {
                            return stop_isolate(isolate, Ending::Stopped).await;
                        }
                        result = isolate.run_generator() => result,
                    };
                    match stop_isolate(isolate, Ending::Stopped).await {
                        Ending::Stopped => result,
                        ending => return ending,
                    }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = &result
                && is_wedged(error)
            {
                return Ending::Wedged { error: error.clone(), input: None };
            }
            if self.version.shared().shutdown.is_cancelled() {
                return Ending::Stopped;
            }
            let wait = self.backoff.next(began.elapsed(), random());
            self.retrying(result.err().as_ref(), wait).await;
            tokio::select! {
                () = stop.cancelled() => return Ending::Stopped,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn retrying(&self, error: Option<&ModuleError>, wait: Duration) {
        let mut more = error.map_or_else(Map::new, report::error_fields);
        let reason = if error.is_some() { "error" } else { "finished" };
        more.insert("reason".to_owned(), json!(reason));
        more.insert("wait_ms".to_owned(), json!(wait.as_millis()));
        more.insert("tries".to_owned(), json!(self.backoff.tries()));
        let (key, create) = (&self.version.key, self.version.create);
        let frame = report::frame(key, Event::Retrying, create, more);
        let append = self.version.shared().client.append(&AppendRequest::frames(vec![frame]));
        if let Err(error) = append.await {
            tracing::warn!(processor = %key, %error, "cannot say that it will be tried again");
        }
    }
}
