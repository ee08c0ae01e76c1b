//! `modules logs`: what a module has said, and what it goes on to say.

use serde_json::Value;
use xs_engine::{Frame, ReadOptions, Start, Topic, TopicPatterns};
use xs_protocol::{SubEvent, SubscribeOptions};
use xs_runtime::host::lifecycle::Event;

use super::Asked;
use super::survey::{self, meta};
use crate::connect::explain;
use crate::exit::Exit;
use crate::output::{Output, Paint, reader_gone};

pub(super) async fn run(
    asked: Asked<'_>,
    name: &Topic,
    count: u64,
    follow: bool,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let (key, _) = survey::one(asked.client, asked.served, name).await?;
    let topic = key.name.event_topic(key.kind, Event::Log.as_str());
    let options = ReadOptions {
        topics: TopicPatterns::from(topic),
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
        if let SubEvent::Frames { frames, .. } = event.map_err(explain)? {
            for delivered in frames {
                line(&delivered.frame, out)?;
            }
            out.flush()?;
        }
    }
}

/// One line: the frame for a program, time, level and text for a person.
fn line(frame: &Frame, out: &mut Output) -> std::io::Result<()> {
    if !out.is_person() {
        return out.frame(frame, None);
    }
    let (time, text) = (out.time(frame.id().time_ms()), said(&meta(frame), out));
    out.line(&format!("{}  {text}", out.paint(Paint::Faint, &time)))
}

/// What a log frame says: the level, the text, the fields.
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
