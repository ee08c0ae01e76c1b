//! Store maintenance: checking every byte, copying, repairing, statistics. Apart from `upgrade`
//! nothing here changes what is stored. Checking an open store seals its newest segment, and may
//! sync it.

mod backup;
mod candidates;
mod check_files;
mod check_log;
mod copy;
mod derived;
mod error;
mod finding;
mod read_only;
mod repair;
mod repair_log;
mod save_log;
mod scrub;
mod snapshot;
mod stats;
mod survey;
#[cfg(test)]
mod tests;
mod upgrade;
mod verify;
mod visible;

pub use backup::{CopyOptions, CopyReport, restore};
pub use error::MaintainError;
pub use finding::{Finding, Problem, Progress, Severity, VerifyReport};
pub use repair::{RepairReport, repair};
pub(crate) use scrub::Scrub;
pub use scrub::ScrubStats;
pub use stats::{CountBytes, FileStats, FrameStats, StoreStats};
pub(crate) use survey::find_salt;
pub use upgrade::{UpgradeReport, upgrade};
pub use verify::verify;
#[cfg(test)]
pub(crate) use verify::verify_files;
