//! System calls that fail in a real process: strace makes the k-th fdatasync, fallocate or rename
//! of a child return an error. The child acknowledges nothing after a failure that leaves anything
//! in doubt, and the next process finds everything it acknowledged.

use std::fs;
use std::path::Path;
use std::process::Command;

use xs_engine::{
    AppendError, Health, MediaChoice, Meta, NewFrame, Store, StoreOptions, SyncPolicy,
};

use crate::support::{
    everything, frames, is_long, lacks, numbered, open, options, say, scratch, skip, tell,
    with_body,
};

const DIR: &str = "XS_IT_SYSCALLS_DIR";
const MEDIA: &str = "XS_IT_SYSCALLS_MEDIA";
/// Frames of a child: enough for several segments.
const FRAMES: u64 = 36;

fn store_options(media: &str) -> StoreOptions {
    let media = if media == "mapped" { MediaChoice::Mapped } else { MediaChoice::Positioned };
    StoreOptions { sync: SyncPolicy::Sync, ..options(media) }
}

fn frame(n: u64) -> NewFrame {
    let meta = Meta::parse(format!("[{n},\"{}\"]", "x".repeat(6000))).unwrap();
    with_body(NewFrame { meta, ..numbered("t", n) }, &vec![n as u8; 900])
}

/// Not a test: the traced process. Reports the result of each append.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    // The harness has already begun a line.
    say("");
    let options = store_options(&std::env::var(MEDIA).unwrap());
    let Ok(store) = Store::open(Path::new(&dir), options) else { return say("not opened") };
    let mut n = 0;
    for _ in 0..FRAMES {
        match store.append(frame(n).into()) {
            Ok(_) => {
                say(&format!("acknowledged {n}"));
                n += 1;
            }
            Err(AppendError::StorageFull(_)) => say("full"),
            Err(AppendError::Indeterminate(_)) => say("indeterminate"),
            Err(AppendError::Poisoned(_)) => say("poisoned"),
            Err(other) => say(&format!("unexpected {other}")),
        }
    }
    let closed = store.close();
    say(if closed.is_ok() { "closed" } else { "not closed" });
}

/// What a child reported, and whether one of its calls was made to fail.
fn trace(dir: &Path, media: &str, calls: &str, fault: &str) -> (Vec<String>, bool) {
    let log = dir.join("trace");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-e", "signal=none", "-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:{fault}"), "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "syscalls::child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir.join("store"))
        .env(MEDIA, media)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    let hit = fs::read_to_string(&log).unwrap().contains("INJECTED");
    (told.lines().map(str::to_owned).collect(), hit)
}

/// Runs one child. Returns whether one of its calls failed.
fn run(media: &str, calls: &str, fault: &str) -> bool {
    let dir = scratch();
    let (told, hit) = trace(dir.path(), media, calls, fault);
    let what = format!("{media} {calls}:{fault}: {told:?}");
    let mut acknowledged = 0;
    let mut doubt = false;
    for line in &told {
        match line.split_once(' ') {
            Some(("acknowledged", n)) => {
                assert!(!doubt, "{what}: acknowledged after a failure");
                assert_eq!(n.parse::<u64>().unwrap(), acknowledged, "{what}");
                acknowledged += 1;
            }
            Some(("unexpected", _)) => panic!("{what}"),
            _ => doubt |= line == "indeterminate" || line == "poisoned",
        }
    }
    if !told.iter().any(|line| line == "closed" || line == "not closed" || line == "not opened") {
        panic!("{what}: it did not come to its end");
    }
    let store = open(&dir.path().join("store"), &store_options(media));
    assert_eq!(store.info().health, Health::Writable, "{what}");
    let stored = frames(store.read(&everything())).len() as u64;
    let tried = acknowledged + u64::from(told.iter().any(|line| line == "indeterminate"));
    assert!((acknowledged..=tried).contains(&stored), "{what}: {stored} are there");
    for n in stored..stored + 5 {
        assert_eq!(store.append(frame(n).into()).unwrap().frames[0].offset, Some(n), "{what}");
    }
    hit
}

#[test]
fn a_directory_that_holds_nothing_has_its_name_made_durable() {
    if let Some(reason) = lacks(&["strace"], false) {
        return skip("names of directories", &reason);
    }
    // `true`: as if its creator was killed before it synced the parent directory.
    for made in [false, true] {
        let dir = scratch();
        if made {
            fs::create_dir(dir.path().join("store")).unwrap();
        }
        let log = dir.path().join("trace");
        let traced = Command::new("strace")
            .args(["-f", "-qq", "-y", "-e", "signal=none", "-e", "trace=fsync", "-o"])
            .arg(&log)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "syscalls::child", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path().join("store"))
            .env(MEDIA, "mapped")
            .output()
            .unwrap();
        assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));
        let synced = format!("<{}>)", dir.path().canonicalize().unwrap().display());
        assert!(fs::read_to_string(&log).unwrap().contains(&synced), "made before: {made}");
    }
}

#[test]
fn where_nothing_can_be_allocated_ahead_all_that_is_there_stays() {
    if let Some(reason) = lacks(&["strace"], false) {
        return skip("allocating ahead", &reason);
    }
    for media in ["mapped", "positioned"] {
        let dir = scratch();
        let lives = 3;
        for _ in 0..lives {
            let (told, hit) = trace(dir.path(), media, "fallocate", "error=EOPNOTSUPP");
            let acknowledged = told.iter().filter(|line| line.starts_with("acknowledged")).count();
            assert!(hit && acknowledged as u64 == FRAMES, "{media}: {told:?}");
            assert!(told.iter().any(|line| line == "closed"), "{media}: {told:?}");
        }
        let store = open(&dir.path().join("store"), &store_options(media));
        assert_eq!(store.info().health, Health::Writable, "{media}");
        let stored = frames(store.read(&everything()));
        assert_eq!(stored.len() as u64, lives * FRAMES, "{media}");
        for (n, stored) in (0..FRAMES).cycle().zip(&stored) {
            assert_eq!(stored.meta(), frame(n).meta.as_bytes(), "{media} {n}");
            let body = store.body(stored, 1000).unwrap().unwrap();
            assert_eq!(body, vec![n as u8; 900], "{media} {n}");
        }
    }
}

#[test]
fn a_system_call_fails_at_each_place() {
    if let Some(reason) = lacks(&["strace"], false) {
        return skip("system calls", &reason);
    }
    let renames = "rename,renameat,renameat2";
    let mut runs = 0;
    for media in ["mapped", "positioned"] {
        for (calls, error) in [("fdatasync", "EIO"), ("fallocate", "ENOSPC"), (renames, "EIO")] {
            for forever in [false, true] {
                let step = if is_long() || calls != "fdatasync" { 1 } else { 4 };
                let mut k = 1;
                while run(
                    media,
                    calls,
                    &format!("error={error}:when={k}{}", if forever { "+" } else { "" }),
                ) {
                    (k, runs) = (k + step, runs + 1);
                }
                assert!(k > 3, "{media} {calls}: {k}");
            }
        }
    }
    // An interrupted call is not a failure: it is retried.
    for calls in ["pwrite64", "fdatasync", "fallocate"] {
        let dir = scratch();
        let (told, hit) = trace(dir.path(), "positioned", calls, "error=EINTR:when=1+2");
        let acknowledged = told.iter().filter(|line| line.starts_with("acknowledged")).count();
        assert!(hit && acknowledged as u64 == FRAMES, "{calls}: {told:?}");
        runs += 1;
    }
    tell(&format!("{runs} processes with failing system calls"));
}
