//! The lifecycle events of a processor: the suffixes of the topics `xs.<kind>.<name>.<event>`. What
//! an event causes is decided by the code that runs processors, never here.

/// The suffix of a lifecycle topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// In: run this version.
    Create,
    /// In: stop, and stay stopped.
    Term,
    /// Out: a version runs.
    Active,
    /// Out: a generator waits to run again.
    Retrying,
    /// Out: a version could not be evaluated.
    Invalid,
    /// Out: it ended on its own.
    FinOk,
    /// Out: it failed and will not be restarted automatically.
    FinError,
    /// Out: it was stopped by a `term`.
    FinTerm,
    /// Out: it was stopped for a newer version.
    Replaced,
    /// Out: it was stopped with the server.
    Stopped,
    /// Out: an input was set aside.
    Parked,
    /// Out: a log message of the processor.
    Log,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 12] = [
        Self::Create,
        Self::Term,
        Self::Active,
        Self::Retrying,
        Self::Invalid,
        Self::FinOk,
        Self::FinError,
        Self::FinTerm,
        Self::Replaced,
        Self::Stopped,
        Self::Parked,
        Self::Log,
    ];

    /// The suffix of the topic, such as `fin.ok`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Term => "term",
            Self::Active => "active",
            Self::Retrying => "retrying",
            Self::Invalid => "invalid",
            Self::FinOk => "fin.ok",
            Self::FinError => "fin.error",
            Self::FinTerm => "fin.term",
            Self::Replaced => "replaced",
            Self::Stopped => "stopped",
            Self::Parked => "parked",
            Self::Log => "log",
        }
    }

    /// The event of a topic suffix; `None` when it is not one.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == text)
    }
}
