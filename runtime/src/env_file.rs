//! Files of environment variables for `--env-file`: one `NAME=value` per line. Anything unclear is
//! refused with its line, since a value read differently than meant is worse.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

/// Maximum bytes of a file.
const BYTES_MAX: u64 = 1024 * 1024;

/// Why an env file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    /// It cannot be read.
    #[error("cannot read {file}: {error}")]
    Read {
        /// The file.
        file: String,
        /// The I/O error.
        error: std::io::Error,
    },
    /// A line cannot be parsed.
    #[error("{file}:{line}: {why}")]
    Syntax {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        why: &'static str,
    },
}

/// Reads a file.
///
/// # Errors
/// [`EnvFileError`] names the file, and the line that cannot be parsed.
pub fn load(path: &Path) -> Result<BTreeMap<String, String>, EnvFileError> {
    let file = path.display().to_string();
    let mut text = String::new();
    let opened = std::fs::File::open(path);
    let read = opened.and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
    if let Err(error) = read {
        return Err(EnvFileError::Read { file, error });
    }
    if text.len() as u64 > BYTES_MAX {
        let error = std::io::Error::other(format!("it is larger than {BYTES_MAX} bytes"));
        return Err(EnvFileError::Read { file, error });
    }
    parse(&text).map_err(|(line, why)| EnvFileError::Syntax { file, line, why })
}

/// The variables of a text; or the line that cannot be parsed, and why.
fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, &'static str)> {
    let mut variables = BTreeMap::new();
    let mut left = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !left.is_empty() {
        let at = line;
        let (here, rest) = left.split_once('\n').unwrap_or((left, ""));
        let trimmed = here.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            (left, line) = (rest, line + 1);
            continue;
        }
        let start = left.len() - left.trim_start().len();
        let (name, value) = named(&left[start..]).map_err(|why| (at, why))?;
        let (value, rest) = value_of(value).map_err(|why| (at, why))?;
        if value.contains('\0') {
            return Err((at, "a value must not contain NUL"));
        }
        if variables.insert(name.to_owned(), value).is_some() {
            return Err((at, "the variable is defined twice"));
        }
        line += left[..left.len() - rest.len()].matches('\n').count();
        left = rest;
    }
    Ok(variables)
}

/// The name before a `=`, and the text after it.
fn named(text: &str) -> Result<(&str, &str), &'static str> {
    let text = match text.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start_matches([' ', '\t']),
        _ => text,
    };
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("expected NAME=value, a comment, or an empty line");
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    let value = rest.strip_prefix('=').ok_or("expected = after the name")?;
    Ok((name, value.trim_start_matches([' ', '\t'])))
}

/// A value, and the lines after it.
fn value_of(text: &str) -> Result<(String, &str), &'static str> {
    match text.chars().next() {
        Some('\'') => {
            let (value, rest) = text[1..].split_once('\'').ok_or("the closing ' is missing")?;
            Ok((value.to_owned(), end_of_line(rest)?))
        }
        Some('"') => {
            let (value, rest) = quoted(&text[1..])?;
            Ok((value, end_of_line(rest)?))
        }
        Some('`') => Err("quote a value with ' or \""),
        _ => {
            let (here, rest) = text.split_once('\n').unwrap_or((text, ""));
            Ok((plain(here)?, rest))
        }
    }
}

/// A value without quotes, up to a comment.
fn plain(here: &str) -> Result<String, &'static str> {
    let comment = here.char_indices().find(|(at, c)| {
        *c == '#' && here[..*at].chars().next_back().is_none_or(char::is_whitespace)
    });
    let value = comment.map_or(here, |(at, _)| &here[..at]).trim_end();
    if value.contains(['\'', '"', '`', '\\']) {
        return Err("quote the whole value if it contains quotes or backslashes");
    }
    if expands(value) {
        return Err("variables are not expanded; put a value with $ into '...'");
    }
    Ok(value.to_owned())
}

/// The value before a closing `"`, and the text after it.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, 'r')) => '\r',
                Some((_, 't')) => '\t',
                Some((_, c @ ('\\' | '"' | '$'))) => c,
                _ => return Err("after \\ in \"...\", expected one of n r t \\ \" $"),
            }),
            '$' if is_expansion(&text[at + 1..]) => {
                return Err("variables are not expanded; write \\$, or put the value into '...'");
            }
            c => value.push(c),
        }
    }
    Err("the closing \" is missing")
}

/// Whether a shell would expand a `$` in the text.
fn expands(text: &str) -> bool {
    text.match_indices('$').any(|(at, _)| is_expansion(&text[at + 1..]))
}

/// Whether a `$` before this text starts an expansion.
fn is_expansion(behind: &str) -> bool {
    behind.starts_with(|c: char| c.is_ascii_alphanumeric() || "_({$".contains(c))
}

/// The lines after a quoted value; only a comment may follow on its own line.
fn end_of_line(text: &str) -> Result<&str, &'static str> {
    let (here, rest) = text.split_once('\n').unwrap_or((text, ""));
    let here = here.trim();
    if here.is_empty() || here.starts_with('#') {
        return Ok(rest);
    }
    Err("only a comment may follow a quoted value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_is_understood() {
        let text = "\u{feff}# a comment\n\nA=1\r\nexport B = two words # and a comment\n\
                    C='lit $X \"q\" \\n' # said\nD=\"line\\none \\\"q\\\" \\$5\"\nE=\n  F=a#b\n\
                    G=\"two\nlines\"\nexported=1\nH='";
        let text = format!("{text}x\ny'");
        let all = parse(&text).unwrap();
        let shown: Vec<_> =
            all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            shown,
            [
                ("A", "1"),
                ("B", "two words"),
                ("C", "lit $X \"q\" \\n"),
                ("D", "line\none \"q\" $5"),
                ("E", ""),
                ("F", "a#b"),
                ("G", "two\nlines"),
                ("H", "x\ny"),
                ("exported", "1"),
            ]
        );
    }

    #[test]
    fn what_is_not_is_named_by_its_line() {
        for (text, line) in [
            ("A", 1),
            ("A=1\n1B=2", 2),
            ("A='x\ny'\nB C=1", 3),
            ("A=\"x", 1),
            ("\nA='x", 2),
            ("A='x' y", 1),
            ("A=\"\\q\"", 1),
            ("A=$HOME/x", 1),
            ("A=\"${B}\"", 1),
            ("A=`date`", 1),
            ("A=it's", 1),
            ("A=1\nA=2", 2),
            ("export=1\nexport", 2),
            ("A=a\0b", 1),
            ("{}", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().0, line, "{text:?}");
        }
        assert!(parse("A=5$").is_ok() && parse("A=\"5$ \"").is_ok());
        let gone = load(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(gone.starts_with("cannot read /nowhere"), "{gone}");
    }
}
