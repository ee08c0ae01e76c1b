use serde_json::{Value, json};
use xs_engine::{Meta, NewFrame, Origin, Topic};

use super::*;

struct Log {
    lifecycle: Lifecycle,
    next: FrameId,
}

impl Log {
    fn new() -> Self {
        Self { lifecycle: Lifecycle::default(), next: FrameId::first_of_ms(1_700_000_000_000) }
    }

    fn append(&mut self, topic: &str, meta: &Value) -> FrameId {
        let mut new = NewFrame::new(Topic::parse(topic).unwrap());
        new.meta = Meta::parse(meta.to_string()).unwrap();
        let id = self.next;
        self.next = id.next();
        let frame = Frame::assemble(&new, id, Some(0), None).unwrap();
        self.lifecycle.apply(&frame);
        id
    }

    /// Appends an event of handler `h`, about the version `create`.
    fn event(&mut self, event: &str, create: FrameId) -> FrameId {
        self.append(&format!("xs.handler.h.{event}"), &json!({ "create": create.to_string() }))
    }

    /// Appends that a version could not start, nor any other up to `newest`.
    fn down(&mut self, create: FrameId, newest: FrameId) -> FrameId {
        let meta = json!({ "create": create.to_string(), "down": newest.to_string() });
        self.append("xs.handler.h.invalid", &meta)
    }

    fn create(&mut self) -> FrameId {
        self.append("xs.handler.h.create", &json!({}))
    }

    fn create_from(&mut self, hash: &str) -> FrameId {
        self.append("xs.handler.h.create", &json!({ "file": "handlers/h.js", "hash": hash }))
    }

    fn slots(&self) -> &Slots {
        self.lifecycle.get(&key(Kind::Handler, "h")).unwrap()
    }

    fn starts(&self) -> (Option<FrameId>, Option<FrameId>) {
        (self.slots().pending(), self.slots().confirmed())
    }
}

fn key(kind: Kind, name: &str) -> Key {
    Key { kind, name: ProcessorName::parse(name).unwrap() }
}

#[test]
fn topics_are_split_from_both_ends() {
    let cases = [
        ("xs.handler.a.create", Some((Kind::Handler, "a", Event::Create))),
        (
            "xs.generator.disk.usage.fin.error",
            Some((Kind::Generator, "disk.usage", Event::FinError)),
        ),
        ("xs.command.fin.term", Some((Kind::Command, "fin", Event::Term))),
        ("xs.command.a.fin.fin.term", None),
        ("xs.command.a.fin.term", Some((Kind::Command, "a", Event::FinTerm))),
        ("xs.handler.create.create", Some((Kind::Handler, "create", Event::Create))),
        ("xs.handler.create", None),
        ("xs.handler.a.cancel", None),
        ("xs.robot.a.create", None),
        ("xs.start", None),
        ("handler.a.create", None),
    ];
    for (topic, expected) in cases {
        let expected = expected.map(|(kind, name, event)| (self::key(kind, name), event));
        assert_eq!(parse_topic(topic), expected, "{topic}");
    }
}

#[test]
fn a_version_is_pending_until_it_is_active() {
    let mut log = Log::new();
    let one = log.create();
    assert_eq!(log.starts(), (Some(one), None));
    log.event("active", one);
    assert_eq!(log.starts(), (None, Some(one)));
}

#[test]
fn a_run_persists_over_restarts_of_the_server() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    for event in ["stopped", "active", "stopped", "retrying", "log", "parked"] {
        log.event(event, one);
    }
    assert_eq!(log.starts(), (None, Some(one)));
}

#[test]
fn a_stop_persists() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    log.append("xs.handler.h.term", &json!({}));
    assert_eq!(log.starts(), (None, None), "at once, before anybody has acted on it");
    log.event("fin.term", one);
    assert!(!log.slots().wants_to_run());
}

#[test]
fn a_broken_replacement_falls_back() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    let two = log.create();
    assert_eq!(log.starts(), (Some(two), Some(one)));
    log.event("invalid", two);
    assert_eq!(log.starts(), (None, Some(one)));
}

/// Such a processor once counted as running, and so its slot was never freed.
#[test]
fn what_could_not_start_with_any_version_is_down_until_another_one_is_tried() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    let two = log.create();
    log.event("invalid", two);
    assert!(!log.slots().is_down(), "the old one runs on");
    log.down(one, two);
    assert!(log.slots().is_down());
    assert_eq!(log.starts(), (None, Some(one)), "the next Host tries it again");
    let three = log.create();
    assert!(!log.slots().is_down(), "it may start");
    log.down(one, two);
    assert_eq!((log.starts(), log.slots().is_down()), ((Some(three), Some(one)), false));
    log.down(three, three);
    assert!(log.slots().is_down());
    log.event("active", one);
    assert!(!log.slots().is_down());
    log.append("xs.handler.h.term", &json!({}));
    log.down(one, three);
    assert!(!log.slots().is_down() && !log.slots().wants_to_run(), "it is stopped");
}

/// A caller reads only the newest frame of each event.
#[test]
fn the_failure_of_an_old_version_tells_of_newer_ones_that_failed_before() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    let two = log.create();
    log.down(one, two);
    assert!(log.slots().is_down());
    assert_eq!(log.starts(), (None, Some(one)));
}

#[test]
fn a_good_replacement_takes_over() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    let two = log.create();
    log.event("replaced", one);
    log.event("active", two);
    assert_eq!(log.starts(), (None, Some(two)));
}

#[test]
fn the_end_of_an_old_version_leaves_a_new_one() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    let two = log.create();
    log.event("fin.error", one);
    assert_eq!(log.starts(), (Some(two), None));
    log.append("xs.handler.h.term", &json!({}));
    let three = log.create();
    log.event("fin.term", two);
    assert_eq!(log.starts(), (Some(three), None), "an answer to a stop before the start");
}

#[test]
fn a_term_is_kept_in_mind_until_it_is_answered() {
    let mut log = Log::new();
    log.append("xs.handler.h.term", &json!({}));
    assert_eq!(log.slots().told_to_end(), None, "nothing was there to end");
    let one = log.create();
    log.event("active", one);
    log.append("xs.handler.h.term", &json!({}));
    for event in ["stopped", "fin.error", "replaced", "invalid"] {
        log.event(event, one);
        assert_eq!(log.slots().told_to_end(), Some(one), "{event} is no answer");
    }
    let two = log.create();
    assert_eq!((log.starts(), log.slots().told_to_end()), ((Some(two), None), Some(one)));
    log.event("fin.term", one);
    assert_eq!((log.starts(), log.slots().told_to_end()), ((Some(two), None), None));
    // A `term` for a version that could not run must be answered too.
    log.event("invalid", two);
    log.append("xs.handler.h.term", &json!({}));
    assert_eq!(log.slots().told_to_end(), Some(two));
    let three = log.create();
    log.event("active", three);
    assert_eq!(log.slots().told_to_end(), None, "it was answered, or it is too late for that");
}

#[test]
fn a_version_that_began_to_run_before_it_heard_of_its_term_does_not_stay() {
    let mut log = Log::new();
    let one = log.create();
    log.append("xs.handler.h.term", &json!({}));
    log.event("active", one);
    assert_eq!((log.starts(), log.slots().told_to_end()), ((None, None), Some(one)));
}

#[test]
fn a_failure_stays_down_while_its_source_is_unchanged() {
    let mut log = Log::new();
    let one = log.create_from("sha256-a");
    log.event("active", one);
    log.event("fin.error", one);
    assert!(!log.slots().wants_to_run());
    assert_eq!(log.slots().taken().unwrap().hash, "sha256-a");
}

#[test]
fn only_the_files_own_term_forgets_what_was_taken() {
    let mut log = Log::new();
    log.create_from("sha256-a");
    log.append("xs.handler.h.term", &json!({}));
    assert!(log.slots().taken().is_some(), "a user's stop");
    log.append("xs.handler.h.term", &json!({ "file": "handlers/other.js" }));
    assert!(log.slots().taken().is_some());
    log.create();
    assert!(log.slots().taken().is_some(), "an admin's version is no file");
    log.append("xs.handler.h.term", &json!({ "file": "handlers/h.js" }));
    assert!(log.slots().taken().is_none(), "the file was deleted");
}

#[test]
fn a_name_is_held_by_one_kind() {
    let mut log = Log::new();
    log.create();
    let (generator, handler) = (key(Kind::Generator, "h"), key(Kind::Handler, "h"));
    assert_eq!(log.lifecycle.rival(&generator), Some(handler.clone()));
    assert_eq!(log.lifecycle.rival(&handler), None);
    log.append("xs.handler.h.term", &json!({}));
    assert_eq!(log.lifecycle.rival(&generator), None);
}

#[test]
fn odd_metas_change_nothing() {
    let mut log = Log::new();
    let one = log.create();
    log.event("active", one);
    for meta in [json!({ "create": 7 }), json!({ "create": "no id" })] {
        log.append("xs.handler.h.invalid", &meta);
        log.append("xs.handler.h.replaced", &meta);
        assert_eq!(log.starts(), (None, Some(one)));
    }
}

/// Any sequence of events keeps the rules, whatever order a crash left them in.
#[test]
fn invariants_hold_over_random_histories() {
    const EVENTS: [&str; 9] = [
        "active",
        "invalid",
        "fin.ok",
        "fin.error",
        "fin.term",
        "replaced",
        "stopped",
        "create",
        "term",
    ];
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    for _ in 0..2_000 {
        let mut log = Log::new();
        let mut versions = vec![log.create()];
        for _ in 0..random(20) {
            let version = versions[random(versions.len())];
            match EVENTS[random(EVENTS.len())] {
                "create" => {
                    let new = log.create();
                    versions.push(new);
                    assert_eq!(log.slots().pending(), Some(new));
                }
                "term" => {
                    log.append("xs.handler.h.term", &json!({}));
                    assert!(!log.slots().wants_to_run());
                    assert_eq!(log.slots().told_to_end(), versions.last().copied());
                }
                event => {
                    let before = log.slots().clone();
                    log.event(event, version);
                    let after = log.slots();
                    assert_ne!((after.pending(), event), (Some(version), "active"));
                    if matches!(event, "replaced" | "stopped") {
                        assert_eq!(*after, before);
                    }
                    if event.starts_with("fin") {
                        assert_ne!(after.confirmed(), Some(version));
                    }
                    let told = after.told_to_end();
                    if told.is_some() {
                        assert_eq!((told, after.confirmed()), (before.told_to_end(), None));
                        assert_ne!(event, "fin.term");
                    }
                }
            }
        }
    }
}

#[test]
fn versions_know_who_made_a_frame() {
    let versions = Versions::default();
    let create = FrameId::first_of_ms(1);
    let name = ProcessorName::parse("h").unwrap();
    versions.insert(create, name.clone());
    let mut new = NewFrame::new(Topic::parse("a").unwrap());
    let plain = Frame::assemble(&new, FrameId::first_of_ms(2), None, None).unwrap();
    new.origin = Some(Origin { processor: create, input: None, input_offset: None, hops: 1 });
    let derived = Frame::assemble(&new, FrameId::first_of_ms(3), None, None).unwrap();
    assert!(versions.made_by(&derived, &name));
    assert!(!versions.made_by(&plain, &name));
    assert!(!versions.made_by(&derived, &ProcessorName::parse("other").unwrap()));
    assert_eq!(versions.name(create), Some(name));
}
