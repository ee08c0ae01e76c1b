//! Paths of Unix sockets. The system accepts only short ones; a socket in a deep directory is
//! reached through an open handle of its directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// Maximum bytes of the path in a socket address.
const PATH_BYTES_MAX: usize = 107;

/// The path of a socket in a form that the system accepts.
pub(crate) struct SocketPath {
    path: PathBuf,
    /// Keeps a path through it valid.
    _dir: Option<File>,
}

impl SocketPath {
    /// The path as it is or, when it is too long, a path through its directory.
    ///
    /// # Errors
    /// Any error from opening the directory.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Self { path: path.to_owned(), _dir: None });
        };
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self { path: path.to_owned(), _dir: None });
        }
        let dir = File::open(dir)?;
        let path = through(&dir, name);
        Ok(Self { path, _dir: Some(dir) })
    }

    /// The path, valid while `self` lives.
    pub(crate) fn as_path(&self) -> &Path {
        &self.path
    }
}

fn through(dir: &File, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}
