//! The rows of the comparison: what each measures, what its acknowledgements promise, and which
//! limit of the machine it is compared with.

use crate::limits::Limits;
use crate::system::Promise;

/// Which figure of a row is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// A number per second: more is better.
    Rate(&'static str),
    /// The median latency in microseconds: less is better. The table of latencies has the others.
    Latency,
    /// An amount: less is better.
    Amount(&'static str),
}

/// A row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) promise: Promise,
    pub(crate) figure: Figure,
    /// The same figure if only the machine had to be waited for, where that is known.
    pub(crate) limit: Option<fn(&Limits) -> f64>,
}

const RATE: Figure = Figure::Rate("/s");
const BYTES: Figure = Figure::Rate("MB/s");

const fn row(
    key: &'static str,
    title: &'static str,
    promise: Promise,
    figure: Figure,
    limit: Option<fn(&Limits) -> f64>,
) -> Row {
    Row { key, title, promise, figure, limit }
}

use Promise::{Power, Process};

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    row("append-256-1", "append 256 B, 1 outstanding", Process, RATE, Some(Limits::trips)),
    row("append-1024-1", "append 1 KiB, 1 outstanding", Process, RATE, Some(Limits::trips)),
    row("append-16384-1", "append 16 KiB, 1 outstanding", Process, RATE, Some(Limits::trips)),
    row("append-256-64", "append 256 B, 64 outstanding", Process, RATE, Some(|l| l.write(256))),
    row("append-1024-64", "append 1 KiB, 64 outstanding", Process, RATE, Some(|l| l.write(1024))),
    row(
        "append-16384-64",
        "append 16 KiB, 64 outstanding",
        Process,
        RATE,
        Some(|l| l.write(16384)),
    ),
    row(
        "batch-256",
        "append 256 B, batches of 64, 8 in flight",
        Process,
        RATE,
        Some(|l| l.write(256)),
    ),
    row(
        "batch-1024",
        "append 1 KiB, batches of 64, 8 in flight",
        Process,
        RATE,
        Some(|l| l.write(1024)),
    ),
    row(
        "batch-16384",
        "append 16 KiB, batches of 64, 8 in flight",
        Process,
        RATE,
        Some(|l| l.write(16384)),
    ),
    row("append-paced", "append 256 B at 1,000/s", Process, Figure::Latency, Some(Limits::trip)),
    row("durable-1", "durable append 256 B, 1 outstanding", Power, RATE, Some(|l| l.durable(1))),
    row("durable-8", "durable append 256 B, 8 outstanding", Power, RATE, Some(|l| l.durable(8))),
    row("durable-64", "durable append 256 B, 64 outstanding", Power, RATE, Some(|l| l.durable(64))),
    row(
        "durable-512",
        "durable append 256 B, 512 outstanding",
        Power,
        RATE,
        Some(|l| l.durable(512)),
    ),
    row(
        "durable-paced",
        "durable append 256 B at 200/s",
        Power,
        Figure::Latency,
        Some(Limits::sync),
    ),
    row("read", "read all, 256 B bodies included", Process, RATE, Some(|l| l.socket(256))),
    row(
        "read-topic",
        "read 1 topic of 100, bodies included",
        Process,
        RATE,
        Some(|l| l.socket(256)),
    ),
    row("last", "last of a topic, with its body", Process, Figure::Latency, Some(Limits::trip)),
    row("mixed-append", "append 256 B at 1,000/s beside 2 readers", Process, Figure::Latency, None),
    row("mixed-read", "2 readers beside those appends", Process, RATE, Some(|l| l.socket(256))),
    row(
        "live",
        "append at 1,000/s to its subscriber",
        Process,
        Figure::Latency,
        Some(Limits::trip),
    ),
    row("fan-out", "append at 20/s to each of 100 subscribers", Process, Figure::Latency, None),
    // Many deliveries share a write, so bytes are the limit.
    row("fan-out-rate", "deliveries to 100 subscribers", Process, RATE, Some(|l| l.socket(256))),
    row("put-1", "put blobs of 1 MiB", Process, BYTES, Some(Limits::put)),
    row("get-1", "get blobs of 1 MiB", Process, BYTES, Some(Limits::get)),
    row("put-100", "put a blob of 100 MiB", Process, BYTES, Some(Limits::put)),
    row("get-100", "get a blob of 100 MiB", Process, BYTES, Some(Limits::get)),
    row("handler", "messages through a handler that answers each", Process, RATE, None),
    row("handler-durable", "the same, durable", Power, RATE, None),
    row(
        "start-empty",
        "start of an empty store to first answer",
        Process,
        Figure::Amount("ms"),
        None,
    ),
    row("restart", "restart after kill -9 to first answer", Process, Figure::Amount("ms"), None),
    row("disk", "bytes on disk for a message of 256 B", Process, Figure::Amount("B"), None),
    row(
        "memory",
        "resident memory with mapped files, all read once",
        Process,
        Figure::Amount("MiB"),
        None,
    ),
    row("memory-own", "of that, memory that no file backs", Process, Figure::Amount("MiB"), None),
];

impl Row {
    /// Whether more is better.
    pub(crate) const fn more_is_better(&self) -> bool {
        matches!(self.figure, Figure::Rate(_))
    }

    /// The unit of the figure.
    pub(crate) const fn unit(&self) -> &'static str {
        match self.figure {
            Figure::Rate(unit) | Figure::Amount(unit) => unit,
            Figure::Latency => "us",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        for (number, row) in ROWS.iter().enumerate() {
            let same = |other: &Row| other.key == row.key || other.title == row.title;
            assert!(!ROWS[..number].iter().any(same), "{}", row.key);
        }
    }
}
