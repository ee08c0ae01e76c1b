//! Sockets that accept connections: Unix ones that only their owner can open, and loopback TCP.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::address::Address;
use crate::socket::SocketPath;

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp(TcpListener),
}

/// A connection that came in.
pub(super) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    /// Binds a Unix socket (mode 0600; a file nobody listens on is replaced) or a loopback TCP
    /// address.
    ///
    /// # Errors
    /// An error of the system: `InvalidInput` for an address beyond loopback, `AddrInUse` when
    /// somebody listens there.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        address
            .check_local()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        match address {
            Address::Unix(path) => {
                let (listener, _file) = bind_unix(path).await?;
                let socket = Socket::Unix { listener, _file };
                Ok(Self { address: address.clone(), socket })
            }
            Address::Tcp(socket) => {
                let listener = TcpListener::bind(socket).await?;
                let address = Address::Tcp(listener.local_addr()?);
                Ok(Self { address, socket: Socket::Tcp(listener) })
            }
        }
    }

    /// Where it listens, with the port that was chosen.
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
                let (stream, _) = listener.accept().await?;
                // Replies are written whole: there is nothing to wait for.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

/// Binds under another name, closes the socket to others, and only then puts it in its place: at no
/// moment can anyone else open it.
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
            // The bind is undone as far as it goes; the first error is the one that matters.
            let _ = fs::remove_file(&unfinished);
            Err(error)
        }
    }
}

/// The file of a Unix socket, removed with its listener unless another has taken its place.
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
