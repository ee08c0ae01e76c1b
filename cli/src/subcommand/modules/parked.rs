//! `modules parked`, `unpark` and `discard`: inputs that a handler has parked. A record
//! `<name>.parked` is open until a frame `unpark` or `discard` names it. The cursor
//! `handler:<name>:parked` keeps two concurrent operators from deciding the same record twice.

use std::collections::{BTreeSet, VecDeque};

use serde_json::json;
use xs_engine::{
    Bound, CursorChange, CursorName, CursorValue, ExpectRevision, Frame, FrameId, Meta, NewFrame,
    ReadOptions, Start, Topic, TopicPattern, TopicPatterns,
};
use xs_protocol::{AppendRequest, Class, Client};
use xs_runtime::host::lifecycle::Key;
use xs_runtime::host::{HandlerCursor, PARKED, about, processor_cursor};
use xs_runtime::{Kind, Request};

use super::survey::{self, meta, summary};
use super::{Asked, say};
use crate::args::SureArgs;
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, counted};
use crate::subcommand::sure;

/// Maximum number of requests in flight.
const GETS_MAX: usize = 64;
/// Maximum number of frames in one batch.
const BATCH_FRAMES: usize = 512;
/// Maximum number of consecutive conflicts with other operators at the same handler.
const CONFLICTS_MAX: u32 = 16;

/// The records that are still undecided, oldest first. Records from before a reset do not count if
/// their inputs were offered again.
pub(super) async fn open(client: &Client, key: &Key) -> anyhow::Result<Vec<Frame>> {
    let decisions = [Request::Unpark, Request::Discard].map(|one| key.name.request_topic(one));
    let topics = [key.name.topic(PARKED)].into_iter().chain(decisions).map(TopicPattern::Exact);
    let options = ReadOptions {
        topics: TopicPatterns::new(topics.collect())?,
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
    let place = client.cursor_get(&processor_cursor(key)).await.map_err(explain)?;
    let began =
        place.and_then(|cursor| HandlerCursor::of(&cursor).ok()).and_then(|place| place.began);
    records.retain(|record| {
        let counts = began.is_none_or(|began| began.has_made(record));
        counts && !decided.contains(&record.id())
    });
    Ok(records)
}

async fn handler(asked: Asked<'_>, name: &Topic) -> anyhow::Result<Key> {
    let (key, _) = survey::one(asked.client, asked.served, name).await?;
    if key.kind == Kind::Handler {
        return Ok(key);
    }
    ExitError::fail(Exit::Usage, format!("{key} is not a handler; only handlers park inputs"))
}

pub(super) async fn list(asked: Asked<'_>, name: &Topic, out: &mut Output) -> anyhow::Result<Exit> {
    let key = handler(asked, name).await?;
    let records = open(asked.client, &key).await?;
    let gone = gone(asked.client, &records).await?;
    let rows = records.iter().map(|record| {
        vec![
            json!(record.id().to_string()),
            json!(out.time(record.id().time_ms())),
            meta(record)["frame"].clone(),
            meta(record)["topic"].clone(),
            meta(record)["attempts"].clone(),
            json!(gone.contains(&record.id())),
            json!(summary(record)),
        ]
    });
    let rows: Vec<_> = rows.collect();
    out.table(&["id", "since", "frame", "topic", "attempts", "gone", "error"], &rows)?;
    Ok(Exit::Ok)
}

pub(super) async fn unpark(
    asked: Asked<'_>,
    name: &Topic,
    ids: Vec<FrameId>,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let key = handler(asked, name).await?;
    let mut chosen = Chosen::find(asked.client, &key, &ids).await?;
    let gone = gone(asked.client, chosen.records.make_contiguous()).await?;
    chosen.records.retain(|record| !gone.contains(&record.id()));
    let count = chosen.decide(Request::Unpark).await?;
    let inputs = counted(count as u64, "input");
    let text = format!("{inputs} of {key} will be retried");
    say(out, &key, &text, &[("unparked", json!(count)), ("gone", json!(gone.len()))])?;
    if gone.is_empty() {
        return Ok(Exit::Ok);
    }
    let what = counted(gone.len() as u64, "parked input");
    let name = &key.name;
    let text = format!(
        "{what} cannot be handled again: expired or removed since; xs modules parked {name} lists \
         what is gone, xs modules discard {name} ID forgets it"
    );
    ExitError::fail(Exit::NotFound, text)
}

/// The records whose inputs are no longer in the store.
async fn gone(client: &Client, records: &[Frame]) -> anyhow::Result<BTreeSet<FrameId>> {
    let mut gone = BTreeSet::new();
    for records in records.chunks(GETS_MAX) {
        let ask = |record: &Frame| {
            let input = about(record, "frame").map(|input| client.get(Bound::Id(input)));
            (record.id(), input)
        };
        for (record, input) in records.iter().map(ask).collect::<Vec<_>>() {
            let there = match input {
                Some(input) => input.await.map_err(explain)?.is_some(),
                None => false,
            };
            if !there {
                gone.insert(record);
            }
        }
    }
    Ok(gone)
}

pub(super) async fn discard(
    asked: Asked<'_>,
    name: &Topic,
    ids: Vec<FrameId>,
    sure: SureArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let key = handler(asked, name).await?;
    let chosen = Chosen::find(asked.client, &key, &ids).await?;
    let count = chosen.records.len();
    let what = format!("{} of {key}", counted(count as u64, "parked input"));
    if count == 0 {
        say(out, &key, &format!("{key} has no parked inputs"), &[("discarded", json!(0))])?;
        return Ok(Exit::Ok);
    }
    if sure.dry_run {
        let facts = [("discarded", json!(count)), ("dry_run", json!(true))];
        say(out, &key, &format!("would discard {what}"), &facts)?;
        return Ok(Exit::Ok);
    }
    sure::ask(&format!("discard {what}"), sure).await?;
    let count = chosen.decide(Request::Discard).await?;
    let text = format!("{} of {key} discarded", counted(count as u64, "parked input"));
    say(out, &key, &text, &[("discarded", json!(count))])?;
    Ok(Exit::Ok)
}

/// Records to be decided: what is parked later is not included.
struct Chosen<'a> {
    client: &'a Client,
    key: &'a Key,
    /// The selected ids, of records or of their inputs; empty means all.
    ids: &'a [FrameId],
    guard: CursorName,
    /// The guard's revision, read before the records.
    revision: u64,
    records: VecDeque<Frame>,
}

impl<'a> Chosen<'a> {
    async fn find(client: &'a Client, key: &'a Key, ids: &'a [FrameId]) -> anyhow::Result<Self> {
        let guard = CursorName::parse(&format!("{}:{PARKED}", processor_cursor(key)))?;
        let revision = revision(client, &guard).await?;
        let mut records = VecDeque::from(open(client, key).await?);
        check(&records, ids)?;
        let ids_named: BTreeSet<_> = ids.iter().copied().collect();
        let wanted = |record: &Frame| names(record).any(|id| ids_named.contains(&id));
        records.retain(|record| ids.is_empty() || wanted(record));
        Ok(Self { client, key, ids, guard, revision, records })
    }

    /// Decides each record once; returns how many there were.
    async fn decide(mut self, what: Request) -> anyhow::Result<usize> {
        let (mut decided, mut conflicts) = (0, 0);
        while !self.records.is_empty() {
            let count = self.records.len().min(BATCH_FRAMES);
            let frames = self.records.iter().take(count);
            let frames = frames.map(|record| decision(self.key, what, record));
            let frames = frames.collect::<anyhow::Result<Vec<_>>>()?;
            let change = CursorChange {
                name: self.guard.clone(),
                expect: ExpectRevision::Is(self.revision),
                set: Some(CursorValue::default()),
            };
            let batch = AppendRequest { frames, cursors: vec![change], ..AppendRequest::default() };
            match self.client.append(&batch).await {
                Ok(appended) => {
                    self.revision = appended.cursors.first().copied().unwrap_or_default();
                    self.records.drain(..count);
                    decided += count;
                    conflicts = 0;
                }
                Err(error) if error.class() == Class::Condition && conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    self.look_again(decided == 0).await?;
                }
                Err(error) => return Err(explain(error)),
            }
        }
        Ok(decided)
    }

    /// Another operator decided meanwhile: drops the records that are no longer open.
    async fn look_again(&mut self, is_whole: bool) -> anyhow::Result<()> {
        self.revision = revision(self.client, &self.guard).await?;
        let open = open(self.client, self.key).await?;
        if is_whole {
            check(&open, self.ids)?;
        }
        let open: BTreeSet<_> = open.iter().map(Frame::id).collect();
        self.records.retain(|record| open.contains(&record.id()));
        Ok(())
    }
}

async fn revision(client: &Client, guard: &CursorName) -> anyhow::Result<u64> {
    let cursor = client.cursor_get(guard).await.map_err(explain)?;
    Ok(cursor.map_or(0, |cursor| cursor.revision))
}

/// The ids that name a record: its own and its input's.
fn names(record: &Frame) -> impl Iterator<Item = FrameId> {
    [Some(record.id()), about(record, "frame")].into_iter().flatten()
}

/// Refuses an id that names none of the records.
fn check<'f>(records: impl IntoIterator<Item = &'f Frame>, ids: &[FrameId]) -> anyhow::Result<()> {
    let named: BTreeSet<_> = records.into_iter().flat_map(names).collect();
    match ids.iter().find(|id| !named.contains(id)) {
        None => Ok(()),
        Some(id) => ExitError::fail(Exit::NotFound, format!("no parked input with id {id}")),
    }
}

fn decision(key: &Key, what: Request, record: &Frame) -> anyhow::Result<NewFrame> {
    let mut frame = NewFrame::new(key.name.request_topic(what));
    frame.meta = Meta::parse(json!({ PARKED: record.id().to_string() }).to_string())?;
    Ok(frame)
}
