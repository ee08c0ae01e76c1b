//! Conditions of an append.

use std::fmt;

use super::TopicPatterns;

/// What must hold for a batch to be appended. The writer checks it after every earlier batch was
/// appended. It sees what a read of the newest frame would: expired, removed and ephemeral frames
/// do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// No frame of the topics has a higher offset.
    LastAtMost {
        /// The topics.
        topics: TopicPatterns,
        /// The highest offset allowed.
        offset: u64,
    },
    /// The topics hold no frame.
    Empty(TopicPatterns),
    /// The next frame of the log gets this offset.
    HeadIs(u64),
}

/// A condition that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Its place among the conditions of the batch, from 0.
    pub index: usize,
    /// The condition.
    pub condition: Condition,
    /// What was found instead: the offset of the newest frame of its topics, or the head.
    pub found: u64,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, condition, found } = self;
        write!(f, "condition {index} is not met: ")?;
        match condition {
            Condition::LastAtMost { topics, offset } => {
                write!(f, "the newest frame of {topics} has offset {found}, above {offset}")
            }
            Condition::Empty(topics) => {
                write!(f, "{topics} should be empty, its newest frame has offset {found}")
            }
            Condition::HeadIs(head) => write!(f, "the head is {found}, not {head}"),
        }
    }
}
