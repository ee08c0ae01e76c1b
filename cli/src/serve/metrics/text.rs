//! The Prometheus text format, version 0.0.4: families with HELP and TYPE, and their samples.

use std::fmt::Write as _;

/// The HTTP content type.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only increases; the name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations below each of several bounds.
    Histogram,
}

/// Labels and their values.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text being built.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Starts a family.
    pub(super) fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind_name = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        debug_assert_eq!(kind == Kind::Counter, name.ends_with("_total"), "{name}");
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {}", escaped(help, false));
        let _ = writeln!(self.0, "# TYPE {name} {kind_name}");
        Family { out: &mut self.0, name }
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// A family whose samples are being written.
pub(super) struct Family<'a> {
    out: &'a mut String,
    name: &'a str,
}

impl Family<'_> {
    /// A whole number.
    pub(super) fn value(&mut self, labels: Labels<'_>, value: u64) -> &mut Self {
        self.sample("", labels, None, &value.to_string())
    }

    /// A number in the base unit of its name.
    pub(super) fn number(&mut self, labels: Labels<'_>, value: f64) -> &mut Self {
        self.sample("", labels, None, &value.to_string())
    }

    /// A histogram. `counts` are per bucket, not cumulative; the last one has no bound. `sum` is
    /// the sum of all observations.
    pub(super) fn histogram(
        &mut self,
        labels: Labels<'_>,
        bounds: impl Iterator<Item = f64>,
        counts: &[u64],
        sum: f64,
    ) -> &mut Self {
        let mut below = 0;
        let bounds = bounds.map(|bound| bound.to_string()).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(counts) {
            below += count;
            self.sample("_bucket", labels, Some(&bound), &below.to_string());
        }
        self.sample("_sum", labels, None, &sum.to_string());
        self.sample("_count", labels, None, &below.to_string())
    }

    fn sample(
        &mut self,
        suffix: &str,
        labels: Labels<'_>,
        bound: Option<&str>,
        value: &str,
    ) -> &mut Self {
        let _ = write!(self.out, "{}{suffix}", self.name);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let labels: Vec<_> =
            labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true))).collect();
        if !labels.is_empty() {
            let _ = write!(self.out, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.out, " {value}");
        self
    }
}

fn escaped(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_help_type_and_samples() {
        let mut out = Exposition::default();
        out.family("a_total", Kind::Counter, "A\nb.").value(&[("x", "q\"\\")], 3);
        out.family("b_seconds", Kind::Histogram, "B.").histogram(
            &[("s", "t")],
            [0.5, 1.0].into_iter(),
            &[1, 0, 2],
            2.5,
        );
        assert_eq!(
            out.finish(),
            "# HELP a_total A\\nb.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\"} 3\n\
             # HELP b_seconds B.\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{s=\"t\",le=\"0.5\"} 1\nb_seconds_bucket{s=\"t\",le=\"1\"} 1\n\
             b_seconds_bucket{s=\"t\",le=\"+Inf\"} 3\nb_seconds_sum{s=\"t\"} 2.5\n\
             b_seconds_count{s=\"t\"} 3\n"
        );
    }
}
