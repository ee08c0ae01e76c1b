//! The protocol over real sockets and over streams in memory, with a store in memory behind it.

mod memory;
mod ops;
mod rig;
