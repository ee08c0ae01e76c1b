//! Turns a module's output into frames: checks topics, ttls and limits, and sets the origin, which
//! no module can write.

use std::rc::Rc;

use bytes::Bytes;
use deno_error::JsErrorBox;
use xs_engine::{BlobHash, Body, Frame, Meta, NewFrame, Origin, Topic, Ttl};

use super::bridge::{Bridge, HANDLER_RUN, type_error};
use crate::isolate::limits::OUTPUT_BODY_BYTES_MAX;

impl Bridge {
    /// The origin of frames caused by an input.
    pub(super) fn origin(&self, input: Option<&Frame>) -> Origin {
        let hops = input.map_or(0, |frame| frame.origin().map_or(0, |origin| origin.hops) + 1);
        Origin {
            processor: self.spec.create,
            input: input.map(Frame::id),
            input_offset: input.and_then(Frame::offset),
            hops,
        }
    }

    /// The origin of what a run does now; for a handler's run, `input` is the index of the causing
    /// input.
    pub(super) fn origin_of(&self, run: u32, input: usize) -> Option<Origin> {
        if run == HANDLER_RUN {
            let batch = self.batch.borrow();
            let input = batch.as_ref().and_then(|batch| batch.inputs.get(input));
            return Some(self.origin(input.map(|input| &input.frame)));
        }
        self.runs.borrow().get(&run).map(|run| run.origin)
    }

    /// Checks a topic and a ttl; empty text stands for "not given".
    pub(super) fn check_frame(&self, topic: &str, ttl: &str) -> Result<(), JsErrorBox> {
        if !topic.is_empty() {
            self.topic(topic)?;
        }
        if !ttl.is_empty() {
            Ttl::parse(ttl).map_err(type_error)?;
        }
        Ok(())
    }

    /// Builds a frame from a module's description; empty text stands for "not given".
    pub(super) fn frame(
        &self,
        topic: &str,
        meta: String,
        ttl: &str,
        body: Body,
        origin: Origin,
    ) -> Result<NewFrame, JsErrorBox> {
        if let Body::Inline(bytes) = &body
            && bytes.len() > OUTPUT_BODY_BYTES_MAX
        {
            return Err(JsErrorBox::range_error(format!(
                "a body of {} bytes is over the limit of {OUTPUT_BODY_BYTES_MAX}; \
                 hand it over as a Blob or a ReadableStream",
                bytes.len()
            )));
        }
        let topic = if topic.is_empty() { self.result_topic()? } else { self.topic(topic)? };
        let ttl = match ttl {
            "" => self.definition.borrow().as_ref().map_or(Ttl::Forever, |known| known.output.ttl),
            text => Ttl::parse(text).map_err(type_error)?,
        };
        let meta = Meta::parse(meta).map_err(type_error)?;
        Ok(NewFrame { topic, meta, body, ttl, origin: Some(origin) })
    }

    /// The topic of results that name none.
    fn result_topic(&self) -> Result<Topic, JsErrorBox> {
        if let Some(topic) = self.results.get() {
            return Ok(topic.clone());
        }
        let defined = self.definition.borrow().as_ref().map(|known| known.output.topic.clone());
        let suffix = self.spec.kind.result_suffix();
        let topic = match defined.clone().flatten() {
            Some(topic) => topic,
            None => self.topic(&format!("{}.{suffix}", self.spec.name))?,
        };
        // Without a definition the topic of results is not final.
        if defined.is_some() {
            let _ = self.results.set(topic.clone());
        }
        Ok(topic)
    }

    fn topic(&self, text: &str) -> Result<Topic, JsErrorBox> {
        let topic = Topic::parse(text).map_err(type_error)?;
        if topic.is_reserved() {
            return Err(JsErrorBox::type_error(format!(
                "topic {text:?} is reserved for xs; append to a topic that does not begin with xs."
            )));
        }
        Ok(topic)
    }

    /// Takes one output of a run; returns whether the outputs buffered for a handler fill a commit.
    pub(super) fn emit(
        &self,
        run: u32,
        input: u32,
        topic: &str,
        meta: String,
        ttl: &str,
        body: Body,
    ) -> Result<bool, JsErrorBox> {
        if run == HANDLER_RUN {
            return self.emit_buffered(input as usize, topic, meta, ttl, body);
        }
        let (outbox, origin) = {
            let mut runs = self.runs.borrow_mut();
            let run = runs.get_mut(&run).filter(|run| !run.is_cut());
            let Some(run) = run else { return Err(over()) };
            run.results += 1;
            (Rc::clone(&run.outbox), run.origin)
        };
        if let Some(loss) = outbox.take_loss() {
            return Err(JsErrorBox::generic(loss.message));
        }
        outbox.push(self.frame(topic, meta, ttl, body, origin)?, None);
        Ok(false)
    }

    fn emit_buffered(
        &self,
        input: usize,
        topic: &str,
        meta: String,
        ttl: &str,
        body: Body,
    ) -> Result<bool, JsErrorBox> {
        let mut batch = self.batch.borrow_mut();
        let Some(batch) = batch.as_mut() else { return Err(over()) };
        let origin = self.origin(batch.inputs.get(input).map(|input| &input.frame));
        let frame = self.frame(topic, meta, ttl, body, origin)?;
        batch.push(input, frame)
    }
}

/// A body sent with its frame; an empty one becomes no body.
pub(super) fn inline(bytes: impl Into<Bytes>) -> Body {
    let bytes = bytes.into();
    if bytes.is_empty() { Body::None } else { Body::Inline(bytes) }
}

/// A body that is already in the store.
///
/// # Errors
/// When it is not a hash.
pub(super) fn stored(hash: &str) -> Result<Body, JsErrorBox> {
    BlobHash::parse(hash).map(Body::Stored).map_err(type_error)
}

fn over() -> JsErrorBox {
    JsErrorBox::generic("this run has ended and can append nothing more")
}
