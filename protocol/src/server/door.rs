//! Connections waiting for HELLO. Before HELLO a connection has shown no token, and it may hold a
//! descriptor until the HELLO timeout. So only part of a server's connections may wait, and only
//! half of that part may come from one address. To make room for a new one, the oldest connections
//! that have had time to say HELLO give way. A burst of legitimate connections has not had that
//! time: it may wait while enough connections are free for others. So a burst delays nobody: each
//! connection is served as it arrives, and what a burst holds is bounded both by the free
//! connections and in time.

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
use crate::limits::{WAITING_MAX, WAITING_MIN, WAITING_TIME};

/// When a connection that gave way may reconnect.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// The connections that wait before HELLO.
pub(super) struct Door {
    max: usize,
    /// Connections kept free of bursts.
    spare: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// Keyed by number, hence in order of arrival.
    all: BTreeMap<u64, One>,
    by_peer: HashMap<IpAddr, BTreeSet<u64>>,
}

struct One {
    peer: Option<IpAddr>,
    bell: Arc<Bell>,
    since: Instant,
}

/// Signals a connection to give way, in any state.
struct Bell {
    /// During the TLS handshake.
    handshake: CancellationToken,
    /// After it.
    mailbox: Arc<Mailbox>,
}

/// Registers a waiting connection until it is dropped.
pub(super) struct DoorSlot {
    door: Arc<Door>,
    number: u64,
    bell: Arc<Bell>,
}

impl Door {
    /// The door of a server with this limit of connections.
    pub(super) fn of(connections: usize) -> Arc<Self> {
        let max = (connections / 4).clamp(WAITING_MIN, WAITING_MAX);
        Arc::new(Self { max, spare: connections / 4, waiting: Mutex::default() })
    }

    /// Adds a waiting connection, and makes others give way if there are too many; returns how many
    /// did. `free` further connections are available.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        mailbox: &Arc<Mailbox>,
        free: usize,
        now: Instant,
    ) -> (DoorSlot, usize) {
        let peer = peer.map(network);
        let (handshake, mailbox) = (CancellationToken::new(), Arc::clone(mailbox));
        let bell = Arc::new(Bell { handshake, mailbox });
        let mut give_way = Vec::new();
        let number = {
            let mut waiting = self.waiting.lock();
            while let Some(oldest) = waiting.oldest(peer, self.max) {
                let is_crowded = free < self.spare && give_way.is_empty();
                if !is_crowded && !waiting.is_late(oldest, now) {
                    break;
                }
                give_way.extend(waiting.leave(oldest));
            }
            waiting.enter(One { peer, bell: Arc::clone(&bell), since: now })
        };
        give_way.iter().for_each(|bell| bell.ring());
        (DoorSlot { door: Arc::clone(self), number, bell }, give_way.len())
    }

    /// Makes one connection give way because the server has reached its limit; returns whether one
    /// did. With `at_once`, that may be one that has not had its time, of the address with the most
    /// waiting connections.
    pub(super) fn make_room(&self, at_once: bool, now: Instant) -> bool {
        let gives_way = {
            let mut waiting = self.waiting.lock();
            let oldest = waiting.all.keys().next().copied();
            let late = oldest.filter(|number| waiting.is_late(*number, now));
            let of_the_most = || {
                let most = waiting.by_peer.values().max_by_key(|numbers| numbers.len());
                most.and_then(|numbers| numbers.first().copied()).or(oldest)
            };
            let number = late.or_else(|| of_the_most().filter(|_| at_once));
            number.and_then(|number| waiting.leave(number))
        };
        if let Some(bell) = &gives_way {
            bell.ring();
        }
        gives_way.is_some()
    }
}

impl Bell {
    fn ring(&self) {
        self.handshake.cancel();
        self.mailbox.post(Mail::GiveWay);
    }
}

/// Since when a listener has found no room, and when it last did.
#[derive(Default)]
pub(super) struct Shortage(Option<(Instant, Instant)>);

impl Shortage {
    /// Whether there was room for some time before now.
    pub(super) fn is_new(&self, now: Instant) -> bool {
        self.0.is_none_or(|(_, last)| now.saturating_duration_since(last) >= WAITING_TIME)
    }

    /// Notes that there is no room; returns whether that has lasted long. Until then new
    /// connections have their time, and after it a recurring burst delays nobody.
    pub(super) fn is_long(&mut self, now: Instant) -> bool {
        let is_past = |at: Instant| now.saturating_duration_since(at) >= WAITING_TIME;
        let since = match self.0 {
            Some((since, last)) if !is_past(last) => since,
            _ => now,
        };
        self.0 = Some((since, now));
        is_past(since)
    }
}

impl Waiting {
    /// The first connection to give way for one more from an address, if there are too many.
    fn oldest(&self, peer: Option<IpAddr>, max: usize) -> Option<u64> {
        let of_peer = peer.and_then(|peer| self.by_peer.get(&peer));
        match of_peer.filter(|numbers| numbers.len() >= max / 2) {
            Some(numbers) => numbers.first().copied(),
            None if self.all.len() >= max => self.all.keys().next().copied(),
            None => None,
        }
    }

    /// Whether a connection has had its time.
    fn is_late(&self, number: u64, now: Instant) -> bool {
        let one = self.all.get(&number);
        one.is_some_and(|one| now.saturating_duration_since(one.since) >= WAITING_TIME)
    }

    fn enter(&mut self, one: One) -> u64 {
        let number = self.next;
        self.next += 1;
        if let Some(peer) = one.peer {
            self.by_peer.entry(peer).or_default().insert(number);
        }
        self.all.insert(number, one);
        number
    }

    fn leave(&mut self, number: u64) -> Option<Arc<Bell>> {
        let One { peer, bell, .. } = self.all.remove(&number)?;
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

impl DoorSlot {
    /// Completes when the connection must give way; without a slot, never.
    pub(super) async fn given_way(slot: Option<&Self>) {
        match slot {
            Some(slot) => slot.bell.handshake.cancelled().await,
            None => pending().await,
        }
    }
}

impl Drop for DoorSlot {
    fn drop(&mut self) {
        self.door.waiting.lock().leave(self.number);
    }
}

impl Desk {
    /// Makes this client give way to others, as it has waited for HELLO the longest.
    pub(super) fn give_way(&mut self, now: Instant) {
        // HELLO may have been said meanwhile.
        if self.visitor.slot.take().is_some() {
            let text = "too many connections wait to say HELLO, and this one has the longest; \
                connect again";
            let refusal = Refusal::new(Code::Busy, text);
            let ms = COME_AGAIN.as_millis() as u32;
            self.session.close_now(&refusal.with(Detail::RetryAfterMs(ms)), now);
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

    /// No connections are free beyond their share.
    const NONE: usize = 0;

    #[test]
    fn an_address_has_half_of_the_places_and_leaves_nothing_behind() {
        let (door, mailbox, now) = (Door::of(256), Arc::default(), Instant::now());
        let enter = |peer| door.enter(peer, &mailbox, NONE, now);
        let mut slots: Vec<_> = (0..32).map(|_| enter(ip("2001:db8::1"))).collect();
        assert!(slots.iter().all(|(_, gave_way)| *gave_way == 0));
        let (_, gave_way) = enter(ip("2001:db8::2"));
        assert_eq!(gave_way, 1, "it is of the same network");
        assert!(slots[0].0.bell.handshake.is_cancelled());
        slots.extend((0..33).map(|_| enter(None)));
        assert_eq!(slots.last().unwrap().1, 0, "one had left: they are 64");
        assert!(enter(None).1 == 1 && slots[1].0.bell.handshake.is_cancelled());
        drop(slots);
        let waiting = door.waiting.lock();
        assert!(waiting.all.is_empty() && waiting.by_peer.is_empty());
    }

    #[test]
    fn a_crowd_waits_side_by_side_for_its_time_while_there_is_room() {
        let (door, mailbox, now) = (Door::of(256), Arc::default(), Instant::now());
        let peer = ip("10.0.0.1");
        let enter = |free, now| door.enter(peer, &mailbox, free, now);
        let mut slots: Vec<_> = (0..100).map(|_| enter(64, now)).collect();
        let soon = now + WAITING_TIME - Duration::from_millis(1);
        slots.push(enter(64, soon));
        assert!(slots.iter().all(|(_, gave_way)| *gave_way == 0));
        slots.push(enter(63, soon));
        assert_eq!(slots.last().unwrap().1, 1, "a quarter is for others");
        slots.push(enter(64, now + WAITING_TIME));
        assert_eq!(slots.last().unwrap().1, 70, "all that were beyond its share");
        assert_eq!(door.waiting.lock().all.len(), 32);
    }

    #[test]
    fn room_is_made_by_the_late_and_in_the_long_run_by_a_crowd() {
        let (door, mailbox, now) = (Door::of(256), Arc::default(), Instant::now());
        assert!(!door.make_room(true, now), "nobody waits");
        let enter = |text, now| door.enter(ip(text), &mailbox, NONE, now).0;
        let first = enter("10.0.0.1", now);
        let later = now + Duration::from_secs(1);
        let crowd = [enter("10.0.0.2", later), enter("10.0.0.2", later)];
        let is_out = |slot: &DoorSlot| slot.bell.handshake.is_cancelled();
        assert!(!door.make_room(false, later), "nobody has had its time");
        assert!(door.make_room(true, later) && is_out(&crowd[0]) && !is_out(&first));
        assert!(door.make_room(false, now + WAITING_TIME) && is_out(&first));
        assert!(!door.make_room(false, now + WAITING_TIME) && !is_out(&crowd[1]));
        let local = door.enter(None, &mailbox, NONE, later).0;
        assert!(door.make_room(true, later) && door.make_room(true, later));
        assert!(is_out(&crowd[1]) && is_out(&local));
    }

    #[test]
    fn a_shortage_is_long_after_a_while_and_begins_anew_after_another() {
        let (mut shortage, now) = (Shortage::default(), Instant::now());
        let mut after = |halves: u32| shortage.is_long(now + WAITING_TIME / 2 * halves);
        let told = [0, 1, 2, 3, 5, 6, 7].map(|halves| (halves, after(halves)));
        let long = told.into_iter().filter(|(_, is_long)| *is_long);
        assert_eq!(long.map(|(halves, _)| halves).collect::<Vec<_>>(), [2, 3, 7]);
    }
}
