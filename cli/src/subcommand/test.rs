//! `test`: runs the tests of modules and tells what failed, and where. Needs no store.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use xs_runtime::isolate::ModuleError;
use xs_runtime::trial::{Tested, run_file, test_files};

use super::modules;
use crate::args::TestArgs;
use crate::exit::{Exit, Fault};
use crate::output::{Output, Paint};
use crate::variables;

pub(super) async fn run(tests: &TestArgs) -> anyhow::Result<Exit> {
    let files = test_files(&tests.dir);
    let files = files.with_context(|| format!("look for tests in {}", tests.dir.display()))?;
    let wanted = |file: &String| {
        tests.only.is_empty() || tests.only.iter().any(|part| file.contains(part.as_str()))
    };
    let files: Vec<String> = files.into_iter().filter(wanted).collect();
    if files.is_empty() {
        let text = format!("no *.test.ts below {}", tests.dir.display());
        return Fault::fail(Exit::NotFound, text);
    }
    let env = variables::of_file(&tests.env)?;
    let mut out = Output::stdout();
    let (mut passed, mut failed) = (0, 0);
    for file in files {
        let (good, bad) = one(&tests.dir, &file, &env, &mut out).await?;
        passed += good;
        failed += bad;
    }
    if out.is_person() {
        out.line(&format!("{passed} passed, {failed} failed"))?;
    }
    out.flush()?;
    Ok(if failed > 0 { Exit::Failed } else { Exit::Ok })
}

/// Runs one file; how many tests passed and failed.
async fn one(
    dir: &Path,
    file: &str,
    env: &BTreeMap<String, String>,
    out: &mut Output,
) -> anyhow::Result<(usize, usize)> {
    let tested = run_file(dir, file, env).await;
    let failed = tested.tests.iter().filter(|test| test.error.is_some()).count();
    let passed = tested.tests.len() - failed;
    for Tested { name, ms, error } in &tested.tests {
        tell(file, Some(name), *ms, error.as_ref(), out)?;
    }
    if let Some(error) = &tested.error {
        tell(file, None, 0.0, Some(error), out)?;
    }
    out.flush()?;
    Ok((passed, failed + usize::from(tested.error.is_some())))
}

fn tell(
    file: &str,
    name: Option<&str>,
    ms: f64,
    error: Option<&ModuleError>,
    out: &mut Output,
) -> std::io::Result<()> {
    let error = error.map(ModuleError::to_json);
    if !out.is_person() {
        let line = json!({ "file": file, "test": name, "ms": ms, "error": error });
        return out.line(&line.to_string());
    }
    let name = name.unwrap_or("cannot be run");
    match error {
        None => out.line(&format!("ok      {file}: {name} ({ms:.0} ms)")),
        Some(error) => {
            let word = out.paint(Paint::Bad, "FAILED");
            out.line(&format!("{word}  {file}: {name}"))?;
            out.line(&modules::describe(&error))
        }
    }
}
