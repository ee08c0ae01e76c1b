//! `modules`: shows the state of modules, and lets an operator act on one. Everything goes through
//! frames in the log and cursors; nothing here talks to the Host directly.

mod act;
mod check;
mod command;
mod fresh;
mod logs;
mod parked;
mod show;
mod survey;
mod within;

use std::io;

use serde_json::{Value, json};
use xs_protocol::Client;
use xs_runtime::host::files::CONFIG_FILE;
use xs_runtime::host::lifecycle::Key;

pub(super) use check::run as check;
pub(super) use command::describe_command;
pub(super) use fresh::make;
pub(super) use logs::said;
pub(super) use show::lag;
pub(crate) use survey::{TOPICS as MODULE_TOPICS, overview as modules_overview};
pub(super) use survey::{all, config_error_of, describe, meant, meta, place, summary};
pub(super) use within::{Within, within};

use self::survey::ModuleState;
use crate::args::ModulesStoreSubcommand;
use crate::exit::Exit;
use crate::output::Output;

/// What happens to the modules while `xs.toml` is invalid.
pub(super) const STILL: &str = "changes are ignored; the modules keep running as before";

/// The queried store, and whether a server answers for it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) client: &'a Client,
    pub(super) served: bool,
}

/// Runs a subcommand on a store.
pub(super) async fn run(
    asked: Asked<'_>,
    subcommand: ModulesStoreSubcommand,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    match subcommand {
        ModulesStoreSubcommand::List { check, all } => list(asked, check, all, out).await,
        ModulesStoreSubcommand::Show { name } => show::show(asked, &name, out).await,
        ModulesStoreSubcommand::State { name, at } => show::state(asked, &name, at, out).await,
        ModulesStoreSubcommand::Logs { name, count, follow } => {
            logs::run(asked, &name, count, follow, out).await
        }
        ModulesStoreSubcommand::Stop { name } => act::stop(asked, &name, out).await,
        ModulesStoreSubcommand::Start { name } => act::start(asked, &name, out).await,
        ModulesStoreSubcommand::Reset { name, sure } => act::reset(asked, &name, sure, out).await,
        ModulesStoreSubcommand::Parked { name } => parked::list(asked, &name, out).await,
        ModulesStoreSubcommand::Unpark { name, ids } => {
            parked::unpark(asked, &name, ids, out).await
        }
        ModulesStoreSubcommand::Discard { name, ids, sure } => {
            parked::discard(asked, &name, ids, sure, out).await
        }
    }
}

/// Reports an action on a module: a sentence for a person, facts for a program.
fn say(out: &mut Output, key: &Key, text: &str, facts: &[(&str, Value)]) -> io::Result<()> {
    if out.is_person() {
        return out.line(text);
    }
    let named = [("name", json!(key.name.as_str())), ("kind", json!(key.kind.as_str()))];
    let (names, row): (Vec<_>, Vec<_>) = named.into_iter().chain(facts.iter().cloned()).unzip();
    out.table(&names, &[row])
}

async fn list(asked: Asked<'_>, check: bool, all: bool, out: &mut Output) -> anyhow::Result<Exit> {
    let modules = survey::all(asked.client, asked.served).await?;
    let shown = modules.iter().filter(|(_, module)| all || module.state() != ModuleState::Deleted);
    let rows = shown.map(|(key, module)| {
        vec![
            json!(key.kind.as_str()),
            json!(key.name.as_str()),
            json!(module.state().as_str()),
            json!(out.time(module.latest.1.id().time_ms())),
            json!(module.file),
            json!(module.error.as_ref().map(survey::summary)),
        ]
    });
    let mut rows: Vec<_> = rows.collect();
    let config = survey::config_error(asked).await?;
    // It concerns all modules and is not one itself; `modules check` lists it too.
    rows.extend(config.iter().map(|(frame, error)| {
        let text = format!("{}; {STILL}", survey::summary_of(error));
        let since = out.time(frame.id().time_ms());
        let [file, state] = [CONFIG_FILE, ModuleState::Invalid.as_str()].map(|text| json!(text));
        vec![Value::Null, Value::Null, state, json!(since), file, json!(text)]
    }));
    out.table(&["kind", "name", "state", "since", "file", "error"], &rows)?;
    let failed = config.is_some() || modules.values().any(survey::Module::has_failed);
    Ok(if check && failed { Exit::Failed } else { Exit::Ok })
}
