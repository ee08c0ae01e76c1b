//! Translates a thrown error into the author's terms: paths in the modules directory, lines and
//! columns of the original source, no stack frames of xs itself.

use std::fmt;

use super::graph::{ModuleGraph, join};
use super::location;
use super::resolve::{SCHEME, path_of};
use crate::isolate::{FailureKind, ModuleError};

/// Maximum number of stack frames shown.
const FRAMES_MAX: usize = 20;
/// Maximum number of stack frames translated in one text that a module shows.
const RETOLD_FRAMES_MAX: usize = 512;
/// The prefix of the names of the scripts of xs and of the web, which no shown stack contains.
const OWN_SCHEME: &str = "ext:";
/// Maximum characters of a message.
const MESSAGE_CHARS_MAX: usize = 8 * 1024;

impl ModuleGraph {
    /// Translates the stacks in a text that a module shows into its author's terms, without the
    /// frames of xs itself. `newline` separates the text's lines: inside a string of JSON it is
    /// escaped.
    pub(crate) fn retold(&self, text: String, newline: &str) -> String {
        if !text.contains(SCHEME) && !text.contains(OWN_SCHEME) {
            return text;
        }
        let (mut told, mut frames) = (String::with_capacity(text.len()), 0);
        for (index, line) in text.split(newline).enumerate() {
            let parts = shown_frame(line).filter(|_| frames < RETOLD_FRAMES_MAX);
            frames += usize::from(parts.is_some());
            let (shown, rest) = match parts {
                // A frame of xs is dropped; the text after it, such as the end of a string, is
                // kept.
                Some((shown, rest)) if !shown.contains(SCHEME) => {
                    told.push_str(rest);
                    continue;
                }
                Some(parts) => parts,
                None => (line, ""),
            };
            if index > 0 {
                told.push_str(newline);
            }
            match self.frame(shown).filter(|_| parts.is_some()) {
                Some(frame) => {
                    told.push_str(&shown[..shown.len() - shown.trim_start().len()]);
                    told.push_str(&frame.to_string());
                }
                None => told.push_str(shown),
            }
            told.push_str(rest);
        }
        told
    }

    /// The error that JavaScript threw, from its name, message and `.stack`.
    pub(crate) fn thrown(&self, name: &str, message: &str, stack: &str) -> ModuleError {
        let kind = match name {
            "NotCapable" => FailureKind::Permission,
            "SyntaxError" => FailureKind::Syntax,
            // Thrown by xs before any code of the module has run; an author's error has a stack.
            "ArgumentError" if stack.is_empty() => FailureKind::Args,
            _ => FailureKind::Throw,
        };
        let mut text = match (name, message) {
            (_, message) if kind == FailureKind::Args => message.to_owned(),
            ("", message) => message.to_owned(),
            (name, "") => name.to_owned(),
            (name, message) => format!("{name}: {message}"),
        };
        if let Some((at, _)) = text.char_indices().nth(MESSAGE_CHARS_MAX) {
            text.truncate(at);
            text.push_str("...");
        }
        let missing = Missing::of(message).filter(|_| kind == FailureKind::Syntax);
        let Some(missing) = missing else {
            return self.located(ModuleError::new(kind, text), stack);
        };
        let import = self.importing(&missing, stack);
        if let Some(path) = import.and_then(|(from, _)| join(from, missing.specifier).ok())
            && self.file(&path).is_some_and(|file| file.source.contains("module.exports"))
        {
            text.push_str(&format!(
                "; {path} is CommonJS, as its module.exports shows: bundle it with --format=esm"
            ));
        }
        match import {
            // The engine gives a position for a named import, but none for a default one.
            Some((path, at)) if missing.name == "default" => {
                let source = self.file(path).map_or("", |file| &file.source);
                location::error_at(kind, text, path, source, at as usize)
            }
            _ => self.located(ModuleError::new(kind, text), stack),
        }
    }

    /// The file that imports a missing export, and the offset of that import.
    fn importing(&self, missing: &Missing<'_>, stack: &str) -> Option<(&str, u32)> {
        let first = stack.lines().find_map(|line| self.frame(line)).map(|frame| frame.path);
        let mut files = self.files().filter(|path| first.is_none_or(|first| first == *path));
        files.find_map(|path| {
            let mut imports = self.file(path)?.compiled.as_ref()?.imports.iter();
            let import = imports.find(|import| import.specifier == missing.specifier)?;
            Some((path, import.at))
        })
    }

    /// Sets the error's position and stack from `stack`, the text of a `.stack`.
    pub(crate) fn located(&self, mut error: ModuleError, stack: &str) -> ModuleError {
        let frames: Vec<Frame<'_>> = stack.lines().filter_map(|line| self.frame(line)).collect();
        let Some(first) = frames.first() else { return error };
        error = error.at(first.path, first.line, first.column);
        error.code_frame = self
            .file(first.path)
            .and_then(|file| location::code_frame(&file.source, first.line, first.column));
        let mut shown = error.message.clone();
        for frame in frames.iter().take(FRAMES_MAX) {
            shown.push_str(&format!("\n    {frame}"));
        }
        error.stack = Some(shown);
        error
    }

    /// Sets the error's position to the start of the module's definition.
    pub(crate) fn at_definition(&self, error: ModuleError) -> ModuleError {
        let source = self.file(self.entry()).map_or("", |file| &file.source);
        let (line, column) =
            location::line_column(source, source.find("export default").unwrap_or(0));
        error.at(self.entry(), line, column)
    }

    /// Parses one line of a stack; `None` when it is not in a file of this graph.
    fn frame<'a>(&'a self, line: &'a str) -> Option<Frame<'a>> {
        let (before, rest) = line.trim().strip_prefix("at ")?.split_once(SCHEME)?;
        let mut parts = rest.trim_end_matches(')').rsplitn(3, ':');
        let column: u32 = parts.next()?.parse().ok()?;
        let made: u32 = parts.next()?.parse().ok()?;
        let named = path_of(&format!("{SCHEME}{}", parts.next()?))?;
        let path = self.files().find(|path| *path == named)?;
        let (line, column) = self.written(path, made, column);
        let function = before.trim_end_matches('(').trim();
        Some(Frame { function, path, line, column })
    }

    /// Maps a position in the running code to the author's source; both from 1.
    fn written(&self, path: &str, line: u32, column: u32) -> (u32, u32) {
        let compiled = self.file(path).and_then(|file| file.compiled.as_ref());
        let mappings = compiled.map_or(&[][..], |compiled| &compiled.mappings);
        let made = (line.saturating_sub(1), column.saturating_sub(1));
        let after = mappings.partition_point(|mapping| mapping.made <= made);
        let near = after.checked_sub(1).and_then(|index| mappings.get(index));
        match near.filter(|mapping| mapping.made.0 == made.0) {
            Some(mapping) => {
                let beyond = made.1 - mapping.made.1;
                // Within one token columns correspond; further out the token's start is closest.
                let next = mappings.get(after).filter(|next| next.made.0 == made.0);
                let inside = next.is_none_or(|next| made.1 < next.made.1) && beyond < 2;
                let column = mapping.written.1 + if inside { beyond } else { 0 };
                (mapping.written.0 + 1, column + 1)
            }
            None => (line, column),
        }
    }
}

/// A missing export, parsed from the engine's message.
struct Missing<'a> {
    specifier: &'a str,
    name: &'a str,
}

impl<'a> Missing<'a> {
    fn of(message: &'a str) -> Option<Self> {
        let rest = message.strip_prefix("The requested module '")?;
        let (specifier, rest) = rest.split_once("' does not provide an export named '")?;
        Some(Self { specifier, name: rest.strip_suffix('\'')? })
    }
}

struct Frame<'a> {
    function: &'a str,
    path: &'a str,
    line: u32,
    column: u32,
}

impl fmt::Display for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, path, line, column } = self;
        match *function {
            "" => write!(f, "at {path}:{line}:{column}"),
            function => write!(f, "at {function} ({path}:{line}:{column})"),
        }
    }
}

/// Splits a line of shown text after the stack frame that it begins with; `None` if it begins with
/// none, or with one in neither kind of file.
fn shown_frame(line: &str) -> Option<(&str, &str)> {
    let text = line.trim_start().strip_prefix("at ")?;
    let place = [SCHEME, OWN_SCHEME].iter().filter_map(|scheme| text.find(scheme)).min()?;
    let (before, place) = text.split_at(place);
    if !(before.is_empty() || before.ends_with(['(', ' '])) {
        return None;
    }
    let mut ends = place.match_indices(':').filter_map(|(at, _)| {
        let (line, rest) = digits(&place[at + 1..])?;
        let (column, rest) = digits(rest.strip_prefix(':')?)?;
        let bracket = usize::from(before.ends_with('(') && rest.starts_with(')'));
        Some(at + 2 + line.len() + column.len() + bracket)
    });
    let end = line.len() - place.len() + ends.next()?;
    Some(line.split_at(end))
}

/// The digits that a text begins with, at least one, and what follows.
fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_told_from_what_stands_around_it() {
        for (line, want) in [
            ("    at run (file:///a.ts:1:2)", Some(("    at run (file:///a.ts:1:2)", ""))),
            ("at file:///a.ts:1:2 {", Some(("at file:///a.ts:1:2", " {"))),
            ("  at x (ext:core/01.js:10:20)\"}", Some(("  at x (ext:core/01.js:10:20)", "\"}"))),
            ("    at async ext:a.js:1:2", Some(("    at async ext:a.js:1:2", ""))),
            ("look at file:///a.ts:1:2", None),
            ("    at text:1:2", None),
            ("    at run (native)", None),
            ("    at run (file:///a.ts", None),
            ("    at file:///:9", None),
            ("at ", None),
        ] {
            assert_eq!(shown_frame(line), want, "{line}");
        }
    }
}
