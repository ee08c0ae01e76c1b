//! Which files of a directory define which processors. Judges by name; of the files in wrong places
//! it also reads the beginning, to find those that look like modules. Loads and starts nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::lifecycle::Key;
use crate::name::{Kind, NameError, ProcessorName};

/// Maximum depth searched below a kind's directory.
const DEPTH_MAX: usize = 8;
/// Maximum number of files and directories visited in one scan.
const ENTRIES_MAX: usize = 20_000;
/// Maximum bytes of a file that are read to judge whether it looks like a module.
const LOOK_BYTES_MAX: u64 = 64 * 1024;
/// The file that configures modules.
pub const CONFIG_FILE: &str = "xs.toml";

/// The result of scanning a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The files that define each processor, relative to the directory. More than one is an error,
    /// which is reported to the author.
    pub modules: BTreeMap<Key, Vec<String>>,
    /// Files whose names are not valid processor names.
    pub misnamed: Vec<(String, NameError)>,
    /// Files that look like modules but lie in the wrong place, and how to fix each.
    pub strays: Vec<(String, String)>,
}

impl Scan {
    /// The files that claim the name of `key`, of any kind. A single file means no conflict.
    #[must_use]
    pub fn claims(&self, key: &Key) -> Vec<&str> {
        let same_name = Kind::ALL.map(|kind| Key { kind, name: key.name.clone() });
        let files = same_name.iter().filter_map(|key| self.modules.get(key));
        files.flatten().map(String::as_str).collect()
    }
}

/// Scans `dir`. A missing `generators`, `handlers` or `commands` counts as empty.
///
/// # Errors
/// Any other read error: a directory that cannot be read must not pass for an empty one, or every
/// processor would be stopped.
pub fn scan(dir: &Path) -> io::Result<Scan> {
    fs::read_dir(dir)?;
    let mut scan = Scan::default();
    let mut seen = 0;
    for kind in Kind::ALL {
        for path in walk(dir, Path::new(kind.dir()), hidden, &mut seen)? {
            let below = path.strip_prefix(kind.dir()).unwrap_or(&path);
            if let Some(end) = below.extension().and_then(foreign_end) {
                let text = format!("a module must end in .ts or .js, not in .{end}");
                scan.strays.push((path.to_string_lossy().into_owned(), text));
            }
            let Some(name) = below.to_str().and_then(module_name) else { continue };
            let file = path.to_string_lossy().into_owned();
            match ProcessorName::parse(&name) {
                Ok(name) => scan.modules.entry(Key { kind, name }).or_default().push(file),
                Err(error) => scan.misnamed.push((file, error)),
            }
        }
    }
    scan.modules.values_mut().for_each(|files| files.sort());
    scan.strays.extend(outside(dir)?);
    Ok(scan)
}

/// The extension of a source file that is not accepted as a module.
fn foreign_end(end: &OsStr) -> Option<&str> {
    let ends = ["mjs", "cjs", "jsx", "mts", "cts", "tsx"];
    end.to_str().filter(|end| ends.contains(end))
}

/// Files that define a processor outside the directories whose modules run: in `dir` itself, or in
/// a directory named like a kind in the singular.
fn outside(dir: &Path) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for below in ["", "generator", "handler", "command"] {
        let Ok(entries) = fs::read_dir(dir.join(below)) else { continue };
        for entry in entries.take(ENTRIES_MAX) {
            let path = Path::new(below).join(entry?.file_name());
            let name = path.to_str().filter(|_| dir.join(&path).is_file());
            let Some(name) = name.filter(|name| module_name(name).is_some()) else { continue };
            if looks_like_module(&dir.join(&path)) {
                let text = match below {
                    "" => "modules must be in generators/, handlers/ or commands/".to_owned(),
                    kind => format!("the directory must be named {kind}s/"),
                };
                found.push((name.to_owned(), text));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file has a default export and imports from `xs`.
fn looks_like_module(path: &Path) -> bool {
    let mut text = String::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(LOOK_BYTES_MAX).read_to_string(&mut text));
    read.is_ok()
        && text.contains("export default")
        && ["from \"xs\"", "from 'xs'"].iter().any(|from| text.contains(from))
}

/// The JavaScript and TypeScript files below a directory that are not hidden, relative to it and
/// sorted.
///
/// # Errors
/// The errors of [`scan`].
pub fn sources(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?;
    let files = walk(dir, Path::new(""), hidden, &mut 0)?.into_iter();
    let mut files: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|end| end == "ts" || end == "js"))
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    files.sort();
    Ok(files)
}

/// A fingerprint of everything that can change a module: equal fingerprints mean that no file was
/// saved in between.
///
/// # Errors
/// The errors of [`scan`].
pub fn fingerprint(dir: &Path) -> io::Result<Vec<(PathBuf, u64, Option<SystemTime>)>> {
    let mut prints = Vec::new();
    let mut seen = 0;
    for path in walk(dir, Path::new(""), unwatched, &mut seen)? {
        let source = path
            .extension()
            .is_some_and(|end| ["js", "ts", "json", "toml"].iter().any(|known| end == *known));
        if source {
            // A file removed meanwhile counts as a change, since it is missing from the list.
            if let Ok(meta) = fs::metadata(dir.join(&path)) {
                prints.push((path, meta.len(), meta.modified().ok()));
            }
        }
    }
    prints.sort();
    Ok(prints)
}

/// The processor's name for a path below its kind's directory; `None` for ignored files.
#[must_use]
pub fn module_name(path: &str) -> Option<String> {
    let stem = path.strip_suffix(".js").or_else(|| path.strip_suffix(".ts"))?;
    let ignored = stem.ends_with(".test") || stem.ends_with(".d") || stem.split('/').any(hidden);
    (!ignored).then(|| stem.replace('/', "."))
}

/// Whether the search for modules skips a file or directory of this name.
#[must_use]
pub fn hidden(name: &str) -> bool {
    name.starts_with('_') || unwatched(name)
}

/// Whether a file or directory of this name is never looked at. Excludes less than [`hidden`]: a
/// module may import a file whose `_` keeps it from being a module.
#[must_use]
pub fn unwatched(name: &str) -> bool {
    name.is_empty() || name.starts_with('.') || name.ends_with('~')
}

/// The files below `dir/start`, relative to `dir`, except those whose name, or a parent
/// directory's, satisfies `passed_over`. Symbolic links to directories are not followed: they could
/// lead anywhere, even back here.
fn walk(
    dir: &Path,
    start: &Path,
    passed_over: fn(&str) -> bool,
    seen: &mut usize,
) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![(start.to_owned(), 0)];
    while let Some((below, depth)) = open.pop() {
        let entries = match fs::read_dir(dir.join(&below)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound && below != Path::new("") => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            *seen += 1;
            if *seen > ENTRIES_MAX {
                let message =
                    format!("more than {ENTRIES_MAX} files; modules need a directory of their own");
                return Err(io::Error::other(message));
            }
            if entry.file_name().to_str().is_none_or(passed_over) {
                continue;
            }
            let path = below.join(entry.file_name());
            if !entry.file_type()?.is_dir() {
                files.push(path);
            } else if depth < DEPTH_MAX {
                open.push((path, depth + 1));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[&str]) {
        for file in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "export default 1").unwrap();
        }
    }

    fn found(dir: &Path) -> Vec<(String, Vec<String>)> {
        let scan = scan(dir).unwrap();
        scan.modules.into_iter().map(|(key, files)| (key.to_string(), files)).collect()
    }

    #[test]
    fn paths_are_names() {
        let cases = [
            ("a.js", Some("a")),
            ("disk/usage.ts", Some("disk.usage")),
            ("disk.usage.ts", Some("disk.usage")),
            ("a/b/c-d_e.js", Some("a.b.c-d_e")),
            ("test.ts", Some("test")),
            ("a.test.ts", None),
            ("a.test.js", None),
            ("a.d.ts", None),
            ("a.mjs", None),
            ("a.json", None),
            ("README.md", None),
            (".a.js", None),
            ("_a.js", None),
            ("_a/b.js", None),
            ("a~/b.js", None),
            ("a.js~", None),
            (".js", None),
        ];
        for (path, name) in cases {
            assert_eq!(module_name(path).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn a_directory_is_scanned() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                "generators/disk/usage.ts",
                "handlers/a.js",
                "handlers/.hidden.js",
                "handlers/a.js~",
                "handlers/_private/b.js",
                "commands/report.ts",
                "commands/report.test.ts",
                "lib/shared.js",
                "commands/9.js",
                "commands/xs.js",
                "other/c.js",
                "a.js",
            ],
        );
        let files = |file: &str| vec![file.to_owned()];
        assert_eq!(
            found(dir.path()),
            [
                ("generator disk.usage".to_owned(), files("generators/disk/usage.ts")),
                ("handler a".to_owned(), files("handlers/a.js")),
                ("command report".to_owned(), files("commands/report.ts")),
            ]
        );
        let mut misnamed: Vec<_> =
            scan(dir.path()).unwrap().misnamed.into_iter().map(|(file, _)| file).collect();
        misnamed.sort();
        assert_eq!(misnamed, ["commands/9.js", "commands/xs.js"]);
    }

    #[test]
    fn a_module_that_lies_beside_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["a.ts", "handler/b.ts", "handlers/c.mjs", "handlers/d.json"]);
        let lost = "import { handler } from \"xs\";\nexport default handler({});";
        for file in ["lost.ts", "handler/lost.js", "lib/shared.ts", "_lost.ts", "lost.test.ts"] {
            write(dir.path(), &[file]);
            fs::write(dir.path().join(file), lost).unwrap();
        }
        let strays = scan(dir.path()).unwrap().strays;
        let files: Vec<_> = strays.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(files, ["handlers/c.mjs", "handler/lost.js", "lost.ts"]);
        assert!(strays[1].1.contains("handlers/"), "{}", strays[1].1);
    }

    #[test]
    fn two_files_of_one_name_are_both_claims() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["handlers/a.js", "handlers/a.ts", "commands/a.js", "commands/b.js"]);
        let scan = scan(dir.path()).unwrap();
        let key = |kind, name| Key { kind, name: ProcessorName::parse(name).unwrap() };
        let claims = ["handlers/a.js", "handlers/a.ts", "commands/a.js"];
        assert_eq!(scan.claims(&key(Kind::Handler, "a")), claims);
        assert_eq!(scan.claims(&key(Kind::Command, "a")), claims);
        assert_eq!(scan.claims(&key(Kind::Command, "b")), ["commands/b.js"]);
    }

    #[test]
    fn an_unreadable_directory_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(found(dir.path()), []);
        assert!(scan(&dir.path().join("gone")).is_err());
        fs::write(dir.path().join("handlers"), "a file").unwrap();
        assert!(scan(dir.path()).is_err());
    }

    #[test]
    fn a_fingerprint_changes_with_sources_and_config_alone() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["handlers/a.js", "lib/b.js"]);
        let before = fingerprint(dir.path()).unwrap();
        write(dir.path(), &[".xs/xs.d.ts", "data/out.log"]);
        assert_eq!(fingerprint(dir.path()).unwrap(), before);
        fs::write(dir.path().join("lib/b.js"), "longer than it was before").unwrap();
        let edited = fingerprint(dir.path()).unwrap();
        assert_ne!(edited, before);
        write(dir.path(), &["xs.toml"]);
        assert_ne!(fingerprint(dir.path()).unwrap(), edited);
    }
}
