//! The rule that finds an address among the words of a command line. Pure: no file is looked at.

use std::ffi::OsString;

use clap::{Command, CommandFactory as _, ValueHint};

use super::Args;

/// Where an address is typed as the first positional argument of a subcommand, as in
/// `xs cat ./store`. A word is an address when it cannot be a topic: it holds `/` or `:` or begins
/// with `.`. Subcommands whose own arguments are directories are left alone.
pub(crate) fn address_at(argv: &[OsString]) -> Option<usize> {
    let root = Args::command();
    let (at, command) = first_positional(argv, &root)?;
    let cannot_be = if command == "eval" { cannot_be_code } else { cannot_be_topic };
    argv[at].to_str().is_some_and(cannot_be).then_some(at)
}

/// The subcommand that a command line is of, as far as its words name one.
pub(crate) fn innermost(argv: &[OsString]) -> Command {
    let mut root = Args::command();
    root.build();
    let mut command = &root;
    let mut index = 1;
    while let Some(word) = argv.get(index).and_then(|word| word.to_str()) {
        if word.len() > 1 && word.starts_with('-') {
            index += if takes_next(&root, command, word) { 2 } else { 1 };
            continue;
        }
        let Some(below) = command.find_subcommand(word) else { break };
        command = below;
        index += 1;
    }
    command.clone()
}

fn cannot_be_topic(word: &str) -> bool {
    // A blob's hash may hold a slash and is never an address.
    !word.starts_with("sha256-")
        && (word.starts_with('.') || word.contains('/') || word.contains(':'))
}

/// Code may well hold a slash or a colon.
fn cannot_be_code(word: &str) -> bool {
    let begins = ["./", "../", "/", ":"].iter().any(|begin| word.starts_with(begin));
    let is_path = |c: char| c.is_alphanumeric() || "._-/:@+".contains(c);
    (begins || word.contains("://")) && word.chars().all(is_path)
}

/// The index of the first argument that belongs to the subcommand itself, below all nested ones,
/// and the name of the innermost.
fn first_positional<'a>(argv: &[OsString], root: &'a Command) -> Option<(usize, &'a str)> {
    let mut command = root;
    let mut index = 1;
    while let Some(word) = argv.get(index) {
        let word = word.to_str()?;
        if word == "--" {
            return None;
        }
        if word.len() > 1 && word.starts_with('-') {
            index += if takes_next(root, command, word) { 2 } else { 1 };
            continue;
        }
        match command.find_subcommand(word) {
            Some(below) if takes_directories(below) => return None,
            Some(below) => command = below,
            None if command.has_subcommands() => return None,
            None => return Some((index, command.get_name())),
        }
        index += 1;
    }
    None
}

/// Whether what the subcommand is given are directories or files of its own.
fn takes_directories(command: &Command) -> bool {
    let paths = [ValueHint::DirPath, ValueHint::FilePath, ValueHint::AnyPath];
    let hint = |arg: &clap::Arg| paths.contains(&arg.get_value_hint());
    command.get_positionals().any(hint)
}

/// Whether the option `word` has its value in the argument that follows.
fn takes_next(root: &Command, command: &Command, word: &str) -> bool {
    let mut options = command.get_arguments().chain(root.get_arguments());
    match word.strip_prefix("--") {
        Some(long) => {
            !long.contains('=')
                && options
                    .any(|arg| arg.get_long() == Some(long) && arg.get_action().takes_values())
        }
        // Of grouped short options only the last can have its value in the next word.
        None => word.chars().last().is_some_and(|last| {
            options.any(|arg| arg.get_short() == Some(last) && arg.get_action().takes_values())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifted(line: &str) -> String {
        let mut words: Vec<_> = line.split(' ').map(OsString::from).collect();
        if let Some(at) = address_at(&words) {
            words.insert(at, OsString::from("--addr"));
        }
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_the_first_positional_can_be_an_address() {
        for (line, expected) in [
            ("xs cat ./store", "xs cat --addr ./store"),
            ("xs cat -f --last 3 ./store a.b", "xs cat -f --last 3 --addr ./store a.b"),
            ("xs cat --last=3 :4000", "xs cat --last=3 --addr :4000"),
            ("xs append /s topic ./body", "xs append --addr /s topic ./body"),
            ("xs append topic ./body", "xs append topic ./body"),
            ("xs append --file ./f topic", "xs append --file ./f topic"),
            ("xs -a ./s append topic a:b", "xs -a ./s append topic a:b"),
            ("xs cas get sha256-a/b=", "xs cas get sha256-a/b="),
            ("xs cas get ./s sha256-a/b=", "xs cas get --addr ./s sha256-a/b="),
            ("xs modules list host:1", "xs modules list --addr host:1"),
            ("xs serve ./store", "xs serve ./store"),
            ("xs replay ./m/handlers/a.ts", "xs replay ./m/handlers/a.ts"),
            ("xs backup ./store ./copy", "xs backup ./store ./copy"),
            ("xs each ./s a -- ./run", "xs each --addr ./s a -- ./run"),
            ("xs cursor set ./s c first", "xs cursor set --addr ./s c first"),
            ("xs cat a -- ./b", "xs cat a -- ./b"),
            ("xs eval ./store", "xs eval --addr ./store"),
            ("xs eval :4000 1/2", "xs eval --addr :4000 1/2"),
            ("xs eval 1/2", "xs eval 1/2"),
            ("xs eval {a:1}", "xs eval {a:1}"),
            ("xs eval /a/.test('b')", "xs eval /a/.test('b')"),
            ("xs eval --file ./a.ts", "xs eval --file ./a.ts"),
            ("xs nothing ./b", "xs nothing ./b"),
            ("xs", "xs"),
        ] {
            assert_eq!(lifted(line), expected);
        }
    }
}
