//! `test`: runs the tests of modules and reports failures with their positions. Needs no store.

use std::io;
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use serde_json::json;
use xs_runtime::isolate::{LogLevel, ModuleError};
use xs_runtime::trial::{Tested, Watch, run_file, test_files};

use super::modules::{self, Within, within};
use crate::args::TestArgs;
use crate::exit::{Exit, ExitError};
use crate::output::{Output, Paint, aside};
use crate::variables;

pub(super) async fn run(tests: &TestArgs) -> anyhow::Result<Exit> {
    let Within { dir: modules, file: one } = within(&tests.dir);
    let files = test_files(&modules);
    let files = files.with_context(|| format!("cannot look for tests in {}", modules.display()))?;
    let wanted = |file: &String| {
        let is_named = tests.only.iter().any(|part| file.contains(part.as_str()));
        one.as_ref().is_none_or(|one| one == file) && (tests.only.is_empty() || is_named)
    };
    let (all, dir) = (files.len(), tests.dir.display());
    let files: Vec<String> = files.into_iter().filter(wanted).collect();
    if files.is_empty() {
        if one.is_some() {
            let text = format!("{dir} is not a test: test files end in .test.ts or .test.js");
            return ExitError::fail(Exit::NotFound, text);
        }
        let text = match (all, tests.only.join(" or ")) {
            (0, _) => format!("no *.test.ts below {dir}"),
            (1, parts) => {
                format!("the only test file below {dir} does not have {parts} in its path")
            }
            (all, parts) => format!("none of {all} test files below {dir} has {parts} in its path"),
        };
        return ExitError::fail(Exit::NotFound, text);
    }
    let env = variables::of_file(&tests.env)?;
    let out = Arc::new(Mutex::new(Output::stdout()));
    let (mut passed, mut failed) = (0, 0);
    for file in files {
        let screen = Arc::new(Screen::of(&file, &out));
        let watch: Arc<dyn Watch> = Arc::clone(&screen) as Arc<dyn Watch>;
        let tested = run_file(&modules, &file, &env, &watch).await;
        if let Some(error) = &tested.error {
            screen.tell(None, 0.0, Some(error));
        }
        if let Some(error) = screen.lost.lock().take() {
            return Err(error.into());
        }
        let bad = tested.tests.iter().filter(|test| test.error.is_some()).count();
        passed += tested.tests.len() - bad;
        failed += bad + usize::from(tested.error.is_some());
    }
    let mut out = out.lock();
    if out.is_person() {
        out.line(&format!("{passed} passed, {failed} failed"))?;
    }
    out.flush()?;
    Ok(if failed > 0 { Exit::Failed } else { Exit::Ok })
}

/// Prints the results of a file as they arrive, and the lines logged meanwhile.
struct Screen {
    file: String,
    out: Arc<Mutex<Output>>,
    /// The first output error.
    lost: Mutex<Option<io::Error>>,
}

impl Screen {
    fn of(file: &str, out: &Arc<Mutex<Output>>) -> Self {
        Self { file: file.to_owned(), out: Arc::clone(out), lost: Mutex::default() }
    }

    fn tell(&self, name: Option<&str>, ms: f64, error: Option<&ModuleError>) {
        let mut out = self.out.lock();
        let told = line(&self.file, name, ms, error, &mut out).and_then(|()| out.flush());
        if let Err(error) = told {
            self.lost.lock().get_or_insert(error);
        }
    }
}

impl Watch for Screen {
    fn log(&self, name: &str, level: LogLevel, message: &str, fields: Option<&str>) {
        // The lock keeps log lines apart from a result being written.
        let _out = self.out.lock();
        let fields = fields.map(|fields| format!(" {fields}")).unwrap_or_default();
        aside(&format!("{}: {name}: {}: {message}{fields}", self.file, level.as_str()));
    }

    fn tested(&self, Tested { name, ms, error }: &Tested) {
        self.tell(Some(name), *ms, error.as_ref());
    }
}

fn line(
    file: &str,
    name: Option<&str>,
    ms: f64,
    error: Option<&ModuleError>,
    out: &mut Output,
) -> io::Result<()> {
    let error = error.map(ModuleError::to_json);
    if !out.is_person() {
        let ms = (ms * 10.0).round() / 10.0;
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
