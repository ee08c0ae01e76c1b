//! FETCH, GET, LAST, TOPICS: bounded reads.

use xs_engine::{Bound, Frame, ReadOptions, Start, Topic, TopicPatterns, TopicSummary};

use super::coding::{Body, DecodeError, put_bound, put_patterns};
use super::frames::{FrameList, put_frames, read_frames};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::{LAST_MAX, PAGE_BYTES_MAX};

const REVERSE: u8 = 1;
const FOLLOW: u8 = 1 << 1;
const BEFORE: u8 = 1 << 2;
const SINCE: u8 = 1 << 3;
const UNTIL: u8 = 1 << 4;
const LIMIT: u8 = 1 << 5;
const READ_FLAGS: u8 = REVERSE | FOLLOW | BEFORE | SINCE | UNTIL | LIMIT;

/// Writes the options of a read.
pub(crate) fn put_options(out: &mut Gather, options: &ReadOptions) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.put_u8(
        flag(options.reverse, REVERSE)
            | flag(options.follow, FOLLOW)
            | flag(options.before.is_some(), BEFORE)
            | flag(options.since_ms.is_some(), SINCE)
            | flag(options.until_ms.is_some(), UNTIL)
            | flag(options.limit.is_some(), LIMIT),
    );
    match options.start {
        Start::First => out.put_u8(0),
        Start::From(bound) => {
            out.put_u8(1);
            put_bound(out, bound);
        }
        Start::After(bound) => {
            out.put_u8(2);
            put_bound(out, bound);
        }
        Start::Last(n) => {
            out.put_u8(3);
            out.put_u64(n);
        }
        Start::New => out.put_u8(4),
    }
    if let Some(bound) = options.before {
        put_bound(out, bound);
    }
    let numbers = [options.since_ms, options.until_ms, options.limit];
    numbers.into_iter().flatten().for_each(|number| out.put_u64(number));
    put_patterns(out, &options.topics);
}

/// Reads the options of a read.
pub(crate) fn read_options(body: &mut Body) -> Result<ReadOptions, DecodeError> {
    let flags = body.u8("flags")?;
    if flags & !READ_FLAGS != 0 {
        return Err(body.wrong("flags").into());
    }
    let start = match body.u8("start")? {
        0 => Start::First,
        1 => Start::From(body.bound()?),
        2 => Start::After(body.bound()?),
        3 => Start::Last(body.u64("count")?),
        4 => Start::New,
        _ => return Err(body.wrong("start").into()),
    };
    let before = if flags & BEFORE != 0 { Some(body.bound()?) } else { None };
    let mut number = |flag| match flags & flag {
        0 => Ok(None),
        _ => body.u64("number").map(Some),
    };
    let (since_ms, until_ms, limit) = (number(SINCE)?, number(UNTIL)?, number(LIMIT)?);
    let topics = body.patterns()?;
    let (reverse, follow) = (flags & REVERSE != 0, flags & FOLLOW != 0);
    if reverse && follow {
        let text = "a read cannot go backwards and follow; leave out one of them";
        return Err(Refusal::new(Code::InvalidRead, text).into());
    }
    Ok(ReadOptions { topics, start, before, since_ms, until_ms, limit, reverse, follow })
}

/// One page of a bounded read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FetchRequest {
    pub(crate) options: ReadOptions,
    /// Bytes of records wanted; the server may send fewer, or exceed it by one record.
    pub(crate) page_bytes: u32,
}

impl FetchRequest {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u32(self.page_bytes);
        put_options(out, &self.options);
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let page_bytes = body.u32("page bytes")?.clamp(1, PAGE_BYTES_MAX);
        let options = read_options(&mut body)?;
        if options.follow {
            let text = "a fetch ends with what is stored; subscribe to follow";
            return Err(Refusal::new(Code::InvalidRead, text).into());
        }
        body.extensions()?;
        Ok(Self { options, page_bytes })
    }
}

/// The answer to a FETCH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) list: FrameList,
    /// Whether there is more to fetch.
    pub(crate) more: bool,
    /// The head when the page was read: where later pages should end.
    pub(crate) head: u64,
}

/// Writes the answer to a FETCH.
pub(crate) fn put_page(out: &mut Gather, frames: &[Frame], scanned_to: u64, more: bool, head: u64) {
    out.put_u64(head);
    out.put_u32(u32::from(more));
    out.put_u32(0);
    put_frames(out, frames, &[], scanned_to);
}

/// Reads the answer to a FETCH.
pub(crate) fn read_page(mut body: Body) -> Result<Page, ProtocolError> {
    let head = body.u64("head")?;
    let more = body.u32("more")? != 0;
    body.zeros(4)?;
    Ok(Page { list: read_frames(body)?, more, head })
}

/// The options of the next page after `page`, which had `taken` frames and has a successor.
pub(crate) fn after_page(options: &ReadOptions, page: &Page, taken: u64) -> ReadOptions {
    let mut next = options.clone();
    let (at, head) = (Bound::Offset(page.list.scanned_to), Bound::Offset(page.head));
    let mut left = next.limit;
    if let Start::Last(n) = next.start {
        left = Some(left.map_or(n, |limit| limit.min(n)));
    }
    next.limit = left.map(|left| left.saturating_sub(taken));
    if next.reverse {
        next.before = Some(at);
        if matches!(next.start, Start::Last(_)) {
            next.start = Start::First;
        }
    } else {
        next.start = Start::From(at);
        // Frames appended while the pages are read are not part of the read.
        next.before = next.before.or(Some(head));
    }
    next
}

/// A request for the newest frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRequest {
    /// Among these topics.
    pub topics: TopicPatterns,
    /// How many; at most [`LAST_MAX`].
    pub n: u64,
    /// Return `n` frames of each topic instead of `n` in total.
    pub per_topic: bool,
}

impl LastRequest {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u64(self.n);
        out.put_u8(u8::from(self.per_topic));
        put_patterns(out, &self.topics);
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let n = body.u64("count")?;
        let per_topic = match body.u8("per topic")? {
            0 => false,
            1 => true,
            _ => return Err(body.wrong("per topic").into()),
        };
        let topics = body.patterns()?;
        if n > LAST_MAX {
            let text = format!("{n} newest frames are over the limit of {LAST_MAX}; fetch them");
            return Err(Refusal::new(Code::InvalidRead, text).with(Detail::Limit(LAST_MAX)).into());
        }
        body.extensions()?;
        Ok(Self { topics, n, per_topic })
    }
}

/// Reads the request of TOPICS.
pub(crate) fn read_topics_request(mut body: Body) -> Result<TopicPatterns, DecodeError> {
    let topics = body.patterns()?;
    body.extensions()?;
    Ok(topics)
}

/// Writes an entry of TOPICS.
pub(crate) fn put_topic_summary(out: &mut Gather, summary: &TopicSummary) {
    let TopicSummary { topic, count, bytes, first, last, last_offset } = summary;
    out.put_u64(*count);
    out.put_u64(*bytes);
    out.put_slice(first.as_bytes());
    out.put_slice(last.as_bytes());
    out.put_u64(*last_offset);
    out.put_str(topic.as_str());
}

/// Reads entries of TOPICS up to the end of the body.
pub(crate) fn read_topic_summaries(mut body: Body) -> Result<Vec<TopicSummary>, ProtocolError> {
    let mut all = Vec::new();
    while body.left() > 0 {
        let (count, bytes) = (body.u64("count")?, body.u64("bytes")?);
        let (first, last) = (body.id("first id")?, body.id("last id")?);
        let last_offset = body.u64("last offset")?;
        let topic = Topic::parse(body.text("topic")?.as_str());
        let topic = topic.map_err(|_| body.wrong("topic"))?;
        all.push(TopicSummary { topic, count, bytes, first, last, last_offset });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use xs_engine::FrameId;

    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    fn full() -> ReadOptions {
        ReadOptions {
            topics: TopicPatterns::parse("a,b.*").unwrap(),
            start: Start::After(Bound::Id(FrameId::MAX)),
            before: Some(Bound::Offset(9)),
            since_ms: Some(1),
            until_ms: Some(2),
            limit: Some(3),
            reverse: true,
            follow: false,
        }
    }

    #[test]
    fn fetches_round_trip() {
        let starts = [
            Start::First,
            Start::From(Bound::Offset(5)),
            Start::After(Bound::Id(FrameId::ZERO)),
            Start::Last(7),
            Start::New,
        ];
        let others = starts.map(|start| ReadOptions { start, ..ReadOptions::default() });
        for options in others.into_iter().chain([full()]) {
            let fetch = FetchRequest { options, page_bytes: 4096 };
            let body = body_of(|out| fetch.put(out));
            let read = |bytes| FetchRequest::read(Body::new("FETCH", bytes));
            assert_eq!(read(body.clone()).unwrap(), fetch);
            each_cut_fails(&body, read);
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let follow = ReadOptions { follow: true, ..full() };
        let fetch = FetchRequest { options: follow, page_bytes: 1 };
        let body = body_of(|out| fetch.put(out));
        let error = FetchRequest::read(Body::new("FETCH", body)).unwrap_err();
        assert!(matches!(error, DecodeError::Refused(r) if r.code == Code::InvalidRead));
        for (n, fits) in [(LAST_MAX - 1, true), (LAST_MAX, true), (LAST_MAX + 1, false)] {
            let last = LastRequest { topics: TopicPatterns::all(), n, per_topic: true };
            let body = body_of(|out| last.put(out));
            each_cut_fails(&body, |bytes| LastRequest::read(Body::new("LAST", bytes)));
            assert_eq!(LastRequest::read(Body::new("LAST", body)).is_ok(), fits);
        }
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let page =
            Page { list: FrameList { frames: Vec::new(), scanned_to: 40 }, more: true, head: 100 };
        let body = body_of(|out| put_page(out, &[], 40, true, 100));
        assert_eq!(read_page(Body::new("FETCH", body.clone())).unwrap(), page);
        each_cut_fails(&body, |bytes| read_page(Body::new("FETCH", bytes)));
        let last = ReadOptions { start: Start::Last(50), ..ReadOptions::default() };
        let next = after_page(&last, &page, 20);
        assert_eq!((next.start, next.limit), (Start::From(Bound::Offset(40)), Some(30)));
        assert_eq!(next.before, Some(Bound::Offset(100)));
        let next = after_page(&ReadOptions { reverse: true, ..last }, &page, 20);
        assert_eq!((next.start, next.limit), (Start::First, Some(30)));
        assert_eq!(next.before, Some(Bound::Offset(40)));
    }

    #[test]
    fn topics_round_trip() {
        let one = TopicSummary {
            topic: Topic::parse("a.b").unwrap(),
            count: 1,
            bytes: 2,
            first: FrameId::ZERO,
            last: FrameId::MAX,
            last_offset: 3,
        };
        let body = body_of(|out| put_topic_summary(out, &one));
        let read = |bytes| read_topic_summaries(Body::new("TOPICS", bytes));
        assert_eq!(read(body.clone()).unwrap(), [one]);
        each_cut_fails(&body.slice(..), |bytes| match bytes.len() {
            0 => Err(Body::new("TOPICS", bytes).wrong("empty")),
            _ => read(bytes),
        });
    }
}
