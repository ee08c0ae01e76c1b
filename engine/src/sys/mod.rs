//! Operating system interfaces that the standard library lacks: shared maps, allocation, cache
//! advice and randomness. The only module of the crate with `unsafe`.
//!
//! The contract of a [`Map`]: one thread at a time writes to it; bytes below its published length
//! are final, so slices are handed out only over those and writes to them are refused; bytes above
//! are accessed only through raw pointers, or by the system, and no reference to them ever exists.
//! A file is never truncated below its published length while it is mapped, only unlinked. If
//! another process truncates it, this process gets a SIGBUS, which is why the store is locked and
//! why its files are private. An unreadable sector does the same, which `fault` can report.

mod fault;
mod file;
mod map;
mod priority;
mod published;

pub use fault::name_faults;
pub(crate) use file::{
    FOLIO_MAX, allocate, allocate_zeros, data_end, drop_cache, free_bytes, is_mappable, is_memory,
    random_bytes,
};
pub(crate) use map::{Map, maps_open};
pub(crate) use priority::give_way;
pub(crate) use published::Published;
