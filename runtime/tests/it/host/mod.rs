//! The Host with real isolates and the real protocol, beside a store in memory.

mod command;
mod failing;
mod files;
mod generator;
mod handler;
mod lifecycle;
mod parked;
mod state;
mod supervise;
mod support;
