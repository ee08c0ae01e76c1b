//! The number of modules in each state, according to the log.

use std::collections::BTreeMap;

use xs_engine::{Store, TopicPatterns};

use super::text::{Exposition, Kind};
use crate::subcommand::{MODULE_TOPICS, module_states};

/// Metrics of the modules.
pub(super) fn expose(store: &Store, out: &mut Exposition) {
    let Ok(topics) = TopicPatterns::parse(MODULE_TOPICS) else { return };
    // An unreadable log is reported elsewhere.
    let Ok(frames) = store.last_per_topic(&topics) else { return };
    let mut counts: BTreeMap<_, u64> = BTreeMap::new();
    for (kind, state) in module_states(frames) {
        *counts.entry((kind, state)).or_default() += 1;
    }
    let mut family = out.family("xs_modules", Kind::Gauge, "Modules, by kind and state.");
    for ((kind, state), count) in counts {
        family.value(&[("kind", kind), ("state", state)], count);
    }
}
