//! `call`: builds a command's arguments from words, prints its values to standard output as they
//! arrive, and its error to standard error. Dropping the call, as Ctrl-C does, cancels it.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use clap::CommandFactory as _;
use rustix::io::ioctl_fionread;
use serde_json::{Map, Value};
use tokio::io::AsyncReadExt as _;
use xs_engine::{Frame, Meta, Topic};
use xs_protocol::limits::BODY_WITH_FRAME_MAX;
use xs_protocol::{CallRequest, Client, ClientError, Code, Delivered};
use xs_runtime::Kind;

use super::{bodies, modules};
use crate::args::{Args, CallArgs};
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::json;
use crate::output::{Output, notice};

/// Time after a call's deadline for the server to report that it passed.
const GRACE: Duration = Duration::from_millis(500);
/// Maximum bytes of a call's body.
const CALL_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The usage of `call`, independent of any command.
pub(super) fn usage() -> anyhow::Result<Exit> {
    let mut root = Args::command();
    // Includes the global options.
    root.build();
    let call = root.find_subcommand_mut("call").context("there is a subcommand call")?;
    let help = call.clone().bin_name("xs call").render_long_help().to_string();
    let mut out = Output::stdout();
    out.line(help.trim_end())?;
    out.flush()?;
    Ok(Exit::Ok)
}

/// The description of a command.
pub(super) async fn describe(
    asked: modules::Asked<'_>,
    call: &CallArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    modules::describe_command(asked, name(call)?, out).await
}

fn name(call: &CallArgs) -> anyhow::Result<&Topic> {
    call.name
        .as_ref()
        .ok_or_else(|| ExitError::new(Exit::Usage, "give the name of a command").into())
}

pub(super) async fn run(client: &Client, call: CallArgs, out: &mut Output) -> anyhow::Result<Exit> {
    let Some(limit) = call.timeout else { return answers(client, call, out).await };
    let name = call.name.clone();
    let answers = answers(client, call, out);
    // The server knows the deadline and gives a better error, unless it does not answer at all.
    match tokio::time::timeout(limit.saturating_add(GRACE), answers).await {
        Ok(ended) => ended,
        Err(_) => {
            let name = name.as_ref().map_or("the call", Topic::as_str);
            ExitError::fail(
                Exit::TimedOut,
                format!("{name}: the server did not answer in {limit:?}"),
            )
        }
    }
}

async fn answers(client: &Client, call: CallArgs, out: &mut Output) -> anyhow::Result<Exit> {
    let name = name(&call)?;
    let (args, body) = words(&call).map_err(|text| ExitError::new(Exit::Usage, text))?;
    let mut unread = Unread::of(&call);
    unread.tell(name);
    let request = CallRequest {
        args,
        body: match body.as_deref() {
            Some("-") => read_input().await?,
            Some(text) => Bytes::copy_from_slice(text.as_bytes()),
            None => Bytes::new(),
        },
        deadline: call.timeout,
        bodies_up_to: BODY_WITH_FRAME_MAX,
        ..CallRequest::new(name.clone())
    };
    let mut results = match client.call(&request).await {
        Ok(results) => results,
        Err(error) => return Err(refused(client, name, error).await),
    };
    while let Some(result) = results.next().await {
        let result = result.map_err(explain)?;
        match ending(name, result.frame.topic()) {
            Some("recv") => print(client, &result, out).await?,
            Some("error") => {
                out.flush()?;
                unread.tell(name);
                return Err(failure(name, &result.frame).into());
            }
            _ => {}
        }
        out.flush()?;
    }
    unread.tell(name);
    Ok(Exit::Ok)
}

/// Whether standard input may hold data that the call ignores. It is read only for `-`: that of a
/// script may never end, and that of a loop holds the lines of its next rounds.
struct Unread(bool);

impl Unread {
    fn of(call: &CallArgs) -> Self {
        Self(call.words.is_empty() && call.args.is_none() && !io::stdin().is_terminal())
    }

    /// Reports that once, as soon as there is data.
    fn tell(&mut self, name: &Topic) {
        if self.0 && ioctl_fionread(io::stdin()).is_ok_and(|bytes| bytes > 0) {
            self.0 = false;
            notice(&format!("standard input is ignored; to send it as the body: xs call {name} -"));
        }
    }
}

/// Why a call was refused; for an unknown command, with the name that was most likely meant.
async fn refused(client: &Client, name: &Topic, error: ClientError) -> anyhow::Error {
    let is_unknown = error.code() == Some(Code::UnknownCommand);
    let told = explain(error);
    if !is_unknown {
        return told;
    }
    // A user who may not read about modules gets the server's message.
    let Ok(all) = modules::all(client, true).await else { return told };
    // There is one, which does not run: the server's message says so.
    if all.keys().any(|key| key.kind == Kind::Command && key.name.as_str() == name.as_str()) {
        return told;
    }
    let all: Vec<_> = all.into_iter().collect();
    match modules::meant(name, &all, Some(Kind::Command)) {
        Some(meant) => {
            let text = format!("no command {name}; did you mean {meant}?");
            ExitError::new(Exit::NotFound, text).into()
        }
        None => told,
    }
}

/// The part of a topic after the command's name.
fn ending<'a>(name: &Topic, topic: &'a str) -> Option<&'a str> {
    topic.strip_prefix(name.as_str())?.strip_prefix('.')
}

/// An object becomes a line of JSON, text a line; bytes are written unchanged.
async fn print(client: &Client, result: &Delivered, out: &mut Output) -> anyhow::Result<()> {
    let Delivered { frame, body } = result;
    let fetched;
    let body = match body {
        Some(body) => body,
        None => {
            fetched = bodies::whole(client, frame).await?;
            &fetched
        }
    };
    if !frame.meta().is_empty() {
        out.line(&json::meta(frame))?;
        if body.is_empty() {
            return Ok(());
        }
    }
    // Without meta the value is text or bytes, even if empty.
    out.bytes(body)?;
    if std::str::from_utf8(body).is_ok_and(|text| !text.ends_with('\n')) {
        out.bytes(b"\n")?;
    }
    Ok(())
}

/// The error in `<name>.error`: its message, the position in the module, and the exit code for a
/// timeout or wrong arguments. A permission the module lacks is not reported as a denial to the
/// caller.
fn failure(name: &Topic, frame: &Frame) -> ExitError {
    let meta: Value = serde_json::from_slice(frame.meta()).unwrap_or_default();
    let mut message = meta["message"].as_str().unwrap_or("failed without a message").to_owned();
    if let Some(place) = modules::place(&meta) {
        message += &format!(" ({place})");
    }
    let exit = match meta["code"].as_str() {
        Some("timeout") => Exit::TimedOut,
        Some("args") => Exit::Usage,
        _ => Exit::Failed,
    };
    ExitError::new(exit, format!("{name}: {message}"))
}

/// Splits the words after the command's name into arguments and body.
fn words(call: &CallArgs) -> Result<(Meta, Option<String>), String> {
    let mut args: Map<String, Value> = match &call.args {
        Some(meta) => serde_json::from_slice(meta.as_bytes()).map_err(|error| error.to_string())?,
        None => Map::new(),
    };
    let (mut body, mut typed) = (None, BTreeSet::new());
    for (index, word) in call.words.iter().enumerate() {
        match argument(word)? {
            Some((key, _)) if !typed.insert(key) => return Err(format!("{key} is given twice")),
            Some((key, value)) => {
                args.insert(key.to_owned(), value);
            }
            None if index + 1 == call.words.len() => body = Some(word.clone()),
            None => return Err(format!("{word:?} is neither key=text nor key:=json")),
        }
    }
    if args.is_empty() {
        return Ok((Meta::none(), body));
    }
    let args = Meta::parse(Value::Object(args).to_string()).map_err(|error| error.to_string())?;
    Ok((args, body))
}

/// `key=text` or `key:=json`; `None` for any other word.
fn argument(word: &str) -> Result<Option<(&str, Value)>, String> {
    let Some((key, text)) = word.split_once('=') else { return Ok(None) };
    let (key, is_json) = key.strip_suffix(':').map_or((key, false), |key| (key, true));
    let mut letters = key.chars();
    let is_key = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if !is_key {
        return Ok(None);
    }
    if !is_json {
        return Ok(Some((key, Value::from(text))));
    }
    let value = serde_json::from_str(text);
    value.map(|value| Some((key, value))).map_err(|error| format!("{key}: not JSON: {error}"))
}

async fn read_input() -> anyhow::Result<Bytes> {
    let mut body = BytesMut::new();
    let mut input = tokio::io::stdin();
    while input.read_buf(&mut body).await? != 0 {
        if body.len() > CALL_BODY_BYTES_MAX {
            let text = format!(
                "the body is longer than {CALL_BODY_BYTES_MAX} bytes; \
                 store it with xs cas put and pass its hash"
            );
            return ExitError::fail(Exit::Usage, text);
        }
    }
    Ok(body.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Program, StoreSubcommand, Subcommand};
    use clap::Parser as _;

    fn parsed(words_typed: &[&str]) -> Result<(String, Option<String>), String> {
        let args = Args::try_parse_from(["xs", "call", "c"].iter().chain(words_typed)).unwrap();
        let Program::Subcommand(Subcommand::Store(StoreSubcommand::Call(call))) = args.program
        else {
            unreachable!("a line of call")
        };
        let (args, body) = words(&call)?;
        Ok((String::from_utf8_lossy(args.as_bytes()).into_owned(), body))
    }

    #[test]
    fn words_become_arguments_and_a_body() {
        let body = |text: &str| Some(text.to_owned());
        assert_eq!(parsed(&[]), Ok((String::new(), None)));
        assert_eq!(parsed(&["a=1", "b:=[1]"]), Ok(("{\"a\":\"1\",\"b\":[1]}".to_owned(), None)));
        assert_eq!(
            parsed(&["--args", "{\"a\":1,\"c\":2}", "a=x=y", "what is new?"]),
            Ok(("{\"a\":\"x=y\",\"c\":2}".to_owned(), body("what is new?")))
        );
        assert_eq!(parsed(&["-"]), Ok((String::new(), body("-"))));
        assert_eq!(parsed(&["1+1=2"]), Ok((String::new(), body("1+1=2"))));
        assert!(parsed(&["text", "a=1"]).is_err());
        assert!(parsed(&["a:=x"]).is_err());
        assert_eq!(parsed(&["a=1", "a:=2"]), Err("a is given twice".to_owned()));
    }
}
