//! `modules check`: evaluates the modules of a directory as a server would, without running them,
//! and reports errors. Needs no store.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;
use xs_runtime::host::check::{Checked, check};

use super::survey;
use super::within::{Within, within};
use crate::args::AllowArgs;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, Paint};

pub(in super::super) async fn run(path: PathBuf, allowed: AllowArgs) -> anyhow::Result<Exit> {
    let Within { dir, file: only } = within(&path);
    let checked = check(&dir, &allowed.allow(Vec::new())).await;
    let mut checked =
        checked.with_context(|| format!("cannot check the modules in {}", dir.display()))?;
    if let Some(only) = only {
        checked.retain(|checked| checked.file == only);
    }
    let mut out = Output::stdout();
    for Checked { key, file, error } in &checked {
        let error = error.as_ref().map(|error| error.to_json());
        if !out.is_person() {
            let line = json!({
                "kind": key.as_ref().map(|key| key.kind.as_str()),
                "name": key.as_ref().map(|key| key.name.as_str()),
                "file": file,
                "error": error,
            });
            out.line(&line.to_string())?;
        } else if let Some(error) = &error {
            let text = out.paint(Paint::Bad, &survey::describe(error));
            out.line(&format!("{file}: {text}"))?;
        } else {
            out.line(&format!("{file}: ok"))?;
        }
    }
    out.flush()?;
    if checked.is_empty() {
        let text = "no modules: they belong in generators/, handlers/ and commands/";
        let is = if path.is_file() { "is" } else { "holds" };
        return ExitError::fail(Exit::NotFound, format!("{} {is} {text}", path.display()));
    }
    let failed = checked.iter().any(|checked| checked.error.is_some());
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}
