//! What was measured for a row: one sample per system and repetition, and medians over them.

use std::time::Duration;

use serde_json::{Map, Value, json};
use xs_bench::histogram::Histogram;
use xs_bench::report::per_second;

use crate::load::Load;

/// The quantiles of latencies that are reported, and their names.
pub(crate) const SHARES: [(&str, f64); 4] =
    [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// The figures of a sample.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// The figure that the row compares.
    pub(crate) value: f64,
    /// Latencies in microseconds, by [`SHARES`].
    pub(crate) latencies: Option<[f64; 4]>,
    /// Microseconds on a processor per message.
    pub(crate) client_us: Option<f64>,
    pub(crate) server_us: Option<f64>,
    /// Number of messages in the store, where that matters and other systems have more.
    pub(crate) messages: Option<u64>,
}

/// A sample.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) row: &'static str,
    pub(crate) system: &'static str,
    pub(crate) rep: usize,
    pub(crate) figures: Figures,
}

/// Median and range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Figures {
    /// Figures with only a value.
    pub(crate) fn of(value: f64) -> Self {
        Self { value, ..Self::default() }
    }

    /// The rate, where each operation counts as `each`, and the latencies of operations.
    pub(crate) fn rate(load: &Load, each: f64) -> Self {
        let value = per_second(load.times.count(), load.time) * each;
        Self { value, ..Self::latency(&load.times) }
    }

    /// Latencies; the value is the median.
    pub(crate) fn latency(times: &Histogram) -> Self {
        let us = SHARES.map(|(_, share)| times.micros(share));
        Self { value: us[0], latencies: Some(us), ..Self::default() }
    }

    /// Notes that the store has fewer messages than those of others, if so.
    pub(crate) fn of_store(self, messages: Option<u64>) -> Self {
        Self { messages, ..self }
    }

    /// Adds the processor time per message, given the time that `count` messages took.
    pub(crate) fn cpu(mut self, client: Duration, server: Option<Duration>, count: u64) -> Self {
        let each = |time: Duration| time.as_nanos() as f64 / 1e3 / count.max(1) as f64;
        self.client_us = Some(each(client));
        self.server_us = server.map(each);
        self
    }
}

impl Sample {
    /// Returns the sample as a line of JSON.
    pub(crate) fn json(&self, unit: &str) -> Value {
        let mut line = Map::new();
        let mut add = |name: &str, value: Value| line.insert(name.to_owned(), value);
        add("row", json!(self.row));
        add("system", json!(self.system));
        add("rep", json!(self.rep));
        add("value", json!(self.figures.value));
        add("unit", json!(unit));
        for (number, (name, _)) in SHARES.iter().enumerate() {
            if let Some(us) = self.figures.latencies {
                add(&format!("{name}_us"), json!(us[number]));
            }
        }
        let costs = [("client_us", self.figures.client_us), ("server_us", self.figures.server_us)];
        for (name, cost) in costs {
            if let Some(cost) = cost {
                add(name, json!(cost));
            }
        }
        if let Some(messages) = self.figures.messages {
            add("messages", json!(messages));
        }
        Value::Object(line)
    }
}

/// Returns median and range of values; `None` when there are none.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    };
    Some(Spread { median, low, high })
}

/// Returns the samples of a row on a system.
pub(crate) fn of<'a>(
    samples: &'a [Sample],
    row: &'a str,
    system: &'a str,
) -> impl Iterator<Item = &'a Figures> + Clone {
    let wanted = move |sample: &&Sample| sample.row == row && sample.system == system;
    samples.iter().filter(wanted).map(|sample| &sample.figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_and_range() {
        assert_eq!(spread([3.0, 1.0, 9.0]), Some(Spread { median: 3.0, low: 1.0, high: 9.0 }));
        assert_eq!(spread([2.0, 1.0]), Some(Spread { median: 1.5, low: 1.0, high: 2.0 }));
        assert_eq!(spread([]), None);
    }
}
