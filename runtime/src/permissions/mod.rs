//! What a module may touch outside its isolate: what it asks for, within what the operator allows.
//! Everything is denied by default; a denial names the line to add to the module.

mod parser;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deno_permissions::{Permissions, PermissionsContainer, PermissionsOptions};

use crate::isolate::{FailureKind, ModuleError, PermissionList};

/// What the operator allows modules to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow {
    /// Whether `net: ["*"]` is granted when a module asks for it.
    pub net_any: bool,
    /// Whether private, loopback and link-local addresses may be named in `net`.
    pub net_private: bool,
    /// Directories that no module may read, whatever it names: the store's own files.
    pub read_denied: Vec<PathBuf>,
}

/// Address ranges that are somebody's own network; reached only when the operator allows it.
const PRIVATE: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "[::]",
    "[::1]",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// What a module was granted: the files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Granted {
    base: PathBuf,
    read: Vec<PathBuf>,
    denied: Vec<PathBuf>,
}

impl Granted {
    /// Checks what a module asks for against what the operator allows.
    ///
    /// # Errors
    /// [`FailureKind::Permission`] names what is not allowed.
    pub(crate) fn new(
        asked: &PermissionList,
        allow: &Allow,
        base: &Path,
    ) -> Result<(Self, PermissionsContainer), ModuleError> {
        let refuse = |message: String| Err(ModuleError::new(FailureKind::Permission, message));
        for host in &asked.net {
            if host == "*" && !allow.net_any {
                return refuse("permissions.net \"*\" needs `xs serve --allow-net-any`; name the hosts instead".into());
            }
            if is_private(host) && !allow.net_private {
                return refuse(format!(
                    "permissions.net names the private address {host:?}, which needs `xs serve --allow-net-private`"
                ));
            }
        }
        let any = asked.net.iter().any(|host| host == "*");
        let options = PermissionsOptions {
            allow_net: (!asked.net.is_empty())
                .then(|| if any { Vec::new() } else { asked.net.clone() }),
            deny_net: (!allow.net_private)
                .then(|| PRIVATE.iter().map(|&range| range.to_owned()).collect()),
            prompt: false,
            ..PermissionsOptions::default()
        };
        let parser = Arc::new(parser::NetOnly);
        let permissions = match Permissions::from_options(&*parser, &options) {
            Ok(permissions) => permissions,
            Err(error) => {
                return refuse(format!(
                    "permissions.net: {error}; write \"host\" or \"host:port\""
                ));
            }
        };
        let read = asked.read.iter().map(|path| base.join(path)).collect();
        let granted = Self { base: base.to_owned(), read, denied: allow.read_denied.clone() };
        Ok((granted, PermissionsContainer::new(parser, permissions)))
    }

    /// The real path behind `path` when it may be read. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// A message for the author: the path does not exist, or the line to add.
    pub(crate) fn readable(&self, path: &str) -> Result<PathBuf, ReadDenied> {
        let wanted = self.base.join(path);
        // Checked before the file system is asked: a denial must not tell whether a file exists.
        let named = self.read.iter().any(|root| normal(&wanted).starts_with(normal(root)));
        let real = |path: &Path| path.canonicalize();
        let denied = || ReadDenied::Denied { path: path.to_owned() };
        if !named {
            return Err(denied());
        }
        let found = real(&wanted)
            .map_err(|error| ReadDenied::Io { path: path.to_owned(), error: error.to_string() })?;
        let inside = |roots: &[PathBuf]| {
            roots.iter().any(|root| real(root).is_ok_and(|root| found.starts_with(root)))
        };
        if !inside(&self.read) || inside(&self.denied) {
            return Err(denied());
        }
        Ok(found)
    }
}

/// Why a path cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadDenied {
    /// It is outside of what the module may read.
    #[error(
        "reading {path:?} is not allowed; add permissions: {{ read: [{path:?}] }} to the definition"
    )]
    Denied {
        /// The path as given.
        path: String,
    },
    /// The file system says no.
    #[error("cannot read {path:?}: {error}")]
    Io {
        /// The path as given.
        path: String,
        /// What it says.
        error: String,
    },
}

/// The path without `.` and `..`, as far as its text goes.
fn normal(path: &Path) -> PathBuf {
    deno_core::normalize_path(std::borrow::Cow::Borrowed(path)).into_owned()
}

/// Whether a `host`, `host:port` or `[v6]:port` is a private address by its text.
fn is_private(text: &str) -> bool {
    let bare = text.trim_start_matches('[').split(']').next().unwrap_or(text);
    let host = match bare.parse::<IpAddr>() {
        Ok(_) => bare,
        Err(_) => bare.rsplit_once(':').map_or(bare, |(host, _)| host),
    };
    if host.eq_ignore_ascii_case("localhost") || host.ends_with(".localhost") {
        return true;
    }
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(v4)) => {
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified()
        }
        Ok(IpAddr::V6(v6)) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
        Err(_) => false,
    }
}
