//! Parses a command line, and improves the error messages when that fails. The meaning of the
//! arguments is left to the subcommands.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::{Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _, FromArgMatches as _};

use crate::args::{Args, address_at, innermost};
use crate::exit::{Exit, ExitError};

/// Names of subcommands in other tools, and ours.
const ELSEWHERE: [(&str, &[&str]); 14] = [
    ("ls", &["topics", "cat"]),
    ("list", &["topics", "cat"]),
    ("read", &["cat"]),
    ("show", &["cat", "get"]),
    ("log", &["cat"]),
    ("add", &["append"]),
    ("put", &["append"]),
    ("publish", &["append"]),
    ("write", &["append"]),
    ("follow", &["tail"]),
    ("subscribe", &["tail"]),
    ("rm", &["remove"]),
    ("delete", &["remove"]),
    ("start", &["serve"]),
];
/// Maximum characters shown of an invalid value.
const SHOWN_CHARS: usize = 60;

/// Inserts `--addr` before an address typed as the first argument of a subcommand.
///
/// # Errors
/// An error when the word is as likely a topic with slashes: creating a store from it would be a
/// surprise.
pub(crate) fn locate(argv: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let Some(at) = address_at(&argv) else { return Ok(argv) };
    if let Some(word) = argv[at].to_str().filter(|word| may_be_topic(word))
        && !Path::new(word).exists()
    {
        let dots = word.trim_matches(['/', '.']).replace('/', ".");
        let topic = match word.starts_with('.') {
            true => "does not start with a dot",
            false => "has dots instead of slashes",
        };
        let text = format!(
            "no store at {word}; a topic {topic}: {dots}; to create a store there, write ./{word}"
        );
        return ExitError::fail(Exit::Unreachable, text);
    }
    let mut argv = argv;
    argv.insert(at, OsString::from("--addr"));
    Ok(argv)
}

/// Whether the user may have meant a topic.
fn may_be_topic(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./*".contains(c);
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    let name = match word.strip_prefix('.') {
        Some(name) if !name.contains('/') => name,
        _ => word,
    };
    name.starts_with(begins) && name.chars().all(plain)
}

/// Parses a command line.
///
/// # Errors
/// The error with the usage of the subcommand below it, whatever else was typed or is in the
/// environment; or the requested help.
pub(crate) fn parse(argv: &[OsString]) -> Result<Args, clap::Error> {
    let mut command = without_empty(Args::command());
    let parsed = command.try_get_matches_from_mut(argv);
    let parsed = parsed.and_then(|mut matches| Args::from_arg_matches_mut(&mut matches));
    parsed.map_err(|mut error| {
        shorten(&mut error);
        // The hint that a value may begin with a hyphen does not help with a mistyped option.
        if error.kind() == ErrorKind::UnknownArgument {
            error.remove(ContextKind::Suggested);
        }
        suggest_own(&mut error, &innermost(argv));
        suggest_hyphens(&mut error, &innermost(argv));
        suggest_count(&mut error, &innermost(argv));
        if error.get(ContextKind::Usage).is_some() {
            let usage = innermost(argv).render_usage();
            error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
        }
        // Internal subcommands are not suggested.
        for kind in [ContextKind::SuggestedSubcommand, ContextKind::ValidSubcommand] {
            let Some(ContextValue::Strings(names)) = error.get(kind) else { continue };
            let own = |name: &&String| !name.starts_with("__");
            let names: Vec<_> = names.iter().filter(own).cloned().collect();
            if names.is_empty() {
                error.remove(kind);
            } else {
                error.insert(kind, ContextValue::Strings(names));
            }
        }
        error
    })
}

/// Ignores environment variables that are set but empty.
fn without_empty(mut command: Command) -> Command {
    for arg in ["addr", "tls_ca"] {
        command = command.mut_arg(arg, |arg| {
            let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|it| it.is_empty());
            let empty = arg.get_env().is_some_and(is_empty);
            if empty { arg.env(Resettable::Reset) } else { arg }
        });
    }
    command
}

/// Shortens a long invalid value.
fn shorten(error: &mut clap::Error) {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some((end, _)) = value.char_indices().nth(SHOWN_CHARS)
    {
        let value = format!("{}...", &value[..end]);
        error.insert(ContextKind::InvalidValue, ContextValue::String(value));
    }
}

/// Suggests `-n 5` for `-5` if the subcommand has `-n`.
fn suggest_count(error: &mut clap::Error, command: &Command) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return };
    let digits = word.strip_prefix('-').unwrap_or_default();
    let is_count = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let takes = |arg: &clap::Arg| arg.get_short() == Some('n') && arg.get_action().takes_values();
    if is_count && command.get_arguments().any(takes) {
        let tip = StyledStr::from(format!("for a count, use '-n {digits}'"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
}

/// Suggests our name for a subcommand that is called differently elsewhere, rather than one that is
/// merely spelt alike.
fn suggest_own(error: &mut clap::Error, command: &Command) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return;
    };
    let own = ELSEWHERE.iter().find(|(name, _)| name == word);
    if let Some((_, own)) = own.filter(|_| command.get_name() == "xs") {
        let own = own.iter().map(|&name| name.to_owned()).collect();
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(own));
    }
}

/// Suggests `--` when the command that `each` runs was taken for a topic.
fn suggest_hyphens(error: &mut clap::Error, command: &Command) {
    if error.kind() == ErrorKind::MissingRequiredArgument && command.get_name() == "each" {
        let tip = StyledStr::from("the command comes after --, as in xs each jobs -- cat");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_topic_with_slashes_does_not_become_a_store() {
        for line in ["xs append sensors/temp 21", "xs cat sensors/temp", "xs cat a/b/"] {
            let error = locate(words(line)).unwrap_err().to_string();
            assert!(error.contains("dots instead of slashes"), "{line}: {error}");
        }
        for line in ["xs append ./new/store t x", "xs cat :1", "xs cat /new/store", "xs cat a.b"] {
            assert!(locate(words(line)).is_ok(), "{line}");
        }
    }

    #[test]
    fn the_usage_is_that_of_the_subcommand() {
        for (line, usage) in [
            ("xs append --addr ./s", "Usage: xs append [OPTIONS] <TOPIC> [BODY]"),
            ("xs cat --frm 1", "Usage: xs cat [OPTIONS] [TOPICS]..."),
            ("xs cursor get --addr ./s", "Usage: xs cursor get [OPTIONS] <NAME>"),
            ("xs frob", "Usage: xs [OPTIONS] <SUBCOMMAND>"),
        ] {
            let error = parse(&words(line)).unwrap_err().to_string();
            assert!(error.lines().any(|said| said == usage), "{line}: {error}");
        }
        for line in ["xs tail -5", "xs last ./s -5", "xs modules logs a -5"] {
            let error = parse(&words(line)).unwrap_err().to_string();
            assert!(error.contains("use '-n 5'") && !error.contains("'-- -5'"), "{line}: {error}");
        }
        let long = format!("xs append t --meta {{\"a\":\"{}\"}}", "x".repeat(70_000));
        let error = parse(&words(&long)).unwrap_err().to_string();
        assert!(error.len() < 400 && error.contains("over the limit"), "{error}");
        for line in ["xs cat --last x", "xs last -n x", "xs each --limit 1x -- true"] {
            let error = parse(&words(line)).unwrap_err().to_string();
            assert!(error.contains("a whole number is expected"), "{line}: {error}");
        }
        for (line, own) in [("xs ls", "'topics', 'cat'"), ("xs list", "'topics', 'cat'")] {
            let error = parse(&words(line)).unwrap_err().to_string();
            assert!(error.contains(own) && !error.contains("'last'"), "{line}: {error}");
        }
        let error = parse(&words("xs read")).unwrap_err().to_string();
        assert!(error.contains("'cat'") && !error.contains("'replay'"), "{error}");
        let error = parse(&words("xs hosts")).unwrap_err().to_string();
        assert!(error.contains("'host'") && !error.contains("__host"), "{error}");
        let error = parse(&words("xs --addr ./s")).unwrap_err().to_string();
        assert!(error.contains("requires a subcommand") && !error.contains("__host"), "{error}");
    }
}
