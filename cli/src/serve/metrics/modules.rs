//! How many modules are in which state, as the log tells.

use std::collections::BTreeMap;

use xs_engine::{Store, TopicPatterns};

use super::text::{Exposition, Kind};
use crate::subcommand::{MODULE_TOPICS, module_states};

/// The numbers of the modules.
pub(super) fn expose(store: &Store, out: &mut Exposition) {
    let Ok(topics) = TopicPatterns::parse(MODULE_TOPICS) else { return };
    // A store whose log cannot be read says so elsewhere.
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
