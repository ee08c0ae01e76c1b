//! `dev`: a separate store below the modules directory, a server for it, and one stream of what the
//! author wants to see: the result of each save, log lines, and the frames modules make.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args as _, FromArgMatches as _};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, Frame, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::{
    Address, Client, ClientOptions, LastRequest, SOCKET_NAME, SubEvent, SubscribeOptions,
};
use xs_runtime::host::CONFIG_TOPIC;
use xs_runtime::host::files::CONFIG_FILE;
use xs_runtime::host::lifecycle::{Event, Key, parse_topic};

use super::modules::{STILL, config_error_of, describe, meta, said};
use crate::args::{DevArgs, ServeArgs};
use crate::connect::explain;
use crate::exit::Exit;
use crate::output::{Output, Paint, notice};
use crate::serve;

/// Interval of attempts to reach the server, which runs in this process.
const RETRY: Duration = Duration::from_millis(20);

pub(super) async fn run(dev: DevArgs) -> anyhow::Result<Exit> {
    let store = dev.dir.join(".xs/dev");
    let mut words = vec!["serve".into(), store.clone().into_os_string()];
    words.extend(["--modules".into(), dev.dir.clone().into_os_string()]);
    words.extend(["--sync", "none", "--log-level", "warn"].map(Into::into));
    let allow = [
        (dev.allow.allow_net_any, "--allow-net-any"),
        (dev.allow.allow_net_private, "--allow-net-private"),
        (dev.allow.allow_run, "--allow-run"),
    ];
    if let Some(file) = &dev.env.env_file {
        words.extend(["--env-file".into(), file.clone().into_os_string()]);
    }
    words.extend(allow.into_iter().filter(|(is_set, _)| *is_set).map(|(_, word)| word.into()));
    let words = ServeArgs::augment_args(clap::Command::new("serve")).try_get_matches_from(words)?;
    let mut serve = ServeArgs::from_arg_matches(&words)?;
    serve.log.untold = true;
    let is_new = !dev.dir.exists();
    std::fs::create_dir_all(&store)
        .with_context(|| format!("cannot create {}", store.display()))?;
    if is_new {
        notice(&format!("created {}", dev.dir.display()));
    }
    let stop = CancellationToken::new();
    let served = serve::run(serve, None, &stop);
    let watched = async {
        let failed = watch(&store).await;
        // The output is gone, but the server still stops in order.
        stop.cancel();
        failed
    };
    tokio::pin!(served, watched);
    // The server stops on the signals meant for this process; its output is shown until then.
    tokio::select! {
        served = &mut served => served,
        failed = &mut watched => served.await.and_then(|exit| failed.map(|()| exit)),
    }
}

/// Shows events until the server has ended.
async fn watch(store: &Path) -> anyhow::Result<()> {
    let address = Address::Unix(store.join(SOCKET_NAME));
    let client = loop {
        match Client::connect(&address, ClientOptions::default()).await {
            Ok(client) => break client,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let mut view = View { out: Output::stdout(), saves: HashMap::new(), running: HashMap::new() };
    if view.out.is_person() {
        view.out.line(&format!("store {}", store.display()))?;
    }
    let options = ReadOptions {
        topics: TopicPatterns::everything(),
        start: Start::After(Bound::Id(start_of_this(&client).await?)),
        follow: true,
        ..ReadOptions::default()
    };
    let how = SubscribeOptions { bodies_up_to: 4096, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe(&options, how).await.map_err(explain)?;
    while let Some(event) = subscription.next().await {
        let Ok(event) = event else { break };
        if let SubEvent::Frames { frames, .. } = event {
            for delivered in frames {
                view.show(&delivered.frame, delivered.body.as_deref())?;
            }
            view.out.flush()?;
        }
    }
    // The server's own future reports how it ended.
    std::future::pending().await
}

/// The frame that announced the start of this server.
async fn start_of_this(client: &Client) -> anyhow::Result<FrameId> {
    let pid = u64::from(std::process::id());
    let request = LastRequest { topics: TopicPatterns::parse("xs.start")?, n: 1, per_topic: false };
    loop {
        let last = client.last(&request).await.map_err(explain)?.pop();
        if let Some(start) = last.filter(|start| meta(start)["pid"] == pid) {
            return Ok(start.id());
        }
        tokio::time::sleep(RETRY).await;
    }
}

struct View {
    out: Output,
    /// The file and the time of each `create` frame.
    saves: HashMap<String, (String, u64)>,
    /// The running version of each processor.
    running: HashMap<Key, String>,
}

impl View {
    fn show(&mut self, frame: &Frame, body: Option<&[u8]>) -> std::io::Result<()> {
        if frame.topic() == CONFIG_TOPIC {
            return self.config(frame);
        }
        let Some((key, event)) = parse_topic(frame.topic()) else {
            return if frame.topic().starts_with("xs.") {
                Ok(())
            } else {
                self.out.frame(frame, body)
            };
        };
        if !self.out.is_person() {
            return self.out.frame(frame, None);
        }
        let meta = meta(frame);
        let create = meta["create"].as_str().unwrap_or_default().to_owned();
        match event {
            Event::Create => {
                let file = meta["file"].as_str().map_or_else(|| key.to_string(), str::to_owned);
                self.saves.insert(frame.id().to_string(), (file, frame.id().time_ms()));
                Ok(())
            }
            Event::Active => self.active(key, create, frame),
            Event::Invalid => self.invalid(&key, &create, &meta),
            Event::FinError => {
                self.running.remove(&key);
                self.bad(&format!("{} failed: {}", self.file(&key, &create), describe(&meta)))
            }
            Event::FinTerm => match self.running.remove(&key) {
                Some(_) => self.out.line(&format!("{} stopped", self.file(&key, &create))),
                // If it was not running, its failure was already shown.
                None => Ok(()),
            },
            Event::Retrying => {
                let file = self.file(&key, &create);
                match meta["message"].as_str() {
                    Some(_) => {
                        self.bad(&format!("{file} failed and will be retried: {}", describe(&meta)))
                    }
                    None => self.out.line(&format!("{file} ended and was restarted")),
                }
            }
            Event::Log => {
                let text = format!("{}  {}", key.name, said(&meta, &self.out));
                self.out.line(&text)
            }
            _ => Ok(()),
        }
    }

    /// Shows an error in `xs.toml`, which holds up every save, and its correction.
    fn config(&mut self, frame: &Frame) -> std::io::Result<()> {
        if !self.out.is_person() {
            return self.out.frame(frame, None);
        }
        match config_error_of(frame) {
            Some(error) => {
                self.bad(describe(&error).trim_end())?;
                self.out.line(STILL)
            }
            None => self.out.line(&format!("{CONFIG_FILE} is valid again")),
        }
    }

    /// One line for a save that worked.
    fn active(&mut self, key: Key, create: String, frame: &Frame) -> std::io::Result<()> {
        let file = self.file(&key, &create);
        let saved = self.saves.get(&create).map_or_else(|| frame.id().time_ms(), |(_, ms)| *ms);
        let took = frame.id().time_ms().saturating_sub(saved);
        let what = match self.running.insert(key, create.clone()) {
            // Nothing was saved: it had failed or ended, and runs again.
            Some(before) if before == create => format!("{file} restarted"),
            Some(_) => format!("{file} replaced in {took} ms; position and state kept"),
            None => format!("{file} started in {took} ms"),
        };
        self.out.line(&what)
    }

    /// The code frame of a save that failed.
    fn invalid(&mut self, key: &Key, create: &str, error: &Value) -> std::io::Result<()> {
        self.bad(&format!("{}: {}", self.file(key, create), describe(error).trim_end()))?;
        match self.running.contains_key(key) {
            true => self.out.line("old version still running"),
            false => Ok(()),
        }
    }

    fn bad(&mut self, text: &str) -> std::io::Result<()> {
        let text = self.out.paint(Paint::Bad, text);
        self.out.line(&text)
    }

    fn file(&self, key: &Key, create: &str) -> String {
        self.saves.get(create).map_or_else(|| key.to_string(), |(file, _)| file.clone())
    }
}
