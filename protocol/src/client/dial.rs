//! Connects to an address and yields a stream; over TLS it also verifies the server.

use std::io;

use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ClientOptions;
use crate::address::Address;
use crate::error::ClientError;
use crate::socket::SocketPath;
use crate::{tcp, tls};

/// A stream to a server.
pub(super) enum Dialled {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects, and over TLS verifies the server. Refuses, before anything is sent, to send a token
/// that could be read on the way.
pub(super) async fn dial(
    address: &Address,
    options: &ClientOptions,
) -> Result<Dialled, ClientError> {
    let failed = |error: io::Error| failed(address, &error);
    let untrusted =
        |reason: String| ClientError::Untrusted { address: address.to_string(), reason };
    if options.token.is_some() && address.check_local().is_err() {
        let text = "a token is not sent to another machine without TLS: use xss://host:port";
        return Err(untrusted(text.to_owned()));
    }
    match address {
        Address::Unix(path) => {
            let path = SocketPath::of(path).map_err(failed)?;
            let stream = UnixStream::connect(path.as_path()).await.map_err(failed)?;
            Ok(Dialled::Unix(stream))
        }
        Address::Tcp(socket) => {
            let stream = TcpStream::connect(socket).await.map_err(failed)?;
            tcp::set_up(&stream).map_err(failed)?;
            Ok(Dialled::Tcp(stream))
        }
        Address::Tls { host, port } => {
            let name = ServerName::try_from(host.clone());
            let name = name.map_err(|error| untrusted(error.to_string()))?;
            let Some(tls) = &options.tls else {
                return Err(ClientError::NoCa { address: address.to_string() });
            };
            let connector = TlsConnector::from(tls.config());
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
            tcp::set_up(&stream).map_err(failed)?;
            let stream = connector.connect(name, stream).await;
            let stream = stream.map_err(|error| match tls::untrusted(&error) {
                Some(reason) => untrusted(reason),
                None => failed(error),
            })?;
            Ok(Dialled::Tls(Box::new(stream)))
        }
    }
}

/// The error for a connect timeout.
pub(super) fn late(address: &Address) -> ClientError {
    failed(address, &io::ErrorKind::TimedOut.into())
}

fn failed(address: &Address, error: &io::Error) -> ClientError {
    ClientError::Connect {
        address: address.to_string(),
        kind: error.kind(),
        reason: error.to_string(),
    }
}
