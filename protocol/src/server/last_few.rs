//! The last few frames, if they are found quickly: looked up on the connection's task, because a
//! thread switch costs more than the rest of the reply. Anything not found here takes the slow
//! path, which also reports errors.

use xs_engine::{Bound, Frame, ReadOptions, Start};

use crate::limits::LAST_AT_ONCE_MAX;
use crate::message::LastRequest;
use crate::service::{Pulled, Service};

/// The newest frames of topics together, in log order, if one pull finds them all.
pub(super) fn last(request: &LastRequest, service: &dyn Service) -> Option<Vec<Frame>> {
    if request.per_topic {
        return None;
    }
    let topics = request.topics.clone();
    let options = ReadOptions { topics, start: Start::Last(request.n), ..ReadOptions::default() };
    newest(options, request.n, service)
}

/// Rewrites a read that begins with the last N frames into one that begins at an offset, if one
/// pull finds them all.
pub(super) fn begin(options: &ReadOptions, service: &dyn Service) -> Option<ReadOptions> {
    let Start::Last(n) = options.start else { return None };
    let head = service.head();
    let back = ReadOptions { follow: false, limit: None, ..options.clone() };
    let found = newest(back, n, service)?;
    let from = found.first().map_or(Some(head), Frame::offset)?;
    let mut options = ReadOptions { start: Start::From(Bound::Offset(from)), ..options.clone() };
    if !options.follow {
        // What was appended meanwhile is not among the frames found.
        let end = found.last().and_then(Frame::offset).map_or(head, |last| head.max(last + 1));
        options.before.get_or_insert(Bound::Offset(end));
        options.limit = Some(options.limit.map_or(n, |limit| limit.min(n)));
    }
    Some(options)
}

fn newest(options: ReadOptions, n: u64, service: &dyn Service) -> Option<Vec<Frame>> {
    if n > LAST_AT_ONCE_MAX {
        return None;
    }
    let options = ReadOptions { reverse: true, ..options };
    let mut frames = Vec::new();
    let mut feed = service.read(&options).ok()?;
    match feed.pull(&mut frames, usize::MAX).ok()? {
        Pulled::End => {
            frames.reverse();
            Some(frames)
        }
        _ => None,
    }
}
