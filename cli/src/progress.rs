//! Long-running work on a store's files: on its own thread, stopped by Ctrl-C, with a progress bar
//! on a terminal.

use std::io::IsTerminal as _;
use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use xs_engine::{MaintainError, Progress};

use crate::exit::{Exit, ExitError};

/// Called by the work as it proceeds; returning `Break` stops it.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>;

/// Runs `work` to its end or until the user stops it.
///
/// # Errors
/// The error of the work, or [`Exit::Interrupted`] when it was stopped.
pub(crate) async fn watched<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce(Watch<'_>) -> Result<T, MaintainError> + Send + 'static,
) -> anyhow::Result<T> {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let work = tokio::task::spawn_blocking(move || {
        let bar = bar(what);
        let done = work(&mut |progress| {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes);
            if stopped.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.finish_and_clear();
        done
    });
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::pin!(work);
    let done = tokio::select! {
        done = &mut work => done?,
        _ = interrupt.recv() => { stop.cancel(); work.await? }
        _ = terminate.recv() => { stop.cancel(); work.await? }
    };
    match done {
        Err(MaintainError::Stopped) => ExitError::fail(Exit::Interrupted, "stopped"),
        done => Ok(done?),
    }
}

/// A progress bar for bytes counted by the caller.
pub(crate) fn bytes(what: &'static str, total: u64) -> ProgressBar {
    let bar = bar(what);
    bar.set_length(total);
    bar
}

/// A progress bar for a number of items.
pub(crate) fn count(what: &'static str, total: u64) -> ProgressBar {
    let bar = styled(what, "{msg} {wide_bar} {human_pos} of {human_len}, {eta} left");
    bar.set_length(total);
    bar
}

/// A spinner for work elsewhere that reports no progress.
pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    let bar = styled(what, "{spinner} {msg}, {elapsed}");
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn bar(what: &'static str) -> ProgressBar {
    styled(what, "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {eta} left")
}

fn styled(what: &'static str, form: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(form);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_message(what).with_style(style)
}
