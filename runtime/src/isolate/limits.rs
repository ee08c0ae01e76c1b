//! The limits of an isolate. Every bound on a module is here or in a constant beside its only use.

use std::time::Duration;

/// Outputs of one handler call, `ctx.append` and results together.
pub(crate) const OUTPUTS_PER_CALL_MAX: usize = 1_000;
/// Bytes of one output frame's body; larger content goes through `ctx.blob.put`.
pub(crate) const OUTPUT_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of all bodies that one handler call may buffer.
pub(crate) const OUTPUT_BYTES_PER_CALL_MAX: usize = 8 * 1024 * 1024;
/// Bytes of the records, without bodies, that one handler call may buffer.
pub(crate) const OUTPUT_RECORDS_BYTES_PER_CALL_MAX: usize = 2 * 1024 * 1024;
/// Time after which the calls of a handler are committed though others follow at once.
pub(crate) const GROUP_TIME: Duration = Duration::from_secs(1);
/// Number of outputs in a shared commit beyond which no further handler call joins it. A whole
/// batch of inputs with one output each gives this many; larger commits save nothing more, and
/// other writers wait for them.
pub(crate) const GROUP_OUTPUTS: usize = INPUTS_MAX;
/// Bytes of bodies in a shared commit beyond which no further call joins it.
pub(crate) const GROUP_BODIES_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of records in a shared commit beyond which no further call joins it.
pub(crate) const GROUP_RECORDS_BYTES: usize = 1024 * 1024;
/// Frames yielded by a generator or a call that are not stored yet.
pub(crate) const OUTSTANDING_FRAMES_MAX: usize = 256;
/// Bytes of those frames.
pub(crate) const OUTSTANDING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Frames that one run may append without awaiting any of them.
pub(crate) const UNAWAITED_FRAMES_MAX: usize = 4_096;
/// Bytes of those frames.
pub(crate) const UNAWAITED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a body or a file that JavaScript may read in one piece.
pub(crate) const READ_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of a handler's state as JSON: a cursor's capacity minus what the Host stores beside the
/// state.
pub(crate) const STATE_BYTES_MAX: usize = xs_engine::limits::CURSOR_STATE_BYTES_MAX - 1024;
// Whatever the last call of a group adds, the group fits in one batch of the store, its cursor
// included.
const _: () =
    assert!(GROUP_OUTPUTS + 2 * OUTPUTS_PER_CALL_MAX < xs_engine::limits::BATCH_RECORDS_MAX);
const _: () = assert!(
    GROUP_BODIES_BYTES + OUTPUT_BYTES_PER_CALL_MAX + STATE_BYTES_MAX
        < xs_engine::limits::BATCH_BODIES_BYTES_MAX
);
const _: () = assert!(
    GROUP_RECORDS_BYTES + OUTPUT_RECORDS_BYTES_PER_CALL_MAX < xs_engine::limits::BATCH_BYTES_MAX
);
/// Frames handed to a handler in one batch.
pub const INPUTS_MAX: usize = 512;
/// Characters of one log line; the rest is cut off.
pub(crate) const LOG_CHARS_MAX: usize = 10_000;
/// Streams (reads, tails, calls) that one isolate may have open at the same time.
pub(crate) const STREAMS_MAX: usize = 256;
/// Concurrent calls of a command whose definition does not say otherwise.
pub(crate) const CONCURRENCY_DEFAULT: usize = 64;
/// The largest `concurrency` of a definition.
pub(crate) const CONCURRENCY_MAX: usize = 1_024;
/// The longest duration that a module can ask for; a longer one is cut to this.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// The longest `timeout` of a definition.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(15 * 60);

/// Limits of one isolate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the JavaScript heap.
    pub heap_bytes: usize,
    /// Bytes granted beyond it, in steps, so that a termination can be noticed and reported.
    pub heap_grace_bytes: usize,
    /// Wall time for the engine to start, before anything of a module runs. It takes some 30 ms;
    /// this much means that something holds the state that all engines of a process share.
    pub engine: Duration,
    /// CPU time without returning to the event loop.
    pub slice: Duration,
    /// Wall time for evaluating a module with a top-level `await`.
    pub start: Duration,
    /// Time between asking to stop and terminating, and again until the thread is abandoned.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heap_bytes: 64 * 1024 * 1024,
            heap_grace_bytes: 64 * 1024 * 1024,
            engine: Duration::from_secs(30),
            slice: Duration::from_secs(1),
            start: Duration::from_secs(10),
            stop: Duration::from_secs(5),
        }
    }
}
