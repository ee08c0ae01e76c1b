//! The layers of the crate, which no compiler checks: a module uses only modules of its own layer
//! and of those below.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the bottom up, as ARCHITECTURE.md draws them.
const LAYERS: [&[&str]; 8] = [
    &["clock", "limits", "planted", "sys", "worker"],
    &["value"],
    &["format", "ids", "names"],
    &["entropy", "error", "io_error", "options"],
    &["media"],
    &["env", "holds", "manifest"],
    &["blob", "cursors", "index", "journal", "keys", "log", "tail"],
    &[
        "append",
        "commit",
        "compact",
        "gc",
        "maintain",
        "read",
        "recovery",
        "remove",
        "space",
        "store",
        "store_blobs",
        "upkeep",
    ],
];

/// Modules for tests only.
const TESTS: [&str; 2] = ["proofs", "testing"];

/// Edges that go up nevertheless, each with its reason. One that no longer exists must be removed.
const UPWARD: [(&str, &str, &str); 6] = [
    ("value", "format", "a frame that was read is a view of its record"),
    ("log", "store", "a segment is sealed with the locks of the store held"),
    ("journal", "store", "settling syncs the log and the packs, which the store holds"),
    ("index", "read", "an index is built by the walk that readers use"),
    ("keys", "append", "a key is compared with the content of a batch"),
    (
        "keys",
        "recovery",
        "lost files of keys are made again from what recovery reads in the segment",
    ),
];

#[test]
fn a_module_uses_no_layer_above_its_own() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let edges = edges(&source);
    assert!(edges.len() > 100, "only {} edges were found", edges.len());
    let mut wrong = Vec::new();
    for (from, to) in &edges {
        let (Some(below), Some(above)) = (layer(from), layer(to)) else {
            wrong.push(format!("{from} or {to} is in no layer"));
            continue;
        };
        if above > below && !UPWARD.iter().any(|(f, t, _)| (f, t) == (&&**from, &&**to)) {
            wrong.push(format!("{from} uses {to}, which is above it"));
        }
    }
    for (from, to, reason) in UPWARD {
        if !edges.contains(&(from.to_owned(), to.to_owned())) {
            wrong.push(format!("{from} does not use {to} any more ({reason})"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn test_code_at_the_end_of_a_file_is_not_looked_at() {
    let code = "use crate::names;\nuse crate::log::Log;\n    crate::value::f();\n";
    let text = format!("{code}#[cfg(test)]\nmod tests {{\n    use crate::store::Store;\n}}\n");
    assert_eq!(used(&text).collect::<Vec<_>>(), ["names", "log", "value"]);
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Which top-level module uses which other.
fn edges(source: &Path) -> BTreeSet<(String, String)> {
    let mut edges = BTreeSet::new();
    for file in files(source) {
        let inside = file.strip_prefix(source).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        let is_test = inside.components().any(|part| {
            let name = part.as_os_str();
            name == "tests" || name == "tests.rs"
        });
        if module == "lib" || is_test || TESTS.contains(&module) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("crate::{"), "{}: one path for each use", file.display());
        let others = used(&text).filter(|other| *other != module);
        edges.extend(others.map(|other| (module.to_owned(), other.to_owned())));
    }
    edges
}

/// The top-level modules that the product code of a file names; its tests come last.
fn used(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].split("crate::").skip(1).filter_map(|rest| {
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        // Exported items in the links of comments begin with a capital letter.
        let is_path = [":", ";"].iter().any(|end| rest[name.len()..].starts_with(end));
        (!name.is_empty() && is_path).then_some(name)
    })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => {
                files.extend(Some(path).filter(|path| path.extension() == Some("rs".as_ref())))
            }
        }
    }
    files
}
