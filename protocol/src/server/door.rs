//! The place in front of HELLO. Who has not said it yet has shown no token either, and costs a
//! descriptor for as long as the time for HELLO, so only some of the connections that a server may
//! have wait here, and of one address half of those. For a further one that which has waited the
//! longest gives way: who means to say HELLO says it at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::mailbox::{Mail, Mailbox};
use crate::auth::network;
use crate::error::{Code, Detail, Refusal};
use crate::limits::{WAITING_MAX, WAITING_MIN};

/// When one that gave way may come again.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// Connections that wait in front of HELLO.
pub(super) struct Door {
    max: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// By number, and so in the order they came.
    all: BTreeMap<u64, (Option<IpAddr>, Arc<Bell>)>,
    by_peer: HashMap<IpAddr, BTreeSet<u64>>,
}

/// Tells a connection that it gives way, whatever it does.
struct Bell {
    /// During the handshake of TLS.
    handshake: CancellationToken,
    /// After it.
    mailbox: Arc<Mailbox>,
}

/// The place of a connection, until this is dropped.
pub(super) struct Place {
    door: Arc<Door>,
    number: u64,
    bell: Arc<Bell>,
}

impl Door {
    /// The door of a server that may have so many connections.
    pub(super) fn of(connections: usize) -> Arc<Self> {
        let max = (connections / 4).clamp(WAITING_MIN, WAITING_MAX);
        Arc::new(Self { max, waiting: Mutex::default() })
    }

    /// Has a connection wait, and another give way for it where they are too many; whether one did.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        mailbox: &Arc<Mailbox>,
    ) -> (Place, bool) {
        let peer = peer.map(network);
        let (handshake, mailbox) = (CancellationToken::new(), Arc::clone(mailbox));
        let bell = Arc::new(Bell { handshake, mailbox });
        let (number, gives_way) = {
            let mut waiting = self.waiting.lock();
            let oldest = waiting.oldest(peer, self.max);
            let gives_way = oldest.and_then(|number| waiting.leave(number));
            (waiting.enter(peer, Arc::clone(&bell)), gives_way)
        };
        if let Some(bell) = &gives_way {
            bell.handshake.cancel();
            bell.mailbox.post(Mail::GiveWay);
        }
        (Place { door: Arc::clone(self), number, bell }, gives_way.is_some())
    }
}

impl Waiting {
    /// Who gives way for one more from an address, if anyone must.
    fn oldest(&self, peer: Option<IpAddr>, max: usize) -> Option<u64> {
        let of_peer = peer.and_then(|peer| self.by_peer.get(&peer));
        match of_peer.filter(|numbers| numbers.len() >= max / 2) {
            Some(numbers) => numbers.first().copied(),
            None if self.all.len() >= max => self.all.keys().next().copied(),
            None => None,
        }
    }

    fn enter(&mut self, peer: Option<IpAddr>, bell: Arc<Bell>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.all.insert(number, (peer, bell));
        if let Some(peer) = peer {
            self.by_peer.entry(peer).or_default().insert(number);
        }
        number
    }

    fn leave(&mut self, number: u64) -> Option<Arc<Bell>> {
        let (peer, bell) = self.all.remove(&number)?;
        if let Some(peer) = peer
            && let Some(numbers) = self.by_peer.get_mut(&peer)
        {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
        Some(bell)
    }
}

impl Place {
    /// Comes to an end when a connection gives way; one that has no place never does.
    pub(super) async fn given_way(place: Option<&Self>) {
        match place {
            Some(place) => place.bell.handshake.cancelled().await,
            None => pending().await,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.waiting.lock().leave(self.number);
    }
}

impl Desk {
    /// Others want to say HELLO, and this client has not said it for the longest.
    pub(super) fn give_way(&mut self, now: Instant) {
        // It may have been said meanwhile.
        if self.visitor.place.take().is_some() {
            let text = "too many connections wait to say HELLO, and this one has the longest; \
                connect again";
            let refusal = Refusal::new(Code::Busy, text);
            let ms = COME_AGAIN.as_millis() as u32;
            self.session.part(&refusal.with(Detail::RetryAfterMs(ms)), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_quarter_of_the_connections_may_wait() {
        for (connections, max) in [(0, 64), (256, 64), (260, 65), (12_000, 3000), (99_999, 3000)] {
            assert_eq!(Door::of(connections).max, max, "{connections}");
        }
    }

    #[test]
    fn an_address_has_half_of_the_places_and_leaves_nothing_behind() {
        let (door, mailbox) = (Door::of(256), Arc::default());
        let enter = |peer| door.enter(peer, &mailbox);
        let mut places: Vec<_> = (0..32).map(|_| enter(ip("2001:db8::1"))).collect();
        assert!(places.iter().all(|(_, gave_way)| !gave_way));
        let (_, gave_way) = enter(ip("2001:db8::2"));
        assert!(gave_way, "it is of the same network");
        assert!(places[0].0.bell.handshake.is_cancelled());
        places.extend((0..33).map(|_| enter(None)));
        assert!(!places.last().unwrap().1, "one had left: they are 64");
        assert!(enter(None).1 && places[1].0.bell.handshake.is_cancelled());
        drop(places);
        let waiting = door.waiting.lock();
        assert!(waiting.all.is_empty() && waiting.by_peer.is_empty());
    }
}
