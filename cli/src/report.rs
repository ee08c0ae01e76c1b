//! Reports of work on a store's files, as JSON: the same whether this process or a server did the
//! work. Problems are listed up to a given number; all are counted.

use serde_json::{Value, json};
use xs_engine::{CompactReport, CopyReport, Corruption, Finding, GcReport, Severity, VerifyReport};

/// `xs verify`.
pub(crate) fn verify(report: &VerifyReport, listed_max: usize) -> Value {
    json!({
        "files": report.files,
        "bytes": report.bytes,
        "frames": report.frames,
        "blobs": report.blobs,
        "findings": report.findings_total,
        "worst": report.worst.map(severity),
        "listed": report.findings.iter().take(listed_max).map(finding).collect::<Vec<_>>(),
    })
}

/// `xs compact`.
pub(crate) fn compact(report: &CompactReport, listed_max: usize) -> Value {
    json!({
        "rewritten": report.rewritten,
        "written": report.written,
        "frames": report.frames,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "damaged": report.damaged.len(),
        "places": places(&report.damaged, listed_max),
    })
}

/// `xs gc`.
pub(crate) fn gc(report: &GcReport, dry_run: bool, listed_max: usize) -> Value {
    json!({
        "packs": report.packs,
        "blobs": report.blobs,
        "young": report.young,
        "dead": report.dead,
        "dead_bytes": report.dead_bytes,
        "swept": report.swept,
        "swept_bytes": report.swept_bytes,
        "dry_run": dry_run,
        "damaged": report.damaged.len(),
        "places": places(&report.damaged, listed_max),
    })
}

/// `xs backup`, `xs fork` and `xs restore`.
pub(crate) fn copy(report: &CopyReport) -> Value {
    json!({
        "store": report.uuid.to_string(),
        "source": report.source.to_string(),
        "head": report.head,
        "files_kept": report.files_kept,
        "files_linked": report.files_linked,
        "files_copied": report.files_copied,
        "bytes_copied": report.bytes_copied,
    })
}

/// One finding of a check; `text` holds it as a sentence.
pub(crate) fn finding(finding: &Finding) -> Value {
    json!({
        "severity": severity(finding.severity),
        "path": finding.path.display().to_string(),
        "position": finding.position,
        "offset": finding.offset,
        "offset_end": finding.offset_end,
        "id": finding.id.map(|id| id.to_string()),
        "blob": finding.blob.map(|blob| blob.to_string()),
        "what": &*finding.what,
        "text": finding.to_string(),
    })
}

fn places(damaged: &[Corruption], listed_max: usize) -> Vec<String> {
    damaged.iter().take(listed_max).map(ToString::to_string).collect()
}

const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Unused => "unused",
        Severity::Derived => "derived",
        Severity::Lost => "lost",
    }
}
