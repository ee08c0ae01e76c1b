//! Checks the conditions of a batch against what is published and the frames that its group has
//! laid out before it. A group without conditions costs nothing.

use std::collections::BTreeMap;

use super::placed::Placed;
use crate::append::Pending;
use crate::error::AppendError;
use crate::limits::CONDITION_TOPICS_MAX;
use crate::read::{Looks, NotFound};
use crate::store::Inner;
use crate::value::{Condition, Topic, TopicPattern, TopicPatterns, Unmet};

/// The batches of a group that precede one, with their results.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    pub(super) group: &'a [Pending],
    pub(super) placed: &'a [Result<Placed, AppendError>],
    /// Offset of the next frame.
    pub(super) head: u64,
    pub(super) now_ms: u64,
}

/// A stored frame that is laid out but not published.
#[derive(Debug, Clone, Copy)]
struct Laid {
    offset: u64,
    expires_ms: Option<u64>,
}

/// The frames of a group, indexed as far as conditions needed them.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    /// Batches indexed so far.
    taken: usize,
    topics: BTreeMap<Topic, Vec<Laid>>,
    looks: Looks,
}

impl Conditions {
    /// Whether all conditions of a batch hold.
    pub(super) fn check(
        &mut self,
        inner: &Inner,
        pending: &Pending,
        before: Before<'_>,
    ) -> Result<(), AppendError> {
        let conditions = &pending.batch.conditions;
        if conditions.is_empty() {
            return Ok(());
        }
        self.take_up(before);
        self.looks.renew();
        for (index, condition) in conditions.iter().enumerate() {
            let found = match condition {
                Condition::HeadIs(head) => Ok(Some(before.head).filter(|found| found != head)),
                Condition::Empty(topics) => self.newest(inner, topics, 0, before.now_ms),
                Condition::LastAtMost { topics, offset } => match offset.checked_add(1) {
                    Some(from) => self.newest(inner, topics, from, before.now_ms),
                    None => Ok(None),
                },
            };
            match found {
                Ok(None) => {}
                Ok(Some(found)) => {
                    let condition = condition.clone();
                    return Err(AppendError::ConditionNotMet(Unmet { index, condition, found }));
                }
                Err(NotFound::TooWide) => {
                    return Err(AppendError::ConditionsTooWide { max: CONDITION_TOPICS_MAX });
                }
                Err(NotFound::Read(error)) => {
                    return Err(AppendError::ConditionUnread { index, error });
                }
            }
        }
        Ok(())
    }

    /// Indexes the batches that were laid out since the last condition.
    fn take_up(&mut self, before: Before<'_>) {
        let batches = before.group.iter().zip(before.placed).skip(self.taken);
        for (pending, placed) in batches {
            self.taken += 1;
            let Ok(placed) = placed else { continue };
            for (new, stamp) in pending.batch.frames.iter().zip(&placed.appended.frames) {
                let Some(offset) = stamp.offset else { continue };
                let expires_ms = new.ttl.expires_ms(stamp.id);
                let laid = self.topics.entry(new.topic.clone()).or_default();
                laid.push(Laid { offset, expires_ms });
            }
        }
    }

    /// The newest visible frame of the topics, if its offset is at least `from`.
    fn newest(
        &mut self,
        inner: &Inner,
        topics: &TopicPatterns,
        from: u64,
        now_ms: u64,
    ) -> Result<Option<u64>, NotFound> {
        let laid = topics.as_slice().iter().filter_map(|pattern| self.laid(pattern, now_ms)).max();
        // `last:n` keeps at least its own frame, so a topic in which the group hides frames has one
        // here.
        match laid {
            Some(offset) => Ok(Some(offset).filter(|&offset| offset >= from)),
            None => inner.newest_visible(topics, from, &mut self.looks),
        }
    }

    /// The newest frame of the group that a pattern selects.
    fn laid(&self, pattern: &TopicPattern, now_ms: u64) -> Option<u64> {
        let newest = |laid: &Vec<Laid>| {
            let mut live = laid.iter().rev();
            live.find(|frame| frame.expires_ms.is_none_or(|at| at > now_ms)).map(|f| f.offset)
        };
        match pattern {
            TopicPattern::Exact(topic) => self.topics.get(topic).and_then(newest),
            TopicPattern::Below(prefix) => {
                let from = self.topics.range::<Topic, _>(prefix..);
                let near =
                    from.take_while(|(topic, _)| topic.as_str().starts_with(prefix.as_str()));
                let below = near.filter(|(topic, _)| pattern.matches(topic.as_str()));
                below.filter_map(|(_, laid)| newest(laid)).max()
            }
            TopicPattern::All => {
                let all = self.topics.iter().filter(|(topic, _)| pattern.matches(topic.as_str()));
                all.filter_map(|(_, laid)| newest(laid)).max()
            }
        }
    }
}
