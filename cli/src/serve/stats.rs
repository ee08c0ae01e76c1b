//! The store's statistics, as the JSON of STATS. docs/wire.md lists the names.

use serde_json::{Value, json};
use xs_engine::{CountBytes, Health, Histogram, ScrubStats, Shortage, StoreStats};

/// The store's part of STATS, as JSON. `shortage`: what the store is short of, if anything.
pub(super) fn text(stats: &StoreStats, shortage: Option<Shortage>) -> String {
    let StoreStats { info, files, frames, commit, scrub, space, .. } = stats;
    let count = |of: &CountBytes| json!({ "count": of.count, "bytes": of.bytes });
    let health = match &info.health {
        Health::Writable => "writable",
        Health::ReadOnly(_) => "read-only",
        Health::Poisoned(_) => "failed",
    };
    json!({
        "uuid": info.uuid.to_string(),
        "parent": info.parent.map(|parent| parent.to_string()),
        "epoch": info.epoch,
        "head": info.head,
        "sync": info.sync.to_string(),
        "health": health,
        "full": shortage.is_some(),
        "shortage": shortage.map(|shortage| shortage.to_string()),
        "frames": {
            "stored": frames.stored,
            "live": frames.live,
            "log_bytes": frames.log_bytes,
        },
        "topics": stats.topics,
        "cursors": stats.cursors,
        "cursors_bytes": stats.cursors_bytes,
        "blobs_sealed": stats.blobs_sealed,
        "maps_open": stats.maps_open,
        "files": {
            "manifests": count(&files.manifests),
            "segments_active": count(&files.segments_active),
            "segments_sealed": count(&files.segments_sealed),
            "packs_active": count(&files.packs_active),
            "packs_sealed": count(&files.packs_sealed),
            "packs_plain": count(&files.packs_plain),
            "derived": count(&files.derived),
            "other": count(&files.other),
        },
        "commit": {
            "groups": commit.groups,
            "queue": times(&commit.queue),
            "write": times(&commit.write),
            "sync": times(&commit.sync),
            "publish": times(&commit.publish),
        },
        "scrub": scrubbed(scrub),
        "compaction": {
            "dead_bytes": space.log_dead_bytes,
            "freed_bytes": space.log_freed_bytes,
            "last_ms": space.compacted_ms,
            "removals_left": space.removals_left,
            "failure": space.compact_failure.as_deref(),
        },
        "gc": {
            "dead_bytes": space.pack_dead_bytes,
            "freed_bytes": space.pack_freed_bytes,
            "passes": space.collections,
            "last_ms": space.collected_ms,
            "last_freed_bytes": space.collected_bytes,
            "failure": space.collect_failure.as_deref(),
        },
    })
    .to_string()
}

fn scrubbed(scrub: &ScrubStats) -> Value {
    let last = scrub.last.as_ref().map(|report| {
        json!({
            "findings": report.findings_total,
            "bytes": report.bytes,
            "frames": report.frames,
            "blobs": report.blobs,
        })
    });
    json!({
        "passes": scrub.passes,
        "bytes": scrub.bytes,
        "bytes_total": scrub.bytes_total,
        "last": last,
        "last_ms": scrub.last_ms,
        "failure": scrub.failure.as_deref(),
    })
}

fn times(of: &Histogram) -> Value {
    json!({
        "count": of.count(),
        "total_ns": of.total_ns,
        "max_ns": of.max_ns,
        "p50_below_us": of.below_us(500),
        "p99_below_us": of.below_us(990),
        "p999_below_us": of.below_us(999),
    })
}
