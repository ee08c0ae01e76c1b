//! `xs help`: pages on topics, along with clap's own on subcommands.

use crate::support::Sandbox;

#[test]
fn topics_are_listed_and_shown() {
    let place = Sandbox::new();
    let all = place.ok(&["help"]).text();
    assert!(all.contains("Subcommands:") && all.contains("Pages, shown by"), "{all}");
    let list = place.ok(&["help", "topics"]).text();
    let names: Vec<_> = list
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(names.len() >= 12 && names.contains(&"concepts"), "{list}");
    for name in names {
        let page = place.ok(&["help", name]).text();
        assert!(page.lines().count() > 5 && page.contains("\n#") | page.starts_with('#'), "{name}");
    }
    let codes = place.ok(&["help", "exit-codes"]).text();
    assert!(codes.starts_with("## Exit codes") && !codes.contains("## Addresses"), "{codes}");
}

#[test]
fn help_of_a_subcommand_is_that_of_clap() {
    let place = Sandbox::new();
    for words in [&["help", "cat"][..], &["help", "modules", "list"], &["modules", "help", "list"]]
    {
        let help = place.ok(words).text();
        assert!(help.contains("Usage: xs ") && help.contains("Example"), "{words:?}: {help}");
    }
    // A subcommand with a page: both.
    let both = place.ok(&["help", "modules"]).text();
    assert!(both.contains("Usage: xs modules") && both.contains("\n# "), "{both}");
    let unknown = place.xs(&["help", "nonsense"]);
    assert_eq!((unknown.code, unknown.out.len()), (2, 0));
    assert!(unknown.err.contains("one of concepts, tutorial"), "{}", unknown.err);
}

/// The names below a heading of a help text.
fn below(help: &str, heading: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with("  "));
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// Every help text of the binary: it fits, shows an example, and names the defaults.
fn walk(place: &Sandbox, path: &[&str], seen: &mut usize) {
    let help = place.ok(&[path, &["--help"]].concat()).text();
    *seen += 1;
    let name = path.join(" ");
    for line in help.lines() {
        assert!(line.chars().count() <= 100, "xs {name} --help: {line}");
    }
    let subcommands = below(&help, "Subcommands:");
    assert!(
        help.contains("Example") || !subcommands.is_empty() || name == "version",
        "xs {name} --help has no example"
    );
    for subcommand in subcommands.iter().filter(|subcommand| *subcommand != "help") {
        walk(place, &[path, &[subcommand.as_str()]].concat(), seen);
    }
}

#[test]
fn lines_and_their_way_back_name_each_other() {
    let place = Sandbox::new();
    let told = |name: &str| place.ok(&[name, "--help"]).text().replace("\n          ", " ");
    assert!(told("append").contains("xs cat --format '{body}'"), "{}", told("append"));
    assert!(told("append").contains("LF or CRLF"), "{}", told("append"));
    assert!(told("cat").contains("append --lines"), "{}", told("cat"));
}

#[test]
fn every_help_text_fits_and_shows_an_example() {
    let place = Sandbox::new();
    let mut seen = 0;
    walk(&place, &[], &mut seen);
    assert!(seen > 55, "{seen} help texts");
    for (args, default) in [
        (&["serve", "--help"][..], "[default: sync]"),
        (&["serve", "--help"], "[default: that of --addr]"),
        (&["append", "--help"], "[default: forever]"),
        (&["last", "--help"], "[default: 1]"),
        (&["tail", "--help"], "[default: 10]"),
        (&["top", "--help"], "[default: 1s]"),
        (&["call", "--help"], "[default: 30s without a result]"),
        (&["export", "--help"], "[default: all]"),
        (&["--help"], "default is ~/.local/share/xs/store"),
    ] {
        let help = place.ok(args).text();
        let words: Vec<_> = help.split_whitespace().collect();
        assert!(words.join(" ").contains(default), "{args:?}: {default}\n{help}");
    }
}
