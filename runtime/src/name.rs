//! What processors are called: their kind, their name and the topics built from both. A value is
//! valid by construction; no file is read here.

use std::fmt;
use std::sync::Arc;

use xs_engine::{BlobHash, FrameId, Topic, ValueError};
use xs_protocol::lifecycle::Event;

/// Maximum bytes of a processor's name. `xs.generator.<name>.fin.error` must still fit a topic.
pub const NAME_BYTES_MAX: usize = 200;

/// The kind of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Emits frames.
    Generator,
    /// Reacts to frames, and keeps state.
    Handler,
    /// Is called, and answers.
    Command,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Generator, Self::Handler, Self::Command];

    /// The word in topics: `generator`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generator => "generator",
            Self::Handler => "handler",
            Self::Command => "command",
        }
    }

    /// The directory of its modules: `generators`.
    #[must_use]
    pub const fn dir(self) -> &'static str {
        match self {
            Self::Generator => "generators",
            Self::Handler => "handlers",
            Self::Command => "commands",
        }
    }

    /// The suffix of the topic its results go to unless `output.topic` says otherwise.
    #[must_use]
    pub const fn result_suffix(self) -> &'static str {
        match self {
            Self::Generator | Self::Command => "recv",
            Self::Handler => "out",
        }
    }

    /// Parses a kind, `None` when the word is not one.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is requested of a processor while it runs, besides its lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A command: end a call, or do not begin it.
    Cancel,
    /// A handler: handle a parked input again.
    Unpark,
    /// A handler: discard a parked input.
    Discard,
}

impl Request {
    /// Every request.
    pub const ALL: [Self; 3] = [Self::Cancel, Self::Unpark, Self::Discard];

    /// The last part of its topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Unpark => "unpark",
            Self::Discard => "discard",
        }
    }

    /// The kind of processor that it is made of.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Cancel => Kind::Command,
            Self::Unpark | Self::Discard => Kind::Handler,
        }
    }
}

/// Why a text is not a processor's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It breaks a rule of topics.
    #[error("{0}; rename the file")]
    Topic(#[from] ValueError),
    /// It is too long.
    #[error("the name is {bytes} bytes long, {NAME_BYTES_MAX} are allowed; shorten the file name")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// It would write into the topics of xs itself.
    #[error("names beginning with xs are reserved; rename the file")]
    Reserved,
    /// Its lifecycle topics would be ambiguous with those of another name.
    #[error("names ending in .fin are reserved; rename the file")]
    Fin,
}

/// A processor's name: a topic of at most [`NAME_BYTES_MAX`] bytes that is not reserved.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessorName(Arc<str>);

impl ProcessorName {
    /// Validates `text`.
    ///
    /// # Errors
    /// [`NameError`] says which rule is broken.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::Length { bytes: text.len() });
        }
        if Topic::parse(text)?.is_reserved() {
            return Err(NameError::Reserved);
        }
        // `xs.handler.a.fin.term` is the event `fin.term` of `a`, never `term` of `a.fin`.
        if text.ends_with(".fin") {
            return Err(NameError::Fin);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic `<name>.<suffix>`.
    ///
    /// # Panics
    /// When `suffix` is not a valid end of a topic, which is a bug of the caller.
    #[must_use]
    pub fn topic(&self, suffix: &str) -> Topic {
        Topic::parse(&format!("{}.{suffix}", self.0)).expect("a name leaves room for a suffix")
    }

    /// The topic `xs.<kind>.<name>.<event>`.
    #[must_use]
    pub fn event_topic(&self, kind: Kind, event: Event) -> Topic {
        self.reserved_topic(kind, event.as_str())
    }

    /// The topic `xs.<kind>.<name>.<request>`.
    #[must_use]
    pub fn request_topic(&self, request: Request) -> Topic {
        self.reserved_topic(request.kind(), request.as_str())
    }

    fn reserved_topic(&self, kind: Kind, end: &str) -> Topic {
        Topic::parse(&format!("xs.{kind}.{}.{end}", self.0))
            .expect("a name leaves room for its lifecycle topics")
    }
}

impl fmt::Display for ProcessorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProcessorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The name of the thread that runs a version, derived from its `create` frame: it is all that is
/// known after a crash. Linux keeps 15 bytes.
#[must_use]
pub fn thread_name(create: FrameId) -> String {
    format!("js-{}", &create.to_string()[13..])
}

/// The name of the thread that parses a source, derived from its hash. Linux keeps 15 bytes.
#[must_use]
pub(crate) fn source_thread_name(source: BlobHash) -> String {
    format!("src-{}", &source.to_string()[..11])
}

/// Whether a thread's name identifies what it ran, so that the next process can avoid that.
#[must_use]
pub(crate) fn is_avoidable(thread: &str) -> bool {
    let named = |prefix, bytes| thread.strip_prefix(prefix).is_some_and(|rest| rest.len() == bytes);
    named("js-", 12) || named("src-", 11)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_topics_with_room_for_suffixes() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        for good in ["a", "disk.usage", "_x", "xsa", longest.as_str()] {
            let name = ProcessorName::parse(good).unwrap();
            for kind in Kind::ALL {
                for event in Event::ALL {
                    assert!(name.event_topic(kind, event).as_str().ends_with(event.as_str()));
                }
            }
            for request in Request::ALL {
                assert!(name.request_topic(request).as_str().ends_with(request.as_str()));
            }
        }
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for bad in ["", "xs", "xs.a", "9a", "a b", "a..b", "a.", "a.fin", too_long.as_str()] {
            assert!(ProcessorName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds_have_one_word_each() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of(kind.as_str()), Some(kind));
        }
        assert_eq!(Kind::of("generators"), None);
    }
}
