//! Topics and the patterns that select them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{ValueError, shorten};
use crate::limits::{PATTERNS_MAX, TOPIC_BYTES_MAX};

/// The name of a frame's topic: 1 to 255 bytes of `a-z A-Z 0-9 _ - .`, beginning with a letter or
/// `_`, without `..` and without a `.` at the end. Dots make a hierarchy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Validates and copies `text`.
    ///
    /// # Errors
    /// [`ValueError::Topic`] names the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        check(text)?;
        Ok(Self(Arc::from(text)))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the topic belongs to xs itself (`xs`, or begins with `xs.`).
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        is_reserved(&self.0)
    }
}

fn is_reserved(topic: &str) -> bool {
    topic == "xs" || topic.starts_with("xs.")
}

/// Checks the rules of a topic.
pub(crate) fn check(text: &str) -> Result<(), ValueError> {
    let fail = |rule| Err(ValueError::Topic { topic: shorten(text), rule });
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return fail("is empty");
    }
    if bytes.len() > TOPIC_BYTES_MAX {
        return fail("is longer than 255 bytes");
    }
    if !(bytes[0].is_ascii_alphabetic() || bytes[0] == b'_') {
        return fail("must begin with a letter or _");
    }
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if !bytes.iter().all(allowed) {
        return fail("may hold only a-z A-Z 0-9 _ - and .");
    }
    if bytes.ends_with(b".") {
        return fail("must not end with a dot");
    }
    if bytes.windows(2).any(|pair| pair == b"..") {
        return fail("must not hold two dots in a row");
    }
    Ok(())
}

/// Whether bytes are a topic: the rules of [`check`] in one pass, for code that checks many.
#[inline]
pub(crate) fn is_topic(bytes: &[u8]) -> bool {
    const DOT: u8 = 1;
    const WRONG: u8 = 2;
    const CLASSES: [u8; 256] = {
        let mut classes = [WRONG; 256];
        let mut byte = 0;
        while byte < 128 {
            classes[byte] = match byte as u8 {
                b'.' => DOT,
                b'_' | b'-' => 0,
                other if other.is_ascii_alphanumeric() => 0,
                _ => WRONG,
            };
            byte += 1;
        }
        classes
    };
    // Without a branch per byte, which would cost more than scanning the bytes after a wrong one.
    let (mut wrong, mut before) = (0, DOT);
    for &byte in bytes {
        let class = CLASSES[usize::from(byte)];
        // A dot is wrong after another one, and at the beginning.
        wrong |= class & (before | WRONG);
        before = class;
    }
    let begins = bytes.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
    wrong == 0 && begins && before != DOT && bytes.len() <= TOPIC_BYTES_MAX
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for Topic {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

/// A pattern of topics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicPattern {
    /// `a.b`: that topic.
    Exact(Topic),
    /// `a.b.*`: every topic below `a.b`, at any depth, without `a.b` itself.
    Below(Topic),
    /// `*`: every topic that is not reserved.
    All,
}

impl TopicPattern {
    /// Parses one pattern.
    ///
    /// # Errors
    /// [`ValueError::Topic`] names the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        if text == "*" {
            return Ok(Self::All);
        }
        let below = text.strip_suffix(".*");
        if below.unwrap_or(text).contains('*') {
            let rule = "may have a star only alone, or at the end behind a dot: a.*";
            return Err(ValueError::Topic { topic: shorten(text), rule });
        }
        match below {
            Some(prefix) => Ok(Self::Below(Topic::parse(prefix)?)),
            None => Ok(Self::Exact(Topic::parse(text)?)),
        }
    }

    /// Whether it selects `topic`. `*` and patterns that do not begin with `xs.` exclude `xs.*`.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == topic,
            Self::Below(prefix) => {
                topic.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('.'))
            }
            Self::All => !is_reserved(topic),
        }
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(topic) => write!(f, "{topic}"),
            Self::Below(prefix) => write!(f, "{prefix}.*"),
            Self::All => f.write_str("*"),
        }
    }
}

/// One or more patterns; a topic is selected when any of them selects it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicPatterns(Arc<[TopicPattern]>);

impl TopicPatterns {
    /// Selects every topic that is not reserved: `*`.
    #[must_use]
    pub fn all() -> Self {
        Self(Arc::from([TopicPattern::All]))
    }

    /// Selects every topic, including reserved ones: `*,xs,xs.*`.
    ///
    /// # Panics
    /// Never: the pattern is a constant that parses.
    #[must_use]
    pub fn everything() -> Self {
        Self::parse("*,xs,xs.*").expect("a constant that parses")
    }

    /// Parses a comma-separated list; empty elements are ignored.
    ///
    /// # Errors
    /// [`ValueError`] for a pattern that breaks a rule, for an empty list and for too many
    /// patterns.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Self::new(parts.map(TopicPattern::parse).collect::<Result<_, _>>()?)
    }

    /// Creates a list of patterns.
    ///
    /// # Errors
    /// [`ValueError::PatternCount`] when there are none or more than [`PATTERNS_MAX`].
    pub fn new(patterns: Vec<TopicPattern>) -> Result<Self, ValueError> {
        if patterns.is_empty() || patterns.len() > PATTERNS_MAX {
            return Err(ValueError::PatternCount { count: patterns.len(), max: PATTERNS_MAX });
        }
        Ok(Self(Arc::from(patterns)))
    }

    /// Whether any pattern selects `topic`.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(topic))
    }

    /// Returns the patterns.
    #[must_use]
    pub fn as_slice(&self) -> &[TopicPattern] {
        &self.0
    }
}

impl FromStr for TopicPattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

impl From<Topic> for TopicPatterns {
    fn from(topic: Topic) -> Self {
        Self(Arc::from([TopicPattern::Exact(topic)]))
    }
}

impl FromStr for TopicPatterns {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

impl fmt::Display for TopicPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{pattern}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_checked() {
        let longest = "a".repeat(255);
        for good in ["a", "_", "A-b_c.9", "xs.start", "a.b.c", longest.as_str()] {
            assert!(Topic::parse(good).is_ok() && is_topic(good.as_bytes()), "{good}");
        }
        let too_long = "a".repeat(256);
        for bad in [
            "", ".", "a.", ".a", "a..b", "9a", "-a", "a b", "a,b", "a/b", "a\0", "\u{e4}",
            &too_long,
        ] {
            assert!(Topic::parse(bad).is_err() && !is_topic(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn both_checks_agree_on_all_short_topics() {
        for first in 0..=255 {
            for second in 0..=255 {
                let bytes = [first, second, b'a'];
                for bytes in [&bytes[..1], &bytes[..2], &bytes] {
                    let sound = std::str::from_utf8(bytes).is_ok_and(|text| check(text).is_ok());
                    assert_eq!(is_topic(bytes), sound, "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn everything_is_every_topic() {
        for topic in ["a", "xs", "xs.start", "xsa", "a.xs"] {
            assert!(TopicPatterns::everything().matches(topic), "{topic}");
        }
    }

    #[test]
    fn patterns_select() {
        let cases: [(&str, &[&str], &[&str]); 5] = [
            ("a.b", &["a.b"], &["a", "a.b.c", "a.bc"]),
            ("a.*", &["a.b", "a.b.c"], &["a", "ab", "ab.c", "xs.a"]),
            ("*", &["a", "xsa", "a.xs"], &["xs", "xs.start"]),
            ("xs.*", &["xs.start", "xs.handler.a.active"], &["xs", "a"]),
            ("a, b.*,,", &["a", "b.c"], &["b", "c"]),
        ];
        for (text, yes, no) in cases {
            let patterns = TopicPatterns::parse(text).unwrap();
            yes.iter().for_each(|topic| assert!(patterns.matches(topic), "{text} {topic}"));
            no.iter().for_each(|topic| assert!(!patterns.matches(topic), "{text} {topic}"));
        }
        assert!(TopicPatterns::parse(", ,").is_err());
        assert!(TopicPatterns::parse("a.*.c").is_err());
        assert_eq!(TopicPatterns::parse("a, b.*").unwrap().to_string(), "a,b.*");
    }
}
