//! REMOVE: frames that no read may return any more, and optionally erased from the files.

use xs_engine::{Bound, TopicPatterns};

use super::AppendRequest;
use super::append::{check_records, put_within, read_within};
use super::coding::{Body, DecodeError, put_bound};
use crate::gather::Gather;

const FLAG_DURABLE: u8 = 1;
const FLAG_NOW: u8 = 2;

/// Frames to remove: all of the given frames that exist, or none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemoveRequest {
    /// Which frames; a missing one is no error.
    pub frames: Vec<Bound>,
    /// If set, nothing is removed when a frame has another topic.
    pub within: Option<TopicPatterns>,
    /// Ask for an answer only after a sync, whatever the store's policy.
    pub durable: bool,
    /// Ask for an answer only when none of their bytes is left in the log and the packs; bytes
    /// shared with other frames stay.
    pub now: bool,
}

impl RemoveRequest {
    /// The batch that performs the removal.
    pub(crate) fn into_batch(self) -> AppendRequest {
        AppendRequest {
            removes: self.frames,
            removes_within: self.within,
            durable: self.durable,
            ..AppendRequest::default()
        }
    }

    pub(crate) fn put(&self, out: &mut Gather) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.put_u8(flag(self.durable, FLAG_DURABLE) | flag(self.now, FLAG_NOW));
        out.put_u8(0);
        out.put_u16(self.frames.len() as u16);
        self.frames.iter().for_each(|&at| put_bound(out, at));
        put_within(out, self.within.as_ref());
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let flags = body.u8("flags")?;
        if flags & !(FLAG_DURABLE | FLAG_NOW) != 0 {
            return Err(body.wrong("flags").into());
        }
        body.zeros(1)?;
        let count = usize::from(body.u16("count of frames")?);
        check_records(count)?;
        let frames = (0..count).map(|_| body.bound()).collect::<Result<_, _>>()?;
        let (durable, now) = (flags & FLAG_DURABLE != 0, flags & FLAG_NOW != 0);
        Ok(Self { frames, within: read_within(body)?, durable, now })
    }
}

#[cfg(test)]
mod tests {
    use xs_engine::FrameId;
    use xs_engine::limits::BATCH_RECORDS_MAX;

    use super::*;
    use crate::error::Code;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn requests_round_trip() {
        let read = |bytes| RemoveRequest::read(Body::new("REMOVE", bytes));
        let frames = vec![Bound::Offset(7), Bound::Id(FrameId::MAX)];
        for (durable, now) in [(false, true), (true, false)] {
            let remove = RemoveRequest { frames: frames.clone(), within: None, durable, now };
            let body = body_of(|out| remove.put(out));
            assert_eq!(read(body.clone()).unwrap(), remove);
            each_cut_fails(&body, read);
            let within = Some(TopicPatterns::parse("a,b.*").unwrap());
            let bounded = RemoveRequest { within, ..remove };
            assert_eq!(read(body_of(|out| bounded.put(out))).unwrap(), bounded);
        }
    }

    #[test]
    fn the_number_of_frames_has_a_limit() {
        for (count, fits) in [(0, true), (BATCH_RECORDS_MAX, true), (BATCH_RECORDS_MAX + 1, false)]
        {
            let frames = vec![Bound::Offset(1); count];
            let remove = RemoveRequest { frames, ..RemoveRequest::default() };
            let got = RemoveRequest::read(Body::new("REMOVE", body_of(|out| remove.put(out))));
            match got {
                Ok(got) => assert!(fits && got == remove),
                Err(DecodeError::Refused(refusal)) => {
                    assert!(!fits && refusal.code == Code::BatchTooLarge);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
