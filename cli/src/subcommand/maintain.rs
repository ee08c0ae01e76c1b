//! Subcommands that work on the files of a store nobody serves: check, save, copy, tidy up.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use xs_engine::{
    CompactOptions, CopyOptions, CopyReport, Finding, GcOptions, MaintainError, OpenError,
    Severity, Store, StoreOptions,
};
use xs_protocol::Address;

use super::sure;
use crate::args::{
    BackupArgs, CompactArgs, CopyArgs, FromTo, GcArgs, RepairArgs, UpgradeArgs, VerifyArgs,
};
use crate::connect::default_store;
use crate::exit::{Exit, Fault};
use crate::output::Output;
use crate::progress::watched;

/// The directory of the store that is meant.
fn directory(typed: Option<&PathBuf>, addr: Option<Address>) -> anyhow::Result<PathBuf> {
    match (typed, addr) {
        (Some(dir), _) => Ok(dir.clone()),
        (None, None) => default_store(),
        (None, Some(Address::Unix(socket))) => {
            Ok(socket.parent().map_or_else(PathBuf::new, Path::to_owned))
        }
        (None, Some(address)) => Fault::fail(
            Exit::Usage,
            format!("{address} is not a directory; this works on files, so name the store's"),
        ),
    }
}

fn between(paths: FromTo, addr: Option<Address>) -> anyhow::Result<(PathBuf, PathBuf)> {
    Ok((directory(paths.from.as_ref(), addr)?, paths.to))
}

/// An error with its exit code and what to do.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let open = match error.downcast_ref::<MaintainError>() {
        Some(MaintainError::Open(open)) => Some(open),
        Some(MaintainError::NoStore { .. }) => {
            return Fault::new(Exit::Unreachable, error.to_string()).into();
        }
        _ => error.downcast_ref::<OpenError>(),
    };
    match open {
        Some(OpenError::Locked { dir, pid, .. }) => {
            let dir = dir.display();
            let text = format!("{dir} is open in process {pid}; stop it first, then try again");
            Fault::new(Exit::Unreachable, text).into()
        }
        _ => error,
    }
}

pub(super) async fn verify(args: &VerifyArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let dir = directory(args.store.as_ref(), addr)?;
    let checked = watched("checking", move |watch| xs_engine::verify(&dir, watch)).await;
    let report = checked.map_err(explain)?;
    let mut out = Output::stdout();
    findings(&report.findings, report.findings_total, &mut out)?;
    out.table(
        &["files", "bytes", "frames", "blobs", "findings", "worst"],
        &[vec![
            json!(report.files),
            json!(report.bytes),
            json!(report.frames),
            json!(report.blobs),
            json!(report.findings_total),
            json!(report.worst.map(severity)),
        ]],
    )?;
    out.flush()?;
    Ok(if report.worst == Some(Severity::Lost) { Exit::Failed } else { Exit::Ok })
}

const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Unused => "unused",
        Severity::Derived => "derived",
        Severity::Lost => "lost",
    }
}

/// A line for each finding.
fn findings(list: &[Finding], total: u64, out: &mut Output) -> anyhow::Result<()> {
    for finding in list {
        if out.is_person() {
            out.line(&finding.to_string())?;
            continue;
        }
        let line = json!({
            "severity": severity(finding.severity),
            "path": finding.path.display().to_string(),
            "position": finding.position,
            "offset": finding.offset,
            "offset_end": finding.offset_end,
            "id": finding.id.map(|id| id.to_string()),
            "blob": finding.blob.map(|blob| blob.to_string()),
            "what": &*finding.what,
        });
        out.line(&line.to_string())?;
    }
    let more = total.saturating_sub(list.len() as u64);
    if more > 0 {
        crate::output::notice(&format!("{more} more are not listed"));
    }
    Ok(())
}

pub(super) async fn repair(args: &RepairArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let (from, to) = between(args.paths(), addr)?;
    let saved = watched("saving", move |watch| xs_engine::repair(&from, &to, watch)).await;
    let report = saved.map_err(explain)?;
    let mut out = Output::stdout();
    findings(&report.lost, report.lost_total, &mut out)?;
    out.table(
        &["store", "head", "frames", "frames_lost", "cursors", "blobs", "manifest_rebuilt"],
        &[vec![
            json!(hex(&report.uuid)),
            json!(report.head),
            json!(report.frames),
            json!(report.frames_lost),
            json!(report.cursors),
            json!(report.blobs),
            json!(report.manifest_rebuilt),
        ]],
    )?;
    out.flush()?;
    Ok(Exit::Ok)
}

pub(super) async fn backup(args: &BackupArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let (from, to) = between(args.paths(), addr)?;
    let options = if args.link { CopyOptions::links() } else { CopyOptions::copies() };
    let copied = watched("copying", move |watch| {
        let store = open(&from)?;
        let report = store.backup(&to, options, watch)?;
        close(&store, &from)?;
        Ok(report)
    });
    copied_to(&copied.await.map_err(explain)?)
}

pub(super) async fn fork(args: &CopyArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let (from, to) = between(args.paths(), addr)?;
    let copied = watched("copying", move |_| {
        let store = open(&from)?;
        let report = store.fork(&to)?;
        close(&store, &from)?;
        Ok(report)
    });
    copied_to(&copied.await.map_err(explain)?)
}

pub(super) async fn restore(args: &CopyArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let (from, to) = between(args.paths(), addr)?;
    let options = CopyOptions::copies();
    let copied =
        watched("copying", move |watch| xs_engine::restore(&from, &to, options, watch)).await;
    copied_to(&copied.map_err(explain)?)
}

/// Opens a store that must exist.
fn open(dir: &Path) -> Result<Store, MaintainError> {
    if !dir.join("super.a").exists() && !dir.join("super.b").exists() {
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

fn copied_to(report: &CopyReport) -> anyhow::Result<Exit> {
    let mut out = Output::stdout();
    out.table(
        &["store", "source", "head", "files_kept", "files_linked", "files_copied", "bytes_copied"],
        &[vec![
            json!(hex(&report.uuid)),
            json!(hex(&report.source)),
            json!(report.head),
            json!(report.files_kept),
            json!(report.files_linked),
            json!(report.files_copied),
            json!(report.bytes_copied),
        ]],
    )?;
    out.flush()?;
    Ok(Exit::Ok)
}

pub(super) async fn upgrade(args: &UpgradeArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let dir = directory(args.store.as_ref(), addr)?;
    let done = watched("rewriting", move |_| xs_engine::upgrade(&dir)).await;
    let report = done.map_err(explain)?;
    let mut out = Output::stdout();
    out.table(&["from", "to"], &[vec![json!(report.from), json!(report.to)]])?;
    out.flush()?;
    Ok(Exit::Ok)
}

/// Opens a store, works on it on a thread of its own, and closes it.
async fn with_open<T: Send + 'static>(
    dir: PathBuf,
    work: impl FnOnce(&Store) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = tokio::task::spawn_blocking(move || {
        let store = open(&dir)?;
        let done = work(&store);
        let closed = store.close().context("close the store");
        done.and_then(|done| closed.map(|()| done))
    });
    done.await?.map_err(explain)
}

pub(super) async fn compact(args: &CompactArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let dir = directory(args.store.as_ref(), addr)?;
    let options = CompactOptions { dead_percent: args.dead_percent, bytes_per_second: None };
    let report = with_open(dir, move |store| Ok(store.compact(options)?)).await?;
    let mut out = Output::stdout();
    out.table(
        &["rewritten", "written", "frames", "bytes_before", "bytes_after", "damaged"],
        &[vec![
            json!(report.rewritten),
            json!(report.written),
            json!(report.frames),
            json!(report.bytes_before),
            json!(report.bytes_after),
            json!(report.damaged.len()),
        ]],
    )?;
    out.flush()?;
    Ok(if report.damaged.is_empty() { Exit::Ok } else { Exit::Failed })
}

pub(super) async fn gc(args: &GcArgs, addr: Option<Address>) -> anyhow::Result<Exit> {
    let dir = directory(args.store.as_ref(), addr)?;
    let dry_run = args.sure.dry_run;
    if !dry_run {
        let what = format!("remove bodies in {} that no event names", dir.display());
        sure::ask(&what, args.sure)?;
    }
    let options = GcOptions {
        grace: args.grace,
        min_dead_percent: args.dead_percent,
        dry_run,
        bytes_per_second: None,
    };
    let report = with_open(dir, move |store| Ok(store.gc(&options)?)).await?;
    let mut out = Output::stdout();
    out.table(
        &["packs", "blobs", "young", "dead", "dead_bytes", "swept", "swept_bytes", "dry_run"],
        &[vec![
            json!(report.packs),
            json!(report.blobs),
            json!(report.young),
            json!(report.dead),
            json!(report.dead_bytes),
            json!(report.swept),
            json!(report.swept_bytes),
            json!(dry_run),
        ]],
    )?;
    for damage in &report.damaged {
        crate::output::notice(&damage.to_string());
    }
    out.flush()?;
    Ok(if report.damaged.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// A uuid as text.
pub(super) fn hex(uuid: &[u8; 16]) -> String {
    uuid.iter().map(|byte| format!("{byte:02x}")).collect()
}
