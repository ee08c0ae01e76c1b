//! Tools that need no store: ids, completions, the manual.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _, ValueHint};
use serde_json::json;
use xs_engine::FrameId;

use crate::args::{Args, CompletionsArgs, IdArgs, ManArgs};
use crate::exit::Exit;
use crate::output::Output;

pub(super) fn id(args: &IdArgs) -> anyhow::Result<Exit> {
    let mut out = Output::stdout();
    match (args.id, args.at) {
        (Some(id), _) => {
            let row =
                vec![json!(id.to_string()), json!(out.time(id.time_ms())), json!(id.time_ms())];
            out.table(&["id", "time", "time_ms"], &[row])?;
        }
        (None, Some(at)) => out.line(&FrameId::first_of_ms(at).to_string())?,
        (None, None) => {
            out.line(&FrameId::from_bytes(scru128::new().to_bytes()).to_string())?;
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut for_people(), "xs", &mut script);
    let mut out = Output::stdout();
    out.bytes(&script)?;
    out.flush()?;
    Ok(Exit::Ok)
}

/// The command line without hidden subcommands, which completion scripts would offer.
fn for_people() -> Command {
    let whole = Args::command();
    let shown = whole.get_subcommands().filter(|below| !below.is_hide_set());
    let shown = shown.map(|below| without_files(below.clone()));
    let about = whole.get_about().cloned().unwrap_or_default();
    Command::new("xs")
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .args(whole.get_arguments())
        .subcommands(shown)
}

/// Restricts completion of file names to options that take a file or a directory, and to positional
/// arguments, which may be a store.
fn without_files(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_value_hint() {
        ValueHint::Unknown if !arg.is_positional() && arg.get_action().takes_values() => {
            arg.value_hint(ValueHint::Other)
        }
        _ => arg,
    });
    command.mut_subcommands(without_files)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let command = Args::command();
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        let mut out = Output::stdout();
        out.bytes(&page)?;
        out.flush()?;
        return Ok(Exit::Ok);
    };
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    pages(dir, command, "xs")?;
    Ok(Exit::Ok)
}

/// Writes the manual pages of a command and its subcommands.
fn pages(dir: &Path, command: clap::Command, name: &str) -> anyhow::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(dir, below.clone(), &format!("{name}-{}", below.get_name()))?;
    }
    let path = dir.join(format!("{name}.1"));
    // Pages are looked up by their full name: that of `xs cas get` is `xs-cas-get`.
    let title: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let mut page = Vec::new();
    clap_mangen::Man::new(command.name(title)).render(&mut page)?;
    let mut file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    file.write_all(&page).with_context(|| path.display().to_string())
}
