//! The events of a processor's life: what the topics `xs.<kind>.<name>.<event>` end with. What each
//! brings about is decided by whoever runs processors, never here.

/// The last part of a lifecycle topic.
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
    /// Out: it ended by itself.
    FinOk,
    /// Out: it failed and will not run again by itself.
    FinError,
    /// Out: it was stopped by a `term`.
    FinTerm,
    /// Out: it was stopped for a newer version.
    Replaced,
    /// Out: it was stopped with the server.
    Stopped,
    /// Out: an input was set aside.
    Parked,
    /// Out: something it said.
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

    /// The end of the topic: `fin.ok`.
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

    /// The event of the end of a topic, `None` when it is not one.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == text)
    }
}
