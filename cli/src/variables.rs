//! The environment variables offered to the user's code: those of this process and those of a file.

use std::collections::BTreeMap;
use std::ffi::OsString;

use xs_runtime::env_file;

use crate::args::EnvArgs;
use crate::exit::{Exit, ExitError};

/// The variables of the `--env-file`; empty without one.
pub(crate) fn of_file(args: &EnvArgs) -> anyhow::Result<BTreeMap<String, String>> {
    match &args.env_file {
        Some(file) => match env_file::load(file) {
            Ok(variables) => Ok(variables),
            Err(error) => ExitError::fail(Exit::Usage, error.to_string()),
        },
        None => Ok(BTreeMap::new()),
    }
}

/// The variables offered to the user's code: the environment takes precedence over the file.
pub(crate) fn offered(args: &EnvArgs) -> anyhow::Result<BTreeMap<String, String>> {
    let mut variables = of_file(args)?;
    variables.extend(of_process());
    Ok(variables)
}

/// The variables of this process that are valid text.
pub(crate) fn of_process() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}
