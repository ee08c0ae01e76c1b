//! The two ends of a Host as the binary has them: `serve` keeps one running as a child of its own
//! program, and one for each module that is set apart; the hidden subcommand `__host` is that
//! child.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use xs_protocol::{Entry, Role, Server};
use xs_runtime::host::{Part, SPENT_ISOLATES_MAX};
use xs_runtime::supervise::child::{self, ChildOptions};
use xs_runtime::supervise::{SuperviseOptions, Supervisor};

use crate::args::{HostArgs, ServeArgs};

/// Starts a Host for the modules of a directory. It is connected to `server` over a socket pair.
pub(super) fn start(
    modules: &Path,
    store: &Path,
    args: &ServeArgs,
    server: &Server,
) -> anyhow::Result<Supervisor> {
    let mut words = vec![
        OsString::from("__host"),
        "--modules".into(),
        modules.into(),
        "--store".into(),
        store.into(),
        "--log".into(),
        args.log.log.as_str().into(),
        "--log-level".into(),
        args.log.log_level.to_string().into(),
    ];
    let allow = [
        (args.allow.allow_net_any, "--allow-net-any"),
        (args.allow.allow_net_private, "--allow-net-private"),
        (args.allow.allow_run, "--allow-run"),
    ];
    if let Some(file) = &args.env.env_file {
        // The Host has a working directory of its own making only by chance.
        words.extend(["--env-file".into(), std::path::absolute(file)?.into_os_string()]);
    }
    words.extend(allow.into_iter().filter(|(is_set, _)| *is_set).map(|(_, word)| word.into()));
    let program = std::env::current_exe().context("find the program of this process")?;
    let server = server.clone();
    let adopt = move |stream, alone: Option<&str>| {
        let entry = alone.map_or(Entry::Role(Role::Host), |name| Entry::Alone(name.into()));
        drop(server.adopt(stream, entry));
    };
    let options = SuperviseOptions { program, args: words, modules: Some(modules.to_owned()) };
    Ok(Supervisor::start(options, Box::new(adopt)))
}

/// Is the Host, until the server stops it.
pub(crate) fn run(args: HostArgs) -> ExitCode {
    super::log::start(args.log);
    let allow = args.allow.allow(vec![args.store]);
    let spent_isolates_max = SPENT_ISOLATES_MAX;
    let env_file = args.env.env_file;
    let part = match args.only {
        Some(name) => Part::Only(name),
        None => Part::AllBut(args.apart.into_iter().collect()),
    };
    let modules = Some(args.modules);
    child::main(ChildOptions { modules, allow, spent_isolates_max, env_file, part })
}
