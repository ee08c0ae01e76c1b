//! Where a handler is: the cursor's revision and offset, and what its state bytes hold, which is
//! the handler's own state and, while a frame is being retried, how often and until when.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use xs_engine::{Cursor, CursorChange, CursorName, ExpectRevision};

/// A frame that failed and is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Retry {
    /// Tries made so far.
    pub(super) attempt: u32,
    /// When the next is due, in milliseconds since 1970.
    pub(super) due_ms: u64,
}

/// What a cursor's state holds.
#[derive(Deserialize)]
struct Saved<'a> {
    #[serde(borrow, default)]
    state: Option<&'a RawValue>,
    #[serde(default)]
    retry: Option<Retry>,
}

/// A handler's place, as it was last stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The cursor's revision; 0 when there is none.
    pub(super) revision: u64,
    /// The first frame not handled.
    pub(super) offset: u64,
    /// The handler's state as JSON; `None` for its initial one.
    pub(super) state: Option<Bytes>,
    /// The first frame not handled has failed before.
    pub(super) retry: Option<Retry>,
}

impl Place {
    /// A place that is not stored yet.
    pub(super) const fn new(offset: u64) -> Self {
        Self { revision: 0, offset, state: None, retry: None }
    }

    /// What a cursor says.
    ///
    /// # Errors
    /// When its state was not written by a Host.
    pub(super) fn of(cursor: &Cursor) -> Result<Self, serde_json::Error> {
        let mut place = Self::new(cursor.offset);
        place.revision = cursor.revision;
        if !cursor.state.is_empty() {
            let saved: Saved<'_> = serde_json::from_slice(&cursor.state)?;
            place.state = saved.state.map(|raw| cursor.state.slice_ref(raw.get().as_bytes()));
            place.retry = saved.retry;
        }
        Ok(place)
    }

    /// The change that stores `next` over this place.
    pub(super) fn change(&self, name: &CursorName, next: &Self) -> CursorChange {
        let expect = ExpectRevision::Is(self.revision);
        CursorChange { name: name.clone(), expect, set: Some((next.offset, next.bytes())) }
    }

    fn bytes(&self) -> Bytes {
        if self.state.is_none() && self.retry.is_none() {
            return Bytes::new();
        }
        let mut text = Vec::with_capacity(self.state.as_ref().map_or(0, Bytes::len) + 64);
        text.extend_from_slice(b"{\"state\":");
        text.extend_from_slice(self.state.as_deref().unwrap_or(b"null"));
        if let Some(Retry { attempt, due_ms }) = self.retry {
            let retry = format!(",\"retry\":{{\"attempt\":{attempt},\"due_ms\":{due_ms}}}");
            text.extend_from_slice(retry.as_bytes());
        }
        text.push(b'}');
        Bytes::from(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(place: &Place) -> Place {
        let name = CursorName::parse("xs.handler.a").unwrap();
        let (offset, state) = Place::new(0).change(&name, place).set.unwrap();
        let cursor = Cursor { revision: place.revision, epoch: 1, offset, time_ms: 0, state };
        Place::of(&cursor).unwrap()
    }

    #[test]
    fn a_place_survives_its_cursor() {
        let mut place = Place::new(7);
        assert_eq!(round_trip(&place), place);
        place.state = Some(Bytes::from_static(b"{\"n\": 1, \"big\": 12345678901234567890}"));
        assert_eq!(round_trip(&place), place);
        place.retry = Some(Retry { attempt: 3, due_ms: u64::MAX });
        assert_eq!(round_trip(&place), place);
    }

    #[test]
    fn foreign_states_are_refused() {
        for state in ["7", "{\"retry\":1}", "{\"state\":", "\u{0}"] {
            let state = Bytes::from_static(state.as_bytes());
            let cursor = Cursor { revision: 1, epoch: 1, offset: 0, time_ms: 0, state };
            assert!(Place::of(&cursor).is_err());
        }
    }
}
