//! Reports the thread on which a Host crashes. An isolate's thread is named after its version, so
//! the name is all the server needs to avoid starting the culprit again.

use std::io;

/// The prefix of a report, before the thread's name.
pub(super) const CRASHED: &str = "crashed ";
/// Bytes of a thread's name in Linux, with its NUL.
const NAME_BYTES: usize = 16;
/// Signals of a crash.
const SIGNALS: [libc::c_int; 5] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE];

/// The thread named in one line of a report.
pub(super) fn thread_of(line: &str) -> Option<&str> {
    line.strip_prefix(CRASHED).filter(|name| !name.is_empty())
}

/// Makes a crash write `crashed <thread>` to standard output before the process dies.
pub(super) fn install() -> io::Result<()> {
    for signal in SIGNALS {
        // SAFETY: sigaction is a plain C struct for which all zeroes is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = report as *const () as libc::sighandler_t;
        // The default action follows: SA_RESETHAND restores it, and the fault happens again. The
        // handler runs on the alternate stack that std gives each of its threads.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
        // SAFETY: both pointers are valid for the call; `report` is async-signal-safe.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Runs inside a signal handler: only system calls, no allocation, no lock.
extern "C" fn report(_signal: libc::c_int) {
    let mut line = [0u8; CRASHED.len() + NAME_BYTES + 1];
    line[..CRASHED.len()].copy_from_slice(CRASHED.as_bytes());
    // SAFETY: PR_GET_NAME writes at most NAME_BYTES bytes, for which the buffer has room after the
    // prefix.
    unsafe { libc::prctl(libc::PR_GET_NAME, line.as_mut_ptr().add(CRASHED.len())) };
    let end = line.iter().position(|&byte| byte == 0).unwrap_or(CRASHED.len() + NAME_BYTES);
    line[end] = b'\n';
    // SAFETY: the buffer holds `end + 1` bytes; write is async-signal-safe.
    unsafe { libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), end + 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_threads() {
        assert_eq!(thread_of("crashed js-0123456789ab"), Some("js-0123456789ab"));
        for other in ["", "crashed ", "crashed", "a crashed js-1"] {
            assert_eq!(thread_of(other), None);
        }
    }
}
