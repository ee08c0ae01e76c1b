//! Opens files inside one directory and never outside it, wherever links lead and even if they
//! change during the lookup. Does not decide which files may be opened at all.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat, openat2, readlinkat};
use rustix::io::Errno;

/// Maximum number of retries of an open.
const AGAIN_MAX: usize = 64;

/// A directory that is held open.
pub(super) struct Inside(OwnedFd);

impl Inside {
    /// Holds the directory at a path.
    pub(super) fn of(dir: &Path) -> Result<Self, Errno> {
        open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Opens a file by its path below the directory. [`Errno::XDEV`] or [`Errno::LOOP`]: the path
    /// leads out of it.
    pub(super) fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let open = || openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), inside);
        let mut opened = open();
        // A rename anywhere during the lookup of a path with ".." makes the kernel return EAGAIN.
        for _ in 0..AGAIN_MAX {
            if opened.as_ref().err() != Some(&Errno::AGAIN) {
                break;
            }
            opened = open();
        }
        match opened {
            // A seccomp filter that cannot inspect the struct argument, like that of systemd's
            // RestrictSUIDSGID=, reports the system call as missing.
            Err(Errno::NOSYS) => self.open_and_look(path, flags),
            opened => opened,
        }
    }

    /// Opens a file in two steps, without openat2: first holds it without opening it, then opens it
    /// once its location is known to be inside.
    fn open_and_look(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let held = openat(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        if !place_of(&held)?.starts_with(place_of(&self.0)?) {
            return Err(Errno::XDEV);
        }
        openat(CWD, link_of(&held), flags | OFlags::CLOEXEC, Mode::empty())
    }
}

/// The link in /proc to a held file.
fn link_of(held: impl AsFd) -> String {
    format!("/proc/self/fd/{}", held.as_fd().as_raw_fd())
}

/// The location of a held file.
fn place_of(held: impl AsFd) -> Result<PathBuf, Errno> {
    use std::os::unix::ffi::OsStringExt as _;
    let place = readlinkat(CWD, link_of(held), Vec::new())?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(place.into_bytes())))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn both_ways_open_what_is_inside_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("modules");
        fs::create_dir_all(dir.join("lib")).unwrap();
        fs::create_dir(place.path().join("modules.other")).unwrap();
        for name in ["modules/lib/a.js", "modules.other/a.js", "secret"] {
            fs::write(place.path().join(name), name).unwrap();
        }
        symlink("lib/a.js", dir.join("near.js")).unwrap();
        symlink("../secret", dir.join("far.js")).unwrap();
        symlink("../modules.other", dir.join("other")).unwrap();
        symlink(place.path().join("secret"), dir.join("absolute.js")).unwrap();
        symlink("round.js", dir.join("round.js")).unwrap();
        let inside = Inside::of(&dir).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        for is_refused in [false, true] {
            let way = |path: &str| match is_refused {
                true => inside.open_and_look(path, flags),
                false => inside.open(path, flags),
            };
            for path in ["lib/a.js", "near.js", "lib/../near.js"] {
                let mut text = String::new();
                File::from(way(path).unwrap()).read_to_string(&mut text).unwrap();
                assert_eq!(text, "modules/lib/a.js", "{path}");
            }
            for path in ["far.js", "absolute.js", "other/a.js", "../secret", "round.js"] {
                let refused = way(path).unwrap_err();
                assert!([Errno::XDEV, Errno::LOOP].contains(&refused), "{path}: {refused}");
            }
            assert_eq!(way("none.js").unwrap_err(), Errno::NOENT);
        }
    }
}
