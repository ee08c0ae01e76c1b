//! `ctx.watch` follows the path, whatever is at it.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

use super::*;

/// A generator that yields the changes of a path in a directory.
struct Watching {
    dir: TempDir,
    memory: Arc<Memory>,
    run: JoinHandle<Result<(), ModuleError>>,
}

impl Watching {
    /// Watches `path` in a directory that `make` fills.
    async fn start(path: &str, make: impl FnOnce(&Path)) -> Self {
        let dir = TempDir::new().unwrap();
        make(dir.path());
        let at = dir.path().display();
        let source = format!(
            "export default {{ permissions: {{ read: ['{at}'] }}, async *run(ctx) {{ \
               for await (const change of ctx.watch('{at}/{path}')) yield change; }} }};"
        );
        let (isolate, _, memory) = start("generators/it.js", &source).await.unwrap();
        let run = tokio::spawn(async move { isolate.run_generator().await });
        Self { dir, memory, run }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// The changes so far, with paths relative to the directory.
    fn seen(&self) -> Vec<(String, String)> {
        let metas = self.memory.topic("it.recv").iter().map(stored_meta).collect::<Vec<_>>();
        let text = |change: &Value, name: &str| change[name].as_str().unwrap().to_owned();
        let below = format!("{}/", self.dir.path().display());
        let path = |change| text(change, "path").strip_prefix(&below).unwrap().to_owned();
        metas.iter().map(|change| (path(change), text(change, "kind"))).collect()
    }

    /// Waits until there are more changes of a kind than `before`.
    async fn told(&self, path: &str, kind: &str, before: usize) {
        let is_told = || self.count(path, kind) > before;
        soon(async {
            while !is_told() {
                assert!(!self.run.is_finished(), "{:?}", self.seen());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    fn count(&self, path: &str, kind: &str) -> usize {
        self.seen().iter().filter(|(at, what)| at == path && what == kind).count()
    }

    /// Writes a file until that is reported: the watch may begin after the first write.
    async fn written(&self, path: &str) {
        let told = || self.seen().iter().filter(|(at, _)| at == path).count();
        let before = told();
        soon(async {
            while told() == before {
                assert!(!self.run.is_finished(), "{:?}", self.seen());
                fs::write(self.at(path), "more").unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

/// Editors and log rotation replace files like this.
#[tokio::test]
async fn a_file_that_is_replaced_is_watched_on() {
    let watching = Watching::start("in", |dir| fs::write(dir.join("in"), "").unwrap()).await;
    watching.written("in").await;
    for n in 0..2 {
        fs::write(watching.at(".new"), "new").unwrap();
        fs::rename(watching.at(".new"), watching.at("in")).unwrap();
        watching.told("in", "create", n).await;
        watching.written("in").await;
    }
    fs::remove_file(watching.at("in")).unwrap();
    watching.told("in", "remove", 0).await;
    fs::write(watching.at("in"), "").unwrap();
    watching.told("in", "create", 2).await;
    watching.written("in").await;
    // Nothing next to it is reported.
    let seen = watching.seen();
    assert!(seen.iter().all(|(path, _)| path == "in"), "{seen:?}");
}

#[tokio::test]
async fn a_directory_that_is_made_anew_is_watched_on() {
    let watching = Watching::start("in", |dir| fs::create_dir(dir.join("in")).unwrap()).await;
    watching.written("in/a").await;
    fs::remove_dir_all(watching.at("in")).unwrap();
    watching.told("in", "remove", 0).await;
    fs::create_dir(watching.at("in")).unwrap();
    watching.told("in", "create", 0).await;
    watching.written("in/b").await;
    // All at once: another directory takes its place.
    fs::create_dir(watching.at("new")).unwrap();
    fs::remove_dir_all(watching.at("in")).unwrap();
    fs::rename(watching.at("new"), watching.at("in")).unwrap();
    watching.told("in", "create", 1).await;
    watching.written("in/c").await;
}

/// Regression test: changes in it were reported as if it had not moved.
#[tokio::test]
async fn a_directory_that_is_moved_away_is_not_watched_any_more() {
    let watching = Watching::start("in", |dir| fs::create_dir(dir.join("in")).unwrap()).await;
    watching.written("in/a").await;
    fs::rename(watching.at("in"), watching.at("moved")).unwrap();
    fs::write(watching.at("moved/gone"), "").unwrap();
    watching.told("in", "remove", 0).await;
    fs::write(watching.at("moved/gone"), "more").unwrap();
    fs::create_dir(watching.at("in")).unwrap();
    watching.told("in", "create", 0).await;
    fs::write(watching.at("moved/gone"), "yet more").unwrap();
    watching.written("in/b").await;
    let seen = watching.seen();
    assert!(!seen.iter().any(|(path, _)| path.ends_with("gone")), "{seen:?}");
}

/// Regression test: the watch ended when the directory around it was removed, and missed the
/// removal of one further up.
#[tokio::test]
async fn what_comes_back_with_all_around_it_is_watched_on() {
    let make = |dir: &Path| fs::create_dir_all(dir.join("above/around/in")).unwrap();
    for moved in ["above/around", "above"] {
        let watching = Watching::start("above/around/in", make).await;
        watching.written("above/around/in/a").await;
        fs::rename(watching.at(moved), watching.at("other")).unwrap();
        watching.told("above/around/in", "remove", 0).await;
        make(watching.dir.path());
        watching.told("above/around/in", "create", 0).await;
        watching.written("above/around/in/b").await;
        // All at once.
        fs::rename(watching.at(moved), watching.at("another")).unwrap();
        make(watching.dir.path());
        watching.told("above/around/in", "create", 1).await;
        watching.written("above/around/in/c").await;
        fs::remove_dir_all(watching.at("above")).unwrap();
        make(watching.dir.path());
        watching.told("above/around/in", "create", 2).await;
        watching.written("above/around/in/d").await;
    }
}

/// A config map keeps its files behind a link to a directory, and changes them all at once by
/// replacing that link.
#[tokio::test]
async fn a_link_that_is_swapped_leads_to_what_is_watched() {
    let make = |dir: &Path| {
        fs::create_dir(dir.join("v0")).unwrap();
        fs::write(dir.join("v0/key"), "0").unwrap();
        std::os::unix::fs::symlink("v0", dir.join("data")).unwrap();
        std::os::unix::fs::symlink("data/key", dir.join("key")).unwrap();
    };
    let watching = Watching::start("key", make).await;
    for n in 1..4 {
        fs::create_dir(watching.at(&format!("v{n}"))).unwrap();
        fs::write(watching.at(&format!("v{n}/key")), n.to_string()).unwrap();
        // The watch may begin after the first swaps.
        let before = watching.count("key", "create");
        soon(async {
            while watching.count("key", "create") == before {
                for to in [n - 1, n] {
                    let next = watching.at("next");
                    std::os::unix::fs::symlink(format!("v{to}"), &next).unwrap();
                    fs::rename(&next, watching.at("data")).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        fs::remove_dir_all(watching.at(&format!("v{}", n - 1))).unwrap();
        let before = watching.seen().len();
        soon(async {
            while watching.seen().len() == before {
                fs::write(watching.at(&format!("v{n}/key")), "more").unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    let seen = watching.seen();
    assert!(seen.iter().all(|(path, _)| path == "key"), "{seen:?}");
}

/// Like a watch that begins with such a link.
#[tokio::test]
async fn a_link_that_leads_out_of_what_may_be_read_ends_the_watch() {
    let outside = TempDir::new().unwrap();
    let make = |dir: &Path| {
        fs::create_dir(dir.join("v0")).unwrap();
        std::os::unix::fs::symlink("v0", dir.join("in")).unwrap();
    };
    let watching = Watching::start("in", make).await;
    watching.written("in/a").await;
    std::os::unix::fs::symlink(outside.path(), watching.at("next")).unwrap();
    fs::rename(watching.at("next"), watching.at("in")).unwrap();
    let error = soon(watching.run).await.unwrap().unwrap_err();
    assert!(error.message.contains("what was watched no longer exists"), "{error}");
}

/// A link below the path may lead to what must not be read, or to the whole machine.
#[tokio::test]
async fn links_are_not_followed() {
    let outside = TempDir::new().unwrap();
    let make = |dir: &Path| {
        fs::create_dir(dir.join("in")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.join("in/link")).unwrap();
    };
    let watching = Watching::start("in", make).await;
    watching.written("in/a").await;
    fs::write(outside.path().join("secret"), "").unwrap();
    // Changes arrive in order from one queue, so that of the link would have come first.
    watching.written("in/b").await;
    let seen = watching.seen();
    assert!(!seen.iter().any(|(path, _)| path.contains("link")), "{seen:?}");
}
