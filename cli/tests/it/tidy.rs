//! Rules about the tree that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;
/// Where sources are: each directory has some.
const PLACES: [&str; 9] =
    [".ci", "bench", "cli", "clients", "engine", "fuzz", "protocol", "runtime", "scripts"];
/// Directories of generated files.
const MADE: [&str; 8] =
    ["target", "corpus", "artifacts", "coverage", "node_modules", "dist", "build", "__pycache__"];

/// Which rules apply to a file. All are ASCII, with a limited number of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of a crate: opens with a `//!` comment, and has short lines, except for a single literal,
    /// which cannot be broken without changing how it reads.
    Rust,
    /// Tests hold modules in raw strings, where a line break would move what they look at.
    RustTest,
    /// Of the clients, or a script: has short lines.
    Plain,
    /// Modules and the code they run on.
    JavaScript,
}

fn kind(name: &str) -> Option<Kind> {
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
    let begins = |place: &str| name.starts_with(place);
    match name {
        _ if name.ends_with(".rs") && is_test => Some(Kind::RustTest),
        _ if name.ends_with(".rs") => Some(Kind::Rust),
        _ if begins("scripts/") || begins(".ci/") => Some(Kind::Plain),
        _ if begins("clients/") && ends(&[".py", ".ts"]) => Some(Kind::Plain),
        _ if ends(&[".ts", ".js", ".cjs"]) => Some(Kind::JavaScript),
        _ => None,
    }
}

#[test]
fn sources_follow_the_tidy_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut broken = Vec::new();
    for place in PLACES {
        let mut count = 0;
        for file in files(&root.join(place)) {
            let name = file.strip_prefix(root).unwrap().display().to_string();
            let Some(kind) = kind(&name) else { continue };
            look(&name, kind, &fs::read_to_string(&file).unwrap(), &mut broken);
            count += 1;
        }
        assert!(count > 0, "{place} has no sources");
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Records how a file violates the rules.
fn look(name: &str, kind: Kind, text: &str, broken: &mut Vec<String>) {
    if text.lines().count() > LINES_MAX {
        broken.push(format!("{name}: more than {LINES_MAX} lines"));
    }
    let opens = text.lines().find(|line| !line.starts_with("#!") && !line.is_empty());
    let is_data = name.contains("vectors") || name.contains("fixtures");
    if kind == Kind::Rust && !is_data && !opens.unwrap_or("").starts_with("//!") {
        broken.push(format!("{name}: does not open with //!"));
    }
    for (index, line) in text.lines().enumerate() {
        let may_be_long = match kind {
            Kind::Rust => line.contains('"'),
            Kind::RustTest | Kind::JavaScript => true,
            Kind::Plain => false,
        };
        if !may_be_long && line.chars().count() > COLUMNS_MAX {
            broken.push(format!("{name}:{}: over {COLUMNS_MAX} columns", index + 1));
        }
        if !line.is_ascii() {
            broken.push(format!("{name}:{}: not ASCII", index + 1));
        }
    }
}

/// The handwritten files below a directory.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir);
        let entries = entries.unwrap_or_else(|error| panic!("read {}: {error}", dir.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if !path.is_dir() {
                found.push(path);
            } else if !MADE.contains(&&*name) {
                dirs.push(path);
            }
        }
    }
    found
}

/// The paths that the documents name exist.
#[test]
fn paths_named_in_the_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for page in ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        let words =
            text.split(|letter: char| letter.is_whitespace() || "`(),;|[]".contains(letter));
        let named = words.map(|word| word.trim_end_matches('.').trim_end_matches('/'));
        let is_ours = |word: &&str| {
            let place = word.split('/').next().unwrap_or_default();
            word.contains('/') && (PLACES.contains(&place) || place == "docs")
        };
        let named: Vec<_> = named.filter(is_ours).filter(|word| !word.contains('*')).collect();
        assert!(named.len() > 2, "{page} names {named:?}");
        for name in named {
            assert!(root.join(name).exists(), "{page} names {name}, which is not there");
        }
    }
}

#[test]
fn tidy_finds_planted_violations() {
    let found = |name: &str, text: &str| {
        let mut broken = Vec::new();
        look(name, kind(name).unwrap(), text, &mut broken);
        broken.len()
    };
    let long = "x".repeat(COLUMNS_MAX + 1);
    assert_eq!(found("engine/src/a.rs", "//! What it is.\n"), 0);
    assert_eq!(found("engine/src/a.rs", "use b;\n"), 1);
    assert_eq!(found("engine/src/a.rs", &format!("//! {long}\n\"{long}\"\n")), 1);
    assert_eq!(found("engine/tests/it/a.rs", &long), 0);
    assert_eq!(found("scripts/test", &format!("\"{long}\"\n\u{e9}\n")), 2);
    assert_eq!(found("clients/python/src/a.py", &long), 1);
    assert_eq!(found("clients/typescript/src/a.ts", &"\n".repeat(LINES_MAX + 1)), 1);
    assert_eq!(found("runtime/js/a.js", &format!("{long}\u{e9}")), 1);
    assert_eq!(kind("clients/python/README.md"), None);
}
