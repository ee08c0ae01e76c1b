//! `xs help TOPIC`: the documentation, embedded in the program. clap explains subcommands; this
//! module adds pages on shared subjects, and lists them.

use std::ffi::OsString;

use clap::{Command, CommandFactory as _};

use crate::args::Args;
use crate::exit::{Exit, ExitError};
use crate::output::Output;

const CLI: &str = include_str!("../../docs/cli.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// A help page.
struct Page {
    name: &'static str,
    about: &'static str,
    text: &'static str,
    /// The heading of the section that is shown; the whole text without one.
    part: Option<&'static str>,
}

static PAGES: [Page; 15] = [
    whole("concepts", "frames, topics, bodies, processors", include_str!("../../docs/concepts.md")),
    whole("tutorial", "a tour of half an hour", include_str!("../../docs/tutorial.md")),
    part("addresses", "how to name a store", OPERATIONS, "Addresses"),
    part("patterns", "topic patterns", CLI, "Topic patterns"),
    part("times", "points in time and durations", CLI, "Times"),
    part("templates", "custom output with --format", CLI, "Templates"),
    part("output", "output for people and for programs", CLI, "Output"),
    part("exit-codes", "exit codes of subcommands", OPERATIONS, "Exit codes"),
    whole(
        "modules",
        "writing generators, handlers, commands",
        include_str!("../../docs/modules.md"),
    ),
    whole("operations", "running a server", OPERATIONS),
    whole(
        "recovery",
        "what happens when a store is opened",
        include_str!("../../docs/recovery.md"),
    ),
    whole("wire", "the protocol", include_str!("../../docs/wire.md")),
    whole("format", "the files of a store", include_str!("../../docs/format.md")),
    whole("comparison", "compared with other systems", include_str!("../../docs/comparison.md")),
    whole("changes", "changes between versions", include_str!("../../CHANGELOG.md")),
];

const fn whole(name: &'static str, about: &'static str, text: &'static str) -> Page {
    Page { name, about, text, part: None }
}

const fn part(
    name: &'static str,
    about: &'static str,
    text: &'static str,
    heading: &'static str,
) -> Page {
    Page { name, about, text, part: Some(heading) }
}

/// Answers `xs help` and `xs help TOPIC`; `None` when clap should answer, as for a subcommand.
pub(crate) fn answer(argv: &[OsString]) -> Option<anyhow::Result<Exit>> {
    let words: Vec<_> = argv.iter().skip(1).map(|word| word.to_str().unwrap_or("")).collect();
    let ["help", rest @ ..] = words.as_slice() else { return None };
    let mut root = Args::command();
    match rest {
        [] => Some(show(&format!("{}\n\n{}", root.render_long_help(), list()))),
        ["topics"] => Some(show(&list())),
        [word] => {
            let page = PAGES.iter().find(|page| page.name == *word);
            match (subcommand(&root, word), page) {
                (true, None) => None,
                (true, Some(page)) => Some(show(&format!("{}\n\n{}", usage(word), page.body()))),
                (false, Some(page)) => Some(show(&page.body())),
                (false, None) => Some(ExitError::fail(
                    Exit::Usage,
                    format!(
                        "no help on {word:?}: not a subcommand (xs --help) and not one of {}",
                        names().join(", ")
                    ),
                )),
            }
        }
        _ => None,
    }
}

fn subcommand(root: &Command, word: &str) -> bool {
    word == "help" || word.starts_with('-') || root.find_subcommand(word).is_some()
}

/// clap's help for a subcommand.
fn usage(word: &str) -> String {
    let mut root = Args::command();
    root.build();
    let found = root.find_subcommand_mut(word);
    found.map(|command| command.render_long_help().to_string()).unwrap_or_default()
}

fn names() -> Vec<&'static str> {
    PAGES.iter().map(|page| page.name).collect()
}

fn list() -> String {
    let mut text = "Pages, shown by xs help PAGE:\n".to_owned();
    for page in &PAGES {
        text += &format!("  {:<12} {}\n", page.name, page.about);
    }
    text + "\nxs help SUBCOMMAND describes a subcommand.\n"
}

fn show(text: &str) -> anyhow::Result<Exit> {
    let mut out = Output::stdout();
    out.bytes(text.trim_end().as_bytes())?;
    out.bytes(b"\n")?;
    out.flush()?;
    Ok(Exit::Ok)
}

impl Page {
    /// The text, or only the section with the heading.
    fn body(&self) -> String {
        let Some(heading) = self.part else { return links_gone(self.text) };
        let start = format!("## {heading}");
        let lines = self.text.lines().skip_while(|line| *line != start);
        let rest = lines.clone().skip(1).take_while(|line| !line.starts_with("## "));
        links_gone(&lines.take(1).chain(rest).collect::<Vec<_>>().join("\n"))
    }
}

/// Turns `[text](file)` into `text`, since links are useless on a terminal.
fn links_gone(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let opens = before.rfind('[').filter(|at| !before[*at..].contains('\n'));
        let closes = after.find(')').filter(|at| !after[..*at].contains(char::is_whitespace));
        match (opens, closes) {
            (Some(open), Some(close)) => {
                out += &before[..open];
                out += &before[open + 1..];
                rest = &after[close + 1..];
            }
            _ => {
                out += before;
                out += "](";
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_text_and_every_part_its_heading() {
        for page in &PAGES {
            let body = page.body();
            assert!(body.starts_with('#') && body.lines().count() > 5, "{}", page.name);
            assert!(page.part.is_none() || !body[2..].contains("\n## "), "{}", page.name);
            assert!(page.about.len() < 60);
        }
    }

    #[test]
    fn links_become_their_text() {
        for (text, shown) in [
            ("see [this](a.md) and [that](b.md#c).", "see this and that."),
            ("| `a[0](x y)` |", "| `a[0](x y)` |"),
            ("f](x)", "f](x)"),
            ("plain", "plain"),
        ] {
            assert_eq!(links_gone(text), shown);
        }
    }
}
