//! The connection to the server: retried until it succeeds, with each change logged. Shared by all
//! Hosts, so that a common failure is logged once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Connect, Link, NoWay, Refused};
use crate::host::backoff::{Backoff, random};

/// The longest wait between two attempts: a server, or a slot freed by another Host, is found
/// within a few seconds, and an attempt costs next to nothing.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(4);

/// The last known state.
#[derive(Debug)]
struct Known {
    /// Why the server cannot be reached at present.
    missing: Option<String>,
    refused: Option<Refused>,
}

/// The connection to the server.
pub(super) struct Way {
    connect: Connect,
    known: Mutex<Known>,
    /// Cancelled when the server can never be reached.
    never: CancellationToken,
    /// Stops all Hosts.
    stop: CancellationToken,
}

impl Way {
    pub(super) fn new(connect: Connect, stop: CancellationToken) -> Self {
        let known = Mutex::new(Known { missing: None, refused: None });
        Self { connect, known, never: CancellationToken::new(), stop }
    }

    /// Tries until the server is reached, for the Host of one processor or the shared one; `None`
    /// when it never will be. Cancel-safe.
    pub(super) async fn find(&self, alone: Option<&str>) -> Option<Link> {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            match (self.connect)(alone.map(str::to_owned)).await {
                Ok(link) => {
                    self.connected();
                    return Some(link);
                }
                Err(NoWay::Yet(why)) => self.set_missing(Some(why)),
                Err(NoWay::Ever(why)) => {
                    self.known.lock().refused.get_or_insert(why);
                    self.never.cancel();
                    self.stop.cancel();
                    return None;
                }
            }
            tokio::time::sleep(backoff.next(began.elapsed(), random()).min(WAIT_MAX)).await;
        }
    }

    /// Records that the server was reached.
    fn connected(&self) {
        self.set_missing(None);
    }

    /// Records that the connection was lost.
    pub(super) fn disconnected(&self, why: &str) {
        self.set_missing(Some(format!("the connection to the server ended: {why}")));
    }

    /// Records and logs a change; does nothing if there is none.
    fn set_missing(&self, why: Option<String>) {
        let mut known = self.known.lock();
        if known.missing == why {
            return;
        }
        match &why {
            Some(why) => tracing::warn!(why, "waiting for the server; no modules run"),
            None => tracing::info!("connected to the server; modules run"),
        }
        known.missing = why;
    }

    /// Waits until the server can never be reached, and returns why.
    pub(super) async fn refused(&self) -> Refused {
        self.never.cancelled().await;
        let why = self.known.lock().refused.take();
        why.unwrap_or_else(|| "the server cannot be reached".into())
    }
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").field("known", &self.known).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;

    use super::*;

    /// A way that is missing for `missing` attempts, then found, or ruled out for good if `never`.
    fn way(missing: usize, never: bool) -> (Way, Arc<AtomicUsize>) {
        let tries = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tries);
        let connect: Connect = Box::new(move |_| {
            let link: Link = Box::new(|_| std::future::pending().boxed());
            let found = match count.fetch_add(1, Ordering::Relaxed) {
                n if n < missing => Err(NoWay::Yet("nobody is there".to_owned())),
                _ if never => Err(NoWay::Ever("not you".into())),
                _ => Ok(link),
            };
            std::future::ready(found).boxed()
        });
        (Way::new(connect, CancellationToken::new()), tries)
    }

    #[tokio::test]
    async fn it_is_tried_until_it_is_there() {
        let (way, tries) = way(2, false);
        assert!(way.find(None).await.is_some());
        assert_eq!(tries.load(Ordering::Relaxed), 3);
        assert!(way.known.lock().missing.is_none() && !way.stop.is_cancelled());
        way.disconnected("it hung up");
        assert!(way.known.lock().missing.as_ref().unwrap().ends_with("ended: it hung up"));
    }

    #[tokio::test]
    async fn what_will_never_be_stops_all() {
        let (way, tries) = way(1, true);
        assert!(way.find(Some("a")).await.is_none());
        assert_eq!((tries.load(Ordering::Relaxed), way.stop.is_cancelled()), (2, true));
        assert_eq!(way.refused().await.to_string(), "not you");
    }
}
