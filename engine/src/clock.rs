//! Time, as something that is given to the store, so that tests can drive it.

use std::fmt::Debug;
use std::time::SystemTime;

/// Tells the time.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since 1970. It may stand still or run backwards; ids increase all the same.
    fn now_ms(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since_1970.map_or(0, |duration| duration.as_millis() as u64)
    }
}
