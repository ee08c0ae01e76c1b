//! Following: the stored frames, one threshold, then what is appended, without gaps or duplicates.
//!
//! A follower is an offset and the number of the next ephemeral frame. It reads the log in
//! stretches, so it may lag by any amount at no cost to other threads.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reader::{Limits, Reader};
use crate::error::ReadError;
use crate::store::Inner;
use crate::tail::Ephemeral;
use crate::value::{Bound, Frame, FrameId, ReadOptions, Start};

/// Maximum length of a stretch in frames, after which a follower takes a new snapshot.
const STRETCH: u64 = 1 << 20;

/// An event from a [`Follower`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowerEvent {
    /// A frame, stored or ephemeral.
    Frame(Frame),
    /// All frames that were stored when the follower was created have been yielded; what follows is
    /// newer. Yielded exactly once, also with [`Start::New`], unless the limit is reached first.
    CaughtUp {
        /// The offset of the first frame that was not stored then.
        head: u64,
    },
    /// Ephemeral frames, of any topic, that arrived faster than they were taken and are lost.
    Lost {
        /// How many.
        ephemeral: u64,
    },
}

/// Yields stored frames and continues with those appended later. No writer waits for it.
#[must_use = "nothing is read before it is asked"]
pub struct Follower {
    inner: Arc<Inner>,
    options: ReadOptions,
    /// Frames with a lower id are skipped; set when the start names an id or a time.
    lowest: FrameId,
    position: u64,
    ephemeral: u64,
    /// The reader of the current stretch, and the end of that stretch.
    stretch: Option<(Reader, u64)>,
    threshold: Option<u64>,
    left: u64,
}

impl Follower {
    pub(super) fn new(inner: &Arc<Inner>, options: &ReadOptions) -> Result<Self, ReadError> {
        if options.reverse {
            return Err(ReadError::Options("reverse reads end at the oldest frame: do not follow"));
        }
        // The ephemeral position is taken before the head: an ephemeral frame that arrives in
        // between is placed at or after this head.
        let ephemeral = inner.tail.next_ephemeral();
        let as_of = inner.as_of_now();
        let head = as_of.head;
        let range = inner.range(options, head)?;
        let mut position = range.start;
        if let Start::Last(n) = options.start {
            // A frame that supersedes the first of them meanwhile is yielded later.
            position = inner.start_of_last(&options.topics, range, &as_of, n)?;
        }
        let after = match options.start {
            Start::From(Bound::Id(id)) => id,
            Start::After(Bound::Id(id)) => id.next(),
            _ => FrameId::ZERO,
        };
        Ok(Self {
            inner: inner.clone(),
            lowest: after.max(options.since_ms.map_or(FrameId::ZERO, FrameId::first_of_ms)),
            position,
            ephemeral,
            stretch: None,
            threshold: Some(head),
            left: options.limit.unwrap_or(u64::MAX),
            options: options.clone(),
        })
    }

    /// Waits for the next event. Returns `None` when no more will come: see [`Self::is_done`].
    ///
    /// # Errors
    /// [`ReadError::Closed`] when the store is closed and everything in it was yielded; otherwise
    /// as [`Self::try_recv`].
    pub fn recv(&mut self) -> Result<Option<FollowerEvent>, ReadError> {
        self.recv_until(None)
    }

    /// Waits for the next event, for at most `timeout`. Returns `None` when none came, or no more
    /// will: see [`Self::is_done`].
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<FollowerEvent>, ReadError> {
        // A deadline beyond the clock's range means no deadline.
        self.recv_until(Instant::now().checked_add(timeout))
    }

    fn recv_until(&mut self, until: Option<Instant>) -> Result<Option<FollowerEvent>, ReadError> {
        loop {
            // Checked first, so that everything the closing store committed is yielded.
            let closed = self.inner.is_closed();
            let event = self.try_recv()?;
            if event.is_some() || self.is_done() {
                return Ok(event);
            }
            if closed {
                return Err(ReadError::Closed);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            let ready = || self.is_ready() || self.inner.is_closed();
            self.inner.tail.wait(left.unwrap_or(Duration::MAX), ready);
        }
    }

    /// Returns the next event, or `None` when there is none now, or no more will come: see
    /// [`Self::is_done`].
    ///
    /// # Errors
    /// [`ReadError`]; the next call continues after the damage if it was [`ReadError::Corrupt`],
    /// and at the same place after any other error.
    pub fn try_recv(&mut self) -> Result<Option<FollowerEvent>, ReadError> {
        self.try_recv_within(&mut { usize::MAX })
    }

    /// Like [`try_recv`](Self::try_recv), with a bounded amount of work: each frame of the log that
    /// is examined, selected or not, takes one from `looks`. At 0 it returns `None` although there
    /// may be more.
    ///
    /// # Errors
    /// As [`Self::try_recv`].
    pub fn try_recv_within(
        &mut self,
        looks: &mut usize,
    ) -> Result<Option<FollowerEvent>, ReadError> {
        while !self.is_done() && *looks > 0 {
            if let Some((reader, end)) = &mut self.stretch {
                let end = *end;
                match reader.next_within(looks).transpose() {
                    Ok(Some(frame)) => {
                        self.position = frame.offset().map_or(end, |offset| offset + 1);
                        if let Some(live) = self.admit(frame) {
                            return Ok(Some(live));
                        }
                        continue;
                    }
                    Ok(None) if *looks == 0 => {
                        self.position = reader.next_offset();
                        break;
                    }
                    Ok(None) => {
                        self.position = end;
                        self.stretch = None;
                    }
                    Err(error) => {
                        self.position = self.position.max(reader.next_offset());
                        if !matches!(error, ReadError::Corrupt(_)) {
                            // The reader has ended there; a new one rereads the rest.
                            self.stretch = None;
                        }
                        return Err(error);
                    }
                }
            }
            if matches!(self.options.before, Some(Bound::Offset(end)) if end <= self.position) {
                self.left = 0;
                break;
            }
            if let Some(head) = self.threshold.take_if(|head| *head <= self.position) {
                return Ok(Some(FollowerEvent::CaughtUp { head }));
            }
            if let Some(threshold) = self.threshold {
                self.begin(threshold);
                continue;
            }
            // The head is read first: every ephemeral frame placed before it is then found.
            let head = self.inner.log.head();
            match self.inner.tail.ephemeral(self.ephemeral) {
                Ephemeral::Frame(before, frame) if before <= self.position => {
                    self.ephemeral += 1;
                    let wanted = self.options.topics.matches(frame.topic());
                    // A frame placed before the start is as old as the frames that are left out.
                    let live = if wanted { self.admit(frame) } else { None };
                    if live.is_some() {
                        return Ok(live);
                    }
                }
                Ephemeral::Frame(before, _) if head > self.position => self.begin(head.min(before)),
                Ephemeral::Lost(ephemeral) => {
                    self.ephemeral += ephemeral;
                    return Ok(Some(FollowerEvent::Lost { ephemeral }));
                }
                Ephemeral::None if head > self.position => self.begin(head),
                Ephemeral::Frame(..) | Ephemeral::None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Opens the next stretch, which ends at `end` or after the maximum length.
    fn begin(&mut self, end: u64) {
        let end = end.min(self.position.saturating_add(STRETCH));
        let range = self.position..end;
        let limits = Limits { as_of: self.inner.as_of_now(), left: u64::MAX };
        let reader = Reader::over(&self.inner, &self.options.topics, range, false, limits);
        self.stretch = Some((reader, end));
    }

    /// Counts a frame against the limit, or ends the follower when it is beyond the bounds.
    fn admit(&mut self, frame: Frame) -> Option<FollowerEvent> {
        let id = frame.id();
        let is_past = match self.options.before {
            Some(Bound::Id(before)) => id >= before,
            Some(Bound::Offset(before)) => frame.offset().unwrap_or(self.position) >= before,
            None => false,
        };
        if is_past || self.options.until_ms.is_some_and(|until| id.time_ms() >= until) {
            self.left = 0;
            // A reader that resumes here must see it.
            self.position = frame.offset().unwrap_or(self.position).min(self.position);
            return None;
        }
        if id < self.lowest {
            return None;
        }
        self.left -= 1;
        Some(FollowerEvent::Frame(frame))
    }

    /// Whether the follower has ended: the limit, `before` or `until` has been reached.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Returns the offset it reads next; every frame below was yielded or was not selected.
    #[must_use]
    pub const fn next_offset(&self) -> u64 {
        self.position
    }

    /// Whether [`Self::try_recv`] may have something.
    pub(super) fn is_ready(&self) -> bool {
        self.is_done()
            || self.stretch.is_some()
            || self.threshold.is_some_and(|head| head <= self.position)
            || self.inner.log.head() > self.position
            || self.inner.tail.next_ephemeral() > self.ephemeral
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("options", &self.options)
            .field("position", &self.position)
            .field("threshold", &self.threshold)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use std::sync::atomic::Ordering;

    use crate::options::{StoreOptions, SyncPolicy};
    use crate::store::Store;
    use crate::testing::{StillClock, fast_dir, frame, open, options, segment_files};

    #[test]
    fn what_could_not_be_read_for_a_while_is_not_passed_over() {
        const FRAMES: u64 = 3000;
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        (0..FRAMES).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
        store.close().unwrap();
        drop(store);
        let store = open(dir.path(), SyncPolicy::None);
        let options = ReadOptions { follow: true, ..ReadOptions::default() };
        let mut follower = store.follow(&options).unwrap();
        let segment = segment_files(dir.path()).remove(1);
        let away = segment.with_extension("away");
        fs::rename(&segment, &away).unwrap();
        let mut seen = Vec::new();
        let error = loop {
            match follower.try_recv() {
                Ok(Some(FollowerEvent::Frame(frame))) => seen.extend(frame.offset()),
                Ok(other) => panic!("{other:?} after {} frames", seen.len()),
                Err(error) => break error,
            }
        };
        assert!(!matches!(error, ReadError::Corrupt(_)), "{error}");
        assert!(follower.try_recv().is_err(), "it is still away");
        fs::rename(&away, &segment).unwrap();
        while let Some(live) = follower.try_recv().unwrap() {
            if let FollowerEvent::Frame(frame) = live {
                seen.extend(frame.offset());
            }
        }
        assert!(seen.iter().copied().eq(0..FRAMES), "{} of {FRAMES}", seen.len());
    }

    /// Reads in windows, each from the end of the previous one.
    #[test]
    fn the_frame_that_ends_it_is_the_next_one_to_read() {
        let (dir, clock) = (fast_dir(), StillClock::at(1000));
        let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
        let store = Store::open(dir.path(), options).unwrap();
        for n in 0..40 {
            clock.0.store(1000 + n, Ordering::Relaxed);
            store.append(frame(["a", "b"][n as usize % 2], n).into()).unwrap();
        }
        let bounded = |by: &str, end: u64| match by {
            "offset" => (Some(Bound::Offset(end)), None),
            "id" => (Some(Bound::Id(FrameId::first_of_ms(1000 + end))), None),
            _ => (None, Some(1000 + end)),
        };
        for (topics, step) in [("*", 1), ("a", 2), ("b", 2)] {
            for by in ["offset", "id", "time"] {
                let (mut from, mut seen) = (0, Vec::new());
                for end in (3..=39).step_by(3).chain([40]) {
                    let start = Start::From(Bound::Offset(from));
                    let topics = topics.parse().unwrap();
                    let (before, until_ms) = bounded(by, end);
                    let rest = ReadOptions::default();
                    let options = ReadOptions { topics, start, before, until_ms, ..rest };
                    let mut follower = store.follow(&options).unwrap();
                    while let Some(live) = follower.try_recv().unwrap() {
                        if let FollowerEvent::Frame(frame) = live {
                            seen.extend(frame.offset());
                        }
                    }
                    from = follower.next_offset();
                }
                let want = (0..40).filter(|at| step == 1 || at % 2 == u64::from(topics == "b"));
                assert!(seen.iter().copied().eq(want), "{topics}: {seen:?}");
            }
        }
    }
}
