//! The state of each module, according to the lifecycle frames in the log. The log is the only
//! source, so this works without a server too. But when a server is killed, nothing reports that
//! its modules stopped; only a later start of a server shows it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use xs_engine::{
    Bound, Cursor, CursorName, Frame, FrameId, ReadOptions, Start, Topic, TopicPatterns,
};
use xs_protocol::{Class, Client, ClientError, LastRequest};
use xs_runtime::Kind;
use xs_runtime::host::lifecycle::{Event, Key, Lifecycle, parse_topic};
use xs_runtime::host::{CONFIG_TOPIC, processor_cursor};

use super::Asked;
use crate::alike::nearest;
use crate::connect::explain;
use crate::exit::{Exit, ExitError};

/// The topics of frames about modules, and about the servers and Hosts that ran them.
pub(crate) const TOPICS: &str =
    "xs.generator.*,xs.handler.*,xs.command.*,xs.start,xs.host.start,xs.host.end";

/// One module, built from the newest frame of each of its events.
pub(crate) struct Module {
    /// The event that determines its state, with its frame.
    pub(super) latest: (Event, Frame),
    /// The newest frame with an error, unless the module has been active since.
    pub(crate) error: Option<Frame>,
    /// The newest frame with an error that ended a run, whatever followed it.
    pub(super) last_error: Option<Frame>,
    /// Why its newest version could not become active, if it could not.
    invalid: Option<Frame>,
    /// The newest `create` and `active` frames.
    pub(super) create: Option<Frame>,
    pub(super) active: Option<Frame>,
    /// The file its current version was taken from.
    pub(super) file: Option<String>,
    /// Whether it should run whenever there is a server for it.
    pub(super) wanted: bool,
    /// Whether an older version runs because the newest could not.
    fallen_back: bool,
    /// Whether the running version waits to try again.
    retries: bool,
    running: Running,
}

/// The state of a module, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModuleState {
    /// It ended on its own.
    Ended,
    /// It failed and stays down.
    Failed,
    /// Its file was deleted.
    Deleted,
    /// An operator stopped it.
    Stopped,
    /// No version of it could start.
    Invalid,
    /// It runs once there is a server.
    Waiting,
    Starting,
    Active,
    Retrying,
    /// An older version runs, because the newest could not start.
    OlderActive,
    /// The same, and it retries.
    OlderRetrying,
}

impl ModuleState {
    /// The state, in a few words.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
            Self::Stopped => "stopped",
            Self::Invalid => "invalid",
            Self::Waiting => "waiting for a server",
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Retrying => "retrying",
            Self::OlderActive => "active, newest invalid",
            Self::OlderRetrying => "retrying, newest invalid",
        }
    }
}

/// The process that would run a module, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Running {
    /// No server that runs modules, and no Host connected to one.
    Nobody,
    /// A process whose start is newer than the newest frame about the module.
    Starting,
    /// A process that has appended a frame about it.
    Somebody,
}

/// Every module in the log. `served`: whether a server answered.
pub(crate) async fn all(client: &Client, served: bool) -> anyhow::Result<BTreeMap<Key, Module>> {
    let request = LastRequest { topics: TopicPatterns::parse(TOPICS)?, n: 1, per_topic: true };
    let mut modules = fold(client.last(&request).await.map_err(not_shown)?, served);
    for (key, module) in &mut modules {
        if module.state() == ModuleState::Stopped && lost_its_file(client, key, module).await? {
            module.file = None;
        }
    }
    Ok(modules)
}

/// The error for a user who may not see modules, without naming the unreadable topics.
fn not_shown(error: ClientError) -> anyhow::Error {
    match error.class() {
        Class::Access => {
            ExitError::new(Exit::Denied, "only admins and hosts may list modules").into()
        }
        _ => explain(error),
    }
}

/// Whether the file of a stopped module was deleted: a later manual stop hides the frame that says
/// so from the newest frames.
async fn lost_its_file(client: &Client, key: &Key, module: &Module) -> anyhow::Result<bool> {
    let Some(create) = &module.create else { return Ok(false) };
    let term = key.name.event_topic(key.kind, Event::Term);
    let options = ReadOptions {
        topics: TopicPatterns::from(term),
        start: Start::After(Bound::Id(create.id())),
        ..ReadOptions::default()
    };
    let mut terms = client.fetch(&options);
    while let Some(term) = terms.next().await {
        if !meta(&term.map_err(explain)?)["file"].is_null() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the newest frames tell about one module of a served store.
pub(crate) struct Overview {
    pub(crate) kind: Kind,
    pub(crate) state: ModuleState,
    /// What a handler that should run reads: its position and its topics.
    pub(crate) reads: Option<(CursorName, TopicPatterns)>,
}

/// Every module of a served store, from the newest frame of each of [`TOPICS`].
pub(crate) fn overview(frames: Vec<Frame>) -> Vec<Overview> {
    let of = |(key, module): (Key, Module)| {
        let topics = module.topics().filter(|_| module.wanted && key.kind == Kind::Handler);
        let reads = topics.map(|topics| (processor_cursor(&key), topics));
        Overview { kind: key.kind, state: module.state(), reads }
    };
    fold(frames, true).into_iter().map(of).collect()
}

fn fold(frames: Vec<Frame>, served: bool) -> BTreeMap<Key, Module> {
    let mut lifecycle = Lifecycle::default();
    let mut modules: BTreeMap<Key, Module> = BTreeMap::new();
    let (mut start, mut came, mut gone) = (None, None, None);
    for frame in frames {
        lifecycle.apply(&frame);
        match frame.topic() {
            "xs.start" => start = Some(frame.clone()),
            "xs.host.start" => came = Some(frame.id()),
            "xs.host.end" => gone = Some(frame.id()),
            _ => {}
        }
        let Some((key, event)) = parse_topic(frame.topic()) else { continue };
        if !matches!(event, Event::Log | Event::Parked) {
            modules.entry(key).or_insert_with(|| Module::new(event, &frame)).take(event, frame);
        }
    }
    let start = start.filter(|_| served).and_then(|start| runs_since(&start, came, gone));
    for (key, module) in &mut modules {
        let slots = lifecycle.get(key);
        module.file = slots.and_then(|slots| slots.taken()).map(|taken| taken.file.clone());
        module.wanted = slots.is_some_and(|slots| slots.wants_to_run());
        module.fallen_back = module.invalid.is_some()
            && slots.is_some_and(|slots| {
                slots.confirmed().is_some() && slots.waits().is_none() && !slots.is_down()
            });
        module.running = running(start, &module.latest.1);
    }
    modules
}

/// The id of the frame since which a server or a connected Host runs modules. `came`, `gone`: the
/// newest frames about the arrival and the end of a remote Host.
fn runs_since(start: &Frame, came: Option<FrameId>, gone: Option<FrameId>) -> Option<FrameId> {
    if !meta(start)["modules"].is_null() {
        return Some(start.id());
    }
    // A remote Host is connected to the server it came to, and not to a later one.
    came.filter(|came| Some(*came) > gone && *came > start.id())
}

/// The error in `xs.toml` as reported by the Host that reads it, with the frame; `None` when there
/// is no such Host.
pub(super) async fn config_error(asked: Asked<'_>) -> anyhow::Result<Option<(Frame, Value)>> {
    if !asked.served {
        return Ok(None);
    }
    let newest = async |topic: &str| -> anyhow::Result<Option<Frame>> {
        let topics = TopicPatterns::parse(topic)?;
        let request = LastRequest { topics, n: 1, per_topic: false };
        Ok(asked.client.last(&request).await.map_err(explain)?.pop())
    };
    let Some((frame, error)) = newest(CONFIG_TOPIC).await?.and_then(|frame| {
        let error = config_error_of(&frame)?;
        Some((frame, error))
    }) else {
        return Ok(None);
    };
    let Some(start) = newest("xs.start").await? else { return Ok(None) };
    let id = |frame: Option<Frame>| frame.map(|frame| frame.id());
    let (came, gone) = (id(newest("xs.host.start").await?), id(newest("xs.host.end").await?));
    Ok(runs_since(&start, came, gone).map(|_| (frame, error)))
}

/// The error in a frame of [`CONFIG_TOPIC`].
pub(crate) fn config_error_of(frame: &Frame) -> Option<Value> {
    Some(meta(frame)["error"].clone()).filter(|error| !error.is_null())
}

fn running(start: Option<FrameId>, latest: &Frame) -> Running {
    match start {
        None => Running::Nobody,
        Some(start) if start > latest.id() => Running::Starting,
        Some(_) => Running::Somebody,
    }
}

/// The module with a name: the one that should run, if several kinds have used the name.
pub(super) async fn one(
    client: &Client,
    served: bool,
    name: &Topic,
) -> anyhow::Result<(Key, Module)> {
    let (mut named, others): (Vec<_>, Vec<_>) = all(client, served)
        .await?
        .into_iter()
        .partition(|(key, _)| key.name.as_str() == name.as_str());
    named.sort_by_key(|(_, module)| (module.wanted, module.latest.1.id()));
    named.pop().ok_or_else(|| {
        let advice = match meant(name, &others, None) {
            Some(meant) => format!("did you mean {meant}?"),
            None => "xs modules list shows all modules".to_owned(),
        };
        ExitError::new(Exit::NotFound, format!("no module {name}; {advice}")).into()
    })
}

/// The module most likely meant by an unknown name; of this kind, if one is given.
pub(in crate::subcommand) fn meant<'a>(
    name: &Topic,
    modules: impl IntoIterator<Item = &'a (Key, Module)>,
    kind: Option<Kind>,
) -> Option<&'a str> {
    let there = modules.into_iter().filter(|(key, module)| {
        module.state() != ModuleState::Deleted && kind.is_none_or(|kind| kind == key.kind)
    });
    nearest(name.as_str(), there.map(|(key, _)| key.name.as_str()))
}

/// The cursor of a module, for the kinds that keep one.
pub(super) async fn cursor(client: &Client, key: &Key) -> anyhow::Result<Option<Cursor>> {
    client.cursor_get(&processor_cursor(key)).await.map_err(explain)
}

impl Module {
    fn new(event: Event, frame: &Frame) -> Self {
        Self {
            latest: (event, frame.clone()),
            error: None,
            last_error: None,
            invalid: None,
            create: None,
            active: None,
            file: None,
            wanted: false,
            fallen_back: false,
            retries: false,
            running: Running::Nobody,
        }
    }

    fn take(&mut self, event: Event, frame: Frame) {
        match event {
            Event::Retrying => self.retries = true,
            // A version that does not start changes nothing for the running one.
            Event::Create | Event::Invalid => {}
            _ => self.retries = false,
        }
        match event {
            Event::Create => {
                self.create = Some(frame.clone());
                self.invalid = None;
            }
            Event::Active if self.is_older(&frame) && self.invalid.is_some() => {
                // That an older version runs again does not fix the newest.
                self.error = self.invalid.clone();
                self.active = Some(frame.clone());
                self.latest = (Event::Invalid, frame);
                return;
            }
            Event::Active => {
                (self.error, self.invalid) = (None, None);
                self.active = Some(frame.clone());
            }
            Event::Invalid => {
                self.error = Some(frame.clone());
                self.invalid = Some(frame.clone());
            }
            // The newest version is no longer wanted.
            Event::Term | Event::FinTerm => self.invalid = None,
            Event::FinError | Event::Retrying => {
                let newest = self.invalid.clone().filter(|_| event == Event::Retrying);
                self.error = newest.or_else(|| Some(frame.clone()));
                // A generator that ended without an error has no message.
                if !meta(&frame)["message"].is_null() {
                    self.last_error = Some(frame.clone());
                }
            }
            _ => {}
        }
        self.latest = (event, frame);
    }

    /// Whether a frame is about a version older than the newest.
    fn is_older(&self, frame: &Frame) -> bool {
        let newest = self.create.as_ref().map(|create| create.id().to_string());
        newest.is_some_and(|newest| meta(frame)["create"] != newest.as_str())
    }

    /// The topics that its running version reads.
    pub(super) fn topics(&self) -> Option<TopicPatterns> {
        let active = meta(self.active.as_ref()?);
        let topics: Vec<_> =
            active["topics"].as_array()?.iter().filter_map(Value::as_str).collect();
        TopicPatterns::parse(&topics.join(",")).ok()
    }

    pub(crate) fn state(&self) -> ModuleState {
        match self.latest.0 {
            Event::FinOk => ModuleState::Ended,
            Event::FinError => ModuleState::Failed,
            Event::Term | Event::FinTerm if self.is_gone() => ModuleState::Deleted,
            Event::Term | Event::FinTerm if !self.wanted => ModuleState::Stopped,
            Event::Invalid if !self.fallen_back => ModuleState::Invalid,
            _ if self.running == Running::Nobody => ModuleState::Waiting,
            _ if self.running == Running::Starting => ModuleState::Starting,
            Event::Active => ModuleState::Active,
            Event::Retrying if self.fallen_back => ModuleState::OlderRetrying,
            Event::Retrying => ModuleState::Retrying,
            Event::Invalid if self.retries => ModuleState::OlderRetrying,
            Event::Invalid => ModuleState::OlderActive,
            _ => ModuleState::Starting,
        }
    }

    /// Whether its file was deleted.
    fn is_gone(&self) -> bool {
        let from_file = |create: &Frame| !meta(create)["file"].is_null();
        self.file.is_none() && self.create.as_ref().is_some_and(from_file)
    }

    /// Whether it needs attention.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.latest.0, Event::Invalid | Event::FinError) || self.invalid.is_some()
    }

    /// Whether its newest version was denied a permission.
    fn is_denied(&self) -> bool {
        self.invalid.as_ref().is_some_and(|frame| meta(frame)["code"] == "permission")
    }

    /// A remedy, as something to type.
    pub(super) fn help(&self, name: &str) -> Option<String> {
        let is_broken = self.create.as_ref().and_then(refused).is_some();
        Some(match self.state() {
            ModuleState::Failed | ModuleState::Stopped if is_broken => "save its file".to_owned(),
            ModuleState::Failed => format!("save its file, or: xs modules start {name}"),
            ModuleState::Stopped => format!("xs modules start {name}"),
            ModuleState::Deleted => "put its file back".to_owned(),
            // The message names the option and the line of xs.toml; the file may be right as it is.
            ModuleState::Invalid | ModuleState::OlderActive | ModuleState::OlderRetrying => {
                return (!self.is_denied()).then(|| "save its file".to_owned());
            }
            ModuleState::Waiting => "xs serve --modules DIR, or xs host DIR".to_owned(),
            ModuleState::Ended
            | ModuleState::Starting
            | ModuleState::Active
            | ModuleState::Retrying => return None,
        })
    }
}

/// The meta of a frame.
pub(crate) fn meta(frame: &Frame) -> Value {
    serde_json::from_slice(frame.meta()).unwrap_or_default()
}

/// The first line of an error, with its position.
pub(crate) fn summary(frame: &Frame) -> String {
    summary_of(&meta(frame))
}

/// Why a version could not be taken, from its `create` frame.
pub(super) fn refused(create: &Frame) -> Option<Value> {
    Some(meta(create)["error"].clone()).filter(|error| !error.is_null())
}

/// The first line of an error, with its position.
pub(super) fn summary_of(error: &Value) -> String {
    let message = message(error);
    let place = place(error).map(|place| format!(" ({place})")).unwrap_or_default();
    format!("{}{place}", message.lines().next().unwrap_or_default())
}

/// The whole error, with the stack.
pub(crate) fn describe(error: &Value) -> String {
    let message = message(error);
    // A thrown error's message already says so.
    let code = error["code"].as_str().filter(|code| *code != "throw");
    let mut text = code.map(|code| format!("{code}: ")).unwrap_or_default() + message;
    if let Some(place) = place(error) {
        text += &format!("\n  at {place}");
    }
    if let Some(frame) = error["code_frame"].as_str() {
        text += &format!("\n{}", frame.trim_end());
    }
    // The stack repeats the message, and its first position is the one above.
    let stack = error["stack"].as_str().unwrap_or_default();
    let stack = stack.strip_prefix(message).unwrap_or(stack).trim_matches('\n');
    if stack.lines().count() > 1 {
        text += &format!("\n{stack}");
    }
    text
}

/// The message of an error, or why a generator waits without one.
pub(super) fn message(error: &Value) -> &str {
    match (error["message"].as_str(), error["reason"].as_str()) {
        (Some(message), _) => message,
        (None, Some("finished")) => "it ended and was restarted",
        (None, _) => "no message",
    }
}

/// `file:line:column`, as far as known.
pub(crate) fn place(error: &Value) -> Option<String> {
    let mut place = error["file"].as_str()?.to_owned();
    for number in ["line", "column"].iter().filter_map(|key| error[*key].as_u64()) {
        place += &format!(":{number}");
    }
    Some(place)
}

/// Facts by name, in display order.
#[derive(Default)]
pub(super) struct Facts(pub(super) Map<String, Value>);

impl Facts {
    pub(super) fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Adds a time, as the printer shows it.
    pub(super) fn add_time(&mut self, name: &str, shown: Option<String>) {
        self.0.insert(name.to_owned(), json!(shown));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xs_engine::{Meta, NewFrame};

    #[test]
    fn what_went_wrong_is_said_once() {
        let mut error = json!({
            "code": "throw", "message": "Error: x", "file": "a.ts", "line": 1, "column": 2,
            "code_frame": "> 1 | x\n", "stack": "Error: x\n    at run (a.ts:1:2)",
        });
        assert_eq!(describe(&error), "Error: x\n  at a.ts:1:2\n> 1 | x");
        error["stack"] = json!("Error: x\n    at f (a.ts:1:2)\n    at run (a.ts:3:4)");
        error["code"] = json!("cpu");
        assert_eq!(
            describe(&error),
            "cpu: Error: x\n  at a.ts:1:2\n> 1 | x\n    at f (a.ts:1:2)\n    at run (a.ts:3:4)"
        );
        assert_eq!(describe(&json!({ "reason": "finished" })), "it ended and was restarted");
    }

    fn module(event: Event, running: Running) -> Module {
        let new = NewFrame::new(Topic::parse("xs.handler.a.active").unwrap());
        let frame = Frame::assemble(&new, FrameId::first_of_ms(5), Some(1), None).unwrap();
        Module { running, ..Module::new(event, &frame) }
    }

    #[test]
    fn what_ran_under_a_server_that_is_gone_does_not_run() {
        let state = |event, running| module(event, running).state().as_str();
        assert_eq!(state(Event::Active, Running::Somebody), "active");
        assert_eq!(state(Event::Active, Running::Nobody), "waiting for a server");
        assert_eq!(state(Event::Retrying, Running::Starting), "starting");
        assert_eq!(state(Event::FinError, Running::Nobody), "failed");
        let frame = module(Event::Active, Running::Nobody).latest.1;
        assert_eq!(running(None, &frame), Running::Nobody);
        assert_eq!(running(Some(FrameId::first_of_ms(4)), &frame), Running::Somebody);
        assert_eq!(running(Some(FrameId::first_of_ms(6)), &frame), Running::Starting);
    }

    fn frame(ms: u64, event: &str, meta: Value) -> Frame {
        let topic = Topic::parse(&format!("xs.handler.a.{event}")).unwrap();
        let meta = Meta::parse(meta.to_string()).unwrap();
        let new = NewFrame { meta, ..NewFrame::new(topic) };
        Frame::assemble(&new, FrameId::first_of_ms(ms), Some(ms), None).unwrap()
    }

    fn create(ms: u64) -> Value {
        json!({ "create": FrameId::first_of_ms(ms).to_string() })
    }

    /// The frame says that the previous version keeps running.
    #[test]
    fn what_could_not_fall_back_is_invalid() {
        let state = |failed: u64, down: Option<u64>| {
            let mut why = create(failed);
            why["down"] = json!(down.map(|ms| FrameId::first_of_ms(ms).to_string()));
            let history = vec![
                frame(1, "create", json!({})),
                frame(2, "active", create(1)),
                frame(3, "create", json!({})),
                frame(4, "invalid", why),
            ];
            fold(history, false).into_values().next().unwrap().state().as_str()
        };
        assert_eq!(state(3, None), "waiting for a server");
        assert_eq!([state(3, Some(3)), state(1, Some(3))], ["invalid"; 2]);
    }

    #[test]
    fn what_has_no_place_does_not_run_although_it_did_before() {
        let state = |code: &str, invalid: u64| {
            let mut why = create(invalid);
            why["code"] = json!(code);
            let history = vec![
                frame(1, "create", json!({})),
                frame(2, "active", create(1)),
                frame(3, "create", json!({})),
                frame(4, "invalid", create(3)),
                frame(5, "invalid", why),
            ];
            fold(history, false).into_values().next().unwrap().state().as_str()
        };
        assert_eq!(state("syntax", 3), "waiting for a server");
        assert_eq!([state("full", 3), state("full", 1)], ["invalid"; 2]);
    }
}
