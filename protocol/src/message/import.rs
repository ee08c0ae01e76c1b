//! IMPORT: frames of another store, as they were delivered there, and the outcome of each.

use super::Delivered;
use super::append::check_records;
use super::coding::{Body, DecodeError};
use super::frames::{put_frames, read_list};
use crate::error::{Code, ProtocolError};
use crate::gather::Gather;

const FLAG_DURABLE: u8 = 1;

const VERBATIM: u8 = 1;
const NEW_IDS: u8 = 2;

const OUTCOME_NEW: u16 = 0;
const OUTCOME_THERE: u16 = 1;

/// How ids of imported frames are assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImportIds {
    /// Keep the old ids. They must ascend and lie above every id that the store assigned: in
    /// practice a new store.
    Verbatim,
    /// Assign new ids; the old are kept with them, and a frame is found by either.
    New,
}

/// Frames to import. Bodies that fit into a message travel with them; longer ones are uploaded as
/// blobs before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRequest {
    /// The frames, in their original order.
    pub frames: Vec<Delivered>,
    /// How their ids are assigned.
    pub ids: ImportIds,
    /// Ask for an answer only after a sync, whatever the store's policy.
    pub durable: bool,
}

/// The outcome of one frame of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImportOutcome {
    /// It was stored.
    New,
    /// The store had it already.
    There,
    /// It was not stored, and why. Other frames of the same import may be.
    Refused(Code),
}

/// Number of frames of an import by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportCounts {
    /// Frames that are new.
    pub new: usize,
    /// Frames that were there already.
    pub there: usize,
    /// Frames that were refused.
    pub refused: usize,
}

/// The result of an import.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Imported {
    /// One for each frame, in order.
    pub outcomes: Vec<ImportOutcome>,
    /// Whether what was stored was durable when this was sent.
    pub durable: bool,
    /// The offset after the last frame readers can see.
    pub head: u64,
}

impl Imported {
    /// Counts the frames by outcome.
    #[must_use]
    pub fn counts(&self) -> ImportCounts {
        let mut counts = ImportCounts::default();
        for outcome in &self.outcomes {
            match outcome {
                ImportOutcome::New => counts.new += 1,
                ImportOutcome::There => counts.there += 1,
                ImportOutcome::Refused(_) => counts.refused += 1,
            }
        }
        counts
    }

    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u64(self.head);
        out.put_u8(u8::from(self.durable));
        out.put_u8(0);
        out.put_u16(self.outcomes.len() as u16);
        for outcome in &self.outcomes {
            out.put_u16(match outcome {
                ImportOutcome::New => OUTCOME_NEW,
                ImportOutcome::There => OUTCOME_THERE,
                ImportOutcome::Refused(code) => code.number(),
            });
        }
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, ProtocolError> {
        let head = body.u64("head")?;
        let durable = body.u8("flags")? != 0;
        body.zeros(1)?;
        let count = usize::from(body.u16("count of frames")?);
        if body.left() < count * 2 {
            return Err(body.wrong("outcomes"));
        }
        let mut outcomes = Vec::with_capacity(count);
        for _ in 0..count {
            outcomes.push(match body.u16("outcome")? {
                OUTCOME_NEW => ImportOutcome::New,
                OUTCOME_THERE => ImportOutcome::There,
                code => ImportOutcome::Refused(Code::from_number(code)),
            });
        }
        Ok(Self { outcomes, durable, head })
    }
}

impl ImportRequest {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u8(if self.durable { FLAG_DURABLE } else { 0 });
        out.put_u8(match self.ids {
            ImportIds::Verbatim => VERBATIM,
            ImportIds::New => NEW_IDS,
        });
        out.put_slice(&[0; 6]);
        let frames: Vec<_> = self.frames.iter().map(|one| one.frame.clone()).collect();
        let bodies = self.frames.iter().zip(0..);
        let bodies = bodies.filter_map(|(one, index)| Some((index, one.body.clone()?)));
        put_frames(out, &frames, &bodies.collect::<Vec<_>>(), 0);
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let flags = body.u8("flags")?;
        if flags & !FLAG_DURABLE != 0 {
            return Err(body.wrong("flags").into());
        }
        let ids = match body.u8("kind of ids")? {
            VERBATIM => ImportIds::Verbatim,
            NEW_IDS => ImportIds::New,
            _ => return Err(body.wrong("kind of ids").into()),
        };
        body.zeros(6)?;
        let frames = read_list(&mut body)?.frames;
        check_records(frames.len())?;
        body.extensions()?;
        Ok(Self { frames, ids, durable: flags & FLAG_DURABLE != 0 })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use xs_engine::{BlobHash, Frame, FrameId, NewFrame, Topic};

    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn requests_and_replies_round_trip() {
        let new = NewFrame::new(Topic::parse("a").unwrap());
        let hash = BlobHash::of(b"hello");
        let frame = |n, body| Frame::assemble(&new, FrameId::first_of_ms(n), Some(n), body);
        let body = Some(Bytes::from_static(b"hello"));
        let frames = vec![
            Delivered { frame: frame(4, None).unwrap(), body: None },
            Delivered { frame: frame(9, Some((5, hash))).unwrap(), body },
        ];
        let request = ImportRequest { frames, ids: ImportIds::New, durable: true };
        let body = body_of(|out| request.put(out));
        let read = |bytes| ImportRequest::read(Body::new("IMPORT", bytes));
        assert_eq!(read(body.clone()).unwrap(), request);
        each_cut_fails(&body, read);
        let reply = Imported {
            outcomes: vec![
                ImportOutcome::New,
                ImportOutcome::There,
                ImportOutcome::Refused(Code::ImportOrder),
            ],
            durable: true,
            head: 5,
        };
        assert_eq!(reply.counts(), ImportCounts { new: 1, there: 1, refused: 1 });
        let body = body_of(|out| reply.put(out));
        let read = |bytes| Imported::read(Body::new("IMPORT", bytes));
        assert_eq!(read(body.clone()).unwrap(), reply);
        each_cut_fails(&body, read);
    }
}
