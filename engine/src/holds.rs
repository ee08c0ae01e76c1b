//! Delays the unlinking of replaced files while a copy of the store is in progress.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::env::Env;

/// Number of holders, and the files waiting to be unlinked.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    holders: usize,
    waiting: Vec<PathBuf>,
}

/// While it exists, [`Env::retire`] unlinks nothing.
#[derive(Debug)]
#[must_use = "files are kept only as long as this is"]
pub(crate) struct Hold {
    env: Arc<Env>,
}

impl Env {
    /// Keeps files that are replaced from now on, until the hold is dropped.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.holds.state.lock().holders += 1;
        Hold { env: Arc::clone(self) }
    }

    /// Unlinks a file that the manifest no longer names, now or when the last hold is dropped. If a
    /// crash leaves it behind, the next open removes it.
    pub(crate) fn retire(&self, path: &Path) -> io::Result<()> {
        {
            let mut state = self.holds.state.lock();
            if state.holders > 0 {
                state.waiting.push(path.to_owned());
                return Ok(());
            }
        }
        self.files.remove(path)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let gone = {
            let mut state = self.env.holds.state.lock();
            state.holders -= 1;
            if state.holders > 0 { Vec::new() } else { std::mem::take(&mut state.waiting) }
        };
        for path in gone {
            // If it remains, the next open removes it.
            let _ = self.env.files.remove(&path);
        }
    }
}
