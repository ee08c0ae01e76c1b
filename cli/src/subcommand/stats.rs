//! `stats`: the statistics of a store and its server.

use serde_json::Value;
use xs_protocol::Client;

use crate::connect::explain;
use crate::exit::Exit;
use crate::output::{Output, Paint};

pub(super) async fn run(client: &Client, out: &mut Output) -> anyhow::Result<Exit> {
    let text = client.stats().await.map_err(explain)?;
    if !out.is_person() {
        out.line(&text)?;
        return Ok(Exit::Ok);
    }
    let mut rows = Vec::new();
    flatten("", &serde_json::from_str(&text)?, &mut rows);
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        let name = out.paint(Paint::Faint, &format!("{name:<width$}"));
        out.line(&format!("{name}  {value}"))?;
    }
    Ok(Exit::Ok)
}

/// The names and values of all leaves.
fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{name}"), value, rows);
            }
        }
        Value::Null => rows.push((prefix.to_owned(), "-".to_owned())),
        Value::String(text) => rows.push((prefix.to_owned(), text.clone())),
        other => rows.push((prefix.to_owned(), other.to_string())),
    }
}
