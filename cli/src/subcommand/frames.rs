//! `get`, `last` and `topics`: single frames and statistics, answered in one reply.

use std::collections::HashSet;

use serde_json::json;
use xs_engine::{Bound, Frame, ReadOptions, TopicPatterns};
use xs_protocol::{Client, LastRequest, SubEvent, SubscribeOptions};

use super::{bodies, cat};
use crate::args::{GetArgs, LastArgs, TopicsArgs};
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::Output;

pub(super) async fn get(client: &Client, get: &GetArgs, out: &mut Output) -> anyhow::Result<Exit> {
    out.use_template(get.body.format.as_ref());
    out.show_whole();
    let frame = existing(client, get.place).await?;
    bodies::print(client, &frame, &get.body, out).await?;
    Ok(Exit::Ok)
}

/// The frame at a place; an error if there is none.
pub(super) async fn existing(client: &Client, place: Bound) -> anyhow::Result<Frame> {
    match found(client, place).await? {
        Some(frame) => Ok(frame),
        None => ExitError::fail(Exit::NotFound, no_frame(place)),
    }
}

/// The frame at a place, if there is one.
pub(super) async fn found(client: &Client, place: Bound) -> anyhow::Result<Option<Frame>> {
    client.get(place).await.map_err(explain)
}

/// The message for a missing frame.
pub(super) fn no_frame(place: Bound) -> String {
    match place {
        Bound::Id(id) => format!(
            "no frame with id {id}: it was removed, has expired, or belongs to another \
             store; xs cat lists stored frames"
        ),
        Bound::Offset(offset) => format!(
            "no frame with offset {offset}: it was removed, has expired, or does not exist \
             yet; xs cat lists stored frames"
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
    let (frames, unread) = match client.last(&request).await {
        Ok(frames) => (frames, 0),
        Err(error) if bodies::is_damage(&error) => beside_damage(client, &request).await?,
        Err(error) => return Err(explain(error)),
    };
    if frames.is_empty() && unread == 0 {
        return ExitError::fail(
            Exit::NotFound,
            format!("no frame in {}; xs topics lists all topics", request.topics),
        );
    }
    let lost = cat::print_all(client, &frames, &last.body, out).await?;
    Ok(cat::all_or_failed(Exit::Ok, unread + lost))
}

/// Reads the same frames backwards, past any damage, and counts the unreadable ones on the way:
/// those may belong to any topic.
async fn beside_damage(
    client: &Client,
    request: &LastRequest,
) -> anyhow::Result<(Vec<Frame>, u64)> {
    let back = ReadOptions {
        topics: request.topics.clone(),
        reverse: true,
        limit: (!request.per_topic).then_some(request.n),
        ..ReadOptions::default()
    };
    let topics = match request.per_topic {
        true => client.topics(&request.topics).await.map_err(explain)?.len(),
        false => usize::MAX,
    };
    let mut events = client.subscribe(&back, SubscribeOptions::default()).await.map_err(explain)?;
    let (mut frames, mut unread, mut seen) = (Vec::new(), 0, HashSet::new());
    while seen.len() < topics
        && let Some(event) = events.next().await
    {
        match event.map_err(explain)? {
            SubEvent::Frames { frames: come, .. } => {
                let mut is_wanted =
                    |frame: &Frame| !request.per_topic || seen.insert(frame.topic().to_owned());
                let come = come.into_iter().map(|delivered| delivered.frame);
                frames.extend(come.filter(&mut is_wanted));
            }
            SubEvent::Gap(gap) => unread += cat::passed_over(gap),
            SubEvent::Dropped { refusal, .. } => {
                return ExitError::fail(Exit::Unreachable, refusal.message);
            }
            SubEvent::CaughtUp { .. } | SubEvent::Pulse => {}
        }
    }
    frames.reverse();
    Ok((frames, unread))
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
