//! What the log says about modules that are added, changed, broken and removed.

use std::time::Duration;

use serde_json::json;
use xs_engine::{NewFrame, Topic};
use xs_protocol::{AppendRequest, Role};
use xs_runtime::host::HostEnd;

use super::support::{World, meta};

fn emits(text: &str) -> String {
    format!("export default {{ topics: 'in', run() {{ return {{ v: {text} }}; }} }};")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_replaces_and_a_broken_save_does_not() {
    let world = World::new(&[("handlers/h.js", &emits("1"))]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.save("handlers/h.js", "export default {\n  topics: 'in', run() { return {{ } };");
    let invalid = meta(&world.wait("xs.handler.h.invalid", 1).await[0]);
    assert_eq!((&invalid["code"], &invalid["line"]), (&json!("syntax"), &json!(2)));
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("h.out", 1).await[0])["v"], 1, "the old version runs");
    world.save("handlers/h.js", "throw new Error('at import');");
    let invalid = meta(&world.wait("xs.handler.h.invalid", 2).await[1]);
    assert_eq!((&invalid["code"], &invalid["line"]), (&json!("throw"), &json!(1)));
    world.save("handlers/h.js", &emits("2"));
    world.wait("xs.handler.h.active", 2).await;
    assert_eq!(world.wait("xs.handler.h.replaced", 1).await.len(), 1);
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("h.out", 2).await[1])["v"], 2);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_version_falls_back_after_a_restart() {
    let world = World::new(&[("handlers/h.js", &emits("1"))]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    host.stop().await;
    world.save("handlers/h.js", "syntax error");
    let host = world.host().await;
    world.wait("xs.handler.h.invalid", 1).await;
    world.wait("xs.handler.h.active", 2).await;
    let create = world.topic("xs.handler.h.create")[0].id().to_string();
    assert!(
        world.topic("xs.handler.h.active").iter().all(|frame| meta(frame)["create"] == *create)
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_code_replaces_its_importers_alone() {
    let importer = "import { v } from '../lib/v.js'; export default { topics: 'in', run() { return { v }; } };";
    let world = World::new(&[
        ("lib/v.js", "export const v = 1;"),
        ("handlers/a.js", importer),
        ("handlers/b.js", &emits("1")),
    ]);
    let host = world.host().await;
    world.wait("xs.handler.a.active", 1).await;
    world.wait("xs.handler.b.active", 1).await;
    world.save("lib/v.js", "export const v = 2;");
    world.wait("xs.handler.a.active", 2).await;
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("a.out", 1).await[0])["v"], 2);
    assert_eq!(world.topic("xs.handler.b.create").len(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_stops_and_restoring_starts() {
    let world = World::new(&[("handlers/h.js", &emits("1"))]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.delete("handlers/h.js");
    world.wait("xs.handler.h.fin.term", 1).await;
    world.save("handlers/h.js", &emits("1"));
    world.wait("xs.handler.h.active", 2).await;
    host.stop().await;
}

/// The sender of a term waits for the answer; there is one even if no Host was running.
#[tokio::test(flavor = "multi_thread")]
async fn each_term_is_answered_once_by_the_host_that_is_there_or_the_next() {
    let world = World::new(&[("handlers/h.js", &emits("1")), ("handlers/gone.js", &emits("1"))]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.wait("xs.handler.gone.active", 1).await;
    host.stop().await;
    world.append("xs.handler.h.term", json!({}), "");
    world.append("xs.handler.nobody.term", json!({}), "");
    world.delete("handlers/gone.js");
    let host = world.host().await;
    for name in ["h", "gone"] {
        let fin = world.wait(&format!("xs.handler.{name}.fin.term"), 1).await;
        let create = world.topic(&format!("xs.handler.{name}.create"))[0].id();
        assert_eq!(meta(&fin[0])["create"], create.to_string());
    }
    // With a Host too, although nothing runs: the module was stopped, could not run, or has failed.
    world.append("xs.handler.h.term", json!({}), "");
    world.wait("xs.handler.h.fin.term", 2).await;
    world.append("xs.handler.h.create", json!({}), "syntax error");
    world.append("xs.handler.h.term", json!({}), "");
    let fin = world.wait("xs.handler.h.fin.term", 3).await;
    let second = world.topic("xs.handler.h.create")[1].id();
    assert_eq!(meta(&fin[2])["create"], second.to_string());
    host.stop().await;
    let host = world.host().await;
    world.append("xs.handler.h.create", json!({}), &emits("2"));
    world.wait("xs.handler.h.active", 2).await;
    host.stop().await;
    assert_eq!(world.topic("xs.handler.h.fin.term").len(), 3);
    assert_eq!(world.topic("xs.handler.gone.fin.term").len(), 1);
    assert!(world.topic("xs.handler.nobody.fin.term").is_empty());
}

/// The answer concerns the version that was stopped, not one that was created since.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_created_after_a_term_runs() {
    let world = World::new(&[("handlers/h.js", &emits("1"))]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    host.stop().await;
    world.append("xs.handler.h.term", json!({}), "");
    world.append("xs.handler.h.create", json!({}), &emits("2"));
    let host = world.host().await;
    let active = world.wait("xs.handler.h.active", 2).await;
    let creates = world.topic("xs.handler.h.create");
    assert_eq!(meta(&active[1])["create"], creates[1].id().to_string());
    let fin = world.wait("xs.handler.h.fin.term", 1).await;
    assert_eq!((fin.len(), &meta(&fin[0])["create"]), (1, &json!(creates[0].id().to_string())));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_of_one_name_are_both_invalid() {
    let world = World::new(&[("handlers/h.js", &emits("1")), ("commands/h.js", &emits("1"))]);
    let host = world.host().await;
    for kind in ["handler", "command"] {
        let invalid = world.wait(&format!("xs.{kind}.h.invalid"), 1).await;
        let message = meta(&invalid[0])["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains("handlers/h.js") && message.contains("commands/h.js"),
            "{message}"
        );
    }
    world.delete("commands/h.js");
    world.wait("xs.handler.h.active", 1).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_loop_harms_no_other() {
    let world = World::new(&[
        ("handlers/hog.js", "export default { topics: 'in', run() { for (;;) {} } };"),
        ("handlers/evil.js", "for (;;) {}"),
        ("handlers/h.js", &emits("1")),
    ]);
    let host = world.host().await;
    world.wait("xs.handler.hog.active", 1).await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({}), "");
    world.wait("h.out", 1).await;
    assert_eq!(meta(&world.wait("xs.handler.hog.fin.error", 1).await[0])["code"], "cpu");
    assert_eq!(meta(&world.wait("xs.handler.evil.invalid", 1).await[0])["code"], "cpu");
    world.append("in", json!({}), "");
    world.wait("h.out", 2).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admins_version_needs_no_file_and_stays_until_the_file_changes() {
    let world = World::new(&[("handlers/h.js", &emits("1"))]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("xs.handler.h.create", json!({}), &emits("2"));
    world.append("xs.handler.lone.create", json!({}), &emits("'typed' as string"));
    world.wait("xs.handler.h.active", 2).await;
    world.wait("xs.handler.lone.active", 1).await;
    host.stop().await;
    let host = world.host().await;
    world.wait("xs.handler.h.active", 3).await;
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("h.out", 1).await[0])["v"], 2);
    assert_eq!(meta(&world.wait("lone.out", 1).await[0])["v"], "typed");
    world.save("handlers/h.js", &emits("3"));
    world.wait("xs.handler.h.active", 4).await;
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("h.out", 2).await[1])["v"], 3);
    world.append("xs.handler.other.create", json!({}), "");
    let invalid = meta(&world.wait("xs.handler.other.invalid", 1).await[0]);
    assert!(invalid["message"].as_str().unwrap().contains("no body"), "{invalid}");
    host.stop().await;
}

/// Its thread continues for as long as the process does.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_stop_is_replaced_by_the_next_host() {
    // Some 15 s of CPU time in one call, which nothing interrupts.
    let wedged = "export default { topics: 'in', run() { console.log('it searches'); \
                  'a'.repeat(2e5).indexOf('a'.repeat(1e5) + 'b'); } };";
    let world = World::new(&[("handlers/h.js", wedged)]);
    let host = world.host_that_waits(Duration::from_millis(100)).await;
    world.wait("xs.handler.h.active", 1).await;
    world.append("in", json!({}), "");
    world.wait("xs.handler.h.log", 1).await;
    world.save("handlers/h.js", &emits("2"));
    assert!(matches!(host.ended().await, HostEnd::Wedged));
    assert_eq!(world.topic("xs.handler.h.active").len(), 1);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 2).await;
    assert_eq!(meta(&world.wait("h.out", 1).await[0])["v"], 2);
    host.stop().await;
}

/// What blocks one engine blocks all of the process, perhaps forever. Regression test: no start
/// finished any more, and nothing was reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_engines_do_not_start_gives_way_to_another_and_blames_no_module() {
    let command = "export default { run: () => ({ ok: true }) };";
    let world = World::new(&[("handlers/h.js", &emits("1")), ("commands/c.js", command)]);
    let host = world.host_without_engines().await;
    // The process ends with the first of the two, perhaps before the other is reported.
    let told = || ["xs.handler.h.retrying", "xs.command.c.retrying"].map(|one| world.topic(one));
    world.until("a module is told of", || told().iter().any(|one| !one.is_empty())).await;
    for retrying in told().iter().flatten().map(meta) {
        assert_eq!(retrying["code"], "engine", "{retrying}");
    }
    assert!(matches!(host.ended().await, HostEnd::Wedged));
    assert!(world.topic("xs.handler.h.invalid").is_empty());
    assert!(world.topic("xs.command.c.invalid").is_empty());
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.wait("xs.command.c.active", 1).await;
    host.stop().await;
}

/// Regression test: there could never be more names than may run at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_gone_take_no_place() {
    let world = World::new(&[("handlers/a.js", &emits("1"))]);
    let host = world.host_that_runs(1).await;
    world.wait("xs.handler.a.active", 1).await;
    world.delete("handlers/a.js");
    world.wait("xs.handler.a.fin.term", 1).await;
    world.save("handlers/b.js", &emits("1"));
    world.wait("xs.handler.b.active", 1).await;
    world.save("handlers/c.js", &emits("1"));
    let invalid = meta(&world.wait("xs.handler.c.invalid", 1).await[0]);
    assert_eq!(invalid["code"], "full", "{invalid}");
    world.save("handlers/b.js", &emits("2"));
    world.wait("xs.handler.b.active", 2).await;
    // It starts automatically when a slot becomes free.
    world.delete("handlers/b.js");
    world.wait("xs.handler.c.active", 1).await;
    world.save("handlers/b.js", "a syntax error is told of all the same");
    world.wait("xs.handler.b.invalid", 1).await;
    world.save("handlers/b.js", &emits("3"));
    world.wait("xs.handler.b.invalid", 2).await;
    host.stop().await;
    // The handler that ran continues; the one that waited gets a remaining slot.
    let host = world.host_that_runs(1).await;
    world.wait("xs.handler.c.active", 2).await;
    world.wait("xs.handler.b.invalid", 3).await;
    host.stop().await;
    let host = world.host_that_runs(2).await;
    world.wait("xs.handler.b.active", 3).await;
    host.stop().await;
    assert_eq!(world.topic("xs.handler.c.invalid").len(), 1);
}

/// Regression test: a starting Host ran everything that had run before, whatever its limit.
#[tokio::test(flavor = "multi_thread")]
async fn what_ran_before_has_no_place_beyond_the_limit() {
    let world = World::new(&[("handlers/a.js", &emits("1")), ("handlers/b.js", &emits("1"))]);
    let host = world.host_that_runs(2).await;
    world.wait("xs.handler.a.active", 1).await;
    world.wait("xs.handler.b.active", 1).await;
    // The version to run is not the newest.
    world.save("handlers/b.js", "a syntax error");
    world.wait("xs.handler.b.invalid", 1).await;
    host.stop().await;
    let host = world.host_that_runs(1).await;
    let full = meta(&world.wait("xs.handler.b.invalid", 2).await[1]);
    assert_eq!(full["code"], "full", "{full}");
    world.wait("xs.handler.a.active", 2).await;
    assert_eq!(world.topic("xs.handler.b.active").len(), 1);
    world.delete("handlers/a.js");
    let active = world.wait("xs.handler.b.active", 2).await;
    assert_eq!(meta(&active[1])["create"], meta(&active[0])["create"]);
    host.stop().await;
    let host = world.host_that_runs(1).await;
    world.wait("xs.handler.b.active", 3).await;
    host.stop().await;
    assert_eq!(world.topic("xs.handler.b.invalid").len(), 2);
}

/// Regression test: it occupied a slot for as long as the Host ran.
#[tokio::test(flavor = "multi_thread")]
async fn what_starts_with_no_version_leaves_its_place_to_others() {
    let world = World::new(&[("handlers/a.js", &emits("1"))]);
    let host = world.host().await;
    world.wait("xs.handler.a.active", 1).await;
    host.stop().await;
    let first = world.topic("xs.handler.a.create").remove(0);
    world.store.lose_body(&first);
    world.save("handlers/a.js", "a syntax error");
    world.save("handlers/b.js", &emits("1"));
    let host = world.host_that_runs(1).await;
    let invalid = world.wait("xs.handler.a.invalid", 2).await;
    let second = json!(world.topic("xs.handler.a.create")[1].id().to_string());
    let told: Vec<_> = invalid.iter().map(meta).collect();
    assert_eq!((&told[0]["create"], &told[0]["down"]), (&second, &json!(null)));
    assert_eq!(told[1]["create"], first.id().to_string());
    assert_eq!(told[1]["down"], second);
    world.wait("xs.handler.b.active", 1).await;
    // It gets no slot until one is free again.
    world.save("handlers/a.js", &emits("2"));
    assert_eq!(meta(&world.wait("xs.handler.a.invalid", 3).await[2])["code"], "full");
    world.delete("handlers/b.js");
    world.wait("xs.handler.a.active", 2).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waited_for_a_place_is_started_once_after_a_restart() {
    let world = World::new(&[("handlers/a.js", &emits("1")), ("handlers/b.js", &emits("1"))]);
    let host = world.host_that_runs(1).await;
    world.wait("xs.handler.a.active", 1).await;
    world.wait("xs.handler.b.invalid", 1).await;
    host.stop().await;
    let host = world.host_that_runs(3).await;
    world.wait("xs.handler.b.active", 1).await;
    // With each of these the Host checks whether a processor waits for a slot.
    for n in 2..5 {
        world.save("handlers/a.js", &emits(&n.to_string()));
        world.wait("xs.handler.a.active", n + 1).await;
    }
    host.stop().await;
    assert_eq!(world.topic("xs.handler.b.active").len(), 1);
}

/// It was once down until the next Host came, and only the server's log said so.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_changes_while_its_processor_starts_is_read_again() {
    let command = "export default { run: () => ({ ok: true }) };".to_owned();
    let generator = "export default { duplex: true, async *run(ctx) { \
                     for await (const frame of ctx.input) yield { n: frame.meta.n }; } };";
    for (kind, source, place, input, output) in [
        ("handler", emits("1"), "", "in", "p.out"),
        ("command", command, "", "p.call", "p.complete"),
        ("generator", generator.to_owned(), ":input", "p.send", "p.recv"),
    ] {
        let world = World::new(&[(&format!("{kind}s/p.js"), &source)]);
        world.store.hold(&format!("xs.{kind}.p.active"), "go");
        let host = world.host().await;
        world.until("the first place is held", || world.store.holds()).await;
        let state = if place.is_empty() { "" } else { "{\"offset\":0}" };
        world.set_cursor(&format!("xs.{kind}.p{place}"), 0, state);
        let go = NewFrame::new(Topic::parse("go").unwrap());
        let client = world.client(Role::Append).await;
        client.append(&AppendRequest::frames(vec![go])).await.unwrap();
        world.wait(&format!("xs.{kind}.p.active"), 1).await;
        world.append(input, json!({ "args": {}, "n": 1 }), "");
        world.wait(output, 1).await;
        assert!(world.topic(&format!("xs.{kind}.p.invalid")).is_empty());
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_in_effect_is_told() {
    let source = "export default { topics: 'in', config: { a: 1, b: 2 }, \
                  run(frame, ctx) { return { config: ctx.config }; } };";
    let world = World::new(&[("handlers/h.js", source)]);
    let host = world.host().await;
    world.wait("xs.handler.h.active", 1).await;
    world.save("xs.toml", "[modules.h.config]\nb = 3\nc = 4\n");
    let active = world.wait("xs.handler.h.active", 2).await;
    let told: Vec<_> = active.iter().map(|frame| meta(frame)["config"].clone()).collect();
    assert_eq!(told, [json!({ "a": 1, "b": 2 }), json!({ "a": 1, "b": 3, "c": 4 })]);
    world.append("in", json!({}), "");
    assert_eq!(meta(&world.wait("h.out", 1).await[0])["config"], told[1]);
    host.stop().await;
}

/// It was waited for, up to the limit of a top level or of the stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_module_that_is_evaluated() {
    const SLOW: &str = "console.log('begun'); \
                        await new Promise((done) => setTimeout(done, 1e6)); export default {};";
    let world = World::new(&[("handlers/h.js", SLOW)]);
    let host = world.host().await;
    world.wait("xs.handler.h.log", 1).await;
    let began = std::time::Instant::now();
    assert!(matches!(host.stop().await, HostEnd::Stopped));
    // A top level may take 10 s.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(world.topic("xs.handler.h.invalid").is_empty());
}
