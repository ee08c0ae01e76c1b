//! The lock that keeps a second process out of a store. The kernel releases it when its holder
//! exits, so there are no stale locks; the text in the file only serves the error message.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use super::owner;

/// Bytes of the text that are read back.
const TEXT_MAX: u64 = 128;

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub(crate) struct StoreLock {
    file: File,
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child forked by another thread that has not reached its
        // exec shares the open file, and would hold the lock until then.
        let _ = self.file.unlock();
    }
}

/// Why a lock was not taken.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another process holds it: its process id and since when, in ms since 1970, if recorded.
    Held { pid: Option<u32>, since_ms: Option<u64> },
    /// The file cannot be opened or written.
    Io(io::Error),
}

impl StoreLock {
    /// Takes the lock without waiting.
    pub(crate) fn take(path: &Path, now_ms: u64) -> Result<Self, LockError> {
        let file = owner::open_or_make(path, &owner::options());
        let mut file = file.map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(&file)),
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        let text = format!("{} {now_ms}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.rewind());
        // A full disk must not keep a store from being opened: the text is optional.
        match written.and_then(|()| file.write_all(text.as_bytes())) {
            Err(error) if !super::is_full(&error) => Err(LockError::Io(error)),
            _ => Ok(Self { file }),
        }
    }
}

fn held(file: &File) -> LockError {
    let mut text = String::new();
    // The holder may be writing it right now.
    let _ = file.take(TEXT_MAX).read_to_string(&mut text);
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok());
    let since_ms = words.next().and_then(|word| word.parse().ok());
    LockError::Held { pid, since_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let lock = StoreLock::take(&path, 1234).unwrap();
        let pid = std::process::id();
        assert!(matches!(
            StoreLock::take(&path, 5),
            Err(LockError::Held { pid: Some(p), since_ms: Some(1234) }) if p == pid
        ));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(
            StoreLock::take(&path, 5),
            Err(LockError::Held { pid: None, since_ms: None })
        ));
        drop(lock);
        assert!(StoreLock::take(&path, 6).is_ok());
    }
}
