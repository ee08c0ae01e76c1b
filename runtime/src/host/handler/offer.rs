//! What a handler's inputs are: which frames it is offered, from where on, and what takes the place
//! of an `unpark`. The same for a handler that runs and for one that is replayed, and so without
//! any state of either.

use tokio_util::sync::CancellationToken;
use xs_engine::limits::HOPS_MAX;
use xs_engine::{Bound, Frame, Topic, TopicPattern, TopicPatterns};
use xs_protocol::{Client, ClientError};

use super::cursor::Began;
use super::parked::{PARKED, about};
use crate::host::driver::{Ending, ask};
use crate::host::lifecycle::{Key, Versions};
use crate::isolate::{Definition, FailureKind, StartAt};
use crate::name::{ProcessorName, Request};

/// Whether a handler is offered a frame of its topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Offer {
    /// It is.
    Yes,
    /// It is not: a version of the same name, of whatever kind, made the frame.
    Own,
    /// It is not, which is reported: the frame ends a chain of handlers that feed each other.
    TooManyHops,
}

impl Offer {
    /// Judges a frame for the handler `own`.
    pub(in crate::host) fn of(frame: &Frame, versions: &Versions, own: &ProcessorName) -> Self {
        if versions.made_by(frame, own) {
            Self::Own
        } else if has_too_many_hops(frame) {
            Self::TooManyHops
        } else {
            Self::Yes
        }
    }
}

/// Whether a frame ends a chain of handlers that feed each other.
pub(super) fn has_too_many_hops(frame: &Frame) -> bool {
    frame.origin().is_some_and(|origin| origin.hops >= HOPS_MAX)
}

/// The topics a handler reads: its own, and `unpark`.
pub(in crate::host) fn topics(definition: &Definition, key: &Key) -> TopicPatterns {
    let topics = definition.topics.clone().unwrap_or_else(TopicPatterns::all);
    let unpark = TopicPattern::Exact(unpark_topic(key));
    let both = topics.as_slice().iter().cloned().chain([unpark]).collect();
    TopicPatterns::new(both).unwrap_or(topics)
}

/// The topic by which an operator has a parked input handled again.
pub(in crate::host) fn unpark_topic(key: &Key) -> Topic {
    key.name.request_topic(Request::Unpark)
}

/// What takes the place of an `unpark` frame.
#[derive(Debug)]
pub(in crate::host) enum Unparked {
    /// The parked input.
    Input(Frame),
    /// Nothing: it was parked before a reset, which offers it again anyway.
    Before,
    /// Nothing: the frame names no parked input of the handler, or the input is gone.
    Nothing,
}

/// Finds what takes the place of an `unpark` frame, for a handler whose history `began` there.
pub(in crate::host) async fn unparked(
    client: &Client,
    key: &Key,
    began: Option<Began>,
    unpark: &Frame,
) -> Result<Unparked, ClientError> {
    let Some(record) = about(unpark, PARKED) else { return Ok(Unparked::Nothing) };
    let own = key.name.topic(PARKED);
    let record = client.get(Bound::Id(record)).await?;
    let Some(record) = record.filter(|record| record.topic() == own.as_str()) else {
        return Ok(Unparked::Nothing);
    };
    if began.is_some_and(|began| !began.has_made(&record)) {
        return Ok(Unparked::Before);
    }
    let Some(input) = about(&record, "frame") else { return Ok(Unparked::Nothing) };
    Ok(client.get(Bound::Id(input)).await?.map_or(Unparked::Nothing, Unparked::Input))
}

/// The offset of the first frame offered to a handler without a cursor, whose `create` frame is at
/// `create`: everything after that is new to it.
///
/// # Errors
/// [`Ending`] when the store does not answer, or has no frame of the id that `start` names.
pub(in crate::host) async fn first_offset(
    client: &Client,
    start: StartAt,
    create: u64,
    stop: &CancellationToken,
) -> Result<u64, Ending> {
    match start {
        StartAt::New => Ok(create + 1),
        StartAt::First => Ok(0),
        StartAt::After(id) => {
            let frame = ask(stop, || client.get(Bound::Id(id))).await?;
            frame.and_then(|frame| frame.offset()).map(|offset| offset + 1).ok_or_else(|| {
                Ending::failed(FailureKind::Definition, format!("start: no frame has the id {id}"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_engine::{FrameId, NewFrame, Origin};

    use super::*;

    #[test]
    fn own_frames_and_long_chains_are_not_offered() {
        let name = |text: &str| ProcessorName::parse(text).unwrap();
        let (own, other) = (FrameId::first_of_ms(1), FrameId::first_of_ms(2));
        let versions = Versions::default();
        versions.insert(own, name("a"));
        versions.insert(other, name("b"));
        let offer = |made: Option<(FrameId, u32)>| {
            let mut new = NewFrame::new(Topic::parse("in").unwrap());
            new.origin = made.map(|(processor, hops)| Origin {
                processor,
                input: None,
                input_offset: None,
                hops,
            });
            let frame = Frame::assemble(&new, FrameId::first_of_ms(9), Some(9), None).unwrap();
            Offer::of(&frame, &versions, &name("a"))
        };
        assert_eq!(offer(None), Offer::Yes);
        assert_eq!(offer(Some((other, HOPS_MAX - 1))), Offer::Yes);
        assert_eq!(offer(Some((other, HOPS_MAX))), Offer::TooManyHops);
        assert_eq!(offer(Some((own, 1))), Offer::Own);
        assert_eq!(offer(Some((own, HOPS_MAX))), Offer::Own, "it is not reported");
    }
}
