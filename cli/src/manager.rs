//! Notifies a service manager of the server's state (`NOTIFY_SOCKET`, the protocol of systemd's
//! `Type=notify`): ready, stopping and, if requested, a watchdog ping from the main loop. Gets no
//! answer, and does not wait for a manager that cannot be reached.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// The shortest interval between two watchdog pings.
const BEAT_MIN: Duration = Duration::from_millis(10);

/// The service manager, if there is one.
pub(crate) struct Manager {
    to: Option<(UnixDatagram, SocketAddr)>,
    beats: Option<Interval>,
}

impl Manager {
    /// Finds the manager through the environment.
    pub(crate) fn find() -> Self {
        let to = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let to = to.and_then(|name| match socket(&name) {
            Ok(to) => Some(to),
            Err(error) => {
                let socket = name.display();
                tracing::warn!(%error, %socket, "cannot notify the service manager");
                None
            }
        });
        let beats = to.as_ref().and_then(|_| watchdog()).map(|every| {
            let mut beats = interval(every);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beats
        });
        Self { to, beats }
    }

    /// Sends the server's state: lines of `NAME=value`.
    pub(crate) fn tell(&self, state: &str) {
        let Some((socket, to)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), to) {
            tracing::warn!(%error, state, "cannot notify the service manager");
        }
    }

    /// Resolves when a watchdog ping is due; never when none is requested.
    pub(crate) async fn beat(&mut self) {
        match &mut self.beats {
            Some(beats) => drop(beats.tick().await),
            None => std::future::pending().await,
        }
    }
}

/// A socket, and the manager's address: a path, or `@` and an abstract name.
fn socket(name: &OsString) -> io::Result<(UnixDatagram, SocketAddr)> {
    let to = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor @NAME")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, to))
}

/// Interval of watchdog pings: half of the manager's timeout.
fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let within = number("WATCHDOG_USEC").filter(|within| for_us && *within > 0)?;
    Some(Duration::from_micros(within / 2).max(BEAT_MIN))
}
