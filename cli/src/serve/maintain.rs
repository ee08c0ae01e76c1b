//! MAINTAIN: work on the files of the served store, concurrent with appends and reads.

use std::ops::ControlFlow;
use std::path::Path;

use parking_lot::Mutex;
use serde_json::Value;
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
            let text = "another maintenance task is running; try again when it is done";
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
        log(request, &done);
        Ok(done.to_string())
    }
}

/// Logs the requested work and its result, each number as a field of its own.
fn log(request: &MaintainRequest, done: &Value) {
    let n = |key: &str| done[key].as_u64();
    let said = "worked on the store's files";
    match request {
        MaintainRequest::Verify => {
            let (files, frames, blobs) = (n("files"), n("frames"), n("blobs"));
            let (findings, worst) = (n("findings"), done["worst"].as_str());
            tracing::info!(work = "verify", files, frames, blobs, findings, worst, "{said}");
        }
        MaintainRequest::Backup { to, .. } | MaintainRequest::Fork { to } => {
            let is_fork = matches!(request, MaintainRequest::Fork { .. });
            let work = if is_fork { "fork" } else { "backup" };
            let (head, kept, linked) = (n("head"), n("files_kept"), n("files_linked"));
            let (files_copied, bytes_copied) = (n("files_copied"), n("bytes_copied"));
            tracing::info!(
                work,
                to = to.as_str(),
                head,
                files_kept = kept,
                files_linked = linked,
                files_copied,
                bytes_copied,
                "{said}"
            );
        }
        MaintainRequest::Compact { dead_percent } => {
            let (rewritten, written, frames) = (n("rewritten"), n("written"), n("frames"));
            let (bytes_before, bytes_after) = (n("bytes_before"), n("bytes_after"));
            let damaged = n("damaged");
            tracing::info!(
                work = "compact",
                dead_percent,
                rewritten,
                written,
                frames,
                bytes_before,
                bytes_after,
                damaged,
                "{said}"
            );
        }
        MaintainRequest::Gc { grace, dead_percent, dry_run } => {
            let (packs, blobs, dead) = (n("packs"), n("blobs"), n("dead"));
            let (dead_bytes, swept) = (n("dead_bytes"), n("swept"));
            let (swept_bytes, damaged) = (n("swept_bytes"), n("damaged"));
            tracing::info!(
                work = "gc",
                grace_s = grace.as_secs(),
                dead_percent,
                dry_run,
                packs,
                blobs,
                dead,
                dead_bytes,
                swept,
                swept_bytes,
                damaged,
                "{said}"
            );
        }
    }
}
