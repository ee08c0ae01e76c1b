//! The signals that long-running subcommands heed, and what they ask for.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::again::is_another;
use crate::exit::Exit;

/// Time to end in order after a second signal.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To end: the signal's name.
    Stop(&'static str),
    /// To look at the files of tokens and certificates.
    Look,
}

/// The signals that are heeded.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Heeds them from now on.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    pub(crate) async fn asked(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => Asked::Look,
        }
    }

    /// Ends with the next one that asks for the end; one that asks to look stays for the next call
    /// of [`asked`](Self::asked).
    pub(crate) async fn stop_only(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Ends with the next one that asks for the end.
    pub(crate) async fn stop(&mut self) {
        while self.asked().await == Asked::Look {}
    }
}

/// Ends the process although what it does is not polled: where it writes into a pipe that nobody
/// reads, nothing else of it notices a signal. That is `time` after the first, unless by then
/// nothing but `closing` is left, or with a second one.
///
/// # Errors
/// Signals cannot be heeded.
pub(crate) fn insist(
    heeds_interrupt: bool,
    time: Duration,
    closing: CancellationToken,
) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // On another thread than the one that is blocked, which is that of the main future.
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
