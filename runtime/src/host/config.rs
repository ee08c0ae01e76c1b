//! `xs.toml` in the directory of the modules: `[modules.<name>]` holds the operator's settings for
//! one module. They override the module's own definition.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use xs_engine::Ttl;

use super::files::CONFIG_FILE;
use crate::isolate::{FailureKind, ModuleError};
use crate::loader::location::line_column;
use crate::name::ProcessorName;
use crate::permissions::Allow;

/// Maximum size of the file, in bytes.
const BYTES_MAX: u64 = 1024 * 1024;
/// The shortest time for which the frames of calls may be kept: a waiting call must still be stored
/// when its turn comes.
const CALLS_TTL_MIN_MS: u64 = 60 * 60 * 1000;
/// Maximum number of modules with a process of their own.
const APART_MAX: usize = 64;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {CONFIG_FILE}: {0}")]
    Read(io::Error),
    /// It is too large.
    #[error("{CONFIG_FILE} of {bytes} bytes is over the limit of {BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// More modules ask for a process of their own than are allowed.
    #[error(
        "{CONFIG_FILE} gives {count} modules their own process; at most {APART_MAX} may have one"
    )]
    Apart {
        /// Their number.
        count: usize,
    },
    /// It sets `read` or `env`, which apply only to a process of its own, for a module without one.
    #[error("{CONFIG_FILE}: read and env of {name} need isolation = \"process\"")]
    NotApart {
        /// The module.
        name: String,
    },
    /// It is not TOML, or holds an unknown setting.
    #[error("{CONFIG_FILE} is invalid: {error}")]
    Syntax {
        /// What is wrong, with the line in question.
        error: toml::de::Error,
        /// Line and column, from 1, if the error has a position.
        place: Option<(u32, u32)>,
    },
}

impl From<io::Error> for ConfigError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl ConfigError {
    fn syntax(error: toml::de::Error, text: &str) -> Self {
        let place = error.span().map(|span| line_column(text, span.start));
        Self::Syntax { error, place }
    }

    /// This error in the form used for failures of modules.
    #[must_use]
    pub fn to_module_error(&self) -> ModuleError {
        let Self::Syntax { error, place } = self else {
            return ModuleError::new(FailureKind::Definition, self.to_string());
        };
        let said = ModuleError::new(FailureKind::Syntax, error.message());
        let Some((line, column)) = *place else {
            return ModuleError { file: Some(CONFIG_FILE.to_owned()), ..said };
        };
        // Between position and message, the parser shows the line.
        let shown = error.to_string();
        let lines = shown.lines().skip(1).take_while(|line| line.contains(" |"));
        let code_frame = lines.collect::<Vec<_>>().join("\n");
        ModuleError { code_frame: Some(code_frame), ..said }.at(CONFIG_FILE, line, column)
    }
}

/// The operator's settings for all modules.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    modules: BTreeMap<String, ModuleConfig>,
}

/// The operator's settings for one module.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ModuleConfig {
    /// Overrides the definition's `config`, key by key. Dates and times are text.
    #[serde(default, deserialize_with = "json")]
    pub config: serde_json::Map<String, Value>,
    /// Permissions the module may request beyond the defaults.
    #[serde(default)]
    pub allow: Vec<Grant>,
    /// Whether it runs on a thread or in a process of its own.
    #[serde(default)]
    pub isolation: Isolation,
    /// Files and directories that its own process may read, whatever the module asks for.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Environment variables that its own process gets.
    #[serde(default)]
    pub env: Vec<String>,
    /// How long a command's calls and their ends are kept.
    #[serde(default, deserialize_with = "calls_ttl")]
    pub calls_ttl: Ttl,
}

fn calls_ttl<'de, D: Deserializer<'de>>(from: D) -> Result<Ttl, D::Error> {
    let text = String::deserialize(from)?;
    match Ttl::parse(&text).map_err(D::Error::custom)? {
        ttl @ Ttl::Forever => Ok(ttl),
        ttl @ Ttl::TimeMs(ms) if ms >= CALLS_TTL_MIN_MS => Ok(ttl),
        _ => Err(D::Error::custom("calls_ttl must be \"forever\", or \"time:1h\" or longer")),
    }
}

/// Deserializes a table as JSON. JSON has no dates, so they become text.
fn json<'de, D: Deserializer<'de>>(from: D) -> Result<serde_json::Map<String, Value>, D::Error> {
    let table = toml::Table::deserialize(from)?;
    let fields = table.into_iter().map(|(key, value)| Ok((key, json_of(value)?)));
    fields.collect::<Result<_, &str>>().map_err(D::Error::custom)
}

fn json_of(value: toml::Value) -> Result<Value, &'static str> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) if !number.is_finite() => {
            return Err("a module gets its config as JSON, which has no nan or inf");
        }
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(is) => Value::Bool(is),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(all) => {
            Value::Array(all.into_iter().map(json_of).collect::<Result<_, _>>()?)
        }
        toml::Value::Table(table) => {
            let fields = table.into_iter().map(|(key, value)| Ok((key, json_of(value)?)));
            Value::Object(fields.collect::<Result<_, &'static str>>()?)
        }
    })
}

/// Whether a module runs on a thread or in a process of its own.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// On a thread of the process that the modules share.
    #[default]
    Thread,
    /// In a process of its own, confined by the kernel.
    Process,
}

/// A permission that no module gets by default, even if it asks for it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// `net: ["*"]`: any host.
    NetAny,
    /// Private, loopback and link-local addresses.
    NetPrivate,
    /// Running programs.
    Run,
}

impl Config {
    /// Reads the file of a directory; without a file the configuration is empty.
    ///
    /// # Errors
    /// [`ConfigError`] names what is wrong with it.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        // Opening a pipe must not block until a writer appears.
        let mut how = File::options();
        how.read(true).custom_flags(libc::O_NONBLOCK);
        let file = match how.open(dir.join(CONFIG_FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a file").into());
        }
        let mut text = String::new();
        let read = file.take(BYTES_MAX + 1).read_to_string(&mut text);
        let bytes = meta.len().max(text.len() as u64);
        if bytes > BYTES_MAX {
            return Err(ConfigError::TooLarge { bytes });
        }
        read?;
        Self::parse(&text)
    }

    /// Parses the text of an `xs.toml`.
    ///
    /// # Errors
    /// [`ConfigError`] names what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::syntax(error, text))?;
        for (name, module) in &config.modules {
            let bounded = !(module.read.is_empty() && module.env.is_empty());
            if bounded && module.isolation != Isolation::Process {
                return Err(ConfigError::NotApart { name: name.clone() });
            }
        }
        let count = config.apart().len();
        if count > APART_MAX { Err(ConfigError::Apart { count }) } else { Ok(config) }
    }

    /// The modules with a process of their own, with the settings that affect that process.
    #[must_use]
    pub fn apart(&self) -> BTreeMap<String, ModuleConfig> {
        let apart =
            self.modules.iter().filter(|(_, module)| module.isolation == Isolation::Process);
        let process = |module: &ModuleConfig| ModuleConfig {
            config: serde_json::Map::new(),
            calls_ttl: Ttl::Forever,
            ..module.clone()
        };
        apart.map(|(name, module)| (name.clone(), process(module))).collect()
    }

    /// The names of the configured modules.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The settings of one module.
    #[must_use]
    pub fn module(&self, name: &ProcessorName) -> ModuleConfig {
        self.modules.get(name.as_str()).cloned().unwrap_or_default()
    }
}

impl ModuleConfig {
    /// The host's permissions plus those granted to this module.
    #[must_use]
    pub fn widen(&self, host: &Allow) -> Allow {
        let mut allow = host.clone();
        allow.net_any |= self.allow.contains(&Grant::NetAny);
        allow.net_private |= self.allow.contains(&Grant::NetPrivate);
        allow.run |= self.allow.contains(&Grant::Run);
        allow
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::fs;

    use super::*;

    fn name(text: &str) -> ProcessorName {
        ProcessorName::parse(text).unwrap()
    }

    #[test]
    fn modules_are_configured_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load(dir.path()).unwrap(), Config::default());
        let text = "[modules.\"disk.usage\"]\nallow = [\"net-private\"]\n\
                    [modules.\"disk.usage\".config]\nevery = \"1s\"\nlimit = 3\n";
        fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
        let config = Config::load(dir.path()).unwrap();
        let module = config.module(&name("disk.usage"));
        assert_eq!(Value::Object(module.config.clone()), json!({ "every": "1s", "limit": 3 }));
        let allow = module.widen(&Allow::default());
        assert!(allow.net_private && !allow.net_any);
        assert_eq!(config.module(&name("other")), ModuleConfig::default());
    }

    #[test]
    fn what_json_has_not_is_text_or_refused() {
        let config = |value: &str| Config::parse(&format!("[modules.a.config]\nk = {value}\n"));
        let of = |value: &str| config(value).map(|all| all.module(&name("a")).config["k"].clone());
        for (value, want) in [
            ("2024-01-01", json!("2024-01-01")),
            ("[2024-01-01T10:00:00Z, 1]", json!(["2024-01-01T10:00:00Z", 1])),
            ("{ at = 10:00:00, x = 1.5 }", json!({ "at": "10:00:00", "x": 1.5 })),
        ] {
            assert_eq!(of(value).unwrap(), want);
        }
        for value in ["nan", "[-inf]"] {
            let error = of(value).unwrap_err();
            assert!(
                matches!(&error, ConfigError::Syntax { place: Some((1 | 2, _)), .. }),
                "{error}"
            );
            assert!(error.to_string().contains("no nan or inf"), "{error}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for text in
            ["[modules", "[module.a]", "[modules.a]\nconfg = {}", "[modules.a]\nallow = [\"all\"]"]
        {
            fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
            let message = Config::load(dir.path()).unwrap_err().to_string();
            assert!(message.starts_with("xs.toml"), "{message}");
        }
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        let error = Config::parse("[modules.a]\nallow = [3]\n").unwrap_err().to_module_error();
        let place = (error.file.as_deref(), error.line, error.column);
        assert_eq!(place, (Some("xs.toml"), Some(2), Some(10)));
        assert!(!error.message.contains('\n'), "{}", error.message);
        assert!(error.code_frame.unwrap().contains("2 | allow = [3]"));
        let read = "[modules.a]\nread = [\"/\"]\n";
        let error = Config::parse(read).unwrap_err().to_module_error();
        assert!(error.message.starts_with("xs.toml: ") && error.file.is_none());
    }

    /// A call that expired before its turn would never be answered.
    #[test]
    fn calls_are_kept_for_an_hour_at_least() {
        let ttl = |text: &str| {
            let all = Config::parse(&format!("[modules.a]\ncalls_ttl = \"{text}\"\n"))?;
            Ok::<_, ConfigError>(all.module(&name("a")).calls_ttl)
        };
        assert_eq!(ttl("time:30d").unwrap(), Ttl::TimeMs(30 * 24 * CALLS_TTL_MIN_MS));
        assert_eq!(ttl("time:1h").unwrap(), Ttl::TimeMs(CALLS_TTL_MIN_MS));
        assert_eq!(ttl("forever").unwrap(), Ttl::Forever);
        for text in ["time:59m", "last:9", "ephemeral", "soon"] {
            assert!(ttl(text).is_err(), "{text}");
        }
        assert_eq!(ModuleConfig::default().calls_ttl, Ttl::Forever);
    }

    #[test]
    fn modules_are_set_apart_by_name() {
        let text = "[modules.a]\nisolation = \"process\"\nenv = [\"TOKEN\"]\nconfig = { n = 1 }\n\
                    [modules.b]\nisolation = \"thread\"\n";
        let apart = Config::parse(text).unwrap().apart();
        assert_eq!(apart.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!((&apart["a"].env[..], apart["a"].config.len()), (&["TOKEN".to_owned()][..], 0));
        let bound = Config::parse("[modules.a]\nread = [\"/var\"]\n").unwrap_err();
        assert!(bound.to_string().contains("read and env of a need isolation"), "{bound}");
        let module = |n: usize| format!("[modules.m{n}]\nisolation = \"process\"\n");
        let many = |count: usize| Config::parse(&(0..count).map(module).collect::<String>());
        assert!(many(APART_MAX).is_ok() && many(APART_MAX + 1).is_err());
    }
}
