//! `modules list` and `modules show`: what the lifecycle frames in the log say of each module. The
//! log is the only source, so both work without a server too.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use xs_engine::{CursorName, Frame, Topic, TopicPatterns};
use xs_protocol::{Client, LastRequest};
use xs_runtime::host::lifecycle::{Event, Key, Lifecycle, parse_topic};

use crate::connect::explain;
use crate::exit::{Exit, Fault};
use crate::output::{Output, Paint};

/// Where the frames about modules are.
const LIFECYCLE: &str = "xs.generator.*,xs.handler.*,xs.command.*";

/// One module, from the newest frame of each of its events.
struct Module {
    /// The event that tells how it is, and its frame.
    latest: (Event, Frame),
    /// The newest frame that says what went wrong.
    error: Option<Frame>,
    /// The file its present version was taken from.
    file: Option<String>,
    /// Whether an older version runs although the newest could not.
    fallen_back: bool,
}

pub(super) async fn list(client: &Client, out: &mut Output) -> anyhow::Result<Exit> {
    let modules = all(client).await?;
    let row = |(key, module): (&Key, &Module)| {
        vec![
            json!(key.kind.as_str()),
            json!(key.name.as_str()),
            json!(module.state()),
            json!(out.time(module.latest.1.id().time_ms())),
            json!(module.file),
            json!(module.error.as_ref().map(summary)),
        ]
    };
    let rows: Vec<_> = modules.iter().map(row).collect();
    out.table(&["kind", "name", "state", "since", "file", "error"], &rows)?;
    Ok(Exit::Ok)
}

pub(super) async fn show(client: &Client, name: &Topic, out: &mut Output) -> anyhow::Result<Exit> {
    let modules = all(client).await?;
    let found: Vec<_> =
        modules.iter().filter(|(key, _)| key.name.as_str() == name.as_str()).collect();
    if found.is_empty() {
        let text = format!("no module {name}; xs modules list names those there are");
        return Fault::fail(Exit::NotFound, text);
    }
    for (key, module) in found {
        let mut facts = Map::new();
        facts.insert("name".to_owned(), json!(key.name.as_str()));
        facts.insert("kind".to_owned(), json!(key.kind.as_str()));
        facts.insert("state".to_owned(), json!(module.state()));
        facts.insert("since".to_owned(), json!(out.time(module.latest.1.id().time_ms())));
        facts.insert("file".to_owned(), json!(module.file));
        facts.insert("position".to_owned(), position(client, key).await?);
        facts.insert("error".to_owned(), module.error.as_ref().map_or(Value::Null, meta));
        print(&facts, out)?;
    }
    Ok(Exit::Ok)
}

/// The offset of the frame it handles next, for the kinds that keep one.
async fn position(client: &Client, key: &Key) -> anyhow::Result<Value> {
    let name = CursorName::parse(&format!("{}:{}", key.kind, key.name))?;
    let cursor = client.cursor_get(&name).await.map_err(explain)?;
    Ok(cursor.map_or(Value::Null, |cursor| json!(cursor.offset)))
}

fn print(facts: &Map<String, Value>, out: &mut Output) -> std::io::Result<()> {
    if !out.is_person() {
        return out.line(&Value::Object(facts.clone()).to_string());
    }
    for (name, value) in facts {
        let text = match value {
            Value::Null => continue,
            Value::Object(_) => out.paint(Paint::Bad, &describe(value)),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let label = out.paint(Paint::Faint, &format!("{name:<8}"));
        out.line(&format!("{label} {text}"))?;
    }
    Ok(())
}

/// Every module that the log knows.
async fn all(client: &Client) -> anyhow::Result<BTreeMap<Key, Module>> {
    let request = LastRequest { topics: TopicPatterns::parse(LIFECYCLE)?, n: 1, per_topic: true };
    let frames = client.last(&request).await.map_err(explain)?;
    let mut lifecycle = Lifecycle::default();
    let mut modules: BTreeMap<Key, Module> = BTreeMap::new();
    for frame in frames {
        lifecycle.apply(&frame);
        let Some((key, event)) = parse_topic(frame.topic()) else { continue };
        if matches!(event, Event::Log | Event::Parked) {
            continue;
        }
        let error = matches!(event, Event::Invalid | Event::FinError | Event::Retrying);
        let module = modules.entry(key).or_insert_with(|| Module {
            latest: (event, frame.clone()),
            error: None,
            file: None,
            fallen_back: false,
        });
        if event == Event::Active {
            module.error = None;
        }
        if error {
            module.error = Some(frame.clone());
        }
        module.latest = (event, frame);
    }
    for (key, module) in &mut modules {
        let slots = lifecycle.get(key);
        module.file = slots.and_then(|slots| slots.taken()).map(|taken| taken.file.clone());
        module.fallen_back = module.latest.0 == Event::Invalid
            && slots.is_some_and(|slots| slots.confirmed().is_some());
    }
    Ok(modules)
}

impl Module {
    fn state(&self) -> &'static str {
        match self.latest.0 {
            Event::Create | Event::Replaced => "starting",
            Event::Active => "active",
            Event::Retrying => "retrying",
            Event::Invalid if self.fallen_back => "active, newest invalid",
            Event::Invalid => "invalid",
            Event::FinOk => "ended",
            Event::FinError => "failed",
            Event::Term | Event::FinTerm => "stopped",
            _ => "waiting for a server",
        }
    }
}

fn meta(frame: &Frame) -> Value {
    serde_json::from_slice(frame.meta()).unwrap_or_default()
}

/// The first line of what went wrong, and where.
fn summary(frame: &Frame) -> String {
    let meta = meta(frame);
    let message = meta["message"].as_str().unwrap_or("no message");
    let place = place(&meta).map(|place| format!(" ({place})")).unwrap_or_default();
    format!("{}{place}", message.lines().next().unwrap_or_default())
}

/// Everything about what went wrong, with the stack.
fn describe(error: &Value) -> String {
    let message = error["message"].as_str().unwrap_or("no message");
    let code = error["code"].as_str().map(|code| format!("{code}: ")).unwrap_or_default();
    let place = place(error).map(|place| format!("\n  at {place}")).unwrap_or_default();
    let more = ["code_frame", "stack"].iter().filter_map(|key| error[*key].as_str());
    let more: String = more.map(|text| format!("\n{text}")).collect();
    format!("{code}{message}{place}{more}")
}

/// `file:line:column`, as far as it is known.
pub(super) fn place(error: &Value) -> Option<String> {
    let mut place = error["file"].as_str()?.to_owned();
    for number in ["line", "column"].iter().filter_map(|key| error[*key].as_u64()) {
        place += &format!(":{number}");
    }
    Some(place)
}
