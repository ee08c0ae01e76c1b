//! Lays out `top` as lines of text that fit. Pure: knows neither the terminal nor the time.

use super::sample::{BEHIND_MAX, Look, Module, Topic};
use super::view::View;
use crate::args::TopSort;
use crate::output::{Paint, cut, printable};

/// The size of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// Lines above and below the tables.
const HEAD_ROWS: usize = 3;
const FOOT_ROWS: usize = 1;
/// Widths of the number columns in the table of topics.
const NUMBERS: [usize; 4] = [12, 10, 11, 6];
/// Widths of a module's kind, state and lag.
const KIND: usize = 10;
const STATE: usize = 22;
const BEHIND: usize = 9;

/// What is shown, for which store and at what time.
pub(super) struct Scene<'a> {
    pub(super) address: &'a str,
    pub(super) look: &'a Look,
    pub(super) now_ms: u64,
    pub(super) colour: bool,
}

impl Scene<'_> {
    /// The lines of the whole screen, at most as many as fit.
    pub(super) fn lines(&self, view: &mut View, size: Size) -> Vec<String> {
        let mut lines = self.server(size);
        let look = self.look;
        let modules: Vec<_> = view.modules(look).collect();
        if !modules.is_empty() {
            let room = (size.rows / 3).max(2);
            lines.push(
                self.heading(
                    &module_row(["MODULE", "KIND", "STATE", "BEHIND", "ERROR"], size),
                    size,
                ),
            );
            let shown = modules.iter().take(room - 1);
            lines.extend(shown.map(|module| self.module(module, size)));
            lines.push(String::new());
        }
        let room = size.rows.saturating_sub(lines.len() + 1 + FOOT_ROWS);
        let topics = view.topics(look);
        view.first = view.first.min(topics.len().saturating_sub(1));
        lines.push(self.heading(&topic_heading(view.sort, size), size));
        let shown = topics.iter().skip(view.first).take(room);
        lines.extend(shown.map(|topic| self.topic(topic, size)));
        lines.truncate(size.rows.saturating_sub(FOOT_ROWS));
        lines.resize(size.rows.saturating_sub(FOOT_ROWS), String::new());
        lines.push(cut(&foot(view), size.columns));
        lines
    }

    fn server(&self, size: Size) -> Vec<String> {
        let of = &self.look.server;
        let first = cut(&printable(&format!("{}  {}", self.address, of.health)), size.columns);
        let good = of.health == "writable";
        let second = format!(
            "{} events, {}/s   {} connections, {} subscriptions, the slowest {} behind   \
             in {}/s, out {}/s",
            of.head,
            of.rate,
            of.connections,
            of.subscriptions,
            of.behind,
            bytes(of.bytes_in),
            bytes(of.bytes_out)
        );
        let first = if good { first } else { self.paint(Paint::Bad, &first) };
        let lines = vec![first, cut(&second, size.columns), String::new()];
        debug_assert_eq!(lines.len(), HEAD_ROWS, "rows are counted");
        lines
    }

    fn heading(&self, text: &str, size: Size) -> String {
        self.paint(Paint::Faint, &cut(text, size.columns))
    }

    fn module(&self, module: &Module, size: Size) -> String {
        let behind = match module.behind {
            Some(BEHIND_MAX) => format!("{BEHIND_MAX}+"),
            behind => behind.map(|behind| behind.to_string()).unwrap_or_default(),
        };
        let error = module.error.as_deref().map(printable).unwrap_or_default();
        let row = [module.name.as_str(), module.kind, module.state, &behind, &error];
        let line = cut(&module_row(row, size), size.columns);
        if module.error.is_some() { self.paint(Paint::Bad, &line) } else { line }
    }

    fn topic(&self, topic: &Topic, size: Size) -> String {
        let numbers = [
            topic.count.to_string(),
            topic.rate.to_string(),
            bytes(topic.bytes as f64),
            ago(topic.seen_ms, self.now_ms),
        ];
        cut(&topic_row(&topic.name, &numbers, size), size.columns)
    }

    fn paint(&self, paint: Paint, text: &str) -> String {
        if self.colour { paint.around(text) } else { text.to_owned() }
    }
}

fn foot(view: &View) -> String {
    let filter = printable(&view.filter);
    match (view.typing, view.filter.is_empty()) {
        (true, _) => format!("filter: {filter}_   Enter keeps it, Esc clears it"),
        (false, true) => "q quit   n c r b s sort   / filter   arrows scroll".to_owned(),
        (false, false) => format!("filter: {filter}   / edits it, Esc clears it"),
    }
}

fn module_row([name, kind, state, behind, error]: [&str; 5], size: Size) -> String {
    let width = (size.columns / 4).clamp(8, 40);
    let name = cut(name, width);
    format!("{name:<width$} {kind:<KIND$} {state:<STATE$} {behind:>BEHIND$}  {error}")
}

fn topic_heading(sort: TopSort, size: Size) -> String {
    let mark =
        |key: TopSort, name: &str| if key == sort { format!("{name}*") } else { name.to_owned() };
    let numbers = [
        mark(TopSort::Count, "COUNT"),
        mark(TopSort::Rate, "RATE/S"),
        mark(TopSort::Bytes, "BYTES"),
        mark(TopSort::Seen, "SEEN"),
    ];
    topic_row(&mark(TopSort::Name, "TOPIC"), &numbers, size)
}

fn topic_row(name: &str, numbers: &[String; 4], size: Size) -> String {
    let width = size.columns.saturating_sub(NUMBERS.iter().sum()).max(8);
    let mut row = format!("{:<width$}", cut(name, width));
    for (number, width) in numbers.iter().zip(NUMBERS) {
        row += &format!("{number:>width$}");
    }
    row
}

/// A byte count in a readable unit.
fn bytes(count: f64) -> String {
    let mut rest = count;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if rest < 1024.0 {
            return if unit == "B" { format!("{rest:.0} B") } else { format!("{rest:.1} {unit}") };
        }
        rest /= 1024.0;
    }
    format!("{rest:.1} TiB")
}

/// The age of something.
fn ago(at_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(at_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Server;
    use super::*;

    fn look() -> Look {
        let topic = Topic {
            name: "metrics.recv".to_owned(),
            count: 12,
            rate: 1.5,
            bytes: 2048,
            seen_ms: 0,
        };
        let module = Module {
            name: "anomaly".to_owned(),
            kind: "handler",
            state: "failed",
            behind: Some(7),
            error: Some("no such\u{1b}[31m field".to_owned()),
        };
        let server = Server { health: "writable".to_owned(), head: 99, ..Server::default() };
        Look { server, modules: vec![module], topics: vec![topic; 30] }
    }

    fn shown(view: &mut View, columns: usize, rows: usize) -> Vec<String> {
        let look = look();
        let scene = Scene { address: "./store", look: &look, now_ms: 60_000, colour: false };
        scene.lines(view, Size { columns, rows })
    }

    #[test]
    fn everything_is_on_the_screen() {
        let mut view = View::new(TopSort::Rate, String::new());
        let lines = shown(&mut view, 100, 20);
        let screen = lines.join("\n");
        for part in [
            "./store  writable",
            "99 events",
            "anomaly",
            "no such [31m field",
            "RATE/S*",
            "2.0 KiB",
            " 1m",
        ] {
            assert!(screen.contains(part), "{part}\n{screen}");
        }
        assert!(!screen.contains('\u{1b}'));
        view.first = 1000;
        let scrolled = shown(&mut view, 100, 20).join("\n");
        assert_eq!(scrolled.matches("metrics.recv").count(), 1, "it scrolls to the last");
    }

    #[test]
    fn it_fits_however_small_the_screen_is() {
        for (columns, rows) in [(1, 1), (10, 3), (40, 6), (90, 24), (300, 2)] {
            let lines = shown(&mut View::new(TopSort::Name, String::new()), columns, rows);
            assert_eq!(lines.len(), rows);
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{lines:?}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([bytes(0.0), bytes(1023.0), bytes(1536.0)], ["0 B", "1023 B", "1.5 KiB"]);
        assert_eq!(bytes(3.0 * 1024f64.powi(5)), "3072.0 TiB");
        assert_eq!([ago(0, 59_999), ago(0, 3_600_000), ago(9, 0)], ["59s", "1h", "0s"]);
    }
}
