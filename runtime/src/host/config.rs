//! `xs.toml` in the directory of the modules: `[modules.<name>]` holds what the operator says about
//! one module. What it says overrides the module's own definition.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::files::CONFIG_FILE;
use crate::name::ProcessorName;
use crate::permissions::Allow;

/// Bytes of the file.
const BYTES_MAX: u64 = 1024 * 1024;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {CONFIG_FILE}: {0}")]
    Read(#[from] io::Error),
    /// It is too large.
    #[error("{CONFIG_FILE} of {bytes} bytes is over the limit of {BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// It is not TOML, or holds something that has no meaning.
    #[error("{CONFIG_FILE} is not understood: {0}")]
    Syntax(#[from] toml::de::Error),
}

/// What the operator says about modules.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    modules: BTreeMap<String, ModuleConfig>,
}

/// What the operator says about one module.
#[derive(Debug, Clone, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ModuleConfig {
    /// Overrides the definition's `config`, key by key.
    #[serde(default)]
    pub config: serde_json::Map<String, Value>,
    /// What the module may ask for beyond the defaults.
    #[serde(default)]
    pub allow: Vec<Grant>,
}

/// Something a module may not have by default, even if it names it.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// `net: ["*"]`: any host.
    NetAny,
    /// Private, loopback and link-local addresses.
    NetPrivate,
    /// Programs.
    Run,
}

impl Config {
    /// Reads the file of a directory; a directory without one has nothing configured.
    ///
    /// # Errors
    /// [`ConfigError`] names what is wrong with it.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(CONFIG_FILE);
        let bytes = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        if bytes > BYTES_MAX {
            return Err(ConfigError::TooLarge { bytes });
        }
        Ok(toml::from_str(&fs::read_to_string(&path)?)?)
    }

    /// What it says about one module.
    #[must_use]
    pub fn module(&self, name: &ProcessorName) -> ModuleConfig {
        self.modules.get(name.as_str()).cloned().unwrap_or_default()
    }
}

impl ModuleConfig {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The host's permissions with this module's added.
    #[must_use]
    pub fn widen(&self, host: &Allow) -> Allow {
        let mut allow = host.clone();
        allow.net_any |= self.allow.contains(&Grant::NetAny);
        allow.net_private |= self.allow.contains(&Grant::NetPrivate);
        allow.run |= self.allow.contains(&Grant::Run);
        allow
    }

    /// Its part of the hash that decides whether a file acts: empty when nothing is said.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        if self.is_empty() {
            return Vec::new();
        }
        format!("{:?} {}", self.allow, Value::Object(self.config.clone())).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
        assert!(config.module(&name("other")).is_empty());
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
    fn the_hash_sees_every_change() {
        let config = |text: &str| toml::from_str::<ModuleConfig>(text).unwrap().canonical();
        assert!(config("").is_empty());
        let all = [
            config("config = { a = 1 }"),
            config("config = { a = 2 }"),
            config("allow = [\"net-any\"]"),
        ];
        assert!(all[0] != all[1] && all[1] != all[2] && !all[2].is_empty());
    }
}
