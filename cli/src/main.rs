#![forbid(unsafe_code)]
//! xs, the command line: what was typed becomes a request to a store, what comes back is printed.
//! Nothing lives here that belongs to the engine, the protocol or the runtime.

mod args;
mod exit;
mod json;
mod output;

use clap::Parser as _;

fn main() {
    let _ = args::Args::parse_from(args::lift(std::env::args_os().collect()));
}
