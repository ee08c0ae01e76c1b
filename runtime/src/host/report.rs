//! The lifecycle frames a Host appends: what happened to which version, and why. The facts are in
//! the meta, cut to its size limit whatever a module throws.

use serde_json::{Map, Value, json};
use xs_engine::{FrameId, Meta, NewFrame, Origin, Ttl};

use super::lifecycle::{Event, Key};
use crate::isolate::{ArgSpec, Definition, LogLevel, ModuleError};
use crate::name::Kind;

/// The tracing target of lines in the process's log that the store's log also reports.
pub const TOLD: &str = "xs::told";
/// Maximum bytes of a message or a code frame in a report.
const TEXT_BYTES_MAX: usize = 4 * 1024;
/// Maximum bytes of a stack in a report.
const STACK_BYTES_MAX: usize = 16 * 1024;
/// Maximum bytes of the fields of a log line.
const FIELDS_BYTES_MAX: usize = 16 * 1024;
/// Log lines kept per processor.
const LOG_LINES_KEPT: u64 = 1_000;

/// A frame `xs.<kind>.<name>.<event>` about the version `create`, with `more` in its meta.
#[must_use]
pub(super) fn frame(
    key: &Key,
    event: Event,
    create: FrameId,
    more: Map<String, Value>,
) -> NewFrame {
    let mut meta = Map::from_iter([("create".to_owned(), json!(create.to_string()))]);
    meta.extend(more);
    let mut frame = NewFrame::new(key.name.event_topic(key.kind, event));
    frame.meta = meta_of(meta);
    frame.origin = Some(Origin { processor: create, input: None, input_offset: None, hops: 1 });
    if event == Event::Retrying {
        frame.ttl = last(1);
    }
    frame
}

/// A frame about a failure. `input` is the frame that was being handled.
#[must_use]
pub(super) fn failure(
    key: &Key,
    event: Event,
    create: FrameId,
    error: &ModuleError,
    input: Option<FrameId>,
) -> NewFrame {
    let mut more = error_fields(error);
    if let Some(input) = input {
        more.insert("frame".to_owned(), json!(input.to_string()));
    }
    frame(key, event, create, more)
}

/// A frame about a version that cannot run. If nothing runs as a result, `down` is the newest
/// version that was tried.
#[must_use]
pub(super) fn invalid(
    key: &Key,
    create: FrameId,
    error: &ModuleError,
    down: Option<FrameId>,
) -> NewFrame {
    let mut more = error_fields(error);
    if let Some(newest) = down {
        more.insert("down".to_owned(), json!(newest.to_string()));
    }
    frame(key, Event::Invalid, create, more)
}

/// The facts about an error, as fields of a meta.
#[must_use]
pub(super) fn error_fields(error: &ModuleError) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("code".to_owned(), json!(error.kind.as_str()));
    fields.insert("message".to_owned(), json!(cut(&error.message, TEXT_BYTES_MAX)));
    let texts = [
        ("stack", &error.stack, STACK_BYTES_MAX),
        ("file", &error.file, TEXT_BYTES_MAX),
        ("code_frame", &error.code_frame, TEXT_BYTES_MAX),
    ];
    for (name, text, max) in texts {
        if let Some(text) = text {
            fields.insert(name.to_owned(), json!(cut(text, max)));
        }
    }
    for (name, number) in [("line", error.line), ("column", error.column)] {
        if let Some(number) = number {
            fields.insert(name.to_owned(), json!(number));
        }
    }
    fields
}

impl ModuleError {
    /// The facts about the error, as in lifecycle frames.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(error_fields(self))
    }
}

/// The `active` frame: a version runs, with the parts of its definition that matter to operators
/// and callers. `config`: the operator's part of its configuration.
pub(super) fn active(
    key: &Key,
    create: FrameId,
    definition: &Definition,
    config: &Value,
    confined: &[(&'static str, String)],
    calls_ttl: Ttl,
) -> NewFrame {
    let mut facts = facts(definition, config, confined);
    if key.kind == Kind::Command {
        facts.extend(terms(definition));
        // Clients that append calls read it here.
        if calls_ttl != Ttl::Forever {
            facts.insert("calls_ttl".to_owned(), json!(calls_ttl.to_string()));
        }
    }
    frame(key, Event::Active, create, facts)
}

/// The parts of a definition that matter to an operator, as fields of a meta.
fn facts(
    definition: &Definition,
    config: &Value,
    confined: &[(&'static str, String)],
) -> Map<String, Value> {
    let mut facts = Map::new();
    if !confined.is_empty() {
        let measures = confined.iter().map(|(what, how)| ((*what).to_owned(), json!(how)));
        facts.insert("process".to_owned(), Value::Object(measures.collect()));
    }
    if let Some(about) = &definition.about {
        facts.insert("about".to_owned(), json!(cut(about, 1024)));
    }
    if let Some(topics) = &definition.topics {
        let patterns: Vec<_> = topics.as_slice().iter().map(ToString::to_string).collect();
        facts.insert("topics".to_owned(), json!(patterns));
    }
    let config = definition.config_with(config);
    let is_set = !config.is_null() && config.as_object().is_none_or(|fields| !fields.is_empty());
    if is_set && config.to_string().len() <= TEXT_BYTES_MAX {
        facts.insert("config".to_owned(), config);
    }
    let asked = &definition.permissions;
    let asked =
        [("net", &asked.net), ("read", &asked.read), ("run", &asked.run), ("env", &asked.env)];
    let mut asked: Map<_, _> = asked
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| (what.to_owned(), json!(names)))
        .collect();
    if let Some(topics) = &definition.permissions.remove {
        let patterns: Vec<_> = topics.as_slice().iter().map(ToString::to_string).collect();
        asked.insert("remove".to_owned(), json!(patterns));
    }
    if !asked.is_empty() {
        facts.insert("permissions".to_owned(), Value::Object(asked));
    }
    facts
}

/// The parts of a definition that a command's caller has to know.
fn terms(definition: &Definition) -> Map<String, Value> {
    let mut terms = Map::new();
    if let Some(args) = &definition.args {
        let spec = |arg: &ArgSpec| {
            let optional = if arg.optional { "?" } else { "" };
            (arg.name.clone(), json!(format!("{}{optional}", arg.kind.as_str())))
        };
        terms.insert("args".to_owned(), Value::Object(args.iter().map(spec).collect()));
    }
    let timeout_ms = u64::try_from(definition.timeout.as_millis()).unwrap_or(u64::MAX);
    terms.insert("timeout_ms".to_owned(), json!(timeout_ms));
    terms.insert("concurrency".to_owned(), json!(definition.concurrency));
    terms
}

/// One line of a processor's log. `fields` is the text of a JSON object.
#[must_use]
pub(super) fn log(
    key: &Key,
    create: FrameId,
    level: LogLevel,
    message: &str,
    fields: Option<&str>,
) -> NewFrame {
    let mut more = Map::new();
    more.insert("level".to_owned(), json!(level.as_str()));
    more.insert("message".to_owned(), json!(cut(message, STACK_BYTES_MAX)));
    let fields = fields.filter(|text| text.len() <= FIELDS_BYTES_MAX);
    if let Some(fields) = fields.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        more.insert("fields".to_owned(), fields);
    }
    let mut frame = frame(key, Event::Log, create, more);
    frame.ttl = last(LOG_LINES_KEPT);
    frame
}

/// The meta of these fields. A module's values may be nested too deeply for a meta, or grow too
/// large when escaped; then only the short fields remain.
#[must_use]
pub(super) fn meta_of(fields: Map<String, Value>) -> Meta {
    Meta::parse(Value::Object(fields.clone()).to_string()).unwrap_or_else(|_| {
        let short = fields.into_iter().filter_map(|(name, value)| match value {
            Value::String(text) => Some((name, json!(cut(&text, 1024)))),
            Value::Number(_) | Value::Bool(_) => Some((name, value)),
            _ => None,
        });
        let short = Value::Object(short.collect()).to_string();
        Meta::parse(short).unwrap_or_default()
    })
}

/// Keeps the newest `n` frames of a topic.
pub(super) fn last(n: u64) -> Ttl {
    std::num::NonZeroU64::new(n).map_or(Ttl::Forever, Ttl::Last)
}

/// The first `max` bytes of `text`, with a mark if it was cut.
fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(max)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolate::FailureKind;
    use crate::name::{Kind, ProcessorName};

    fn key() -> Key {
        Key { kind: Kind::Handler, name: ProcessorName::parse("a.b").unwrap() }
    }

    fn meta(frame: &NewFrame) -> Value {
        serde_json::from_slice(frame.meta.as_bytes()).unwrap()
    }

    #[test]
    fn a_failure_says_where() {
        let create = FrameId::first_of_ms(1);
        let error = ModuleError::new(FailureKind::Throw, "Error: no").at("handlers/a/b.ts", 3, 7);
        let frame = failure(&key(), Event::FinError, create, &error, Some(FrameId::ZERO));
        assert_eq!(frame.topic.as_str(), "xs.handler.a.b.fin.error");
        assert_eq!(
            meta(&frame),
            json!({ "create": create.to_string(), "code": "throw", "message": "Error: no",
                "file": "handlers/a/b.ts", "line": 3, "column": 7,
                "frame": FrameId::ZERO.to_string() })
        );
        assert_eq!(frame.origin.unwrap().processor, create);
    }

    #[test]
    fn whatever_is_thrown_fits_a_meta() {
        let mut error = ModuleError::new(FailureKind::Throw, "\u{1}\u{e4}".repeat(100_000));
        error.stack = Some("\u{1}".repeat(1_000_000));
        error.code_frame = Some("\u{2}".repeat(1_000_000));
        let frame = failure(&key(), Event::Invalid, FrameId::ZERO, &error, None);
        assert_eq!(meta(&frame)["code"], "throw");
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        let line = log(&key(), FrameId::ZERO, LogLevel::Info, "deep", Some(&deep));
        assert_eq!(meta(&line)["message"], "deep");
        assert_eq!(line.ttl.to_string(), "last:1000");
    }
}
