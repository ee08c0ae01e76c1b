//! The Host: runs the modules of a directory, and reaches the store only as a client. It follows
//! the lifecycle frames in the log and acts on them; the files are only one of the sources of those
//! frames. It owns no data: if it dies, the next Host continues from the log.

mod admission;
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
mod identity;
mod keeper;
mod keepers;
pub mod lifecycle;
mod log_limiter;
mod options;
mod part;
pub mod replay;
mod report;
mod spare;
mod store;
mod sync;
mod version;
mod watch;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde_json::{Map, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xs_engine::{Frame, ReadOptions, Start, TopicPatterns};
use xs_protocol::{AppendRequest, ClientError, SubEvent, SubscribeOptions, Subscription};

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
use crate::name::{Kind, thread_name};
use crate::share;

pub use complaint::CONFIG_TOPIC;
pub use handler::cursor::{HandlerCursor, HandlerCursorError, Retry, State};
pub use handler::parked::{PARKED, about};
pub use options::{HostEnd, HostError, HostOptions};
pub use part::Part;
pub use report::TOLD;
pub use store::processor_cursor;

/// Time within which all modules together must end when the Host is stopped.
const STOP_MAX: Duration = Duration::from_secs(12);
/// Maximum number of processors that one Host runs at the same time.
pub const PROCESSORS_MAX: usize = 256;
// Whatever number of streams the modules use, one remains for every handler and command.
const _: () = assert!(
    PROCESSORS_MAX * (share::STREAMS_MAX + share::BLOBS_MAX + 1)
        < xs_protocol::limits::HOST_STREAMS_MAX as usize
);
/// Maximum number of isolates that a Host creates beyond the first of each processor. Each leaks
/// about 0.8 MB, which the engine returns only when the process exits.
pub const SPENT_ISOLATES_MAX: usize = 256;
/// Time for calls in progress to end before a Host is replaced by a fresh one.
const DRAIN_MAX: Duration = Duration::from_secs(30);

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
    /// Delivered frames that are not folded yet, at most those of one delivery.
    delivered: VecDeque<Frame>,
    /// Once `delivered` is folded, so are all frames before this offset.
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
    /// Number of processors that it tried to start at the beginning.
    first_isolates: usize,
    processors_max: usize,
    /// Processors that run or are about to.
    admitted: HashSet<Key>,
    /// Processors that wait for room.
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
            admitted: HashSet::new(),
            waiting: BTreeSet::new(),
            keepers: Keepers::default(),
            // Reasons for the Host to end, of which it reads only the first.
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
            // The first isolate of a processor is exempt only while the processor is admitted:
            // names may come and go forever.
            let first = self.first_isolates.max(self.admitted.len());
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

    /// Takes the next event of the subscription; returns whether it has caught up. The frames of
    /// the previous event must be folded.
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

    /// Folds the delivered frames and, if `act`, acts on them, as far as the keepers have room.
    fn fold_delivered(&mut self, act: bool) {
        while !self.keepers.is_behind() {
            let Some(frame) = self.delivered.pop_front() else {
                self.folded = self.folded.max(self.scanned_to);
                return;
            };
            self.frame(frame, act);
        }
    }

    /// Folds one frame and, if `act`, acts on it.
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

    fn order(&mut self, key: Key, order: Order) {
        let Self { shared, keepers, fatal, .. } = self;
        keepers.order(key, order, |key, orders, busy| {
            Keeper::spawn(Arc::clone(shared), key, orders, busy, fatal.0.clone())
        });
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

/// Checks that the directory of the modules exists, and keeps its types for editors up to date.
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
