//! A server in a child process, which is stopped when the value is dropped.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// Maximum time for a server to answer or to end.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two checks of a server.
pub const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A running server.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a command; its output goes to a file.
    ///
    /// # Errors
    /// If the file cannot be created or the command cannot be started.
    pub fn start(mut command: Command, log: PathBuf) -> anyhow::Result<Self> {
        let said = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        Ok(Self { child, log })
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its output so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns its exit status, or nothing while it runs.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills the process like a crash would, and waits until it has ended.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // The child was not yet waited for, so its process id cannot belong to another process.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(LOOK_AGAIN),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
