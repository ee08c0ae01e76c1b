//! Parts shared by benches: histograms, rows, plots, processes, frames and bare loops. It knows no
//! bench; the binaries of this package and `bench/compare` do.

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
