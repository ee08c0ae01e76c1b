//! Whose the files are that root makes: those of who owns the directory, so that a store which root
//! looked after opens for its owner. Refuses to be about permissions: modes are given where files
//! are made.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

/// Gives a file or directory that root has just made at `path` to the owner of the directory it
/// lies in. What cannot be given, as on a filesystem without owners, stays root's.
pub(super) fn as_its_directory(made: &File, path: &Path) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let (Ok(file), Ok(dir)) = (made.metadata(), fs::metadata(parent)) else { return };
    if file.uid() == 0 && dir.uid() != 0 {
        let _ = fchown(made, Some(dir.uid()), Some(dir.gid()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintain::CopyOptions;
    use crate::options::SyncPolicy;
    use crate::testing::{frame, open};

    fn owners(dir: &Path, found: &mut Vec<(std::path::PathBuf, u32)>) {
        found.push((dir.to_owned(), fs::metadata(dir).unwrap().uid()));
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => owners(&path, found),
                false => found.push((path.clone(), fs::metadata(&path).unwrap().uid())),
            }
        }
    }

    #[test]
    fn what_root_makes_in_a_store_is_its_owners() {
        let dir = tempfile::tempdir().unwrap();
        let mut owner = fs::metadata(dir.path()).unwrap().uid();
        if owner == 0 {
            owner = 10_001;
            std::os::unix::fs::chown(dir.path(), Some(owner), Some(owner)).unwrap();
        }
        let place = dir.path().join("store");
        let store = open(&place, SyncPolicy::Sync);
        for n in 0..1200 {
            store.append(frame("a", n).into()).unwrap();
        }
        let copy = dir.path().join("copy");
        store
            .backup(&copy, CopyOptions::copies(), &mut |_| std::ops::ControlFlow::Continue(()))
            .unwrap();
        store.close().unwrap();
        drop(store);
        open(&place, SyncPolicy::Sync);
        let mut found = Vec::new();
        owners(dir.path(), &mut found);
        let others: Vec<_> = found.iter().filter(|(_, uid)| *uid != owner).collect();
        assert!(found.len() > 12 && others.is_empty(), "{others:?} of {}", found.len());
    }
}
