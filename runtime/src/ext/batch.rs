//! A handler's batch of inputs: the output of its calls since the last reply, and how far replies
//! have been sent. Nothing is stored here; the Host commits the contents of each reply.

use std::time::Instant;

use bytes::Bytes;
use deno_error::JsErrorBox;
use tokio_util::sync::{CancellationToken, DropGuard};
use xs_engine::{FrameId, NewFrame};

use super::outbox::Weight;
use crate::isolate::handle::Replies;
use crate::isolate::limits::{
    GROUP_BODIES_BYTES, GROUP_OUTPUTS, GROUP_RECORDS_BYTES, GROUP_TIME, OUTPUT_BYTES_PER_CALL_MAX,
    OUTPUT_RECORDS_BYTES_PER_CALL_MAX, OUTPUTS_PER_CALL_MAX,
};
use crate::isolate::{Blame, HandlerFailure, HandlerReply, Input, ModuleError, Verdict};

/// A handler's batch of inputs.
pub(super) struct Batch {
    pub(super) inputs: Vec<Input>,
    /// The inputs' positions in the text that JavaScript got, until it asks for them.
    pub(super) places: Vec<u32>,
    /// The index of the first input that no reply covers yet.
    pub(super) from: usize,
    /// When the last reply was sent.
    replied: Instant,
    /// Outputs since the last reply, with the index of their input.
    outputs: Vec<(usize, NewFrame)>,
    /// Frames to remove since then, with the index of their input.
    removes: Vec<(usize, FrameId)>,
    /// The total weight of the outputs.
    weight: Weight,
    /// The input of the latest outputs, their number and their weight.
    latest: (usize, usize, Weight),
    pub(super) replies: Replies,
    /// The call that awaits something. Earlier calls have been replied to.
    pub(super) waiting: Option<Waiting>,
}

/// A call that awaits something.
pub(super) struct Waiting {
    /// Its input.
    pub(super) index: usize,
    /// Stops the timer of this wait when dropped, so that the timer cannot end a later wait.
    _over: DropGuard,
}

impl Waiting {
    /// A wait; dropping it cancels `over`, which stops its timer.
    pub(super) fn new(index: usize, over: &CancellationToken) -> Self {
        Self { index, _over: over.clone().drop_guard() }
    }
}

impl Batch {
    /// A batch with no input handled yet.
    pub(super) fn new(inputs: Vec<Input>, places: Vec<u32>, replies: Replies) -> Self {
        Self {
            inputs,
            places,
            from: 0,
            replied: Instant::now(),
            outputs: Vec::new(),
            removes: Vec::new(),
            weight: Weight::default(),
            latest: Default::default(),
            replies,
            waiting: None,
        }
    }

    /// Buffers an output of the input at `index`; returns whether a commit is full.
    pub(super) fn push(&mut self, index: usize, frame: NewFrame) -> Result<bool, JsErrorBox> {
        let weight = Weight::of(&frame);
        let (count, of_call) = match self.latest {
            (latest, count, before) if latest == index => (count + 1, before + weight),
            _ => (1, weight),
        };
        if count > OUTPUTS_PER_CALL_MAX
            || of_call.bodies > OUTPUT_BYTES_PER_CALL_MAX
            || of_call.records > OUTPUT_RECORDS_BYTES_PER_CALL_MAX
        {
            return Err(JsErrorBox::range_error(format!(
                "a call may append {OUTPUTS_PER_CALL_MAX} frames with \
                 {OUTPUT_RECORDS_BYTES_PER_CALL_MAX} bytes of meta and \
                 {OUTPUT_BYTES_PER_CALL_MAX} bytes of bodies; a generator or a command may append more"
            )));
        }
        self.latest = (index, count, of_call);
        self.weight = self.weight + weight;
        self.outputs.push((index, frame));
        Ok(self.is_full())
    }

    /// Buffers a removal by the input at `index`; returns whether a commit is full.
    pub(super) fn remove(&mut self, index: usize, frame: FrameId) -> Result<bool, JsErrorBox> {
        let of_call = self.removes.iter().rev().take_while(|(input, _)| *input == index).count();
        if of_call >= OUTPUTS_PER_CALL_MAX {
            return Err(JsErrorBox::range_error(format!(
                "a call may remove {OUTPUTS_PER_CALL_MAX} frames; a command may remove more"
            )));
        }
        self.removes.push((index, frame));
        Ok(self.is_full())
    }

    /// Whether the calls so far should be committed though they fill no commit: what they did
    /// becomes visible, and no later failure or stop repeats them.
    pub(super) fn is_late(&self) -> bool {
        self.replied.elapsed() >= GROUP_TIME
    }

    /// Whether the calls so far should be committed before another begins.
    const fn is_full(&self) -> bool {
        self.outputs.len() + self.removes.len() >= GROUP_OUTPUTS
            || self.weight.bodies >= GROUP_BODIES_BYTES
            || self.weight.records >= GROUP_RECORDS_BYTES
    }

    /// Replies for the next `done` inputs; `None` when that was the last reply.
    pub(super) fn reply(mut self, done: usize, state: Option<Bytes>) -> Option<Self> {
        let until = self.from + done;
        let tick = self.inputs.is_empty();
        let later = self.outputs.iter().position(|(index, _)| *index >= until && !tick);
        let rest = self.outputs.split_off(later.unwrap_or(self.outputs.len()));
        let outputs = std::mem::replace(&mut self.outputs, rest);
        let outputs = outputs.into_iter().map(|(_, frame)| frame).collect();
        let later = self.removes.iter().position(|(index, _)| *index >= until && !tick);
        let rest = self.removes.split_off(later.unwrap_or(self.removes.len()));
        let removes = std::mem::replace(&mut self.removes, rest);
        let removes = removes.into_iter().map(|(_, frame)| frame).collect();
        let left = self.outputs.iter().map(|(_, frame)| Weight::of(frame));
        self.weight = left.fold(Weight::default(), |sum, more| sum + more);
        (self.from, self.replied) = (until, Instant::now());
        // The Host may have dropped its end: then the rest is not needed either.
        let reply = HandlerReply { done, outputs, removes, state, failure: None };
        let _ = self.replies.replies.send(reply);
        (self.from < self.inputs.len()).then_some(self)
    }

    pub(super) fn undo(&mut self) {
        self.outputs.clear();
        self.removes.clear();
        self.weight = Weight::default();
    }

    /// Replies that an input could not be handled.
    pub(super) fn fail(self, blame: Blame, fresh: bool, error: ModuleError, verdict: Verdict) {
        let fresh = fresh || blame.is_shared();
        let failure = HandlerFailure { error, blame, fresh, verdict };
        // The Host may have dropped its end: then the failure does not matter.
        let _ = self.replies.replies.send(HandlerReply {
            done: 0,
            outputs: Vec::new(),
            removes: Vec::new(),
            state: None,
            failure: Some(failure),
        });
    }
}
