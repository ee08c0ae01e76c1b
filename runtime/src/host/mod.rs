//! The Host: runs the modules of a directory, and reaches the store only as a client. It follows
//! the lifecycle frames in the log and acts on them; the files are only one of the sources of those
//! frames. It owns no data: if it dies, the next Host continues from the log.

pub(crate) mod backoff;
pub mod check;
mod clock;
mod command;
mod commit;
mod complaint;
pub mod config;
mod driver;
pub mod editor;
pub mod files;
mod generator;
mod handler;
mod keeper;
mod keepers;
pub mod lifecycle;
mod pace;
mod part;
pub mod replay;
mod report;
mod spare;
mod store;
mod sync;
mod version;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde_json::{Map, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xs_engine::{Bound, Frame, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::{AppendRequest, Client, ClientError, SubEvent, SubscribeOptions, Subscription};

use self::backoff::{Backoff, random};
use self::clock::Clock;
use self::command::{AllCancels, cancel_of};
use self::complaint::Complaint;
use self::config::Config;
use self::keeper::{Fatal, Keeper, Order};
use self::keepers::Keepers;
use self::lifecycle::{Event, Key, Lifecycle, Slots, Versions};
use self::spare::Spare;
use self::version::{STARTS_MAX, Shared};
use self::watch::Watcher;
use crate::isolate::{FailureKind, Limits, ModuleError};
use crate::name::{Kind, thread_name};
use crate::permissions::Allow;
use crate::share;

pub use complaint::CONFIG_TOPIC;
pub use handler::parked::{DISCARD, PARKED, UNPARK, about};
pub use handler::place::{Place, PlaceError, Retry, State};
pub use part::Part;
pub use report::TOLD;
pub use store::processor_cursor;

/// Time within which all modules together must end when the Host is stopped.
const STOP_MAX: Duration = Duration::from_secs(12);
/// Processors that one Host runs at the same time.
pub const PROCESSORS_MAX: usize = 256;
// Whatever number of streams the modules use, one remains for every handler and command.
const _: () = assert!(
    PROCESSORS_MAX * (share::STREAMS_MAX + share::BLOBS_MAX + 1)
        < xs_protocol::limits::HOST_STREAMS_MAX as usize
);
/// Isolates that a Host may create beyond the first of each processor. Each leaves about 0.8 MB
/// behind that the engine returns only when the process exits.
pub const SPENT_ISOLATES_MAX: usize = 256;
/// Time for calls in progress to end before a Host is replaced by a fresh one.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// The settings of a Host.
pub struct HostOptions {
    /// The connection to the store, with the role host.
    pub client: Client,
    /// The directory of the modules; without one, only what admins append runs.
    pub modules: Option<PathBuf>,
    /// Environment variables that modules may request.
    pub env: BTreeMap<String, String>,
    /// Permissions that modules may request.
    pub allow: Allow,
    /// Limits of each isolate.
    pub limits: Limits,
    /// The threads on which the previous Host crashed, as reported by [`crate::supervise`].
    pub culprits: Vec<String>,
    /// Isolates it may create beyond the first of each processor before it ends as
    /// [`HostEnd::Worn`].
    pub spent_isolates_max: usize,
    /// Processors it runs at the same time, at most [`PROCESSORS_MAX`]; more wait until one ends.
    pub processors_max: usize,
    /// The processors it runs.
    pub part: Part,
    /// How the process is confined: each measure and its status.
    pub confined: Vec<(&'static str, String)>,
}

impl fmt::Debug for HostOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostOptions")
            .field("modules", &self.modules)
            .field("allow", &self.allow)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Why a Host ended.
#[derive(Debug)]
pub enum HostEnd {
    /// It was stopped on request.
    Stopped,
    /// A module's thread does not end, or none can be started for another module: a new process has
    /// to take over.
    Wedged,
    /// The isolates it created have leaked enough memory for a fresh process to take over.
    Worn,
}

/// Why a Host could not continue.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The store refused a request, or the connection to it is lost.
    #[error("the connection to the store ended: {0}")]
    Store(ClientError),
    /// The directory cannot be used.
    #[error("cannot read the modules in {dir}: {error}")]
    Modules {
        /// The directory.
        dir: PathBuf,
        /// The I/O error.
        error: std::io::Error,
    },
}

impl From<ClientError> for HostError {
    fn from(error: ClientError) -> Self {
        Self::Store(error)
    }
}

/// Runs the modules until `shutdown` fires or the Host cannot continue.
///
/// # Errors
/// [`HostError`] when the store or the directory cannot be reached.
pub async fn run(options: HostOptions, shutdown: CancellationToken) -> Result<HostEnd, HostError> {
    let mut host = Host::start(options, shutdown.clone()).await?;
    let end = host.work(&shutdown).await;
    host.stop(&shutdown).await;
    end
}

struct Host {
    shared: Arc<Shared>,
    lifecycle: Lifecycle,
    subscription: Subscription,
    watcher: Option<Watcher>,
    complaint: Complaint,
    /// Frames that were delivered and are not folded yet: those of one delivery at most.
    delivered: VecDeque<Frame>,
    /// All frames before this offset are folded once these are.
    scanned_to: u64,
    /// All frames before this offset are folded into `lifecycle`.
    folded: u64,
    /// All frames before this offset must be folded before the next sync with the files.
    ahead: u64,
    /// When to sync again although no file changed: the store did not take everything.
    again: Option<Instant>,
    backoff: Backoff,
    /// The threads on which the previous Host crashed, until the log says so.
    culprits: Vec<String>,
    spent_isolates_max: usize,
    /// Processors that it tried to start when it began.
    first_isolates: usize,
    processors_max: usize,
    /// Processors that run or are about to.
    places: HashSet<Key>,
    /// Processors that wait for a free place.
    waiting: BTreeSet<Key>,
    keepers: Keepers,
    fatal: (mpsc::UnboundedSender<Fatal>, mpsc::UnboundedReceiver<Fatal>),
}

impl Host {
    /// Reads the log and the files, then starts what should run.
    async fn start(options: HostOptions, shutdown: CancellationToken) -> Result<Self, HostError> {
        let HostOptions { client, modules, env, allow, limits, culprits, .. } = options;
        if let Some(dir) = &modules {
            look_into(dir, &options.part)?;
        }
        let watcher = modules.as_deref().map(Watcher::start);
        let shared = Arc::new(Shared {
            client: client.clone(),
            versions: Versions::default(),
            clock: Clock::default(),
            dir: modules.unwrap_or_else(|| PathBuf::from(".")),
            config: RwLock::new(Config::default()),
            env,
            allow,
            limits,
            starts: Semaphore::new(STARTS_MAX),
            spare: Spare::default(),
            shutdown,
            stuck: CancellationToken::new(),
            made: tokio::sync::watch::channel(0).0,
            calls: TaskTracker::new(),
            cancels: AllCancels::default(),
            part: options.part,
            confined: options.confined,
        });
        let spent_isolates_max = options.spent_isolates_max;
        let processors_max = options.processors_max.min(PROCESSORS_MAX);
        let subscription =
            client.subscribe(&lifecycle_frames(), SubscribeOptions::default()).await?;
        let mut host = Self {
            complaint: Complaint::read(&shared).await?,
            shared,
            lifecycle: Lifecycle::default(),
            subscription,
            watcher,
            delivered: VecDeque::new(),
            scanned_to: 0,
            folded: 0,
            ahead: 0,
            again: None,
            backoff: Backoff::default(),
            culprits,
            spent_isolates_max,
            first_isolates: 0,
            processors_max,
            places: HashSet::new(),
            waiting: BTreeSet::new(),
            keepers: Keepers::default(),
            // What ends the Host, which reads the first of them.
            fatal: mpsc::unbounded_channel(),
        };
        while !host.fold_next().await? {}
        host.sync().await?;
        while host.folded < host.ahead {
            host.fold_next().await?;
        }
        host.resume().await?;
        host.first_isolates = host.keepers.spawned();
        if !matches!(host.shared.part, Part::Only(_)) {
            tokio::spawn(spare::keep(Arc::clone(&host.shared)));
        }
        Ok(host)
    }

    /// Follows the log and the files until the Host ends.
    async fn work(&mut self, shutdown: &CancellationToken) -> Result<HostEnd, HostError> {
        let mut made = self.shared.made.subscribe();
        loop {
            let rested = self.folded >= self.ahead;
            // The first of each processor counts only while the processor is there: names may come
            // and go for ever.
            let first = self.first_isolates.max(self.places.len());
            let isolates_max = self.spent_isolates_max.saturating_add(first);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(HostEnd::Stopped),
                () = above(&mut made, isolates_max) => {
                    tracing::info!(isolates_max, "the isolates are spent; a new Host takes over");
                    return Ok(self.drain(shutdown).await);
                }
                Some(fatal) = self.fatal.1.recv() => match fatal {
                    Fatal::Wedged(key) => {
                        tracing::error!(processor = %key, "wedged; a new Host has to take over");
                        return Ok(HostEnd::Wedged);
                    }
                    Fatal::Lost(error) => return Err(error.into()),
                },
                () = self.shared.stuck.cancelled() => {
                    tracing::error!("no engine can start; a new Host has to take over");
                    return Ok(HostEnd::Wedged);
                }
                () = self.keepers.room(), if self.keepers.is_behind() => {
                    self.keepers.catch_up();
                    self.fold_delivered(true);
                    self.fill().await?;
                }
                event = self.subscription.next(), if !self.keepers.is_behind() => {
                    self.take(event)?;
                    self.fold_delivered(true);
                    self.fill().await?;
                }
                () = changed(&mut self.watcher), if rested => self.sync().await?,
                () = due(self.again), if rested => self.sync().await?,
            }
        }
    }

    /// Waits for the calls in progress to end. Further calls wait in the log for the next Host.
    async fn drain(&self, shutdown: &CancellationToken) -> HostEnd {
        self.shared.calls.close();
        tokio::select! {
            () = shutdown.cancelled() => HostEnd::Stopped,
            // Calls that take longer are answered as interrupted, or rerun by the next Host.
            _ = tokio::time::timeout(DRAIN_MAX, self.shared.calls.wait()) => HostEnd::Worn,
        }
    }

    /// Folds the next event of the subscription without acting on it; returns whether it has caught
    /// up.
    async fn fold_next(&mut self) -> Result<bool, HostError> {
        let event = self.subscription.next().await;
        let is_caught_up = self.take(event)?;
        self.fold_delivered(false);
        Ok(is_caught_up)
    }

    /// Takes the next event of the subscription; returns whether it has caught up. What the one
    /// before delivered must be folded.
    fn take(&mut self, event: Option<Result<SubEvent, ClientError>>) -> Result<bool, HostError> {
        match event {
            Some(Ok(SubEvent::Frames { frames, scanned_to })) => {
                self.delivered.extend(frames.into_iter().map(|delivered| delivered.frame));
                self.scanned_to = self.scanned_to.max(scanned_to);
                Ok(false)
            }
            Some(Ok(SubEvent::CaughtUp { head })) => {
                self.scanned_to = self.scanned_to.max(head);
                Ok(true)
            }
            Some(Ok(SubEvent::Pulse | SubEvent::Gap(_))) => Ok(false),
            Some(Ok(SubEvent::Dropped { refusal, .. })) => Err(ClientError::from(refusal).into()),
            Some(Err(error)) => Err(error.into()),
            None => Err(ClientError::Disconnected("the subscription ended".into()).into()),
        }
    }

    /// Folds what was delivered and, if `act`, carries out what it asks for, as far as the keepers
    /// have room.
    fn fold_delivered(&mut self, act: bool) {
        while !self.keepers.is_behind() {
            let Some(frame) = self.delivered.pop_front() else {
                self.folded = self.folded.max(self.scanned_to);
                return;
            };
            self.frame(frame, act);
        }
    }

    /// Folds one frame and, if `act`, carries out what it asks for.
    fn frame(&mut self, frame: Frame, act: bool) {
        if let Some(offset) = frame.offset() {
            self.folded = self.folded.max(offset + 1);
        }
        if let Some((name, call)) = cancel_of(&frame) {
            let key = Key { kind: Kind::Command, name };
            // Known commands only: an entry is kept for each name.
            if self.shared.part.has(&key.name) && self.lifecycle.get(&key).is_some() {
                self.shared.cancels.of(&key.name).add(call);
            }
            return;
        }
        let Some((key, event)) = self.lifecycle.apply(&frame) else { return };
        self.count(&key, event);
        match event {
            Event::Create => {
                self.shared.versions.insert(frame.id(), key.name.clone());
                if act && self.shared.part.has(&key.name) {
                    self.create(key, frame);
                }
            }
            Event::Term if act && self.shared.part.has(&key.name) => {
                let told = self.lifecycle.get(&key).and_then(Slots::told_to_end);
                if let Some(told) = told {
                    self.order(key, Order::Term(told));
                }
            }
            _ => {}
        }
    }

    /// Updates which processors have a place and which wait for one.
    fn count(&mut self, key: &Key, event: Event) {
        let Some(slots) = self.lifecycle.get(key) else { return };
        let is_end = match event {
            Event::Invalid | Event::FinOk | Event::FinError | Event::FinTerm => true,
            // A `term` is answered with a `fin.term` once the processor has ended.
            _ => false,
        };
        let runs_on = slots.wants_to_run() && !slots.is_down();
        if is_end && !runs_on && slots.told_to_end().is_none() {
            self.places.remove(key);
            if key.kind == Kind::Command {
                self.shared.cancels.forget(&key.name);
            }
        }
        let waits = slots.waits().is_some() && !self.places.contains(key);
        if waits && self.shared.part.has(&key.name) {
            self.waiting.insert(key.clone());
        } else {
            self.waiting.remove(key);
        }
    }

    /// Gives free places to the processors that wait for one.
    async fn fill(&mut self) -> Result<(), HostError> {
        while self.places.len() < self.processors_max && !self.keepers.is_behind() {
            let Some(key) = self.waiting.pop_first() else { break };
            let id = self.lifecycle.get(&key).and_then(Slots::waits);
            match self.bring_up(key.clone(), id).await {
                Ok(()) => {}
                Err(HostError::Store(error)) if !driver::is_lost(&error) => {
                    tracing::warn!(%error, "a version cannot be read now; it keeps waiting");
                    self.waiting.insert(key);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Orders a version to run, unless there is an obstacle.
    fn create(&mut self, key: Key, frame: Frame) {
        let order = match self.obstacle(&key, &frame) {
            Some(error) => Order::Refuse(frame, error),
            None => {
                // A version that was found to be wrong does not run.
                if version::told_error(&frame).is_none() {
                    self.take_place(&key);
                }
                Order::Create(frame)
            }
        };
        self.order(key, order);
    }

    /// Has the version run that is to be tried, or else the confirmed one, if they may.
    async fn bring_up(&mut self, key: Key, tried: Option<FrameId>) -> Result<(), HostError> {
        let slots = self.lifecycle.get(&key);
        let newest = slots.and_then(Slots::newest);
        let confirmed = slots.and_then(Slots::confirmed);
        let mut pending = self.create_frame(tried).await?;
        let confirmed = self.create_frame(confirmed.filter(|id| Some(*id) != tried)).await?;
        let wrong = pending.take_if(|frame| version::told_error(frame).is_some());
        let obstacle = match (&pending, &confirmed) {
            (Some(frame), _) => self.obstacle(&key, frame),
            (None, Some(_)) => self.no_place(&key),
            (None, None) => {
                wrong.into_iter().for_each(|frame| self.order(key.clone(), Order::Create(frame)));
                return Ok(());
            }
        };
        let order = match (obstacle, pending, confirmed) {
            (Some(error), Some(frame), _) | (Some(error), None, Some(frame)) => {
                wrong.into_iter().for_each(|frame| self.order(key.clone(), Order::Create(frame)));
                Order::Refuse(frame, error)
            }
            (_, pending, confirmed) => {
                self.take_place(&key);
                // What is wrong with it is reported, and then the confirmed one is tried.
                Order::Resume { pending: pending.or(wrong), confirmed, newest }
            }
        };
        self.order(key, order);
        Ok(())
    }

    /// Gives a processor a place. It no longer waits for one, or it would be started twice.
    fn take_place(&mut self, key: &Key) {
        self.waiting.remove(key);
        self.places.insert(key.clone());
    }

    /// Why a processor may not be started, although its source may be right.
    fn obstacle(&self, key: &Key, frame: &Frame) -> Option<ModuleError> {
        if version::told_error(frame).is_some() {
            return None;
        }
        if let Some(rival) = self.lifecycle.rival(key) {
            let text = format!("the name {} is taken by a {}; rename one", key.name, rival.kind);
            return Some(ModuleError::new(FailureKind::Definition, text));
        }
        self.no_place(key)
    }

    /// Why there is no place for one that has none.
    fn no_place(&self, key: &Key) -> Option<ModuleError> {
        let is_full = self.places.len() >= self.processors_max && !self.places.contains(key);
        is_full.then(|| {
            let max = self.processors_max;
            let text =
                format!("a Host runs at most {max} processors; this one starts when another ends");
            ModuleError::new(FailureKind::Full, text)
        })
    }

    fn order(&mut self, key: Key, order: Order) {
        let Self { shared, keepers, fatal, .. } = self;
        keepers.order(key, order, |key, orders, busy| {
            Keeper::spawn(Arc::clone(shared), key, orders, busy, fatal.0.clone())
        });
    }

    /// Starts what the log says should run, and answers each `term` that is still open.
    async fn resume(&mut self) -> Result<(), HostError> {
        let own = self.lifecycle.iter().filter(|(key, _)| self.shared.part.has(&key.name));
        let mut own: Vec<_> = own.map(|(key, slots)| (key.clone(), slots.clone())).collect();
        // Who had no place has none before those who had one.
        own.sort_by_key(|(_, slots)| (!slots.wants_to_run(), slots.waits().is_some()));
        for (key, slots) in own {
            if let Some(told) = slots.told_to_end() {
                self.order(key.clone(), Order::Term(told));
            }
            let tried = slots.pending().or_else(|| slots.denied()).or_else(|| slots.waits());
            self.bring_up(key, tried).await?;
        }
        Ok(())
    }

    /// The `create` frame of a version, unless that version crashed the previous Host.
    async fn create_frame(&self, id: Option<FrameId>) -> Result<Option<Frame>, HostError> {
        match id.filter(|id| !self.culprits.contains(&thread_name(*id))) {
            Some(id) => Ok(self.shared.client.get(Bound::Id(id)).await?),
            None => Ok(None),
        }
    }

    /// Reports the versions that crashed the previous Host as failed, so that they are not started
    /// again. A thread is named after its version. Returns whether the store took the report.
    async fn quarantine(&mut self) -> Result<bool, HostError> {
        let mut frames = Vec::new();
        for (key, slots) in self.lifecycle.iter() {
            for create in [slots.pending(), slots.confirmed()].into_iter().flatten() {
                if self.culprits.contains(&thread_name(create)) {
                    let text = "it crashed the process that runs the modules; \
                                save it or start it to try again";
                    let fields = [("code", "crashed"), ("message", text)];
                    let fields = fields.map(|(name, text)| (name.to_owned(), json!(text)));
                    let more = Map::from_iter(fields);
                    frames.push(report::frame(key, Event::FinError, create, more));
                }
            }
        }
        if frames.is_empty() {
            return Ok(true);
        }
        match self.shared.client.append(&AppendRequest::frames(frames)).await {
            Ok(appended) => {
                let last = appended.frames.iter().filter_map(|stamp| stamp.offset).max();
                self.ahead = last.map_or(self.ahead, |offset| offset + 1);
                Ok(true)
            }
            Err(error) if driver::is_lost(&error) => Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "cannot report to the store which versions crashed");
                Ok(false)
            }
        }
    }

    /// Makes the log agree with the crashes and with the files. What the store does not take now is
    /// retried after a wait.
    async fn sync(&mut self) -> Result<(), HostError> {
        let mut is_done = self.quarantine().await?;
        if self.watcher.is_some() {
            let synced = sync::sync(&self.shared, &self.lifecycle, &mut self.complaint).await?;
            self.ahead = synced.behind.unwrap_or(self.ahead);
            is_done &= synced.is_done;
        }
        if is_done {
            (self.again, self.backoff) = (None, Backoff::default());
        } else {
            self.again = Some(Instant::now() + self.backoff.next(Duration::ZERO, random()));
        }
        Ok(())
    }

    /// Ends every processor, within [`STOP_MAX`].
    async fn stop(self, shutdown: &CancellationToken) {
        shutdown.cancel();
        if tokio::time::timeout(STOP_MAX, self.keepers.end()).await.is_err() {
            tracing::error!("some modules did not stop in time; they end with the process");
        }
    }
}

/// Checks that the directory of the modules is there, and keeps its types for editors current.
fn look_into(dir: &Path, part: &Part) -> Result<(), HostError> {
    std::fs::read_dir(dir).map_err(|error| HostError::Modules { dir: dir.to_owned(), error })?;
    let written = match part {
        Part::All | Part::AllBut(_) => editor::keep_current(dir),
        Part::Only(_) => Ok(()),
    };
    if let Err(error) = written {
        tracing::warn!(%error, "cannot update the types for editors");
    }
    Ok(())
}

/// All lifecycle frames of processors, present and future.
fn lifecycle_frames() -> ReadOptions {
    ReadOptions {
        topics: TopicPatterns::parse("xs.generator.*,xs.handler.*,xs.command.*")
            .expect("a constant that parses"),
        start: Start::First,
        follow: true,
        ..ReadOptions::default()
    }
}

/// Waits until a count is above a limit.
async fn above(count: &mut tokio::sync::watch::Receiver<usize>, limit: usize) {
    // It never fails: the sender lives as long as the receiver.
    drop(count.wait_for(|count| *count > limit).await);
}

async fn changed(watcher: &mut Option<Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
