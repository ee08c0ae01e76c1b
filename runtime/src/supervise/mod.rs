//! The server's side of the Hosts: starts them as child processes over socket pairs, restarts each
//! when it ends, tells the next one on which thread the last one crashed, and leaves no child
//! behind. It knows of modules only which of them have their own Host; what a Host does is in
//! [`crate::host`]. The caller decides how to reach the server: in this process, or elsewhere.

mod apart;
mod calls;
pub mod child;
mod confine;
mod crash;
mod priority;
mod session;
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

/// Variable that tells a Host on which threads earlier ones crashed.
const CULPRITS_VARIABLE: &str = "XS_HOST_CULPRITS";
/// Exit code of a Host that must be replaced because one of its threads does not end.
const EXIT_WEDGED: u8 = 75;
/// Exit code of a Host that must be replaced to free its memory.
pub const EXIT_WORN: u8 = 76;
/// Exit code of a Host whose server is stopping, or unreachable.
const EXIT_LOST: u8 = 77;
/// Wait before the next Host when the cause of the last end is known.
const KNOWN_CAUSE: Duration = Duration::from_millis(100);
/// A connection that lasted this long is re-established at once when it is lost.
const SETTLED: Duration = Duration::from_secs(10);
/// Maximum number of threads that are reported to a Host; the oldest are dropped.
const CULPRITS_MAX: usize = 64;
/// Time for a Host to end after SIGTERM: its own limit plus a margin.
const STOP_MAX: Duration = Duration::from_secs(15);

/// How to start a Host.
#[derive(Debug, Clone)]
pub struct SuperviseOptions {
    /// The program, normally the running one.
    pub program: PathBuf,
    /// Its arguments, which make it call [`child::main`]. They are followed by [`APART`] and
    /// [`ONLY`], each with a name, which define the [`Part`](crate::host::Part) of a Host.
    pub args: Vec<OsString>,
    /// The directory of the modules, whose `xs.toml` says which have their own Host.
    pub modules: Option<PathBuf>,
    /// Environment variables of this process that no Host gets.
    pub hidden: Vec<String>,
    /// Whether standard error of this process is a JSON log: then other text that a Host writes to
    /// its standard error, as a library or a panic does, becomes a line of that log.
    pub is_json_log: bool,
}

/// Connects to the server, for the Host of a single processor or for the shared one. Called before
/// each start of a Host.
pub type Connect =
    Box<dyn Fn(Option<String>) -> BoxFuture<'static, Result<Link, NoWay>> + Send + Sync>;

/// Takes over the server's end of a Host's socket pair, which has the role host.
pub type Link = Box<dyn FnOnce(UnixStream) -> Lost + Send>;

/// Resolves when the server is lost, before the Host's socket is closed, with the reason for
/// people.
pub type Lost = BoxFuture<'static, String>;

/// Why a connection will never be possible.
pub type Refused = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no connection to the server.
#[derive(Debug)]
pub enum NoWay {
    /// Possible later; the reason, for people.
    Yet(String),
    /// Never possible.
    Ever(Refused),
}

/// Keeps Hosts running until it is stopped, or the server can never be reached again.
#[derive(Debug)]
pub struct Supervisor {
    stop: CancellationToken,
    way: Arc<Way>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the Hosts, and restarts each when it ends. Must be called inside a tokio runtime.
    /// `connect` is called for each start.
    #[must_use]
    pub fn start(options: SuperviseOptions, connect: Connect) -> Self {
        let stop = CancellationToken::new();
        let way = Arc::new(Way::new(connect, stop.clone()));
        let task = tokio::spawn(apart::run(options, Arc::clone(&way), stop.clone()));
        Self { stop, way, task }
    }

    /// Waits until the server can never be reached, and returns why. The Hosts then end.
    pub async fn refused(&self) -> Refused {
        self.way.refused().await
    }

    /// Stops the Hosts, giving their modules time to end. Returns when the processes have exited.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the supervisor failed");
        }
    }
}

/// How a Host ended.
enum End {
    /// Its connection was lost.
    Lost,
    /// For a known cause that ends with it.
    Known,
    /// It crashed on these threads.
    Crashed(Vec<String>),
    Unknown,
}

/// State carried from one Host to the next.
#[derive(Default)]
struct Next {
    /// Threads that crashed a Host, passed to every later Host. Whether one of these has reported
    /// them is unknown: the store may have been full or unreachable, or the Host may not have got
    /// that far. A Host that gets a thread again finds that its version no longer runs, and reports
    /// nothing.
    culprits: Vec<String>,
    backoff: Backoff,
}

impl Next {
    /// Records how a Host ended and how long it ran; returns the delay before the next one. An end
    /// whose cause ended with it does not lengthen the delay.
    fn after(&mut self, end: End, ran: Duration) -> Duration {
        match end {
            End::Lost if ran >= SETTLED => {
                self.backoff = Backoff::default();
                Duration::ZERO
            }
            End::Lost => self.longer(ran).min(way::WAIT_MAX),
            End::Known => KNOWN_CAUSE,
            End::Crashed(mut threads) => {
                threads.retain(|thread| is_avoidable(thread));
                let is_new = threads.iter().any(|thread| !self.culprits.contains(thread));
                self.culprits.retain(|culprit| !threads.contains(culprit));
                self.culprits.extend(threads);
                let excess = self.culprits.len().saturating_sub(CULPRITS_MAX);
                self.culprits.drain(..excess);
                // The next one crashes in the same way unless it avoids something new.
                if is_new { KNOWN_CAUSE } else { self.longer(ran) }
            }
            End::Unknown => self.longer(ran),
        }
    }

    fn longer(&mut self, ran: Duration) -> Duration {
        self.backoff.next(ran, random())
    }
}

/// Classifies an exit.
async fn ended(child: &mut Child, exit: &str, way: &Way) -> End {
    let culprits = child.culprits().await;
    let ended_with = |code: u8| child.code() == Some(i32::from(code));
    if ended_with(EXIT_LOST) {
        way.disconnected("the Host ended with it");
        return End::Lost;
    }
    if ended_with(EXIT_WORN) {
        tracing::info!("the Host is replaced by a new one");
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
                        way.disconnected(&why);
                        // It ends on its own: a Host cannot continue without its connection.
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
        // The Host that received them lost its connection, and may not have reported them.
        let wait = next.after(End::Lost, Duration::ZERO);
        assert!(wait > Duration::ZERO && wait <= way::WAIT_MAX, "{wait:?}");
        assert_eq!(next.culprits, [a, b]);
        assert_eq!(next.after(End::Lost, SETTLED), Duration::ZERO);
        // It did not start, or the store took nothing from it.
        assert!(next.after(End::Unknown, Duration::ZERO) > KNOWN_CAUSE);
        assert_eq!(next.culprits, [a, b]);
        // The next Host crashes on another thread, and one ends without a module to blame.
        next.after(crashed(&[c, a]), SETTLED);
        next.after(End::Known, SETTLED);
        assert_eq!(next.culprits, [b, c, a]);
        for n in 0..1_000 {
            next.after(crashed(&[&format!("js-{n:012}")]), SETTLED);
        }
        assert_eq!(next.culprits.len(), CULPRITS_MAX);
        assert_eq!(next.culprits[CULPRITS_MAX - 1], "js-000000000999");
    }

    /// Such a Host was once restarted ten times a second, forever.
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

    /// After several modules had crashed one Host each, the first end without a module to blame was
    /// once delayed as if it were one of many.
    #[test]
    fn ends_of_a_known_cause_lengthen_no_later_wait() {
        let mut next = Next::default();
        for n in 0..10 {
            let crashed = End::Crashed(vec![format!("js-{n:012}")]);
            assert_eq!(next.after(crashed, Duration::ZERO), KNOWN_CAUSE);
            assert_eq!(next.after(End::Known, Duration::ZERO), KNOWN_CAUSE);
        }
        assert!(next.after(End::Unknown, Duration::ZERO) <= Duration::from_secs(1));
    }

    #[test]
    fn a_server_that_is_lost_again_and_again_is_asked_every_few_seconds() {
        let mut next = Next::default();
        let waits: Vec<_> = (0..20).map(|_| next.after(End::Lost, Duration::ZERO)).collect();
        assert!(waits.iter().all(|&wait| wait <= way::WAIT_MAX), "{waits:?}");
        assert!(waits[19] >= way::WAIT_MAX / 2, "{waits:?}");
    }
}
