//! Ownership of the files that root makes. They are given to the owner of their directory, so that
//! a store in which root has worked opens for that owner. The owner may be any user, and may change
//! the directory while root works in it. So links are never followed, and only files made here are
//! given away. Permissions are set where files are made, not here.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

use rustix::fs::{Dir, OFlags};

/// Options to open a file for reading and writing. Files are private to their owner, as they hold
/// more than each reader of a topic may see.
pub(super) fn options() -> OpenOptions {
    let mut options = File::options();
    let no_link = OFlags::NOFOLLOW.bits().cast_signed();
    options.read(true).write(true).mode(0o600).custom_flags(no_link);
    options
}

/// Creates a file that must not exist yet.
pub(super) fn make(path: &Path) -> io::Result<File> {
    let made = options().create_new(true).open(path)?;
    give(&made, path);
    Ok(made)
}

/// Opens a file with `options`, or creates it.
pub(super) fn open_or_make(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match make(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        made => made,
    }
}

/// Gives a directory that root made to the owner of its parent, while it is empty: an earlier run
/// may have been killed before it did so, and a directory with content may be someone else's.
pub(super) fn give_empty(path: &Path) {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) else { return };
    let Ok(mut entries) = Dir::read_from(&dir) else { return };
    let is_self = |name: &std::ffi::CStr| matches!(name.to_bytes(), b"." | b"..");
    if entries.all(|entry| entry.is_ok_and(|entry| is_self(entry.file_name()))) {
        give(&File::from(dir), path);
    }
}

/// Whether a directory is a link that root must not follow: one in the directory of another user,
/// who could point it where only root can write. For processes of other users a link grants no
/// extra rights.
pub(crate) fn leads_away(path: &Path) -> bool {
    rustix::process::geteuid().is_root()
        && fs::metadata(parent_of(path)).is_ok_and(|parent| parent.uid() != 0)
        && fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// Gives what root made at `path` to the owner of its directory. Where ownership cannot be changed,
/// as on a filesystem without owners, the file stays root's.
fn give(made: &File, path: &Path) {
    let (Ok(file), Ok(dir)) = (made.metadata(), fs::metadata(parent_of(path))) else { return };
    if file.uid() == 0 && dir.uid() != 0 {
        let _ = fchown(made, Some(dir.uid()), Some(dir.gid()));
    }
}

/// The parent directory of a path.
fn parent_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::OpenError;
    use crate::maintain::CopyOptions;
    use crate::options::{StoreOptions, SyncPolicy};
    use crate::testing::{frame, open};

    /// A closed store, of another user if this is root; and whether it is.
    fn store_of_another(dir: &Path) -> (std::path::PathBuf, bool) {
        let user = dir.join("user");
        fs::create_dir(&user).unwrap();
        let is_root = fs::metadata(&user).unwrap().uid() == 0;
        if is_root {
            std::os::unix::fs::chown(&user, Some(10_001), Some(10_001)).unwrap();
        }
        open(&user, SyncPolicy::None).close().unwrap();
        (user, is_root)
    }

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

    /// The owner of a store's directory must not gain access to root's files through it.
    #[test]
    fn links_are_not_followed_and_nothing_else_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let (user, is_root) = store_of_another(dir.path());
        let secret = dir.path().join("secret");
        let before = fs::metadata(dir.path()).unwrap().uid();
        for name in ["LOCK", "super.a", "super.b"] {
            let path = user.join(name);
            let kept = fs::read(&path);
            for there in [true, false] {
                let _ = fs::remove_file(&secret);
                if there {
                    fs::write(&secret, "secret").unwrap();
                }
                let _ = fs::remove_file(&path);
                std::os::unix::fs::symlink(&secret, &path).unwrap();
                let options = crate::testing::options(SyncPolicy::None);
                // One copy of the manifest is enough to open; writing the other is then refused.
                if let Ok(store) = crate::Store::open(&user, options) {
                    let _ = store.append(frame("a", 0).into());
                    let _ = store.close();
                }
                let found = fs::metadata(&secret).ok().map(|found| found.uid());
                assert_eq!(found, there.then_some(before), "{name}");
                if there {
                    assert_eq!(fs::read(&secret).unwrap(), b"secret", "{name}");
                }
            }
            fs::remove_file(&path).unwrap();
            let _ = kept.map(|kept| fs::write(&path, kept).unwrap());
        }
        // Nor does root do anything through a link that replaces a directory.
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let kept = ["00000000000000000099.0.idx", "spare.tmp"].map(|name| elsewhere.join(name));
        for name in ["log", "blobs"] {
            let path = user.join(name);
            let moved = dir.path().join(name);
            fs::rename(&path, &moved).unwrap();
            kept.iter().for_each(|path| fs::write(path, "kept").unwrap());
            std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
            let opened = crate::Store::open(&user, crate::testing::options(SyncPolicy::None));
            if is_root {
                assert!(matches!(&opened, Err(OpenError::Link { path: at }) if *at == path));
                assert!(kept.iter().all(|path| path.exists()), "{name}");
            }
            drop(opened);
            fs::remove_file(&path).unwrap();
            // A link to the store's own directory works, except for root.
            std::os::unix::fs::symlink(&moved, &path).unwrap();
            let opened = crate::Store::open(&user, crate::testing::options(SyncPolicy::None));
            assert_eq!(opened.is_ok(), !is_root, "{name}");
            drop(opened);
            fs::remove_file(&path).unwrap();
            fs::rename(&moved, &path).unwrap();
        }
        // Nor is an existing directory given away, unless it is empty.
        fs::create_dir(user.join("empty")).unwrap();
        fs::create_dir(user.join("full")).unwrap();
        fs::write(user.join("full/file"), "").unwrap();
        for (name, is_given) in [("empty", true), ("full", false)] {
            give_empty(&user.join(name));
            let owner = fs::metadata(user.join(name)).unwrap().uid();
            assert_eq!(owner == 10_001, is_given && is_root, "{name}");
        }
    }

    /// Replaces a directory by a link when random bytes are requested, which happens while the
    /// store is opened.
    #[derive(Debug)]
    struct Exchange {
        path: std::path::PathBuf,
        moved: std::path::PathBuf,
    }

    impl crate::entropy::Entropy for Exchange {
        fn seed(&self) -> io::Result<[u8; 32]> {
            if !self.moved.exists() {
                fs::rename(&self.path, &self.moved)?;
                std::os::unix::fs::symlink(&self.moved, &self.path)?;
            }
            crate::entropy::SystemEntropy.seed()
        }
    }

    #[test]
    fn a_link_that_comes_while_root_opens_a_store_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (user, is_root) = store_of_another(dir.path());
        for name in ["log", "blobs"] {
            let (path, moved) = (user.join(name), dir.path().join(name));
            let entropy = Arc::new(Exchange { path: path.clone(), moved: moved.clone() });
            let options = crate::testing::options(SyncPolicy::None);
            let opened = crate::Store::open(&user, StoreOptions { entropy, ..options });
            let is_refused = matches!(&opened, Err(OpenError::Link { path: at }) if *at == path);
            assert_eq!(is_refused, is_root, "{opened:?}");
            drop(opened);
            fs::remove_file(&path).unwrap();
            fs::rename(&moved, &path).unwrap();
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
