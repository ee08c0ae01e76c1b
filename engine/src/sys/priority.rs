//! How much of the processor the threads of the background ask for.

use rustix::process::{getpriority_process, setpriority_process};

/// How much nicer than others they are: one that shares a processor with one of those gets a tenth
/// of it. Less, and whoever waits for a full pack to be sealed would wait for ever on a machine
/// that is busy with something else.
const NICER: i32 = 10;
const NICEST: i32 = 19;

/// Lets the calling thread give way to others. It cannot take that back, so a thread that does it
/// does nothing that must be quick, and holds locks of those who append for no longer than it takes
/// to put a new file in the place of an old one.
pub(crate) fn give_way() {
    // Elsewhere this would be the priority of the whole process.
    if cfg!(target_os = "linux") {
        let nicer = getpriority_process(None).map(|own| (own + NICER).min(NICEST));
        // A thread that may not do it goes on as it is.
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
