//! The keepers of a Host, one for each name that runs or has orders. An idle keeper is dropped. A
//! keeper that falls behind with its orders suspends the processing of the log, so that the rest
//! waits in the log and not in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::keeper::Order;
use super::lifecycle::Key;

/// Maximum number of orders queued for one keeper.
const ORDERS_MAX: usize = 32;
/// Maximum number of orders that wait for room with a keeper: as many as one frame, or one freed
/// slot, leads to.
const LATE_MAX: usize = 2;
/// Number of keepers below which idle ones are not looked for.
const UNSWEPT: usize = 64;

/// Held while a keeper has something to do.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<()>);

/// An order, with a mark that is held until it is carried out.
pub(super) type Asked = (Order, Busy);

struct Kept {
    orders: mpsc::Sender<Asked>,
    task: JoinHandle<()>,
    busy: Busy,
}

impl Kept {
    /// Whether the keeper carries out no order and runs nothing; then nothing starts on its own
    /// either. Two marks exist at all times: this one and the keeper's.
    fn rests(&self) -> bool {
        Arc::strong_count(&self.busy.0) <= 2
    }
}

/// The keepers of a Host.
#[derive(Default)]
pub(super) struct Keepers {
    all: HashMap<Key, Kept>,
    /// Orders for which a keeper has no room, and all orders after them: at most [`LATE_MAX`],
    /// since no frame of the log is acted on while there are any.
    late: VecDeque<(Key, Order)>,
    sweep_at: usize,
    spawned: usize,
}

impl Keepers {
    /// How many keepers have been spawned so far.
    pub(super) const fn spawned(&self) -> usize {
        self.spawned
    }

    /// Gives an order to the keeper of a name; `spawn` makes the keeper if there is none.
    pub(super) fn order(
        &mut self,
        key: Key,
        order: Order,
        spawn: impl FnOnce(Key, mpsc::Receiver<Asked>, Busy) -> JoinHandle<()>,
    ) {
        if !self.all.contains_key(&key) {
            self.sweep();
            self.spawned += 1;
            let (orders, receiver) = mpsc::channel(ORDERS_MAX);
            let busy = Busy::default();
            let task = spawn(key.clone(), receiver, busy.clone());
            self.all.insert(key.clone(), Kept { orders, task, busy });
        }
        self.late.push_back((key, order));
        self.catch_up();
        debug_assert!(self.late.len() <= LATE_MAX, "{} orders are late", self.late.len());
    }

    /// Drops idle keepers, once there are twice as many keepers as the last sweep left.
    fn sweep(&mut self) {
        if self.all.len() < self.sweep_at.max(UNSWEPT) {
            return;
        }
        let late = &self.late;
        self.all.retain(|key, kept| !kept.rests() || late.iter().any(|(of, _)| of == key));
        self.sweep_at = 2 * self.all.len();
    }

    /// Whether orders wait for room; then nothing more of the log may be acted on.
    pub(super) fn is_behind(&self) -> bool {
        !self.late.is_empty()
    }

    /// Waits until there is room for the first late order.
    pub(super) async fn room(&self) {
        match self.late.front().and_then(|(key, _)| self.all.get(key)) {
            // An error means that the keeper has ended, with the Host.
            Some(kept) => drop(kept.orders.reserve().await),
            None => std::future::pending().await,
        }
    }

    /// Hands over late orders, up to the first that still has no room.
    pub(super) fn catch_up(&mut self) {
        while let Some((key, order)) = self.late.pop_front() {
            let Some(kept) = self.all.get(&key) else { continue };
            match kept.orders.try_send((order, kept.busy.clone())) {
                Err(mpsc::error::TrySendError::Full((order, _))) => {
                    return self.late.push_front((key, order));
                }
                // A keeper that is still listed ends only with the Host.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
    }

    /// Ends all keepers, and waits until they have ended.
    pub(super) async fn end(self) {
        for Kept { orders, task, .. } in self.all.into_values() {
            drop(orders);
            // A keeper that panicked has nothing left to end.
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_engine::FrameId;

    use super::*;
    use crate::name::{Kind, ProcessorName};

    fn key(n: usize) -> Key {
        Key { kind: Kind::Handler, name: ProcessorName::parse(&format!("h{n}")).unwrap() }
    }

    /// An order that differs from those of other `n`.
    fn order(n: u64) -> Order {
        Order::Term(FrameId::first_of_ms(n))
    }

    /// Keepers of names no longer in use were once kept for as long as the Host ran.
    #[tokio::test]
    async fn who_has_nothing_to_do_is_let_go_of() {
        const NAMES: usize = 10_000;
        let mut keepers = Keepers::default();
        let (kept, mut runs) = mpsc::unbounded_channel();
        for n in 0..NAMES {
            let kept = kept.clone();
            // Every 300th runs something from its first order on.
            keepers.order(key(n), order(1), move |_, mut orders, busy| {
                tokio::spawn(async move {
                    let (_, asked) = orders.recv().await.unwrap();
                    let running = (n % 300 == 0).then(|| busy.clone());
                    drop(asked);
                    kept.send((n, running)).unwrap();
                    assert!(orders.recv().await.is_none(), "asked again");
                    drop(busy);
                })
            });
            let (of, running) = runs.recv().await.unwrap();
            assert_eq!(of, n);
            // Held until the test ends.
            std::mem::forget(running);
        }
        let running = (0..NAMES).filter(|n| n % 300 == 0);
        assert!(running.into_iter().all(|n| keepers.all.contains_key(&key(n))));
        let left = keepers.all.len();
        assert!(left < 2 * UNSWEPT && keepers.spawned() == NAMES, "{left} are left");
    }

    /// However many orders one keeper gets.
    #[tokio::test]
    async fn orders_wait_for_room_and_come_in_their_order() {
        let mut keepers = Keepers::default();
        let (mut receiver, mut count) = (None, 0);
        while !keepers.is_behind() {
            keepers.order(key(1), order(count), |_, orders, _| {
                receiver = Some(orders);
                tokio::spawn(async {})
            });
            count += 1;
        }
        let mut orders = receiver.unwrap();
        assert_eq!((orders.len(), count), (ORDERS_MAX, ORDERS_MAX as u64 + 1));
        for n in 0..count {
            let (Order::Term(id), _) = orders.recv().await.unwrap() else { unreachable!() };
            assert_eq!(id, FrameId::first_of_ms(n));
            if keepers.is_behind() {
                keepers.room().await;
                keepers.catch_up();
            }
        }
        assert!(!keepers.is_behind() && orders.is_empty());
        assert!(keepers.all[&key(1)].rests());
        drop(orders);
        keepers.end().await;
    }
}
