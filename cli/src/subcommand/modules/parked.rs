//! `modules parked`, `unpark` and `discard`: inputs that a handler set aside. A record
//! `<name>.parked` is open until a frame `unpark` or `discard` names it; the cursor
//! `handler:<name>:parked` lets two operators who are at it at once not do the same twice.

use std::collections::BTreeSet;

use serde_json::json;
use xs_engine::{
    CursorChange, CursorName, ExpectRevision, Frame, FrameId, Meta, NewFrame, ReadOptions, Start,
    Topic, TopicPattern, TopicPatterns,
};
use xs_protocol::{AppendRequest, Class, Client};
use xs_runtime::Kind;
use xs_runtime::host::lifecycle::Key;
use xs_runtime::host::{DISCARD, PARKED, UNPARK, about, processor_cursor};

use super::survey::{self, meta, summary};
use super::{Asked, say};
use crate::args::SureArgs;
use crate::connect::explain;
use crate::exit::{Exit, Fault};
use crate::output::Output;
use crate::subcommand::sure;

/// Frames of one batch.
const BATCH_FRAMES: usize = 512;
/// Attempts when somebody else is at the same handler.
const TRIES_MAX: u32 = 16;

/// The records nobody has decided about, oldest first.
pub(super) async fn open(client: &Client, key: &Key) -> anyhow::Result<Vec<Frame>> {
    let event = |event| TopicPattern::Exact(key.name.event_topic(key.kind, event));
    let topics = vec![TopicPattern::Exact(key.name.topic(PARKED)), event(UNPARK), event(DISCARD)];
    let options = ReadOptions {
        topics: TopicPatterns::new(topics)?,
        start: Start::First,
        ..ReadOptions::default()
    };
    let mut frames = client.fetch(&options);
    let (mut records, mut decided) = (Vec::new(), BTreeSet::new());
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(explain)?;
        if frame.topic().starts_with("xs.") {
            decided.extend(about(&frame, PARKED));
        } else {
            records.push(frame);
        }
    }
    records.retain(|record| !decided.contains(&record.id()));
    Ok(records)
}

async fn handler(asked: Asked<'_>, name: &Topic) -> anyhow::Result<Key> {
    let (key, _) = survey::one(asked.client, asked.served, name).await?;
    if key.kind == Kind::Handler {
        return Ok(key);
    }
    Fault::fail(Exit::Usage, format!("{key} parks nothing; only handlers do"))
}

pub(super) async fn list(asked: Asked<'_>, name: &Topic, out: &mut Output) -> anyhow::Result<Exit> {
    let key = handler(asked, name).await?;
    let records = open(asked.client, &key).await?;
    let rows = records.iter().map(|record| {
        vec![
            json!(record.id().to_string()),
            json!(out.time(record.id().time_ms())),
            meta(record)["frame"].clone(),
            json!(summary(record)),
        ]
    });
    let rows: Vec<_> = rows.collect();
    out.table(&["id", "since", "frame", "error"], &rows)?;
    Ok(Exit::Ok)
}

pub(super) async fn unpark(
    asked: Asked<'_>,
    name: &Topic,
    ids: Vec<FrameId>,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let key = handler(asked, name).await?;
    let count = decide(asked.client, &key, &ids, UNPARK).await?;
    let text = format!("{count} inputs of {key} will be handled again");
    say(out, &key, &text, &[("unparked", json!(count))])?;
    Ok(Exit::Ok)
}

pub(super) async fn discard(
    asked: Asked<'_>,
    name: &Topic,
    ids: Vec<FrameId>,
    sure: SureArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let key = handler(asked, name).await?;
    let records = chosen(open(asked.client, &key).await?, &ids)?;
    let what = format!("{} parked inputs of {key}", records.len());
    if sure.dry_run {
        let facts = [("discarded", json!(records.len())), ("dry_run", json!(true))];
        say(out, &key, &format!("would give up {what}"), &facts)?;
        return Ok(Exit::Ok);
    }
    sure::ask(&format!("give up {what}"), sure).await?;
    let count = decide(asked.client, &key, &ids, DISCARD).await?;
    let text = format!("{count} parked inputs of {key} were given up");
    say(out, &key, &text, &[("discarded", json!(count))])?;
    Ok(Exit::Ok)
}

/// The open records among those that were named; all when none was.
fn chosen(open: Vec<Frame>, ids: &[FrameId]) -> anyhow::Result<Vec<Frame>> {
    // A record can be named by its own id and by that of the input.
    let names =
        |record: &Frame, id: FrameId| record.id() == id || about(record, "frame") == Some(id);
    for id in ids {
        if !open.iter().any(|record| names(record, *id)) {
            return Fault::fail(Exit::NotFound, format!("no parked input has the id {id}"));
        }
    }
    let wanted = |record: &Frame| ids.is_empty() || ids.iter().any(|id| names(record, *id));
    Ok(open.into_iter().filter(wanted).collect())
}

/// Says what becomes of records, each once; how many there were.
async fn decide(client: &Client, key: &Key, ids: &[FrameId], what: &str) -> anyhow::Result<usize> {
    let guard = CursorName::parse(&format!("{}:{PARKED}", processor_cursor(key)))?;
    let mut decided = 0;
    for _ in 0..TRIES_MAX {
        let cursor = client.cursor_get(&guard).await.map_err(explain)?;
        let revision = cursor.map_or(0, |cursor| cursor.revision);
        let mut records = open(client, key).await?;
        if decided == 0 {
            records = chosen(records, ids)?;
        } else if !ids.is_empty() {
            break;
        }
        records.truncate(BATCH_FRAMES);
        if records.is_empty() {
            break;
        }
        let frames = records.iter().map(|record| decision(key, what, record));
        let expect = ExpectRevision::Is(revision);
        let change =
            CursorChange { name: guard.clone(), expect, set: Some((0, Vec::new().into())) };
        let frames = frames.collect::<anyhow::Result<Vec<_>>>()?;
        let batch = AppendRequest { frames, cursors: vec![change], ..AppendRequest::default() };
        match client.append(&batch).await {
            Ok(_) => decided += records.len(),
            // Somebody else has decided meanwhile: what is left is looked at again.
            Err(error) if error.class() == Class::Condition => {}
            Err(error) => return Err(explain(error)),
        }
    }
    Ok(decided)
}

fn decision(key: &Key, what: &str, record: &Frame) -> anyhow::Result<NewFrame> {
    let mut frame = NewFrame::new(key.name.event_topic(key.kind, what));
    frame.meta = Meta::parse(json!({ PARKED: record.id().to_string() }).to_string())?;
    Ok(frame)
}
