//! `--format`: custom lines from every subcommand that prints events.

use crate::support::Sandbox;

#[test]
fn format_prints_events_with_a_template() {
    let place = Sandbox::new();
    place.ok(&["append", "m.cpu", "--meta", r#"{"value":0.5,"of":{"host":"a"}}"#, "one\n"]);
    place.ok(&["append", "m.disk", "--meta", r#"{"value":12}"#, "two"]);
    let template = "{topic:<7}|{meta.value:>5}|{meta.of.host}|{body}|{{{offset}}}";
    let lines = "m.cpu  |  0.5|a|one|{0}\nm.disk |   12||two|{1}\n";
    for args in [
        &["cat", "--format", template][..],
        &["cat", "-f", "--limit", "2", "--format", template],
        &["last", "--per-topic", "--format", template],
    ] {
        assert_eq!(place.ok(args).text(), lines, "{args:?}");
    }
    let id = place.ok(&["get", "1", "--format", "{id}"]).text();
    let timed = place.ok(&["get", id.trim(), "--format", "{topic} {time}"]).text();
    assert!(timed.starts_with("m.disk 20") && timed.ends_with("Z\n"), "{timed}");
    let frame = &place.ok(&["get", "1"]).json()[0];
    assert_eq!(frame["id"], id.trim());
}

#[test]
fn an_invalid_template_is_a_usage_error() {
    let place = Sandbox::new();
    for (template, said) in [
        ("{topic} {colour}", "column 9: unknown field \"colour\"; the fields are time, topic"),
        ("{topic", "column 1: this brace is not closed"),
        ("{topic:<wide}", "column 1: invalid width \"<wide\""),
    ] {
        let run = place.xs(&["cat", "--format", template]);
        assert_eq!(run.code, 2, "{}", run.err);
        assert!(run.err.contains(said), "{}", run.err);
    }
    assert_eq!(place.xs(&["cat", "--format", "{topic}", "--with-body"]).code, 2);
}
