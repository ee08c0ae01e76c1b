//! Edits of a source, applied together, and the way back from the edited text to the source.

use oxc::span::Span;

/// A part of a replacement.
pub(super) enum Piece {
    /// New text.
    Text(String),
    /// Text of the source, possibly from elsewhere.
    Source(Span),
}

impl From<&str> for Piece {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Span> for Piece {
    fn from(span: Span) -> Self {
        Self::Source(span)
    }
}

/// Edits of a source, applied together.
pub(super) struct Edits<'a> {
    pub(super) source: &'a str,
    /// Byte ranges and their replacements.
    made: Vec<(usize, usize, Vec<Piece>)>,
}

impl<'a> Edits<'a> {
    pub(super) const fn of(source: &'a str) -> Self {
        Self { source, made: Vec::new() }
    }

    pub(super) fn text(&self, span: Span) -> &'a str {
        self.source.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    pub(super) fn replace(&mut self, span: Span, by: Vec<Piece>) {
        self.made.push((span.start as usize, span.end as usize, by));
    }

    /// Blanks out text, so that what follows keeps its line and column.
    pub(super) fn blank(&mut self, span: Option<Span>) {
        let Some(span) = span else { return };
        let kept = |c: char| if c == '\n' { '\n' } else { ' ' };
        let text = self.text(span).chars().map(kept).collect();
        self.replace(span, vec![Piece::Text(text)]);
    }

    pub(super) fn wrap(&mut self, span: Span, before: &str, after: &str) {
        let (start, end) = (span.start as usize, span.end as usize);
        self.made.push((start, start, vec![before.into()]));
        self.made.push((end, end, vec![after.into()]));
    }

    /// The edited text, after `head`.
    pub(super) fn done(mut self, head: Vec<Piece>) -> Edited {
        self.made.sort_by_key(|(start, _, _)| *start);
        let mut edited = Edited::default();
        head.into_iter().for_each(|piece| edited.add(self.source, piece));
        let mut at = 0;
        let kept = |from: usize, to: usize| Piece::Source(Span::new(from as u32, to as u32));
        for (start, end, by) in self.made {
            edited.add(self.source, kept(at, start));
            by.into_iter().for_each(|piece| edited.add(self.source, piece));
            at = end;
        }
        edited.add(self.source, kept(at, self.source.len()));
        edited
    }
}

/// An edited text.
#[derive(Default)]
pub(super) struct Edited {
    pub(super) text: String,
    /// Where text of the source begins in it, how long that is, and where it is in the source; in
    /// order, in bytes.
    runs: Vec<(usize, usize, usize)>,
}

impl Edited {
    pub(super) fn add(&mut self, source: &str, piece: Piece) {
        match piece {
            Piece::Text(text) => self.text += &text,
            Piece::Source(span) => {
                let (from, to) = (span.start as usize, span.end as usize);
                let text = source.get(from..to).unwrap_or_default();
                if !text.is_empty() {
                    self.runs.push((self.text.len(), text.len(), from));
                    self.text += text;
                }
            }
        }
    }

    /// The byte of the source that a byte of the edited text was, if it was one.
    pub(super) fn origin(&self, at: usize) -> Option<usize> {
        let after = self.runs.partition_point(|(begin, _, _)| *begin <= at);
        let (begin, len, from) = self.runs.get(after.checked_sub(1)?)?;
        (at < begin + len).then(|| from + at - begin)
    }
}

/// Lines and columns of a text as source maps count them: from 0, in UTF-16.
pub(super) struct Places {
    /// The byte where each unit begins.
    units: Vec<usize>,
    /// The unit with which each line begins.
    lines: Vec<usize>,
}

impl Places {
    pub(super) fn of(text: &str) -> Self {
        let (mut units, mut lines) = (Vec::with_capacity(text.len() + 1), vec![0]);
        for (at, c) in text.char_indices() {
            units.extend(std::iter::repeat_n(at, c.len_utf16()));
            if c == '\n' {
                lines.push(units.len());
            }
        }
        units.push(text.len());
        Self { units, lines }
    }

    /// The byte at a line and column.
    pub(super) fn byte(&self, (line, column): (u32, u32)) -> Option<usize> {
        let begin = self.lines.get(line as usize)?;
        self.units.get(begin + column as usize).copied()
    }

    /// The line and column of a byte.
    pub(super) fn place(&self, byte: usize) -> (u32, u32) {
        let unit = self.units.partition_point(|at| *at < byte);
        let line = self.lines.partition_point(|begin| *begin <= unit).saturating_sub(1);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        (count(line), count(unit - self.lines[line]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edited_text_leads_back() {
        let source = "let \u{1f600} = 1;\nf(2)";
        let mut edits = Edits::of(source);
        let name = Span::new(4, 8);
        edits.replace(Span::new(0, 13), vec!["(".into(), Piece::Source(name), " = 1);".into()]);
        edits.wrap(Span::new(14, 18), "return (", ")");
        let edited = edits.done(vec!["head ".into(), Piece::Source(Span::new(16, 17))]);
        assert_eq!(edited.text, "head 2(\u{1f600} = 1);\nreturn (f(2))");
        let origins = ["head", "2", "\u{1f600}", " = 1", "return", "f(2)"];
        let origins = origins.map(|text| edited.origin(edited.text.find(text).unwrap()));
        assert_eq!(origins, [None, Some(16), Some(4), None, None, Some(14)]);
        let places = Places::of(source);
        for (byte, place) in [(0, (0, 0)), (4, (0, 4)), (8, (0, 6)), (14, (1, 0)), (18, (1, 4))] {
            assert_eq!((places.place(byte), places.byte(place)), (place, Some(byte)));
        }
        assert_eq!(places.byte((2, 0)), None);
    }
}
