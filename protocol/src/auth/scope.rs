//! The topics that a connection may read, or append to.

use std::fmt;

use xs_engine::limits::PATTERNS_MAX;
use xs_engine::{TopicPattern, TopicPatterns};

use crate::error::{Code, Detail, Refusal};
use crate::message::Role;

/// A set of topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every topic, `xs.*` too.
    Everything,
    /// The topics that patterns match, never one of `xs.*`.
    Topics(TopicPatterns),
    /// No topic.
    Nothing,
}

impl Scope {
    /// The default scope of a role, unless its token limits it: `xs.*` is for admins and hosts.
    #[must_use]
    pub fn of(role: Role) -> Self {
        match role {
            Role::Read | Role::Append => Self::Topics(TopicPatterns::all()),
            Role::Admin | Role::Host => Self::Everything,
        }
    }

    /// Whether it contains a topic.
    #[must_use]
    pub fn holds(&self, topic: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Topics(patterns) => patterns.matches(topic),
            Self::Nothing => false,
        }
    }

    /// Whether it contains all topics outside `xs.*`.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Everything => true,
            Self::Topics(patterns) => patterns.as_slice().contains(&TopicPattern::All),
            Self::Nothing => false,
        }
    }

    /// Whether it contains everything that patterns match.
    pub(crate) fn covers(&self, asked: &TopicPatterns) -> bool {
        self.narrow(asked).is_ok_and(|left| {
            asked.as_slice().iter().all(|pattern| left.as_slice().contains(pattern))
        })
    }

    /// The part of a reader's patterns that lies in the scope. A wildcard matches only what may be
    /// read, so a reader of `*` sees the topics of its token and gets no error for topics it need
    /// not know of. A topic requested by name is refused instead: an empty answer would hide a
    /// mistake.
    /// # Errors
    /// [`Code::Denied`] for a named topic outside, and when nothing is left.
    pub(crate) fn narrow(&self, asked: &TopicPatterns) -> Result<TopicPatterns, Refusal> {
        let own = match self {
            Self::Everything => return Ok(asked.clone()),
            Self::Topics(own) => own,
            Self::Nothing => return Err(denied("this token may not read".to_owned())),
        };
        let mut left: Vec<TopicPattern> = Vec::new();
        let mut keep = |pattern: TopicPattern| {
            if !left.contains(&pattern) {
                left.push(pattern);
            }
        };
        for pattern in asked.as_slice() {
            match pattern {
                TopicPattern::Exact(topic) if own.matches(topic.as_str()) => keep(pattern.clone()),
                // A request for everything does not name a topic.
                TopicPattern::Exact(_) if asked == &TopicPatterns::everything() => {}
                TopicPattern::Exact(topic) => {
                    return Err(denied(format!("{topic} cannot be read with this token")));
                }
                _ => own.as_slice().iter().filter_map(|own| both(own, pattern)).for_each(&mut keep),
            }
        }
        if left.is_empty() {
            return Err(denied(format!("no topic of {asked} can be read with this token")));
        }
        let count = left.len();
        TopicPatterns::new(left).map_err(|_| {
            let text = format!(
                "the patterns and those of the token make {count}, more than {PATTERNS_MAX}: \
                 read in several requests"
            );
            Refusal::new(Code::InvalidRead, text).with(Detail::Limit(PATTERNS_MAX as u64))
        })
    }
}

/// The intersection of two patterns: the narrower of them, or nothing.
fn both(own: &TopicPattern, asked: &TopicPattern) -> Option<TopicPattern> {
    let narrower = |pattern: &TopicPattern, other: &TopicPattern| match pattern {
        TopicPattern::Exact(topic) => other.matches(topic.as_str()),
        // A wildcard that matches the prefix matches everything below it too.
        TopicPattern::Below(prefix) => {
            other == pattern
                || (!matches!(other, TopicPattern::Exact(_)) && other.matches(prefix.as_str()))
        }
        TopicPattern::All => *other == TopicPattern::All,
    };
    [(own, asked), (asked, own)]
        .into_iter()
        .find(|(pattern, other)| narrower(pattern, other))
        .map(|(pattern, _)| pattern.clone())
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*,xs.*"),
            Self::Topics(patterns) => patterns.fmt(f),
            Self::Nothing => f.write_str("-"),
        }
    }
}

fn denied(message: String) -> Refusal {
    Refusal::new(Code::Denied, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrowed(own: &str, asked: &str) -> Result<String, Code> {
        let own = Scope::Topics(TopicPatterns::parse(own).unwrap());
        let narrowed = own.narrow(&TopicPatterns::parse(asked).unwrap());
        narrowed.map(|left| left.to_string()).map_err(|refusal| refusal.code)
    }

    #[test]
    fn wildcards_are_narrowed_and_names_are_refused() {
        for (own, asked, expected) in [
            ("*", "*", Some("*")),
            ("*", "a.*,b", Some("a.*,b")),
            ("*", "xs.*", None),
            ("*", "*,xs.*", Some("*")),
            ("*", "*,xs,xs.*", Some("*")),
            ("*", "xs", None),
            ("*", "xs.start", None),
            ("a.*", "*", Some("a.*")),
            ("a.*", "a.*", Some("a.*")),
            ("a.*", "a.b.*", Some("a.b.*")),
            ("a.b.*", "a.*", Some("a.b.*")),
            ("a.b.*", "a.*,*", Some("a.b.*")),
            ("a.*", "ab.*", None),
            ("a", "a.*", None),
            ("a.*", "a", None),
            ("a.*,a", "a", Some("a")),
            ("a.b,c.*", "a.*,c.d.*", Some("a.b,c.d.*")),
            ("a.*", "a.b,b", None),
            ("xsa.*", "*", Some("xsa.*")),
        ] {
            let expected = expected.map(str::to_owned).ok_or(Code::Denied);
            assert_eq!(narrowed(own, asked), expected, "{own} {asked}");
        }
        let all = TopicPatterns::everything();
        assert_eq!(Scope::Everything.narrow(&all).unwrap(), all);
        assert_eq!(Scope::Nothing.narrow(&all).unwrap_err().code, Code::Denied);
    }

    /// The remaining patterns match exactly the topics that both match.
    #[test]
    fn what_is_left_is_what_both_select() {
        let patterns = ["*", "a.*", "a.b.*", "a.b", "a", "b.*", "xs.*", "xs.a.*"];
        let topics = ["a", "a.b", "a.b.c", "a.c", "b", "b.a", "xs", "xs.a", "xs.a.b", "ab", "ab.c"];
        for own in patterns.iter().filter(|own| !own.starts_with("xs")) {
            for asked in patterns.iter().filter(|asked| asked.ends_with('*')) {
                let own_scope = Scope::Topics(TopicPatterns::parse(own).unwrap());
                let asked = TopicPatterns::parse(asked).unwrap();
                let left = own_scope.narrow(&asked);
                for topic in topics {
                    let expected = own_scope.holds(topic) && asked.matches(topic);
                    let found = left.as_ref().is_ok_and(|left| left.matches(topic));
                    assert_eq!(found, expected, "{own} {asked} {topic}");
                }
            }
        }
    }

    #[test]
    fn what_is_wholly_inside_is_covered() {
        let own = Scope::Topics(TopicPatterns::parse("a.*,b").unwrap());
        for (asked, expected) in
            [("a.b", true), ("a.*,b", true), ("a.b.*,a.b.*", true), ("*", false), ("b.*", false)]
        {
            assert_eq!(own.covers(&TopicPatterns::parse(asked).unwrap()), expected, "{asked}");
        }
        assert!(Scope::Everything.covers(&TopicPatterns::everything()));
    }

    #[test]
    fn too_many_patterns_are_said_to_be_too_many() {
        let list = |first: &str, prefix: &str| {
            let more = (0..63).map(|n| format!(",{prefix}{n}.*"));
            format!("{first}{}", more.collect::<String>())
        };
        let (own, asked) = (list("a.*", "b.x"), list("b.*", "a.x"));
        assert_eq!(narrowed(&own, &asked), Err(Code::InvalidRead));
    }
}
