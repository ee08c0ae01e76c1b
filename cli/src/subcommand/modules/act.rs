//! `modules stop`, `start` and `reset`: an operator's request goes into the log as frames, and the
//! outcome is read from there.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use xs_engine::{
    Body, Bound, CursorChange, CursorName, ExpectRevision, FrameId, Meta, NewFrame, ReadOptions,
    Start, Topic, TopicPattern, TopicPatterns,
};
use xs_protocol::{AppendRequest, Client, SubEvent, SubscribeOptions};
use xs_runtime::host::lifecycle::{Event, Key, parse_topic};
use xs_runtime::host::processor_cursor;

use super::survey::{self, Module, ModuleState, meta};
use super::{Asked, say};
use crate::args::SureArgs;
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, counted};
use crate::subcommand::sure;

/// Time for a server to respond: modules have several seconds to stop.
const ANSWER_MAX: Duration = Duration::from_secs(30);

pub(super) async fn stop(asked: Asked<'_>, name: &Topic, out: &mut Output) -> anyhow::Result<Exit> {
    let (key, module) = survey::one(asked.client, asked.served, name).await?;
    if !module.wanted {
        let facts = [("event", Value::Null), ("state", json!(module.state().as_str()))];
        say(out, &key, &format!("{key} is not running"), &facts)?;
        return Ok(Exit::Ok);
    }
    let term = NewFrame::new(key.name.event_topic(key.kind, Event::Term));
    let asked_by = append(asked.client, vec![term], Vec::new()).await?;
    settle(asked, &key, asked_by, &[Event::FinTerm], out).await
}

pub(super) async fn start(
    asked: Asked<'_>,
    name: &Topic,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let (key, module) = survey::one(asked.client, asked.served, name).await?;
    let create = again(&key, &module)?;
    let asked_by = append(asked.client, vec![create], Vec::new()).await?;
    settle(asked, &key, asked_by, &[Event::Active, Event::Invalid], out).await
}

pub(super) async fn reset(
    asked: Asked<'_>,
    name: &Topic,
    sure: SureArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let (key, module) = survey::one(asked.client, asked.served, name).await?;
    let cursors = cursors_of(asked.client, &key).await?;
    let count = counted(cursors.len() as u64, "cursor");
    let what = format!("the position and state of {key} ({count})");
    if sure.dry_run {
        let facts = [("cursors", json!(cursors.len())), ("dry_run", json!(true))];
        say(out, &key, &format!("would delete {what}"), &facts)?;
        return Ok(Exit::Ok);
    }
    sure::ask(&format!("delete {what}"), sure).await?;
    let drop = |name| CursorChange { name, expect: ExpectRevision::Any, set: None };
    let cursors = cursors.into_iter().map(drop).collect();
    // A running module is restarted in the same batch, so that nothing of its state survives.
    let create = if module.wanted { vec![again(&key, &module)?] } else { Vec::new() };
    if create.is_empty() {
        append(asked.client, create, cursors).await?;
        let facts = [("event", Value::Null), ("state", json!(module.state().as_str()))];
        say(out, &key, &format!("{key} will start over when it is started"), &facts)?;
        return Ok(Exit::Ok);
    }
    let asked_by = append(asked.client, create, cursors).await?;
    settle(asked, &key, asked_by, &[Event::Active, Event::Invalid], out).await
}

/// A new `create` frame for the newest version. It names the same file, which then counts as taken.
fn again(key: &Key, module: &Module) -> anyhow::Result<NewFrame> {
    let Some(create) = &module.create else {
        return ExitError::fail(Exit::NotFound, format!("the log has no source of {key}"));
    };
    if let Some(error) = survey::refused(create) {
        let why = survey::summary_of(&error);
        let text = format!("the newest version of {key} is invalid; fix and save its file: {why}");
        return ExitError::fail(Exit::Failed, text);
    }
    let mut frame = NewFrame::new(key.name.event_topic(key.kind, Event::Create));
    frame.meta = Meta::parse(create.meta().to_vec())?;
    frame.body = create.hash().map_or(Body::None, Body::Stored);
    Ok(frame)
}

/// The cursors of a module: its own, and those of its tails and its input.
async fn cursors_of(client: &Client, key: &Key) -> anyhow::Result<BTreeSet<CursorName>> {
    let own = processor_cursor(key);
    let below = format!("{own}:");
    let all = client.cursor_list().await.map_err(explain)?.into_iter().map(|cursor| cursor.name);
    Ok(all.filter(|name| *name == own || name.as_str().starts_with(&below)).collect())
}

/// Appends a batch and returns the id of the first frame.
async fn append(
    client: &Client,
    frames: Vec<NewFrame>,
    cursors: Vec<CursorChange>,
) -> anyhow::Result<FrameId> {
    let batch = AppendRequest { frames, cursors, ..AppendRequest::default() };
    let appended = client.append(&batch).await.map_err(explain)?;
    Ok(appended.frames.first().map_or(FrameId::ZERO, |stamp| stamp.id))
}

/// Waits for the outcome of a frame and prints it. Without a server it prints that the next one
/// will act.
async fn settle(
    asked: Asked<'_>,
    key: &Key,
    asked_by: FrameId,
    outcomes: &[Event],
    out: &mut Output,
) -> anyhow::Result<Exit> {
    if !asked.served {
        let text = format!("{key}: takes effect when a server runs its modules");
        say(
            out,
            key,
            &text,
            &[("event", Value::Null), ("state", json!(ModuleState::Waiting.as_str()))],
        )?;
        return Ok(Exit::Ok);
    }
    let waited = outcome(asked.client, key, asked_by, outcomes);
    let Ok(found) = tokio::time::timeout(ANSWER_MAX, waited).await else {
        let text = format!("no server confirmed it; check with xs modules show {}", key.name);
        return ExitError::fail(Exit::TimedOut, text);
    };
    let (event, told) = found?;
    match event {
        Event::Invalid => {
            let message = survey::message(&told);
            let place = survey::place(&told).map(|place| format!(" ({place})"));
            let text = format!("{key}: {message}{}", place.unwrap_or_default());
            ExitError::fail(Exit::Failed, text)
        }
        _ => {
            let event = event.as_str();
            say(out, key, &format!("{key}: {event}"), &[("event", json!(event))])?;
            Ok(Exit::Ok)
        }
    }
}

/// The first of the outcomes after a frame.
async fn outcome(
    client: &Client,
    key: &Key,
    asked_by: FrameId,
    outcomes: &[Event],
) -> anyhow::Result<(Event, Value)> {
    let topics =
        outcomes.iter().map(|event| TopicPattern::Exact(key.name.event_topic(key.kind, *event)));
    let options = ReadOptions {
        topics: TopicPatterns::new(topics.collect())?,
        start: Start::After(Bound::Id(asked_by)),
        follow: true,
        ..ReadOptions::default()
    };
    let subscribed = client.subscribe(&options, SubscribeOptions::default()).await;
    let mut subscription = subscribed.map_err(explain)?;
    while let Some(event) = subscription.next().await {
        let SubEvent::Frames { frames, .. } = event.map_err(explain)? else { continue };
        for delivered in frames {
            let meta = meta(&delivered.frame);
            // Events about an older version meanwhile do not count.
            let about = meta["create"].as_str().map(str::to_owned);
            let Some((_, event)) = parse_topic(delivered.frame.topic()) else { continue };
            if event == Event::FinTerm || about == Some(asked_by.to_string()) {
                return Ok((event, meta));
            }
        }
    }
    ExitError::fail(Exit::Unreachable, "the server stopped")
}
