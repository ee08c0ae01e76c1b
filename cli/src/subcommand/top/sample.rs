//! The data of `top`: STATS, TOPICS and the modules, fetched in sequence, with the changes since
//! the previous sample. Draws nothing.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::Value;
use xs_engine::TopicPatterns;
use xs_runtime::host::processor_cursor;

use super::super::modules::{self, Asked};
use crate::connect::explain;

/// Frames counted in each sample to measure a handler's lag.
pub(super) const BEHIND_MAX: u64 = 1_000;

/// One sample.
#[derive(Debug, Default, Clone)]
pub(super) struct Look {
    pub(super) server: Server,
    pub(super) modules: Vec<Module>,
    pub(super) topics: Vec<Topic>,
}

/// The store and its server. Rates are per second.
#[derive(Debug, Default, Clone)]
pub(super) struct Server {
    pub(super) uuid: String,
    pub(super) health: String,
    pub(super) head: u64,
    pub(super) rate: f64,
    pub(super) connections: u64,
    pub(super) subscriptions: u64,
    /// The lag of the slowest subscription, in frames.
    pub(super) behind: u64,
    /// Bytes per second, over the open connections.
    pub(super) bytes_in: f64,
    pub(super) bytes_out: f64,
}

/// One module.
#[derive(Debug, Default, Clone)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) state: &'static str,
    /// Frames of its topics that a handler has not seen, counted up to [`BEHIND_MAX`].
    pub(super) behind: Option<u64>,
    pub(super) error: Option<String>,
}

/// One topic.
#[derive(Debug, Default, Clone)]
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) count: u64,
    pub(super) rate: f64,
    pub(super) bytes: u64,
    pub(super) seen_ms: u64,
}

/// Takes samples, and remembers the previous one for comparison.
pub(super) struct Sampler<'a> {
    store: Asked<'a>,
    patterns: TopicPatterns,
    last: Option<Last>,
}

struct Last {
    at: Instant,
    head: u64,
    bytes: (u64, u64),
    counts: HashMap<String, u64>,
}

impl<'a> Sampler<'a> {
    pub(super) fn new(store: Asked<'a>, patterns: TopicPatterns) -> Self {
        Self { store, patterns, last: None }
    }

    pub(super) async fn look(&mut self) -> anyhow::Result<Look> {
        let client = self.store.client;
        let stats: Value = serde_json::from_str(&client.stats().await.map_err(explain)?)?;
        let topics = client.topics(&self.patterns).await.map_err(explain)?;
        let (store, server) = (&stats["store"], &stats["server"]);
        let number = |of: &Value| of.as_u64().unwrap_or_default();
        let head = number(&store["head"]);
        let modules = self.modules().await?;
        let now = Instant::now();
        let rate = self.rates(now);
        let last = self.last.as_ref();
        let bytes = (number(&server["bytes_in"]), number(&server["bytes_out"]));
        let look = Look {
            server: Server {
                uuid: store["uuid"].as_str().unwrap_or_default().to_owned(),
                health: store["health"].as_str().unwrap_or_default().to_owned(),
                head,
                rate: rate(last.map(|last| last.head), head),
                connections: number(&server["connections"]),
                subscriptions: number(&server["subscriptions"]),
                behind: number(&server["lag_frames_max"]),
                bytes_in: rate(last.map(|last| last.bytes.0), bytes.0),
                bytes_out: rate(last.map(|last| last.bytes.1), bytes.1),
            },
            modules,
            topics: topics
                .iter()
                .map(|topic| {
                    let name = topic.topic.as_str().to_owned();
                    // A topic that is new since the previous sample started at 0.
                    let before = last.map(|last| last.counts.get(&name).copied().unwrap_or(0));
                    Topic {
                        count: topic.count,
                        rate: rate(before, topic.count),
                        bytes: topic.bytes,
                        seen_ms: topic.last.time_ms(),
                        name,
                    }
                })
                .collect(),
        };
        let counts = look.topics.iter().map(|topic| (topic.name.clone(), topic.count)).collect();
        self.last = Some(Last { at: now, head, bytes, counts });
        Ok(look)
    }

    /// Computes the rate between an earlier and a current count. A decrease by removals counts as
    /// 0.
    fn rates(&self, now: Instant) -> impl Fn(Option<u64>, u64) -> f64 + use<> {
        let seconds = self.last.as_ref().map(|last| (now - last.at).as_secs_f64());
        move |before, now| match (before, seconds) {
            (Some(before), Some(seconds)) if seconds > 0.0 => {
                let rate = now.saturating_sub(before) as f64 / seconds;
                (rate * 10.0).round() / 10.0
            }
            _ => 0.0,
        }
    }

    async fn modules(&self) -> anyhow::Result<Vec<Module>> {
        let client = self.store.client;
        let found = modules::all(client, self.store.served).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let cursors = client.cursor_list().await.map_err(explain)?;
        let cursors: HashMap<_, _> =
            cursors.iter().map(|cursor| (cursor.name.as_str(), cursor.offset)).collect();
        let mut shown = Vec::with_capacity(found.len());
        for (key, module) in &found {
            let offset = cursors.get(processor_cursor(key).as_str()).copied();
            shown.push(Module {
                name: key.name.as_str().to_owned(),
                kind: key.kind.as_str(),
                state: module.state().as_str(),
                behind: modules::lag(client, module, offset, BEHIND_MAX).await?,
                error: module.error.as_ref().map(modules::summary),
            });
        }
        Ok(shown)
    }
}
