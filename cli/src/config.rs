//! The file of `xs serve --config`. Each key is the name of an option of `serve` and becomes
//! arguments on its command line, so a file can set whatever can be typed, and nothing else. Typed
//! options take precedence. Keys and values are checked here, by line; their meaning is left to the
//! options.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, Parser as _, ValueHint};
use toml::de::{DeTable, DeValue};
use xs_protocol::Address;

use crate::args::Args;
use crate::exit::{Exit, ExitError};
use crate::output::Output;

/// Maximum bytes of the file.
const BYTES_MAX: u64 = 1024 * 1024;
/// Maximum number of values of one key.
const VALUES_MAX: usize = 64;
/// Options that control reading the file, and are not keys in it.
const OWN: [&str; 3] = ["config", "print_config", "help"];

/// Inserts the arguments from the file that a command line of `serve` names.
///
/// # Errors
/// A usage error that names the file, the line and the key.
pub(crate) fn take_in(argv: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let Some(typed) = serve_matches(&argv) else { return Ok(argv) };
    let Some(path) = typed.get_one::<PathBuf>("config") else { return Ok(argv) };
    let words = words(path, &typed).map_err(|text| ExitError::new(Exit::Usage, text))?;
    let mut argv = argv;
    let end = argv.iter().position(|word| word == "--").unwrap_or(argv.len());
    argv.splice(end..end, words);
    Ok(argv)
}

/// Prints the effective options of a command line of `serve` as a file. Options at their default
/// are commented out.
pub(crate) fn print(argv: &[OsString]) -> anyhow::Result<Exit> {
    let serve = serve();
    let mut out = Output::stdout();
    if let Some(given) = serve_matches(argv) {
        for arg in keys(&serve) {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            help.lines().try_for_each(|line| out.line(&format!("# {line}")))?;
            out.line(&line_of(arg, &given)?)?;
            out.line("")?;
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
}

/// The arguments given for `serve`, even if some are wrong or missing: that is reported later.
fn serve_matches(argv: &[OsString]) -> Option<ArgMatches> {
    let matches = Args::command().ignore_errors(true).try_get_matches_from(argv).ok()?;
    match matches.subcommand() {
        Some(("serve", serve)) => Some(serve.clone()),
        _ => None,
    }
}

fn serve() -> Command {
    Args::command().find_subcommand("serve").cloned().unwrap_or_default()
}

/// The options that a file may contain.
fn keys(serve: &Command) -> impl Iterator<Item = &Arg> {
    serve.get_arguments().filter(|arg| !OWN.contains(&arg.get_id().as_str()))
}

/// The key of an option: its long name, or that of the argument.
fn key(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_else(|| arg.get_id().as_str())
}

/// The arguments that a file stands for, without those overridden on the command line.
fn words(path: &Path, typed: &ArgMatches) -> Result<Vec<OsString>, String> {
    let text = read(path)?;
    let at = |span: Range<usize>| {
        let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
        format!("{}:{line}", path.display())
    };
    let table = DeTable::parse(&text).map_err(|error| {
        format!("{}: {}", at(error.span().unwrap_or_default()), error.message())
    })?;
    let serve = serve();
    let mut words = Vec::new();
    for (name, value) in table.get_ref() {
        let Some(arg) = keys(&serve).find(|arg| key(arg) == name.get_ref()) else {
            let known: Vec<_> = keys(&serve).map(key).collect();
            return Err(format!(
                "{}: {:?} is not an option of serve; the options are {}",
                at(name.span()),
                name.get_ref(),
                known.join(", ")
            ));
        };
        let said = one_option(arg, value.get_ref(), path)
            .and_then(|words| check(&words).map(|()| words))
            .map_err(|error| format!("{}: {}: {error}", at(value.span()), key(arg)))?;
        if !is_typed(arg, typed) {
            words.extend(said);
        }
    }
    Ok(words)
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("--config {}: {error}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("--config {}: larger than {BYTES_MAX} bytes", path.display()));
    }
    Ok(text)
}

/// Whether the command line or the environment sets it. `--addr` names the store too.
fn is_typed(arg: &Arg, typed: &ArgMatches) -> bool {
    let id = arg.get_id().as_str();
    is_given(id, typed)
        || (id == "store" && typed.value_source("addr") == Some(ValueSource::CommandLine))
}

/// The arguments for one key.
fn one_option(arg: &Arg, value: &DeValue<'_>, file: &Path) -> Result<Vec<OsString>, String> {
    let long = |value: OsString| match arg.get_long() {
        Some(name) => {
            let mut word = OsString::from(format!("--{name}="));
            word.push(value);
            word
        }
        None => value,
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec![format!("--{}", key(arg)).into()]),
        (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err("true or false is expected".to_owned()),
        (ArgAction::Append, DeValue::Array(values)) if values.len() <= VALUES_MAX => {
            let texts = values.iter().map(|value| text(arg, value.get_ref(), file).map(long));
            texts.collect()
        }
        (ArgAction::Append, DeValue::Array(_)) => Err(format!("at most {VALUES_MAX} values")),
        (_, value) => Ok(vec![long(text(arg, value, file)?)]),
    }
}

/// A value as it would be typed. Paths are relative to the file, since the working directory of a
/// service is unpredictable.
fn text(arg: &Arg, value: &DeValue<'_>, file: &Path) -> Result<OsString, String> {
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        _ => return Err("text in quotes is expected".to_owned()),
    };
    if !is_path(arg, &text) {
        return Ok(text.into());
    }
    if text.is_empty() || text.starts_with('~') {
        return Err(format!("{text:?}: write the whole path, or one relative to this file"));
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
    Ok(dir.unwrap_or_else(|| Path::new(".")).join(text).into_os_string())
}

fn is_path(arg: &Arg, text: &str) -> bool {
    matches!(arg.get_value_hint(), ValueHint::FilePath | ValueHint::DirPath)
        || (key(arg) == "listen" && matches!(Address::parse(text), Ok(Address::Unix(_))))
}

/// Whether each option accepts its values. Conflicts between options are found once all are known.
fn check(words: &[OsString]) -> Result<(), String> {
    let line = ["xs", "serve"].into_iter().map(OsString::from).chain(words.iter().cloned());
    match Args::try_parse_from(line) {
        Err(error)
            if matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) =>
        {
            let text = error.to_string();
            let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
            let text = lines.collect::<Vec<_>>().join(" ");
            Err(text.trim_start_matches("error: ").to_owned())
        }
        _ => Ok(()),
    }
}

/// Whether the command line or the environment sets an option, by its id.
fn is_given(id: &str, given: &ArgMatches) -> bool {
    matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// The directory that `addr` implies when `store` is not set.
fn store_of_addr(given: &ArgMatches) -> Option<&Path> {
    if is_given("store", given) || !is_given("addr", given) {
        return None;
    }
    match given.try_get_one("addr").ok()?? {
        Address::Unix(socket) => socket.parent(),
        // Refused when it is served.
        _ => None,
    }
}

/// A line of the printed file.
fn line_of(arg: &Arg, given: &ArgMatches) -> std::io::Result<String> {
    let id = arg.get_id().as_str();
    if let Some(dir) = store_of_addr(given).filter(|_| id == "store") {
        let dir = std::path::absolute(dir)?.display().to_string();
        return Ok(format!("{} = {}", key(arg), toml::Value::from(dir)));
    }
    let is_set = is_given(id, given);
    let hash = if is_set { "" } else { "# " };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Ok(format!("{hash}{} = {is_set}", key(arg)));
    }
    let mut texts = Vec::new();
    for raw in given.get_raw(id).into_iter().flatten() {
        let mut text = raw.to_string_lossy().into_owned();
        if is_set && is_path(arg, &text) {
            text = std::path::absolute(raw)?.display().to_string();
        }
        texts.push(toml::Value::from(text).to_string());
    }
    let value = match arg.get_action() {
        ArgAction::Append => format!("[{}]", texts.join(", ")),
        _ => texts.pop().unwrap_or_else(|| "\"\"".to_owned()),
    };
    Ok(format!("{hash}{} = {value}", key(arg)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(dir: &Path, file: &str, line: &str) -> Result<String, String> {
        let path = dir.join("serve.toml");
        std::fs::write(&path, file).unwrap();
        let line = line.replace("FILE", path.to_str().unwrap());
        let argv = line.split(' ').map(OsString::from).collect();
        match take_in(argv) {
            Ok(words) => {
                let words = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>();
                Ok(words.join(" ").replace(dir.to_str().unwrap(), "DIR"))
            }
            Err(error) => Err(format!("{error:#}").replace(dir.to_str().unwrap(), "DIR")),
        }
    }

    #[test]
    fn keys_become_words_and_what_is_typed_counts_more() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let file = "store = \"s\"\nlisten = [\":1\", \"./l.sock\"]\nsync = \"none\"\n\
            allow-run = true\nallow-net-any = false\nmodules = \"/m\"\n";
        let all = taken(dir, file, "xs serve --config FILE").unwrap();
        for word in ["--listen=:1", "--listen=DIR/./l.sock", "--allow-run", "--modules=/m"] {
            assert!(all.contains(word), "{all}");
        }
        assert!(all.contains(" DIR/s") && !all.contains("any"), "{all}");
        let typed = taken(dir, file, "xs serve --config FILE --sync sync --listen :9 ./t").unwrap();
        assert!(!typed.contains("none") && !typed.contains(":1"), "{typed}");
        assert!(!typed.contains("DIR/s ") && typed.ends_with("--modules=/m"), "{typed}");
        let typed = taken(dir, file, "xs serve -a ./t --config FILE").unwrap();
        assert!(!typed.contains(" DIR/s "), "{typed}");
        let behind = taken(dir, "sync = \"none\"", "xs serve --config FILE -- ./t").unwrap();
        assert!(behind.ends_with("--sync=none -- ./t"), "{behind}");
        // An option on the command line may depend on one in the file.
        let public = taken(dir, "metrics = \":9\"", "xs serve --metrics-public --config FILE");
        assert!(public.unwrap().ends_with("--metrics=:9"));
        assert_eq!(taken(dir, file, "xs cat a").unwrap(), "xs cat a");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        for (file, said) in [
            (
                "sync = \"none\"\nlisen = \":1\"",
                "serve.toml:2: \"lisen\" is not an option of serve",
            ),
            ("config = \"x\"", "serve.toml:1: \"config\" is not an option"),
            ("\n\nsync = \"soon\"", "serve.toml:3: sync: invalid value 'soon'"),
            ("log = \"xml\"", "possible values: text, json"),
            ("allow-run = 1", "serve.toml:1: allow-run: true or false"),
            ("sync = [\"none\"]", "sync: text in quotes"),
            ("listen = [1.5]", "listen: text in quotes"),
            ("modules = \"~/m\"", "modules: \"~/m\": write the whole path"),
            ("a = 1\na = 2", "serve.toml:2"),
            ("sync = ", "serve.toml:1"),
        ] {
            let error = taken(dir.path(), file, "xs serve --config FILE").unwrap_err();
            assert!(error.contains(said), "{file}: {error}");
        }
        assert!(taken(dir.path(), "", "xs serve --config DIR/none").is_err());
    }
}
