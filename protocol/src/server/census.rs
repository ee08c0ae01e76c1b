//! The current connections and their lag, for STATS and metrics. It keeps numbers only, and a
//! connection never waits for readers of them. Cumulative counts are in the meter.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::long_work::LongRoom;
use super::mailbox::Mailbox;
use super::meter::Meter;
use super::shelf::Shelf;

/// The connections of a server, and the state they share.
#[derive(Default)]
pub(crate) struct Connections {
    by_number: Mutex<HashMap<u64, Arc<Mailbox>>>,
    /// Threads and memory for their long work.
    pub(crate) long_room: Arc<LongRoom>,
    /// Holds lists until they are sent.
    pub(crate) shelf: Arc<Shelf>,
}

impl Connections {
    /// All connections, by number.
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Mailbox>>> {
        self.by_number.lock()
    }
}

/// Statistics of one connection.
#[derive(Default)]
pub(crate) struct Seat {
    /// Requests without a reply.
    pub(crate) requests: AtomicU64,
    /// Open streams.
    pub(crate) streams: AtomicU64,
    /// The open subscriptions.
    subscriptions: Mutex<Vec<Weak<SubscriptionOffset>>>,
}

/// The position of a subscription: the offset after what was sent on it.
#[derive(Default)]
pub(crate) struct SubscriptionOffset(AtomicU64);

impl SubscriptionOffset {
    pub(crate) fn set(&self, offset: u64) {
        self.0.store(offset, Ordering::Relaxed);
    }
}

impl Seat {
    /// Counts a new subscription, until the returned value is dropped.
    pub(crate) fn subscribed(&self, offset: u64) -> Arc<SubscriptionOffset> {
        let counted = Arc::new(SubscriptionOffset(AtomicU64::new(offset)));
        let mut subscriptions = self.subscriptions.lock();
        subscriptions.retain(|counted| counted.strong_count() > 0);
        subscriptions.push(Arc::downgrade(&counted));
        counted
    }
}

/// Totals over the connections of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Census {
    pub(super) connections: u64,
    requests: u64,
    pub(super) streams: u64,
    pub(super) subscriptions: u64,
    /// Lag in frames of the subscription furthest behind.
    pub(super) lag_frames_max: u64,
    /// Total lag in frames of all subscriptions.
    lag_frames_total: u64,
}

impl Census {
    /// Computes the totals, given the offset of the next frame.
    pub(crate) fn of(connections: &Connections, head: u64) -> Self {
        let seats: Vec<_> = connections.lock().values().cloned().collect();
        let mut census = Self { connections: seats.len() as u64, ..Self::default() };
        for mailbox in &seats {
            let seat = &mailbox.seat;
            census.requests += seat.requests.load(Ordering::Relaxed);
            census.streams += seat.streams.load(Ordering::Relaxed);
            for offset in seat.subscriptions.lock().iter().filter_map(Weak::upgrade) {
                let lag = head.saturating_sub(offset.0.load(Ordering::Relaxed));
                census.subscriptions += 1;
                census.lag_frames_max = census.lag_frames_max.max(lag);
                census.lag_frames_total = census.lag_frames_total.saturating_add(lag);
            }
        }
        census
    }

    /// The text of STATS: these numbers, the meter's counts, and the store's statistics.
    pub(crate) fn with_store(&self, meter: &Meter, store: &str) -> String {
        let (bytes_in, bytes_out) = meter.bytes();
        let mut text = String::from("{\"server\":{");
        let numbers = [
            ("connections", self.connections),
            ("requests", self.requests),
            ("streams", self.streams),
            ("subscriptions", self.subscriptions),
            ("lag_frames_max", self.lag_frames_max),
            ("lag_frames_total", self.lag_frames_total),
            ("bytes_in", bytes_in),
            ("bytes_out", bytes_out),
        ];
        for (index, (name, number)) in numbers.into_iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}\"{name}\":{number}");
        }
        text.push_str("},\"store\":");
        text.push_str(store);
        text.push('}');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_lags_are_counted_while_they_last() {
        let connections = Connections::default();
        let mailbox = Arc::new(Mailbox::default());
        connections.lock().insert(1, Arc::clone(&mailbox));
        connections.lock().insert(2, Arc::default());
        let (near, far) = (mailbox.seat.subscribed(90), mailbox.seat.subscribed(40));
        let census = Census::of(&connections, 100);
        assert_eq!((census.connections, census.subscriptions), (2, 2));
        assert_eq!((census.lag_frames_max, census.lag_frames_total), (60, 70));
        drop(far);
        near.set(100);
        let census = Census::of(&connections, 100);
        assert_eq!((census.subscriptions, census.lag_frames_max), (1, 0));
        let meter = Meter::default();
        meter.read(5);
        let text = census.with_store(&meter, "{\"head\":100}");
        let text: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text["server"]["subscriptions"], 1);
        assert_eq!(
            (&text["server"]["bytes_in"], &text["server"]["bytes_out"]),
            (&5.into(), &0.into())
        );
        assert_eq!(text["store"]["head"], 100);
    }
}
