//! The power is cut under a store on a real ext4: the filesystem is shut down in the middle of work
//! and forgets everything that was not synced. Under `sync` nothing acknowledged is lost; under
//! `none` something must be, or the cut would prove nothing.
//!
//! Every file is zeroed before it is written to. A write into space that is only allocated is not
//! complete before its extent is marked as written. When ext4 is shut down between the two, it
//! reports success for an `fdatasync` in progress: a plain program that calls `pwrite` and
//! `fdatasync` in turn gets a false success in one of twenty such cuts, and in none over zeros.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use xs_engine::{Health, Store, StoreOptions, SyncPolicy};

use crate::kill;
use crate::support::{
    Mounted, everything, ext4_image, frames, is_long, lacks, options, scratch, skip, tell,
};

/// EXT4_IOC_SHUTDOWN without a flush of the journal, for each path on stdin. Our own code could not
/// call it without `unsafe`.
const SHUTDOWN: &str = "
import fcntl, os, struct, sys
for line in sys.stdin:
    fd = os.open(line.strip(), os.O_RDONLY)
    fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))
    os.close(fd)
    print('done', flush=True)
";

/// The process that cuts the power.
struct Switch {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Switch {
    fn new() -> Self {
        let command = Command::new("python3")
            .args(["-c", SHUTDOWN])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = command.unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, orders, answers }
    }

    fn cut(&mut self, dir: &Path) {
        writeln!(self.orders, "{}", dir.display()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cuts the power `rounds` times. Returns how often something acknowledged was lost.
fn cut(sync: SyncPolicy, rounds: usize) -> usize {
    let dir = scratch();
    let image = ext4_image(dir.path(), 48 << 20);
    let mut switch = Switch::new();
    let (mut lost, mut told) = (0, BTreeMap::new());
    for round in 0..rounds {
        // A new store now and then: the first operations of a store matter too.
        let name = format!("store {}", round / 10);
        if round % 10 == 0 {
            told = BTreeMap::new();
        }
        {
            let disk = Mounted::ext4(&image);
            let store = disk.path().join(&name);
            told.extend(kill::run_and_kill(&store, (sync, true), 2 + round * 7 % 60, || {
                switch.cut(disk.path());
            }));
        }
        let disk = Mounted::ext4(&image);
        let path = disk.path().join(&name);
        // Zeroed here too: the child continues in the segment that recovery writes.
        let media = options(crate::support::MEDIA[round % 2]);
        let options = StoreOptions { zero_ahead: true, ..media };
        let store = Store::open(&path, options).unwrap();
        assert_eq!(store.info().health, Health::Writable, "{sync}, round {round}");
        let stored = frames(store.read(&everything()));
        let last = told.last_key_value().map_or(0, |(offset, _)| offset + 1);
        if sync == SyncPolicy::Sync {
            kill::check(&stored, &told);
        }
        lost += usize::from((stored.len() as u64) < last);
        told.retain(|offset, _| *offset < stored.len() as u64);
        store.close().unwrap();
        drop(store);
        if round % 10 == 9 {
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
    lost
}

#[test]
fn a_power_cut_on_ext4_takes_nothing_acknowledged() {
    if let Some(reason) = lacks(&["python3", "mkfs.ext4", "mount", "umount"], true) {
        return skip("power", &reason);
    }
    let rounds = if is_long() { 1000 } else { 200 };
    assert_eq!(cut(SyncPolicy::Sync, rounds), 0);
    let control = rounds / 10;
    let lost = cut(SyncPolicy::None, control);
    tell(&format!("{rounds} power cuts on ext4; without syncs {lost} of {control} took something"));
    assert!(lost * 2 > control, "only {lost} of {control} cuts took anything: they prove nothing");
}
