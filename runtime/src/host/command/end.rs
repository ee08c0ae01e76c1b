//! How the calls of a command end: on their own, with an error, or because the command ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, CursorName, NewFrame};
use xs_protocol::{AppendRequest, Appended};

use super::calls::{Queued, error_frame};
use super::{COMMIT_FRAMES_MAX, Command, CommandCursor, Step};
use crate::host::driver::{Ending, is_wedged, stop_isolate};
use crate::host::store::Finish;
use crate::host::version::Version;
use crate::isolate::{BackendCode, BackendError, ModuleError};
use crate::remote::refused;

/// Time that running calls get to end when their command ends.
const GRACE: Duration = Duration::from_secs(5);

impl Command {
    /// Stores the last frames of a call, together with those of calls that ended meanwhile.
    pub(super) async fn finish(&mut self, first: Finish, stop: &CancellationToken) -> Step {
        let (mut finishes, mut count, mut next) = (Vec::new(), 0, Some(first));
        while let Some(finish) = next {
            // A call answered with an error meanwhile already has its end.
            if self.calls.has(finish.call) {
                count += finish.frames.len();
                finishes.push(finish);
            }
            next = if count < COMMIT_FRAMES_MAX { self.finishes.try_recv().ok() } else { None };
        }
        if finishes.is_empty() {
            return Ok(());
        }
        let calls: Vec<_> = finishes.iter().map(|finish| finish.call).collect();
        let frames = finishes.iter().flat_map(|finish| finish.frames.clone()).collect();
        match self.offer(frames, &calls, stop).await? {
            Ok(appended) => {
                let mut stamps = appended.frames.as_slice();
                for finish in finishes {
                    self.calls.close(finish.call);
                    let (own, rest) = stamps.split_at(finish.frames.len().min(stamps.len()));
                    stamps = rest;
                    let answer = Appended { frames: own.to_vec(), ..appended.clone() };
                    // The call may have given up on the answer; the frames are stored all the same.
                    let _ = finish.answer.send(Ok(answer));
                }
            }
            Err(error) if finishes.len() == 1 => {
                for finish in finishes {
                    let _ = finish.answer.send(Err(refused(error.clone())));
                }
            }
            // The frames of one call were refused: offer each call's frames separately.
            Err(_) => {
                for finish in finishes {
                    let offered = self.offer(finish.frames.clone(), &[finish.call], stop).await?;
                    if offered.is_ok() {
                        self.calls.close(finish.call);
                    }
                    let _ = finish.answer.send(offered.map_err(refused));
                }
            }
        }
        Ok(())
    }

    /// Handles the end of a call. One that succeeded has stored its own end.
    pub(super) async fn ended(
        &mut self,
        call: Queued,
        result: Result<(), ModuleError>,
        stop: &CancellationToken,
    ) -> Step {
        let Err(error) = result else { return Ok(()) };
        let frame = &call.input.frame;
        if is_wedged(&error) {
            return Err(Ending::Wedged { error, input: Some(frame.id()) });
        }
        // Its end may be stored although the isolate died before it learned so.
        if !self.calls.close(frame.id()) {
            return Ok(());
        }
        let (code, text) = (error.kind.as_str(), error.message.as_str());
        let answer = error_frame(&self.version, frame, code, text, Some(&error));
        let offered = self.offer(vec![answer], &[frame.id()], stop).await?;
        offered.map(|_| ()).map_err(super::refused)
    }

    /// Ends the command: running calls are stopped, and answered unless the next Host reruns them.
    pub(super) async fn end(mut self, ending: Ending) -> Ending {
        // No newer version is taken any more: the keeper that sent one starts it as a new command.
        self.swaps.close();
        while self.swaps.try_recv().is_ok() {}
        if matches!(ending, Ending::Lost(_)) {
            return ending;
        }
        self.restart = None;
        let begun = self.calls.cancel_all();
        let again =
            self.definition.retry_after_crash && self.version.shared().shutdown.is_cancelled();
        if again {
            // A stopped Host is not the call's fault, so this attempt does not count.
            self.saved.not_tried(&begun);
        }
        let Self { version, isolate, mut calls, mut saved, mut finishes, cursor, .. } = self;
        finishes.close();
        let mut frames = Vec::new();
        // This comes before waiting for the isolates, which wait for these answers.
        while let Ok(finish) = finishes.try_recv() {
            if calls.close(finish.call) {
                saved.running.remove(&finish.call);
                frames.extend(finish.frames.clone());
            }
            drop(finish.answer.send(Err(BackendError::new(BackendCode::Unavailable, "stopped"))));
        }
        // These calls are answered at once; their code gets its time while the isolates stop, those
        // of earlier versions included.
        let drained = tokio::time::timeout(GRACE, calls.drain()).await.is_ok();
        answer_cut_off(&version, &cursor, saved, frames, again).await;
        let stopped = async {
            match Arc::into_inner(isolate) {
                Some(isolate) if drained => stop_isolate(isolate, ending).await,
                _ => ending,
            }
        };
        let (ending, ()) = tokio::join!(stopped, calls.left());
        ending
    }
}

/// Stores the last frames of calls and the place. Calls that are still running are answered as
/// interrupted, unless they run again.
async fn answer_cut_off(
    version: &Version,
    cursor: &CursorName,
    mut saved: CommandCursor,
    mut frames: Vec<NewFrame>,
    again: bool,
) {
    let client = &version.shared().client;
    let cut_off = if again { BTreeMap::new() } else { saved.running.clone() };
    for (id, _) in cut_off {
        match client.get(Bound::Id(id)).await {
            Ok(Some(call)) => {
                let text = "the command was stopped before the call ended; call again";
                frames.push(error_frame(version, &call, "interrupted", text, None));
            }
            Ok(None) => {}
            // It stays noted as running.
            Err(_) => continue,
        }
        saved.running.remove(&id);
    }
    if !frames.is_empty() || !saved.running.is_empty() {
        let cursors = vec![saved.change(cursor)];
        let batch = AppendRequest { frames, cursors, ..AppendRequest::default() };
        if let Err(error) = client.append(&batch).await {
            // They are still noted as running: the next start answers or reruns them.
            tracing::warn!(processor = %version.key, %error, "calls could not be answered");
        }
    }
}
