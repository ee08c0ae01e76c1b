//! The Host with real isolates and the real protocol, on an in-memory store.

mod command;
mod failing;
mod files;
mod generator;
mod handler;
mod lifecycle;
mod offers;
mod parked;
mod state;
mod supervise;
mod support;
