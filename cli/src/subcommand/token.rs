//! `token create`, `list` and `revoke`: the tokens of a store, managed in its directory. Anyone who
//! can write there is its owner; no server is involved, and a running one notices the change.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use xs_engine::names::is_store;
use xs_engine::{Store, StoreOptions};
use xs_protocol::{Address, Grant, NewToken, Scope, TOKENS_NAME, TokenError, TokenFile};

use crate::args::{TokenCreateArgs, TokenSubcommand};
use crate::clock::now_ms;
use crate::connect::{beheaded, default_address, leave_alone, no_store};
use crate::exit::{Exit, ExitError};
use crate::output::{Output, notice};

pub(super) fn run(token: TokenSubcommand, addr: Option<Address>) -> anyhow::Result<Exit> {
    let mut out = Output::stdout();
    match token {
        TokenSubcommand::Create(create) => {
            // Checked first, so that no store is created for an invalid token.
            let new = asked_for(create).map_err(fault)?;
            new.check().map_err(fault)?;
            make(&directory(addr, true)?, new, &mut out)?;
        }
        TokenSubcommand::List => list(&directory(addr, false)?, &mut out)?,
        TokenSubcommand::Revoke { name } => {
            TokenFile::revoke(&directory(addr, false)?, &name).map_err(fault)?;
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
}

fn asked_for(create: TokenCreateArgs) -> Result<NewToken, TokenError> {
    let TokenCreateArgs { name, role, topics, read, append, no_read, expires } = create;
    let now = now_ms();
    let writes = role == xs_protocol::Role::Append;
    let read = match no_read {
        true => Some(Scope::Nothing),
        false => read.or_else(|| topics.clone()).map(Scope::Topics),
    };
    let append = append.or_else(|| topics.filter(|_| writes)).map(Scope::Topics);
    let expires_ms =
        expires.map(|time| now.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
    let grant = Grant::of(role, read, append)?;
    Ok(NewToken { name, grant, created_ms: now, expires_ms })
}

fn make(dir: &Path, new: NewToken, out: &mut Output) -> anyhow::Result<()> {
    let (token, secret) = TokenFile::create(dir, new).map_err(fault)?;
    out.line(secret.reveal())?;
    if out.is_person() {
        notice(&format!("the token {} is shown only this once", token.name));
    }
    Ok(())
}

fn list(dir: &Path, out: &mut Output) -> anyhow::Result<()> {
    let file = TokenFile::load(dir.join(TOKENS_NAME)).map_err(fault)?.unwrap_or_default();
    let now = now_ms();
    let row = |token: &xs_protocol::Token| {
        vec![
            json!(token.name),
            json!(token.role.as_str()),
            json!(token.read.to_string()),
            json!(token.append.to_string()),
            json!(out.time(token.created_ms)),
            json!(token.expires_ms.map(|at| out.time(at))),
            json!(if token.is_expired(now) { "expired" } else { "good" }),
        ]
    };
    let rows: Vec<_> = file.tokens().iter().map(row).collect();
    let names = ["name", "role", "read", "append", "created", "expires", "state"];
    Ok(out.table(&names, &rows)?)
}

/// The directory of the store, created if allowed: a server reachable by others needs a token
/// before its first start.
fn directory(addr: Option<Address>, may_make: bool) -> anyhow::Result<PathBuf> {
    let dir = match addr.map_or_else(default_address, Ok)? {
        Address::Unix(socket) => socket.parent().map_or_else(PathBuf::new, Path::to_owned),
        other => {
            let text = format!("{other} is not a directory; tokens are managed where the store is");
            return ExitError::fail(Exit::Usage, text);
        }
    };
    match is_store(&dir) {
        true => Ok(dir),
        false if may_make => make_store(&dir).map(|()| dir),
        false => ExitError::fail(Exit::Unreachable, no_store(&dir)),
    }
}

fn make_store(dir: &Path) -> anyhow::Result<()> {
    if let Some(text) = beheaded(dir) {
        return ExitError::fail(Exit::Unreachable, text);
    }
    leave_alone(dir)?;
    let made = Store::open(dir, StoreOptions::default()).map_err(anyhow::Error::from);
    let made = made.and_then(|store| Ok(store.close()?));
    made.with_context(|| format!("cannot create the store {}", dir.display()))?;
    notice(&format!("created the store {}", dir.display()));
    Ok(())
}

fn fault(error: TokenError) -> anyhow::Error {
    let exit = match error {
        TokenError::Unknown(_) => Exit::NotFound,
        TokenError::NameTaken(_) => Exit::Condition,
        TokenError::Invalid(_) => Exit::Usage,
        _ => Exit::Failed,
    };
    ExitError::new(exit, error.to_string()).into()
}
