//! The output of a run: rows of figures for people, and the same as JSON lines in a file. It knows
//! no bench. A target is printed beside the figure and never judged.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::histogram::Histogram;

/// Columns reserved for a row's name.
const NAME_COLUMNS: usize = 58;

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    name: String,
    figures: Vec<Figure>,
    target: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
}

impl Row {
    /// Creates a row without figures.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), figures: Vec::new(), target: None }
    }

    /// Adds a figure with its unit.
    pub fn figure(mut self, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        self.figures.push(Figure { name: name.into(), value, unit });
        self
    }

    /// Adds a rate per second.
    pub fn rate(self, what: &'static str, count: u64, time: Duration) -> Self {
        self.figure(what, per_second(count, time), "/s")
    }

    /// Adds quantiles of latencies, in microseconds.
    pub fn latency(self, histogram: &Histogram) -> Self {
        self.figure("p50", histogram.micros(0.5), "us")
            .figure("p99", histogram.micros(0.99), "us")
            .figure("p99.9", histogram.micros(0.999), "us")
    }

    /// Sets the target.
    pub const fn target(mut self, target: &'static str) -> Self {
        self.target = Some(target);
        self
    }

    fn text(&self) -> String {
        let mut text = format!("  {:<NAME_COLUMNS$}", self.name);
        for Figure { name, value, unit } in &self.figures {
            let _ = write!(text, "  {name} {}", human(*value, unit));
        }
        if let Some(target) = self.target {
            let _ = write!(text, "  (target {target})");
        }
        text
    }

    fn json(&self, bench: &str) -> Value {
        let mut row = Map::new();
        row.insert("bench".to_owned(), json!(bench));
        row.insert("row".to_owned(), json!(self.name));
        for figure in &self.figures {
            let unit = figure.unit.trim().replace("/s", "per_s").replace('%', "percent");
            let key = format!("{} {unit}", figure.name).trim().replace([' ', '/', '-'], "_");
            row.insert(key, json!(figure.value));
        }
        if let Some(target) = self.target {
            row.insert("target".to_owned(), json!(target));
        }
        Value::Object(row)
    }
}

/// Returns the rate per second.
pub fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// Returns bytes as mebibytes.
pub const fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

/// Formats a number with three significant digits and its unit; rates get a prefix for thousands.
pub fn human(value: f64, unit: &str) -> String {
    let (value, letter) = match value.abs() {
        _ if !unit.ends_with("/s") => (value, ""),
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 || size == 0.0 => 2,
        _ => 3,
    };
    let space = if letter.is_empty() && unit.is_empty() { "" } else { " " };
    format!("{value:.digits$}{space}{letter}{unit}")
}

/// Where rows go.
#[derive(Debug)]
pub struct Report {
    bench: String,
    file: Option<File>,
}

impl Report {
    /// Creates a report that prints to standard output, and to a file if given.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn new(json: Option<&Path>) -> io::Result<Self> {
        Ok(Self { bench: String::new(), file: json.map(File::create).transpose()? })
    }

    /// Begins the rows of a bench.
    ///
    /// # Errors
    /// If standard output cannot be written to.
    pub fn begin(&mut self, bench: &str, about: &str) -> io::Result<()> {
        bench.clone_into(&mut self.bench);
        self.line(&format!("\n{bench}: {about}"))
    }

    /// Prints a line only to standard output.
    ///
    /// # Errors
    /// If standard output cannot be written to.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    /// Writes a row.
    ///
    /// # Errors
    /// If standard output or the file cannot be written to.
    pub fn row(&mut self, row: &Row) -> io::Result<()> {
        self.line(&row.text())?;
        self.json(&row.json(&self.bench))
    }

    /// Writes a line only to the file.
    ///
    /// # Errors
    /// If the file cannot be written to.
    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        match &mut self.file {
            Some(file) => writeln!(file, "{value}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let cases = [
            (0.0, "us", "0.00 us"),
            (0.042, "x", "0.042 x"),
            (7.0, "", "7.00"),
            (12.34, "%", "12.3 %"),
            (27_500.0, "us", "27500 us"),
            (9_999.0, "/s", "9999 /s"),
            (812_345.0, "/s", "812 k/s"),
            (2_134_000.0, "/s", "2.13 M/s"),
            (12_600_000_000.0, "B/s", "12.6 GB/s"),
        ];
        for (value, unit, text) in cases {
            assert_eq!(human(value, unit), text);
        }
    }

    #[test]
    fn a_row_says_the_same_to_people_and_to_files() {
        let mut times = Histogram::default();
        times.record(Duration::from_micros(10));
        let row = Row::new("one by one")
            .rate("frames", 500, Duration::from_millis(250))
            .latency(&times)
            .target("1 M/s");
        let text = row.text();
        assert!(text.contains("one by one") && text.contains("frames 2000 /s"), "{text}");
        assert!(text.contains("p99.9 10.0 us") && text.ends_with("(target 1 M/s)"), "{text}");
        let json = row.json("append");
        assert_eq!(json["frames_per_s"], 2000.0);
        assert_eq!(json["p99.9_us"], 10.0);
        assert_eq!((&json["bench"], &json["target"]), (&json!("append"), &json!("1 M/s")));
    }
}
