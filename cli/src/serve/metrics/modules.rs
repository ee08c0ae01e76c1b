//! The modules, according to the log: how many are in each state, and how far handlers lag.

use std::collections::BTreeMap;

use xs_engine::{Bound, CursorName, ReadOptions, Start, Store, TopicPatterns};

use super::text::{Exposition, Kind};
use crate::subcommand::{MODULE_TOPICS, modules_overview};

/// Maximum frames that are counted behind a handler.
const LAG_MAX: u64 = 10_000;
/// Maximum frames that are looked at for that: others may lie between them.
const LOOKS_MAX: usize = 100_000;

/// Metrics of the modules.
pub(super) fn expose(store: &Store, out: &mut Exposition) {
    let Ok(topics) = TopicPatterns::parse(MODULE_TOPICS) else { return };
    // An unreadable log is reported elsewhere.
    let Ok(frames) = store.last_per_topic(&topics) else { return };
    let (mut counts, mut lag_max) = (BTreeMap::<_, u64>::new(), 0);
    for module in modules_overview(frames) {
        *counts.entry((module.kind.as_str(), module.state.as_str())).or_default() += 1;
        if let Some((cursor, topics)) = module.reads {
            lag_max = lag_max.max(lag(store, &cursor, topics));
        }
    }
    let mut family = out.family("xs_modules", Kind::Gauge, "Modules, by kind and state.");
    for ((kind, state), count) in counts {
        family.value(&[("kind", kind), ("state", state)], count);
    }
    let help = "Frames of its topics that the slowest handler has not passed, counted to 10000.";
    out.family("xs_handler_lag_max_frames", Kind::Gauge, help).value(&[], lag_max);
}

fn lag(store: &Store, cursor: &CursorName, topics: TopicPatterns) -> u64 {
    let Ok(Some(place)) = store.cursor(cursor) else { return 0 };
    let options = ReadOptions {
        topics,
        start: Start::From(Bound::Offset(place.offset)),
        limit: Some(LAG_MAX),
        ..ReadOptions::default()
    };
    let Ok(mut frames) = store.read(&options) else { return 0 };
    let (mut looks, mut count) = (LOOKS_MAX, 0);
    while let Some(Ok(_)) = frames.next_within(&mut looks) {
        count += 1;
    }
    count
}
