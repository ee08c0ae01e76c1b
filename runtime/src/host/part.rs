//! Which processors a Host runs. All Hosts of a server read the whole log and the whole directory,
//! and each acts only on its own part.

use std::collections::BTreeSet;

use crate::name::ProcessorName;

/// The processors that a Host runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Part {
    /// All.
    #[default]
    All,
    /// All but these, which have Hosts of their own.
    AllBut(BTreeSet<ProcessorName>),
    /// One.
    Only(ProcessorName),
}

impl Part {
    /// Whether a processor is among them.
    #[must_use]
    pub fn has(&self, name: &ProcessorName) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(others) => !others.contains(name),
            Self::Only(one) => one == name,
        }
    }
}
