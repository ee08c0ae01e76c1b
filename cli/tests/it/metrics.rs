//! The metrics of a server: which there are, that they are right, and who is kept out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Sandbox, eventually, text};

const MODULE: &str = r#"
import { generator } from "xs";
export default generator({ async *run(ctx) {
  for await (const _ of ctx.every("20ms")) yield { tick: true };
} });
"#;

/// Every family, by name: a new one is added here and in docs/operations.md.
const FAMILIES: &[(&str, &str)] = &[
    ("process_open_fds", "gauge"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_start_time_seconds", "gauge"),
    ("xs_blobs_sealed", "gauge"),
    ("xs_build_info", "gauge"),
    ("xs_commit_stage_duration_seconds", "histogram"),
    ("xs_commits_total", "counter"),
    ("xs_connections", "gauge"),
    ("xs_connections_accepted_total", "counter"),
    ("xs_connections_gave_way_total", "counter"),
    ("xs_cursor_lag_max_frames", "gauge"),
    ("xs_cursors", "gauge"),
    ("xs_dead_bytes", "gauge"),
    ("xs_file_bytes", "gauge"),
    ("xs_files", "gauge"),
    ("xs_filesystem_avail_bytes", "gauge"),
    ("xs_filesystem_size_bytes", "gauge"),
    ("xs_frames", "gauge"),
    ("xs_freed_bytes_total", "counter"),
    ("xs_gc_passes_total", "counter"),
    ("xs_handler_lag_max_frames", "gauge"),
    ("xs_log_bytes", "gauge"),
    ("xs_log_head_offset", "gauge"),
    ("xs_logins_refused_total", "counter"),
    ("xs_maps_open", "gauge"),
    ("xs_modules", "gauge"),
    ("xs_ready", "gauge"),
    ("xs_received_bytes_total", "counter"),
    ("xs_refusals_total", "counter"),
    ("xs_requests_total", "counter"),
    ("xs_scrub_passes_total", "counter"),
    ("xs_scrub_read_bytes", "gauge"),
    ("xs_sent_bytes_total", "counter"),
    ("xs_store_epoch", "gauge"),
    ("xs_streams", "gauge"),
    ("xs_subscription_lag_max_frames", "gauge"),
    ("xs_subscriptions", "gauge"),
    ("xs_tls_handshakes_failed_total", "counter"),
    ("xs_tokens", "gauge"),
    ("xs_tokens_current", "gauge"),
    ("xs_topics", "gauge"),
];

/// Where a server answers HTTP.
pub(crate) fn address(place: &Sandbox) -> String {
    eventually(|| {
        let log = place.log();
        let line = log.lines().find(|line| line.contains("metrics address="))?.to_owned();
        line.split("address=").nth(1).map(str::to_owned)
    })
}

/// Status and body of a page. A server does not wait for a client that is slow to ask.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = eventually(|| ask().ok().filter(|answer| !answer.is_empty()));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    (status, body.to_owned())
}

#[derive(Debug, Default)]
struct Family {
    kind: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Parses an exposition strictly: one that is not well-formed fails the test.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let (mut helped, mut current) = (None, String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && help.starts_with(char::is_uppercase), "{line}");
            helped = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped.take().as_deref(), Some(name), "HELP comes before TYPE");
            let family = Family { kind: kind.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} is there twice");
            current = name.to_owned();
        } else {
            let (name, labels, value) = sample(line);
            assert!(name.starts_with(&current), "{line} is not of {current}");
            families.get_mut(&current).unwrap().samples.push((name, labels, value));
        }
    }
    families
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
    };
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(name.chars().all(good), "{line}");
    let mut all = BTreeMap::new();
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (key, value) = label.split_once('=').unwrap();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap();
        assert!(key.chars().all(good), "{line}");
        assert!(all.insert(key.to_owned(), value.to_owned()).is_none(), "{line}");
    }
    (name.to_owned(), all, value.parse().unwrap())
}

fn check_names(name: &str, family: &Family) {
    let unit = name.trim_end_matches("_total");
    for wrong in ["_ms", "_us", "_ns", "_millis", "_micros", "_kb", "_mb", "_kib", "_percent"] {
        assert!(!unit.ends_with(wrong), "{name}: base units are seconds and bytes");
    }
    assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
    for reserved in ["_count", "_sum", "_bucket", "_info_total"] {
        assert!(!name.ends_with(reserved), "{name}");
    }
}

fn check_samples(name: &str, family: &Family) {
    let series: BTreeSet<_> =
        family.samples.iter().map(|(name, labels, _)| (name.clone(), labels.clone())).collect();
    assert_eq!(series.len(), family.samples.len(), "{name}: a series is there twice");
    if family.kind != "histogram" {
        assert!(family.samples.iter().all(|(sample, ..)| sample == name), "{name}");
        return;
    }
    let mut below = BTreeMap::<_, (f64, f64)>::new();
    for (sample, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        if sample == &format!("{name}_bucket") {
            let bound: f64 = bound.unwrap().replace("+Inf", "inf").parse().unwrap();
            let (last, count) = below.entry(labels).or_insert((0.0, 0.0));
            assert!(bound > *last && value >= count, "{name}: bounds and counts grow");
            (*last, *count) = (bound, *value);
        } else if sample == &format!("{name}_count") {
            assert_eq!(below[&labels], (f64::INFINITY, *value), "{name}");
        } else {
            assert_eq!(sample, &format!("{name}_sum"));
        }
    }
}

fn value(families: &BTreeMap<String, Family>, name: &str, label: Option<(&str, &str)>) -> f64 {
    let has = |labels: &BTreeMap<String, String>| {
        label.is_none_or(|(key, value)| labels.get(key).is_some_and(|found| found == value))
    };
    let family = &families[name];
    family.samples.iter().find(|(_, labels, _)| has(labels)).map_or(0.0, |(.., value)| *value)
}

/// How often the store was synced: at least once per append.
fn syncs(families: &BTreeMap<String, Family>) -> f64 {
    let stages = families["xs_commit_stage_duration_seconds"].samples.iter();
    let is_sync = |name: &str, labels: &BTreeMap<String, String>| {
        name.ends_with("_count") && labels["stage"] == "sync"
    };
    let syncs = stages.filter(|(name, labels, _)| is_sync(name, labels));
    syncs.map(|(.., value)| *value).sum()
}

#[test]
fn a_handler_that_does_not_keep_up_shows() {
    let place = Sandbox::new();
    let source = "export default { topics: 'in', onError: { retry: 9, backoff: '1h' }, \
                  run() { throw new Error('not today'); } };";
    place.write("modules/handlers/slow.js", source);
    let server = place.serve(&["--metrics", ":0", "--modules", "modules"]);
    place.await_frames("xs.handler.slow.active", 1);
    for n in 0..3 {
        place.ok(&["append", "other", &n.to_string()]);
        place.ok(&["append", "in", &n.to_string()]);
    }
    let address = address(&place);
    eventually(|| {
        let families = parse(&get(&address, "/metrics").1);
        let lag = value(&families, "xs_handler_lag_max_frames", None);
        assert!(lag <= 3.0, "{lag}");
        (lag == 3.0).then_some(())
    });
    assert!(server.stop().success());
}

#[test]
fn metrics_are_well_formed_and_correct() {
    let place = Sandbox::new();
    place.write("modules/generators/tick.ts", MODULE);
    let server = place.serve(&["--metrics", ":0", "--listen", ":0", "--modules", "modules"]);
    let address = address(&place);
    place.await_frames("tick.recv", 3);
    place.ok(&["cursor", "set", "slow", "first"]);
    for n in 0..5 {
        place.ok(&["append", "t", &n.to_string()]);
    }
    let families = eventually(|| {
        let (status, text) = get(&address, "/metrics");
        assert_eq!(status, 200);
        let families = parse(&text);
        // The exposition may be a moment old.
        let appended = value(&families, "xs_requests_total", Some(("op", "append"))) >= 5.0;
        let active = value(&families, "xs_modules", Some(("state", "active"))) == 1.0;
        // The store's metrics are collected before the others.
        let stored = value(&families, "xs_log_head_offset", None) >= 9.0;
        (appended && active && stored && syncs(&families) >= 5.0).then_some(families)
    });
    let found: Vec<_> = families.iter().map(|(n, f)| (n.as_str(), f.kind.as_str())).collect();
    assert_eq!(found, FAMILIES);
    for (name, family) in &families {
        check_names(name, family);
        check_samples(name, family);
    }
    let number = |name: &str| value(&families, name, None);
    assert_eq!((number("xs_ready"), number("xs_build_info")), (1.0, 1.0));
    assert!(number("xs_topics") >= 3.0);
    assert_eq!(number("xs_cursor_lag_max_frames"), number("xs_log_head_offset"));
    assert!(number("xs_received_bytes_total") > 0.0 && number("xs_sent_bytes_total") > 0.0);
    assert!(number("xs_connections") >= 1.0, "the Host is connected");
    assert!(server.stop().success());
}

#[test]
fn readyz_and_healthz_report_the_state_of_a_server() {
    let place = Sandbox::new();
    let server = place.serve(&["--metrics", "127.0.0.1:0"]);
    let address = address(&place);
    assert_eq!(get(&address, "/healthz"), (200, "ok alive\n".to_owned()));
    let ready = eventually(|| Some(get(&address, "/readyz")).filter(|(status, _)| *status == 200));
    assert_eq!(ready.1, "ok recovered\nok serving\nok writable\nok room\n");
    assert_eq!(get(&address, "/nothing").0, 404);
    let refused = place.xs(&["serve", "other", "--metrics", "0.0.0.0:0"]);
    assert_eq!((refused.code, refused.err.contains("--metrics-public")), (2, true));
    let socket = place.xs(&["serve", "other", "--metrics", "./a.sock"]);
    assert_eq!(socket.code, 2, "{}", socket.err);
    assert!(!place.path("other").exists());
    assert!(server.stop().success());
}

#[test]
fn messages_are_json_when_asked_for() {
    let place = Sandbox::new();
    let server = place.serve(&["--log", "json", "--log-level", "debug"]);
    place.ok(&["append", "t", "x"]);
    assert!(server.stop().success());
    let log = place.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let serving = lines.iter().find(|line| line["message"] == "serving").expect("it says so");
    assert_eq!(serving["level"], "INFO");
    assert_eq!(serving["store"], text(&place.store()));
    assert!(serving["timestamp"].is_string());
}
