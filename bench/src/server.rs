//! A real `xs serve` in a child process.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};
use xs_engine::SyncPolicy;
use xs_protocol::{Address, Client, ClientOptions};

use crate::daemon::{Daemon, LOOK_AGAIN, PATIENCE};
use crate::process;

/// A running server.
#[derive(Debug)]
pub struct Server {
    daemon: Daemon,
    address: Address,
}

/// Returns the `xs` binary: the given one, or the one beside this binary.
///
/// # Errors
/// If it is missing.
pub fn binary(named: Option<&Path>) -> anyhow::Result<PathBuf> {
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
    /// Starts a server for the store in `dir/store`. Its output goes to `dir/log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        xs: &Path,
        dir: &Path,
        sync: SyncPolicy,
        modules: Option<&Path>,
    ) -> anyhow::Result<Self> {
        Self::start_at(xs, dir, sync, modules, Address::of_path(&dir.join("store")))
    }

    /// Like [`Self::start`], with a given address: the store's socket or a TCP port.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_at(
        xs: &Path,
        dir: &Path,
        sync: SyncPolicy,
        modules: Option<&Path>,
        address: Address,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(xs);
        command.arg("serve").arg(dir.join("store"));
        command.args(["--log-level", "warn", "--sync", &sync.to_string()]);
        if let Some(modules) = modules {
            command.arg("--modules").arg(modules);
        }
        if let Address::Tcp(socket) = address {
            command.arg("--listen").arg(socket.to_string());
        }
        Ok(Self { daemon: Daemon::start(command, dir.join("log"))?, address })
    }

    /// Connects to the server, and waits until it listens.
    ///
    /// # Errors
    /// If it does not listen within [`PATIENCE`] or ends.
    pub async fn connect(&mut self) -> anyhow::Result<Client> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.connect_now().await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > give_up => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = self.ended()? {
                bail!("xs serve ended with {status}:\n{}", self.said());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Connects to the server, which must already listen.
    ///
    /// # Errors
    /// If it does not listen.
    pub async fn connect_now(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.address, ClientOptions::default()).await?)
    }

    /// Returns only its process.
    #[must_use]
    pub fn into_daemon(self) -> Daemon {
        self.daemon
    }

    /// Returns the bytes of anonymous memory (without a file behind it) of its Hosts; 0 if there is
    /// none.
    #[must_use]
    pub fn host_bytes(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        let tasks = tasks.into_iter().flatten().flatten();
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<String> = children.collect();
        let pids = children.iter().flat_map(|text| text.split_whitespace());
        pids.filter_map(|pid| process::memory(pid, "RssAnon").ok()).sum()
    }
}

impl Deref for Server {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}
