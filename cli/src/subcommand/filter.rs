//! `--where`: selects the frames that match an expression. It evaluates many frames at a time, in
//! an isolate in this process; errors are counted and reported at the end.

use xs_engine::{Bound, Frame, ReadOptions, Start};
use xs_protocol::limits::BODY_WITH_FRAME_MAX;
use xs_protocol::{Client, Delivered, SubEvent, SubscribeOptions};
use xs_runtime::isolate::{FailureKind, ModuleError};
use xs_runtime::script::{TEXT_BYTES_MAX, Test, Verdict, Whole};

use super::position::Resume;
use super::{bodies, modules};
use crate::args::WhereArgs;
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::output::notice;

/// Maximum bytes of bodies in memory for the filter, unless a single frame has more.
const BODIES_BYTES: usize = 8 * 1024 * 1024;

/// The filter of `--where`, if given.
pub(super) struct Filter {
    test: Option<Test>,
    asked: u64,
    threw: u64,
}

impl Filter {
    pub(super) async fn start(args: &WhereArgs) -> anyhow::Result<Self> {
        let test = match &args.expression {
            Some(expression) => Some(Test::start(expression).await.map_err(failed)?),
            None => None,
        };
        Ok(Self { test, asked: 0, threw: 0 })
    }

    /// Whether everything passes.
    pub(super) const fn is_open(&self) -> bool {
        self.test.is_none()
    }

    /// Whether it threw on every frame: then the expression is wrong, and says nothing about the
    /// frames.
    pub(super) const fn always_threw(&self) -> bool {
        self.threw > 0 && self.threw == self.asked
    }

    /// Maximum bytes of bodies to be delivered with their frames for the filter.
    pub(super) fn bodies_up_to(&self) -> u32 {
        let reads = self.test.as_ref().is_some_and(Test::reads_bodies);
        if reads { BODY_WITH_FRAME_MAX } else { 0 }
    }

    /// Whether each of the frames matches.
    pub(super) async fn pass(
        &mut self,
        client: &Client,
        frames: &[Delivered],
    ) -> anyhow::Result<Vec<bool>> {
        let verdicts = self.judge(client, frames).await?;
        let threw = verdicts.iter().filter(|verdict| **verdict == Verdict::Threw);
        self.threw += threw.count() as u64;
        self.asked += frames.len() as u64;
        Ok(verdicts.iter().map(|verdict| *verdict == Verdict::Holds).collect())
    }

    /// The verdict on each frame.
    async fn judge(&self, client: &Client, frames: &[Delivered]) -> anyhow::Result<Vec<Verdict>> {
        let Some(test) = &self.test else { return Ok(vec![Verdict::Holds; frames.len()]) };
        let mut verdicts = Vec::with_capacity(frames.len());
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (index, Delivered { frame, body }) in frames.iter().enumerate() {
            let body = match (body, frame.hash()) {
                (None, Some(_)) if test.reads_bodies() => fetch(client, frame).await?,
                (body, _) => body.clone(),
            };
            bytes += body.as_ref().map_or(0, bytes::Bytes::len);
            batch.push(Whole { frame: frame.clone(), body });
            if bytes >= BODIES_BYTES || index + 1 == frames.len() {
                verdicts.extend(test.ask(&batch).await.map_err(failed)?);
                batch.clear();
                bytes = 0;
            }
        }
        Ok(verdicts)
    }

    /// Widens a read so that it covers all matching frames: a limit is returned and applied here
    /// instead, and the newest n become the newest n that match.
    pub(super) async fn widen(
        &mut self,
        client: &Client,
        options: &mut ReadOptions,
    ) -> anyhow::Result<Option<u64>> {
        if self.is_open() {
            return Ok(None);
        }
        let limit = options.limit.take();
        let Start::Last(count) = options.start else { return Ok(limit) };
        if count == 0 {
            return Ok(limit);
        }
        if options.reverse {
            options.start = Start::First;
            return Ok(Some(limit.map_or(count, |limit| limit.min(count))));
        }
        options.start = self.newest(client, options, count).await?;
        Ok(limit)
    }

    /// Finds where the newest `count` matching frames begin.
    pub(super) async fn newest(
        &mut self,
        client: &Client,
        options: &ReadOptions,
        count: u64,
    ) -> anyhow::Result<Start> {
        let back = ReadOptions {
            start: Start::First,
            reverse: true,
            follow: false,
            limit: self.is_open().then_some(count),
            ..options.clone()
        };
        let bodies_up_to = self.bodies_up_to();
        let how = SubscribeOptions { bodies_up_to, ..SubscribeOptions::default() };
        let mut events = client.subscribe(&back, how).await.map_err(explain)?;
        let (mut left, mut newest, mut oldest) = (count, None, None);
        // Frames newer than the oldest match are evaluated again on the way forward.
        let (mut threw_before, mut failed_before) = (0, 0);
        while let Some(event) = events.next().await {
            let frames = match event.map_err(explain)? {
                SubEvent::Frames { frames, .. } => frames,
                // Frames that were not looked at may match.
                SubEvent::Dropped { refusal, .. } => {
                    return Err(Resume::Waits.dropped(refusal, 0));
                }
                // The forward read reports what cannot be read.
                SubEvent::Gap(_) | SubEvent::CaughtUp { .. } | SubEvent::Pulse => continue,
            };
            let verdicts = self.judge(client, &frames).await?;
            for (delivered, verdict) in frames.iter().zip(verdicts) {
                let offset = delivered.frame.offset();
                newest = newest.or(offset);
                match verdict {
                    Verdict::Holds => {
                        (oldest, threw_before, failed_before) = (offset, 0, 0);
                        left = left.saturating_sub(1);
                    }
                    Verdict::Threw => threw_before += 1,
                    Verdict::Fails => failed_before += 1,
                }
                if left == 0 {
                    return Ok(place(oldest, newest));
                }
            }
        }
        self.threw += threw_before;
        self.asked += threw_before + failed_before;
        Ok(place(oldest, newest))
    }
}

fn place(oldest: Option<u64>, newest: Option<u64>) -> Start {
    match (oldest, newest) {
        (Some(offset), _) => Start::From(Bound::Offset(offset)),
        (None, Some(offset)) => Start::From(Bound::Offset(offset.saturating_add(1))),
        (None, None) => Start::First,
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if self.threw == 0 {
            return;
        }
        let first = self.test.as_ref().and_then(Test::thrown).unwrap_or_default();
        let frames = if self.threw == 1 { "event" } else { "events" };
        notice(&format!("--where threw on {} {frames}, skipped: {first}", self.threw));
    }
}

/// Fetches the body of a frame that came without it; `None` when it is too long to be evaluated, or
/// lost.
async fn fetch(client: &Client, frame: &Frame) -> anyhow::Result<Option<bytes::Bytes>> {
    let Some(hash) = frame.hash().filter(|_| frame.body_len() <= TEXT_BYTES_MAX) else {
        return Ok(None);
    };
    let Some(blob) = bodies::find(client, &hash).await? else { return Ok(None) };
    let max = usize::try_from(TEXT_BYTES_MAX).unwrap_or(usize::MAX);
    match blob.bytes(max).await {
        Ok(body) => Ok(Some(body)),
        Err(error) if bodies::is_damage(&error) => Ok(None),
        Err(error) => Err(explain(error)),
    }
}

/// The error for an expression that cannot be evaluated.
fn failed(error: ModuleError) -> anyhow::Error {
    let exit = if error.kind == FailureKind::Syntax { Exit::Usage } else { Exit::Failed };
    ExitError::new(exit, modules::describe(&error.to_json())).into()
}
