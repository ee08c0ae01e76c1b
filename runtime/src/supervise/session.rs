//! Ends what a Host leaves behind. A program that a module runs dies with the Host, but what that
//! program has started does not. All of it is in the Host's session, unless it has left it.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd as _;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getsid, pidfd_open, pidfd_send_signal, waitid,
};

/// How often the session is looked through for processes that were started meanwhile.
const ROUNDS_MAX: usize = 100;

/// Waits for the end of a Host and kills the rest of its session. The Host stays a zombie: until it
/// is waited for, no other session can get its id.
pub(super) fn end_with(host: Pid) {
    let ended = loop {
        match waitid(WaitId::Pid(host), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended,
        }
    };
    if ended.is_err() {
        return;
    }
    let mut killed = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        let before = killed.len();
        for process in processes().filter(|process| *process != host) {
            // Killed processes are members until they have been waited for.
            if is_member(process, host) && killed.insert(process) {
                kill(process, host);
            }
        }
        if killed.len() == before {
            break;
        }
    }
    if !killed.is_empty() {
        tracing::info!(processes = killed.len(), "killed what the Host's programs left behind");
    }
}

fn is_member(process: Pid, session: Pid) -> bool {
    getsid(Some(process)).is_ok_and(|of| of == session)
}

fn kill(process: Pid, session: Pid) {
    // The descriptor names one process, also if that ends now and another gets its id.
    let Ok(held) = pidfd_open(process, PidfdFlags::empty()) else { return };
    if is_member(process, session) {
        // It may have ended, or run as another user.
        let _ = pidfd_send_signal(held.as_fd(), Signal::KILL);
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}
