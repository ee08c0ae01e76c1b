//! README.md, typed as it stands, next to a copy of the examples.

use std::fs;
use std::path::Path;

use crate::support::Sandbox;
use crate::tutorial::{run, script};

/// Copies a directory and what is below it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn the_readme_session_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let place = Sandbox::new();
    copy(&root.join("examples/modules"), &place.path("examples/modules"));
    let (script, commands) = script(&fs::read_to_string(root.join("README.md")).unwrap());
    assert!(commands > 10, "the page was read");
    let output = run(&place, &script);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{out}\n{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "\"body\":\"buy milk\\n\"",
        "\"topic\":\"metrics.recv\"",
        "metrics.recv: ",
        "journal: one\n",
        "journal: two\n",
        "\"topic\":\"journal\",\"count\":2",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
}
