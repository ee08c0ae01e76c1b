//! Conditions of an append as they are typed.

use xs_engine::{Condition, Topic, TopicPatterns};

use super::read::pattern_list;

/// One `--expect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expect {
    /// `None`: the topic that is appended to.
    topics: Option<TopicPatterns>,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Empty,
    AtMost(u64),
    Head(u64),
}

impl Expect {
    /// `empty`, `N`, `head=N`, `TOPICS=empty` or `TOPICS=N`.
    ///
    /// # Errors
    /// A sentence that says which forms are known.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (topics, value) = match text.rsplit_once('=') {
            Some((topics, value)) => (Some(topics), value),
            None => (None, text),
        };
        let what = match (topics, value, value.parse()) {
            (Some("head"), _, Ok(head)) => What::Head(head),
            // What modules write, `{ last: "none" }`, is understood too.
            (_, "empty" | "none", _) => What::Empty,
            (_, _, Ok(offset)) => What::AtMost(offset),
            _ => {
                let forms = "empty, an offset, head=OFFSET, TOPICS=empty or TOPICS=OFFSET";
                return Err(format!("expected: {forms}"));
            }
        };
        let topics = topics.filter(|_| !matches!(what, What::Head(_)));
        let patterns = topics.map(|topics| {
            let list = pattern_list(topics)?;
            TopicPatterns::new(list.0).map_err(|error| error.to_string())
        });
        Ok(Self { topics: patterns.transpose()?, what })
    }

    /// The condition, for an append to `topic`.
    pub(crate) fn condition(&self, topic: &Topic) -> Condition {
        let topics = || self.topics.clone().unwrap_or_else(|| topic.clone().into());
        match self.what {
            What::Empty => Condition::Empty(topics()),
            What::AtMost(offset) => Condition::LastAtMost { topics: topics(), offset },
            What::Head(head) => Condition::HeadIs(head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_becomes_a_condition() {
        let topic = Topic::parse("a.b").unwrap();
        let condition = |text: &str| Expect::parse(text).unwrap().condition(&topic);
        let own = || TopicPatterns::from(topic.clone());
        let below = || TopicPatterns::new(pattern_list("c.,d").unwrap().0).unwrap();
        assert_eq!(condition("empty"), Condition::Empty(own()));
        assert_eq!(condition("7"), Condition::LastAtMost { topics: own(), offset: 7 });
        assert_eq!(condition("head=0"), Condition::HeadIs(0));
        assert_eq!(condition("c.,d=empty"), Condition::Empty(below()));
        assert_eq!(condition("c.,d=9"), Condition::LastAtMost { topics: below(), offset: 9 });
        for text in ["", "full", "head=empty=", "=1", "a=", "9topic=1", "-1"] {
            assert!(Expect::parse(text).is_err(), "{text}");
        }
    }
}
