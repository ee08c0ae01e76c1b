//! The position at which a stream resumes when its connection is lost: never below its start.

use xs_engine::{Bound, ReadOptions, Start};

use crate::message::Gap;

/// The position at which a stream resumes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The lowest offset that is wanted. It may lie above the head, where there is nothing yet that
    /// the server could check. `None` while the start is an id. The id may also lie above the head,
    /// and then frames below it must not be yielded either.
    least: Option<u64>,
    /// The offset after everything received; `None` while the start still decides.
    at: Option<u64>,
    reverse: bool,
}

impl Place {
    /// The position of a stream that begins with `options`, after everything below `seen` was
    /// received.
    pub(super) const fn new(options: &ReadOptions, seen: Option<u64>) -> Self {
        let least = match (seen, options.start) {
            (Some(seen), _) => Some(seen),
            // For a reverse read, any position that the server reports will do.
            _ if options.reverse => Some(0),
            (None, Start::First | Start::Last(_) | Start::New) => Some(0),
            (None, Start::From(Bound::Offset(offset))) => Some(offset),
            (None, Start::After(Bound::Offset(offset))) => Some(offset.saturating_add(1)),
            (None, Start::From(Bound::Id(_)) | Start::After(Bound::Id(_))) => None,
        };
        Self { least, at: seen, reverse: options.reverse }
    }

    /// The offset to resume from; `None` while that is the start as given.
    pub(super) const fn offset(&self) -> Option<u64> {
        self.at
    }

    /// Records that frames were received, and everything below an offset was examined.
    pub(super) fn came(&mut self, frames: usize, scanned_to: u64) {
        if frames == 0 {
            return self.looked_to(scanned_to);
        }
        let least = *self.least.get_or_insert(0);
        self.at = Some(scanned_to.max(least));
    }

    /// Records that everything below an offset was examined. An offset below the start is ignored:
    /// the stream still waits for later frames.
    pub(super) fn looked_to(&mut self, offset: u64) {
        if self.least.is_some_and(|least| least <= offset) {
            self.at = Some(offset);
        }
    }

    /// Records that the server ended the stream. Ignored while the stream waits above the head:
    /// `resume` is then the head at which it began.
    pub(super) fn dropped(&mut self, resume: u64) {
        if self.at.is_some() || self.least.is_some_and(|least| least < resume) || self.reverse {
            self.looked_to(resume);
        }
    }

    /// Records that everything stored below a head was received.
    pub(super) fn caught_up(&mut self, head: u64) {
        self.looked_to(self.at.map_or(head, |at| at.max(head)));
    }

    /// Moves past frames that cannot be read.
    pub(super) fn passed_by(&mut self, gap: &Gap) {
        if let Gap::Corrupt { from, to } = *gap {
            self.came(1, if self.reverse { from } else { to });
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_engine::FrameId;

    use super::*;

    fn place(start: Start) -> Place {
        Place::new(&ReadOptions { start, ..ReadOptions::default() }, None)
    }

    #[test]
    fn a_start_above_the_head_stays_until_there_is_something_behind_it() {
        for start in [Start::From(Bound::Offset(8)), Start::After(Bound::Offset(7))] {
            let told: [fn(&mut Place); 4] = [
                |of| of.caught_up(5),
                |of| of.looked_to(5),
                |of| of.came(0, 7),
                |of| of.dropped(7),
            ];
            for tell in told {
                let mut place = place(start);
                tell(&mut place);
                place.dropped(8);
                assert_eq!(place.offset(), None);
                place.looked_to(8);
                assert_eq!(place.offset(), Some(8));
                place.came(3, 11);
                tell(&mut place);
                assert_eq!(place.offset(), Some(11));
            }
        }
        let mut farthest = place(Start::After(Bound::Offset(u64::MAX)));
        farthest.caught_up(5);
        assert_eq!(farthest.offset(), None);
    }

    #[test]
    fn an_id_stays_the_start_until_a_frame_comes() {
        let id = FrameId::first_of_ms(1);
        for start in [Start::From(Bound::Id(id)), Start::After(Bound::Id(id))] {
            let mut place = place(start);
            place.caught_up(5);
            place.came(0, 2000);
            place.looked_to(3000);
            place.dropped(3000);
            assert_eq!(place.offset(), None);
            place.came(1, 3001);
            place.looked_to(3005);
            assert_eq!(place.offset(), Some(3005));
        }
    }

    #[test]
    fn what_was_seen_before_is_the_least() {
        let mut place = Place::new(&ReadOptions::default(), Some(20));
        for below in [0, 19] {
            place.caught_up(below);
            place.looked_to(below);
            place.came(0, below);
            place.came(1, below);
            assert_eq!(place.offset(), Some(20));
        }
        place.caught_up(30);
        place.caught_up(25);
        assert_eq!(place.offset(), Some(30));
        // A server that drops the stream may report a lower offset than before.
        place.dropped(25);
        assert_eq!(place.offset(), Some(25));
    }

    #[test]
    fn damage_is_passed_by_the_way_it_is_read() {
        let gap = Gap::Corrupt { from: 3, to: 9 };
        for (reverse, behind) in [(false, 9), (true, 3)] {
            let options = ReadOptions { reverse, ..ReadOptions::default() };
            let mut place = Place::new(&options, None);
            place.passed_by(&Gap::Ephemeral { count: 50 });
            assert_eq!(place.offset(), None);
            place.passed_by(&gap);
            assert_eq!(place.offset(), Some(behind));
        }
    }
}
