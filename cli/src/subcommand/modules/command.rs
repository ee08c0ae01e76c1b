//! `call NAME --help`: a command module's description, from the log; no server is needed.

use serde_json::{Value, json};
use xs_engine::Topic;
use xs_runtime::Kind;

use super::Asked;
use super::show::print;
use super::survey::{self, Facts, meta};
use crate::exit::{Exit, ExitError};
use crate::output::{Output, Paint};

pub(in crate::subcommand) async fn describe_command(
    asked: Asked<'_>,
    name: &Topic,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let (key, module) = survey::one(asked.client, asked.served, name).await?;
    if key.kind != Kind::Command {
        return ExitError::fail(Exit::NotFound, format!("{name} is a {}, not a command", key.kind));
    }
    let active = module.active.as_ref().map(meta).unwrap_or_default();
    let mut facts = Facts::default();
    facts.add("name", name.as_str());
    facts.add("about", active["about"].clone());
    facts.add("usage", usage(name, &active["args"]));
    for fact in ["args", "timeout_ms", "concurrency", "permissions"] {
        facts.add(fact, active[fact].clone());
    }
    facts.add("state", module.state().as_str());
    facts.add("file", json!(module.file));
    if !out.is_person() {
        print(&facts, out)?;
        return Ok(Exit::Ok);
    }
    if let Some(about) = active["about"].as_str() {
        out.line(&format!("{about}\n"))?;
    }
    out.line(&format!("Usage: {}", usage(name, &active["args"])))?;
    arguments(&active["args"], out)?;
    limits(&active, out)?;
    let file = module.file.as_ref().map(|file| format!(", from {file}")).unwrap_or_default();
    let text = out.paint(Paint::Faint, &format!("State: {}{file}.", module.state().as_str()));
    out.line("")?;
    out.line(&text)?;
    Ok(Exit::Ok)
}

/// The usage line of a command.
fn usage(name: &Topic, args: &Value) -> String {
    let mut usage = format!("xs call {name}");
    match args.as_object() {
        Some(args) => {
            for (name, kind) in args {
                let kind = kind.as_str().unwrap_or_default();
                let (plain, optional) = kind.strip_suffix('?').map_or((kind, false), |k| (k, true));
                let word = match plain {
                    "string" => format!("{name}=TEXT"),
                    "json" => format!("{name}:=JSON"),
                    plain => format!("{name}={}", plain.to_uppercase()),
                };
                usage += &if optional { format!(" [{word}]") } else { format!(" {word}") };
            }
        }
        None => usage += " [KEY=TEXT|KEY:=JSON]...",
    }
    usage + " [BODY|-]"
}

fn arguments(args: &Value, out: &mut Output) -> std::io::Result<()> {
    let Some(args) = args.as_object().filter(|args| !args.is_empty()) else { return Ok(()) };
    out.line("\nArguments:")?;
    let widest = args.keys().map(String::len).max().unwrap_or_default();
    for (name, kind) in args {
        let kind = kind.as_str().unwrap_or_default();
        let kind =
            kind.strip_suffix('?').map_or_else(|| kind.to_owned(), |k| k.to_owned() + ", optional");
        out.line(&format!("  {name:<widest$}  {kind}"))?;
    }
    Ok(())
}

fn limits(active: &Value, out: &mut Output) -> std::io::Result<()> {
    if let Some(ms) = active["timeout_ms"].as_u64() {
        let seconds = std::time::Duration::from_millis(ms).as_secs_f64();
        out.line(&format!(
            "\nTimeout: {seconds} s without a result, unless the call sets its own."
        ))?;
    }
    if let Some(count) = active["concurrency"].as_u64() {
        out.line(&format!("Concurrent calls: {count}; more wait."))?;
    }
    let permissions = active["permissions"].as_object();
    for (what, names) in permissions.into_iter().flatten() {
        let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
        out.line(&format!("Permissions ({what}): {}", names.collect::<Vec<_>>().join(", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_can_be_typed() {
        let name = Topic::parse("resize").unwrap();
        let args = json!({ "url": "string", "width": "number?", "more": "json" });
        assert_eq!(
            usage(&name, &args),
            "xs call resize url=TEXT [width=NUMBER] more:=JSON [BODY|-]"
        );
        assert_eq!(usage(&name, &Value::Null), "xs call resize [KEY=TEXT|KEY:=JSON]... [BODY|-]");
    }
}
