//! Tests that the limits agree in all three places.

use std::time::Duration;

use xs_engine::limits as store;

use super::{number, rows, tables};
use crate::limits;

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}

/// Every limit that the page names, with its value in the code.
#[expect(clippy::too_many_lines, reason = "a table")]
fn of_the_code() -> Vec<(&'static str, u64)> {
    vec![
        ("hello_bytes", u64::from(limits::HELLO_BYTES_MAX)),
        ("client_message_bytes", u64::from(limits::MESSAGE_BYTES_MAX)),
        ("server_message_bytes", u64::from(limits::SERVER_MESSAGE_BYTES_MAX)),
        ("peer_name_bytes", limits::PEER_NAME_BYTES_MAX as u64),
        ("token_bytes", limits::TOKEN_BYTES_MAX as u64),
        ("extensions", limits::EXTENSIONS_MAX as u64),
        ("refusal_text_bytes", limits::REFUSAL_TEXT_MAX as u64),
        ("ping_bytes", limits::PING_BYTES_MAX as u64),
        ("page_bytes", u64::from(limits::PAGE_BYTES_MAX)),
        ("body_with_frame_bytes", u64::from(limits::BODY_WITH_FRAME_MAX)),
        ("chunk_bytes", limits::CHUNK_BYTES_MAX as u64),
        ("stats_bytes", limits::STATS_BYTES_MAX as u64),
        ("maintain_entries", limits::MAINTAIN_LISTED_MAX as u64),
        ("path_bytes", limits::PATH_BYTES_MAX as u64),
        ("record_bytes", store::RECORD_BYTES_MAX as u64),
        ("topic_bytes", store::TOPIC_BYTES_MAX as u64),
        ("cursor_name_bytes", store::NAME_BYTES_MAX as u64),
        ("key_bytes", store::NAME_BYTES_MAX as u64),
        ("keys", store::KEYS_MAX as u64),
        ("key_ms", store::KEY_MS),
        ("meta_bytes", store::META_BYTES_MAX as u64),
        ("meta_depth", store::META_DEPTH_MAX as u64),
        ("blob_bytes", store::BLOB_BYTES_MAX),
        ("cursors", store::CURSORS_MAX as u64),
        ("cursor_state_bytes", store::CURSOR_STATE_BYTES_MAX as u64),
        ("tokens", limits::TOKENS_MAX as u64),
        ("tokens_bytes", limits::TOKENS_BYTES_MAX),
        ("batch_records", store::BATCH_RECORDS_MAX as u64),
        ("batch_log_bytes", store::BATCH_BYTES_MAX as u64),
        ("batch_bodies_bytes", store::BATCH_BODIES_BYTES_MAX as u64),
        ("import_frames", store::BATCH_RECORDS_MAX as u64),
        ("conditions", store::CONDITIONS_MAX as u64),
        ("condition_topics", store::CONDITION_TOPICS_MAX as u64),
        ("condition_frames", store::CONDITION_FRAMES_MAX),
        ("patterns", store::PATTERNS_MAX as u64),
        ("last_frames", limits::LAST_MAX),
        ("last_at_once", limits::LAST_AT_ONCE_MAX),
        ("lists_bytes", limits::LISTS_BYTES_MAX as u64),
        ("list_counted_bytes", limits::LIST_BYTES_COUNTED as u64),
        ("list_ms", ms(limits::LIST_TIME)),
        ("call_deadline_ms", ms(limits::CALL_DEADLINE_MAX)),
        ("call_cancel_ms", limits::CALL_CANCEL_MS),
        ("connections", limits::CONNECTIONS_MAX as u64),
        ("waiting", limits::WAITING_MAX as u64),
        ("waiting_min", limits::WAITING_MIN as u64),
        ("waiting_of_address", limits::WAITING_MAX as u64 / 2),
        ("waiting_ms", ms(limits::WAITING_TIME)),
        ("requests", u64::from(limits::REQUESTS_MAX)),
        ("request_bytes", limits::REQUEST_BYTES_MAX as u64),
        ("unread_bytes", limits::UNREAD_BYTES_MAX as u64),
        ("outbound_bytes", limits::OUTBOUND_BYTES_MAX as u64),
        ("streams", u64::from(limits::STREAMS_MAX)),
        ("host_streams", u64::from(limits::HOST_STREAMS_MAX)),
        ("known_blobs", limits::KNOWN_BLOBS_MAX as u64),
        ("wrong_tokens", u64::from(limits::FAILURES_FREE)),
        ("wrong_tokens_waiting", u64::from(limits::FAILURES_WAITING_MAX)),
        ("wrong_token_ms_min", ms(limits::FAILURE_DELAY_MIN)),
        ("wrong_token_ms_max", ms(limits::FAILURE_DELAY_MAX)),
        ("wrong_token_memory_ms", ms(limits::FAILURE_MEMORY)),
        ("credit_bytes", limits::CREDIT_MAX),
        ("upload_window_bytes", u64::from(limits::UPLOAD_WINDOW)),
        ("uploads", limits::LONG_UPLOADS_MAX as u64),
        ("long_upload_bytes", limits::LONG_UPLOAD_BYTES),
        ("upload_silence_ms", ms(limits::UPLOAD_SILENCE)),
        ("pulse_ms_min", ms(limits::PULSE_MIN)),
        ("pulse_ms_max", ms(limits::PULSE_MAX)),
        ("scanned_offsets", limits::SCANNED_EVERY),
        ("gap_topics", limits::LAST_MAX),
        ("ephemeral_frames", store::EPHEMERAL_RING_MAX as u64),
        ("ephemeral_bytes", store::EPHEMERAL_RING_BYTES_MAX as u64),
        ("tls_handshake_ms", ms(limits::HELLO_WAIT)),
        ("hello_ms", ms(limits::HELLO_WAIT)),
        ("ping_after_ms", ms(limits::PING_AFTER)),
        ("silence_ms", ms(limits::SILENCE_MAX)),
        ("write_stall_ms", ms(limits::WRITE_STALL_MAX)),
        ("tcp_ask_after_ms", ms(limits::TCP_ASK_AFTER)),
        ("tcp_ask_every_ms", ms(limits::TCP_ASK_EVERY)),
        ("tcp_answer_ms", ms(limits::TCP_ANSWER_MAX)),
        ("token_check_ms", ms(limits::WATCH_EVERY)),
        ("linger_ms", ms(limits::LINGER)),
        ("pongs", limits::PONGS_MAX as u64),
        ("parts_bytes", limits::PARTS_BYTES_MAX as u64),
    ]
}

/// A limit as the page writes it.
fn in_words(name: &str, limit: u64) -> String {
    let has = |unit| name.split('_').any(|word| word == unit);
    let units: &[(&str, u64)] = if has("bytes") {
        &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("bytes", 1)]
    } else if has("ms") {
        &[("h", 3_600_000), ("s", 1000), ("ms", 1)]
    } else {
        return grouped(limit);
    };
    let days = limit / 86_400_000;
    if has("ms") && limit.is_multiple_of(86_400_000) && days > 1 {
        return format!("{days} days");
    }
    let (unit, size) = units.iter().find(|(_, size)| limit.is_multiple_of(*size)).unwrap();
    format!("{} {unit}", grouped(limit / size))
}

/// A number with a comma before each three digits.
fn grouped(number: u64) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1000), number % 1000),
    }
}

#[test]
fn the_limits_are_the_same_three_times() {
    let tables = tables();
    let listed = tables["limits"].as_table().unwrap();
    let expected = of_the_code();
    let of_names =
        |name: &str| name.starts_with('`') && listed.contains_key(name.trim_matches('`'));
    let in_page: Vec<_> = rows().into_iter().filter(|row| of_names(row[0])).collect();
    assert_eq!((listed.len(), in_page.len()), (expected.len(), expected.len()));
    for ((name, limit), row) in expected.into_iter().zip(in_page) {
        assert_eq!(number(&listed[name]), limit, "{name}");
        assert_eq!(row[..2], [format!("`{name}`"), in_words(name, limit)], "in wire.md");
    }
}
