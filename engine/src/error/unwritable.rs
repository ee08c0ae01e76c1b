//! Why nothing may be written, which each operation that writes reports as an error of its own.

use super::{AppendError, CompactError, GcError, PutError, ReadOnlyReason, Shortage};
use crate::io_error::IoError;

/// Why nothing may be written. Nothing was.
#[derive(Debug)]
pub(crate) enum Unwritable {
    ReadOnly(ReadOnlyReason),
    /// An earlier write failed, or one that prepares for this one.
    Poisoned(IoError),
    Closed,
    StorageFull(Shortage),
}

/// The operations that write name these reasons alike.
macro_rules! reported_by {
    ($($error:ident),*) => {$(
        impl From<Unwritable> for $error {
            fn from(why: Unwritable) -> Self {
                match why {
                    Unwritable::ReadOnly(reason) => Self::ReadOnly(reason),
                    Unwritable::Poisoned(why) => Self::Poisoned(why),
                    Unwritable::Closed => Self::Closed,
                    Unwritable::StorageFull(shortage) => Self::StorageFull(shortage),
                }
            }
        }
    )*};
}

reported_by!(AppendError, CompactError, GcError, PutError);
