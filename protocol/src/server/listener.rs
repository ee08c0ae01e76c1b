//! Listening sockets: Unix ones that only their owner can open, loopback TCP, and TLS.

use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::address::Address;
use crate::socket::SocketPath;
use crate::tcp;
use crate::tls::ServerTls;

/// Connections that the system queues for a TCP listener until they are accepted, if its limit
/// allows that many.
const BACKLOG: u32 = 4096;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    /// With its file, unless that was made by someone else.
    Unix {
        listener: UnixListener,
        _file: Option<SocketFile>,
    },
    Tcp(TcpListener),
    Tls(TcpListener, ServerTls),
}

/// An accepted connection.
pub(super) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, IpAddr),
    /// Its handshake is still to come.
    Tls(TcpStream, IpAddr, TlsAcceptor),
}

impl Listener {
    /// Binds a Unix socket (mode 0600; a stale file is replaced) or a loopback TCP address.
    ///
    /// # Errors
    /// An error of the system: `InvalidInput` for an address beyond loopback, `AddrInUse` when
    /// another process listens there.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        address
            .check_local()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        match address {
            Address::Unix(path) => {
                let (listener, _file) = bind_unix(path).await?;
                let socket = Socket::Unix { listener, _file: Some(_file) };
                Ok(Self { address: address.clone(), socket })
            }
            Address::Tcp(socket) => {
                let listener = bind_tcp(*socket)?;
                let address = Address::Tcp(listener.local_addr()?);
                Ok(Self { address, socket: Socket::Tcp(listener) })
            }
            Address::Tls { .. } => {
                let text = format!("{address} needs a certificate");
                Err(io::Error::new(io::ErrorKind::InvalidInput, text))
            }
        }
    }

    /// Binds a TCP address, of any network, whose connections speak TLS.
    ///
    /// # Errors
    /// An error of the system: `InvalidInput` for an address that is no IP address and port.
    pub async fn bind_tls(address: &Address, tls: ServerTls) -> io::Result<Self> {
        let socket = address.to_listen().ok_or_else(|| {
            let text = format!("{address} is no IP address and port to listen on");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let listener = bind_tcp(socket)?;
        let bound = listener.local_addr()?;
        let host = bound.ip().to_string();
        let address = Address::Tls { host, port: bound.port() };
        Ok(Self { address, socket: Socket::Tls(listener, tls) })
    }

    /// Uses a Unix socket that is already listening, and keeps its file: its creator decides who
    /// can open it.
    ///
    /// # Errors
    /// When it cannot be registered with the runtime.
    pub fn given_unix(listener: StdUnixListener, path: &Path) -> io::Result<Self> {
        let listener = UnixListener::from_std(listener)?;
        let address = Address::Unix(path.to_owned());
        Ok(Self { address, socket: Socket::Unix { listener, _file: None } })
    }

    /// Uses a TCP socket that is already listening. With `tls` its connections use TLS; without, it
    /// must be a loopback address.
    ///
    /// # Errors
    /// When it cannot be registered with the runtime; `InvalidInput` for an address beyond loopback
    /// without `tls`.
    pub fn given_tcp(listener: StdTcpListener, tls: Option<ServerTls>) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let bound = listener.local_addr()?;
        let Some(tls) = tls else {
            let address = Address::Tcp(bound);
            address
                .check_local()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            return Ok(Self { address, socket: Socket::Tcp(listener) });
        };
        let address = Address::Tls { host: bound.ip().to_string(), port: bound.port() };
        Ok(Self { address, socket: Socket::Tls(listener, tls) })
    }

    /// The certificate of a listener with TLS.
    pub(super) const fn tls(&self) -> Option<&ServerTls> {
        match &self.socket {
            Socket::Tls(_, tls) => Some(tls),
            _ => None,
        }
    }

    /// The bound address, with the chosen port.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Unix { listener, .. } => {
                listener.accept().await.map(|(stream, _)| Accepted::Unix(stream))
            }
            Socket::Tcp(listener) => {
                let (stream, peer) = accept_tcp(listener).await?;
                Ok(Accepted::Tcp(stream, peer))
            }
            Socket::Tls(listener, tls) => {
                let (stream, peer) = accept_tcp(listener).await?;
                Ok(Accepted::Tls(stream, peer, TlsAcceptor::from(tls.config())))
            }
        }
    }
}

/// Like the library's own function, which queues only 128 connections: further ones are dropped,
/// and their clients retry a second later.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server can reuse the port despite its predecessor's last connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, IpAddr)> {
    let (stream, peer) = listener.accept().await?;
    tcp::set_up(&stream)?;
    Ok((stream, peer.ip()))
}

/// Binds under a temporary name, restricts access, and only then renames the socket: at no moment
/// can anyone else open it.
async fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if UnixStream::connect(SocketPath::of(path)?.as_path()).await.is_ok() {
        let text = format!("a server listens on {} already", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let unfinished = path.with_file_name(name);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(SocketPath::of(&unfinished)?.as_path())?;
    let put = || {
        fs::set_permissions(&unfinished, Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&unfinished)?.ino();
        fs::rename(&unfinished, path)?;
        Ok(SocketFile { path: path.to_owned(), inode })
    };
    match put() {
        Ok(file) => Ok((listener, file)),
        Err(error) => {
            // Best-effort cleanup; the first error is the one that matters.
            let _ = fs::remove_file(&unfinished);
            Err(error)
        }
    }
}

/// The file of a Unix socket, removed with its listener unless another one has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
