//! The places for connections, as many as a server may have. Some are kept for Unix sockets, so
//! that the owner of a store always reaches it: clients over TCP may come in any number, and
//! whoever fills the server with them must not keep out the one who can revoke their tokens.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{CONNECTIONS_MAX, LOCAL_CONNECTIONS_MAX};

/// The places of a server.
pub(super) struct Room {
    /// For everybody.
    shared: Arc<Semaphore>,
    /// For Unix sockets, when no shared one is free.
    local: Arc<Semaphore>,
    places: usize,
}

impl Room {
    /// Room for so many connections, at most [`CONNECTIONS_MAX`].
    pub(super) fn of(connections: usize) -> Self {
        let places = connections.min(CONNECTIONS_MAX);
        let local = kept(places);
        let [shared, local] = [places - local, local].map(|count| Arc::new(Semaphore::new(count)));
        Self { shared, local, places }
    }

    /// The number of places, free or taken.
    pub(super) const fn places(&self) -> usize {
        self.places
    }

    /// The number of free places, with those that are kept.
    pub(super) fn free(&self) -> usize {
        self.shared.available_permits() + self.local.available_permits()
    }

    /// A place that is free now.
    pub(super) fn try_take(&self, is_local: bool) -> Option<OwnedSemaphorePermit> {
        // A shared one first: what is kept is for when there is none.
        let kinds = [(&self.shared, true), (&self.local, is_local)];
        let mut open = kinds.into_iter().filter(|(_, may)| *may).map(|(kind, _)| kind);
        open.find_map(|kind| Arc::clone(kind).try_acquire_owned().ok())
    }

    /// A place, as soon as one is free.
    pub(super) async fn take(&self, is_local: bool) -> Option<OwnedSemaphorePermit> {
        let [shared, local] = [&self.shared, &self.local].map(Arc::clone);
        let permit = tokio::select! {
            biased;
            permit = shared.acquire_owned() => permit,
            permit = local.acquire_owned(), if is_local => permit,
        };
        permit.ok()
    }
}

/// How many of the places are kept for Unix sockets: a sixteenth, at least one unless it would be
/// the only place, and at most [`LOCAL_CONNECTIONS_MAX`].
fn kept(places: usize) -> usize {
    match places {
        0 | 1 => 0,
        _ => (places / 16).clamp(1, LOCAL_CONNECTIONS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_is_kept_for_unix_sockets() {
        let cases = [(0, 0), (1, 0), (2, 1), (16, 1), (47, 2), (256, 16), (12_000, 16)];
        for (places, local) in cases {
            let room = Room::of(places);
            assert_eq!((room.places(), room.free()), (places, places));
            assert_eq!(room.local.available_permits(), local, "{places}");
        }
        assert_eq!(Room::of(usize::MAX).places(), CONNECTIONS_MAX);
    }

    #[test]
    fn what_is_kept_is_taken_last_and_by_unix_sockets_alone() {
        let room = Room::of(3);
        let local = room.try_take(true).unwrap();
        let remote = room.try_take(false).unwrap();
        assert!(room.try_take(false).is_none());
        let kept = room.try_take(true).unwrap();
        assert!(room.try_take(true).is_none() && room.free() == 0);
        drop(kept);
        assert!(room.try_take(false).is_none(), "it is kept again");
        drop(local);
        assert!(room.try_take(false).is_some());
        drop(remote);
    }

    #[tokio::test]
    async fn who_waits_takes_whichever_is_free_first() {
        let room = Room::of(2);
        let (remote, local) = (room.try_take(false).unwrap(), room.try_take(true).unwrap());
        for ends in [remote, local] {
            let (taken, ()) = tokio::join!(room.take(true), async { drop(ends) });
            assert!(taken.is_some());
        }
    }
}
