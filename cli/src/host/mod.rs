//! The Host in this binary: starts it as a child process of the same program, one for the modules
//! together and one for each with its own process, and implements the hidden subcommand `__host`,
//! which is that child. `beside` keeps it beside a server, `away` on another machine.

mod away;
mod beside;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use xs_runtime::host::{Part, SPENT_ISOLATES_MAX};
use xs_runtime::supervise::SuperviseOptions;
use xs_runtime::supervise::child::{self, ChildOptions};

use crate::args::{AllowArgs, EnvArgs, HostProcessArgs, LogArgs, LogFormat};
use crate::exit::{Exit, ExitError};

pub(crate) use away::run as run_away;
pub(crate) use beside::start as start_beside;

/// The settings of a Host, wherever its server is.
struct Told<'a> {
    modules: &'a Path,
    allow: AllowArgs,
    env: &'a EnvArgs,
    log: LogArgs,
    /// Paths that no module may read.
    shut: Vec<PathBuf>,
    /// Environment variables that no Host gets.
    hidden: Vec<String>,
}

impl Told<'_> {
    /// The command line of the Host process.
    fn options(self) -> anyhow::Result<SuperviseOptions> {
        let mut args = vec![
            OsString::from("__host"),
            "--modules".into(),
            self.modules.into(),
            "--log".into(),
            self.log.log.as_str().into(),
            "--log-level".into(),
            self.log.log_level.to_string().into(),
        ];
        if self.log.untold {
            args.push("--untold".into());
        }
        for path in self.shut {
            args.extend(["--shut".into(), path.into_os_string()]);
        }
        let allow = [
            (self.allow.allow_net_any, "--allow-net-any"),
            (self.allow.allow_net_private, "--allow-net-private"),
            (self.allow.allow_run, "--allow-run"),
        ];
        if let Some(file) = &self.env.env_file {
            // Made absolute: nothing guarantees that the Host has our working directory.
            args.extend(["--env-file".into(), std::path::absolute(file)?.into_os_string()]);
        }
        args.extend(allow.into_iter().filter(|(is_set, _)| *is_set).map(|(_, word)| word.into()));
        let program = std::env::current_exe().context("cannot find the program of this process")?;
        let modules = Some(self.modules.to_owned());
        let is_json_log = matches!(self.log.log, LogFormat::Json);
        Ok(SuperviseOptions { program, args, modules, hidden: self.hidden, is_json_log })
    }
}

/// Refuses an unreadable modules directory, before anything is started.
pub(crate) fn check_modules(dir: &Path) -> anyhow::Result<()> {
    match std::fs::read_dir(dir) {
        Ok(_) => Ok(()),
        Err(error) => ExitError::fail(
            Exit::Usage,
            format!(
                "cannot read the modules in {}: {error}; make the directory, or name another",
                dir.display()
            ),
        ),
    }
}

/// Runs the Host in this process until it is stopped.
pub(crate) fn run(args: HostProcessArgs) -> ExitCode {
    crate::log::start(LogArgs { untold: args.untold, ..args.log });
    let allow = args.allow.allow(args.shut);
    let spent_isolates_max = SPENT_ISOLATES_MAX;
    let env_file = args.env.env_file;
    let part = match args.only {
        Some(name) => Part::Only(name),
        None => Part::AllBut(args.apart.into_iter().collect()),
    };
    let modules = Some(args.modules);
    child::main(ChildOptions { modules, allow, spent_isolates_max, env_file, part })
}
