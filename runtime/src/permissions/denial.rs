//! A denied access outside the store, and the line that would allow it.

use std::fmt;

use super::is_private;

/// The denied access; displays as the message for the author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denial {
    /// Reaching this `host:port`.
    Network(String),
    /// Reading below this path.
    Reading(String),
    /// Reading below this path in a module's own process, for lack of this line.
    ReadingApart {
        /// The path as given.
        path: String,
        /// The line to add, and where.
        line: String,
    },
    /// Running this program.
    Running(String),
}

impl Denial {
    /// The denied action, in words.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::Network(host) => format!("network access to {host}"),
            Self::Reading(path) => format!("reading {path:?}"),
            Self::ReadingApart { path, .. } => format!("reading {path:?} in its own process"),
            Self::Running(name) => format!("running {name:?}"),
        }
    }

    /// How to allow it.
    pub(crate) fn hint(&self) -> String {
        let permission = match self {
            Self::Network(host) => format!("net: [\"{host}\"]"),
            Self::Reading(path) => format!("read: [{path:?}]"),
            Self::ReadingApart { line, .. } => return format!("add {line}"),
            Self::Running(name) => format!("run: [{name:?}]"),
        };
        format!("add permissions: {{ {permission} }} to the definition")
    }

    /// Whether the operator has to allow it too, because the address is private.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self, Self::Network(host) if is_private(host))
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not allowed; {}", self.what(), self.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_names_the_line_to_add() {
        for (denial, text) in [
            (
                Denial::Network("10.0.0.1:80".to_owned()),
                "network access to 10.0.0.1:80 is not allowed; \
                 add permissions: { net: [\"10.0.0.1:80\"] } to the definition",
            ),
            (
                Denial::Reading("a is not allowed; b".to_owned()),
                "reading \"a is not allowed; b\" is not allowed; \
                 add permissions: { read: [\"a is not allowed; b\"] } to the definition",
            ),
            (
                Denial::ReadingApart {
                    path: "/etc/hosts".to_owned(),
                    line: "read = [\"/etc/hosts\"] below [modules.a] in xs.toml".to_owned(),
                },
                "reading \"/etc/hosts\" in its own process is not allowed; \
                 add read = [\"/etc/hosts\"] below [modules.a] in xs.toml",
            ),
            (
                Denial::Running("make".to_owned()),
                "running \"make\" is not allowed; \
                 add permissions: { run: [\"make\"] } to the definition",
            ),
        ] {
            assert_eq!(denial.to_string(), text);
        }
        assert!(Denial::Network("10.0.0.1:80".to_owned()).is_private());
        assert!(!Denial::Network("example.com:80".to_owned()).is_private());
        assert!(!Denial::Reading("localhost".to_owned()).is_private());
    }
}
