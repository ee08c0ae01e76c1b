//! The Host: runs the modules of a directory beside a store it reaches as a client and nothing
//! more. It follows the lifecycle frames in the log and does what they say; files are only one of
//! those who append them. It owns no data: whatever happens to it, the next Host goes on from the
//! log.

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

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
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

/// Time that all modules together have to end when the Host is stopped.
const STOP_MAX: Duration = Duration::from_secs(12);
/// Processors of one Host that run at a time.
pub const PROCESSORS_MAX: usize = 256;
// However many streams each module has, there is one for every handler and command.
const _: () = assert!(
    PROCESSORS_MAX * (share::STREAMS_MAX + share::BLOBS_MAX + 1)
        < xs_protocol::limits::HOST_STREAMS_MAX as usize
);
/// Isolates that a Host makes beyond the first of each processor. The engine gives about 0.8 MB of
/// each back only with the process.
pub const SPENT_ISOLATES_MAX: usize = 256;
/// Time that calls under way have to end when a Host is to be replaced by a fresh one.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// What a Host runs.
pub struct HostOptions {
    /// The connection to the store, with the role host.
    pub client: Client,
    /// The directory of the modules; without one only what admins append is run.
    pub modules: Option<PathBuf>,
    /// Variables that modules may ask for.
    pub env: BTreeMap<String, String>,
    /// What modules may ask for.
    pub allow: Allow,
    /// Limits of each isolate.
    pub limits: Limits,
    /// Threads on which the Host before this one crashed, as [`crate::supervise`] learned of them.
    pub culprits: Vec<String>,
    /// Isolates it may make beyond the first of each processor before it ends as
    /// [`HostEnd::Worn`].
    pub spent_isolates_max: usize,
    /// Processors it runs at a time, at most [`PROCESSORS_MAX`]; the next ones wait until one ends.
    pub processors_max: usize,
    /// The processors it runs.
    pub part: Part,
    /// How the process was confined: what was done, and how that stands.
    pub confined: Vec<(&'static str, String)>,
}

/// Why a Host ended.
#[derive(Debug)]
pub enum HostEnd {
    /// It was told to.
    Stopped,
    /// A thread of a module does not end, or none for another starts: another process has to go
    /// on.
    Wedged,
    /// The isolates it made have left enough memory behind for a fresh process to go on.
    Worn,
}

/// Why a Host could not go on.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The store refused, or is gone.
    #[error("the connection to the store ended: {0}")]
    Store(ClientError),
    /// The directory cannot be used.
    #[error("cannot read the modules in {dir}: {error}")]
    Modules {
        /// The directory.
        dir: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
}

impl From<ClientError> for HostError {
    fn from(error: ClientError) -> Self {
        Self::Store(error)
    }
}

/// Runs the modules until `shutdown` fires or the Host cannot go on.
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
    /// All before this offset is folded into `lifecycle`.
    folded: u64,
    /// All before this offset must be folded before the files are looked at again.
    ahead: u64,
    /// When the files are looked at again although nothing has changed: the store did not take all.
    again: Option<Instant>,
    backoff: Backoff,
    /// Threads on which the Host before this one crashed, as long as the log does not say so.
    culprits: Vec<String>,
    spent_isolates_max: usize,
    processors_max: usize,
    /// Who runs, or is to.
    places: HashSet<Key>,
    /// Who is to run once there is a place.
    waiting: BTreeSet<Key>,
    keepers: Keepers,
    fatal: (mpsc::UnboundedSender<Fatal>, mpsc::UnboundedReceiver<Fatal>),
}

impl Host {
    /// Reads the log and the files, and begins to run what is to run.
    async fn start(options: HostOptions, shutdown: CancellationToken) -> Result<Self, HostError> {
        let HostOptions { client, modules, env, allow, limits, culprits, .. } = options;
        if let Some(dir) = &modules {
            std::fs::read_dir(dir)
                .map_err(|error| HostError::Modules { dir: dir.clone(), error })?;
            let written = match &options.part {
                Part::All | Part::AllBut(_) => editor::keep_current(dir),
                Part::Only(_) => Ok(()),
            };
            if let Err(error) = written {
                tracing::warn!(%error, "cannot keep the types for editors current");
            }
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
            folded: 0,
            ahead: 0,
            again: None,
            backoff: Backoff::default(),
            culprits,
            spent_isolates_max,
            processors_max,
            places: HashSet::new(),
            waiting: BTreeSet::new(),
            keepers: Keepers::default(),
            // What ends the Host, which reads the first of them.
            fatal: mpsc::unbounded_channel(),
        };
        while !host.fold_next(false).await? {}
        host.sync().await?;
        while host.folded < host.ahead {
            host.fold_next(false).await?;
        }
        host.resume().await?;
        if !matches!(host.shared.part, Part::Only(_)) {
            tokio::spawn(spare::keep(Arc::clone(&host.shared)));
        }
        Ok(host)
    }

    /// Follows log and files until it is over.
    async fn work(&mut self, shutdown: &CancellationToken) -> Result<HostEnd, HostError> {
        let mut made = self.shared.made.subscribe();
        loop {
            let rested = self.folded >= self.ahead;
            let isolates_max = self.spent_isolates_max.saturating_add(self.keepers.names());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(HostEnd::Stopped),
                () = above(&mut made, isolates_max) => {
                    tracing::info!(isolates_max, "another Host goes on");
                    return Ok(self.drain(shutdown).await);
                }
                Some(fatal) = self.fatal.1.recv() => match fatal {
                    Fatal::Wedged(key) => {
                        tracing::error!(processor = %key, "wedged; another Host has to go on");
                        return Ok(HostEnd::Wedged);
                    }
                    Fatal::Lost(error) => return Err(error.into()),
                },
                () = self.shared.stuck.cancelled() => {
                    tracing::error!("no engine starts any more; another Host has to go on");
                    return Ok(HostEnd::Wedged);
                }
                () = self.keepers.room(), if self.keepers.is_behind() => self.keepers.catch_up(),
                event = self.subscription.next(), if !self.keepers.is_behind() => {
                    self.fold(event, true)?;
                    self.fill().await?;
                }
                () = changed(&mut self.watcher), if rested => self.sync().await?,
                () = due(self.again), if rested => self.sync().await?,
            }
        }
    }

    /// Lets the calls under way end. Others wait in the log for the next Host.
    async fn drain(&self, shutdown: &CancellationToken) -> HostEnd {
        self.shared.calls.close();
        tokio::select! {
            () = shutdown.cancelled() => HostEnd::Stopped,
            // Those that take longer are answered as interrupted, or run again there.
            _ = tokio::time::timeout(DRAIN_MAX, self.shared.calls.wait()) => HostEnd::Worn,
        }
    }

    /// Takes in what the log says next; whether that was the end of what was stored.
    async fn fold_next(&mut self, act: bool) -> Result<bool, HostError> {
        let event = self.subscription.next().await;
        self.fold(event, act)
    }

    fn fold(
        &mut self,
        event: Option<Result<SubEvent, ClientError>>,
        act: bool,
    ) -> Result<bool, HostError> {
        match event {
            Some(Ok(SubEvent::Frames { frames, scanned_to })) => {
                for delivered in frames {
                    self.frame(delivered.frame, act);
                }
                self.folded = self.folded.max(scanned_to);
                Ok(false)
            }
            Some(Ok(SubEvent::CaughtUp { head })) => {
                self.folded = self.folded.max(head);
                Ok(true)
            }
            Some(Ok(SubEvent::Pulse | SubEvent::Gap(_))) => Ok(false),
            Some(Ok(SubEvent::Dropped { refusal, .. })) => Err(ClientError::from(refusal).into()),
            Some(Err(error)) => Err(error.into()),
            None => Err(ClientError::Disconnected("the subscription ended".to_owned()).into()),
        }
    }

    /// Takes in one frame and, if `act`, does what it asks for.
    fn frame(&mut self, frame: Frame, act: bool) {
        if let Some(offset) = frame.offset() {
            self.folded = self.folded.max(offset + 1);
        }
        if let Some((name, call)) = cancel_of(&frame) {
            let key = Key { kind: Kind::Command, name };
            // Only of commands that are known: what is kept is kept for each name.
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

    /// Keeps in mind who has a place and who waits for one.
    fn count(&mut self, key: &Key, event: Event) {
        let Some(slots) = self.lifecycle.get(key) else { return };
        let is_end = match event {
            Event::Invalid | Event::FinOk | Event::FinError | Event::FinTerm => true,
            // That is answered with a `fin.term`, once it has ended.
            _ => false,
        };
        if is_end && !slots.wants_to_run() && slots.told_to_end().is_none() {
            self.places.remove(key);
        }
        let waits = slots.waits().is_some() && !self.places.contains(key);
        if waits && self.shared.part.has(&key.name) {
            self.waiting.insert(key.clone());
        } else {
            self.waiting.remove(key);
        }
    }

    /// Gives the places that are free to who waits for one.
    async fn fill(&mut self) -> Result<(), HostError> {
        while self.places.len() < self.processors_max {
            let Some(key) = self.waiting.pop_first() else { break };
            let id = self.lifecycle.get(&key).and_then(Slots::waits);
            match self.bring_up(key.clone(), id).await {
                Ok(()) => {}
                Err(HostError::Store(error)) if !driver::is_lost(&error) => {
                    tracing::warn!(%error, "a version is not read now; it waits on");
                    self.waiting.insert(key);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Has a version run, if it may.
    fn create(&mut self, key: Key, frame: Frame) {
        let order = match self.obstacle(&key, &frame) {
            Some(error) => Order::Refuse(frame, error),
            None => {
                // A version that was found to be wrong does not run.
                if version::told_error(&frame).is_none() {
                    self.places.insert(key.clone());
                }
                Order::Create(frame)
            }
        };
        self.order(key, order);
    }

    /// Has the version run that is to be tried, or else the confirmed one, if they may.
    async fn bring_up(&mut self, key: Key, tried: Option<FrameId>) -> Result<(), HostError> {
        let confirmed = self.lifecycle.get(&key).and_then(Slots::confirmed);
        let mut pending = self.create_frame(tried).await?;
        let confirmed = self.create_frame(confirmed.filter(|id| Some(*id) != tried)).await?;
        if let Some(wrong) = pending.take_if(|frame| version::told_error(frame).is_some()) {
            self.order(key.clone(), Order::Create(wrong));
        }
        let obstacle = match (&pending, &confirmed) {
            (Some(frame), _) => self.obstacle(&key, frame),
            (None, Some(_)) => self.no_place(&key),
            (None, None) => return Ok(()),
        };
        let order = match (obstacle, pending, confirmed) {
            (Some(error), Some(frame), _) | (Some(error), None, Some(frame)) => {
                Order::Refuse(frame, error)
            }
            (_, pending, confirmed) => {
                self.places.insert(key.clone());
                Order::Resume { pending, confirmed }
            }
        };
        self.order(key, order);
        Ok(())
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
            let text = format!("a Host runs at most {max} processors; it waits until one ends");
            ModuleError::new(FailureKind::Full, text)
        })
    }

    fn order(&mut self, key: Key, order: Order) {
        let Self { shared, keepers, fatal, .. } = self;
        keepers.order(key, order, |key, orders, busy| {
            Keeper::spawn(Arc::clone(shared), key, orders, busy, fatal.0.clone())
        });
    }

    /// Starts what the log says is to run, and answers for what was told to end meanwhile.
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

    /// The frame of a version, unless it brought the Host before this one down.
    async fn create_frame(&self, id: Option<FrameId>) -> Result<Option<Frame>, HostError> {
        match id.filter(|id| !self.culprits.contains(&thread_name(*id))) {
            Some(id) => Ok(self.shared.client.get(Bound::Id(id)).await?),
            None => Ok(None),
        }
    }

    /// Says that the versions which brought the Host before this one down have failed, so that
    /// they are not started again. A thread is named after its version. Whether the store knows.
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
                tracing::warn!(%error, "the store was not told of the versions that crashed");
                Ok(false)
            }
        }
    }

    /// Makes the log agree with what crashed and with the files. What the store does not take now
    /// is offered again after a wait.
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

    /// Ends every processor, within a time.
    async fn stop(self, shutdown: &CancellationToken) {
        shutdown.cancel();
        if tokio::time::timeout(STOP_MAX, self.keepers.end()).await.is_err() {
            tracing::error!("some modules did not end in time; they end with the process");
        }
    }
}

/// All that the log says of processors, and will say.
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
    // It never fails: whoever counts lives as long as whoever waits.
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
