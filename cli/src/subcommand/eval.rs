//! `eval`: the user's own JavaScript against a store, in an isolate in this process: a script, or a
//! prompt that remembers what was typed.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use xs_protocol::Address;
use xs_runtime::isolate::{LogLevel, ModuleError};
use xs_runtime::script::{self, Console, Line, Prompt, SOURCE_BYTES_MAX, Surroundings};

use super::modules;
use crate::args::EvalArgs;
use crate::connect::{Session, default_store};
use crate::exit::{Exit, ExitError};
use crate::output::{Output, aside, notice};
use crate::variables;

/// Number of history lines kept.
const HISTORY_LINES: usize = 1_000;
/// The history file, next to the user's default store.
const HISTORY_FILE: &str = "eval-history";

/// The script to run.
struct Source {
    /// The directory against which its imports resolve.
    dir: PathBuf,
    /// Its path in that directory.
    path: String,
    text: String,
}

pub(super) async fn run(session: &Session, eval: &EvalArgs) -> anyhow::Result<Exit> {
    let screen = Arc::new(Screen {
        out: Mutex::new(Output::stdout()),
        lost: Mutex::default(),
        unread: Notify::new(),
    });
    let here = std::env::current_dir().context("cannot find the working directory")?;
    let own = match &session.address {
        Address::Unix(socket) => socket.parent().map(Path::to_owned),
        _ => None,
    };
    let mut env = variables::of_file(&eval.env)?;
    // Values from the env file are secret, the rest of the environment is not.
    let hidden = env.keys().cloned().collect();
    env.extend(variables::of_process());
    let around = Surroundings {
        client: session.client.clone(),
        console: Arc::clone(&screen) as Arc<dyn Console>,
        env,
        hidden,
        base: here,
        read_denied: own.into_iter().collect(),
    };
    if eval.interactive || is_prompt(eval) {
        return prompt(&around, session).await;
    }
    let (given, here) = (Given::of(eval), around.base.clone());
    // On a separate thread: a pipe may be slow.
    let source = tokio::task::spawn_blocking(move || source(given, &here)).await??;
    let ended = tokio::select! {
        ended = script::run(&source.dir, &source.path, &source.text, &around) => ended,
        // A script that never ends stops when its output is closed.
        () = screen.unread.notified() => Ok(()),
    };
    if let Some(error) = screen.lost.lock().take() {
        return Err(error.into());
    }
    match ended {
        Ok(()) => Ok(Exit::Ok),
        Err(error) => ExitError::fail(Exit::Failed, told(&error)),
    }
}

/// Whether it is an interactive prompt, where Ctrl-C ends a line and not the program.
pub(super) fn is_prompt(eval: &EvalArgs) -> bool {
    eval.code.is_none() && eval.file.is_none() && io::stdin().is_terminal()
}

fn told(error: &ModuleError) -> String {
    modules::describe(&error.to_json()).trim_end().to_owned()
}

/// Where the source comes from.
enum Given {
    File(PathBuf),
    Code(String),
    Stdin,
}

impl Given {
    fn of(eval: &EvalArgs) -> Self {
        match (&eval.file, eval.code.as_deref()) {
            (Some(file), _) => Self::File(file.clone()),
            (None, Some(code)) if code != "-" => Self::Code(code.to_owned()),
            _ => Self::Stdin,
        }
    }
}

fn source(given: Given, here: &Path) -> anyhow::Result<Source> {
    let named =
        |path: &str, text: String| Source { dir: here.to_owned(), path: path.to_owned(), text };
    match given {
        Given::File(file) => of_file(&file, here),
        Given::Code(code) => Ok(named("[eval].ts", code)),
        Given::Stdin => {
            let text = limited(io::stdin().lock()).context("cannot read standard input")?;
            Ok(named("[stdin].ts", text))
        }
    }
}

/// A file below the working directory may import from all of it, another file only from its own
/// directory.
fn of_file(file: &Path, here: &Path) -> anyhow::Result<Source> {
    let opened = std::fs::File::open(file).with_context(|| file.display().to_string())?;
    let text = limited(opened).with_context(|| file.display().to_string())?;
    let whole = here.join(file);
    let inside = whole.strip_prefix(here).ok().filter(|path| {
        path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    });
    let (dir, path) = match (inside, whole.parent(), whole.file_name()) {
        (Some(inside), _, _) => (here.to_owned(), inside.components().collect()),
        (None, Some(dir), Some(name)) => (dir.to_owned(), PathBuf::from(name)),
        _ => return ExitError::fail(Exit::Usage, format!("{} is not a file", file.display())),
    };
    Ok(Source { dir, path: path.to_string_lossy().into_owned(), text })
}

fn limited(source: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(SOURCE_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// The output of a script: values and ordinary log lines on standard output, warnings and errors on
/// standard error.
struct Screen {
    out: Mutex<Output>,
    /// The first output error.
    lost: Mutex<Option<io::Error>>,
    /// Notified of that error.
    unread: Notify,
}

impl Screen {
    fn show(&self, show: impl FnOnce(&mut Output) -> io::Result<()>) -> bool {
        let mut out = self.out.lock();
        match show(&mut out).and_then(|()| out.flush()) {
            Ok(()) => true,
            Err(error) => {
                self.lost.lock().get_or_insert(error);
                self.unread.notify_one();
                false
            }
        }
    }
}

impl Console for Screen {
    fn text(&self, text: &str) -> bool {
        self.show(|out| out.line(text))
    }

    fn bytes(&self, bytes: &[u8]) -> bool {
        self.show(|out| out.bytes(bytes))
    }

    fn log(&self, level: LogLevel, message: &str, fields: Option<&str>) -> bool {
        let line = match fields {
            Some(fields) => format!("{message} {fields}"),
            None => message.to_owned(),
        };
        if level >= LogLevel::Warn {
            aside(&line);
            return true;
        }
        self.text(&line)
    }
}

/// The history file.
fn history() -> Option<PathBuf> {
    Some(default_store().ok()?.parent()?.join(HISTORY_FILE))
}

/// A line editor that loads the history.
fn editor(history: Option<&Path>) -> anyhow::Result<DefaultEditor> {
    let config = Config::builder().max_history_size(HISTORY_LINES)?.build();
    let mut editor = DefaultEditor::with_config(config)?;
    if let Some(path) = history {
        // On the first use there is no file.
        let _ = editor.load_history(path);
    }
    Ok(editor)
}

/// Reads a line and returns the editor, since reading blocks.
async fn read_line(
    mut editor: DefaultEditor,
    sign: &'static str,
) -> anyhow::Result<(DefaultEditor, rustyline::Result<String>)> {
    let read = move || {
        let line = editor.readline(sign);
        (editor, line)
    };
    Ok(tokio::task::spawn_blocking(read).await?)
}

async fn prompt(around: &Surroundings, session: &Session) -> anyhow::Result<Exit> {
    let history = history();
    let mut editor = editor(history.as_deref())?;
    let seen = io::stdin().is_terminal();
    if seen {
        aside(&format!("xs {}, {}", env!("CARGO_PKG_VERSION"), session.address));
        aside("ctx is the store: try ctx.read({ last: 3 }); Ctrl-C cancels a line, Ctrl-D exits");
    }
    let mut prompt = start(around).await?;
    let mut typed = String::new();
    let (mut failed, mut asked) = (false, false);
    loop {
        let sign = if typed.is_empty() { "> " } else { "... " };
        let (back, line) = read_line(editor, sign).await?;
        editor = back;
        match line {
            Ok(line) => typed.push_str(&line),
            Err(ReadlineError::Interrupted) if asked => return Ok(Exit::Interrupted),
            Err(ReadlineError::Interrupted) => {
                typed.clear();
                aside("press Ctrl-C again or Ctrl-D to exit");
                asked = true;
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read a line"),
        }
        asked = false;
        if typed.trim().is_empty() {
            typed.clear();
            continue;
        }
        let Some(line) = evaluate(&prompt, &typed).await? else {
            return Ok(Exit::Interrupted);
        };
        match line {
            Line::Unfinished => {
                typed.push('\n');
                continue;
            }
            Line::Done => {}
            Line::Cancelled => notice("cancelled"),
            Line::Ended => {
                notice("it did not stop, so the session was restarted; declarations are lost");
                prompt = start(around).await?;
            }
            Line::Failed(error) => {
                failed = true;
                notice(&told(&error));
            }
            Line::Lost(error) => {
                failed = true;
                notice(&format!(
                    "{}\nthe session was restarted; declarations are lost",
                    told(&error)
                ));
                prompt = start(around).await?;
            }
        }
        // A line that cannot be added to the history is just not there.
        let _ = editor.add_history_entry(typed.trim());
        typed.clear();
        if let Some(path) = &history {
            let _ = editor.save_history(path);
        }
    }
    if !typed.is_empty() {
        return ExitError::fail(Exit::Failed, "the last line is incomplete");
    }
    // At a terminal the user saw the error and continued.
    Ok(if failed && !seen { Exit::Failed } else { Exit::Ok })
}

/// Runs a line. Ctrl-C cancels it; a second one, if that does not help, ends the prompt with
/// `None`.
async fn evaluate(prompt: &Prompt, typed: &str) -> io::Result<Option<Line>> {
    // A fresh handler: earlier signals do not concern this line.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = CancellationToken::new();
    let mut line = std::pin::pin!(prompt.line(typed, &cancel));
    loop {
        tokio::select! {
            line = &mut line => return Ok(Some(line)),
            _ = interrupt.recv() => {
                if cancel.is_cancelled() {
                    return Ok(None);
                }
                cancel.cancel();
            }
        }
    }
}

async fn start(around: &Surroundings) -> anyhow::Result<Prompt> {
    Prompt::start(around).await.map_err(|error| ExitError::new(Exit::Failed, told(&error)).into())
}
