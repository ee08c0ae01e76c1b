//! Cumulative counts of a server over all its connections: connections, bytes, requests, refusals.
//! The current state is in the census. Counting costs one addition to a shared number for each read
//! and write of a socket, and for each run of requests with the same op.

use std::sync::atomic::{AtomicU64, Ordering};

use super::census::Census;
use crate::message::Op;

/// Classes of codes, 1 to 8; 0 is not used.
pub(crate) const CLASSES: usize = 9;

/// Statistics of a server since it was created.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ServerStats {
    /// Current connections.
    pub connections: u64,
    /// Accepted connections.
    pub accepted: u64,
    /// Accepted connections that ended before HELLO: TLS handshakes that failed.
    pub handshakes_failed: u64,
    /// Accepted connections that gave way to others before HELLO.
    pub gave_way: u64,
    /// Bytes read from connections.
    pub read_bytes: u64,
    /// Bytes written to connections.
    pub written_bytes: u64,
    /// Requests served, by op; ops without any are omitted.
    pub requests: Vec<(Op, u64)>,
    /// Refusals by the class of their code, 1 to 8 in order.
    pub refused: [u64; CLASSES - 1],
    /// Current streams: subscriptions, calls, uploads, downloads.
    pub streams: u64,
    /// Current subscriptions.
    pub subscriptions: u64,
    /// Lag, in offsets, of the subscription furthest behind.
    pub lag_frames_max: u64,
}

/// The counters.
#[derive(Debug)]
pub(crate) struct Meter {
    accepted: AtomicU64,
    handshakes_failed: AtomicU64,
    gave_way: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    requests: [AtomicU64; 256],
    refused: [AtomicU64; CLASSES],
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            handshakes_failed: AtomicU64::new(0),
            gave_way: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            requests: std::array::from_fn(|_| AtomicU64::new(0)),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Meter {
    pub(crate) fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts connections that gave way to a new one.
    pub(crate) fn gave_way(&self, count: usize) {
        self.gave_way.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes read and written.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    pub(crate) fn requested(&self, op: Op, count: u64) {
        self.requests[op as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, counts: &[u32; CLASSES]) {
        for (counter, count) in self.refused.iter().zip(counts) {
            counter.fetch_add(u64::from(*count), Ordering::Relaxed);
        }
    }

    /// A snapshot of the counts, with the current state.
    pub(crate) fn snapshot(&self, census: &Census) -> ServerStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (read_bytes, written_bytes) = self.bytes();
        ServerStats {
            connections: census.connections,
            accepted: load(&self.accepted),
            handshakes_failed: load(&self.handshakes_failed),
            gave_way: load(&self.gave_way),
            read_bytes,
            written_bytes,
            requests: Op::ALL
                .iter()
                .map(|&op| (op, load(&self.requests[op as usize])))
                .filter(|(_, count)| *count > 0)
                .collect(),
            refused: std::array::from_fn(|class| load(&self.refused[class + 1])),
            streams: census.streams,
            subscriptions: census.subscriptions,
            lag_frames_max: census.lag_frames_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_refusals_are_counted_by_kind() {
        let meter = Meter::default();
        meter.requested(Op::Append, 3);
        meter.requested(Op::Get, 1);
        meter.refused(&[0, 0, 5, 0, 0, 0, 0, 0, 1]);
        let stats = meter.snapshot(&Census::default());
        assert_eq!(stats.requests, [(Op::Append, 3), (Op::Get, 1)]);
        assert_eq!(stats.refused, [0, 5, 0, 0, 0, 0, 0, 1]);
    }
}
