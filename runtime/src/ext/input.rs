//! The input of a generator: frames `<name>.send`, each handed over alone, so that the position
//! stored for the next run is exactly after the last one taken. A frame counts as taken when the
//! next is requested, or when its loop is left. A crash may repeat the last frame, but loses none.
//! Frames at the end of a chain that is too long are not handed over.

use std::rc::Rc;

use bytes::Bytes;
use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use futures::future::LocalBoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use xs_engine::limits::HOPS_MAX;
use xs_engine::{Bound, Frame, ReadOptions, Start, TopicPatterns};

use super::bridge::{Bridge, type_error};
use super::frames;
use super::place::{Given, SourcePlace, SourcePlaces};
use super::streams::Source;
use crate::isolate::{FrameStream, LogLevel};

/// The key of this position among the generator's positions.
pub(crate) const KEY: &str = "input";

/// Where the input resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    offset: u64,
}

/// The position of a generator that starts with the frame after `offset`.
pub(crate) fn place_behind(offset: u64) -> Bytes {
    Bytes::from(json!(Position { offset: offset + 1 }).to_string())
}

struct Sends {
    run: u32,
    bridge: Rc<Bridge>,
    given: Rc<Given>,
    stream: Option<FrameStream>,
}

/// Opens the input and returns its stream's number.
#[op2(fast)]
pub(super) fn op_xs_input(state: &mut OpState, run: u32) -> Result<u32, JsErrorBox> {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    if !bridge.is_duplex() {
        return Err(JsErrorBox::type_error(
            "ctx.input needs duplex: true in the definition of the generator",
        ));
    }
    let Some(outbox) = bridge.runs.borrow().get(&run).map(|run| Rc::clone(&run.outbox)) else {
        return Err(JsErrorBox::generic("this run has ended"));
    };
    let given = Given::new(SourcePlaces::of(&bridge, outbox, KEY.to_owned()));
    let noted = Rc::downgrade(&given);
    let source = Sends { run, bridge: Rc::clone(&bridge), given, stream: None };
    let id = bridge.streams.open(Box::new(source))?;
    bridge.places.note(id, noted);
    Ok(id)
}

impl Source<String> for Sends {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<String>, JsErrorBox>> {
        async move {
            self.given.all_taken();
            // Output made from here on was not caused by the previous frame.
            self.set_hops(None);
            let given = Rc::clone(&self.given);
            given.place.unless_lost(self.more()).await
        }
        .boxed_local()
    }
}

impl Sends {
    /// Waits for a frame.
    async fn more(&mut self) -> Result<Option<String>, JsErrorBox> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => self.stream.insert(open(&self.bridge, &self.given.place).await?),
            };
            match stream.next().await {
                Some(Ok(frame)) if self.is_own(&frame) => {}
                Some(Ok(frame)) if frame.origin().is_some_and(|o| o.hops >= HOPS_MAX) => {
                    self.cut(&frame);
                }
                Some(Ok(frame)) => {
                    if let Some(offset) = frame.offset() {
                        self.given.hand_over(1, move |_| place_behind(offset));
                    }
                    // Later output is attributed to this frame, as far as can be told: loops must
                    // be noticed.
                    self.set_hops(Some(&frame));
                    let one = std::iter::once(&frame);
                    return Ok(Some(frames::encode(one, &*self.bridge.backend)));
                }
                Some(Err(error)) => return Err(JsErrorBox::generic(error.message)),
                None => return Ok(None),
            }
        }
    }

    /// Ends a loop of generators that send to each other: the frame is logged and skipped.
    fn cut(&self, frame: &Frame) {
        let text = "a chain of processors was cut: too many frames led to this one";
        let fields = json!({ "code": "hops", "frame": frame.id().to_string() }).to_string();
        self.bridge.backend.log(LogLevel::Error, text.to_owned(), Some(fields));
        if let Some(offset) = frame.offset() {
            self.given.place.reached(place_behind(offset));
        }
    }

    fn set_hops(&self, input: Option<&Frame>) {
        if let Some(run) = self.bridge.runs.borrow_mut().get_mut(&self.run) {
            run.origin.hops = self.bridge.origin(input).hops;
        }
    }

    /// Whether it sent the frame itself; such a frame is not its input.
    fn is_own(&self, frame: &Frame) -> bool {
        let maker = frame.origin().and_then(|o| self.bridge.backend.processor_name(o.processor));
        maker.is_some_and(|name| name == self.bridge.spec.name)
    }
}

/// Follows the input from its stored position. Without one, as after a reset, everything after the
/// version's `create` frame is new.
async fn open(bridge: &Bridge, place: &SourcePlace) -> Result<FrameStream, JsErrorBox> {
    let saved = place.get().await?;
    let saved = saved.and_then(|bytes| serde_json::from_slice::<Position>(&bytes).ok());
    let topics = TopicPatterns::parse(&format!("{}.send", bridge.spec.name)).map_err(type_error)?;
    let start = match saved {
        Some(Position { offset }) => Start::From(Bound::Offset(offset)),
        None => Start::After(Bound::Id(bridge.spec.create)),
    };
    Ok(bridge.backend.read(ReadOptions { topics, start, follow: true, ..ReadOptions::default() }))
}
