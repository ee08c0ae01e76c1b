//! An I/O error that can be kept and compared: a store that no longer takes writes returns the
//! reason to every caller.

use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;

use crate::error::Shortage;

/// An I/O error, with the operating system's number if it has one, so that a caller can tell a
/// failing disk from a missing permission without parsing the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoError {
    kind: io::ErrorKind,
    os: Option<i32>,
    text: Arc<str>,
}

impl IoError {
    /// An error that the operating system did not report.
    pub(crate) fn other(text: impl Display) -> Self {
        Self { kind: io::ErrorKind::Other, os: None, text: text.to_string().into() }
    }

    /// The same error, with a text that says more about what failed.
    pub(crate) fn described(mut self, text: impl Display) -> Self {
        self.text = text.to_string().into();
        self
    }

    /// Returns the kind of the error, as [`io::Error::kind`].
    #[must_use]
    pub const fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    /// Returns the operating system's number (`errno`), if the error came from there, as
    /// [`io::Error::raw_os_error`].
    #[must_use]
    pub const fn raw_os_error(&self) -> Option<i32> {
        self.os
    }
}

impl Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for IoError {}

impl From<&io::Error> for IoError {
    fn from(error: &io::Error) -> Self {
        Self { kind: error.kind(), os: error.raw_os_error(), text: error.to_string().into() }
    }
}

impl From<io::Error> for IoError {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

impl From<Shortage> for IoError {
    fn from(shortage: Shortage) -> Self {
        Self::from(io::Error::from(shortage)).described(shortage)
    }
}

impl From<IoError> for io::Error {
    fn from(error: IoError) -> Self {
        Self::new(error.kind, error)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn it_keeps_the_number_and_the_text() {
        let error = IoError::from(io::Error::from(Errno::IO));
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
        assert_eq!(error.to_string(), io::Error::from(Errno::IO).to_string());
        let more = error.clone().described("writing blobs failed");
        assert_eq!((more.kind(), more.raw_os_error()), (error.kind(), error.raw_os_error()));
        assert_ne!(more, error);
        let back = io::Error::from(more);
        assert_eq!(back.to_string(), "writing blobs failed");
        let full = IoError::from(Shortage::Space);
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(full.to_string(), Shortage::Space.to_string());
    }
}
