//! A path that names a modules directory, or a single file in one.

use std::path::{Path, PathBuf};

use xs_runtime::Kind;

/// The directory of code shared by modules.
const LIB: &str = "lib";

/// What a path refers to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::subcommand) struct Within {
    /// The modules directory.
    pub(in crate::subcommand) dir: PathBuf,
    /// The file, relative to the directory, if the path names one.
    pub(in crate::subcommand) file: Option<String>,
}

/// Resolves a path as typed.
pub(in crate::subcommand) fn within(path: &Path) -> Within {
    let whole = Within { dir: path.to_owned(), file: None };
    if !path.is_file() {
        return whole;
    }
    // A relative path may start inside the modules directory.
    let absolute = std::path::absolute(path).unwrap_or_default();
    placed(path).or_else(|| placed(&absolute)).unwrap_or_else(|| beside(&absolute).unwrap_or(whole))
}

/// The file below its kind's directory.
fn placed(path: &Path) -> Option<Within> {
    let above = |is_it: &dyn Fn(&str) -> bool| {
        let mut above = path.ancestors().skip(1);
        above.find(|dir| dir.file_name().and_then(|name| name.to_str()).is_some_and(is_it))
    };
    let is_kind = |name: &str| Kind::ALL.iter().any(|kind| kind.dir() == name);
    let dir = above(&is_kind).or_else(|| above(&|name| name == LIB))?.parent()?;
    let file = Some(path.strip_prefix(dir).ok()?.to_str()?.to_owned());
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    Some(Within { dir: dir.to_owned(), file })
}

/// The file in its own directory.
fn beside(path: &Path) -> Option<Within> {
    let file = Some(path.file_name()?.to_str()?.to_owned());
    Some(Within { dir: path.parent()?.to_owned(), file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lies_below_the_directory_of_its_kind() {
        for (path, dir, file) in [
            ("m/handlers/a.ts", "m", "handlers/a.ts"),
            ("handlers/disk/a.test.ts", ".", "handlers/disk/a.test.ts"),
            ("/x/handlers/m/commands/a.ts", "/x/handlers/m", "commands/a.ts"),
            ("m/lib/a.test.ts", "m", "lib/a.test.ts"),
            ("m/handlers/lib/a.ts", "m", "handlers/lib/a.ts"),
        ] {
            let want = Within { dir: PathBuf::from(dir), file: Some(file.to_owned()) };
            assert_eq!(placed(Path::new(path)), Some(want), "{path}");
        }
        assert_eq!(placed(Path::new("m/a.test.ts")), None);
    }
}
