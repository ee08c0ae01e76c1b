//! The output of a run: a page with environment, settings, limits and tables, and plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use xs_bench::report::human;

use crate::chart;
use crate::limits::Limits;
use crate::rows::{Figure, ROWS, Row};
use crate::sample::{SHARES, Sample, Spread, of, spread};
use crate::system::{CrossStream, Promise, Sqlite, System as _, Xs};
use crate::work::Amounts;

/// A system that took part.
pub(crate) struct Version {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) settings: fn(Promise) -> &'static str,
}

/// All results of a run.
pub(crate) struct Results<'a> {
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) versions: Vec<Version>,
    pub(crate) limits: Limits,
    pub(crate) samples: &'a [Sample],
    pub(crate) missing: &'a [String],
    pub(crate) reps: usize,
    pub(crate) amounts: Amounts,
    pub(crate) quick: bool,
}

const PROMISES: &str = "\
Promises are the same on both sides of a row. *process*: what was acknowledged survives a crash of
the server; a power cut loses what was not synced yet (xs and Redis: up to about a second; NATS: up
to two minutes; SQLite: up to its last checkpoint). *power*: it survives a power cut too, so each
acknowledgement waits for a sync.";

const READING: &str = "\
`xs / best` is against the best of the servers, and above 1 where xs is better, also where less is
better. SQLite runs in the process of its client, without a socket: a yardstick, not part of that
ratio. Client and server share the processors, over loopback TCP. Values are medians, ranges in
brackets; differences below 15 % are noise. Rates are closed loops; latencies \"at so many a second\"
count from when a message was due (open loop).";

const CROSS_STREAM: &str = "\
cross.stream syncs the frame of each append alone and cannot be told not to; it never syncs a body,
which is a file of its own. In rows of *process* its frames are safer than is asked for; in rows of
*power* a message is in the frame itself (meta), where it is synced. It answers over its Unix
socket, stores no batches, and readers ask for each body by its hash. Its stores have at most 10,000
messages: where that makes a difference it is marked * and left out of the ratio. Its handler, an
actor in Nushell, keeps count in memory and stores answers one by one, and neither count nor
position.";
const _: () = assert!(CrossStream::MESSAGES_MAX == 10_000, "the page says so");

impl Results<'_> {
    /// Writes the results to a directory.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::write(dir.join("README.md"), self.page())?;
        let names: Vec<_> = self.versions.iter().map(|version| version.name).collect();
        let rates = |row: &&Row| row.more_is_better() && self.has(row);
        let rates: Vec<_> = ROWS.iter().filter(rates).collect();
        fs::write(dir.join("rates.svg"), chart::rates(&rates, &names, self.samples))?;
        let latencies = |row: &&Row| row.figure == Figure::Latency && self.has(row);
        let latencies: Vec<_> = ROWS.iter().filter(latencies).collect();
        fs::write(dir.join("latencies.svg"), chart::latencies(&latencies, &names, self.samples))?;
        Ok(())
    }

    fn has(&self, row: &Row) -> bool {
        self.samples.iter().any(|sample| sample.row == row.key)
    }

    /// Whether a system was measured on a store with fewer messages than the others.
    fn smaller(&self, row: &Row, system: &str) -> bool {
        of(self.samples, row.key, system).any(|figures| figures.messages.is_some())
    }

    fn spread(&self, row: &Row, system: &str) -> Option<Spread> {
        spread(of(self.samples, row.key, system).map(|figures| figures.value))
    }

    fn page(&self) -> String {
        let mut page = "# Side by side\n\nMade by `scripts/compare`. ".to_owned();
        if self.quick {
            page += "QUICK: these figures mean nothing. ";
        }
        let _ = write!(
            page,
            "Repetitions: {}, system by system in turn; {} ms a row; {} messages to read.\n\n",
            self.reps,
            self.amounts.slice.as_millis(),
            self.amounts.messages
        );
        self.ratios(&mut page);
        page += "\n![Rates](rates.svg)\n\n![Latencies](latencies.svg)\n";
        self.latencies(&mut page);
        self.setting(&mut page);
        page
    }

    fn ratios(&self, page: &mut String) {
        *page += "| row | promise |";
        self.versions.iter().for_each(|version| *page += &format!(" {} |", version.name));
        *page += " xs / best | xs of the limit |\n|---|---|";
        *page += &"---|".repeat(self.versions.len() + 2);
        for row in ROWS.iter().filter(|row| self.has(row)) {
            let promise = if row.promise == Promise::Power { "power" } else { "process" };
            let _ = write!(page, "\n| {} | {promise} |", row.title);
            for version in &self.versions {
                let cell = self.spread(row, version.name).map(|spread| cell(spread, row.unit()));
                let mark = if self.smaller(row, version.name) { " *" } else { "" };
                let _ = write!(page, " {}{mark} |", cell.as_deref().unwrap_or("-"));
            }
            let ratio = self.ratio(row).map(|ratio| format!("{ratio:.2}"));
            let part = self.part(row).map(|part| format!("{:.0} %", part * 100.0));
            let _ = write!(
                page,
                " {} | {} |",
                ratio.as_deref().unwrap_or("-"),
                part.as_deref().unwrap_or("-")
            );
        }
        let _ = write!(page, "\n\n{PROMISES}\n\n{READING}\n");
        if self.versions.iter().any(|version| version.name == CrossStream::NAME) {
            let _ = write!(page, "\n{CROSS_STREAM}\n");
        }
    }

    /// Returns how many times as good as the best other server xs is.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let ours = self.spread(row, Xs::NAME)?.median;
        let rivals = self.versions.iter().map(|version| version.name);
        let rivals = rivals.filter(|name| ![Xs::NAME, Sqlite::NAME].contains(name));
        let rivals = rivals.filter(|name| !self.smaller(row, name));
        let rivals = rivals.filter_map(|name| Some(self.spread(row, name)?.median));
        if row.more_is_better() {
            rivals.reduce(f64::max).map(|best| ours / best)
        } else {
            rivals.reduce(f64::min).map(|best| best / ours)
        }
    }

    /// Returns how much of the machine's limit xs reaches.
    fn part(&self, row: &Row) -> Option<f64> {
        let (ours, limit) = (self.spread(row, Xs::NAME)?.median, row.limit?(&self.limits));
        Some(if row.more_is_better() { ours / limit } else { limit / ours })
    }

    fn latencies(&self, page: &mut String) {
        *page += "\n## Latencies and processor time\n\nMicroseconds; of operations, where a row has \
                  batches. Client and server: time on a processor for each message. Medians.\n\n\
                  | row | system | p50 | p99 | p99.9 | max | client | server |\n\
                  |---|---|---|---|---|---|---|---|";
        for row in ROWS {
            for version in &self.versions {
                let figures = of(self.samples, row.key, version.name);
                let Some(cells) = SHARES
                    .iter()
                    .enumerate()
                    .map(|(at, _)| {
                        let one = figures.clone().filter_map(|one| Some(one.latencies?[at]));
                        Some(human(spread(one)?.median, ""))
                    })
                    .collect::<Option<Vec<_>>>()
                else {
                    continue;
                };
                let cost = |us: Option<Spread>| {
                    us.map_or_else(|| "-".to_owned(), |us| human(us.median, ""))
                };
                let client = cost(spread(figures.clone().filter_map(|one| one.client_us)));
                let server = cost(spread(figures.clone().filter_map(|one| one.server_us)));
                let _ = write!(
                    page,
                    "\n| {} | {} | {} | {client} | {server} |",
                    row.title,
                    version.name,
                    cells.join(" | ")
                );
            }
        }
        *page += "\n";
    }

    fn setting(&self, page: &mut String) {
        *page += "\n## Limits of this machine, measured in the same run\n\n| | |\n|---|---|\n";
        for (name, limit) in self.limits.lines() {
            let _ = writeln!(page, "| {name} | {limit} |");
        }
        *page += "\n## Systems\n\n| | version | process | power |\n|---|---|---|---|\n";
        for Version { name, version, settings } in &self.versions {
            let (process, power) = (settings(Promise::Process), settings(Promise::Power));
            let _ = writeln!(page, "| {name} | {version} | {process} | {power} |");
        }
        if !self.missing.is_empty() {
            *page += "\n## Not measured\n\n";
            self.missing.iter().for_each(|line| *page += &format!("- {line}\n"));
        }
        *page += "\n## Environment\n\n";
        self.facts.iter().for_each(|(name, fact)| *page += &format!("- {name}: {fact}\n"));
    }
}

fn cell(Spread { median, low, high }: Spread, unit: &str) -> String {
    let range = if low < high {
        format!(" [{}..{}]", human(low, unit), human(high, unit))
    } else {
        String::new()
    };
    format!("{}{range}", human(median, unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Figures;
    use crate::system::Redis;

    #[test]
    fn ratios_are_above_one_where_xs_is_better() {
        let sample =
            |row, system, value| Sample { row, system, rep: 0, figures: Figures::of(value) };
        let mut smaller = sample("memory", CrossStream::NAME, 1.0);
        smaller.figures = smaller.figures.of_store(Some(50));
        let samples = [
            sample("memory", Xs::NAME, 30.0),
            sample("memory", Redis::NAME, 60.0),
            smaller,
            sample("read", Xs::NAME, 200.0),
            sample("read", Redis::NAME, 100.0),
            sample("last", Xs::NAME, 40.0),
            sample("last", Redis::NAME, 20.0),
            sample("last", Sqlite::NAME, 1.0),
        ];
        let version = |name| Version { name, version: String::new(), settings: Xs::settings };
        let results = Results {
            facts: Vec::new(),
            versions: [Xs::NAME, CrossStream::NAME, Redis::NAME, Sqlite::NAME].map(version).into(),
            limits: Limits::default(),
            samples: &samples,
            missing: &[],
            reps: 1,
            amounts: Amounts {
                slice: std::time::Duration::ZERO,
                messages: 0,
                handled: 0,
                large_blobs: 0,
            },
            quick: true,
        };
        let row = |key: &str| ROWS.iter().find(|row| row.key == key).unwrap();
        assert_eq!(results.ratio(row("read")), Some(2.0));
        assert_eq!(results.ratio(row("last")), Some(0.5));
        assert_eq!(results.ratio(row("disk")), None);
        assert_eq!(results.ratio(row("memory")), Some(2.0), "a smaller store is no rival");
        let page = results.page();
        assert!(page.contains("QUICK") && page.contains("| 1.00 MiB * |"), "{page}");
    }
}
