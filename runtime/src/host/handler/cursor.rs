//! A handler's place: the cursor's revision and offset, and the contents of its state bytes. Those
//! are the handler's own state with the hash of the code that made it and, while a frame is being
//! retried, the attempts so far and when the next is due.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use xs_engine::{
    BlobHash, Cursor, CursorChange, CursorName, CursorValue, ExpectRevision, Frame, FrameId,
};

/// A frame that failed and is to be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// The frame.
    pub frame: FrameId,
    /// Attempts made so far.
    pub attempt: u32,
    /// When the next is due, in milliseconds since the Unix epoch.
    pub due_ms: u64,
    /// The version that failed.
    pub create: FrameId,
}

/// Where a handler's history begins: at its first start, and again with each reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Began {
    /// The first frame that was offered to it.
    pub from: u64,
    /// Its outputs and the records of its parked inputs come after this offset: that of its
    /// version's `create` frame or, after a reset, of the last earlier record if that is later.
    pub behind: u64,
}

impl Began {
    /// Whether the frame at an offset belongs to this history, which includes its `create` frame.
    #[must_use]
    pub const fn has(&self, offset: u64) -> bool {
        offset >= self.behind && (offset >= self.from || self.from == self.behind.saturating_add(1))
    }

    /// Whether an output, or the record of a parked input, belongs to this history, or is of a
    /// frame before it. Any other belongs to an earlier history, and its input was offered again in
    /// this one.
    #[must_use]
    pub fn has_made(&self, output: &Frame) -> bool {
        let input = output.origin().and_then(|origin| origin.input_offset);
        output.offset().is_none_or(|offset| offset > self.behind)
            || input.is_some_and(|input| input < self.from)
    }
}

/// The contents of a cursor's state.
#[derive(Deserialize)]
struct Saved<'a> {
    #[serde(borrow, default)]
    state: Option<&'a RawValue>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    retry: Option<SavedRetry>,
    #[serde(default)]
    began: Option<Began>,
}

#[derive(Deserialize)]
struct SavedRetry {
    frame: String,
    attempt: u32,
    due_ms: u64,
    create: String,
}

/// A state, and the code that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// As JSON.
    pub json: Bytes,
    /// The hash over the module's import graph.
    pub code: BlobHash,
}

/// A handler's stored place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerCursor {
    /// The cursor's revision; 0 when there is none.
    pub revision: u64,
    /// The first frame not handled.
    pub offset: u64,
    /// The handler's state; `None` for its initial one.
    pub state: Option<State>,
    /// Set if the first frame not handled has failed before.
    pub retry: Option<Retry>,
    /// Where its history begins; `None` in a cursor that no Host wrote.
    pub began: Option<Began>,
}

/// Why a cursor does not hold a handler's place.
#[derive(Debug, thiserror::Error)]
pub enum HandlerCursorError {
    /// Its state is not in the form a Host writes.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A field has the wrong form.
    #[error(transparent)]
    Value(#[from] xs_engine::ValueError),
    /// There is a state, but no hash of the code that made it.
    #[error("the state has no code")]
    NoCode,
}

impl HandlerCursor {
    /// The place of a handler whose history begins at `offset`; the records of its parked inputs
    /// come after `create`.
    pub(super) fn new(offset: u64, create: u64) -> Self {
        let began = Some(Began { from: offset, behind: create });
        Self { began, ..Self::at(offset) }
    }

    const fn at(offset: u64) -> Self {
        Self { revision: 0, offset, state: None, retry: None, began: None }
    }

    /// The place for this version: drops a retry that belongs to another version, whose failure
    /// says nothing about this one.
    pub(super) fn for_version(mut self, create: FrameId) -> Self {
        self.retry = self.retry.filter(|retry| retry.create == create);
        self
    }

    /// Reads the place from a cursor.
    ///
    /// # Errors
    /// [`HandlerCursorError`] when its state was not written by a Host.
    pub fn of(cursor: &Cursor) -> Result<Self, HandlerCursorError> {
        let mut this = Self::at(cursor.offset);
        this.revision = cursor.revision;
        if cursor.state.is_empty() {
            return Ok(this);
        }
        let saved: Saved<'_> = serde_json::from_slice(&cursor.state)?;
        if let Some(raw) = saved.state {
            let code = BlobHash::parse(&saved.code.ok_or(HandlerCursorError::NoCode)?)?;
            this.state = Some(State { json: cursor.state.slice_ref(raw.get().as_bytes()), code });
        }
        if let Some(SavedRetry { frame, attempt, due_ms, create }) = saved.retry {
            let (frame, create) = (FrameId::parse(&frame)?, FrameId::parse(&create)?);
            this.retry = Some(Retry { frame, attempt, due_ms, create });
        }
        this.began = saved.began;
        Ok(this)
    }

    /// The cursor change that replaces this place by `next`.
    pub(super) fn change(&self, name: &CursorName, next: &Self) -> CursorChange {
        let expect = ExpectRevision::Is(self.revision);
        CursorChange { name: name.clone(), expect, set: Some(next.value()) }
    }

    fn value(&self) -> CursorValue {
        let mut text = Vec::with_capacity(self.state.as_ref().map_or(0, |s| s.json.len()) + 256);
        if let Some(State { json, code }) = &self.state {
            text.extend_from_slice(b"{\"state\":");
            text.extend_from_slice(json);
            text.extend_from_slice(format!(",\"code\":\"{code}\"").as_bytes());
        }
        if let Some(Retry { frame, attempt, due_ms, create }) = self.retry {
            text.push(if text.is_empty() { b'{' } else { b',' });
            let retry = format!(
                "\"retry\":{{\"frame\":\"{frame}\",\"attempt\":{attempt},\"due_ms\":{due_ms},\
                 \"create\":\"{create}\"}}"
            );
            text.extend_from_slice(retry.as_bytes());
        }
        if let Some(Began { from, behind }) = self.began {
            text.push(if text.is_empty() { b'{' } else { b',' });
            let began = format!("\"began\":{{\"from\":{from},\"behind\":{behind}}}");
            text.extend_from_slice(began.as_bytes());
        }
        if !text.is_empty() {
            text.push(b'}');
        }
        CursorValue { offset: self.offset, state: Bytes::from(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(saved: &HandlerCursor) -> HandlerCursor {
        let name = CursorName::parse("xs.handler.a").unwrap();
        let CursorValue { offset, state } = HandlerCursor::at(0).change(&name, saved).set.unwrap();
        let cursor = Cursor { revision: saved.revision, epoch: 1, offset, time_ms: 0, state };
        HandlerCursor::of(&cursor).unwrap()
    }

    #[test]
    fn a_place_survives_its_cursor() {
        let mut saved = HandlerCursor::new(7, 3);
        assert_eq!(round_trip(&saved), saved);
        let json = Bytes::from_static(b"{\"n\": 1, \"big\": 12345678901234567890}");
        saved.state = Some(State { json, code: BlobHash::of(b"code") });
        assert_eq!(round_trip(&saved), saved);
        saved.retry = Some(Retry {
            frame: FrameId::first_of_ms(9),
            attempt: 3,
            due_ms: u64::MAX,
            create: FrameId::first_of_ms(8),
        });
        assert_eq!(round_trip(&saved), saved);
        saved.state = None;
        assert_eq!(round_trip(&saved), saved);
    }

    #[test]
    fn a_history_begins_with_a_create_or_a_reset() {
        // Reset by a new version, by a running version, and by a version that starts from the first
        // frame.
        let (version, running, first) = (
            Began { from: 10, behind: 9 },
            Began { from: 20, behind: 3 },
            Began { from: 0, behind: 9 },
        );
        assert_eq!([8, 9, 10].map(|at| version.has(at)), [false, true, true]);
        assert_eq!([3, 19, 20].map(|at| running.has(at)), [false, false, true]);
        assert_eq!([8, 9].map(|at| first.has(at)), [false, true]);
    }

    #[test]
    fn foreign_states_are_refused() {
        for state in ["7", "{\"retry\":1}", "{\"state\":", "{\"state\":1}", "\u{0}"] {
            let state = Bytes::from_static(state.as_bytes());
            let cursor = Cursor { revision: 1, epoch: 1, offset: 0, time_ms: 0, state };
            assert!(HandlerCursor::of(&cursor).is_err());
        }
    }
}
