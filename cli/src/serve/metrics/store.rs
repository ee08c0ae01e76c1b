//! Metrics of the store, the server over it, and its tokens.

use std::path::Path;

use xs_engine::{CommitTimes, FileStats, Histogram, SpaceStats, Store};
use xs_protocol::{ServerStats, TokenGuard};

use super::text::{Exposition, Kind};

/// The classes of refusals, numbered from 1.
const CLASSES: [&str; 8] =
    ["protocol", "access", "invalid", "condition", "busy", "storage", "absent", "unknown"];

/// Metrics of the store.
pub(super) fn expose(store: &Store, dir: &Path, out: &mut Exposition) {
    let stats = store.stats();
    let mut gauge = |name, help, value| {
        out.family(name, Kind::Gauge, help).value(&[], value);
    };
    gauge("xs_log_head_offset", "Offset of the next frame.", stats.info.head);
    gauge("xs_log_bytes", "Committed bytes of the log.", stats.frames.log_bytes);
    gauge(
        "xs_store_epoch",
        "Epoch: grows each time the store is opened for writing.",
        stats.info.epoch,
    );
    gauge("xs_topics", "Topics with at least one frame.", stats.topics);
    gauge("xs_cursors", "Cursors.", stats.cursors);
    gauge(
        "xs_cursor_lag_max_frames",
        "Lag of the slowest reader cursor, in offsets behind the head.",
        lag_max(store, stats.info.head),
    );
    gauge("xs_blobs_sealed", "Blobs in sealed packs.", stats.blobs_sealed);
    gauge("xs_maps_open", "Memory-mapped files.", stats.maps_open);
    gauge("xs_scrub_read_bytes", "Bytes read by the current scrub pass.", stats.scrub.bytes);
    out.family("xs_scrub_passes_total", Kind::Counter, "Completed scrub passes.")
        .value(&[], stats.scrub.passes);
    out.family("xs_frames", Kind::Gauge, "Frames in the log: stored, and live (not removed).")
        .value(&[("state", "stored")], stats.frames.stored)
        .value(&[("state", "live")], stats.frames.live);
    expose_files(&stats.files, out);
    expose_space(&stats.space, out);
    if let Some((free, size)) = room(dir) {
        out.family(
            "xs_filesystem_avail_bytes",
            Kind::Gauge,
            "Free bytes on the store's filesystem.",
        )
        .value(&[], free);
        out.family(
            "xs_filesystem_size_bytes",
            Kind::Gauge,
            "Size of the store's filesystem in bytes.",
        )
        .value(&[], size);
    }
    expose_commits(&stats.commit, out);
}

/// The lag of the slowest cursor. Cursors of modules are excluded: they need not move past frames
/// that their modules ignore.
fn lag_max(store: &Store, head: u64) -> u64 {
    let cursors = store.cursors();
    let of_readers = cursors.iter().filter(|cursor| !cursor.name.as_str().starts_with("xs."));
    of_readers.map(|cursor| head.saturating_sub(cursor.offset)).max().unwrap_or_default()
}

fn expose_files(files: &FileStats, out: &mut Exposition) {
    let kinds = [
        ("manifest", files.manifests),
        ("segment_active", files.segments_active),
        ("segment_sealed", files.segments_sealed),
        ("pack_active", files.packs_active),
        ("pack_sealed", files.packs_sealed),
        ("pack_plain", files.packs_plain),
        ("derived", files.derived),
        ("other", files.other),
    ];
    let mut family = out.family("xs_files", Kind::Gauge, "Files of the store.");
    for (kind, files) in kinds {
        family.value(&[("kind", kind)], files.count);
    }
    let mut family = out.family("xs_file_bytes", Kind::Gauge, "Bytes of the store's files.");
    for (kind, files) in kinds {
        family.value(&[("kind", kind)], files.bytes);
    }
}

/// What has not happened yet has no sample: a time of 0 would be long ago.
fn expose_space(space: &SpaceStats, out: &mut Exposition) {
    let (log, packs) = ([("kind", "log")], [("kind", "packs")]);
    let help = "Bytes that can be given back, by estimate; of packs as the last gc left them.";
    let mut family = out.family("xs_dead_bytes", Kind::Gauge, help);
    family.value(&log, space.log_dead_bytes);
    if let Some(bytes) = space.pack_dead_bytes {
        family.value(&packs, bytes);
    }
    out.family("xs_freed_bytes_total", Kind::Counter, "Bytes that were given back.")
        .value(&log, space.log_freed_bytes)
        .value(&packs, space.pack_freed_bytes);
    out.family("xs_gc_passes_total", Kind::Counter, "Runs of gc that came to their end.")
        .value(&[], space.collections);
    for (name, help, at) in [
        (
            "xs_compaction_last_timestamp_seconds",
            "When segments were last rewritten.",
            space.compacted_ms,
        ),
        ("xs_gc_last_timestamp_seconds", "When the last gc ended.", space.collected_ms),
    ] {
        if let Some(at_ms) = at {
            out.family(name, Kind::Gauge, help).value(&[], at_ms / 1000);
        }
    }
}

fn expose_commits(times: &CommitTimes, out: &mut Exposition) {
    out.family("xs_commits_total", Kind::Counter, "Group commits.").value(&[], times.groups);
    let mut family = out.family(
        "xs_commit_stage_duration_seconds",
        Kind::Histogram,
        "Duration of the stages of a commit: waiting for the previous one (queue), passing the \
         bytes to the operating system (write), fsync (sync), notifying readers (publish). Commits \
         without a sync are sampled, one in sixteen.",
    );
    for (stage, histogram) in [
        ("queue", &times.queue),
        ("write", &times.write),
        ("sync", &times.sync),
        ("publish", &times.publish),
    ] {
        // Bucket n holds what took less than 2^n microseconds; the last one the rest.
        let Histogram { counts, total_ns, .. } = histogram;
        let bounds = (0..counts.len() - 1).map(|n| (1u64 << n) as f64 / 1e6);
        family.histogram(&[("stage", stage)], bounds, counts, *total_ns as f64 / 1e9);
    }
}

/// Metrics of the server.
pub(super) fn expose_server(stats: &ServerStats, out: &mut Exposition) {
    let mut one = |name, kind, help, value| {
        out.family(name, kind, help).value(&[], value);
    };
    one("xs_connections", Kind::Gauge, "Connections.", stats.connections);
    one("xs_connections_accepted_total", Kind::Counter, "Accepted connections.", stats.accepted);
    one(
        "xs_tls_handshakes_failed_total",
        Kind::Counter,
        "Failed TLS handshakes.",
        stats.handshakes_failed,
    );
    one(
        "xs_connections_gave_way_total",
        Kind::Counter,
        "Connections closed before HELLO to make room for others.",
        stats.gave_way,
    );
    one(
        "xs_received_bytes_total",
        Kind::Counter,
        "Bytes received on connections.",
        stats.read_bytes,
    );
    one("xs_sent_bytes_total", Kind::Counter, "Bytes sent on connections.", stats.written_bytes);
    one(
        "xs_streams",
        Kind::Gauge,
        "Open streams: subscriptions, calls, uploads and downloads.",
        stats.streams,
    );
    one("xs_subscriptions", Kind::Gauge, "Subscriptions.", stats.subscriptions);
    one(
        "xs_subscription_lag_max_frames",
        Kind::Gauge,
        "Lag of the slowest subscription, in offsets behind the head.",
        stats.lag_frames_max,
    );
    let mut family = out.family("xs_requests_total", Kind::Counter, "Requests by operation.");
    for (op, count) in &stats.requests {
        family.value(&[("op", &op.name().to_ascii_lowercase())], *count);
    }
    let mut family =
        out.family("xs_refusals_total", Kind::Counter, "Refused requests by error class.");
    for (class, count) in CLASSES.iter().zip(stats.refused) {
        family.value(&[("class", class)], count);
    }
}

/// Metrics of the tokens.
pub(super) fn expose_guard(guard: &TokenGuard, out: &mut Exposition) {
    out.family("xs_tokens", Kind::Gauge, "Valid tokens.").value(&[], guard.usable() as u64);
    out.family(
        "xs_tokens_current",
        Kind::Gauge,
        "Whether the tokens in use match the tokens file; 0 while the file is damaged.",
    )
    .value(&[], u64::from(guard.is_current()));
    out.family(
        "xs_logins_refused_total",
        Kind::Counter,
        "Logins refused for lack of a valid token.",
    )
    .value(&[], guard.refused());
}

/// Free and total bytes of the file system that holds the store.
pub(in crate::serve) fn room(dir: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(dir).ok()?;
    Some((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))
}
