//! A list of frames: their FRAME records, unchanged, in runs that share a base offset, and the
//! bodies that travel with them. Used by DELIVER, FETCH, GET and LAST.

use bytes::Bytes;
use xs_engine::Frame;
use xs_engine::format::align8;
use xs_engine::format::record::{PREFIX_LEN, RecordPrefix};

use super::Delivered;
use super::coding::{Body, NONE};
use crate::error::ProtocolError;
use crate::gather::Gather;

const RUN_HEAD_LEN: usize = 16;
const BODY_HEAD_LEN: usize = 8;

/// Frames as they are transmitted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FrameList {
    /// The frames, in order, with the bodies that came with them.
    pub(crate) frames: Vec<Delivered>,
    /// The offset to resume from after them.
    pub(crate) scanned_to: u64,
}

/// Writes frames. `bodies` holds the bodies to send, each with the index of its frame in the list.
pub(crate) fn put_frames(
    out: &mut Gather,
    frames: &[Frame],
    bodies: &[(u32, Bytes)],
    scanned_to: u64,
) {
    let records = frames.iter().map(|frame| frame.record().len());
    let bytes = bodies.iter().flat_map(|(_, bytes)| [BODY_HEAD_LEN, bytes.len()]);
    out.reserve(records.chain(bytes));
    out.put_u64(scanned_to);
    let runs_at = out.mark();
    out.put_u32(0);
    out.put_u32(bodies.len() as u32);
    let mut runs = 0;
    for run in frames.chunk_by(|one, next| base(one) == base(next)) {
        out.put_u64(base(&run[0]));
        let len = run.iter().map(|frame| align8(frame.record().len())).sum::<usize>();
        out.put_u32(len as u32);
        out.put_u32(run.len() as u32);
        for frame in run {
            out.put_shared(frame.record());
            out.pad8();
        }
        runs += 1;
    }
    out.patch_u32(runs_at, runs);
    for (index, bytes) in bodies {
        out.put_u32(*index);
        out.put_u32(bytes.len() as u32);
        out.put_shared(bytes);
        out.pad8();
    }
}

fn base(frame: &Frame) -> u64 {
    frame.offset().map_or(NONE, |offset| offset - u64::from(frame.offset_delta()))
}

/// Reads a body that holds a list of frames and nothing else.
pub(crate) fn read_frames(mut body: Body) -> Result<FrameList, ProtocolError> {
    let list = read_list(&mut body)?;
    body.end()?;
    Ok(list)
}

/// Reads frames and checks the CRC and structure of every record.
pub(crate) fn read_list(body: &mut Body) -> Result<FrameList, ProtocolError> {
    let scanned_to = body.u64("scanned_to")?;
    let runs = body.u32("count of runs")? as usize;
    let bodies = body.u32("count of bodies")? as usize;
    if body.left() < runs.saturating_mul(RUN_HEAD_LEN) {
        return Err(body.wrong("count of runs"));
    }
    let mut frames = Vec::new();
    for _ in 0..runs {
        read_run(body, &mut frames)?;
    }
    if body.left() < bodies.saturating_mul(BODY_HEAD_LEN) || bodies > frames.len() {
        return Err(body.wrong("count of bodies"));
    }
    for _ in 0..bodies {
        let index = body.u32("frame of a body")? as usize;
        let len = body.u32("body length")? as usize;
        let bytes = body.take(len, "body")?;
        body.zeros(align8(len) - len)?;
        match frames.get_mut(index) {
            Some(Delivered { frame, body }) if frame.body_len() == bytes.len() as u64 => {
                *body = Some(bytes);
            }
            _ => return Err(body.wrong("frame of a body")),
        }
    }
    Ok(FrameList { frames, scanned_to })
}

fn read_run(body: &mut Body, frames: &mut Vec<Delivered>) -> Result<(), ProtocolError> {
    let base = body.u64("base offset")?;
    let len = body.u32("length of a run")? as usize;
    let count = body.u32("count of records")? as usize;
    let base = (base != NONE).then_some(base);
    let mut records = body.take(len, "records")?;
    if len < count.saturating_mul(PREFIX_LEN) || count == 0 {
        return Err(body.wrong("count of records"));
    }
    frames.reserve(count);
    for _ in 0..count {
        let prefix = RecordPrefix::read(&records)?;
        if records.len() < prefix.stride() {
            return Err(body.wrong("records"));
        }
        let mut record = records.split_to(prefix.stride());
        record.truncate(prefix.len as usize);
        frames.push(Delivered { frame: Frame::from_record(record, base)?, body: None });
    }
    if records.is_empty() { Ok(()) } else { Err(body.wrong("bytes after the records")) }
}

#[cfg(test)]
mod tests {
    use xs_engine::{BlobHash, FrameId, NewFrame, Topic};

    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    fn frame(offset: Option<u64>, body: Option<&[u8]>) -> Frame {
        let new = NewFrame::new(Topic::parse("a.b").unwrap());
        let body = body.map(|bytes| (bytes.len() as u64, BlobHash::of(bytes)));
        Frame::assemble(&new, FrameId::first_of_ms(9), offset, body).unwrap()
    }

    fn read(bytes: Bytes) -> Result<FrameList, ProtocolError> {
        read_frames(Body::new("DELIVER", bytes))
    }

    #[test]
    fn frames_and_bodies_round_trip() {
        let frames = [frame(Some(7), None), frame(None, None), frame(Some(9), Some(b"hello"))];
        let bodies = [(2, Bytes::from_static(b"hello"))];
        let body = body_of(|out| put_frames(out, &frames, &bodies, 10));
        let list = read(body.clone()).unwrap();
        assert_eq!(list.scanned_to, 10);
        let got: Vec<_> = list.frames.iter().map(|one| one.frame.clone()).collect();
        assert_eq!(got, frames);
        assert_eq!(list.frames[2].body.as_deref(), Some(&b"hello"[..]));
        each_cut_fails(&body, read);
        let none = body_of(|out| put_frames(out, &[], &[], 4));
        assert_eq!(read(none).unwrap(), FrameList { frames: Vec::new(), scanned_to: 4 });
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let body = body_of(|out| put_frames(out, &[frame(Some(7), None)], &[], 8));
        // The first 24 bytes hold scanned_to and the base, which no checksum covers.
        for at in 24..body.len() {
            let mut bytes = body.to_vec();
            bytes[at] ^= 1;
            let padding = at >= 32 + frame(None, None).record().len();
            assert_eq!(read(Bytes::from(bytes)).is_err(), !padding, "{at}");
        }
    }
}
