//! Lowers a Host's priority below the server and its clients: modules get the CPU time these leave,
//! and all of it while they are idle.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::thread;
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process, setsid};

/// How much nicer than the server a Host is: it gets a tenth of the server's weight, still enough
/// to make progress while the server is never idle.
const NICER: i32 = 10;
const NICEST: i32 = 19;
/// The nice value of the whole session, if Linux groups processes by session.
const SESSION: &str = "/proc/self/autogroup";
/// Linux accepts one such write per tenth of a second from all unprivileged processes; these
/// attempts are enough for the largest number of Hosts.
const TRIES: u32 = 64;
const AGAIN: Duration = Duration::from_millis(100);

/// Lowers the priority of this process and all its children. It becomes a session of its own:
/// Ctrl-C in the terminal is for the server, which stops the Host itself, and in the server's
/// session a kernel with autogroups would let a spinning module take the server's CPU share. Must
/// be called before there is a second thread.
///
/// # Errors
/// When the system refuses.
pub(super) fn lower() -> io::Result<()> {
    setsid()?;
    let nice = (getpriority_process(None)? + NICER).min(NICEST);
    setpriority_process(None, nice)?;
    let mut session = match File::options().write(true).open(SESSION) {
        Ok(session) => session,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut left = TRIES;
    loop {
        match session.write_all(nice.to_string().as_bytes()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && left > 0 => left -= 1,
            done => return done,
        }
        thread::sleep(AGAIN);
    }
}
