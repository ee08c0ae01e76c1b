//! Positions in the author's source: lines, columns, and the surrounding lines that people read.

use std::fmt::Write as _;

use crate::isolate::{FailureKind, ModuleError};

/// Lines shown before and after the relevant one.
const CONTEXT_LINES: usize = 2;
/// Maximum characters of a shown line.
const LINE_CHARS_MAX: usize = 160;

/// Line and column, from 1, of a byte offset in a source.
pub(crate) fn line_column(source: &str, at: usize) -> (u32, u32) {
    let before = &source[..source.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    (count(line), count(column))
}

/// The lines around a position with a mark under it; `None` when the source has no such line.
pub(crate) fn code_frame(source: &str, line: u32, column: u32) -> Option<String> {
    let line = usize::try_from(line).ok()?;
    source.lines().nth(line.checked_sub(1)?)?;
    let first = line.saturating_sub(CONTEXT_LINES).max(1);
    let mut frame = String::new();
    for (index, text) in
        source.lines().enumerate().skip(first - 1).take(line - first + 1 + CONTEXT_LINES)
    {
        let number = index + 1;
        let mark = if number == line { '>' } else { ' ' };
        let shown: String = text.chars().take(LINE_CHARS_MAX).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(frame, "{mark}{number:>5} | {}", shown.trim_end());
        let column = usize::try_from(column).ok()?;
        if number == line && (1..=LINE_CHARS_MAX).contains(&column) {
            // Tabs stay tabs, so that the mark is below its character.
            let pad: String =
                text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let _ = writeln!(frame, "       | {pad}^");
        }
    }
    Some(frame)
}

/// An error at a byte offset of a source.
pub(crate) fn error_at(
    kind: FailureKind,
    message: String,
    file: &str,
    source: &str,
    at: usize,
) -> ModuleError {
    let (line, column) = line_column(source, at);
    let mut error = ModuleError::new(kind, message).at(file, line, column);
    error.code_frame = code_frame(source, line, column);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_and_stop_at_the_end() {
        let source = "a\n\u{e4}b\nc";
        assert_eq!(line_column(source, 0), (1, 1));
        assert_eq!(line_column(source, 4), (2, 2));
        assert_eq!(line_column(source, 3), (2, 1));
        assert_eq!(line_column(source, 99), (3, 2));
        let frame = code_frame(source, 2, 2).unwrap();
        assert_eq!(frame, "     1 | a\n>    2 | \u{e4}b\n       |  ^\n     3 | c\n");
        assert_eq!(code_frame(source, 9, 1), None);
    }
}
