//! `cursor`: named positions, shown and moved by hand.

use serde_json::{Value, json};
use xs_engine::{Bound, Cursor, CursorChange, CursorName, CursorValue, ExpectRevision};
use xs_protocol::Client;

use super::sure;
use crate::args::{CursorSubcommand, CursorTarget, SureArgs};
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, notice};

pub(super) async fn run(
    client: &Client,
    cursor: CursorSubcommand,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    match cursor {
        CursorSubcommand::List => list(client, out).await,
        CursorSubcommand::Get { name } => get(client, &name, out).await,
        CursorSubcommand::Set { name, target, expect } => {
            set(client, name, target, expect, out).await
        }
        CursorSubcommand::Rm { name, sure } => remove(client, name, sure, out).await,
    }
}

async fn list(client: &Client, out: &mut Output) -> anyhow::Result<Exit> {
    let head = client.server().head;
    let cursors = client.cursor_list().await.map_err(explain)?;
    let rows = cursors.iter().map(|cursor| {
        vec![
            json!(cursor.name.as_str()),
            json!(cursor.offset),
            behind(&cursor.name, cursor.offset, head),
            json!(out.time(cursor.time_ms)),
            json!(cursor.revision),
            json!(cursor.state_bytes),
        ]
    });
    let rows: Vec<_> = rows.collect();
    out.table(&["cursor", "offset", "behind", "moved", "revision", "state_bytes"], &rows)?;
    Ok(Exit::Ok)
}

/// The number of events after a cursor; null for a module's cursor. Those count events of other
/// topics, or are positions in something else: xs modules show reports their lag.
fn behind(name: &CursorName, offset: u64, head: u64) -> Value {
    match name.as_str().starts_with("xs.") {
        true => Value::Null,
        false => json!(head.saturating_sub(offset)),
    }
}

async fn get(client: &Client, name: &CursorName, out: &mut Output) -> anyhow::Result<Exit> {
    let cursor = existing(client, name).await?;
    show(client, name, &cursor, out)?;
    Ok(Exit::Ok)
}

fn show(
    client: &Client,
    name: &CursorName,
    cursor: &Cursor,
    out: &mut Output,
) -> anyhow::Result<()> {
    let state = match (&*cursor.state, serde_json::from_slice(&cursor.state)) {
        ([], _) => Value::Null,
        (_, Ok(json)) => json,
        (bytes, Err(_)) => String::from_utf8_lossy(bytes).into(),
    };
    let names = ["cursor", "offset", "behind", "epoch", "moved", "revision", "state"];
    let row = vec![
        json!(name.as_str()),
        json!(cursor.offset),
        behind(name, cursor.offset, client.server().head),
        json!(cursor.epoch),
        json!(out.time(cursor.time_ms)),
        json!(cursor.revision),
        state,
    ];
    out.table(&names, &[row])?;
    Ok(())
}

async fn existing(client: &Client, name: &CursorName) -> anyhow::Result<Cursor> {
    match client.cursor_get(name).await.map_err(explain)? {
        Some(cursor) => Ok(cursor),
        None => ExitError::fail(
            Exit::NotFound,
            format!("no cursor {name}; xs cursor list shows all cursors"),
        ),
    }
}

async fn set(
    client: &Client,
    name: CursorName,
    target: CursorTarget,
    expect: Option<u64>,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let offset = match target {
        CursorTarget::First => 0,
        CursorTarget::Head => client.server().head,
        CursorTarget::Before(bound) => offset_of(client, bound).await?,
    };
    let present = client.cursor_get(&name).await.map_err(explain)?;
    let (revision, state) =
        present.map_or_else(Default::default, |cursor| (cursor.revision, cursor.state));
    // The state belongs to the position read, so it must not come from a different change than this
    // one.
    let expect = ExpectRevision::Is(expect.unwrap_or(revision));
    let change =
        CursorChange { name: name.clone(), expect, set: Some(CursorValue { offset, state }) };
    client.cursor_set(change).await.map_err(explain)?;
    if revision == 0 {
        notice(&format!("created the cursor {name}"));
    }
    show(client, &name, &existing(client, &name).await?, out)?;
    Ok(Exit::Ok)
}

async fn offset_of(client: &Client, bound: Bound) -> anyhow::Result<u64> {
    let head = client.server().head;
    let id = match bound {
        Bound::Offset(offset) if offset <= head => return Ok(offset),
        Bound::Offset(offset) => {
            let text = format!("offset {offset} is beyond the head, which is {head}");
            return ExitError::fail(Exit::NotFound, text);
        }
        Bound::Id(id) => id,
    };
    let frame = client.get(bound).await.map_err(explain)?;
    match frame.and_then(|frame| frame.offset()) {
        Some(offset) => Ok(offset),
        None => ExitError::fail(Exit::NotFound, format!("no frame with id {id}")),
    }
}

async fn remove(
    client: &Client,
    name: CursorName,
    args: SureArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let cursor = existing(client, &name).await?;
    if args.dry_run {
        show(client, &name, &cursor, out)?;
        return Ok(Exit::Ok);
    }
    sure::ask(&format!("remove cursor {name} at offset {}", cursor.offset), args).await?;
    let expect = ExpectRevision::Is(cursor.revision);
    client.cursor_set(CursorChange { name, expect, set: None }).await.map_err(explain)?;
    Ok(Exit::Ok)
}
