//! How long the answer to a wrong token is delayed: per address, and with a bounded number of
//! addresses. Guessing 256 bits is hopeless anyway; this limits the load and the noise of attempts.
//! A valid token is never delayed: otherwise anyone at the same address could lock its owner out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use crate::limits::{
    FAILURE_DELAY_MAX, FAILURE_DELAY_MIN, FAILURE_MEMORY, FAILURES_FREE, FAILURES_WAITING_MAX,
    THROTTLE_PEERS_MAX,
};

/// Recent failures by address.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    peers: HashMap<IpAddr, Failures>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
    /// All answers that are delayed at present are due by then.
    busy_until: Instant,
    waiting: u32,
}

/// When a failure may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Not before this instant.
    At(Instant),
    /// At once, without saying whether the token was valid: too many answers are delayed already.
    TooMany,
}

impl Throttle {
    /// Counts a failure of an address.
    pub(super) fn failed(&mut self, peer: IpAddr, now: Instant) -> Answer {
        let peer = network(peer);
        if self.peers.len() >= THROTTLE_PEERS_MAX && !self.peers.contains_key(&peer) {
            self.make_room(now);
        }
        let fresh = Failures { count: 0, last: now, busy_until: now, waiting: 0 };
        let failures = self.peers.entry(peer).or_insert(fresh);
        if now.duration_since(failures.last) > FAILURE_MEMORY {
            *failures = fresh;
        }
        if now >= failures.busy_until {
            failures.waiting = 0;
        }
        if failures.waiting >= FAILURES_WAITING_MAX {
            return Answer::TooMany;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        let Some(over) = failures.count.checked_sub(FAILURES_FREE + 1) else {
            return Answer::At(now);
        };
        let delay = FAILURE_DELAY_MIN.saturating_mul(1 << over.min(16)).min(FAILURE_DELAY_MAX);
        let at = now + delay;
        failures.waiting += 1;
        failures.busy_until = failures.busy_until.max(at);
        Answer::At(at)
    }

    /// Forgets expired entries, or else the address that failed longest ago.
    fn make_room(&mut self, now: Instant) {
        self.peers.retain(|_, failures| now.duration_since(failures.last) <= FAILURE_MEMORY);
        if self.peers.len() >= THROTTLE_PEERS_MAX
            && let Some(oldest) =
                self.peers.iter().min_by_key(|(_, failures)| failures.last).map(|(peer, _)| *peer)
        {
            self.peers.remove(&oldest);
        }
    }
}

/// Groups IPv6 addresses by their /64, which a single host controls.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn failures_are_delayed_longer_and_longer_and_forgotten() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let a = ip("10.0.0.1");
        let delay = |throttle: &mut Throttle, at: Instant| match throttle.failed(a, at) {
            Answer::At(until) => until - at,
            Answer::TooMany => panic!("too many"),
        };
        for _ in 0..FAILURES_FREE {
            assert_eq!(delay(&mut throttle, now), Duration::ZERO);
        }
        let (mut at, mut last) = (now, Duration::ZERO);
        for n in 0..8 {
            let this = delay(&mut throttle, at);
            assert!(n == 0 || this == (last * 2).min(FAILURE_DELAY_MAX), "{this:?}");
            (at, last) = (at + this, this);
        }
        assert_eq!(last, FAILURE_DELAY_MAX);
        assert_eq!(throttle.failed(ip("10.0.0.2"), at), Answer::At(at), "others are not held back");
        let later = at + FAILURE_MEMORY + Duration::from_secs(1);
        assert_eq!(delay(&mut throttle, later), Duration::ZERO);
    }

    #[test]
    fn few_answers_are_held_back_at_a_time() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let a = ip("10.0.0.1");
        for _ in 0..FAILURES_FREE + FAILURES_WAITING_MAX {
            assert!(matches!(throttle.failed(a, now), Answer::At(_)));
        }
        assert_eq!(throttle.failed(a, now), Answer::TooMany);
        let later = now + FAILURE_DELAY_MAX;
        assert!(matches!(throttle.failed(a, later), Answer::At(_)));
    }

    #[test]
    fn addresses_are_remembered_within_bounds() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..THROTTLE_PEERS_MAX as u32 + 10 {
            throttle.failed(IpAddr::V4(n.into()), now + Duration::from_millis(u64::from(n)));
        }
        assert_eq!(throttle.peers.len(), THROTTLE_PEERS_MAX);
        assert!(!throttle.peers.contains_key(&ip("0.0.0.0")), "the oldest went");
        assert_eq!(network(ip("2001:db8::1")), network(ip("2001:db8::ffff")));
        assert_ne!(network(ip("2001:db8:0:1::1")), network(ip("2001:db8::1")));
        assert_eq!(network(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }
}
