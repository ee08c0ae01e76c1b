//! Files in the modules directory that are not modules: they do not affect the others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use tempfile::TempDir;
use xs_runtime::host::{CONFIG_TOPIC, HostEnd};

use super::support::{World, meta};

const ECHO: &str = "export default { topics: 'in', run: () => ({ n: 1 }) };";

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

async fn answers(world: &World) {
    let before = world.topic("good.out").len();
    world.append("in", json!({}), "");
    world.wait("good.out", before + 1).await;
}

/// Regression test: a pipe stopped the Host forever, the target of a link was written to the log,
/// and a long file was stored again at each save.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_loader_does_not_read_is_not_read_at_all() {
    let secret = TempDir::new().unwrap();
    let secret = secret.path().join("secret");
    fs::write(&secret, "not yours").unwrap();
    let world = World::new(&[("handlers/good.js", ECHO)]);
    let host = world.host().await;
    world.wait("xs.handler.good.active", 1).await;
    // They appear all at once: for some of them, or a part of one, the message would differ.
    let hidden = world.path("handlers/.odd");
    fs::create_dir(&hidden).unwrap();
    pipe(&hidden.join("pipe.ts"));
    symlink(&secret, hidden.join("link.ts")).unwrap();
    symlink(&secret, hidden.join("twice.ts")).unwrap();
    pipe(&hidden.join("twice.js"));
    fs::write(hidden.join("long.ts"), vec![b' '; 2 << 20]).unwrap();
    fs::write(hidden.join("bytes.ts"), [0xff; 16]).unwrap();
    fs::rename(hidden, world.path("handlers/odd")).unwrap();
    for (name, why) in [
        ("odd.pipe", "it is not a file"),
        ("odd.link", "it is a link to a file outside"),
        ("odd.twice", "rename all but one"),
        ("odd.long", "it is larger than"),
        ("odd.bytes", "UTF-8"),
    ] {
        let invalid = world.wait(&format!("xs.handler.{name}.invalid"), 1).await;
        let message = meta(&invalid[0])["message"].as_str().unwrap().to_owned();
        assert!(message.contains(why), "{name}: {message}");
        let create = &world.topic(&format!("xs.handler.{name}.create"))[0];
        assert_eq!(world.store.text(create), "", "{name}");
        answers(&world).await;
    }
    assert_eq!(world.topic("xs.handler.good.active").len(), 1);
    assert!(matches!(host.stop().await, HostEnd::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nested_too_deep_is_invalid() {
    let world = World::new(&[("handlers/good.js", ECHO)]);
    let host = world.host().await;
    world.wait("xs.handler.good.active", 1).await;
    let deep = "[".repeat(300_000);
    world.save("handlers/deep.ts", &deep);
    let invalid = meta(&world.wait("xs.handler.deep.invalid", 1).await[0]);
    assert!(invalid["message"].as_str().unwrap().contains("nested too deep"), "{invalid}");
    world.append("xs.handler.deep.create", json!({}), &deep);
    let invalid = meta(&world.wait("xs.handler.deep.invalid", 2).await[1]);
    assert!(invalid["message"].as_str().unwrap().contains("nested too deep"), "{invalid}");
    answers(&world).await;
    assert!(matches!(host.stop().await, HostEnd::Stopped));
}

/// If the parser accepts a source, the engine decides, on a thread that identifies the version.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_nested_as_deep_as_may_be_crashes_nothing() {
    let world = World::new(&[("handlers/good.js", ECHO)]);
    let host = world.host().await;
    world.wait("xs.handler.good.active", 1).await;
    for (n, (before, after)) in
        [("[", "]"), ("(", ")"), ("!", ""), ("-+", ""), ("a=>", "")].into_iter().enumerate()
    {
        let depth = if after.is_empty() { 4_000 } else { 1_500 };
        let source = format!(
            "const a = 1;\nexport const b = {}1{};\n{ECHO}",
            before.repeat(depth),
            after.repeat(depth)
        );
        world.save(&format!("handlers/deep{n}.js"), &source);
        let ends = ["active", "invalid"].map(|end| format!("xs.handler.deep{n}.{end}"));
        world.until("it was judged", || ends.iter().any(|end| !world.topic(end).is_empty())).await;
        answers(&world).await;
    }
    assert!(matches!(host.stop().await, HostEnd::Stopped));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_no_file_is_not_waited_for() {
    let world = World::new(&[("handlers/good.js", ECHO)]);
    let host = world.host().await;
    world.wait("xs.handler.good.active", 1).await;
    pipe(&world.path("xs.toml"));
    let told = meta(&world.wait(CONFIG_TOPIC, 1).await[0]);
    assert!(told["error"]["message"].as_str().unwrap().contains("not a file"), "{told}");
    answers(&world).await;
    fs::remove_file(world.path("xs.toml")).unwrap();
    world.wait(CONFIG_TOPIC, 2).await;
    assert!(matches!(host.stop().await, HostEnd::Stopped));
}
