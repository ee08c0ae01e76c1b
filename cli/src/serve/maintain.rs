//! MAINTAIN: work on the files of the served store, concurrent with appends and reads.

use std::ops::ControlFlow;
use std::path::Path;

use parking_lot::Mutex;
use xs_engine::{CompactOptions, CopyOptions, GcOptions, Progress, Store};
use xs_protocol::limits::MAINTAIN_LISTED_MAX;
use xs_protocol::{Code, MaintainRequest, Refusal};

use super::refuse;
use crate::report;

/// Allows one piece of work at a time: each of them reads the whole disk.
#[derive(Debug, Default)]
pub(super) struct Turn(Mutex<()>);

impl Turn {
    /// Does the requested work and reports it as JSON.
    ///
    /// # Errors
    /// [`Refusal`] when other work is in progress, or the request failed.
    pub(super) fn run(
        &self,
        store: &Store,
        request: &MaintainRequest,
        given_up: &dyn Fn() -> bool,
    ) -> Result<String, Refusal> {
        let Some(_turn) = self.0.try_lock() else {
            let text = "other work on the store's files is under way; try again when it has ended";
            return Err(Refusal::new(Code::Busy, text));
        };
        let watch = &mut |_: &Progress<'_>| match given_up() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let done = match request {
            MaintainRequest::Verify => {
                store.verify(watch).map(|done| report::verify(&done, MAINTAIN_LISTED_MAX))
            }
            MaintainRequest::Backup { to, link } => {
                let options = if *link { CopyOptions::links() } else { CopyOptions::copies() };
                store.backup(Path::new(to), options, watch).map(|done| report::copy(&done))
            }
            MaintainRequest::Fork { to } => {
                store.fork(Path::new(to)).map(|done| report::copy(&done))
            }
            MaintainRequest::Compact { dead_percent } => {
                let options =
                    CompactOptions { dead_percent: *dead_percent, bytes_per_second: None };
                let done = store.compact(options).map_err(|error| refuse::compact(&error))?;
                Ok(report::compact(&done, MAINTAIN_LISTED_MAX))
            }
            MaintainRequest::Gc { grace, dead_percent, dry_run } => {
                let options = GcOptions {
                    grace: *grace,
                    dead_percent: *dead_percent,
                    dry_run: *dry_run,
                    bytes_per_second: None,
                };
                let done = store.gc(&options).map_err(|error| refuse::gc(&error))?;
                Ok(report::gc(&done, *dry_run, MAINTAIN_LISTED_MAX))
            }
        };
        let to = match request {
            MaintainRequest::Backup { to, .. } | MaintainRequest::Fork { to } => Some(to),
            _ => None,
        };
        let done = done.map_err(|error| refuse::maintain(&error, to.map(Path::new)))?;
        tracing::info!(?request, report = %done, "worked on the store's files");
        Ok(done.to_string())
    }
}
