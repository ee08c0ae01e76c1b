//! A command's place: the first call not begun, and the calls that have begun and not ended. Both
//! are stored before a call runs, so that after a crash each call is either rerun or answered as
//! interrupted, never both. The number of attempts is stored too, so that a call which crashes its
//! process every time is not rerun forever.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xs_engine::{Cursor, CursorChange, CursorName, CursorValue, ExpectRevision, FrameId};

/// A command's stored place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandCursor {
    /// The cursor's revision; 0 when there is none.
    pub(super) revision: u64,
    /// The first call not begun.
    pub(super) offset: u64,
    /// Calls begun and not ended, with the number of attempts.
    pub(super) running: BTreeMap<FrameId, u32>,
}

#[derive(Default, Serialize, Deserialize)]
struct Saved {
    running: BTreeMap<String, u32>,
}

impl CommandCursor {
    /// A place that is not stored yet.
    pub(super) const fn new(offset: u64) -> Self {
        Self { revision: 0, offset, running: BTreeMap::new() }
    }

    /// Reads the place from a cursor; unknown fields are ignored.
    pub(super) fn of(cursor: &Cursor) -> Self {
        let saved: Saved = serde_json::from_slice(&cursor.state).unwrap_or_default();
        let Saved { running } = saved;
        let running = running.into_iter();
        let running = running.filter_map(|(id, tries)| Some((FrameId::parse(&id).ok()?, tries)));
        let running = running.collect();
        Self { revision: cursor.revision, offset: cursor.offset, running }
    }

    /// Takes back the last attempt of these calls; they stay noted as running.
    pub(super) fn not_tried(&mut self, calls: &[FrameId]) {
        for call in calls {
            self.running.entry(*call).and_modify(|tries| *tries = tries.saturating_sub(1));
        }
    }

    /// The cursor change that stores this place over the one of `revision`.
    pub(super) fn change(&self, name: &CursorName) -> CursorChange {
        let running = self.running.iter().map(|(id, tries)| (id.to_string(), *tries)).collect();
        let state = if self.running.is_empty() {
            Bytes::new()
        } else {
            serde_json::to_vec(&Saved { running }).map(Bytes::from).unwrap_or_default()
        };
        let expect = ExpectRevision::Is(self.revision);
        CursorChange {
            name: name.clone(),
            expect,
            set: Some(CursorValue { offset: self.offset, state }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_cursor() {
        let name = CursorName::parse("xs.command.a").unwrap();
        let mut saved = CommandCursor::new(3);
        for ids in [vec![], vec![(FrameId::first_of_ms(1), 1), (FrameId::first_of_ms(2), 3)]] {
            saved.running = ids.into_iter().collect();
            let CursorValue { offset, state } = saved.change(&name).set.unwrap();
            let cursor = Cursor { revision: 0, epoch: 1, offset, time_ms: 0, state };
            assert_eq!(CommandCursor::of(&cursor), saved);
        }
    }
}
