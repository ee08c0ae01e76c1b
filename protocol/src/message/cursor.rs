//! CURSOR_GET, CURSOR_SET, CURSOR_LIST.

use xs_engine::CursorName;

/// A cursor without its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorSummary {
    /// Its name.
    pub name: CursorName,
    /// 1 for the first value, one more for each change.
    pub revision: u64,
    /// The epoch in which it was changed.
    pub epoch: u64,
    /// The first frame not yet handled.
    pub offset: u64,
    /// When it was changed, in milliseconds since 1970.
    pub time_ms: u64,
    /// Bytes of its state.
    pub state_bytes: u64,
}
