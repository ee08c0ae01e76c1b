//! The variables that code of the user's is offered: those of this process, and those of a file.

use std::collections::BTreeMap;
use std::ffi::OsString;

use xs_runtime::env_file;

use crate::args::EnvArgs;
use crate::exit::{Exit, Fault};

/// What `--env-file` names holds; nothing without one.
pub(crate) fn of_file(args: &EnvArgs) -> anyhow::Result<BTreeMap<String, String>> {
    match &args.env_file {
        Some(file) => match env_file::load(file) {
            Ok(variables) => Ok(variables),
            Err(error) => Fault::fail(Exit::Usage, error.to_string()),
        },
        None => Ok(BTreeMap::new()),
    }
}

/// What code of the user's is offered here: what the environment does not name is taken from the
/// file.
pub(crate) fn offered(args: &EnvArgs) -> anyhow::Result<BTreeMap<String, String>> {
    let mut variables = of_file(args)?;
    variables.extend(of_process());
    Ok(variables)
}

/// Those of this process, as far as they are text.
pub(crate) fn of_process() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}
