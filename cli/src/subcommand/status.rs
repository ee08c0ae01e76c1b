//! `ping` and `version`: checks presence, without looking into a store.

use std::time::{Duration, Instant};

use serde_json::json;
use xs_protocol::{Address, Client, ClientError};

use crate::args::PingArgs;
use crate::connect::{default_address, explain, no_server, unserved};
use crate::exit::{Exit, ExitError};
use crate::output::Output;
use crate::reach::options;

/// Time between two attempts to reach a server.
const RETRY: Duration = Duration::from_millis(50);

/// Time for a server to answer if none is given.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// The minimum time for an answer, however late it is.
const ANSWER_MIN: Duration = Duration::from_millis(100);

/// The JavaScript engine this binary was built with.
const JAVASCRIPT: &str = if cfg!(feature = "v8") { "v8" } else { "quickjs" };

pub(super) fn version() -> anyhow::Result<Exit> {
    let mut out = Output::stdout();
    out.line(&format!("xs {} ({JAVASCRIPT})", env!("CARGO_PKG_VERSION")))?;
    out.flush()?;
    Ok(Exit::Ok)
}

pub(super) async fn ping(ping: &PingArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let address = addr.map_or_else(default_address, Ok)?;
    let begun = Instant::now();
    let give_up = ping.wait.map(|wait| begun + wait);
    let (client, took) = loop {
        // Also bounds the wait for a server that does not answer at all.
        let left = give_up
            .map_or(ANSWER_MAX, |at| at.saturating_duration_since(Instant::now()).max(ANSWER_MIN));
        let Ok(answered) = tokio::time::timeout(left, answer(&address)).await else {
            let waited = begun.elapsed().as_secs_f64();
            let text =
                format!("{address} accepts connections but has not answered for {waited:.1} s");
            return ExitError::fail(Exit::TimedOut, text);
        };
        match answered {
            Ok(answered) => break answered,
            Err(ClientError::Connect { .. }) if give_up.is_some_and(|at| Instant::now() < at) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                return match unserved(&address, &error) {
                    Some(dir) => ExitError::fail(Exit::Unreachable, no_server(dir)),
                    None => Err(explain(error)),
                };
            }
        }
    };
    let server = client.server();
    let mut out = Output::stdout();
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let names = ["server", "store", "epoch", "head", "micros"];
    let row = vec![
        json!(server.name),
        json!(server.uuid.to_string()),
        json!(server.epoch),
        json!(server.head),
        json!(micros),
    ];
    out.table(&names, &[row])?;
    out.flush()?;
    Ok(Exit::Ok)
}

async fn answer(address: &Address) -> Result<(Client, Duration), ClientError> {
    let client = Client::connect(address, options()).await?;
    let begun = Instant::now();
    client.ping().await?;
    Ok((client, begun.elapsed()))
}
