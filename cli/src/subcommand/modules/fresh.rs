//! `modules new`: a first version of a module, and the types that an editor needs.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use xs_runtime::host::editor;
use xs_runtime::{Kind, ProcessorName};

use crate::args::KindArg;
use crate::exit::{Exit, ExitError};
use crate::output::Output;

const GENERATOR: &str = r#"import { generator } from "xs";

// Each value yielded becomes one frame NAME.recv; objects become meta, text becomes the body.
export default generator({
  about: "says the time once a minute",
  async *run(ctx) {
    for await (const time of ctx.every("1m")) yield { time: time.toISOString() };
  },
});
"#;

const HANDLER: &str = r#"import { handler } from "xs";

// Called for each frame of its topics, one at a time. What it returns becomes one frame NAME.out,
// stored together with the state or not at all. "a.*" takes all topics below a; "*" takes all there
// are, also what other handlers make.
export default handler({
  about: "counts what happens",
  topics: "in.*",
  start: "new",
  state: { count: 0 },
  run(frame, ctx) {
    ctx.state.count++;
    return { count: ctx.state.count, of: frame.topic };
  },
});
"#;

const COMMAND: &str = r#"import { command } from "xs";

// Answers `xs call NAME who=...`. Each value yielded becomes one frame NAME.recv at once.
export default command({
  about: "greets",
  args: { who: "string?" },
  async *run(call, ctx) {
    yield { hello: call.args.who ?? "world" };
  },
});
"#;

/// Maximum depth of nested directories searched.
const DEPTH_MAX: usize = 16;

/// The file of the module with this name in a kind's directory: a dot may stand for a subdirectory.
fn named(dir: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    for end in ["ts", "js"] {
        let path = dir.join(format!("{name}.{end}"));
        if path.is_file() {
            return Some(path);
        }
    }
    let dots = name.match_indices('.').filter(|_| depth > 0);
    dots.map(|(at, _)| (dir.join(&name[..at]), &name[at + 1..]))
        .filter(|(below, _)| below.is_dir())
        .find_map(|(below, rest)| named(&below, rest, depth - 1))
}

pub(in super::super) fn make(kind: KindArg, name: &str, dir: &Path) -> anyhow::Result<Exit> {
    let name = ProcessorName::parse(&name.replace('/', ".")).map_err(|error| {
        ExitError::new(Exit::Usage, format!("{name:?} is not a valid name: {error}"))
    })?;
    let (kind, text) = match kind {
        KindArg::Generator => (Kind::Generator, GENERATOR),
        KindArg::Handler => (Kind::Handler, HANDLER),
        KindArg::Command => (Kind::Command, COMMAND),
    };
    let path = dir.join(kind.dir()).join(format!("{name}.ts"));
    for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
        if let Some(rival) = named(&dir.join(other.dir()), name.as_str(), DEPTH_MAX) {
            let text = format!(
                "{} has that name; names must be unique across the three kinds",
                rival.display()
            );
            return ExitError::fail(Exit::Failed, text);
        }
    }
    fs::create_dir_all(dir.join(kind.dir())).context("cannot create the module's directory")?;
    let made = fs::File::options().write(true).create_new(true).open(&path);
    if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        let text = format!("{} already exists and was not changed", path.display());
        return ExitError::fail(Exit::Failed, text);
    }
    let mut file = made.with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(text.replace("NAME", name.as_str()).as_bytes())?;
    editor::keep_current(dir).context("cannot write the type definitions for editors")?;
    let mut out = Output::stdout();
    out.line(&path.display().to_string())?;
    out.flush()?;
    Ok(Exit::Ok)
}
