//! `why` and `effects`: the causes of a frame, and its effects, by their origins. A cause is older
//! than its effect, so one walk upwards, or one read forwards, finds them all.

use std::collections::HashMap;

use xs_engine::{Bound, Frame, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::{Client, FrameStream};

use super::bodies::{self, Lost};
use super::cat;
use super::frames::existing;
use crate::args::{EffectsArgs, WhyArgs};
use crate::connect::explain;
use crate::exit::Exit;
use crate::output::{Output, notice};

/// Maximum depth of causes: a store breaks loops long before that.
const DEPTH_MAX: usize = 256;

pub(super) async fn why(client: &Client, why: &WhyArgs, out: &mut Output) -> anyhow::Result<Exit> {
    out.use_template(why.body.format.as_ref());
    let mut chain = vec![existing(client, why.place).await?];
    while let Some(input) = chain.last().and_then(cause) {
        if chain.len() > DEPTH_MAX {
            notice(&format!("more than {DEPTH_MAX} causes; the oldest are not shown"));
            break;
        }
        match client.get(Bound::Id(input)).await.map_err(explain)? {
            Some(frame) => chain.push(frame),
            None => {
                notice(&format!("the cause {input} is no longer in the store"));
                break;
            }
        }
    }
    let mut lost = Lost::default();
    for (depth, frame) in chain.iter().rev().enumerate() {
        out.indent(depth);
        bodies::print_among(client, frame, &why.body, &mut lost, out).await?;
    }
    Ok(cat::all_or_failed(Exit::Ok, lost.count()))
}

pub(super) async fn effects(
    client: &Client,
    effects: &EffectsArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    out.use_template(effects.body.format.as_ref());
    let root = existing(client, effects.place).await?;
    let mut depths = HashMap::from([(root.id(), 0)]);
    let mut lost = Lost::default();
    bodies::print_among(client, &root, &effects.body, &mut lost, out).await?;
    let mut frames = client.fetch(&ReadOptions {
        topics: TopicPatterns::everything(),
        start: Start::After(Bound::Id(root.id())),
        ..ReadOptions::default()
    });
    let mut left = effects.limit.unwrap_or(u64::MAX);
    while let Some(frame) = next(&mut frames).await? {
        let Some(depth) = cause(&frame).and_then(|input| depths.get(&input)) else { continue };
        let depth = depth + 1;
        depths.insert(frame.id(), depth);
        out.indent(depth);
        bodies::print_among(client, &frame, &effects.body, &mut lost, out).await?;
        left -= 1;
        if left == 0 {
            break;
        }
    }
    Ok(cat::all_or_failed(Exit::Ok, lost.count()))
}

async fn next(frames: &mut FrameStream) -> anyhow::Result<Option<Frame>> {
    frames.next().await.transpose().map_err(explain)
}

fn cause(frame: &Frame) -> Option<FrameId> {
    frame.origin().and_then(|origin| origin.input)
}
