//! The hash in a file's `create` frame, which decides whether the file is a new version. Covers
//! what determines how the module runs: its sources, and the operator's settings except those that
//! only choose its process. Of a refused file it covers the reason and the sources read so far, but
//! no texts for people: their wording may change while the file does not.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use xs_engine::{BlobHash, Ttl};

use super::config::{Grant, ModuleConfig};
use crate::isolate::ModuleError;

/// The version of what is hashed.
const VERSION: u8 = 1;

/// Why a file is refused.
pub(super) struct Refused<'a> {
    /// The error found in it.
    pub(super) error: &'a ModuleError,
    /// All files that claim its name, if there is more than one.
    pub(super) claims: &'a [&'a str],
    /// The texts of the files read before it was refused, by path.
    pub(super) read: &'a BTreeMap<String, String>,
}

/// What is hashed. The order of the fields is part of it.
#[derive(Serialize)]
struct Identity<'a> {
    v: u8,
    source: String,
    config: Value,
    allow: Vec<Grant>,
    calls_ttl: String,
    refused: Option<RefusedIdentity<'a>>,
}

#[derive(Serialize)]
struct RefusedIdentity<'a> {
    code: &'static str,
    file: Option<&'a str>,
    line: Option<u32>,
    column: Option<u32>,
    claims: &'a [&'a str],
    read: &'a BTreeMap<String, String>,
}

/// The hash of a file whose body in its `create` frame is `source`.
///
/// # Panics
/// Never: it is made of texts and numbers.
pub(super) fn identity(
    source: &[u8],
    config: &ModuleConfig,
    refused: Option<&Refused<'_>>,
) -> BlobHash {
    let known = Identity::of(source, config, refused);
    BlobHash::of(&serde_json::to_vec(&known).expect("texts and numbers are JSON"))
}

impl<'a> Identity<'a> {
    fn of(source: &[u8], config: &ModuleConfig, refused: Option<&'a Refused<'a>>) -> Self {
        let ModuleConfig { config, allow, calls_ttl, isolation: _, read: _, env: _ } = config;
        // Neither the order of keys nor that of permissions changes what runs.
        let mut config = Value::Object(config.clone());
        config.sort_all_objects();
        let mut allow = allow.clone();
        allow.sort_unstable();
        allow.dedup();
        Self {
            v: VERSION,
            source: BlobHash::of(source).to_string(),
            config,
            allow,
            calls_ttl: Ttl::to_string(calls_ttl),
            refused: refused.map(|Refused { error, claims, read }| RefusedIdentity {
                code: error.kind.as_str(),
                file: error.file.as_deref(),
                line: error.line,
                column: error.column,
                claims,
                read,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolate::FailureKind;

    fn config(text: &str) -> ModuleConfig {
        toml::from_str(text).unwrap()
    }

    /// A hash that changes here makes every module of every store a new version.
    #[test]
    fn the_hash_stays_what_it_is() {
        let config = config(
            "allow = [\"run\", \"net-any\", \"run\"]\ncalls_ttl = \"time:1d\"\n\
             config = { b = 1, a = { d = [1.5], c = true } }\n",
        );
        let error = ModuleError::new(FailureKind::Syntax, "what it says").at("lib/b.js", 3, 4);
        let read =
            BTreeMap::from([("handlers/a.ts".to_owned(), "import \"../lib/b.js\"".to_owned())]);
        let refused = Refused { error: &error, claims: &["handlers/a.ts"], read: &read };
        let text =
            serde_json::to_string(&Identity::of(b"source", &config, Some(&refused))).unwrap();
        assert_eq!(text, GOLDEN);
        let hash = identity(b"source", &config, Some(&refused)).to_string();
        assert_eq!(hash, "sha256-HwlkMCbodxpRWOOWJtCj3u1hfBoDsGu4JWau7F5D1Zk=");
        let plain = identity(b"source", &ModuleConfig::default(), None).to_string();
        assert_eq!(plain, "sha256-rJKIgtQBCVXGbz01nSNkb8M/bBcY2xVUxVP3L+23XyE=");
    }

    const GOLDEN: &str = concat!(
        r#"{"v":1,"source":"sha256-Qc9nlLpCALg5xTUxVV8POZjfTLsBpNXLC5Tjyl4jlH0=","#,
        r#""config":{"a":{"c":true,"d":[1.5]},"b":1},"allow":["net-any","run"],"calls_ttl":"time:86400000","#,
        r#""refused":{"code":"syntax","file":"lib/b.js","line":3,"column":4,"claims":["handlers/a.ts"],"read":{"handlers/a.ts":"import \"../lib/b.js\""}}}"#,
    );

    #[test]
    fn the_hash_sees_what_changes_the_run_and_nothing_else() {
        let of = |text: &str| identity(b"source", &config(text), None);
        let differ = [
            "",
            "config = { a = 1 }",
            "config = { a = 2 }",
            "config = { a = { b = 1 } }",
            "allow = [\"net-any\"]",
            "allow = [\"net-any\", \"run\"]",
            "calls_ttl = \"time:1d\"",
        ];
        for (n, one) in differ.iter().enumerate() {
            assert!(differ[..n].iter().all(|other| of(other) != of(one)), "{one}");
        }
        assert_ne!(identity(b"other", &config(""), None), of(""));
        for (one, other) in [
            ("", "calls_ttl = \"forever\""),
            ("", "isolation = \"process\"\nread = [\"/var\"]\nenv = [\"A\"]"),
            ("config = { a = { b = 1, c = 2 } }", "config = { a = { c = 2, b = 1 } }"),
            ("allow = [\"run\", \"net-any\"]", "allow = [\"net-any\", \"run\"]"),
        ] {
            assert_eq!(of(one), of(other), "{one} {other}");
        }
    }

    #[test]
    fn a_refusal_is_known_by_its_place_not_its_words() {
        let read = |text: &str| BTreeMap::from([("lib/b.js".to_owned(), text.to_owned())]);
        let of = |error: &ModuleError, claims: &[&str], read: &BTreeMap<String, String>| {
            identity(b"", &ModuleConfig::default(), Some(&Refused { error, claims, read }))
        };
        let error = ModuleError::new(FailureKind::Syntax, "one").at("lib/b.js", 3, 4);
        let worded = ModuleError {
            message: "two".to_owned(),
            code_frame: Some("3 | here".to_owned()),
            ..error.clone()
        };
        let first = of(&error, &["a"], &read("x"));
        assert_eq!(first, of(&worded, &["a"], &read("x")));
        assert_ne!(first, of(&error, &["a"], &read("y")), "the file with the error was edited");
        assert_ne!(first, of(&error, &["a", "b"], &read("x")));
        assert_ne!(first, of(&error.clone().at("lib/b.js", 3, 5), &["a"], &read("x")));
        let import = ModuleError { kind: FailureKind::Import, ..error };
        assert_ne!(first, of(&import, &["a"], &read("x")));
    }
}
