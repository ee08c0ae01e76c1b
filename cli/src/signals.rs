//! The signals that long-running subcommands handle, and what they request.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::again::is_another;
use crate::exit::Exit;

/// Time for an orderly end after a second signal.
const AT_ONCE: Duration = Duration::from_millis(500);

/// The request that a signal stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Stop; holds the signal's name.
    Stop(&'static str),
    /// Reload the files of tokens and certificates.
    Look,
}

/// The handled signals.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts handling the signals.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next request.
    pub(crate) async fn asked(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => Asked::Look,
        }
    }

    /// Resolves at the next stop signal; a reload signal stays queued for the next call of
    /// [`asked`](Self::asked).
    pub(crate) async fn stop_only(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Resolves at the next stop signal; a reload signal is ignored.
    pub(crate) async fn stop(&mut self) {
        while self.asked().await == Asked::Look {}
    }
}

/// Ends the process even if its main future is not polled: while it writes to a pipe that nothing
/// reads, no other part of it notices a signal. That happens at a second signal, or `time` after
/// the first unless only `closing` is left by then.
///
/// # Errors
/// Signals cannot be handled.
pub(crate) fn insist(
    heeds_interrupt: bool,
    time: Duration,
    closing: CancellationToken,
) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // On a different thread than the blocked one, which runs the main future.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv(), if heeds_interrupt => {}
        }
        let first = Instant::now();
        let again = async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if is_another(first) {
                    return;
                }
            }
        };
        let overdue = async {
            tokio::time::sleep(time).await;
            if closing.is_cancelled() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = again => tokio::time::sleep(AT_ONCE).await,
            () = overdue => {}
        }
        std::process::exit(Exit::Interrupted as i32);
    });
    Ok(())
}
