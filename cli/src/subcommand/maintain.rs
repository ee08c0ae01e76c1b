//! Subcommands that work on a store's files: verify, repair, copy, compact. A server that has the
//! store does what can be done while it runs; this process does the rest, and everything if there
//! is no server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use xs_engine::names::is_store;
use xs_engine::{
    CompactOptions, CopyOptions, GcOptions, MaintainError, OpenError, Store, StoreOptions,
};
use xs_protocol::{Address, Client, MaintainRequest, SOCKET_NAME};

use super::sure;
use crate::args::{
    BackupArgs, CompactArgs, CopyArgs, FromTo, GcArgs, RepairArgs, UpgradeArgs, VerifyArgs,
};
use crate::connect::{self, default_address, default_store, unserved};
use crate::exit::{Exit, ExitError};
use crate::output::{Output, notice};
use crate::progress::{self, watched};
use crate::reach::options;
use crate::report;

/// Which process does the work.
enum Worker {
    /// The server that has the store.
    Server(Client),
    /// This process, on the files in a directory.
    ThisProcess(PathBuf),
}

impl Worker {
    async fn find(typed: Option<Address>, addr: Option<Address>) -> anyhow::Result<Self> {
        let address = typed.or(addr).map_or_else(default_address, Ok)?;
        match Client::connect(&address, options()).await {
            Ok(client) => Ok(Self::Server(client)),
            Err(error) => match unserved(&address, &error) {
                Some(dir) => Ok(Self::ThisProcess(dir.to_owned())),
                None => Err(connect::explain(error)),
            },
        }
    }
}

/// Requests work from a server and returns its report. Ctrl-C makes it stop.
async fn ask(client: Client, request: &MaintainRequest) -> anyhow::Result<Value> {
    let bar = progress::spinner("working on the server");
    let text = tokio::select! {
        text = client.maintain(request) => text.map_err(connect::explain)?,
        _ = tokio::signal::ctrl_c() => {
            let text = match request {
                MaintainRequest::Verify | MaintainRequest::Backup { .. } => "stopped",
                MaintainRequest::Fork { .. } => "no longer waiting; the server completes the fork",
                MaintainRequest::Compact { .. } | MaintainRequest::Gc { .. } => {
                    "no longer waiting; the server finishes what it began"
                }
            };
            return ExitError::fail(Exit::Interrupted, text);
        }
    };
    bar.finish_and_clear();
    serde_json::from_str(&text).context("cannot read the server's report")
}

/// A path as a server understands it.
fn there(path: &Path) -> anyhow::Result<String> {
    let path =
        std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))?;
    match path.into_os_string().into_string() {
        Ok(path) => Ok(path),
        Err(path) => ExitError::fail(
            Exit::Usage,
            format!("{} is not UTF-8, so it cannot be sent to a server", path.display()),
        ),
    }
}

/// Prints columns of a report as a table with one row.
fn told(report: &Value, columns: &[&str], out: &mut Output) -> anyhow::Result<()> {
    let row = columns.iter().map(|column| report[column].clone()).collect();
    out.table(columns, &[row])?;
    Ok(out.flush()?)
}

/// The directory of the store.
fn directory(typed: Option<Address>, addr: Option<Address>) -> anyhow::Result<PathBuf> {
    match typed.or(addr) {
        None => default_store(),
        Some(Address::Unix(socket)) => {
            Ok(socket.parent().map_or_else(PathBuf::new, Path::to_owned))
        }
        Some(address) => ExitError::fail(
            Exit::Usage,
            format!(
                "{address} is not a directory; this works on files, so give the store's directory"
            ),
        ),
    }
}

fn between(
    paths: Result<FromTo, String>,
    addr: Option<Address>,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let FromTo { from, to } = typed(paths)?;
    Ok((directory(from, addr)?, to))
}

fn typed(paths: Result<FromTo, String>) -> anyhow::Result<FromTo> {
    paths.map_err(|text| ExitError::new(Exit::Usage, text).into())
}

/// An error with its exit code and what to do.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let open = match error.downcast_ref::<MaintainError>() {
        Some(MaintainError::Open(open)) => Some(open),
        Some(MaintainError::NoStore { dir }) => {
            let text = connect::beheaded(dir).unwrap_or_else(|| error.to_string());
            return ExitError::new(Exit::Unreachable, text).into();
        }
        _ => error.downcast_ref::<OpenError>(),
    };
    match open {
        Some(OpenError::Locked { dir, pid, .. }) => {
            let (dir, who) = (dir.display(), connect::holder(*pid));
            let text = format!("{dir} is open in {who}; stop it first, then try again");
            ExitError::new(Exit::Unreachable, text).into()
        }
        _ => error,
    }
}

pub(super) async fn verify(args: &VerifyArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let report = match Worker::find(args.store.clone(), addr).await? {
        Worker::Server(client) => ask(client, &MaintainRequest::Verify).await?,
        Worker::ThisProcess(dir) => {
            let checked = watched("checking", move |watch| xs_engine::verify(&dir, watch)).await;
            report::verify(&checked.map_err(explain)?, usize::MAX)
        }
    };
    let mut out = Output::stdout();
    let listed = report["listed"].as_array().map(Vec::as_slice).unwrap_or_default();
    findings(listed, report["findings"].as_u64().unwrap_or_default(), &mut out)?;
    told(&report, &["files", "bytes", "frames", "blobs", "findings", "worst"], &mut out)?;
    Ok(if report["worst"] == "lost" { Exit::Failed } else { Exit::Ok })
}

/// A line for each finding.
fn findings(list: &[Value], total: u64, out: &mut Output) -> anyhow::Result<()> {
    for finding in list {
        if out.is_person() {
            out.line(finding["text"].as_str().unwrap_or_default())?;
            continue;
        }
        let mut finding = finding.clone();
        finding.as_object_mut().and_then(|fields| fields.remove("text"));
        out.line(&finding.to_string())?;
    }
    let more = total.saturating_sub(list.len() as u64);
    if more > 0 {
        notice(&format!("{more} more not listed"));
    }
    Ok(())
}

pub(super) async fn repair(args: &RepairArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let (from, to) = between(args.paths(), addr)?;
    if !connect::has_begun(&from) {
        return Err(explain(MaintainError::NoStore { dir: from }.into()));
    }
    let into = to.clone();
    let saved = watched("saving", move |watch| xs_engine::repair(&from, &to, watch)).await;
    let report = saved.map_err(explain)?;
    let mut out = Output::stdout();
    let lost: Vec<Value> = report.lost.iter().map(report::finding).collect();
    findings(&lost, report.lost_total, &mut out)?;
    for name in &report.cursors_ahead {
        crate::output::notice(&format!(
            "cursor {name} is far above the head and was kept there: its reader gets nothing until \
             the head reaches it"
        ));
    }
    out.table(
        &["store", "head", "frames", "frames_lost", "cursors", "blobs", "manifest_rebuilt"],
        &[vec![
            json!(report.uuid.to_string()),
            json!(report.head),
            json!(report.frames),
            json!(report.frames_lost),
            json!(report.cursors),
            json!(report.blobs),
            json!(report.manifest_rebuilt),
        ]],
    )?;
    out.flush()?;
    // They are saved without their bodies, which verify would report forever.
    let without_body = report.lost.iter().find(|lost| lost.blob.is_some() && lost.offset.is_some());
    if let Some(offset) = without_body.and_then(|lost| lost.offset) {
        let into = into.display();
        notice(&format!(
            "events whose body is lost are saved without it, and xs verify reports them: \
             xs remove -a {into} {offset} removes one"
        ));
    }
    Ok(Exit::Ok)
}

pub(super) async fn backup(args: &BackupArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let FromTo { from, to } = typed(args.paths())?;
    let report = match Worker::find(from, addr).await? {
        Worker::Server(client) => {
            let request = MaintainRequest::Backup { to: there(&to)?, link: args.link };
            ask(client, &request).await?
        }
        Worker::ThisProcess(from) => {
            let options = if args.link { CopyOptions::links() } else { CopyOptions::copies() };
            let copied = watched("copying", move |watch| {
                let store = open(&from)?;
                let report = store.backup(&to, options, watch)?;
                close(&store, &from)?;
                Ok(report)
            });
            report::copy(&copied.await.map_err(explain)?)
        }
    };
    copied_to(&report)
}

pub(super) async fn fork(args: &CopyArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let FromTo { from, to } = typed(args.paths())?;
    let report = match Worker::find(from, addr).await? {
        Worker::Server(client) => ask(client, &MaintainRequest::Fork { to: there(&to)? }).await?,
        Worker::ThisProcess(from) => {
            let copied = watched("copying", move |_| {
                let store = open(&from)?;
                let report = store.fork(&to)?;
                close(&store, &from)?;
                Ok(report)
            });
            report::copy(&copied.await.map_err(explain)?)
        }
    };
    copied_to(&report)
}

pub(super) async fn restore(args: &CopyArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let (from, to) = between(args.paths(), addr)?;
    let options = CopyOptions::copies();
    let copied =
        watched("copying", move |watch| xs_engine::restore(&from, &to, options, watch)).await;
    copied_to(&report::copy(&copied.map_err(explain)?))
}

/// Opens a store, which must exist.
fn open(dir: &Path) -> Result<Store, MaintainError> {
    if !is_store(dir) {
        return Err(MaintainError::NoStore { dir: dir.to_owned() });
    }
    Ok(Store::open(dir, StoreOptions::default())?)
}

fn close(store: &Store, dir: &Path) -> Result<(), MaintainError> {
    store.close().map_err(|error| MaintainError::Io {
        what: "close",
        path: dir.to_owned(),
        error: std::io::Error::other(error.to_string()),
    })
}

fn copied_to(report: &Value) -> anyhow::Result<Exit> {
    let columns =
        ["store", "source", "head", "files_kept", "files_linked", "files_copied", "bytes_copied"];
    told(report, &columns, &mut Output::stdout())?;
    Ok(Exit::Ok)
}

pub(super) async fn upgrade(args: &UpgradeArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let dir = directory(args.store.clone(), addr)?;
    let done = watched("rewriting", move |_| xs_engine::upgrade(&dir)).await;
    let report = done.map_err(explain)?;
    let mut out = Output::stdout();
    out.table(&["from", "to"], &[vec![json!(report.from), json!(report.to)]])?;
    out.flush()?;
    Ok(Exit::Ok)
}

/// Opens a store, works on it on a blocking thread, and closes it.
async fn with_open<T: Send + 'static>(
    dir: PathBuf,
    work: impl FnOnce(&Store) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = tokio::task::spawn_blocking(move || {
        let store = open(&dir)?;
        let done = work(&store);
        let closed = store.close().context("cannot close the store");
        done.and_then(|done| closed.map(|()| done))
    });
    done.await?.map_err(explain)
}

pub(super) async fn compact(args: &CompactArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let dead_percent = args.dead_percent;
    let report = match Worker::find(args.store.clone(), addr).await? {
        Worker::Server(client) => ask(client, &MaintainRequest::Compact { dead_percent }).await?,
        Worker::ThisProcess(dir) => {
            let options = CompactOptions { dead_percent, bytes_per_second: None };
            let done = with_open(dir, move |store| Ok(store.compact(options)?)).await?;
            report::compact(&done, usize::MAX)
        }
    };
    let columns = ["rewritten", "written", "frames", "bytes_before", "bytes_after", "damaged"];
    told(&report, &columns, &mut Output::stdout())?;
    if dead_percent > 1 && report["rewritten"] == 0 {
        notice(&format!(
            "nothing was rewritten: no segment is dead to {dead_percent} % or more; \
             --dead-percent 1 takes each in which anything is"
        ));
    }
    Ok(damaged(&report))
}

pub(super) async fn gc(args: &GcArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let dry_run = args.sure.dry_run;
    if !dry_run {
        let of = match args.store.as_ref().or(addr.as_ref()) {
            Some(address) => of_store(address),
            None => default_store()?.display().to_string(),
        };
        sure::ask(&format!("remove bodies in {of} that no event refers to"), args.sure).await?;
    }
    let (grace, dead_percent) = (args.grace, args.dead_percent);
    let report = match Worker::find(args.store.clone(), addr).await? {
        Worker::Server(client) => {
            ask(client, &MaintainRequest::Gc { grace, dead_percent, dry_run }).await?
        }
        Worker::ThisProcess(dir) => {
            let options = GcOptions { grace, dead_percent, dry_run, bytes_per_second: None };
            let done = with_open(dir, move |store| Ok(store.gc(&options)?)).await?;
            report::gc(&done, dry_run, usize::MAX)
        }
    };
    let columns =
        ["packs", "blobs", "young", "dead", "dead_bytes", "swept", "swept_bytes", "dry_run"];
    told(&report, &columns, &mut Output::stdout())?;
    Ok(damaged(&report))
}

/// A store's name for people: its directory, if the address is its socket.
fn of_store(address: &Address) -> String {
    match address {
        Address::Unix(socket) if socket.ends_with(SOCKET_NAME) => {
            socket.parent().unwrap_or(socket).display().to_string()
        }
        address => address.to_string(),
    }
}

/// Reports damage that was found, and returns the exit code.
fn damaged(report: &Value) -> Exit {
    let places = report["places"].as_array().map(Vec::as_slice).unwrap_or_default();
    places.iter().filter_map(Value::as_str).for_each(notice);
    if places.is_empty() { Exit::Ok } else { Exit::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_store_open_and_has_not_said_so_yet_is_another_process() {
        let text = |pid| {
            let open = OpenError::Locked { dir: "s".into(), pid, since: None };
            explain(open.into()).to_string()
        };
        assert_eq!(text(Some(7)), "s is open in process 7; stop it first, then try again");
        assert_eq!(text(None), "s is open in another process; stop it first, then try again");
    }
}
