//! Drives a generator: runs it, and restarts it after a delay whenever it ends or throws. What it
//! yields goes from the isolate straight to the store. A generator that has run once is retried
//! forever; only its owner stops it.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use xs_engine::{CursorChange, CursorValue, ExpectRevision, NewFrame};
use xs_protocol::AppendRequest;

use super::backoff::{Backoff, random};
use super::driver::{Ending, ask, is_wedged, stop_isolate};
use super::store::position_cursor;
use super::version::{Started, Told, Version};
use crate::ext::{INPUT_KEY, place_behind};
use crate::isolate::{Definition, ModuleError};

/// A restarted run that lasts this long counts as recovered, however many runs failed before.
const PROOF_MAX: Duration = Duration::from_secs(10);

/// A generator that is ready to run.
pub(super) struct Generator {
    version: Version,
    backoff: Backoff,
    told: Told,
    /// For a duplex generator without a position in its input: the change that stores the input's
    /// start.
    first: Option<CursorChange>,
}

impl Generator {
    /// Prepares a generator of this version. A duplex generator without a position in its input
    /// gets one now, so that nothing sent from here on is missed, whatever happens to its runs and
    /// versions.
    ///
    /// # Errors
    /// [`ModuleError`] when the store does not answer.
    pub(super) async fn new(version: Version, of: &Definition) -> Result<Self, ModuleError> {
        let first = match of.duplex {
            true => first_change(&version).await?,
            false => None,
        };
        Ok(Self { version, backoff: Backoff::default(), told: Told::default(), first })
    }

    /// The version it is of.
    pub(super) const fn version(&self) -> &Version {
        &self.version
    }

    /// The cursor change that stores the start of its input, committed with its `active` frame.
    pub(super) fn first_change(&self) -> Option<CursorChange> {
        self.first.clone()
    }

    /// Runs until it is stopped. Each run has its own isolate: a generator keeps no state between
    /// runs.
    pub(super) async fn run(mut self, started: Started, stop: CancellationToken) -> Ending {
        let mut first = Some(started);
        // How long a run after a failed one must last before it counts as running.
        let mut proving: Option<Duration> = None;
        loop {
            let began = Instant::now();
            let started = match first.take() {
                Some(started) => Ok(started),
                None => self.version.start().await,
            };
            let result = match started {
                Ok(Started { isolate, definition }) => {
                    let proof =
                        proving.take().map(|time| (time, self.version.recovered(&definition)));
                    let result = tokio::select! {
                        biased;
                        () = stop.cancelled() => {
                            return stop_isolate(isolate, Ending::Stopped).await;
                        }
                        result = isolate.run_generator() => result,
                        never = self.tell(proof) => match never {},
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
            let (error, tries) = (result.err(), self.backoff.tries());
            self.version.retrying(error.as_ref(), wait, tries, &mut self.told).await;
            proving = Some(wait.min(PROOF_MAX));
            tokio::select! {
                () = stop.cancelled() => return Ending::Stopped,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Reports that the generator runs again after a failure, once the run has lasted for a while.
    async fn tell(&self, proof: Option<(Duration, NewFrame)>) -> Infallible {
        if let Some((time, active)) = proof {
            tokio::time::sleep(time).await;
            let append = self.version.shared().client.append(&AppendRequest::frames(vec![active]));
            if let Err(error) = append.await {
                tracing::warn!(processor = %self.version.key, %error, "cannot report that it runs");
            }
        }
        std::future::pending().await
    }
}

async fn first_change(version: &Version) -> Result<Option<CursorChange>, ModuleError> {
    let name = position_cursor(&version.key, INPUT_KEY);
    let (client, stop) = (&version.shared().client, &version.shared().shutdown);
    let kept = ask(stop, || client.cursor_get(&name)).await.map_err(Ending::into_error)?;
    let place = CursorValue { offset: 0, state: place_behind(version.offset) };
    let expect = ExpectRevision::Is(0);
    Ok(kept.is_none().then_some(CursorChange { name, expect, set: Some(place) }))
}
