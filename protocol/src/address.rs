//! The address of a server, as people write it. Resolves no names beyond what a socket needs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;

/// File name of a store's socket inside its directory.
pub const SOCKET_NAME: &str = "xs.sock";

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
    /// TLS over TCP.
    Tls {
        /// A name or an IP address; the server's certificate must be valid for it.
        host: String,
        /// The port.
        port: u16,
    },
}

/// An error in the text of an address.
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
    /// Another scheme than `xss://`.
    #[error(
        "{0:?} has a scheme that xs does not speak; give a store directory, :port, host:port, or xss://host:port for TLS"
    )]
    Scheme(String),
    /// No host and port after `xss://`.
    #[error("{0:?} is not xss://host:port")]
    Tls(String),
    /// An address that anyone on the network could reach.
    #[error(
        "{0} is not a loopback address: beyond this machine xs speaks with TLS and tokens only"
    )]
    NotLoopback(SocketAddr),
}

impl Address {
    /// Parses a store directory (its `xs.sock`), the path of a socket, `:port`, `host:port`, or
    /// `xss://host:port` for TLS. Text that contains `/`, or begins with `.` or `~`, is a path;
    /// `~/` is the home directory. With port 0 a listener gets any free port.
    ///
    /// # Errors
    /// [`AddressError`] describes what is wrong.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if let Some(rest) = text.strip_prefix("xss://") {
            return parse_tls(rest).ok_or_else(|| AddressError::Tls(text.to_owned()));
        }
        if is_url(text) {
            return Err(AddressError::Scheme(text.to_owned()));
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

    /// The address of a path: a store directory means its socket; anything else is a socket.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        let is_socket = path.extension().is_some_and(|ext| ext == "sock") && !path.is_dir();
        Self::Unix(if is_socket { path.to_owned() } else { path.join(SOCKET_NAME) })
    }

    /// The socket address a server can listen on: an IP address, or `localhost`.
    #[must_use]
    pub fn to_listen(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(socket) => Some(*socket),
            Self::Tls { host, port } => {
                let ip = match host.as_str() {
                    "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    host => host.parse().ok()?,
                };
                Some(SocketAddr::new(ip, *port))
            }
        }
    }

    /// Refuses plain TCP that is reachable from other machines.
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

/// Whether text begins with `word://`, which no sensible path does.
fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+')
    })
}

fn parse_tls(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().ok()?.to_string(),
        None => host.to_owned(),
    };
    ServerName::try_from(host.as_str()).ok()?;
    Some(Address::Tls { host, port })
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
            Self::Tls { host, port } if host.contains(':') => write!(f, "xss://[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "xss://{host}:{port}"),
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
        for (text, host) in
            [("xss://a.b:1", "a.b"), ("xss://10.0.0.1:1", "10.0.0.1"), ("xss://[::1]:1", "::1")]
        {
            let address = Address::parse(text).unwrap();
            assert_eq!(address, Address::Tls { host: host.to_owned(), port: 1 });
            assert_eq!(address.to_string(), text);
        }
        let tls = ["xss://", "xss://a", "xss://:1", "xss://a:b", "xss://a/b:1", "xss://[a]:1"];
        for bad in ["", ":", ":65536", ":-1", "host:1", "a:b"].into_iter().chain(tls) {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert!(Address::parse("10.0.0.1:1").unwrap().check_local().is_err());
        assert!(Address::parse("[::1]:1").unwrap().check_local().is_ok());
    }
}
