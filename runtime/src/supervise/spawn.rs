//! Child processes that die with this one. The kernel kills a child when the *thread* that created
//! it ends, so one thread creates them all, waits for them, and lives as long as the supervisor.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::IgnoredAny;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::apart::Plan;
use super::{CULPRITS_VARIABLE, SuperviseOptions};
use crate::supervise::{crash, session};

/// Environment variables kept for a process that gets only some.
const KEPT_VARIABLES: [&str; 6] =
    ["LANG", "PATH", "RUST_BACKTRACE", "SSL_CERT_DIR", "SSL_CERT_FILE", "TZ"];
/// Maximum number of threads that one crash may name.
const CULPRITS_MAX: usize = 16;
/// Maximum bytes of a line that a Host writes to standard error; a longer one is split.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Time to forward the last lines of a Host.
const LAST_WORDS: Duration = Duration::from_secs(1);

type Spawned = io::Result<(OwnedFd, ChildStdout, oneshot::Receiver<io::Result<ExitStatus>>)>;

struct Order {
    command: Command,
    answer: oneshot::Sender<Spawned>,
}

/// The thread that creates children.
pub(super) struct Spawner {
    orders: mpsc::Sender<Order>,
}

/// A child process.
pub(super) struct Child {
    process: OwnedFd,
    exit: oneshot::Receiver<io::Result<ExitStatus>>,
    status: Option<ExitStatus>,
    report: JoinHandle<Vec<String>>,
}

impl Spawner {
    /// Starts the thread; it ends when the last spawner is dropped and its child has ended.
    pub(super) fn start() -> Self {
        let (orders, received) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new().name("xs-spawn".to_owned());
        let spawned = thread.spawn(move || {
            for Order { mut command, answer } in received {
                make(&mut command, answer);
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start the thread that starts the Host");
        }
        Self { orders }
    }

    /// Starts a Host whose standard input is `socket` and whose standard output is its report.
    pub(super) async fn spawn(
        &self,
        options: &SuperviseOptions,
        plan: &Plan,
        culprits: &[String],
        socket: UnixStream,
    ) -> io::Result<Child> {
        let mut command = Command::new(&options.program);
        if let Some(names) = &plan.env {
            let names = names.iter().map(String::as_str).chain(KEPT_VARIABLES);
            let kept = names.filter_map(|name| Some((name, std::env::var_os(name)?)));
            let kept: Vec<_> = kept.collect();
            command.env_clear().envs(kept);
        }
        for name in &options.hidden {
            command.env_remove(name);
        }
        command
            .args(&options.args)
            .args(&plan.words)
            .env(CULPRITS_VARIABLE, culprits.join(","))
            .env(crate::isolate::NO_BYTECODE_CACHE, "1")
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(Stdio::piped());
        if options.is_json_log {
            command.stderr(Stdio::piped());
        }
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts the Host is gone");
        self.orders.send(Order { command, answer }).map_err(|_| gone())?;
        let (process, stdout, exit) = answered.await.map_err(|_| gone())??;
        let report = tokio::task::spawn_blocking(move || read_report(stdout));
        Ok(Child { process, exit, status: None, report })
    }
}

/// Creates one child and waits for its end.
fn make(command: &mut Command, answer: oneshot::Sender<Spawned>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return drop(answer.send(Err(error))),
    };
    let stdout = child.stdout.take();
    let last_words = child.stderr.take().map(listen);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = pid
        .ok_or_else(|| io::Error::other("the child has no process id"))
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
    let (exited, exit) = oneshot::channel();
    let parts = process.and_then(|process| {
        let stdout = stdout.ok_or_else(|| io::Error::other("the child has no report"))?;
        Ok((process, stdout, exit))
    });
    let failed = parts.is_err();
    if answer.send(parts).is_err() || failed {
        // Nobody supervises this child.
        let _ = child.kill();
    }
    if let Some(pid) = pid {
        session::end_with(pid);
    }
    let ended = child.wait();
    if let Some(last_words) = last_words {
        // A grandchild could hold the pipe open, so the wait is bounded.
        let _ = last_words.recv_timeout(LAST_WORDS);
    }
    drop(exited.send(ended));
}

/// Forwards a Host's standard error on a thread; the returned channel closes after the last line.
fn listen(stderr: ChildStderr) -> mpsc::Receiver<()> {
    let (done, last_words) = mpsc::channel();
    let thread = std::thread::Builder::new().name("xs-host-log".to_owned());
    let spawned = thread.spawn(move || {
        pass_on(stderr);
        drop(done);
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "the log of the Host is lost");
    }
    last_words
}

/// Forwards a Host's standard error: lines of its log unchanged, other text as lines of this
/// process's log.
fn pass_on(stderr: ChildStderr) {
    let mut from = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line), Ok(1..)) {
        let text = line.trim_ascii_end();
        if serde_json::from_slice::<IgnoredAny>(text).is_ok() {
            // Standard error may have no reader.
            let _ = io::stderr().lock().write_all(&[text, b"\n"].concat());
        } else if !text.is_empty() {
            tracing::warn!("{}", String::from_utf8_lossy(text));
        }
        line.clear();
    }
}

/// The threads a Host reported as crashed. Reads its whole output, so that it never blocks.
fn read_report(stdout: ChildStdout) -> Vec<String> {
    let mut culprits = Vec::new();
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        // The report may follow other text without a newline.
        let report = line.find(crash::CRASHED).and_then(|at| crash::thread_of(&line[at..]));
        if let (Some(thread), true) = (report, culprits.len() < CULPRITS_MAX) {
            culprits.push(thread.to_owned());
        }
    }
    culprits
}

impl Child {
    /// Waits for its end and returns how it ended, for people. Cancel-safe.
    pub(super) async fn exited(&mut self) -> String {
        match (&mut self.exit).await {
            Ok(Ok(status)) => {
                self.status = Some(status);
                match status.signal() {
                    Some(signal) => format!("killed by signal {signal}"),
                    None => status.to_string(),
                }
            }
            Ok(Err(error)) => format!("cannot be waited for: {error}"),
            Err(_) => "lost".to_owned(),
        }
    }

    /// Its exit code, if it exited.
    pub(super) fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// The threads it crashed on; to be called after its end.
    pub(super) async fn culprits(&mut self) -> Vec<String> {
        // A grandchild could hold the pipe open; it has nothing to report.
        let report = tokio::time::timeout(Duration::from_secs(1), &mut self.report).await;
        report.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Asks it to end, and kills it when it does not within `grace`.
    pub(super) async fn stop(mut self, grace: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(grace, self.exited()).await.is_err() {
            tracing::error!("the Host does not stop; killing it");
            self.signal(Signal::KILL);
            self.exited().await;
        }
    }

    fn signal(&self, signal: Signal) {
        // A process that has ended needs no signal.
        let _ = pidfd_send_signal(self.process.as_fd(), signal);
    }
}
