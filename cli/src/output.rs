//! The only printer: JSON lines when piped, aligned and coloured text on a terminal. The print
//! macros are denied elsewhere because they panic when the reader has closed the output; here that
//! is an ordinary error, which `main` treats as a quiet end.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use rustix::event::{PollFd, PollFlags};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr};
use xs_engine::Frame;

use crate::args::Template;
use crate::json;

/// Bytes buffered before they are written, unless the printer is flushed earlier.
const BUFFER_BYTES: usize = 64 * 1024;
/// Columns a topic is padded to; a longer one pushes the rest of its line to the right.
const TOPIC_COLUMNS: usize = 20;
/// Minimum terminal width, in columns, at which ids are shown.
const ID_COLUMNS_MIN: usize = 100;
/// Assumed width of a terminal that does not report one.
const COLUMNS_DEFAULT: usize = 100;

/// The kind of reader of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// A program or a file: JSON lines.
    Program,
    /// A person at a terminal that is `columns` wide.
    Person { columns: usize, colour: bool },
}

impl Audience {
    /// Detects it from standard output, `NO_COLOR` and `TERM`.
    pub(crate) fn of_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self::Program;
        }
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let size = rustix::termios::tcgetwinsize(&stdout);
        let columns = size.map_or(0, |size| usize::from(size.ws_col));
        Self::Person {
            columns: if columns == 0 { COLUMNS_DEFAULT } else { columns },
            colour: !plain,
        }
    }
}

/// Writes results to standard output.
pub(crate) struct Output<W: Write = Stdout> {
    to: BufWriter<W>,
    audience: Audience,
    zone: TimeZone,
    /// Indentation of the next frame in a tree.
    depth: usize,
    /// The template for frames, if one is set.
    template: Option<Template>,
    /// Whether frames are shown in full, however many terminal lines they take.
    is_whole: bool,
}

impl Output {
    /// The printer for this process.
    pub(crate) fn stdout() -> Self {
        Self::new(io::stdout(), Audience::of_stdout(), TimeZone::system())
    }
}

impl<W: Write> Output<W> {
    /// A printer for an audience in a time zone.
    pub(crate) fn new(to: W, audience: Audience, zone: TimeZone) -> Self {
        Self {
            to: BufWriter::with_capacity(BUFFER_BYTES, to),
            audience,
            zone,
            depth: 0,
            template: None,
            is_whole: false,
        }
    }

    /// Whether a person reads the output.
    pub(crate) fn is_person(&self) -> bool {
        matches!(self.audience, Audience::Person { .. })
    }

    /// Sets the tree depth of the next frame. A program gets that from the origin.
    pub(crate) const fn indent(&mut self, depth: usize) {
        self.depth = depth;
    }

    /// Prints frames with a template, if there is one.
    pub(crate) fn use_template(&mut self, template: Option<&Template>) {
        self.template = template.cloned();
    }

    /// One frame on one line.
    pub(crate) fn frame(&mut self, frame: &Frame, body: Option<&[u8]>) -> io::Result<()> {
        let line = match (&self.template, self.audience) {
            (Some(template), audience) => {
                // Values may hold anything; the text between them is the user's own.
                let clean: fn(&str) -> String =
                    if audience == Audience::Program { str::to_owned } else { printable };
                template.fill(frame, body, &self.time(frame.id().time_ms()), clean)
            }
            (None, Audience::Program) => json::frame(frame, body),
            (None, Audience::Person { columns, colour }) => self.row(frame, body, columns, colour),
        };
        self.depth = 0;
        self.line(&line)
    }

    /// Shows frames in full from now on.
    pub(crate) const fn show_whole(&mut self) {
        self.is_whole = true;
    }

    /// Writes a line of text.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        let written = self.to.write_all(line.as_bytes());
        written.and_then(|()| self.to.write_all(b"\n")).map_err(unwritten)
    }

    /// Writes bytes unchanged.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes).map_err(unwritten)
    }

    /// Writes the first, or only, bytes of a body. Returns false when the body is binary and the
    /// output is a terminal: it is left out, with a notice. The other bytes follow, then
    /// `body_end`.
    pub(crate) fn body_begin(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.is_person() && !is_plain(bytes) {
            self.flush()?;
            notice("binary body not shown on a terminal: pipe it, or redirect it to a file");
            return Ok(false);
        }
        self.bytes(bytes)?;
        Ok(true)
    }

    /// Ends a body: on a terminal, the next output starts on a new line.
    pub(crate) fn body_end(&mut self, last: Option<u8>) -> io::Result<()> {
        let open = self.is_person() && last.is_some_and(|last| last != b'\n');
        if open { self.bytes(b"\n") } else { Ok(()) }
    }

    /// A table: one object per line for a program, aligned columns for a person.
    pub(crate) fn table(
        &mut self,
        names: &[&str],
        rows: &[Vec<serde_json::Value>],
    ) -> io::Result<()> {
        if !self.is_person() {
            for row in rows {
                let fields = names.iter().zip(row);
                let fields = fields.map(|(name, value)| format!("{}:{value}", json::text(name)));
                self.line(&format!("{{{}}}", fields.collect::<Vec<_>>().join(",")))?;
            }
            return Ok(());
        }
        let cells: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(cell).collect()).collect();
        let widest = |column: usize| {
            let longest = cells.iter().map(|row| width(&row[column])).max();
            longest.unwrap_or(0).max(names[column].len())
        };
        let widths: Vec<usize> = (0..names.len()).map(widest).collect();
        let heading: Vec<String> = names.iter().map(|name| name.to_uppercase()).collect();
        // A line that wraps is not a row. The rest is available to a program, or in a wider window.
        let columns = match self.audience {
            Audience::Person { columns, .. } => columns,
            Audience::Program => usize::MAX,
        };
        let row = |cells: &[String]| cut(&aligned(cells, &widths), columns);
        let heading = self.paint(Paint::Faint, &row(&heading));
        self.line(&heading)?;
        cells.iter().try_for_each(|cells| self.line(&row(cells)))
    }

    /// Writes out the buffer.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.to.flush().map_err(unwritten)
    }

    /// A time: RFC 3339 for a program; for a person the local time of day, with the date unless it
    /// is today.
    pub(crate) fn time(&self, time_ms: u64) -> String {
        let at = i64::try_from(time_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let Some(at) = at else { return "-".to_owned() };
        if !self.is_person() {
            return format!("{at:.3}");
        }
        let at = at.to_zoned(self.zone.clone());
        let today = Timestamp::now().to_zoned(self.zone.clone()).date();
        let form = if at.date() == today { "%H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S%.3f" };
        Zoned::strftime(&at, form).to_string()
    }

    /// Text in a colour, if colours are enabled.
    pub(crate) fn paint(&self, paint: Paint, text: &str) -> String {
        match self.audience {
            Audience::Person { colour: true, .. } => paint.around(text),
            _ => text.to_owned(),
        }
    }

    fn row(&self, frame: &Frame, body: Option<&[u8]>, columns: usize, colour: bool) -> String {
        let time = self.time(frame.id().time_ms());
        let topic = format!("{}{}", "  ".repeat(self.depth), printable(frame.topic()));
        let mut content = if frame.meta().is_empty() { String::new() } else { json::meta(frame) };
        let preview = match (body, frame.hash()) {
            (Some(bytes), _) => String::from_utf8_lossy(bytes).into_owned(),
            (None, Some(_)) => format!("[{}]", counted(frame.body_len(), "byte")),
            (None, None) => String::new(),
        };
        if !content.is_empty() && !preview.is_empty() {
            content.push(' ');
        }
        content += preview.trim_end();
        let padding = TOPIC_COLUMNS.saturating_sub(width(&topic));
        // On a narrow terminal the content is more useful than the id.
        let id = if columns < ID_COLUMNS_MIN { String::new() } else { format!("  {}", frame.id()) };
        let head = format!("{time}{id}  {topic}{}", " ".repeat(padding));
        let room = match self.is_whole {
            true => usize::MAX,
            false => columns.saturating_sub(width(&head) + 2),
        };
        let content = cut(&printable(&content), room);
        if !colour {
            return format!("{head}  {content}").trim_end().to_owned();
        }
        let faint = Paint::Faint.around(&format!("{time}{id}"));
        let name = if frame.topic().starts_with("xs.") { Paint::Faint } else { Paint::Name };
        format!("{faint}  {}{}  {content}", name.around(&topic), " ".repeat(padding))
    }
}

/// The colours in use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Paint {
    /// Of little interest.
    Faint,
    /// The name of something.
    Name,
    /// Something is wrong.
    Bad,
}

impl Paint {
    /// Text in this colour.
    pub(crate) fn around(self, text: &str) -> String {
        let code = match self {
            Self::Faint => "2",
            Self::Name => "36",
            Self::Bad => "31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// A count with its noun, in the plural if needed.
pub(crate) fn counted(count: u64, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    }
}

/// Prints a notice for the user on standard error; a closed standard error is not an error.
pub(crate) fn notice(text: &str) {
    let _ = writeln!(io::stderr().lock(), "xs: {text}");
}

/// Prints output of the user's code on standard error.
pub(crate) fn aside(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes terminal control sequences. A closed terminal is noticed where it is read.
pub(crate) fn raw(text: &str) {
    let mut to = io::stdout().lock();
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

/// Asks the user on standard error; the answer follows on the same line.
pub(crate) fn question(text: &str) -> io::Result<()> {
    let mut to = io::stderr().lock();
    to.write_all(text.as_bytes())?;
    to.flush()
}

/// Resolves when the reader of standard output has closed it. A follower with nothing to print
/// would otherwise notice only at its next line. Never resolves when that cannot be watched.
pub(crate) async fn reader_gone() {
    let (gone, wait) = tokio::sync::oneshot::channel();
    // The thread may outlive the wait: it ends with the process, which is about to exit.
    let watcher = std::thread::Builder::new().name("xs-stdout".to_owned()).spawn(move || {
        let stdout = io::stdout();
        // No event is requested: hang-up and error are always reported.
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match rustix::event::poll(&mut watched, None) {
                Ok(_) => {
                    // There is no receiver when the subcommand has ended on its own.
                    let _ = gone.send(());
                    break;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
    });
    if watcher.is_err() || wait.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether bytes, which may end inside a character, are safe to show on a terminal.
fn is_plain(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

/// Marks an error as one of standard output, not of the store: both may be on a full disk.
fn unwritten(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}

fn cell(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => printable(text),
        serde_json::Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn aligned(cells: &[String], widths: &[usize]) -> String {
    let pad = |cell: &str, columns: usize| " ".repeat(columns.saturating_sub(width(cell)));
    let padded =
        cells.iter().zip(widths).map(|(cell, &columns)| cell.clone() + &pad(cell, columns));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

/// Text with control characters replaced, so that it cannot move the cursor or change the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text cut to this many columns, with a mark if something was cut.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    // Where the mark goes, and the width so far.
    let (mut end, mut taken) = (0, 0);
    for (at, c) in text.char_indices() {
        let wide = c.width().unwrap_or_default();
        if taken + wide < columns {
            end = at + c.len_utf8();
        }
        taken += wide;
        if taken > columns {
            return format!("{}~", &text[..end]);
        }
    }
    text.to_owned()
}

/// The width of a text on a terminal, in columns: a character may take two, or none.
fn width(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use xs_engine::{FrameId, Meta, NewFrame, Topic};

    fn printed(audience: Audience, print: impl FnOnce(&mut Output<&mut Vec<u8>>)) -> String {
        let mut bytes = Vec::new();
        let mut output = Output::new(&mut bytes, audience, TimeZone::UTC);
        print(&mut output);
        output.flush().unwrap();
        drop(output);
        String::from_utf8(bytes).unwrap()
    }

    fn sample() -> Frame {
        let meta = Meta::parse(r#"{"cpu":0.5,"note":"a\u001b[31m"}"#).unwrap();
        let new = NewFrame { meta, ..NewFrame::new(Topic::parse("metrics.recv").unwrap()) };
        Frame::assemble(&new, FrameId::first_of_ms(1_700_000_000_000), Some(1), None).unwrap()
    }

    #[test]
    fn a_person_gets_one_aligned_line_that_fits() {
        let person = Audience::Person { columns: 90, colour: false };
        let line = printed(person, |output| output.frame(&sample(), Some(b"x\n\x1b[1m")).unwrap());
        assert!(line.starts_with("2023-11-14 22:13:20.000  "), "{line}");
        assert!(line.contains("  metrics.recv          {"), "{line}");
        assert!(line.trim_end().chars().count() <= 90, "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }

    #[test]
    fn a_narrow_terminal_shows_content_instead_of_ids() {
        let id = sample().id().to_string();
        for (columns, has_id) in [(80, false), (99, false), (100, true)] {
            let person = Audience::Person { columns, colour: false };
            let line = printed(person, |output| output.frame(&sample(), None).unwrap());
            assert_eq!(line.contains(&id), has_id, "{line}");
            assert!(line.contains("{\"cpu\":0.5") && line.trim_end().chars().count() <= columns);
        }
    }

    #[test]
    fn a_terminal_is_spared_what_is_no_text() {
        for (bytes, plain) in [
            (&b"text\r\n\ttab"[..], true),
            ("caf\u{e9}".as_bytes(), true),
            (&"caf\u{e9}".as_bytes()[..4], true),
            (b"\x1b[31mred", false),
            (b"\0", false),
            (b"\xff\xd8\xff", false),
            (b"", true),
        ] {
            assert_eq!(is_plain(bytes), plain, "{bytes:?}");
        }
    }

    #[test]
    fn times_for_programs_sort_as_text() {
        let mut bytes = Vec::new();
        let output = Output::new(&mut bytes, Audience::Program, TimeZone::UTC);
        assert_eq!(output.time(1_700_000_000_000), "2023-11-14T22:13:20.000Z");
        assert_eq!(output.time(1_700_000_000_180), "2023-11-14T22:13:20.180Z");
    }

    #[test]
    fn a_tree_is_indented_for_a_person() {
        let person = Audience::Person { columns: 90, colour: false };
        let lines = printed(person, |output| {
            output.indent(2);
            output.frame(&sample(), None).unwrap();
            output.frame(&sample(), None).unwrap();
        });
        let places = lines.lines().map(|line| line.find("metrics.recv").unwrap());
        let places: Vec<_> = places.collect();
        assert_eq!(places[0], places[1] + 4, "{lines}");
    }

    #[test]
    fn a_table_is_objects_for_a_program_and_columns_for_a_person() {
        let rows = [vec![json!("a"), json!(1)], vec![json!("long.name"), json!(null)]];
        let names = ["topic", "count"];
        let lines = printed(Audience::Program, |output| output.table(&names, &rows).unwrap());
        assert_eq!(
            lines,
            "{\"topic\":\"a\",\"count\":1}\n{\"topic\":\"long.name\",\"count\":null}\n"
        );
        let person = Audience::Person { columns: 90, colour: false };
        let lines = printed(person, |output| output.table(&names, &rows).unwrap());
        assert_eq!(lines, "TOPIC      COUNT\na          1\nlong.name  -\n");
        let narrow = Audience::Person { columns: 10, colour: false };
        let lines = printed(narrow, |output| output.table(&names, &rows).unwrap());
        assert_eq!(lines, "TOPIC    ~\na        ~\nlong.name~\n");
        // Two characters of two columns each, and one with a mark that takes none.
        let rows = [vec![json!("\u{6771}\u{4eac}"), json!(1)], vec![json!("e\u{301}"), json!(2)]];
        let lines = printed(person, |output| output.table(&names, &rows).unwrap());
        assert_eq!(lines, "TOPIC  COUNT\n\u{6771}\u{4eac}   1\ne\u{301}      2\n");
    }

    #[test]
    fn a_text_is_cut_by_the_columns_it_takes() {
        for (text, columns, shown) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab~"),
            ("\u{6771}\u{4eac}", 4, "\u{6771}\u{4eac}"),
            ("\u{6771}\u{4eac}", 3, "\u{6771}~"),
            ("\u{6771}\u{4eac}", 2, "~"),
            ("e\u{301}x", 2, "e\u{301}x"),
            ("ab", 0, "~"),
        ] {
            assert_eq!(cut(text, columns), shown, "{text} {columns}");
        }
    }
}
