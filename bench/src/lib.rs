//! What benches are made of: clocks' figures, rows, plots, processes, frames, yardsticks. It knows
//! no bench; the binary beside it and `bench/compare` do.

#![forbid(unsafe_code)]

pub mod bare;
pub mod daemon;
pub mod environment;
pub mod histogram;
pub mod plot;
pub mod process;
pub mod report;
pub mod scratch;
pub mod server;
pub mod workload;
