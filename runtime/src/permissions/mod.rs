//! What a module may access outside its isolate: what it asks for, within what the operator allows.
//! Everything is denied by default; a denial names the line to add to the module.

mod denial;
mod parser;

use std::fs::{DirEntry, File, Metadata};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deno_permissions::{Permissions, PermissionsContainer, PermissionsOptions};

pub(crate) use denial::Denial;

use crate::isolate::{FailureKind, ModuleError, PermissionList};

/// Maximum entries of a directory that are searched for a file that was moved away.
const MOVED_ENTRIES_MAX: usize = 100_000;

/// What the operator lets modules ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow {
    /// Whether `net: ["*"]` is granted when a module asks for it.
    pub net_any: bool,
    /// Whether private, loopback and link-local addresses may be named in `net`.
    pub net_private: bool,
    /// Whether modules may run the programs they name.
    pub run: bool,
    /// Directories that no module may read, even if it names them: the store's own files.
    pub read_denied: Vec<PathBuf>,
    /// What a module's own process was given, if it has one.
    pub apart: Option<Arc<Apart>>,
}

/// What the operator gives a module's own process. The kernel enforces it; it is kept here so that
/// error messages can explain a denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    /// The module.
    pub name: String,
    /// Files and directories, as `xs.toml` names them.
    pub read: Vec<PathBuf>,
    /// Environment variables.
    pub env: Vec<String>,
}

impl Apart {
    /// The line of `xs.toml` that grants more, and where it belongs.
    pub(crate) fn line(&self, key: &str, value: &str) -> String {
        let name = match self.name.contains('.') {
            true => format!("{:?}", self.name),
            false => self.name.clone(),
        };
        format!("{key} = [{value:?}] below [modules.{name}] in xs.toml")
    }

    /// Whether the process may not read a path.
    fn keeps_from(&self, base: &Path, path: &Path) -> bool {
        let mut open = self.read.iter().map(|path| base.join(path)).chain([base.to_owned()]);
        !open.any(|root| normal(path).starts_with(normal(&root)))
    }
}

/// Private address ranges, reached only when the operator allows it. IPv4 ranges, by address and
/// prefix length.
const PRIVATE_V4: [(Ipv4Addr, u8); 8] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
];
/// Private IPv6 ranges. The last is for a network's own NAT64, which decides itself where in an
/// address the IPv4 address is.
const PRIVATE_V6: [&str; 6] = ["[::]", "[::1]", "fc00::/7", "fe80::/10", "ff00::/8", NAT64_LOCAL];
const NAT64_LOCAL: &str = "64:ff9b:1::/48";

/// All private ranges, including the IPv6 ranges that embed the IPv4 ones.
fn private() -> Vec<String> {
    let v4 = PRIVATE_V4.iter().flat_map(|&(address, len)| {
        let bits = u128::from(u32::from(address));
        let nat64 = Ipv6Addr::from((0x64_ff9b_u128 << 96) | bits);
        let six_to_four = Ipv6Addr::from((0x2002_u128 << 112) | (bits << 80));
        [
            format!("{address}/{len}"),
            format!("{nat64}/{}", 96 + len),
            format!("{six_to_four}/{}", 16 + len),
        ]
    });
    v4.chain(PRIVATE_V6.iter().map(|&range| range.to_owned())).collect()
}

/// The IPv4 address embedded in an IPv6 address.
fn inside(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// The permissions before the module's requests are known: none.
pub(crate) fn nothing() -> PermissionsContainer {
    PermissionsContainer::new(Arc::new(parser::NetOnly), Permissions::none_without_prompt())
}

/// A module's permissions for files and programs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Granted {
    /// The directory that serves as root, for a module under trial.
    root: Option<PathBuf>,
    run: Vec<String>,
    run_any: bool,
    base: PathBuf,
    read: Vec<PathBuf>,
    denied: Vec<PathBuf>,
    apart: Option<Arc<Apart>>,
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
                return refuse(
                    "permissions.net \"*\" needs `xs serve --allow-net-any`, or allow = [\"net-any\"] \
                     below the module's name in xs.toml; or name the hosts"
                        .into(),
                );
            }
            if is_private(host) && !allow.net_private {
                return refuse(format!(
                    "permissions.net names the private address {host:?}, which needs `xs serve \
                     --allow-net-private`, or allow = [\"net-private\"] below the module's name in \
                     xs.toml"
                ));
            }
        }
        if !asked.run.is_empty() && !allow.run {
            return refuse(
                "permissions.run needs `xs serve --allow-run`, or allow = [\"run\"] below the \
                 module's name in xs.toml"
                    .into(),
            );
        }
        let any = asked.net.iter().any(|host| host == "*");
        let options = PermissionsOptions {
            allow_net: (!asked.net.is_empty())
                .then(|| if any { Vec::new() } else { asked.net.clone() }),
            deny_net: (!allow.net_private).then(private),
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
        let granted = Self {
            root: None,
            run: asked.run.clone(),
            run_any: false,
            base: base.to_owned(),
            read,
            denied: allow.read_denied.clone(),
            apart: allow.apart.clone(),
        };
        Ok((granted, PermissionsContainer::new(parser, permissions)))
    }

    /// The permissions of a user's own script, which runs with the user's rights.
    ///
    /// # Errors
    /// None is expected: nothing is requested that could be denied.
    pub(crate) fn to_user(
        allow: &Allow,
        base: &Path,
    ) -> Result<(Self, PermissionsContainer), ModuleError> {
        let all = |name: &str| vec![name.to_owned()];
        let asked = PermissionList { net: all("*"), read: all("/"), ..PermissionList::default() };
        let allow = Allow { net_any: true, net_private: true, ..allow.clone() };
        let (granted, permissions) = Self::new(&asked, &allow, base)?;
        Ok((Self { run_any: true, ..granted }, permissions))
    }

    /// Confines all paths to a directory that serves as root.
    pub(crate) fn below(self, root: Option<PathBuf>) -> Self {
        Self { root, ..self }
    }

    /// Whether a program may be run. It is compared by the name used to run it, which may be looked
    /// up in PATH.
    pub(crate) fn may_run(&self, command: &str) -> bool {
        self.run_any || self.run.iter().any(|named| named == command)
    }

    /// Opens a file if it may be read, and checks the opened file itself, so that a link changed
    /// meanwhile leads nowhere else. Also returns the resolved path. Blocks as long as the file
    /// system does.
    ///
    /// # Errors
    /// The errors of [`Granted::readable`].
    pub(crate) fn open(&self, path: &str) -> Result<(File, PathBuf), ReadDenied> {
        let failed = |error: std::io::Error| ReadDenied::Io {
            path: path.to_owned(),
            error: error.to_string(),
        };
        let real = self.readable(path)?;
        // Opening a pipe must not block until a writer appears.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&real);
        let file = file.map_err(|error| match self.not_of_process(path, &real, &error) {
            Some(denial) => denial.into(),
            None => failed(error),
        })?;
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = std::fs::read_link(own).map_err(failed)?;
        if !self.holds(&opened) {
            return Err(Denial::Reading(path.to_owned()).into());
        }
        Ok((file, opened))
    }

    /// The denial behind an error, if the kernel keeps a module's own process from a path that the
    /// operator did not grant it.
    fn not_of_process(&self, path: &str, real: &Path, error: &std::io::Error) -> Option<Denial> {
        let apart = self.apart.as_ref()?;
        let is_kept = error.kind() == std::io::ErrorKind::PermissionDenied
            && apart.keeps_from(&self.base, &self.base.join(path))
            && apart.keeps_from(&self.base, real);
        is_kept
            .then(|| Denial::ReadingApart { path: path.to_owned(), line: apart.line("read", path) })
    }

    /// Whether nothing exists at a path that may be read.
    pub(crate) fn is_missing(&self, path: &str) -> bool {
        let found = self.at(&self.base.join(path)).symlink_metadata();
        found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Opens a file that was moved away from a path, which was opened before and so may be read:
    /// the file with this inode in the same directory, if its name is the old name plus a suffix.
    pub(crate) fn open_moved(&self, place: &Path, device: u64, inode: u64) -> Option<File> {
        let entry = moved(place)?.find(|(entry, _)| entry.ino() == inode)?.0;
        let (file, meta) = self.open_beside(place, &entry)?;
        ((meta.dev(), meta.ino()) == (device, inode)).then_some(file)
    }

    /// Opens a file that was moved away from a path before anything read it: of those whose name is
    /// the old name plus a number or a date, the one with the lowest `rank`; one without is none of
    /// them.
    pub(crate) fn open_rotated(
        &self,
        place: &Path,
        rank: impl Fn(&Metadata) -> Option<u64>,
    ) -> Option<(File, Metadata)> {
        let numbered = moved(place)?.filter(|(_, suffix)| {
            let is_part = |byte: &u8| byte.is_ascii_digit() || b".-_:T".contains(byte);
            suffix.iter().all(is_part) && suffix.iter().any(u8::is_ascii_digit)
        });
        let ranked =
            numbered.filter_map(|(entry, _)| Some((rank(&entry.metadata().ok()?)?, entry)));
        let (_, entry) = ranked.min_by_key(|(rank, _)| *rank)?;
        self.open_beside(place, &entry).filter(|(_, meta)| rank(meta).is_some())
    }

    /// Opens a file in the directory of a path that may be read.
    fn open_beside(&self, place: &Path, entry: &DirEntry) -> Option<(File, Metadata)> {
        let how = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let file = File::options().read(true).custom_flags(how).open(entry.path()).ok()?;
        let meta = file.metadata().ok()?;
        let mut denied = self.denied.iter().filter_map(|root| self.at(root).canonicalize().ok());
        let is_denied = denied.any(|root| place.starts_with(root));
        (meta.is_file() && !is_denied).then_some((file, meta))
    }

    /// Where a path of the module is, before any link is followed.
    pub(crate) fn place(&self, path: &str) -> PathBuf {
        self.at(&self.base.join(path))
    }

    /// The real location of a path of the module.
    fn at(&self, path: &Path) -> PathBuf {
        match &self.root {
            None => path.to_owned(),
            Some(root) => {
                // Only existing names count: `..` after a missing directory leads nowhere.
                let path = normal(path);
                root.join(path.strip_prefix("/").unwrap_or(&path))
            }
        }
    }

    /// Whether a resolved path is within what was granted.
    fn holds(&self, found: &Path) -> bool {
        let inside = |roots: &[PathBuf]| {
            let mut roots = roots.iter().filter_map(|root| self.at(root).canonicalize().ok());
            roots.any(|root| found.starts_with(root))
        };
        inside(&self.read) && !inside(&self.denied)
    }

    /// The resolved form of `path` if it may be read. Blocks as long as the file system does.
    ///
    /// # Errors
    /// A message for the author: the path does not exist, or the line to add.
    pub(crate) fn readable(&self, path: &str) -> Result<PathBuf, ReadDenied> {
        let wanted = self.base.join(path);
        // Checked before the file system is asked: a denial must not tell whether a file exists.
        let named = self.read.iter().any(|root| normal(&wanted).starts_with(normal(root)));
        let denied = || Denial::Reading(path.to_owned()).into();
        if !named {
            return Err(denied());
        }
        let found = self
            .at(&wanted)
            .canonicalize()
            .map_err(|error| ReadDenied::Io { path: path.to_owned(), error: error.to_string() })?;
        if self.holds(&found) { Ok(found) } else { Err(denied()) }
    }
}

/// The files beside a path whose names are its name and more: each with what that is.
fn moved(place: &Path) -> Option<impl Iterator<Item = (DirEntry, Vec<u8>)>> {
    let name = place.file_name()?.as_bytes().to_vec();
    let entries = std::fs::read_dir(place.parent()?).ok()?.take(MOVED_ENTRIES_MAX);
    Some(entries.filter_map(move |entry| {
        let entry = entry.ok()?;
        let suffix = entry.file_name().as_bytes().strip_prefix(&name[..])?.to_vec();
        (!suffix.is_empty()).then_some((entry, suffix))
    }))
}

/// Why a path cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadDenied {
    /// It is outside what the module may read.
    #[error("{0}")]
    Denied(Denial),
    /// The file system reported an error.
    #[error("cannot read {path:?}: {error}")]
    Io {
        /// The path as given.
        path: String,
        /// The error's text.
        error: String,
    },
}

impl From<Denial> for ReadDenied {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// The path without `.` and `..`, by text alone.
pub(crate) fn normal(path: &Path) -> PathBuf {
    deno_core::normalize_path(std::borrow::Cow::Borrowed(path)).into_owned()
}

/// Whether a `host`, `host:port` or `[v6]:port` is literally a private address.
pub(crate) fn is_private(text: &str) -> bool {
    let bare = text.trim_start_matches('[').split(']').next().unwrap_or(text);
    let host = match bare.parse::<IpAddr>() {
        Ok(_) => bare,
        Err(_) => bare.rsplit_once(':').map_or(bare, |(host, _)| host),
    };
    let name = host.trim_end_matches('.');
    if name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost") {
        return true;
    }
    let private_v4 = |v4: Ipv4Addr| {
        let differ = |range: Ipv4Addr| u32::from(v4) ^ u32::from(range);
        PRIVATE_V4.iter().any(|&(range, len)| differ(range) >> (32 - len) == 0)
    };
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(v4)) => private_v4(v4),
        Ok(IpAddr::V6(v6)) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.segments().starts_with(&[0x64, 0xff9b, 1])
                || inside(v6).is_some_and(private_v4)
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address that embeds another one is as private as the embedded one.
    #[test]
    fn addresses_inside_of_others_are_looked_at() {
        for (address, expected) in [
            ("[64:ff9b::127.0.0.1]:80", true),
            ("64:ff9b::a00:1", true),
            ("[64:ff9b::808:808]", false),
            ("[64:ff9b:1::808:808]", true),
            ("[2002:c0a8:1::1]:443", true),
            ("2002:808:808::1", false),
            ("[2001:db8::1]", false),
            ("[::ffff:10.0.0.1]", true),
            ("8.8.8.8:53", false),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("224.0.0.251:5353", true),
            ("0.0.0.5", true),
            ("[ff02::1]", true),
            ("localhost.:80", true),
        ] {
            assert_eq!(is_private(address), expected, "{address}");
        }
    }

    #[test]
    fn public_addresses_inside_of_others_are_let_through() {
        let asked = PermissionList { net: vec!["*".to_owned()], ..PermissionList::default() };
        let allow = Allow { net_any: true, ..Allow::default() };
        let (_, mut permissions) = Granted::new(&asked, &allow, Path::new("/")).unwrap();
        let mut may = |host: &str| permissions.check_net(&(host, Some(80)), "fetch()").is_ok();
        for private in [
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::808:808",
            "2002:7f00:1::",
            "2002:a01:203::1",
            "64:ff9b::6440:1",
            "10.1.2.3",
            "fe80::1",
            "::1",
        ] {
            let host = if private.contains(':') { format!("[{private}]") } else { private.into() };
            assert!(!may(&host), "{private}");
        }
        for public in ["[64:ff9b::808:808]", "[2002:808:808::1]", "8.8.8.8", "[2001:db8::1]"] {
            assert!(may(public), "{public}");
        }
    }
}
