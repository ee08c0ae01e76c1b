//! Decides who runs the modules of a store: the server itself, a remote Host, or neither. Never two
//! at once, or generators would run twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use xs_engine::Topic;
use xs_protocol::{Code, Detail, HostClaim, Refusal, Wake};

/// When a reconnecting Host may retry: its old connection has ended by then, unless it takes all
/// the time that it has for that.
const AGAIN_MS: u32 = 1_000;

/// Called when a Host arrives, with its first connection, and when its last one has ended: its
/// instance, and whether it is present.
pub(super) type Tell = Box<dyn Fn([u8; 16], bool) + Send + Sync>;

/// The Hosts of a store.
pub(super) struct Hosts {
    /// Whether the server itself runs modules.
    own: bool,
    tell: Tell,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    instance: [u8; 16],
    /// The connections of the instance: the purpose of each, and how to end it.
    parts: BTreeMap<Option<Topic>, Wake>,
    /// Whether there was a Host before: it may be about to return.
    seen: bool,
}

/// A connection of a Host.
struct Part {
    hosts: Weak<Hosts>,
    alone: Option<Topic>,
}

impl Hosts {
    /// The Hosts of a server that runs modules itself, or not. `seen`: whether the log mentions a
    /// remote Host.
    pub(super) fn new(own: bool, seen: bool, tell: Tell) -> Arc<Self> {
        Arc::new(Self { own, tell, present: Mutex::new(Present { seen, ..Present::default() }) })
    }

    /// Whether calls are answered now, or may be again.
    pub(super) fn answer_calls(&self) -> bool {
        self.own || self.present.lock().seen
    }

    /// Admits a connection of a Host, until the returned value is dropped.
    ///
    /// [`Refusal`] when another Host runs the modules, or the same one over an older connection,
    /// which is then made to end.
    pub(super) fn come(
        self: &Arc<Self>,
        claim: HostClaim,
        end: Wake,
    ) -> Result<impl Send + use<>, Refusal> {
        if self.own {
            let text = "the server runs the modules of this store itself: stop this Host, or \
                        restart the server without --modules";
            return Err(Refusal::new(Code::OwnHost, text));
        }
        let HostClaim { instance, alone } = claim;
        let mut present = self.present.lock();
        let first = present.parts.is_empty();
        if !first && present.instance != instance {
            let text = "another Host runs the modules of this store; this one takes over when that \
                        one is gone";
            return Err(Refusal::new(Code::OtherHost, text));
        }
        if let Some(before) = present.parts.get(&alone) {
            before();
            let text = "a previous connection of this Host is being closed";
            let refusal = Refusal::new(Code::OtherHost, text);
            return Err(refusal.with(Detail::RetryAfterMs(AGAIN_MS)));
        }
        present.instance = instance;
        present.parts.insert(alone.clone(), end);
        present.seen = true;
        if first {
            (self.tell)(instance, true);
        }
        drop(present);
        Ok(Part { hosts: Arc::downgrade(self), alone })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let Some(hosts) = self.hosts.upgrade() else { return };
        let mut present = hosts.present.lock();
        present.parts.remove(&self.alone);
        if present.parts.is_empty() {
            (hosts.tell)(present.instance, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = Arc<Mutex<Vec<([u8; 16], bool)>>>;

    fn hosts(own: bool) -> (Arc<Hosts>, Told) {
        let told = Told::default();
        let heard = Arc::clone(&told);
        (Hosts::new(own, false, Box::new(move |who, is| heard.lock().push((who, is)))), told)
    }

    fn claim(instance: u8, alone: &str) -> HostClaim {
        HostClaim { instance: [instance; 16], alone: Topic::parse(alone).ok() }
    }

    fn come(hosts: &Arc<Hosts>, claim: HostClaim) -> Result<impl Send + use<>, Code> {
        hosts.come(claim, Arc::new(|| ())).map_err(|refusal| refusal.code)
    }

    #[test]
    fn there_is_one_host_at_a_time() {
        let (hosts, told) = hosts(false);
        assert!(!hosts.answer_calls());
        let all = come(&hosts, claim(1, "")).unwrap();
        let alone = come(&hosts, claim(1, "a")).unwrap();
        assert_eq!(come(&hosts, claim(2, "b")).err(), Some(Code::OtherHost));
        drop(all);
        assert_eq!(come(&hosts, claim(2, "")).err(), Some(Code::OtherHost));
        drop(come(&hosts, claim(1, "")).unwrap());
        drop(alone);
        assert!(hosts.answer_calls(), "it may come again");
        let next = come(&hosts, claim(2, "")).unwrap();
        assert_eq!(*told.lock(), [([1; 16], true), ([1; 16], false), ([2; 16], true)]);
        drop(next);
    }

    #[test]
    fn who_comes_again_has_its_dead_connection_ended() {
        let (hosts, _) = hosts(false);
        let ended = Arc::new(Mutex::new(0));
        let count = Arc::clone(&ended);
        let end = Arc::new(move || *count.lock() += 1);
        let before = hosts.come(claim(1, "a"), end).map_err(|refusal| refusal.code).unwrap();
        let _all = come(&hosts, claim(1, "")).unwrap();
        assert_eq!((come(&hosts, claim(1, "a")).err(), *ended.lock()), (Some(Code::OtherHost), 1));
        drop(before);
        assert!(come(&hosts, claim(1, "a")).is_ok());
        assert_eq!(*ended.lock(), 1);
    }

    #[test]
    fn a_server_that_runs_modules_takes_no_host() {
        let (hosts, told) = hosts(true);
        assert!(hosts.answer_calls());
        assert_eq!(come(&hosts, claim(1, "")).err(), Some(Code::OwnHost));
        assert!(told.lock().is_empty());
        assert!(Hosts::new(false, true, Box::new(|_, _| ())).answer_calls(), "it may come again");
    }
}
