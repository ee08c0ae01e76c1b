//! Guesses where the next blob is. Compression places the blobs of a topic side by side (see
//! `build.rs`), so a reader of the log or of a topic finds each body in the row after the last one
//! of its kin. Before compression blobs lie in the order of the log, so a reader of the log finds
//! each in the entry after the last one. Guesses are per thread and compared with the requested
//! hash, and a wrong one costs no more than that.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use super::blocks::BlockAt;
use super::entry::Entry;
use super::run::Run;
use crate::media::Media;

/// Kins remembered per thread; those with equal remainders replace one another.
const KINS: usize = 2048;

/// A row of a BLOCK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// The BLOCK.
    pub(super) block: BlockAt,
    /// Number of the blob in it.
    pub(super) number: u32,
}

/// The row in which a blob of a kin was found last.
#[derive(Debug, Clone, Copy)]
struct Step {
    kin: u32,
    row: Row,
    /// It was right after the previous row: random access gets no guesses.
    steady: bool,
}

/// The last entry found.
#[derive(Debug)]
struct Last {
    /// Its pack, held weakly.
    media: Weak<dyn Media>,
    salt: u32,
    /// Where the next entry begins.
    end: u64,
    /// It was right after the previous entry.
    steady: bool,
}

thread_local! {
    static STEPS: RefCell<Vec<Option<Step>>> = const { RefCell::new(Vec::new()) };
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// The run after the last entry found, if there is one. It is removed from the thread until
/// [`leave_run`] puts it back.
pub(super) fn take_run() -> Option<Run> {
    let last = LAST.with_borrow_mut(|last| last.take_if(|last| last.steady))?;
    Some(Run::new(last.media.upgrade()?, last.salt, last.end))
}

/// Stores the position of a run.
pub(super) fn leave_run(run: &Run) {
    let media = Arc::downgrade(run.media());
    LAST.set(Some(Last { media, salt: run.salt(), end: run.at(), steady: true }));
}

/// Notes that an entry was found.
pub(super) fn note_entry(entry: &Entry) {
    LAST.with_borrow_mut(|last| {
        let (salt, end) = (entry.header().salt, entry.end());
        match last {
            Some(last) if std::ptr::addr_eq(last.media.as_ptr(), Arc::as_ptr(entry.media())) => {
                last.steady = last.end == entry.at();
                last.end = end;
            }
            _ => {
                let media = Arc::downgrade(entry.media());
                *last = Some(Last { media, salt, end, steady: false });
            }
        }
    });
}

/// The row to try first for the next blob of a kin, if its last ones were consecutive.
pub(super) fn guess(kin: u32) -> Option<Row> {
    STEPS.with_borrow(|steps| {
        let step = (*steps.get(kin as usize % KINS)?)?;
        let next = Row { number: step.row.number + 1, ..step.row };
        (step.kin == kin && step.steady).then_some(next)
    })
}

/// Notes where a blob of a kin was found. The first row of a BLOCK may start a run as well as
/// continue one.
pub(super) fn note(kin: u32, row: Row) {
    STEPS.with_borrow_mut(|steps| {
        if steps.is_empty() {
            steps.resize(KINS, None);
        }
        let slot = &mut steps[kin as usize % KINS];
        let behind = |last: &Step| {
            last.kin == kin && last.row.block == row.block && last.row.number + 1 == row.number
        };
        let steady = row.number == 0 || slot.as_ref().is_some_and(behind);
        *slot = Some(Step { kin, row, steady });
    });
}

/// Notes that the guess for a kin was wrong.
pub(super) fn lost(kin: u32) {
    STEPS.with_borrow_mut(|steps| {
        if let Some(slot) = steps.get_mut(kin as usize % KINS) {
            *slot = None;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_are_guessed_on() {
        let row = |position, number| Row { block: BlockAt { pack: [1; 16], position }, number };
        assert_eq!(guess(7), None);
        note(7, row(64, 3));
        assert_eq!(guess(7), None, "one alone is no run");
        note(7, row(64, 4));
        assert_eq!(guess(7), Some(row(64, 5)));
        assert_eq!(guess(7 + KINS as u32), None, "another kin in the same slot");
        note(7, row(64, 9));
        assert_eq!(guess(7), None, "a leap ends it");
        note(7, row(640, 0));
        assert_eq!(guess(7), Some(row(640, 1)), "a BLOCK entered from its beginning");
        lost(7);
        assert_eq!(guess(7), None);
        note(7, row(640, 2));
        note(7 + KINS as u32, row(64, 0));
        assert_eq!((guess(7), guess(7 + KINS as u32)), (None, Some(row(64, 1))));
    }
}
