//! A Host gives way to the server and to whoever uses it: modules get what of the processors these
//! leave, and everything while they need nothing.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::thread;
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process, setsid};

/// How much nicer than the server a Host is: it weighs a tenth of what the server does, which is
/// still enough to go on beside one that never rests.
const NICER: i32 = 10;
const NICEST: i32 = 19;
/// Where Linux says how nice a session is as a whole, when it groups processes by session.
const SESSION: &str = "/proc/self/autogroup";
/// Linux lets one process in a tenth of a second say so, of all that are not privileged; as many
/// Hosts as there may be find their moment.
const TRIES: u32 = 64;
const AGAIN: Duration = Duration::from_millis(100);

/// Lowers this process, and with it all that it starts. It becomes a session of its own: a Ctrl-C
/// in the terminal is for the server, which stops the Host in its turn, and a kernel that shares
/// the processors out among sessions would let a module that spins take the server's share. To be
/// called before there is a second thread.
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
