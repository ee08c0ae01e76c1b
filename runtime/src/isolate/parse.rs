//! Parses the static fields of a default export, as JSON, into a [`Definition`]. Errors name what
//! is wrong and what would be right; unknown fields are errors, since most are typos.

use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use xs_engine::limits::PATTERNS_MAX;
use xs_engine::{FrameId, Topic, TopicPatterns, Ttl};

use super::definition::{
    ArgSpec, ArgType, Definition, Kind, LastResort, OnError, OutputSpec, PermissionList, StartAt,
};
use super::limits::{CONCURRENCY_DEFAULT, CONCURRENCY_MAX, DURATION_MAX, TIMEOUT_MAX};
use super::{FailureKind, ModuleError};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const RETRIES_MAX: u32 = 1_000;
const BACKOFF_DEFAULT: Duration = Duration::from_secs(1);
const BACKOFF_MAX_DEFAULT: Duration = Duration::from_secs(60);
const PULSE_MIN: Duration = Duration::from_millis(10);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    about: Option<String>,
    timeout: Option<f64>,
    #[serde(default)]
    config: Value,
    permissions: Option<Permissions>,
    output: Option<Output>,
    topics: Option<Topics>,
    start: Option<Start>,
    on_error: Option<Failing>,
    pulse: Option<f64>,
    tick: bool,
    // The function stays in JavaScript.
    #[serde(rename = "migrate")]
    _migrate: bool,
    duplex: Option<bool>,
    args: Option<Map<String, Value>>,
    concurrency: Option<usize>,
    on_crash: Option<Crash>,
    #[serde(default, rename = "state")]
    _state: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Permissions {
    #[serde(default)]
    net: Vec<String>,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    run: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    topic: Option<String>,
    ttl: Option<String>,
    #[serde(rename = "as")]
    form: Option<Form>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Form {
    Meta,
    Body,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "topics must be a pattern such as \"a.b\", \"a.*\" or \"*\", or an array of them"
)]
enum Topics {
    One(String),
    Many(Vec<String>),
}

enum Start {
    Named(StartName),
    After(After),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct After {
    after: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum StartName {
    New,
    First,
}

enum Failing {
    Now(Resort),
    Retry(Retry),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    retry: u32,
    backoff: Option<f64>,
    max: Option<f64>,
    then: Option<Resort>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Crash {
    Fail,
    Retry,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Resort {
    Unregister,
    Skip,
    Park,
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let expected = "start must be \"new\", \"first\" or { after: id }";
        word_or_object(from, expected, Self::Named, Self::After)
    }
}

impl<'de> Deserialize<'de> for Failing {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let expected = "onError is \"unregister\", \"skip\", \"park\" or \
                        { retry: n, backoff, max, then }";
        word_or_object(from, expected, Self::Now, Self::Retry)
    }
}

/// An option that is a word or an object. An unknown field of the object is named, which serde does
/// not do for an untagged enum; for any other error `expected` is the message.
fn word_or_object<'de, D, W, O, T>(
    from: D,
    expected: &str,
    word: impl Fn(W) -> T,
    object: impl Fn(O) -> T,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    W: DeserializeOwned,
    O: DeserializeOwned,
{
    let given = Value::deserialize(from)?;
    if !given.is_object() {
        return W::deserialize(given).map(word).map_err(|_| D::Error::custom(expected));
    }
    O::deserialize(given).map(object).map_err(|error| {
        let text = error.to_string();
        D::Error::custom(if text.starts_with(UNKNOWN_FIELD) { &text } else { expected })
    })
}

impl From<Resort> for LastResort {
    fn from(resort: Resort) -> Self {
        match resort {
            Resort::Unregister => Self::Unregister,
            Resort::Skip => Self::Skip,
            Resort::Park => Self::Park,
        }
    }
}

/// How serde's message about an unknown field begins.
const UNKNOWN_FIELD: &str = "unknown field `";

fn wrong(message: impl Into<String>) -> ModuleError {
    ModuleError::new(FailureKind::Definition, message)
}

/// The message for an unknown option, built from serde's message.
fn unknown(kind: Kind, what: &str) -> Option<String> {
    let mut quoted = what.strip_prefix(UNKNOWN_FIELD)?.split('`').step_by(2);
    let found = quoted.next()?;
    let known: Vec<&str> = quoted.filter(|name| !name.is_empty()).collect();
    let top = known.contains(&"about");
    let fits = |name: &&&str| !top || ALL_KINDS.contains(name) || own(kind).contains(name);
    let known: Vec<&str> = known.iter().filter(fits).copied().collect();
    let alike = |name: &&&str| {
        let (one, other) = (name.to_lowercase(), found.to_lowercase());
        one.starts_with(&other) || other.starts_with(&one)
    };
    let advice = match known.iter().find(alike) {
        _ if top && found == ISOLATION => {
            "write isolation = \"process\" below [modules.NAME] in xs.toml".to_owned()
        }
        Some(name) => format!("did you mean {name}?"),
        None => format!("there are {}", known.join(", ")),
    };
    Some(format!("a {} has no option {found}; {advice}", kind.as_str()))
}

const ALL_KINDS: [&str; 5] = ["about", "timeout", "config", "permissions", "output"];
/// What the operator sets, not the author.
const ISOLATION: &str = "isolation";

/// The options that one kind has and the others do not.
const fn own(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Handler => &["topics", "start", "onError", "pulse", "tick", "migrate", "state"],
        Kind::Command => &["args", "concurrency", "onCrash"],
        Kind::Generator => &["duplex"],
    }
}

fn millis(value: f64) -> Duration {
    Duration::try_from_secs_f64(value / 1000.0).unwrap_or(DURATION_MAX).min(DURATION_MAX)
}

/// Reads the fields of a processor of `kind`.
pub(super) fn definition(kind: Kind, json: &str) -> Result<Definition, ModuleError> {
    let mut text = serde_json::Deserializer::from_str(json);
    let fields: Fields = serde_path_to_error::deserialize(&mut text).map_err(|error| {
        let (field, text) = (error.path().to_string(), error.inner().to_string());
        // A position in a text that the author never saw helps nobody.
        let what = text.split(" at line ").next().unwrap_or_default();
        wrong(unknown(kind, what).unwrap_or_else(|| {
            let what = what.replace("expected a sequence", "expected an array");
            // If the field has an error sentence of its own, that already contains its name.
            let field = match field.as_str() {
                "." => String::new(),
                field if what.starts_with(field) => String::new(),
                field => format!("{field}: "),
            };
            format!("this is not the definition of a {}: {field}{what}", kind.as_str())
        }))
    })?;
    belongs(kind, &fields)?;
    let timeout = fields.timeout.map_or(TIMEOUT_DEFAULT, millis);
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(wrong(format!("timeout must be more than 0 and at most {TIMEOUT_MAX:?}")));
    }
    let concurrency = fields.concurrency.unwrap_or(CONCURRENCY_DEFAULT);
    if !(1..=CONCURRENCY_MAX).contains(&concurrency) {
        return Err(wrong(format!("concurrency must be between 1 and {CONCURRENCY_MAX}")));
    }
    let pulse = fields.pulse.map(millis);
    if pulse.is_some_and(|pulse| pulse < PULSE_MIN) {
        return Err(wrong(format!("pulse must be at least {PULSE_MIN:?}")));
    }
    let remove = fields.permissions.as_ref().map_or(&[][..], |asked| &asked.remove);
    let remove = removable(remove)?;
    let permissions = fields.permissions.map(|asked| PermissionList {
        net: asked.net,
        read: asked.read,
        run: asked.run,
        env: asked.env,
        remove,
    });
    Ok(Definition {
        about: fields.about,
        timeout,
        config: fields.config,
        permissions: permissions.unwrap_or_default(),
        output: output(fields.output)?,
        topics: fields.topics.map(topics).transpose()?,
        start: fields.start.map(start).transpose()?.unwrap_or_default(),
        on_error: fields.on_error.map(on_error).transpose()?.unwrap_or_default(),
        pulse: pulse.filter(|_| fields.tick),
        duplex: fields.duplex.unwrap_or_default(),
        args: fields.args.map(args),
        concurrency,
        retry_after_crash: fields.on_crash == Some(Crash::Retry),
    })
}

/// The topics of `permissions.remove`.
fn removable(patterns: &[String]) -> Result<Option<TopicPatterns>, ModuleError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let wrong = |text: String| wrong(format!("permissions.remove: {text}"));
    let topics = TopicPatterns::parse(&patterns.join(","));
    let topics = topics.map_err(|error| wrong(error.to_string()))?;
    let mut own = topics.as_slice().iter().map(ToString::to_string);
    match own.find(|pattern| pattern == "xs" || pattern.starts_with("xs.")) {
        Some(pattern) => Err(wrong(format!("{pattern} is reserved for xs"))),
        None => Ok(Some(topics)),
    }
}

/// Refuses fields of another kind, which would silently have no effect.
fn belongs(kind: Kind, fields: &Fields) -> Result<(), ModuleError> {
    let handlers = [
        ("topics", fields.topics.is_some()),
        ("start", fields.start.is_some()),
        ("onError", fields.on_error.is_some()),
        ("pulse", fields.pulse.is_some()),
        ("tick", fields.tick),
        ("state", !fields._state.is_null()),
        ("migrate", fields._migrate),
    ];
    let commands = [
        ("args", fields.args.is_some()),
        ("concurrency", fields.concurrency.is_some()),
        ("onCrash", fields.on_crash.is_some()),
    ];
    let generators = [("duplex", fields.duplex.is_some())];
    let of = [
        (Kind::Handler, &handlers[..]),
        (Kind::Command, &commands[..]),
        (Kind::Generator, &generators[..]),
    ];
    for (owner, names) in of {
        for (name, given) in names {
            if *given && owner != kind {
                let (owner, kind) = (owner.as_str(), kind.as_str());
                return Err(wrong(format!(
                    "{name} belongs to a {owner}, but this is a {kind}, because its file is \
                     in {kind}s/"
                )));
            }
        }
    }
    if kind == Kind::Handler && fields.topics.is_none() {
        return Err(wrong(
            "a handler needs topics, for example topics: \"metrics.recv\"; \
             what lies in handlers/ is one",
        ));
    }
    if fields.tick != fields.pulse.is_some() {
        return Err(wrong("pulse and tick go together: pulse: \"10s\", tick(ctx) {...}"));
    }
    Ok(())
}

fn output(given: Option<Output>) -> Result<OutputSpec, ModuleError> {
    let Some(given) = given else { return Ok(OutputSpec::default()) };
    let topic = given.topic.map(|topic| Topic::parse(&topic)).transpose();
    let topic = topic.map_err(|error| wrong(format!("output.topic: {error}")))?;
    if topic.as_ref().is_some_and(Topic::is_reserved) {
        return Err(wrong("output.topic must not begin with xs."));
    }
    let ttl = given.ttl.map(|ttl| Ttl::parse(&ttl)).transpose();
    let ttl = ttl.map_err(|error| wrong(format!("output.ttl: {error}")))?;
    Ok(OutputSpec {
        topic,
        ttl: ttl.unwrap_or_default(),
        objects_as_body: given.form == Some(Form::Body),
    })
}

fn topics(given: Topics) -> Result<TopicPatterns, ModuleError> {
    let text = match given {
        Topics::One(text) => text,
        Topics::Many(texts) => texts.join(","),
    };
    let topics = TopicPatterns::parse(&text).map_err(|error| wrong(format!("topics: {error}")))?;
    // One pattern is reserved for `unpark`.
    if topics.as_slice().len() >= PATTERNS_MAX {
        return Err(wrong(format!("topics: there may be at most {} patterns", PATTERNS_MAX - 1)));
    }
    Ok(topics)
}

fn start(given: Start) -> Result<StartAt, ModuleError> {
    Ok(match given {
        Start::Named(StartName::New) => StartAt::New,
        Start::Named(StartName::First) => StartAt::First,
        Start::After(After { after }) => {
            let id = FrameId::parse(&after);
            StartAt::After(id.map_err(|error| wrong(format!("start.after: {error}")))?)
        }
    })
}

fn on_error(given: Failing) -> Result<OnError, ModuleError> {
    match given {
        Failing::Now(resort) => Ok(OnError::Now(resort.into())),
        Failing::Retry(Retry { retry, .. }) if retry == 0 || retry > RETRIES_MAX => {
            Err(wrong(format!("onError.retry must be between 1 and {RETRIES_MAX}")))
        }
        Failing::Retry(Retry { retry, backoff, max, then }) => {
            let backoff = backoff.map_or(BACKOFF_DEFAULT, millis);
            Ok(OnError::Retry {
                tries: retry,
                backoff,
                backoff_max: max.map_or_else(|| BACKOFF_MAX_DEFAULT.max(backoff), millis),
                then: then.map(Into::into).unwrap_or_default(),
            })
        }
    }
}

fn args(given: Map<String, Value>) -> Vec<ArgSpec> {
    let spec = |(name, spec): (String, Value)| {
        let text = spec.as_str().unwrap_or_default();
        let (kind, optional) = match text.strip_suffix('?') {
            Some(kind) => (kind, true),
            None => (text, false),
        };
        let kind = match kind {
            "string" => ArgType::String,
            "number" => ArgType::Number,
            "boolean" => ArgType::Boolean,
            // JavaScript has already checked the type names.
            _ => ArgType::Json,
        };
        ArgSpec { name, kind, optional }
    };
    given.into_iter().map(spec).collect()
}
