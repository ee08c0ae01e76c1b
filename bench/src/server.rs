//! A real `xs serve` in a process of its own, which does not outlive the bench.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use xs_engine::SyncPolicy;
use xs_protocol::{Address, Client, ClientOptions};

/// The longest a server may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    store: PathBuf,
    log: PathBuf,
}

/// The `xs` binary: the one named, or the one built beside this one.
pub(crate) fn binary(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().context("find this binary")?.with_file_name("xs"),
    };
    if !path.is_file() {
        bail!("{} is missing: cargo build --release -p xs, or name one with --xs", path.display());
    }
    Ok(path)
}

impl Server {
    /// Starts a server for the store in `dir/store`. What it says goes to `dir/log`.
    pub(crate) fn start(
        xs: &Path,
        dir: &Path,
        sync: SyncPolicy,
        modules: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let (store, log) = (dir.join("store"), dir.join("log"));
        let mut command = Command::new(xs);
        command.arg("serve").arg(&store).args(["--log-level", "warn", "--sync", &sync.to_string()]);
        if let Some(modules) = modules {
            command.arg("--modules").arg(modules);
        }
        let said = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        let child = command.spawn().with_context(|| format!("start {}", xs.display()))?;
        Ok(Self { child, store, log })
    }

    /// Connects to the server once it listens.
    pub(crate) async fn connect(&mut self) -> anyhow::Result<Client> {
        let address = Address::of_path(&self.store);
        let give_up = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&address, ClientOptions::default()).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > give_up => return Err(error.into()),
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("xs serve ended with {status}:\n{}", self.said());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is a child that nobody has waited for: the id is still its own.
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
