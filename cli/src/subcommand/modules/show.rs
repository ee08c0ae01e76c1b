//! `modules show` and `modules state`: everything about one module.

use std::time::Duration;

use serde_json::{Value, json};
use xs_engine::{Bound, Cursor, ReadOptions, Start, Topic};
use xs_protocol::Client;
use xs_runtime::Kind;
use xs_runtime::host::files::CONFIG_FILE;
use xs_runtime::host::replay::state_at;
use xs_runtime::host::{HandlerCursor, Retry};

use super::survey::{self, Facts, Module, ModuleState, describe, meta};
use super::{Asked, STILL, parked};
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, Paint};
use crate::subcommand::frames;
use crate::variables;

/// Frames counted to measure a handler's lag; beyond it the count is shown as "or more".
const LAG_MAX: u64 = 10_000;

pub(super) async fn show(asked: Asked<'_>, name: &Topic, out: &mut Output) -> anyhow::Result<Exit> {
    let (key, module) = survey::one(asked.client, asked.served, name).await?;
    let cursor = match key.kind {
        Kind::Handler | Kind::Command => survey::cursor(asked.client, &key).await?,
        Kind::Generator => None,
    };
    let active = module.active.as_ref().map(meta).unwrap_or_default();
    let create = module.create.as_ref().map(meta).unwrap_or_default();
    let mut facts = Facts::default();
    facts.add("name", key.name.as_str());
    facts.add("kind", key.kind.as_str());
    facts.add("about", active["about"].clone());
    facts.add("state", module.state().as_str());
    facts.add("since", out.time(module.latest.1.id().time_ms()));
    facts.add("file", json!(module.file));
    facts.add("topics", active["topics"].clone());
    facts.add("position", json!(cursor.as_ref().map(|cursor| cursor.offset)));
    if key.kind == Kind::Handler {
        let offset = cursor.as_ref().map(|cursor| cursor.offset);
        let lag = lag(asked.client, &module, offset, LAG_MAX).await?;
        facts.add(
            "lag",
            match lag {
                Some(LAG_MAX) => json!(format!("{LAG_MAX} or more")),
                lag => json!(lag),
            },
        );
        facts.add("parked", parked::open(asked.client, &key).await?.len());
    }
    next_try(&module, cursor.as_ref(), &mut facts, out);
    // That in effect, if a version told it; else what the operator has set.
    let config = Some(&active["config"]).filter(|config| !config.is_null());
    facts.add("config", config.unwrap_or_else(|| &create["config"]).clone());
    facts.add("permissions", active["permissions"].clone());
    facts.add("process", active["process"].clone());
    facts.add("error", module.error.as_ref().map_or(Value::Null, meta));
    let is_hidden = module.error.is_none() || module.state() == ModuleState::OlderRetrying;
    if let Some(last) = module.last_error.as_ref().filter(|_| is_hidden) {
        let mut error = meta(last);
        error["time"] = json!(out.time(last.id().time_ms()));
        facts.add("last_error", error);
    }
    let config = survey::config_error(asked).await?;
    let mend = config.is_some().then(|| format!("fix {CONFIG_FILE}: {STILL}"));
    if let Some((_, error)) = config {
        facts.add(CONFIG_FILE, error);
    }
    facts.add("help", json!(mend.or_else(|| module.help(key.name.as_str()))));
    print(&facts, out)?;
    Ok(Exit::Ok)
}

/// The pending retry: its frame, the attempts so far, and when it is due.
fn next_try(module: &Module, cursor: Option<&Cursor>, facts: &mut Facts, out: &Output) {
    let place = cursor.and_then(|cursor| HandlerCursor::of(cursor).ok());
    if let Some(Retry { frame, attempt, due_ms, .. }) = place.and_then(|place| place.retry) {
        facts.add("retrying", frame.to_string());
        facts.add("tries", attempt);
        facts.add_time("due", Some(out.time(due_ms)));
        return;
    }
    let error = match module.state() {
        ModuleState::Retrying => &module.error,
        ModuleState::OlderRetrying => &module.last_error,
        _ => return,
    };
    let Some(frame) = error else { return };
    let meta = meta(frame);
    facts.add("tries", meta["tries"].clone());
    let wait = meta["wait_ms"].as_u64().map(Duration::from_millis);
    let due = wait.map(|wait| out.time(frame.id().time_ms() + wait.as_millis() as u64));
    facts.add_time("due", due);
}

/// Frames of a handler's topics from `offset` on, counted up to `max`; `None` for a module that
/// reads no frames.
pub(in crate::subcommand) async fn lag(
    client: &Client,
    module: &Module,
    offset: Option<u64>,
    max: u64,
) -> anyhow::Result<Option<u64>> {
    let (Some(offset), Some(topics)) = (offset, module.topics()) else { return Ok(None) };
    let options = ReadOptions {
        topics,
        start: Start::From(Bound::Offset(offset)),
        limit: Some(max),
        ..ReadOptions::default()
    };
    let (mut frames, mut count) = (client.fetch(&options), 0);
    while let Some(frame) = frames.next().await {
        frame.map_err(explain)?;
        count += 1;
    }
    Ok(Some(count))
}

pub(super) fn print(facts: &Facts, out: &mut Output) -> std::io::Result<()> {
    if !out.is_person() {
        return out.line(&Value::Object(facts.0.clone()).to_string());
    }
    for (name, value) in &facts.0 {
        let text = match value {
            Value::Null => continue,
            Value::Object(_) if name == "error" || name == CONFIG_FILE => {
                out.paint(Paint::Bad, &describe(value))
            }
            Value::Object(_) if name == "last_error" => {
                let time = value["time"].as_str().unwrap_or_default();
                format!("{time}  {}", survey::summary_of(value))
            }
            Value::String(text) => text.clone(),
            Value::Array(items) => {
                let items = items.iter().map(|item| item.as_str().unwrap_or_default());
                items.collect::<Vec<_>>().join(" ")
            }
            other => other.to_string(),
        };
        let label = out.paint(Paint::Faint, &format!("{name:<11}"));
        out.line(&format!("{label} {text}"))?;
    }
    Ok(())
}

pub(super) async fn state(
    asked: Asked<'_>,
    name: &Topic,
    at: Option<Bound>,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let (key, _) = survey::one(asked.client, asked.served, name).await?;
    if key.kind != Kind::Handler {
        return ExitError::fail(
            Exit::Usage,
            format!("{key} is not a handler; only handlers have state"),
        );
    }
    let env = variables::of_process().collect();
    let json = match at {
        Some(Bound::Id(id)) => state_at(asked.client, &key, id, &env).await?,
        Some(place) => {
            let frame = frames::existing(asked.client, place).await?;
            state_at(asked.client, &key, frame.id(), &env).await?
        }
        None => {
            let Some(cursor) = survey::cursor(asked.client, &key).await? else {
                let text = format!("{key} has not handled anything yet, so it has no state");
                return ExitError::fail(Exit::NotFound, text);
            };
            HandlerCursor::of(&cursor)?.state.map(|state| state.json)
        }
    };
    out.line(
        &json.map_or_else(|| "null".into(), |json| String::from_utf8_lossy(&json).into_owned()),
    )?;
    Ok(Exit::Ok)
}
