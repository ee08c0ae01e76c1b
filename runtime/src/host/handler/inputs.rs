//! The frames a handler has received and not handled yet, and how many of them form a batch. Leaves
//! out the handler's own output, which it must not see. Yields frames with too many hops, which it
//! may not handle, one by one.

use std::collections::VecDeque;

use xs_engine::Frame;
use xs_protocol::Delivered;

use super::cursor::Retry;
use super::offer::{Offer, has_too_many_hops};
use crate::host::version::Version;
use crate::isolate::Input;

/// What to do next.
pub(super) enum Next {
    /// No input is left.
    None,
    /// Hand these to the isolate.
    Batch(Vec<Input>),
    /// Skip this frame.
    TooManyHops(Frame),
}

/// A frame to handle.
pub(super) struct Offered {
    pub(super) delivered: Delivered,
    /// Once the frame is handled, the handler's place is after this offset. For a parked frame that
    /// comes again this is not the frame's own offset.
    pub(super) at: Option<u64>,
}

/// Frames not handled yet.
pub(super) struct Inputs {
    queue: VecDeque<(Input, Option<u64>)>,
    /// This many inputs at the front form a batch at most.
    together: usize,
    /// This many inputs after them are handled alone.
    alone: usize,
    /// Ephemeral inputs are handled alone too: they are not delivered again to be separated.
    ephemeral_alone: bool,
    retry: Option<Retry>,
}

impl Inputs {
    /// Takes frames in order. `retry` is about the first of them, if that has failed before.
    pub(super) fn new(version: &Version, frames: Vec<Offered>, retry: Option<Retry>) -> Self {
        let (versions, own) = (&version.shared().versions, &version.key.name);
        let is_own = |frame: &Frame| Offer::of(frame, versions, own) == Offer::Own;
        let others = frames.into_iter().filter(|offered| !is_own(&offered.delivered.frame));
        Self::of(others, retry)
    }

    fn of(frames: impl Iterator<Item = Offered>, retry: Option<Retry>) -> Self {
        let queue = frames
            .map(|Offered { delivered: Delivered { frame, body }, at }| {
                (Input { frame, body, attempt: 1 }, at)
            })
            .collect::<VecDeque<_>>();
        let mut inputs = Self { queue, together: 0, alone: 0, ephemeral_alone: false, retry: None };
        // An ephemeral frame that failed does not come again after a restart.
        let first = inputs.queue.front().map(|(input, _)| input.frame.id());
        if let Some(retry) = retry.filter(|retry| first == Some(retry.frame)) {
            inputs.retry(retry);
        }
        inputs
    }

    /// What to do next, with at most `most` inputs. Repeated calls return the same until
    /// [`Inputs::pass`] is called.
    pub(super) fn next(&self, most: usize) -> Next {
        let Some((first, _)) = self.queue.front() else { return Next::None };
        if has_too_many_hops(&first.frame) {
            return Next::TooManyHops(first.frame.clone());
        }
        let most = match self.together {
            0 if self.goes_alone() => 1,
            0 => most,
            together => together.min(most),
        };
        let is_alone = |at: &Option<u64>| self.ephemeral_alone && at.is_none();
        let together =
            |(number, (_, at)): &(usize, &(Input, Option<u64>))| *number == 0 || !is_alone(at);
        let batch = self.queue.iter().enumerate().take(most).take_while(together);
        let batch = batch.map(|(_, (input, _))| input);
        let batch = batch.take_while(|input| !has_too_many_hops(&input.frame));
        Next::Batch(batch.cloned().collect())
    }

    /// When the next input may be tried, in milliseconds since the Unix epoch; `None` means now.
    pub(super) fn due(&self) -> Option<u64> {
        self.retry.map(|retry| retry.due_ms)
    }

    /// The first input and the number of this attempt.
    pub(super) fn first(&self) -> Option<(Frame, u32)> {
        self.queue.front().map(|(input, _)| (input.frame.clone(), input.attempt))
    }

    /// Removes the first input; returns the offset passed with it, if it was a stored frame.
    pub(super) fn pass(&mut self) -> Option<u64> {
        self.retry = None;
        let marked = if self.together > 0 { &mut self.together } else { &mut self.alone };
        *marked = marked.saturating_sub(1);
        self.queue.pop_front().and_then(|(_, at)| at)
    }

    /// The first input with the offset that is passed with it, if it is handled alone.
    pub(super) fn first_alone(&self) -> Option<(Input, Option<u64>)> {
        self.queue.front().filter(|_| self.goes_alone()).cloned()
    }

    fn goes_alone(&self) -> bool {
        let is_ephemeral = self.queue.front().is_some_and(|(_, at)| at.is_none());
        self.together == 0 && (self.alone > 0 || self.ephemeral_alone && is_ephemeral)
    }

    /// From now on, ephemeral inputs are handled alone.
    pub(super) fn ephemeral_alone(&mut self) {
        self.ephemeral_alone = true;
    }

    /// Undoes the removal of the first input: its output is not stored.
    pub(super) fn put_back(&mut self, first: (Input, Option<u64>)) {
        self.queue.push_front(first);
        self.alone += 1;
    }

    /// Marks inputs below this offset to be handled alone.
    pub(super) fn alone_below(&mut self, offset: u64) {
        let below = |at: &Option<u64>| at.is_some_and(|at| at < offset);
        if let Some(last) = self.queue.iter().rposition(|(_, at)| below(at)) {
            self.one_by_one(last);
        }
    }

    /// Marks the inputs up to this index to be handled alone.
    pub(super) fn one_by_one(&mut self, index: usize) {
        self.alone = self.alone.max(self.together).max(index + 1);
        self.together = 0;
    }

    /// Marks the input at this index to be handled alone, after those before it.
    pub(super) fn without(&mut self, index: usize) {
        (self.together, self.alone) = (index, self.alone.max(1));
    }

    /// Marks the first input for a retry.
    pub(super) fn retry(&mut self, retry: Retry) {
        if let Some((first, _)) = self.queue.front_mut() {
            first.attempt = retry.attempt.saturating_add(1);
            self.retry = Some(retry);
            self.one_by_one(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_engine::limits::HOPS_MAX;
    use xs_engine::{FrameId, NewFrame, Origin, Topic};

    use super::*;
    use crate::isolate::INPUTS_MAX;

    fn frame(offset: u64, hops: u32) -> Offered {
        let mut new = NewFrame::new(Topic::parse("a").unwrap());
        let processor = FrameId::ZERO;
        new.origin =
            (hops > 0).then_some(Origin { processor, input: None, input_offset: None, hops });
        let id = FrameId::first_of_ms(offset);
        let frame = Frame::assemble(&new, id, Some(offset), None).unwrap();
        Offered { delivered: Delivered { frame, body: None }, at: Some(offset) }
    }

    fn batch(inputs: &Inputs) -> Vec<(u64, u32)> {
        match inputs.next(INPUTS_MAX) {
            Next::Batch(batch) => {
                batch.iter().map(|input| (input.frame.offset().unwrap(), input.attempt)).collect()
            }
            Next::TooManyHops(_) | Next::None => Vec::new(),
        }
    }

    #[test]
    fn batches_are_bounded_and_end_before_a_cut_chain() {
        let mut inputs = Inputs::of((0..1_000).map(|offset| frame(offset, 1)), None);
        assert_eq!(batch(&inputs).len(), INPUTS_MAX);
        assert_eq!(inputs.pass(), Some(0));
        assert_eq!(batch(&inputs)[0], (1, 1));
        let chain = [frame(0, HOPS_MAX - 1), frame(1, HOPS_MAX), frame(2, 0)];
        let mut inputs = Inputs::of(chain.into_iter(), None);
        assert_eq!(batch(&inputs), [(0, 1)]);
        inputs.pass();
        assert!(matches!(inputs.next(1), Next::TooManyHops(_)));
        inputs.pass();
        assert_eq!(batch(&inputs), [(2, 1)]);
        inputs.pass();
        assert!(matches!(inputs.next(1), Next::None));
    }

    #[test]
    fn a_failed_group_is_repeated_one_by_one_up_to_the_culprit() {
        let mut inputs = Inputs::of((0..5).map(|offset| frame(offset, 0)), None);
        inputs.one_by_one(1);
        for offset in 0..2 {
            assert_eq!(batch(&inputs), [(offset, 1)]);
            inputs.pass();
        }
        assert_eq!(batch(&inputs), [(2, 1), (3, 1), (4, 1)]);
    }

    #[test]
    fn a_group_is_repeated_without_its_culprit() {
        let mut inputs = Inputs::of((0..6).map(|offset| frame(offset, 0)), None);
        inputs.without(3);
        assert_eq!(batch(&inputs), [(0, 1), (1, 1), (2, 1)]);
        // Another one fails when they are repeated.
        inputs.without(1);
        for offset in 0..2 {
            assert_eq!(batch(&inputs), [(offset, 1)]);
            inputs.pass();
        }
        assert_eq!(batch(&inputs), [(2, 1), (3, 1), (4, 1), (5, 1)]);
        inputs.without(2);
        inputs.one_by_one(0);
        for offset in 2..4 {
            assert_eq!(batch(&inputs), [(offset, 1)]);
            inputs.pass();
        }
        assert_eq!(batch(&inputs), [(4, 1), (5, 1)]);
    }

    #[test]
    fn a_retried_frame_goes_alone_with_its_attempt() {
        let of = FrameId::first_of_ms(0);
        let retry = Retry { frame: of, attempt: 2, due_ms: 9, create: of };
        let other = Retry { frame: FrameId::first_of_ms(1), ..retry };
        let inputs = Inputs::of((0..3).map(|offset| frame(offset, 0)), Some(other));
        assert_eq!((batch(&inputs).len(), inputs.due()), (3, None), "it is about another frame");
        let mut inputs = Inputs::of((0..3).map(|offset| frame(offset, 0)), Some(retry));
        assert_eq!((batch(&inputs), inputs.due()), (vec![(0, 3)], Some(9)));
        assert_eq!(inputs.first().unwrap().1, 3);
        inputs.pass();
        assert_eq!((batch(&inputs), inputs.due()), (vec![(1, 1), (2, 1)], None));
    }
}
