//! The scheduling priority of background threads.

use rustix::process::{getpriority_process, setpriority_process};

/// Niceness added to a background thread: next to a thread of normal priority it gets a tenth of a
/// shared processor. With less, a thread that waits for a full pack to be sealed would wait for
/// ever on a machine that is busy with other work.
const NICER: i32 = 10;
const NICEST: i32 = 19;

/// Lowers the priority of the calling thread. It cannot undo that, so such a thread does nothing
/// urgent, and holds locks that appends need only as long as it takes to replace an old file by a
/// new one.
pub(crate) fn give_way() {
    // On other systems this would set the priority of the whole process.
    if cfg!(target_os = "linux") {
        let nicer = getpriority_process(None).map(|own| (own + NICER).min(NICEST));
        // Without permission the thread keeps its priority.
        let _ = nicer.and_then(|nicer| setpriority_process(None, nicer));
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_alone() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let thread = std::thread::spawn(move || {
            give_way();
            nice()
        });
        assert_eq!((thread.join().unwrap(), nice()), ((before + NICER).min(NICEST), before));
    }
}
