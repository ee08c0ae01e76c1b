//! A directory for a store, the binary run in it, and a server that does not outlive its test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The longest anything in these tests may take: the machine may be slow or busy, and a process of
/// modules gives way to all others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// A directory with a store in it.
pub(crate) struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Writes a file, with the directories above it. A reader sees all of it or the previous
    /// content, even if this thread is held up.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let hidden = path.with_file_name(".unfinished");
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, &path).unwrap();
        path
    }

    /// The binary in this directory, without the caller's environment variables that affect it.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xs"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("XS_ADDR", self.store())
            .env("HOME", self.dir.path())
            .env("TZ", "UTC")
            .env_remove("V82JSC_NO_BC_CACHE")
            .env_remove("XS_TOKEN")
            .env_remove("XS_TLS_CA")
            .stdin(Stdio::null());
        command
    }

    /// A shell in this directory that runs a script.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).current_dir(self.dir.path()).env("HOME", self.dir.path());
        shell.env("TZ", "UTC").env_remove("V82JSC_NO_BC_CACHE").stdin(Stdio::null());
        shell
    }

    /// Runs the binary to its end.
    pub(crate) fn xs(&self, args: &[&str]) -> Run {
        self.xs_with(args, b"")
    }

    /// Runs the binary to its end with `input` on its standard input.
    pub(crate) fn xs_with(&self, args: &[&str], input: &[u8]) -> Run {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // The binary may end without reading all of it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Run::from(output)
    }

    /// Runs the binary and expects it to succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> Run {
        let run = self.xs(args);
        assert_eq!(run.code, 0, "xs {args:?}: {}", run.err);
        run
    }

    /// Starts a server and waits until it answers.
    pub(crate) fn serve(&self, args: &[&str]) -> Server {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.serve_to(args, log)
    }

    /// The same, with another destination for its log.
    pub(crate) fn serve_to(&self, args: &[&str], log: impl Into<Stdio>) -> Server {
        let store = self.store();
        let mut all = vec!["serve", store.to_str().unwrap()];
        all.extend(args);
        let child = self.command(&all).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let server = Server { child: Some(child) };
        let ping = self.xs(&["ping", "--wait", "4m"]);
        assert_eq!(ping.code, 0, "{}\n{}", ping.err, self.log());
        server
    }

    /// What the servers of this sandbox have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The frames of some topics.
    pub(crate) fn frames(&self, topics: &str) -> Vec<Value> {
        self.ok(&["cat", "--with-body", topics]).json()
    }

    /// Waits until the topics hold `count` frames and returns them.
    pub(crate) fn await_frames(&self, topics: &str, count: usize) -> Vec<Value> {
        let limit = count.to_string();
        let mut cat = self.command(&["cat", "--with-body", "-f", "--limit", &limit, topics]);
        let child = cat.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let run = Run::from(output_within(child, PATIENCE));
        let frames = run.json();
        assert_eq!(frames.len(), count, "{topics}: {}\n{}", run.err, self.log());
        frames
    }
}

/// A run of the binary that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// -1 if a signal ended it.
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Run {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }

    /// Standard output as JSON lines.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A server process.
pub(crate) struct Server {
    child: Option<Child>,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends SIGTERM, and waits for the end.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        signal(&child, Signal::TERM);
        wait_within(&mut child, PATIENCE)
    }

    /// Sends SIGKILL, and waits for the end.
    pub(crate) fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Its child processes.
    pub(crate) fn children(&self) -> Vec<u32> {
        let pid = self.pid();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let texts =
            tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
        let texts: Vec<String> = texts.collect();
        texts
            .iter()
            .flat_map(|text| text.split_whitespace())
            .map(|id| id.parse().unwrap())
            .collect()
    }

    /// Bytes of memory that no file backs.
    pub(crate) fn rss_anon(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl From<Child> for Server {
    fn from(child: Child) -> Self {
        Self { child: Some(child) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

pub(crate) fn signal_pid(pid: u32, signal: Signal) {
    let process = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(process, signal).unwrap();
    if signal == Signal::STOP {
        // Its threads continue until one of them gets time to notice.
        eventually(|| has_stopped(pid).then_some(()));
    }
}

fn has_stopped(pid: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.all(|thread| {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    })
}

/// Waits for a process; if it takes too long, kills it and fails the test.
pub(crate) fn wait_within(child: &mut Child, patience: Duration) -> ExitStatus {
    let ended = eventually_within(patience, || child.try_wait().unwrap());
    ended.unwrap_or_else(|| {
        child.kill().unwrap();
        panic!("process {} did not end within {patience:?}", child.id())
    })
}

pub(crate) fn output_within(child: Child, patience: Duration) -> Output {
    let pid = Pid::from_child(&child);
    let (ended, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    wait.recv_timeout(patience).unwrap_or_else(|_| {
        let _ = kill_process(pid, Signal::KILL);
        wait.recv().unwrap()
    })
}

/// Polls until there is a result, for as long as it is worth waiting.
pub(crate) fn eventually<T>(look: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, look).expect("it did not happen in time")
}

fn eventually_within<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let give_up = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= give_up {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_running(pid: u32) -> bool {
    // A zombie that was not waited for is not running.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Text with every frame id, hash and time replaced, so that outputs can be compared whole.
pub(crate) fn masked(text: &str) -> String {
    let is_id = |word: &str| {
        word.len() == 25 && word.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    };
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        out += if is_id(&word) { "ID" } else { &word };
        word.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
