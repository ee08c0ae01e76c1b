//! `get`, `last` and `topics`: single frames and counts, answered in one reply.

use serde_json::json;
use xs_engine::{Bound, Frame, TopicPatterns};
use xs_protocol::{Client, LastRequest};

use super::{bodies, cat};
use crate::args::{GetArgs, LastArgs, TopicsArgs};
use crate::connect::explain;
use crate::exit::{Exit, Fault};
use crate::output::Output;

pub(super) async fn get(client: &Client, get: &GetArgs, out: &mut Output) -> anyhow::Result<Exit> {
    out.use_template(get.body.format.as_ref());
    let frame = existing(client, get.place).await?;
    bodies::print(client, &frame, &get.body, out).await?;
    Ok(Exit::Ok)
}

/// The frame at a place where there must be one.
pub(super) async fn existing(client: &Client, place: Bound) -> anyhow::Result<Frame> {
    match found(client, place).await? {
        Some(frame) => Ok(frame),
        None => Fault::fail(Exit::NotFound, no_frame(place)),
    }
}

/// The frame at a place, if there is one.
pub(super) async fn found(client: &Client, place: Bound) -> anyhow::Result<Option<Frame>> {
    client.get(place).await.map_err(explain)
}

/// What to say where there is none.
pub(super) fn no_frame(place: Bound) -> String {
    match place {
        Bound::Id(id) => format!(
            "no frame with id {id}: it was removed, has expired, or is another store's; \
             xs cat prints those there are"
        ),
        Bound::Offset(offset) => format!(
            "no frame with offset {offset}: it is gone, or not there yet; xs cat prints those \
             there are"
        ),
    }
}

pub(super) async fn last(
    client: &Client,
    last: &LastArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    out.use_template(last.body.format.as_ref());
    let topics = last.patterns.or(TopicPatterns::all())?;
    let request = LastRequest { topics, n: last.count, per_topic: last.per_topic };
    let frames = client.last(&request).await.map_err(explain)?;
    if frames.is_empty() {
        return Fault::fail(
            Exit::NotFound,
            format!("no frame in {}; xs topics lists the topics there are", request.topics),
        );
    }
    cat::print_all(client, &frames, &last.body, out).await?;
    Ok(Exit::Ok)
}

pub(super) async fn topics(
    client: &Client,
    topics: &TopicsArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let patterns = topics.patterns.or(TopicPatterns::all())?;
    let found = client.topics(&patterns).await.map_err(explain)?;
    let rows = found.iter().map(|topic| {
        vec![
            json!(topic.topic.as_str()),
            json!(topic.count),
            json!(topic.bytes),
            json!(topic.first.to_string()),
            json!(topic.last.to_string()),
        ]
    });
    out.table(&["topic", "count", "bytes", "first", "last"], &rows.collect::<Vec<_>>())?;
    Ok(Exit::Ok)
}
