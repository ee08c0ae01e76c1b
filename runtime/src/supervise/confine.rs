//! What a Host for a single module gives up before it runs the module: files, programs, sockets and
//! system calls that no module needs. Each measure is applied if the kernel has it, and reported by
//! name if not; one that should work and fails is an error, never ignored.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::calls;

/// Maximum address space: what the runtime, its threads' stacks and a module's heap reserve.
const ADDRESS_SPACE_BYTES: u64 = 4 << 30;
/// Maximum open files, sockets and pipes.
const FILES: u64 = 256;
/// The Landlock version used: newer kernels could refuse more, older ones refuse less.
const KNOWN: ABI = ABI::V7;

/// Files opened to resolve names, check certificates and get local time.
const NEEDED: [&str; 16] = [
    "/dev/null",
    "/dev/urandom",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/share/ca-certificates",
    "/usr/share/zoneinfo",
];
/// Directories of programs, for a module that may run some.
const PROGRAMS: [&str; 5] = ["/bin", "/sbin", "/usr", "/opt", "/etc/alternatives"];

/// What remains accessible to a Host for a single module.
#[derive(Debug, Clone, Default)]
pub(super) struct Opening {
    /// Files and directories that may be read.
    pub(super) read: Vec<PathBuf>,
    /// Whether programs may be started.
    pub(super) run: bool,
}

/// A measure and its status, for people.
pub(super) type Measure = (&'static str, String);

/// Gives up everything but the opening, permanently. Must be called before there is a second
/// thread.
///
/// # Errors
/// When a measure that the kernel supports cannot be applied.
pub(super) fn enter(opening: &Opening) -> io::Result<Vec<Measure>> {
    let mut taken = vec![("limits", limits()?)];
    rustix::thread::set_no_new_privs(true)?;
    taken.push(("no_new_privs", "on".to_owned()));
    // Before Landlock: whether seccomp is available is read from a file.
    taken.push(("seccomp", calls::refuse(opening.run)?));
    taken.push(("landlock", files(opening)?));
    Ok(taken)
}

/// Limits the process's resources. CPU time is limited per turn of a module, not for the life of a
/// process that may run for months.
fn limits() -> io::Result<String> {
    let lower = |resource, most: u64| {
        let hard = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })
    };
    lower(Resource::Core, 0)?;
    lower(Resource::Nofile, FILES)?;
    // V8 reserves far more than it ever uses.
    if cfg!(feature = "quickjs") {
        lower(Resource::As, ADDRESS_SPACE_BYTES)?;
        return Ok(format!("{} MiB of memory, {FILES} files", ADDRESS_SPACE_BYTES >> 20));
    }
    Ok(format!("{FILES} files"))
}

/// Lets the process open only what it may read, bind no port, and signal no other process.
fn files(opening: &Opening) -> io::Result<String> {
    let failed = |error: landlock::RulesetError| io::Error::other(format!("landlock: {error}"));
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = if opening.run { read | AccessFs::Execute } else { read };
    let programs: &[&str] = if opening.run { &PROGRAMS } else { &[] };
    let write = AccessFs::WriteFile | AccessFs::ReadFile;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::BindTcp))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.add_rules(path_beneath_rules(NEEDED, run)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(programs, run)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(["/dev/null"], write)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(&opening.read, read)))
        .and_then(|rules| rules.restrict_self())
        .map_err(failed)?;
    Ok(match (status.landlock, status.ruleset) {
        (LandlockStatus::NotImplemented, _) => "not in this kernel".to_owned(),
        (LandlockStatus::NotEnabled, _) => "not enabled in this kernel".to_owned(),
        (LandlockStatus::Available { effective_abi, .. }, RulesetStatus::FullyEnforced) => {
            format!("on, {effective_abi:?}")
        }
        (LandlockStatus::Available { effective_abi, .. }, _) => {
            format!("in part, {effective_abi:?}")
        }
    })
}
