//! The way to a watched path: the directories and links that lead to it. When one of them is
//! replaced, the path leads elsewhere although its old target is unchanged. This module only
//! inspects the file system; it does not decide what may be read.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Links followed on the way to one path; the kernel follows no more.
const LINKS_MAX: usize = 40;

/// The names that lead to a path, each in the directory in which it really is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// Directories, links, and finally the file or directory itself. If the way breaks off, `last`
    /// is the missing name.
    names: BTreeSet<PathBuf>,
    last: PathBuf,
}

/// Distinguishes a file from another one that takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

impl Identity {
    /// The identity of the file or directory that is at a path now.
    pub(super) fn of(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().map(|found| Self(found.dev(), found.ino()))
    }
}

impl Way {
    /// The way to an absolute path, as it is now.
    pub(super) fn to(path: &Path) -> Self {
        let mut way = Self { last: PathBuf::from("/"), ..Self::default() };
        let mut dir = PathBuf::from("/");
        let mut left = parts(path);
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                dir.pop();
                way.last.clone_from(&dir);
                continue;
            }
            let entry = dir.join(&name);
            way.last.clone_from(&entry);
            way.names.insert(entry.clone());
            let Ok(found) = fs::symlink_metadata(&entry) else { break };
            if !found.is_symlink() {
                dir = entry;
                continue;
            }
            links += 1;
            let Ok(target) = fs::read_link(&entry) else { break };
            if links > LINKS_MAX {
                break;
            }
            if target.is_absolute() {
                dir = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                left.push_front(part);
            }
            way.last.clone_from(&dir);
        }
        way
    }

    /// Whether a path is one of its names.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.names.contains(path)
    }

    /// The directories to watch for changes of the way.
    pub(super) fn dirs(&self) -> BTreeSet<&Path> {
        self.names.iter().filter_map(|name| name.parent()).collect()
    }

    /// The directory to watch for the appearance or removal of its end.
    pub(super) fn around(&self) -> Option<&Path> {
        self.last.parent()
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let named = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_name_on_the_way_is_known() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let at = |path: &str| root.join(path);
        fs::create_dir_all(at("conf/v1")).unwrap();
        fs::write(at("conf/v1/key"), "").unwrap();
        symlink("v1", at("conf/data")).unwrap();
        symlink("data/key", at("conf/key")).unwrap();
        symlink(at("conf/../conf"), at("link")).unwrap();
        let way = Way::to(&at("link/key"));
        for name in ["link", "conf", "conf/key", "conf/data", "conf/v1", "conf/v1/key"] {
            assert!(way.has(&at(name)), "{name} {way:?}");
        }
        assert!(way.has(&root) && !way.has(Path::new("/")));
        assert_eq!(way.around(), Some(at("conf/v1").as_path()));
        assert!(
            way.dirs().contains(at("conf").as_path()) && !way.dirs().contains(at("v1").as_path())
        );
        // The way breaks off at a missing name.
        fs::remove_file(at("conf/data")).unwrap();
        let way = Way::to(&at("link/key"));
        assert_eq!(way.around(), Some(at("conf").as_path()));
        assert!(way.has(&at("conf/data")) && !way.has(&at("conf/v1")));
        // A link to itself leads nowhere.
        symlink("loop", at("loop")).unwrap();
        assert!(Way::to(&at("loop/x")).has(&at("loop")));
        assert_eq!(Way::to(Path::new("/")).around(), None);
    }
}
