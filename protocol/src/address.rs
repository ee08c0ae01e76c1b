//! Where a server listens, as people write it. Resolves no names beyond what a socket needs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// File name of a store's socket inside its directory.
pub const SOCKET_NAME: &str = "xs.sock";

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Nothing was given.
    #[error("the address is empty; give a store directory, a socket, :port or host:port")]
    Empty,
    /// The port is not a number up to 65535.
    #[error("{0:?} has no port from 0 to 65535")]
    Port(String),
    /// The host is neither an IP address nor `localhost`.
    #[error("{0:?} is not an IP address or localhost")]
    Host(String),
    /// TLS is not offered.
    #[error("{0:?}: TLS is not supported; use a Unix socket, or ssh -L to reach another machine")]
    Tls(String),
    /// An address that anyone on the network could reach.
    #[error("{0} is not a loopback address: it needs TLS and tokens, which are not supported")]
    NotLoopback(SocketAddr),
}

impl Address {
    /// Reads a store directory (its `xs.sock`), the path of a socket, `:port` or `host:port`. Text
    /// with `/`, or that begins with `.` or `~`, is a path; `~/` is the home directory. Port 0 lets
    /// a listener choose.
    ///
    /// # Errors
    /// [`AddressError`] says what is missing.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.starts_with("xss://") {
            return Err(AddressError::Tls(text.to_owned()));
        }
        if text.contains('/') || text.starts_with(['.', '~']) || !text.contains(':') {
            return Ok(Self::of_path(&expand_home(text)));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port = port.parse::<u16>().map_err(|_| AddressError::Port(text.to_owned()))?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let ip = match host {
            "" | "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().map_err(|_| AddressError::Host(text.to_owned()))?,
        };
        Ok(Self::Tcp(SocketAddr::new(ip, port)))
    }

    /// A store directory means its socket; anything else is a socket.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        let is_socket = path.extension().is_some_and(|ext| ext == "sock") && !path.is_dir();
        Self::Unix(if is_socket { path.to_owned() } else { path.join(SOCKET_NAME) })
    }

    /// Refuses what would let others than this machine's users in.
    ///
    /// # Errors
    /// [`AddressError::NotLoopback`].
    pub fn check_local(&self) -> Result<(), AddressError> {
        match self {
            Self::Tcp(socket) if !socket.ip().is_loopback() => {
                Err(AddressError::NotLoopback(*socket))
            }
            _ => Ok(()),
        }
    }
}

fn expand_home(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(text),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(socket) => write!(f, "{socket}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let unix = |path: &str| Address::Unix(PathBuf::from(path));
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        let cases = [
            ("./store", unix("./store/xs.sock")),
            ("store", unix("store/xs.sock")),
            ("/run/a.sock", unix("/run/a.sock")),
            ("./a:1/b", unix("./a:1/b/xs.sock")),
            (":4000", tcp("127.0.0.1:4000")),
            ("localhost:4000", tcp("127.0.0.1:4000")),
            ("[::1]:4000", tcp("[::1]:4000")),
            ("10.0.0.1:65535", tcp("10.0.0.1:65535")),
        ];
        for (text, expected) in cases {
            assert_eq!(Address::parse(text).unwrap(), expected, "{text}");
        }
        for bad in ["", ":", ":65536", ":-1", "host:1", "xss://a:1", "a:b"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert!(Address::parse("10.0.0.1:1").unwrap().check_local().is_err());
        assert!(Address::parse("[::1]:1").unwrap().check_local().is_ok());
    }
}
