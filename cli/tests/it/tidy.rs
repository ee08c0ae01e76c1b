//! Rules about the tree that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;

#[test]
fn sources_keep_the_rules_of_the_house() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut broken = Vec::new();
    for file in sources(root) {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(root).unwrap().display().to_string();
        if text.lines().count() > LINES_MAX {
            broken.push(format!("{name}: more than {LINES_MAX} lines"));
        }
        let opens = text.lines().find(|line| !line.starts_with("#!") && !line.is_empty());
        let generated = name.contains("vectors") || name.contains("fixtures");
        let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
        if name.ends_with(".rs")
            && !is_test
            && !generated
            && !opens.unwrap_or("").starts_with("//!")
        {
            broken.push(format!("{name}: does not open with //!"));
        }
        for (index, line) in text.lines().enumerate() {
            let is_long = line.chars().count() > COLUMNS_MAX && !is_text(line);
            // Tests hold modules in raw strings, where a line break would move what they look at.
            if name.ends_with(".rs") && is_long && !is_test {
                broken.push(format!("{name}:{}: over {COLUMNS_MAX} columns", index + 1));
            }
            if name.ends_with(".rs") && !line.is_ascii() {
                broken.push(format!("{name}:{}: not ASCII", index + 1));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A line that is one long literal cannot be broken by rustfmt without changing how it reads.
fn is_text(line: &str) -> bool {
    line.contains('"')
}

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = ["engine", "protocol", "runtime", "cli", "bench", "fuzz"]
        .map(|name| root.join(name))
        .to_vec();
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !["target", "corpus", "artifacts", "coverage"].contains(&&*name) {
                dirs.push(path);
            } else if name.ends_with(".rs") || name.ends_with(".ts") || name.ends_with(".js") {
                found.push(path);
            }
        }
    }
    found
}
