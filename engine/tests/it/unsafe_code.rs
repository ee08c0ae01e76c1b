//! `unsafe` is in one module, and each block says what makes it sound.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A line of code without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

#[test]
fn unsafe_is_in_sys_alone_and_gives_its_reasons() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut blocks = 0;
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let is_sys = path.starts_with(root.join("sys"));
        for (index, line) in lines.iter().enumerate() {
            let mut words = code(line).split(|c: char| !c.is_alphanumeric() && c != '_');
            if !words.any(|word| word == "unsafe") {
                continue;
            }
            let place = format!("{}:{}", path.display(), index + 1);
            assert!(is_sys, "{place}: unsafe outside of sys");
            // The comment right above, of one or more lines.
            let mut above = lines[..index].iter().rev();
            let said = above.by_ref().take_while(|line| line.trim_start().starts_with("//"));
            let said: Vec<_> = said.collect();
            assert!(said.iter().any(|line| line.contains("SAFETY: ")), "{place}: why is it sound?");
            blocks += 1;
        }
    }
    assert!(blocks >= 2, "the search finds what is known to be there: {blocks}");
}
