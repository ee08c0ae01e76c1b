//! Limits of the operating system: maps, descriptors, permissions. A store with many files stays
//! below them, and where they are too low the error says so.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xs_engine::limits::MAPS_MAX;
use xs_engine::{
    AppendError, Health, Meta, NewFrame, OpenError, ReadError, Shortage, Store, name_faults,
};

use crate::support::{MEDIA, everything, numbered, open, options, scratch};

const DIR: &str = "XS_IT_LIMITS_DIR";
const WHAT: &str = "XS_IT_LIMITS_WHAT";
const SEGMENTS: usize = 1100;
/// The user `nobody`, in place of root, to whom permissions do not apply.
const NOBODY: u32 = 65_534;

/// A closed store of many small segments.
fn build(dir: &Path) -> u64 {
    let store = open(dir, &options(MEDIA[0]));
    let filler = "f".repeat(30_000);
    let mut frames = 0;
    while store.info().segments <= SEGMENTS {
        let meta = Meta::parse(format!("\"{frames} {filler}\"")).unwrap();
        let name = ["a", "b"][frames as usize % 2];
        store.append(NewFrame { meta, ..numbered(name, 0) }.into()).unwrap();
        frames += 1;
    }
    store.close().unwrap();
    frames
}

/// Maps of files below a directory, as the kernel lists them.
fn maps_of(dir: &Path) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(&*dir.to_string_lossy())).count()
}

#[test]
fn no_more_than_so_many_maps_are_open() {
    let dir = scratch();
    let frames = build(dir.path());
    let store = open(dir.path(), &options(MEDIA[0]));
    let mut seen = 0;
    for frame in store.read(&everything()).unwrap() {
        frame.unwrap();
        seen += 1;
        if seen % 100 == 0 {
            assert!(maps_of(dir.path()) <= MAPS_MAX);
        }
    }
    assert_eq!(seen, frames);
    let maps = maps_of(dir.path());
    assert!((500..=MAPS_MAX).contains(&maps), "{maps} maps");
    assert!(store.stats().maps_open >= maps as u64);
    // Closed files are reopened.
    assert!(store.get_at(0).unwrap().is_some() && store.get_at(frames - 1).unwrap().is_some());
    store.close().unwrap();
    drop(store);
    run_child("descriptors", dir.path(), None);
}

/// Not a test: a process whose limits are low.
#[test]
fn limits_child() {
    let (Ok(dir), Ok(what)) = (std::env::var(DIR), std::env::var(WHAT)) else { return };
    let dir = Path::new(&dir);
    match what.as_str() {
        "descriptors" => few_descriptors(dir),
        "permissions" => no_permission(dir),
        "fault" => {
            name_faults(77).unwrap();
            let store = Store::open(dir, options(MEDIA[0])).unwrap();
            let mapped = store.read(&everything()).unwrap().count();
            // As if the disk had lost them while the store is open.
            for entry in fs::read_dir(dir.join("log")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|kind| kind == "seg") {
                    fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
                }
            }
            let again = store.read(&everything()).unwrap().count();
            panic!("read {mapped} frames, and {again} that are not there");
        }
        other => panic!("{other}"),
    }
    println!("child is done");
}

fn allow(descriptors: u64) {
    let limit = Rlimit { current: Some(descriptors), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn few_descriptors(dir: &Path) {
    // A map needs no descriptor, so few are enough for many segments.
    allow(48);
    let store = Store::open(dir, options(MEDIA[0])).unwrap();
    let all = store.read(&everything()).unwrap().map(Result::unwrap).count() as u64;
    assert_eq!(all, store.info().head);
    store.append(numbered("after", 1).into()).unwrap();
    // None at all: open files are read; for others there is an error that says so, and a retry may
    // succeed.
    allow(3);
    let errors = store.read(&everything()).unwrap().filter_map(Result::err);
    let told: Vec<_> = errors.collect();
    assert!(told.iter().all(|error| matches!(error, ReadError::Io { .. })), "{told:?}");
    assert!(!told.is_empty(), "not every segment is open");
    let other = Store::open(dir.join("other"), options(MEDIA[0]));
    assert!(matches!(other, Err(OpenError::Io { .. })), "{other:?}");
    // What needs another segment waits for one, and nothing else is affected.
    let large = |n: usize| {
        let meta = Meta::parse(format!("\"{n} {}\"", "f".repeat(30_000))).unwrap();
        NewFrame { meta, ..numbered("large", 0) }.into()
    };
    let stored = (0..).find(|&n| store.append(large(n)).is_err()).unwrap();
    assert!(stored < 20, "nothing needed a descriptor");
    for n in 0..3 {
        assert_eq!(
            store.append(large(n)).unwrap_err(),
            AppendError::StorageFull(Shortage::Descriptors)
        );
    }
    assert_eq!(store.info().health, Health::Writable);
    allow(48);
    for n in 0..20 {
        store.append(large(n)).unwrap();
    }
    let again = store.read(&everything()).unwrap().map(Result::unwrap).count();
    assert_eq!(again, all as usize + 1 + stored + 20);
    store.close().unwrap();
}

#[test]
fn a_store_of_others_is_refused_by_name() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    store.append(numbered("a", 1).into()).unwrap();
    store.close().unwrap();
    for (directory, file) in [(0o555, 0o444), (0o000, 0o600)] {
        fs::set_permissions(dir.path().join("LOCK"), fs::Permissions::from_mode(file)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(directory)).unwrap();
        run_child("permissions", dir.path(), Some(NOBODY));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(dir.path().join("LOCK"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(open(dir.path(), &options(MEDIA[0])).info().head, 1);
}

fn no_permission(dir: &Path) {
    match Store::open(dir, options(MEDIA[0])) {
        Err(OpenError::Io { path, error, .. } | OpenError::Lock { path, error }) => {
            assert!(path.starts_with(dir), "{}", path.display());
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    (0..2_000).for_each(|n| drop(store.append(numbered("a", n).into()).unwrap()));
    store.close().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "limits::limits_child", "--nocapture", "--test-threads=1"]);
    let told = command.env(DIR, dir.path()).env(WHAT, "fault").output().unwrap();
    let errors = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(77), "{errors}");
    let said = errors.lines().find_map(|line| line.strip_prefix("xs: cannot read ")).unwrap();
    let (path, place) = said.split_once(" at byte ").unwrap();
    assert!(Path::new(path).starts_with(dir.path().canonicalize().unwrap()), "{errors}");
    let number: u64 = place.split(':').next().unwrap().parse().unwrap();
    assert!(path.ends_with(".seg") && number < 1 << 20, "{errors}");
}

/// Runs the child of this binary in another process, as another user if possible.
fn run_child(what: &str, dir: &Path, user: Option<u32>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "limits::limits_child", "--nocapture", "--test-threads=1"]);
    command.env(DIR, dir).env(WHAT, what).stdout(Stdio::piped()).stderr(Stdio::piped());
    let is_root = rustix::process::getuid().is_root();
    if let Some(user) = user.filter(|_| is_root) {
        // The other user must be able to run the binary, wherever it was built.
        let copy = std::env::temp_dir().join(format!("xs-it-{}", std::process::id()));
        // Another process makes the copy: a file that this one has open for writing is briefly open
        // in children that other threads start too, and a file that is open for writing cannot be
        // run.
        let made = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status();
        assert!(made.unwrap().success());
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        command = {
            let mut other = Command::new(&copy);
            other.args(command.get_args()).envs([(DIR, dir.as_os_str()), (WHAT, what.as_ref())]);
            other.stdout(Stdio::piped()).stderr(Stdio::piped()).uid(user).current_dir("/");
            other
        };
        let told = command.output();
        fs::remove_file(&copy).unwrap();
        return judge(told.unwrap());
    }
    judge(command.output().unwrap());
}

fn judge(told: std::process::Output) {
    let text = String::from_utf8_lossy(&told.stdout);
    let errors = String::from_utf8_lossy(&told.stderr);
    assert!(text.contains("child is done"), "{text}\n{errors}");
}
