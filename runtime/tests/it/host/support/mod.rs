//! A Host with a directory of modules on an in-memory store, and ways to wait for frames in the
//! log.

pub(crate) mod memory;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xs_engine::{
    CursorChange, CursorName, CursorValue, ExpectRevision, Frame, FrameId, Meta, NewFrame, Topic,
};
use xs_protocol::{AppendRequest, Client, ClientOptions, Role, Server, ServerOptions};
use xs_runtime::host::{self, HostEnd, HostError, HostOptions, PROCESSORS_MAX, Part};
use xs_runtime::isolate::Limits;
use xs_runtime::name::thread_name;
use xs_runtime::permissions::Allow;

pub(crate) use memory::Memory;

/// The longest wait for anything a test expects: a machine may be slow or busy, and a process of
/// modules gives way to all others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// A store, and the directory of the modules.
pub(crate) struct World {
    pub(crate) store: Memory,
    server: Server,
    dir: TempDir,
    /// How its Hosts ended, for the message of a wait in vain.
    ends: Arc<Mutex<Vec<String>>>,
}

/// A running Host.
pub(crate) struct Running {
    shutdown: CancellationToken,
    /// Carries the bytes between Host and server.
    wire: JoinHandle<()>,
    task: JoinHandle<Result<HostEnd, HostError>>,
}

impl World {
    /// An empty store with these modules.
    pub(crate) fn new(modules: &[(&str, &str)]) -> Self {
        let store = Memory::default();
        let server = Server::new(Arc::new(store.clone()), ServerOptions::default());
        let (dir, ends) = (tempfile::tempdir().unwrap(), Arc::default());
        let world = Self { store, server, dir, ends };
        modules.iter().for_each(|(file, source)| world.save(file, source));
        world
    }

    /// Saves a module atomically, as a careful editor does: a Host sees all of it or nothing,
    /// however long this thread is suspended meanwhile.
    pub(crate) fn save(&self, file: &str, source: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let hidden = path.with_file_name(".unfinished");
        fs::write(&hidden, source).unwrap();
        fs::rename(hidden, path).unwrap();
    }

    /// Deletes a module.
    pub(crate) fn delete(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    /// The path of a file of the modules.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// The server over the store.
    pub(crate) fn server(&self) -> Server {
        self.server.clone()
    }

    /// A client with a role.
    pub(crate) async fn client(&self, role: Role) -> Client {
        self.wired(role).await.0
    }

    async fn wired(&self, role: Role) -> (Client, JoinHandle<()>) {
        let (near, mut middle) = tokio::io::duplex(256 * 1024);
        let (far, mut other) = tokio::io::duplex(256 * 1024);
        drop(self.server.adopt(far, role));
        let wire = tokio::spawn(async move {
            // Either end may close first; then this wire is done.
            let _ = tokio::io::copy_bidirectional(&mut middle, &mut other).await;
        });
        (Client::over(near, ClientOptions::default()).await.unwrap(), wire)
    }

    /// Starts a Host.
    pub(crate) async fn host(&self) -> Running {
        self.host_that_spends(usize::MAX).await
    }

    /// Starts a Host whose engines have no time to start.
    pub(crate) async fn host_without_engines(&self) -> Running {
        let limits = Limits { engine: Duration::ZERO, ..Limits::default() };
        self.host_of(usize::MAX, limits, &[], PROCESSORS_MAX).await
    }

    /// Starts a Host after one that crashed on threads of these versions.
    pub(crate) async fn host_after(&self, crashed: &[&str]) -> Running {
        self.host_of(usize::MAX, Limits::default(), crashed, PROCESSORS_MAX).await
    }

    /// Starts a Host that ends after this many isolates beyond the first of each processor.
    pub(crate) async fn host_that_spends(&self, spent_isolates_max: usize) -> Running {
        self.host_of(spent_isolates_max, Limits::default(), &[], PROCESSORS_MAX).await
    }

    /// Starts a Host that gives a module this long to stop, and as long again until it is
    /// abandoned.
    pub(crate) async fn host_that_waits(&self, stop: Duration) -> Running {
        let limits = Limits { stop, ..Limits::default() };
        self.host_of(usize::MAX, limits, &[], PROCESSORS_MAX).await
    }

    /// Starts a Host that runs at most this many processors.
    pub(crate) async fn host_that_runs(&self, processors_max: usize) -> Running {
        self.host_of(usize::MAX, Limits::default(), &[], processors_max).await
    }

    async fn host_of(
        &self,
        spent_isolates_max: usize,
        limits: Limits,
        crashed: &[&str],
        processors_max: usize,
    ) -> Running {
        let thread = |create: &&str| thread_name(FrameId::parse(create).unwrap());
        let (client, wire) = self.wired(Role::Host).await;
        let options = HostOptions {
            client,
            modules: Some(self.dir.path().to_owned()),
            env: Default::default(),
            allow: Allow::default(),
            limits,
            culprits: crashed.iter().map(thread).collect(),
            spent_isolates_max,
            processors_max,
            part: Part::All,
            confined: Vec::new(),
        };
        let shutdown = CancellationToken::new();
        let (run, ends) = (host::run(options, shutdown.clone()), Arc::clone(&self.ends));
        let task = tokio::spawn(async move {
            let end = run.await;
            ends.lock().push(format!("{end:?}"));
            end
        });
        Running { shutdown, wire, task }
    }

    /// Appends a frame as a user does.
    pub(crate) fn append(&self, topic: &str, meta: Value, body: &str) -> FrameId {
        let mut new = NewFrame::new(Topic::parse(topic).unwrap());
        new.meta = Meta::parse(meta.to_string()).unwrap();
        new.body = xs_engine::Body::Inline(body.to_owned().into_bytes().into());
        self.store.put(AppendRequest::frames(vec![new])).frames[0].id
    }

    /// Sets a cursor as an operator does.
    pub(crate) fn set_cursor(&self, name: &str, offset: u64, state: &str) {
        let name = CursorName::parse(name).unwrap();
        let state = state.to_owned().into_bytes().into();
        let set = Some(CursorValue { offset, state });
        let change = CursorChange { name, expect: ExpectRevision::Any, set };
        self.store.put(AppendRequest { cursors: vec![change], ..Default::default() });
    }

    /// The frames of a topic so far.
    pub(crate) fn topic(&self, topic: &str) -> Vec<Frame> {
        self.store.topic(topic)
    }

    /// Waits until a topic has at least `count` frames.
    pub(crate) async fn wait(&self, topic: &str, count: usize) -> Vec<Frame> {
        let what = format!("{count} frames of {topic}");
        self.until(&what, || self.store.count(topic) >= count).await;
        self.topic(topic)
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if waited.await.is_err() {
            let log: Vec<String> = self.store.frames().iter().map(describe).collect();
            let ends = self.ends.lock().join(", ");
            panic!("not so: {what}; Hosts ended: {ends}; the log:\n{}", log.join("\n"))
        }
    }
}

impl Running {
    /// Stops it as SIGTERM does.
    pub(crate) async fn stop(self) -> HostEnd {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits until it ends without being stopped.
    pub(crate) async fn ended(self) -> HostEnd {
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap()
    }

    /// Cuts its connection: whatever it does from now on does not reach the store.
    pub(crate) async fn cut(self) {
        self.wire.abort();
        let end = tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
        assert!(matches!(end, Err(HostError::Store(_))), "{end:?}");
    }
}

/// A frame's meta.
pub(crate) fn meta(frame: &Frame) -> Value {
    if frame.meta().is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(frame.meta()).unwrap()
    }
}

fn describe(frame: &Frame) -> String {
    let meta = String::from_utf8_lossy(frame.meta()).into_owned();
    format!("{:?} {} {meta}", frame.offset(), frame.topic())
}
