//! `doctor`: checks a store and what it depends on, the disk, the process limits, the server, and
//! rates each. Stores nothing; it removes its own temporary file.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{StatVfsMountFlags, statfs, statvfs};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use xs_engine::TopicPatterns;
use xs_engine::names::{LOG_DIR, is_store};
use xs_protocol::{Address, Client, ClientError, LastRequest};

use crate::clock;
use crate::connect::{Need, Session, beheaded, default_address, explain, unserved};
use crate::exit::{self, Exit};
use crate::output::{Output, Paint};
use crate::reach::options;

/// Number of syncs timed.
const SYNCS: usize = 20;
/// Bytes written before each sync.
const SYNC_BYTES: usize = 4096;
/// A sync that takes longer than this makes every durable append slow.
const SYNC_SLOW: Duration = Duration::from_millis(20);
/// A store needs space for a segment, a pack, and what compaction writes before it unlinks files.
const FREE_BYTES: u64 = 512 * 1024 * 1024;
/// The space that a segment or a pack takes on tmpfs.
const WHOLE_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// The magic number of a tmpfs, as statfs(2) has it.
const TMPFS: u64 = 0x0102_1994;
/// Enough descriptors for the files of a store and a few hundred connections.
const DESCRIPTORS: u64 = 4096;
/// The maps that a store may have open, and as many for the rest of the process.
const MAPS: u64 = 2048;

/// The rating of a check.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// It works, but not as well as it could.
    Poor,
    Bad,
}

/// One check and its result.
struct Check {
    name: &'static str,
    state: State,
    found: String,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { name, state, found: found.into() }
    }

    fn of(name: &'static str, good: bool, found: impl Into<String>, advice: &str) -> Self {
        let found = found.into();
        match good {
            true => Self::new(name, State::Good, found),
            false => Self::new(name, State::Poor, format!("{found}: {advice}")),
        }
    }
}

pub(super) async fn run(addr: Option<Address>) -> anyhow::Result<Exit> {
    let address = addr.map_or_else(default_address, Ok)?;
    let version = format!(
        "xs {} on {} {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    let mut checks = vec![Check::new("version", State::Good, version)];
    let server = server(&address).await;
    let is_reached = server.state != State::Bad;
    checks.push(server);
    if is_reached {
        checks.extend(store(&address).await);
    }
    if let Address::Unix(socket) = &address {
        // A server elsewhere has limits of its own.
        checks.extend([descriptors(), maps()]);
        let dir = socket.parent().map_or_else(PathBuf::new, Path::to_owned);
        checks.extend(tokio::task::spawn_blocking(move || directory(&dir)).await?);
    }
    let mut out = Output::stdout();
    for check in &checks {
        print(check, &mut out)?;
    }
    out.flush()?;
    Ok(if checks.iter().any(|check| check.state == State::Bad) { Exit::Failed } else { Exit::Ok })
}

fn print(check: &Check, out: &mut Output) -> anyhow::Result<()> {
    let state = match check.state {
        State::Good => "ok",
        State::Poor => "poor",
        State::Bad => "bad",
    };
    if !out.is_person() {
        let line = json!({ "check": check.name, "state": state, "found": check.found });
        out.line(&line.to_string())?;
        return Ok(());
    }
    let state = format!("{state:<4}");
    let state = match check.state {
        State::Good => out.paint(Paint::Faint, &state),
        State::Poor => out.paint(Paint::Name, &state),
        State::Bad => out.paint(Paint::Bad, &state),
    };
    out.line(&format!("{state}  {:<12}  {}", check.name, check.found))?;
    Ok(())
}

async fn server(address: &Address) -> Check {
    let begun = Instant::now();
    let name = "server";
    match Client::connect(address, options()).await {
        Ok(client) => match client.ping().await {
            Ok(()) => {
                let server = client.server();
                let text = format!(
                    "{} at {address}, store {}, head {}, answered in {} us",
                    server.name,
                    server.uuid,
                    server.head,
                    begun.elapsed().as_micros()
                );
                Check::new(name, State::Good, text)
            }
            Err(error) => Check::new(name, State::Bad, told(address, error)),
        },
        Err(error) if unserved(address, &error).is_some() => Check::new(
            name,
            State::Good,
            format!("no server for {address}; subcommands open the store themselves"),
        ),
        Err(error) => Check::new(name, State::Bad, told(address, error)),
    }
}

/// The text of an error, which names the address.
fn told(address: &Address, error: ClientError) -> String {
    let (text, address) = (explain(error).to_string(), address.to_string());
    if text.contains(&address) { text } else { format!("{address}: {text}") }
}

/// Checks whether the store takes appends, and whether its newest event is ahead of the clock.
/// Connects as every subcommand does, which opens a store that is not served. Returns nothing when
/// there is no store yet.
async fn store(address: &Address) -> Vec<Check> {
    let name = "store";
    let dir = match address {
        Address::Unix(socket) => socket.parent(),
        _ => None,
    };
    let session = match Session::open(Some(address.clone()), Need::Existing).await {
        Ok(session) => session,
        // The directory has a check of its own.
        Err(_) if dir.is_some_and(|dir| !is_store(dir) && beheaded(dir).is_none()) => return vec![],
        Err(error) => return vec![Check::new(name, State::Bad, exit::text(&error))],
    };
    let stats = session.client.stats().await;
    let clock = clock(&session.client).await;
    if let Err(error) = session.close().await {
        return vec![Check::new(name, State::Bad, exit::text(&error))];
    }
    let health = match stats.map(|text| serde_json::from_str::<Value>(&text)) {
        Ok(Ok(stats)) => {
            let named = dir.map_or_else(|| "STORE".to_owned(), |dir| dir.display().to_string());
            health(&stats["store"], &named)
        }
        Ok(Err(error)) => Check::new(name, State::Bad, error.to_string()),
        Err(error) => Check::new(name, State::Poor, format!("no statistics: {error}")),
    };
    std::iter::once(health).chain(clock).collect()
}

/// Whether the clock is past the newest event; `None` where that is unknown.
async fn clock(client: &Client) -> Option<Check> {
    let request = LastRequest { topics: TopicPatterns::everything(), n: 1, per_topic: false };
    let newest = client.last(&request).await.ok()?.pop()?;
    let name = "clock";
    Some(match clock::ahead(newest.id()) {
        Some(text) => Check::new(name, State::Poor, text),
        None => Check::new(name, State::Good, "not behind the newest event"),
    })
}

/// The store's own state of health; `named` is its name in advice.
fn health(store: &Value, named: &str) -> Check {
    let name = "store";
    match store["health"].as_str().unwrap_or_default() {
        "writable" if store["full"] == true => {
            let why = store["shortage"].as_str().unwrap_or("there is no room");
            let text =
                format!("the last append was refused: {why}; xs help operations says what to do");
            Check::new(name, State::Bad, text)
        }
        "writable" => Check::new(name, State::Good, "accepts appends"),
        "read-only" => Check::new(
            name,
            State::Bad,
            format!(
                "read-only: xs verify {named} says why; if it is damaged, use xs repair {named} \
                 INTO or a backup"
            ),
        ),
        "failed" => Check::new(
            name,
            State::Bad,
            "a write failed; no more are accepted until the server is restarted",
        ),
        other => Check::new(name, State::Poor, format!("it is {other}")),
    }
}

fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile);
    // A server raises its soft limit to the hard one.
    let text =
        limit.maximum.map_or_else(|| "no limit".to_owned(), |hard| format!("{hard} at a time"));
    let good = limit.maximum.is_none_or(|hard| hard >= DESCRIPTORS);
    let advice =
        "raise it for a server with many connections: ulimit -Hn, or LimitNOFILE in its unit";
    Check::of("descriptors", good, text, advice)
}

fn maps() -> Check {
    let read = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    match read.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(most) => Check::of(
            "maps",
            most >= MAPS,
            format!("{most} at a time"),
            "raise it: sysctl vm.max_map_count=65530",
        ),
        None => Check::new("maps", State::Good, "the system does not report a limit"),
    }
}

fn directory(dir: &Path) -> Vec<Check> {
    let metadata = match std::fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text =
                format!("{} does not exist; xs serve or xs append creates it", dir.display());
            return vec![Check::new("directory", State::Poor, text)];
        }
        Err(error) => {
            return vec![Check::new(
                "directory",
                State::Bad,
                format!("{}: {error}", dir.display()),
            )];
        }
    };
    let mode = metadata.permissions().mode() & 0o777;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    let text = format!("{} has mode {mode:03o}", dir.display());
    let owner = match own {
        false => Check::new(
            "directory",
            State::Bad,
            format!("{text} and belongs to user {}", metadata.uid()),
        ),
        true => {
            Check::of("directory", mode & 0o077 == 0, text, "accessible to other users; chmod 700")
        }
    };
    vec![owner, filesystem(dir), space(dir), sync(dir)]
}

fn magic(dir: &Path) -> rustix::io::Result<u64> {
    statfs(dir).map(|found| found.f_type as u64 & 0xffff_ffff)
}

fn filesystem(dir: &Path) -> Check {
    let name = "filesystem";
    let magic = match magic(dir) {
        Ok(magic) => magic,
        Err(error) => return Check::new(name, State::Bad, format!("{}: {error}", dir.display())),
    };
    // Magic numbers from statfs(2).
    let kind = match magic {
        0xef53 => ("ext4", State::Good),
        0x5846_5342 => ("xfs", State::Good),
        TMPFS => ("tmpfs: lost at the next boot", State::Poor),
        0x9123_683e => ("btrfs: written with pwrite; compaction costs more there", State::Poor),
        0x2fc1_2fc1 => ("zfs: written with pwrite", State::Poor),
        0x6969 => ("nfs: locks and syncs depend on the server", State::Poor),
        0x794c_7630 => ("overlayfs: put the store on its own volume", State::Poor),
        _ => return Check::new(name, State::Poor, format!("type {magic:#x}, not tested")),
    };
    Check::new(name, kind.1, kind.0)
}

fn space(dir: &Path) -> Check {
    match statvfs(dir) {
        Ok(found) if found.f_flag.contains(StatVfsMountFlags::RDONLY) => {
            Check::new("space", State::Bad, "the filesystem is mounted read-only")
        }
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            room(free, magic(dir) == Ok(TMPFS), has_segment(dir))
        }
        Err(error) => Check::new("space", State::Bad, format!("{}: {error}", dir.display())),
    }
}

/// Whether a store has a segment, whose space is already allocated.
fn has_segment(dir: &Path) -> bool {
    std::fs::read_dir(dir.join(LOG_DIR)).is_ok_and(|mut log| log.next().is_some())
}

/// Rates the free space. On tmpfs a file of the store takes all its space when it is created.
fn room(free: u64, is_tmpfs: bool, has_segment: bool) -> Check {
    let (name, text) = ("space", format!("{} MiB free", free / (1024 * 1024)));
    let whole = "on tmpfs each file of events or bodies takes 64 MiB at once";
    match is_tmpfs {
        true if free < WHOLE_FILE_BYTES && !has_segment => {
            Check::new(name, State::Bad, format!("{text}: {whole}, so no event can be stored"))
        }
        true if free < 2 * WHOLE_FILE_BYTES => {
            let text =
                format!("{text}: {whole}; appends are refused when the next one has no room");
            Check::new(name, State::Poor, text)
        }
        _ => Check::of(name, free >= FREE_BYTES, text, "appends are refused when it runs out"),
    }
}

/// Measures the minimum cost of a durable append.
fn sync(dir: &Path) -> Check {
    let path = dir.join(format!("doctor.{}.tmp", std::process::id()));
    let timed = time_syncs(&path);
    // If it remains, the next open of the store removes it.
    let _ = std::fs::remove_file(&path);
    match timed {
        Ok(mut times) => {
            times.sort_unstable();
            let (half, worst) = (times[times.len() / 2], times[times.len() - 1]);
            let text = format!(
                "fdatasync takes {} us, the worst of {SYNCS} {} us",
                half.as_micros(),
                worst.as_micros()
            );
            Check::of(
                "sync",
                half <= SYNC_SLOW,
                text,
                "durable appends wait for it; see --sync interval:50ms",
            )
        }
        Err(error) => Check::new("sync", State::Bad, format!("{}: {error}", path.display())),
    }
}

fn time_syncs(path: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    // Allocated first, as the store does: this times the sync of data, not of a file length.
    file.write_all(&vec![0; SYNCS * SYNC_BYTES])?;
    file.sync_all()?;
    let bytes = [1; SYNC_BYTES];
    (0..SYNCS)
        .map(|round| {
            file.write_all_at(&bytes, (round * SYNC_BYTES) as u64)?;
            let begun = Instant::now();
            file.sync_data()?;
            Ok(begun.elapsed())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_tmpfs_has_no_room_for_a_file_of_a_store() {
        const MIB: u64 = 1024 * 1024;
        let told = |free: u64, tmpfs, segment| {
            let check = room(free * MIB, tmpfs, segment);
            (check.state == State::Bad, check.state == State::Poor, check.found)
        };
        let (bad, _, found) = told(60, true, false);
        assert!(bad && found.contains("no event can be stored"), "{found}");
        for (free, segment) in [(60, true), (100, false), (100, true)] {
            let (_, poor, found) = told(free, true, segment);
            assert!(poor && found.contains("64 MiB at once"), "{found}");
        }
        assert!(told(400, true, true).2.ends_with("appends are refused when it runs out"));
        assert_eq!(told(60, false, false).2, "60 MiB free: appends are refused when it runs out");
        assert_eq!(told(600, true, false).2, "600 MiB free");
    }

    #[test]
    fn what_there_is_too_little_of_is_named() {
        let store = json!({ "health": "writable", "full": true, "shortage": "no lamp is left" });
        let check = health(&store, "s");
        assert!(check.state == State::Bad && check.found.contains(": no lamp is left; xs help"));
    }

    #[test]
    fn an_address_is_said_once() {
        let address = Address::parse("s/xs.sock").unwrap();
        let (kind, reason) = (std::io::ErrorKind::PermissionDenied, "no".to_owned());
        let error = ClientError::Connect { address: address.to_string(), kind, reason };
        assert_eq!(told(&address, error).matches("xs.sock").count(), 1);
        let error = ClientError::Disconnected("it is gone".into());
        assert!(told(&address, error).starts_with("s/xs.sock: "));
    }
}
