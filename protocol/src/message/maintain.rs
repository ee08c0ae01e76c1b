//! MAINTAIN: maintenance of the files of a store while it is served.

use std::time::Duration;

use super::coding::{Body, DecodeError};
use crate::error::{Code, Refusal};
use crate::gather::Gather;
use crate::limits::PATH_BYTES_MAX;

const VERIFY: u8 = 1;
const COMPACT: u8 = 2;
const GC: u8 = 3;
const BACKUP: u8 = 4;
const FORK: u8 = 5;

const FLAG_LINK: u8 = 1;
const FLAG_DRY_RUN: u8 = 2;

/// The maintenance to do. Paths are absolute paths on the server's machine, at most 4,096 bytes
/// long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaintainRequest {
    /// Check every byte.
    Verify,
    /// Rewrite segments without their dead records.
    Compact {
        /// A segment is rewritten once this percentage of its bytes is dead, 1 to 100.
        dead_percent: u8,
    },
    /// Remove unreferenced blobs.
    Gc {
        /// Blobs younger than this stay, in whole milliseconds.
        grace: Duration,
        /// A pack is rewritten once this percentage of its bytes is dead, 0 to 100.
        dead_percent: u8,
        /// Only report what would be done.
        dry_run: bool,
    },
    /// Copy the store, or what is new since the last backup in the same place.
    Backup {
        /// The directory of the backup.
        to: String,
        /// Hard-link files that never change instead of copying them.
        link: bool,
    },
    /// Create an independent store with the contents of this one.
    Fork {
        /// The new store's directory.
        to: String,
    },
}

impl MaintainRequest {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Compact { .. } => "compact",
            Self::Gc { .. } => "gc",
            Self::Backup { .. } => "backup",
            Self::Fork { .. } => "fork",
        }
    }

    /// The path outside the store to which files are written, if any.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Backup { to, .. } | Self::Fork { to } => Some(to),
            Self::Verify | Self::Compact { .. } | Self::Gc { .. } => None,
        }
    }

    pub(crate) fn put(&self, out: &mut Gather) {
        let (what, flags, dead_percent, grace) = match self {
            Self::Verify => (VERIFY, 0, 0, Duration::ZERO),
            Self::Compact { dead_percent } => (COMPACT, 0, *dead_percent, Duration::ZERO),
            Self::Gc { grace, dead_percent, dry_run } => {
                (GC, if *dry_run { FLAG_DRY_RUN } else { 0 }, *dead_percent, *grace)
            }
            Self::Backup { link, .. } => {
                (BACKUP, if *link { FLAG_LINK } else { 0 }, 0, Duration::ZERO)
            }
            Self::Fork { .. } => (FORK, 0, 0, Duration::ZERO),
        };
        out.put_u8(what);
        out.put_u8(flags);
        out.put_u8(dead_percent);
        out.put_u8(0);
        out.put_u64(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        out.put_str(self.path().unwrap_or_default());
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let (what, flags, dead_percent) = (body.u8("what")?, body.u8("flags")?, body.u8("dead")?);
        body.zeros(1)?;
        let grace = Duration::from_millis(body.u64("grace")?);
        let to = body.text("path")?.as_str().to_owned();
        let (link, dry_run) = (flags & FLAG_LINK != 0, flags & FLAG_DRY_RUN != 0);
        if flags & !(FLAG_LINK | FLAG_DRY_RUN) != 0 {
            return Err(body.wrong("flags").into());
        }
        body.extensions()?;
        let invalid = |text: String| Err(Refusal::new(Code::InvalidValue, text).into());
        let is_gc = what == GC;
        for (field, is_set, is_used) in [
            ("links", link, what == BACKUP),
            ("a dry run", dry_run, is_gc),
            ("a percentage", dead_percent != 0, is_gc || what == COMPACT),
            ("a grace", !grace.is_zero(), is_gc),
            ("a path", !to.is_empty(), matches!(what, BACKUP | FORK)),
        ] {
            // A field that has no effect would mislead the caller, so it is refused.
            if is_set && !is_used && (VERIFY..=FORK).contains(&what) {
                return invalid(format!("this maintenance has no use for {field}"));
            }
        }
        let lowest = u8::from(what == COMPACT);
        if matches!(what, COMPACT | GC) && !(lowest..=100).contains(&dead_percent) {
            return invalid(format!("{dead_percent} is no percentage of dead bytes"));
        }
        if matches!(what, BACKUP | FORK) {
            if to.len() > PATH_BYTES_MAX {
                return invalid(format!("a path has at most {PATH_BYTES_MAX} bytes"));
            }
            if !to.starts_with('/') || to.contains('\0') {
                return invalid(format!("{to:?} is not an absolute path on the server's machine"));
            }
        }
        match what {
            VERIFY => Ok(Self::Verify),
            COMPACT => Ok(Self::Compact { dead_percent }),
            GC => Ok(Self::Gc { grace, dead_percent, dry_run }),
            BACKUP => Ok(Self::Backup { to, link }),
            FORK => Ok(Self::Fork { to }),
            other => invalid(format!("{other} is no maintenance that this server knows")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    fn read(request: &MaintainRequest) -> Result<MaintainRequest, DecodeError> {
        MaintainRequest::read(Body::new("MAINTAIN", body_of(|out| request.put(out))))
    }

    #[test]
    fn requests_round_trip() {
        let to = "/backups/store".to_owned();
        for request in [
            MaintainRequest::Verify,
            MaintainRequest::Compact { dead_percent: 100 },
            MaintainRequest::Gc { grace: Duration::from_secs(7), dead_percent: 0, dry_run: true },
            MaintainRequest::Backup { to: to.clone(), link: true },
            MaintainRequest::Fork { to },
        ] {
            assert_eq!(read(&request).unwrap(), request);
            let body = body_of(|out| request.put(out));
            each_cut_fails(&body, |bytes| MaintainRequest::read(Body::new("MAINTAIN", bytes)));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        let gc = |dead_percent| MaintainRequest::Gc {
            grace: Duration::ZERO,
            dead_percent,
            dry_run: false,
        };
        for request in [
            MaintainRequest::Compact { dead_percent: 0 },
            MaintainRequest::Compact { dead_percent: 101 },
            gc(101),
            MaintainRequest::Fork { to: String::new() },
            MaintainRequest::Fork { to: "relative".to_owned() },
            MaintainRequest::Fork { to: "/a\0b".to_owned() },
            MaintainRequest::Backup { to: long.clone(), link: false },
        ] {
            assert!(
                matches!(read(&request), Err(DecodeError::Refused(refusal))
                    if refusal.code == Code::InvalidValue),
                "{request:?}"
            );
        }
        // What a kind of work does not use.
        for (what, flags, dead_percent, grace, path) in [
            (VERIFY, FLAG_LINK, 0, 0, ""),
            (VERIFY, FLAG_DRY_RUN, 0, 0, ""),
            (VERIFY, 0, 1, 0, ""),
            (VERIFY, 0, 0, 1, ""),
            (VERIFY, 0, 0, 0, "/a"),
            (COMPACT, FLAG_DRY_RUN, 50, 0, ""),
            (COMPACT, 0, 50, 1, ""),
            (COMPACT, 0, 50, 0, "/a"),
            (GC, FLAG_LINK, 50, 0, ""),
            (GC, 0, 50, 1, "/a"),
            (BACKUP, FLAG_DRY_RUN, 0, 0, "/a"),
            (BACKUP, 0, 1, 0, "/a"),
            (BACKUP, 0, 0, 1, "/a"),
            (FORK, FLAG_LINK, 0, 0, "/a"),
            (FORK, 0, 1, 0, "/a"),
            (FORK, 0, 0, 1, "/a"),
        ] {
            let bytes = body_of(|out| {
                out.put_slice(&[what, flags, dead_percent, 0]);
                out.put_u64(grace);
                out.put_str(path);
            });
            let refused = MaintainRequest::read(Body::new("MAINTAIN", bytes));
            let case = (what, flags, dead_percent, grace, path);
            assert!(
                matches!(refused, Err(DecodeError::Refused(refusal))
                    if refusal.code == Code::InvalidValue),
                "{case:?}"
            );
        }
        let fits = MaintainRequest::Fork { to: long[..PATH_BYTES_MAX].to_owned() };
        assert_eq!(read(&fits).unwrap(), fits);
        for (what, flags) in [(0, 0), (6, 0), (6, FLAG_LINK)] {
            let mut bytes = vec![what, flags, 50, 0];
            bytes.extend([0; 10]);
            let refused = MaintainRequest::read(Body::new("MAINTAIN", bytes.into()));
            assert!(matches!(refused, Err(DecodeError::Refused(_))), "{what} with {flags}");
        }
        for what in [VERIFY, GC, BACKUP, 6] {
            let mut bytes = vec![what, 4, 0, 0];
            bytes.extend([0; 10]);
            let broken = MaintainRequest::read(Body::new("MAINTAIN", bytes.into()));
            assert!(matches!(broken, Err(DecodeError::Protocol(_))), "{what}");
        }
    }
}
