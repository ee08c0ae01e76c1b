//! Sockets that the parent process opened and is already listening on (`LISTEN_FDS`, the protocol
//! of systemd's socket units). The same rules apply as to sockets a server opens itself: a Unix
//! socket only for its owner, TCP by address.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use parking_lot::Mutex;
use rustix::net::sockopt::socket_acceptconn;
use xs_protocol::Address;

use crate::exit::{Exit, ExitError};

/// Maximum number of inherited sockets.
const SOCKETS_MAX: usize = 64;

/// The sockets inherited at the start of the process.
static TAKEN: Mutex<Vec<Inherited>> = Mutex::new(Vec::new());

/// A listening socket.
#[derive(Debug)]
pub(super) enum Inherited {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, Address),
}

/// Takes the sockets meant for this process. Must be called while there is only one thread: it
/// removes the variables from the environment, so that child processes do not see them.
///
/// # Errors
/// A usage error names the descriptor that is not a listening socket.
pub(crate) fn take() -> anyhow::Result<()> {
    let variable = |name| std::env::var(name).ok();
    let (Some(count), Some(pid)) = (variable("LISTEN_FDS"), variable("LISTEN_PID")) else {
        return Ok(());
    };
    if pid.parse() != Ok(std::process::id()) {
        return Ok(());
    }
    let count = count.parse().ok().filter(|count| *count <= SOCKETS_MAX);
    let Some(count) = count else {
        let text = format!("LISTEN_FDS is not a number up to {SOCKETS_MAX}");
        return ExitError::fail(Exit::Usage, text);
    };
    let mut sockets = ListenFd::from_env();
    let taken = (0..count).map(|index| {
        one(&mut sockets, index).map_err(|text| {
            ExitError::new(Exit::Usage, format!("socket {} of LISTEN_FDS: {text}", index + 1))
        })
    });
    *TAKEN.lock() = taken.collect::<Result<_, _>>()?;
    Ok(())
}

/// The taken sockets; empty on a second call.
pub(super) fn all() -> Vec<Inherited> {
    std::mem::take(&mut TAKEN.lock())
}

fn one(sockets: &mut ListenFd, index: usize) -> Result<Inherited, String> {
    let failed = |error: std::io::Error| error.to_string();
    if let Ok(Some(listener)) = sockets.take_unix_listener(index) {
        check(&listener)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let Some(path) = address.as_pathname() else {
            return Err("a Unix socket without a path is open to every user".to_owned());
        };
        let path = path.to_owned();
        return Ok(Inherited::Unix(listener, path));
    }
    match sockets.take_tcp_listener(index) {
        Ok(Some(listener)) => {
            check(&listener)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let address = Address::Tcp(listener.local_addr().map_err(failed)?);
            Ok(Inherited::Tcp(listener, address))
        }
        _ => Err("neither a Unix stream socket nor TCP".to_owned()),
    }
}

/// A unit with `Accept=yes` passes a connection instead of a listener.
fn check(socket: impl AsFd) -> Result<(), String> {
    match socket_acceptconn(socket) {
        Ok(true) => Ok(()),
        _ => Err("not a listening socket; a systemd socket unit needs Accept=no".to_owned()),
    }
}

impl Inherited {
    /// The address it listens on.
    pub(super) fn address(&self) -> Address {
        match self {
            Self::Unix(_, path) => Address::Unix(path.clone()),
            Self::Tcp(_, address) => address.clone(),
        }
    }

    /// Whether it is the socket at a path.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let file = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        matches!(self, Self::Unix(_, own) if file(own).is_some_and(|own| file(path) == Some(own)))
    }

    /// Refuses a Unix socket that users other than the owner of this process can open.
    pub(super) fn check_owner(&self) -> Result<(), String> {
        let Self::Unix(_, path) = self else { return Ok(()) };
        let file = std::fs::symlink_metadata(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let own = rustix::process::geteuid().as_raw();
        if file.mode() & 0o077 != 0 || file.uid() != own {
            return Err(format!(
                "{}: clients of this socket are admins, so it must have mode 0600 and belong to \
                 the server's user (SocketMode= and SocketUser= of the unit)",
                path.display()
            ));
        }
        Ok(())
    }
}
