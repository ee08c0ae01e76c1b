//! `--format`: a line of text with fields of a frame in it, as `{time} {topic:<20} {meta.value}`.
//! It knows frames and text; where the line goes is the printer's business.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Chars;

use serde_json::Value;
use xs_engine::Frame;

use crate::json;

/// Bytes of a template.
const BYTES_MAX: usize = 4096;
/// Columns a field is padded or cut to.
const COLUMNS_MAX: usize = 1000;
/// What there is.
const FIELDS: &str = "time, topic, id, offset, hash, ttl, meta, meta.KEY, body, processor, input";

/// A template that can be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field, Fit),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Time,
    Topic,
    Id,
    Offset,
    Hash,
    Ttl,
    Body,
    Meta,
    /// A value within meta: the keys, or positions in lists, that lead there.
    Within(Vec<String>),
    /// The processor that made the frame.
    Processor,
    /// What the processor was given.
    Input,
}

/// How wide a field is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Fit {
    side: Side,
    least: usize,
    most: Option<usize>,
}

/// Where a field stands in its columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Side {
    #[default]
    Left,
    Middle,
    Right,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A sentence with the column of what is wrong, counted from 1.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("a template has at most {BYTES_MAX} bytes"));
        }
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = text.chars().peekable();
        let column = |rest: &Peekable<Chars<'_>>| text.chars().count() - rest.clone().count();
        while let Some(c) = rest.next() {
            let at = column(&rest);
            match c {
                '{' | '}' if rest.peek() == Some(&c) => plain.extend(rest.next()),
                '}' => return Err(format!("column {at}: write }}}} for a literal brace")),
                '{' => {
                    let inside: String = rest.clone().take_while(|c| *c != '}').collect();
                    if rest.nth(inside.chars().count()).is_none() {
                        return Err(format!(
                            "column {at}: this brace is not closed; write {{{{ for a literal one"
                        ));
                    }
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    let (field, fit) =
                        field(&inside).map_err(|error| format!("column {at}: {error}"))?;
                    parts.push(Part::Field(field, fit));
                }
                other => plain.push(other),
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// Whether it takes the bodies of frames.
    pub(crate) fn wants_body(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Field(Field::Body, _)))
    }

    /// The line of a frame. Each value passes through `clean`.
    pub(crate) fn fill(
        &self,
        frame: &Frame,
        body: Option<&[u8]>,
        time: &str,
        clean: impl Fn(&str) -> String,
    ) -> String {
        let mut parsed = None;
        let mut line = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => line += text,
                Part::Field(field, fit) => {
                    let value = value(field, frame, body, time, &mut parsed);
                    fit.put(&clean(&value), &mut line);
                }
            }
        }
        line
    }
}

/// The value of a field, as text. What is not there is empty. Meta is parsed once for a frame.
fn value(
    field: &Field,
    frame: &Frame,
    body: Option<&[u8]>,
    time: &str,
    meta: &mut Option<Value>,
) -> String {
    let origin = frame.origin();
    match field {
        Field::Time => time.to_owned(),
        Field::Topic => frame.topic().to_owned(),
        Field::Id => frame.id().to_string(),
        Field::Offset => frame.offset().map(|offset| offset.to_string()).unwrap_or_default(),
        Field::Hash => frame.hash().map(|hash| hash.to_string()).unwrap_or_default(),
        Field::Ttl => frame.ttl().to_string(),
        Field::Body => {
            let text = String::from_utf8_lossy(body.unwrap_or_default());
            // The line has an end of its own.
            text.strip_suffix('\n').unwrap_or(&text).to_owned()
        }
        Field::Meta if frame.meta().is_empty() => String::new(),
        Field::Meta => json::meta(frame),
        Field::Within(path) => {
            let meta = meta
                .get_or_insert_with(|| serde_json::from_slice(frame.meta()).unwrap_or(Value::Null));
            path.iter().try_fold(&*meta, step).map(plain).unwrap_or_default()
        }
        Field::Processor => origin.map(|origin| origin.processor.to_string()).unwrap_or_default(),
        Field::Input => {
            origin.and_then(|origin| origin.input).map(|id| id.to_string()).unwrap_or_default()
        }
    }
}

fn step<'a>(at: &'a Value, key: &String) -> Option<&'a Value> {
    match at {
        Value::Array(values) => values.get(key.parse::<usize>().ok()?),
        other => other.get(key),
    }
}

/// Text without its quotes, everything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Fit {
    fn put(self, text: &str, line: &mut String) {
        let most = self.most.unwrap_or(usize::MAX);
        let cut = text.char_indices().nth(most).map_or(text, |(at, _)| &text[..at]);
        let least = self.least;
        // Writing into a String does not fail.
        let _ = match self.side {
            Side::Left => write!(line, "{cut:<least$}"),
            Side::Middle => write!(line, "{cut:^least$}"),
            Side::Right => write!(line, "{cut:>least$}"),
        };
    }
}

/// What stands between two braces: a name and, after a colon, how wide.
fn field(text: &str) -> Result<(Field, Fit), String> {
    let (name, fit) = match text.split_once(':') {
        Some((name, spec)) => (name, self::fit(spec)?),
        None => (text, Fit::default()),
    };
    let field = match name.trim() {
        "time" => Field::Time,
        "topic" => Field::Topic,
        "id" => Field::Id,
        "offset" => Field::Offset,
        "hash" => Field::Hash,
        "ttl" => Field::Ttl,
        "body" => Field::Body,
        "meta" => Field::Meta,
        "processor" => Field::Processor,
        "input" => Field::Input,
        other => match other.strip_prefix("meta.").map(|path| path.split('.')) {
            Some(path) if path.clone().all(|key| !key.is_empty()) => {
                Field::Within(path.map(str::to_owned).collect())
            }
            _ => return Err(format!("unknown field {other:?}; the fields are {FIELDS}")),
        },
    };
    Ok((field, fit))
}

/// `<20`, `>8`, `^10`, `.40` or `<20.20`: the side, the least and the most columns.
fn fit(spec: &str) -> Result<Fit, String> {
    let wrong = || {
        format!(
            "invalid width {spec:?}: <20 pads right, >20 left, ^20 on both sides, .20 truncates"
        )
    };
    let (side, rest) = match spec.split_at_checked(1) {
        Some(("<", rest)) => (Side::Left, rest),
        Some((">", rest)) => (Side::Right, rest),
        Some(("^", rest)) => (Side::Middle, rest),
        _ => (Side::Left, spec),
    };
    let columns = |text: &str| match text.parse::<usize>() {
        Ok(columns) if columns <= COLUMNS_MAX => Ok(columns),
        Ok(_) => Err(format!("{text} columns exceed the limit of {COLUMNS_MAX}")),
        Err(_) => Err(wrong()),
    };
    match rest.split_once('.') {
        Some(("", most)) => Ok(Fit { side, least: 0, most: Some(columns(most)?) }),
        Some((least, most)) => Ok(Fit { side, least: columns(least)?, most: Some(columns(most)?) }),
        None => Ok(Fit { side, least: columns(rest)?, most: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xs_engine::{FrameId, Meta, NewFrame, Topic};

    fn filled(template: &str) -> String {
        let meta = Meta::parse(r#"{"v":1.50,"s":"a b","list":[1,{"x":true}],"n":null}"#).unwrap();
        let new = NewFrame { meta, ..NewFrame::new(Topic::parse("a.b").unwrap()) };
        let frame = Frame::assemble(&new, FrameId::ZERO, Some(7), None).unwrap();
        let template = Template::parse(template).unwrap();
        template.fill(&frame, Some(b"body\n"), "12:00", str::to_owned)
    }

    #[test]
    fn fields_are_filled_in() {
        for (template, line) in [
            ("", ""),
            ("{time} {topic} {offset} {ttl}", "12:00 a.b 7 forever"),
            ("[{topic:<6}] [{topic:>6}] [{topic:^7}]", "[a.b   ] [   a.b] [  a.b  ]"),
            ("{topic:6}|{id:.4}|{id:>6.4}|", "a.b   |0000|  0000|"),
            ("{{{topic}}} }}{{", "{a.b} }{"),
            (
                "{meta.s}, {meta.v}, {meta.list.1.x}, {meta.list}",
                "a b, 1.5, true, [1,{\"x\":true}]",
            ),
            ("<{meta.n}{meta.none}{meta.s.x}{meta.list.9}{hash}{processor}{input}>", "<>"),
            ("{body}.", "body."),
            ("{meta}", r#"{"v":1.50,"s":"a b","list":[1,{"x":true}],"n":null}"#),
        ] {
            assert_eq!(filled(template), line, "{template}");
        }
        assert!(Template::parse("{body}").unwrap().wants_body());
        assert!(!Template::parse("{{body}}").unwrap().wants_body());
    }

    #[test]
    fn what_is_wrong_has_its_column() {
        let long = "x".repeat(BYTES_MAX + 1);
        for (template, said) in [
            ("{topic} {colour}", "column 9: unknown field \"colour\""),
            ("{topic", "column 1: this brace is not closed"),
            ("a {", "column 3: this brace is not closed"),
            ("a } b", "column 3: write }}"),
            ("\u{e4}{topic:wide}", "column 2: invalid width \"wide\""),
            ("{topic:}", "invalid width"),
            ("{topic:<}", "invalid width"),
            ("{topic:<1001}", "exceed the limit"),
            ("{meta.}", "unknown field"),
            ("{meta.a..b}", "unknown field"),
            ("{}", "unknown field"),
            (&long, "at most"),
        ] {
            let error = Template::parse(template).unwrap_err();
            assert!(error.contains(said), "{template}: {error}");
        }
    }
}
