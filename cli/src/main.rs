#![forbid(unsafe_code)]
//! xs, the command line: turns arguments into requests to a store and prints the answers. Nothing
//! lives here that belongs to the engine, the protocol or the runtime.

mod again;
mod alike;
mod archive;
mod args;
mod clock;
mod config;
mod connect;
mod dump;
mod exit;
mod help;
mod host;
mod json;
mod log;
mod manager;
mod output;
mod progress;
mod reach;
mod report;
mod serve;
mod signals;
mod subcommand;
mod usage;
mod variables;

use std::process::ExitCode;

use anyhow::Context as _;
use xs_protocol::Address;

use crate::args::{Args, Program, ReachArgs, Subcommand};
use crate::exit::Exit;

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().collect();
    if let Some(ended) = help::answer(&argv) {
        return end(ended);
    }
    let argv = match usage::locate(argv).and_then(config::take_in) {
        Ok(argv) => argv,
        Err(error) => return end(Err(error)),
    };
    let Args { addr, reach, program } = match usage::parse(&argv) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    let subcommand = match program {
        // The Host process makes its own tokio runtime.
        Program::HostProcess(args) => return host::run(args),
        Program::Subcommand(Subcommand::Serve(serve)) if serve.print_config => {
            return end(config::print(&argv));
        }
        Program::Subcommand(subcommand) => subcommand,
    };
    if subcommand.runs_javascript()
        && let Err(error) = xs_runtime::prepare_by_exec()
    {
        output::notice(&format!("cannot prepare for JavaScript: {error}"));
        return Exit::Failed.into();
    }
    // Without it, an unreadable disk ends the process without a message.
    let _ = xs_engine::name_faults(Exit::StoreUnreadable as u8);
    end(run(subcommand, addr, reach))
}

/// Reports an error, if there was one.
fn end(ended: anyhow::Result<Exit>) -> ExitCode {
    match ended {
        Ok(exit) => exit.into(),
        Err(error) if exit::is_closed_pipe(&error) => Exit::Ok.into(),
        Err(error) => {
            output::notice(&exit::text(&error));
            exit::of(&error).into()
        }
    }
}

fn run(subcommand: Subcommand, addr: Option<Address>, reach: ReachArgs) -> anyhow::Result<Exit> {
    reach::prepare(&reach)?;
    if matches!(subcommand, Subcommand::Serve(_)) {
        serve::take_sockets()?;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    let ended = runtime.block_on(subcommand::run(subcommand, addr, reach.token_file));
    // Reads of standard input cannot be interrupted: they end with the process.
    runtime.shutdown_background();
    ended
}
