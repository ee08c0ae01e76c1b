//! The connection's end of a stream. It holds the server to its credit, so that what is buffered
//! for a stream without a reader stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::core::Item;
use crate::error::ProtocolError;
use crate::limits::FREE_WAITING_MAX;
use crate::message::StreamEvent;

/// The sending end of a stream: the connection puts received items here.
pub(super) struct Inlet {
    /// Bounded by the credit and by the limit on items that cost no credit.
    items: mpsc::UnboundedSender<Item>,
    /// Bytes the server may still send; negative after a message that exceeded it.
    credit: i64,
    waiting: Arc<Waiting>,
}

/// The receiving end of a stream.
pub(super) struct Outlet {
    pub(super) items: mpsc::UnboundedReceiver<Item>,
    waiting: Arc<Waiting>,
}

/// Items that cost no credit and were not taken yet.
#[derive(Default)]
struct Waiting {
    pulse: AtomicBool,
    others: AtomicUsize,
}

/// Both ends of a stream that begins with `credit` bytes of credit.
pub(super) fn pipe(credit: u32) -> (Inlet, Outlet) {
    let (sender, items) = mpsc::unbounded_channel();
    let waiting = Arc::default();
    let inlet = Inlet { items: sender, credit: credit.into(), waiting: Arc::clone(&waiting) };
    (inlet, Outlet { items, waiting })
}

impl Inlet {
    /// Lets the server send `bytes` more.
    pub(super) fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add_unsigned(bytes);
    }

    /// Queues a received item; returns whether it is the last of the stream.
    pub(super) fn put(&mut self, item: Item) -> Result<bool, ProtocolError> {
        let is_last = item.is_last();
        match &item {
            Item::Deliver { cost, .. } => self.charge(*cost)?,
            Item::Chunk { bytes, last } if bytes.is_empty() => {
                if !last {
                    return Err(ProtocolError::FlowControl("a piece of a blob without bytes"));
                }
            }
            Item::Chunk { bytes, .. } => {
                self.charge(bytes.len())?;
                if self.credit < 0 {
                    return Err(ProtocolError::FlowControl("a piece of a blob beyond its credit"));
                }
            }
            // A reader that does not take pulses finds a single one.
            Item::Event(StreamEvent::Pulse) => {
                if self.waiting.pulse.swap(true, Ordering::Relaxed) {
                    return Ok(false);
                }
            }
            Item::Event(_) | Item::Granted(_) => {
                if self.waiting.others.fetch_add(1, Ordering::Relaxed) >= FREE_WAITING_MAX {
                    return Err(ProtocolError::FlowControl("more events than anybody can want"));
                }
            }
            Item::Failed(_) => {}
        }
        // The reader may have dropped the stream meanwhile.
        let _ = self.items.send(item);
        Ok(is_last)
    }

    /// A message may be started while any credit is left, and may exceed it.
    fn charge(&mut self, bytes: usize) -> Result<(), ProtocolError> {
        if self.credit <= 0 {
            return Err(ProtocolError::FlowControl("more was sent than the stream's credit"));
        }
        self.credit = self.credit.saturating_sub_unsigned(bytes as u64);
        Ok(())
    }
}

impl Outlet {
    /// An item was taken.
    pub(super) fn took(&self, item: &Item) {
        match item {
            Item::Event(StreamEvent::Pulse) => self.waiting.pulse.store(false, Ordering::Relaxed),
            Item::Event(_) | Item::Granted(_) => {
                self.waiting.others.fetch_sub(1, Ordering::Relaxed);
            }
            Item::Deliver { .. } | Item::Chunk { .. } | Item::Failed(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{FrameList, Gap};

    fn deliver(cost: usize) -> Item {
        Item::Deliver { list: FrameList { frames: Vec::new(), scanned_to: 0 }, cost }
    }

    fn chunk(len: usize, last: bool) -> Item {
        Item::Chunk { bytes: Bytes::from(vec![0; len]), last }
    }

    fn is_breach(result: Result<bool, ProtocolError>) -> bool {
        matches!(result, Err(ProtocolError::FlowControl(_)))
    }

    /// The example of docs/wire.md.
    #[test]
    fn a_message_is_begun_above_zero_and_none_at_or_below() {
        let (mut inlet, _outlet) = pipe(1000);
        for cost in [640, 900] {
            assert!(!inlet.put(deliver(cost)).unwrap());
        }
        assert!(is_breach(inlet.put(deliver(16))));
        inlet.grant(540);
        assert!(is_breach(inlet.put(deliver(16))), "zero is not above zero");
        inlet.grant(100);
        assert!(!inlet.put(deliver(320)).unwrap());
        inlet.grant(1220);
        assert_eq!(inlet.credit, 1000);
    }

    #[test]
    fn a_piece_of_a_blob_is_within_the_credit() {
        let (mut inlet, _outlet) = pipe(10);
        assert!(!inlet.put(chunk(4, false)).unwrap());
        assert!(is_breach(inlet.put(chunk(0, false))));
        assert!(is_breach(inlet.put(chunk(7, false))));
        let (mut inlet, _outlet) = pipe(0);
        assert!(inlet.put(chunk(0, true)).unwrap(), "an empty blob costs nothing");
    }

    #[test]
    fn of_pulses_one_waits_and_of_other_events_not_too_many() {
        let (mut inlet, mut outlet) = pipe(0);
        for _ in 0..3 {
            inlet.put(Item::Event(StreamEvent::Pulse)).unwrap();
        }
        let item = outlet.items.try_recv().unwrap();
        outlet.took(&item);
        assert!(outlet.items.try_recv().is_err(), "one of three waits");
        inlet.put(Item::Event(StreamEvent::Pulse)).unwrap();
        let gap = || Item::Event(StreamEvent::Gap(Gap::Ephemeral { count: 1 }));
        for _ in 0..FREE_WAITING_MAX {
            inlet.put(gap()).unwrap();
        }
        for _ in 0..2 {
            let item = outlet.items.try_recv().unwrap();
            outlet.took(&item);
        }
        inlet.put(gap()).unwrap();
        assert!(is_breach(inlet.put(gap())));
    }
}
