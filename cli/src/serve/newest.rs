//! The newest frames of each topic, page by page, within the limit of one answer.

use std::ops::Range;

use xs_engine::{Frame, ReadError, Store, Topic, TopicPatterns};
use xs_protocol::{Code, Detail, Refusal};

use super::refuse;

/// Topics per page.
const PAGE: usize = 1024;

/// The results of one page of topics, and the topic after which the next page begins.
type Page<T> = Result<(Vec<T>, Option<Topic>), ReadError>;

/// The newest `n` frames of each topic, in log order, at most `max` in all.
pub(super) fn of_each(
    store: &Store,
    topics: &TopicPatterns,
    n: u64,
    max: u64,
) -> Result<Vec<Frame>, Refusal> {
    let found = match n {
        0 => Ok(Some(Vec::new())),
        1 => gather(max, |after, _| store.last_per_topic_page(topics, after, PAGE)),
        n => gather(max, |after, room| {
            let (page, next) = store.topics_page(topics, after, PAGE);
            let mut frames = Vec::new();
            for topic in page {
                let room = room.saturating_sub(frames.len() as u64);
                frames.extend(store.last(&topic.topic.into(), n.min(room))?);
            }
            Ok((frames, next))
        }),
    };
    let mut frames = found.map_err(|error| refuse::read(&error))?.ok_or_else(|| {
        let text = format!("more than {max} frames; ask for fewer per topic, or for fewer topics");
        Refusal::new(Code::InvalidRead, text).with(Detail::Limit(max))
    })?;
    frames.sort_unstable_by_key(Frame::offset);
    Ok(frames)
}

/// The offsets of each topic's newest frame, if in `range`, in ascending order.
pub(super) fn in_range(
    store: &Store,
    topics: &TopicPatterns,
    range: Range<u64>,
    max: u64,
) -> Result<Vec<u64>, Refusal> {
    let found = gather(max, |after, _| {
        let (page, next) = store.last_per_topic_page(topics, after, PAGE)?;
        let offsets = page.iter().filter_map(Frame::offset).filter(|at| range.contains(at));
        Ok((offsets.collect(), next))
    });
    let mut offsets = found.map_err(|error| refuse::read(&error))?.ok_or_else(|| {
        let text =
            format!("more than {max} topics have a frame in the gap; continue from the offset");
        Refusal::new(Code::TooSlow, text)
    })?;
    offsets.sort_unstable();
    Ok(offsets)
}

/// Collects pages. `page` gets the number of items that are still useful. Returns `None` when there
/// are more than `max`.
fn gather<T>(
    max: u64,
    page: impl Fn(Option<&Topic>, u64) -> Page<T>,
) -> Result<Option<Vec<T>>, ReadError> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        // One more than the limit shows that there are too many.
        let room = max.saturating_add(1).saturating_sub(all.len() as u64);
        let (mut found, next) = page(after.as_ref(), room)?;
        all.append(&mut found);
        if all.len() as u64 > max {
            return Ok(None);
        }
        match next {
            Some(next) => after = Some(next),
            None => return Ok(Some(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_engine::{Batch, NewFrame, StoreOptions};

    use super::*;

    #[test]
    fn no_answer_has_more_frames_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let topic = |n: u64| Topic::parse(&format!("t{}", n % 10)).unwrap();
        let frames = (0..100).map(|n| NewFrame::new(topic(n))).collect();
        store.append(Batch { frames, ..Batch::default() }).unwrap();
        let offsets = |found: Result<Vec<Frame>, Refusal>| {
            found.map(|frames| frames.iter().filter_map(Frame::offset).collect::<Vec<_>>())
        };
        let all = TopicPatterns::all();
        let last = |from: u64| Ok((from..100).collect::<Vec<_>>());
        assert_eq!(offsets(of_each(&store, &all, 3, 30)), last(70));
        assert_eq!(offsets(of_each(&store, &all, 1, 10)), last(90));
        assert_eq!(offsets(of_each(&store, &all, 0, 0)), last(100));
        for (n, max) in [(3, 29), (u64::MAX, 99), (1, 9)] {
            let refusal = of_each(&store, &all, n, max).unwrap_err();
            assert_eq!(refusal.code, Code::InvalidRead, "{n} {max}");
            assert_eq!(refusal.details, [Detail::Limit(max)]);
        }
        assert_eq!(in_range(&store, &all, 92..95, 3), Ok(vec![92, 93, 94]));
        assert_eq!(in_range(&store, &all, 92..95, 2).unwrap_err().code, Code::TooSlow);
    }
}
