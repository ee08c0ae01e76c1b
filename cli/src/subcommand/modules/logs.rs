//! `modules logs`: a module's log lines and the errors that ended it, with new ones as they arrive.

use serde_json::{Value, json};
use xs_engine::{Frame, ReadOptions, Start, Topic, TopicPatterns};
use xs_protocol::{SubEvent, SubscribeOptions};
use xs_runtime::host::lifecycle::{Event, parse_topic};

use super::Asked;
use super::survey::{self, meta, summary};
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, Paint, reader_gone};

pub(super) async fn run(
    asked: Asked<'_>,
    name: &Topic,
    count: u64,
    follow: bool,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let (key, _) = survey::one(asked.client, asked.served, name).await?;
    let events = [Event::Log, Event::Invalid, Event::FinError, Event::Retrying];
    let topics = events.map(|event| key.name.event_topic(key.kind, event).to_string());
    let options = ReadOptions {
        topics: TopicPatterns::parse(&topics.join(","))?,
        start: Start::Last(count),
        follow,
        ..ReadOptions::default()
    };
    if !follow {
        let mut frames = asked.client.fetch(&options);
        while let Some(frame) = frames.next().await {
            line(&frame.map_err(explain)?, out)?;
        }
        return Ok(Exit::Ok);
    }
    let subscribed = asked.client.subscribe(&options, SubscribeOptions::default()).await;
    let mut subscription = subscribed.map_err(explain)?;
    let gone = reader_gone();
    tokio::pin!(gone);
    loop {
        let event = tokio::select! {
            event = subscription.next() => event,
            () = &mut gone => return Ok(Exit::Ok),
        };
        let Some(event) = event else { return Ok(Exit::Ok) };
        match event.map_err(explain)? {
            SubEvent::Frames { frames, .. } => {
                for delivered in frames {
                    line(&delivered.frame, out)?;
                }
                out.flush()?;
            }
            SubEvent::Dropped { refusal, .. } => {
                return ExitError::fail(Exit::Unreachable, refusal.message);
            }
            SubEvent::Gap(_) | SubEvent::CaughtUp { .. } | SubEvent::Pulse => {}
        }
    }
}

/// One line: the frame for a program; time, level and text for a person.
fn line(frame: &Frame, out: &mut Output) -> std::io::Result<()> {
    let event = parse_topic(frame.topic()).map(|(_, event)| event);
    let facts = meta(frame);
    if event == Some(Event::Retrying) && facts["message"].is_null() {
        // A generator may end without an error.
        return Ok(());
    }
    if !out.is_person() {
        return out.frame(frame, None);
    }
    let what = match event {
        Some(Event::Invalid) => "the version is invalid",
        Some(Event::FinError) => "it ended with an error",
        Some(Event::Retrying) => "it failed and will be retried",
        _ => "",
    };
    let text = match what {
        "" => said(&facts, out),
        what => said(
            &json!({ "level": "error", "message": format!("{what}: {}", summary(frame)) }),
            out,
        ),
    };
    let time = out.time(frame.id().time_ms());
    out.line(&format!("{}  {text}", out.paint(Paint::Faint, &time)))
}

/// The text of a log frame: level, message, fields.
pub(crate) fn said(meta: &Value, out: &Output) -> String {
    let level = meta["level"].as_str().unwrap_or("info");
    let message = meta["message"].as_str().unwrap_or_default();
    let fields = match &meta["fields"] {
        Value::Null => String::new(),
        fields => format!(" {fields}"),
    };
    let paint = if matches!(level, "error" | "warn") { Paint::Bad } else { Paint::Name };
    format!("{} {message}{fields}", out.paint(paint, &format!("{level:<5}")))
}
