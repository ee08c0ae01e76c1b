//! Embeds the JavaScript of the extensions. Deno's crates name their sources by path and read them
//! when a snapshot is built; our binary has to run where those paths do not exist.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The crates whose JavaScript an isolate may load.
const CRATES: [&str; 3] = ["deno_fetch", "deno_web", "deno_webidl"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=js");
    println!("cargo:rerun-if-changed=../Cargo.lock");
    let own = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut dirs = unpacked(&own).unwrap_or_else(asked_for);
    assert_eq!(dirs.len(), CRATES.len(), "the sources of {CRATES:?} are found");
    dirs.push(own.join("js"));
    let mut table = String::from("&[\n");
    for dir in dirs {
        for path in scripts(&dir) {
            let text = fs::read_to_string(&path).expect("a script is UTF-8");
            writeln!(table, "    ({path:?}, {:?}),", wrapped(text)).expect("a String grows");
        }
    }
    table.push_str("]\n");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("sources.rs"), table).expect("OUT_DIR can be written");
}

/// Wraps a script that is loaded on demand, as deno_core would wrap it to compile it, but in a
/// declared function. The engine reads ahead to the end of each parenthesized expression before it
/// parses it, so every pair of parentheses costs another pass; a declared function is read only
/// once. A script of another form is returned unchanged.
fn wrapped(text: String) -> String {
    const HEAD: &str = "(function () {\n";
    const TAIL: &str = "})();";
    let body = text.split_once(HEAD).and_then(|(above, below)| {
        let comments = above.lines().all(|line| line.is_empty() || line.starts_with("//"));
        comments.then_some((above, below.trim_end().strip_suffix(TAIL)?))
    });
    let Some((above, body)) = body else { return text };
    // The lines of the script keep their numbers.
    format!("\"use strict\"; return (script());{above}function script() {{\n{body}}}")
}

/// The directories into which cargo unpacks crates of a registry, the usual case. Needs only what a
/// build of this package alone downloads.
fn unpacked(own: &Path) -> Option<Vec<PathBuf>> {
    let lock = fs::read_to_string(own.join("../Cargo.lock")).ok()?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
    let registries: Vec<PathBuf> = fs::read_dir(home.join("registry/src"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let find = |name: &&str| {
        let after = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
        let dir = format!("{name}-{}", after.split('"').next()?);
        registries.iter().map(|registry| registry.join(&dir)).find(|path| path.is_dir())
    };
    CRATES.iter().map(find).collect()
}

/// The directories that cargo reports, for crates that are vendored, patched or in another kind of
/// home.
fn asked_for() -> Vec<PathBuf> {
    let cargo = env::var("CARGO").expect("cargo sets it");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked"])
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("it lists packages");
    let wanted = packages
        .iter()
        .filter(|package| package["name"].as_str().is_some_and(|name| CRATES.contains(&name)));
    let manifests = wanted.filter_map(|package| package["manifest_path"].as_str());
    manifests.filter_map(|path| Path::new(path).parent().map(Path::to_owned)).collect()
}

/// The scripts in a directory, sorted so that equal sources give an equal binary.
fn scripts(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a crate's directory can be read");
    let paths = entries.map(|entry| entry.expect("and its entries").path());
    let mut paths: Vec<String> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "js"))
        .map(|path| path.to_str().expect("a path that cargo printed is UTF-8").to_owned())
        .collect();
    paths.sort();
    paths
}
