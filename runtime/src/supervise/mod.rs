//! The server's side of the Hosts: starts them as child processes over socket pairs, starts each
//! again when it ends, tells the next one on whose thread the last one crashed, and leaves no child
//! behind. Knows nothing of modules but which have a Host of their own; what a Host does is in
//! [`crate::host`]. Where the server is, whoever starts it knows: in this process, or elsewhere.

mod apart;
mod calls;
pub mod child;
mod confine;
mod crash;
mod priority;
mod spawn;
mod way;

use std::ffi::OsString;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::apart::Plan;
pub use self::apart::{APART, ONLY};
use self::spawn::{Child, Spawner};
use self::way::Way;
use crate::host::backoff::{Backoff, random};
use crate::name::is_avoidable;

/// Variable in which a Host is told on whose threads the one before it crashed.
const CULPRITS_VARIABLE: &str = "XS_HOST_CULPRITS";
/// Exit code of a Host that has to be replaced because a thread of it does not end.
const EXIT_WEDGED: u8 = 75;
/// Exit code of a Host whose memory is to be given back.
pub const EXIT_WORN: u8 = 76;
/// Exit code of a Host whose server is stopping, or gone.
const EXIT_LOST: u8 = 77;
/// Wait before the next Host when it is known what the last one ended for.
const KNOWN_CAUSE: Duration = Duration::from_millis(100);
/// A connection that lasted so long is made anew at once when it is lost.
const SETTLED: Duration = Duration::from_secs(10);
/// Threads of which a Host is told; the oldest are left out.
const CULPRITS_MAX: usize = 64;
/// Time a Host has to end after SIGTERM: its own limit and some more.
const STOP_MAX: Duration = Duration::from_secs(15);

/// How to start a Host.
#[derive(Debug, Clone)]
pub struct SuperviseOptions {
    /// The program, in practice the running one.
    pub program: PathBuf,
    /// Its arguments, which make it call [`child::main`]. Behind them come [`APART`] and [`ONLY`],
    /// each with a name, which say the [`Part`](crate::host::Part) of a Host.
    pub args: Vec<OsString>,
    /// The directory of the modules, whose `xs.toml` says which have a Host of their own.
    pub modules: Option<PathBuf>,
    /// Variables of this process that no Host has.
    pub hidden: Vec<String>,
    /// Standard error of this process is a log of JSON: what a Host writes to its own and is none,
    /// as a library or a panic does, becomes a line of that log.
    pub is_json_log: bool,
}

/// Finds the way to the server for the Host of the processor of a name alone, or for that of all.
/// It is asked before each Host is started.
pub type Connect =
    Box<dyn Fn(Option<String>) -> BoxFuture<'static, Result<Link, NoWay>> + Send + Sync>;

/// Takes the server's end of a Host's socket pair, which has the role host.
pub type Link = Box<dyn FnOnce(UnixStream) -> Lost + Send>;

/// Ends when the server is lost, before the Host's socket is closed, and says how, for people.
pub type Lost = BoxFuture<'static, String>;

/// What is told when there will never be a way.
pub type Refused = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no way to the server.
#[derive(Debug)]
pub enum NoWay {
    /// Perhaps later: why, for people.
    Yet(String),
    /// Never.
    Ever(Refused),
}

/// Keeps Hosts running until it is stopped, or there is no way to the server any more.
#[derive(Debug)]
pub struct Supervisor {
    stop: CancellationToken,
    way: Arc<Way>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the Hosts, each now and whenever it has ended. Must be called inside a tokio runtime.
    /// `connect` is called for each.
    #[must_use]
    pub fn start(options: SuperviseOptions, connect: Connect) -> Self {
        let stop = CancellationToken::new();
        let way = Arc::new(Way::new(connect, stop.clone()));
        let task = tokio::spawn(apart::run(options, Arc::clone(&way), stop.clone()));
        Self { stop, way, task }
    }

    /// Waits until there will never be a way to the server, and says why. The Hosts end then.
    pub async fn refused(&self) -> Refused {
        self.way.refused().await
    }

    /// Stops the Hosts: their modules have their time to end. Returns when the processes are gone.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the supervisor failed");
        }
    }
}

/// How a Host ended.
enum End {
    /// With its connection.
    Lost,
    /// For a reason that is known, and passes with it.
    Known,
    /// On these threads.
    Crashed(Vec<String>),
    Unknown,
}

/// What is known for the next Host when one has ended.
#[derive(Default)]
struct Next {
    /// Threads that brought one down, of which each is told. Whether one has passed it on is not
    /// known: the store may have been full or gone, or it may not have begun. One that is told
    /// again finds that the version of such a thread does not run any more, and says nothing.
    culprits: Vec<String>,
    backoff: Backoff,
}

impl Next {
    /// Takes in how a Host ended and how long it ran; how long the next one waits.
    fn after(&mut self, end: End, ran: Duration) -> Duration {
        let wait = self.backoff.next(ran, random());
        match end {
            End::Lost if ran >= SETTLED => {
                self.backoff = Backoff::default();
                Duration::ZERO
            }
            End::Lost => wait.min(way::WAIT_MAX),
            End::Known => KNOWN_CAUSE,
            End::Crashed(mut threads) => {
                threads.retain(|thread| is_avoidable(thread));
                let is_new = threads.iter().any(|thread| !self.culprits.contains(thread));
                self.culprits.retain(|culprit| !threads.contains(culprit));
                self.culprits.extend(threads);
                let excess = self.culprits.len().saturating_sub(CULPRITS_MAX);
                self.culprits.drain(..excess);
                // The next one crashes as this one did unless it does without something.
                if is_new { KNOWN_CAUSE } else { wait }
            }
            End::Unknown => wait,
        }
    }
}

/// What an exit stands for.
async fn ended(child: &mut Child, exit: &str, way: &Way) -> End {
    let culprits = child.culprits().await;
    let ended_with = |code: u8| child.code() == Some(i32::from(code));
    if ended_with(EXIT_LOST) {
        way.is_lost("the Host has ended with it".to_owned());
        return End::Lost;
    }
    if ended_with(EXIT_WORN) {
        tracing::info!("the Host is replaced by a fresh one");
    } else {
        tracing::error!(exit, "the Host ended");
    }
    match culprits.is_empty() {
        false => End::Crashed(culprits),
        true if ended_with(EXIT_WEDGED) || ended_with(EXIT_WORN) => End::Known,
        true => End::Unknown,
    }
}

/// Keeps one Host running.
async fn keep(options: Arc<SuperviseOptions>, plan: Plan, way: Arc<Way>, stop: CancellationToken) {
    let spawner = Spawner::start();
    let mut next = Next::default();
    loop {
        let link = tokio::select! {
            () = stop.cancelled() => return,
            link = way.find(plan.alone.as_deref()) => link,
        };
        let Some(link) = link else { return };
        let began = Instant::now();
        let end = match start(&spawner, &options, &plan, &next.culprits, link).await {
            Ok((mut child, lost)) => {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return child.stop(STOP_MAX).await,
                    why = lost => {
                        way.is_lost(why);
                        // It ends by itself; a Host goes on from the log and in no other way.
                        child.stop(STOP_MAX).await;
                        End::Lost
                    }
                    exit = child.exited() => ended(&mut child, &exit, &way).await,
                }
            }
            Err(error) => {
                tracing::error!(%error, "the Host cannot be started");
                End::Unknown
            }
        };
        let wait = next.after(end, began.elapsed());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn start(
    spawner: &Spawner,
    options: &SuperviseOptions,
    plan: &Plan,
    culprits: &[String],
    link: Link,
) -> std::io::Result<(Child, Lost)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = spawner.spawn(options, plan, culprits, theirs).await?;
    Ok((child, link(UnixStream::from_std(ours)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_is_told_of_culprits_whatever_became_of_the_one_before() {
        let mut next = Next::default();
        let [a, b, c] = ["js-00000000000a", "js-00000000000b", "src-0000000000c"];
        let crashed =
            |names: &[&str]| End::Crashed(names.iter().map(|&name| name.into()).collect());
        assert_eq!(next.after(crashed(&[a, b]), Duration::ZERO), KNOWN_CAUSE);
        assert_eq!(next.culprits, [a, b]);
        // The Host that was told of them lost its connection, and may have said nothing.
        let wait = next.after(End::Lost, Duration::ZERO);
        assert!(wait > Duration::ZERO && wait <= way::WAIT_MAX, "{wait:?}");
        assert_eq!(next.culprits, [a, b]);
        assert_eq!(next.after(End::Lost, SETTLED), Duration::ZERO);
        // It did not start, or the store took nothing from it.
        assert!(next.after(End::Unknown, Duration::ZERO) > KNOWN_CAUSE);
        assert_eq!(next.culprits, [a, b]);
        // The next one went down for another one, or without a module to blame.
        next.after(crashed(&[c, a]), SETTLED);
        next.after(End::Known, SETTLED);
        assert_eq!(next.culprits, [b, c, a]);
        for n in 0..1_000 {
            next.after(crashed(&[&format!("js-{n:012}")]), SETTLED);
        }
        assert_eq!(next.culprits.len(), CULPRITS_MAX);
        assert_eq!(next.culprits[CULPRITS_MAX - 1], "js-000000000999");
    }

    /// It was started ten times a second, for ever.
    #[test]
    fn a_crash_that_tells_nothing_new_is_waited_for() {
        let mut next = Next::default();
        let crashed = |name: &str| End::Crashed(vec![name.to_owned()]);
        for name in ["xs-host", "js-blank", "main"] {
            assert!(next.after(crashed(name), Duration::ZERO) > KNOWN_CAUSE, "{name}");
        }
        assert!(next.culprits.is_empty());
        let version = "js-00000000000a";
        assert_eq!(next.after(crashed(version), Duration::ZERO), KNOWN_CAUSE);
        let waits = (0..10).map(|_| next.after(crashed(version), Duration::ZERO));
        assert!(waits.last().is_some_and(|wait| wait >= Duration::from_secs(15)));
        assert_eq!(next.culprits, [version]);
    }

    #[test]
    fn a_server_that_is_lost_again_and_again_is_asked_every_few_seconds() {
        let mut next = Next::default();
        let waits: Vec<_> = (0..20).map(|_| next.after(End::Lost, Duration::ZERO)).collect();
        assert!(waits.iter().all(|&wait| wait <= way::WAIT_MAX), "{waits:?}");
        assert!(waits[19] >= way::WAIT_MAX / 2, "{waits:?}");
    }
}
