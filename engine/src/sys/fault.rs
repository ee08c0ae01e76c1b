//! Reports which file a failed read hit when the process is killed by SIGBUS. A mapped file has no
//! other way to report an unreadable sector or a truncation by another process. Repairs nothing:
//! the bytes do not exist, and the code that needs them cannot continue.

use std::ffi::{CStr, c_int};
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

/// Longest line of the list of maps: its numbers and the longest path.
const LINE_MAX: usize = 128 + 4096;
const PIECE: usize = 1024;
/// The list of maps of this process.
const MAPS: &CStr = c"/proc/self/maps";

static EXIT: AtomicI32 = AtomicI32::new(1);

/// Installs a SIGBUS handler that prints to standard error which mapped file failed and where in
/// it, and exits with the code `exit`. For programs; a library leaves signals to them. No table of
/// maps is kept: the handler reads the system's list, however long it is.
///
/// # Errors
/// The system's error when it refuses the handler; the process then dies of SIGBUS as without one,
/// and nothing else changes.
pub fn name_faults(exit: u8) -> io::Result<()> {
    EXIT.store(i32::from(exit), Ordering::Relaxed);
    // SAFETY: sigaction is a plain C struct for which all zeroes is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = report as *const () as libc::sighandler_t;
    // On the stack of the thread: the fault was not a stack overflow, and the alternate stack is
    // short. A fault in the handler itself gets the default action.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
    // SAFETY: both pointers are valid for the call; `report` is async-signal-safe.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs inside a signal handler: only system calls, no allocation, no lock.
extern "C" fn report(_: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the system passes a valid one.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut line = [0; LINE_MAX];
    let mut digits = [0; 20];
    match find(MAPS, address, &mut line) {
        Ok(Some((offset, path))) => {
            say(b"xs: cannot read ");
            say(path);
            say(b" at byte ");
            say(decimal(offset, &mut digits));
            say(
                b": the disk or its filesystem failed, or the file was cut; see docs/recovery.md\n",
            );
        }
        Ok(None) => say(b"xs: SIGBUS at an address that no file is mapped at\n"),
        Err(NoList) => {
            say(b"xs: cannot read a file that is mapped; which one is not known, ");
            say(b"as /proc/self/maps cannot be read either; see docs/recovery.md\n");
        }
    }
    // SAFETY: ends the process, and is async-signal-safe.
    unsafe { libc::_exit(EXIT.load(Ordering::Relaxed)) }
}

fn say(bytes: &[u8]) {
    // SAFETY: the buffer is as long as it says; write is async-signal-safe.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

/// The list of maps cannot be read: no descriptor is left for it, or there is no /proc.
#[derive(Debug, PartialEq, Eq)]
struct NoList;

/// A mapped file, as its path and a position in it.
type Mapped<'a> = Option<(u64, &'a [u8])>;

/// The file mapped at an address, and the position in it, from a list of maps.
fn find<'a>(
    maps: &CStr,
    address: usize,
    line: &'a mut [u8; LINE_MAX],
) -> Result<Mapped<'a>, NoList> {
    // SAFETY: the path ends with a zero; open is async-signal-safe.
    let file = unsafe { libc::open(maps.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let (mut piece, mut len) = ([0u8; PIECE], 0);
    loop {
        // SAFETY: the buffer has `PIECE` bytes; read is async-signal-safe.
        let got = unsafe { libc::read(file, piece.as_mut_ptr().cast(), PIECE) };
        let got = usize::try_from(got).map_err(|_| NoList)?;
        if got == 0 {
            return Ok(None);
        }
        for &byte in &piece[..got] {
            if byte != b'\n' {
                // A longer line is not one of our files.
                if let Some(place) = line.get_mut(len) {
                    *place = byte;
                    len += 1;
                }
                continue;
            }
            if let Some((offset, path_at)) = place_in(&line[..len], address) {
                return Ok(Some((offset, &line[path_at..len])));
            }
            len = 0;
        }
    }
}

/// Parses a line of the list of maps that contains an address: returns the position in the file,
/// and where in the line its path begins. `7f0000000000-7f0000001000 r--s 00002000 fe:00 1234
/// /path`.
fn place_in(line: &[u8], address: usize) -> Option<(u64, usize)> {
    let address = address as u64;
    let mut words = line.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let mut ends = words.next()?.split(|&byte| byte == b'-').map(hex);
    let (start, end) = (ends.next()??, ends.next()??);
    let offset = words.nth(1).and_then(hex)?;
    let path_at = line.iter().position(|&byte| byte == b'/')?;
    (start..end).contains(&address).then(|| (offset + (address - start), path_at))
}

fn hex(word: &[u8]) -> Option<u64> {
    word.iter().try_fold(0u64, |number, &byte| {
        let digit = char::from(byte).to_digit(16)?;
        number.checked_mul(16)?.checked_add(u64::from(digit))
    })
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_cannot_be_read_is_told_from_one_without_the_address() {
        let mut line = [0; LINE_MAX];
        let code = lines_of_maps_are_understood as fn() as usize;
        let (_, path) = find(MAPS, code, &mut line).unwrap().unwrap();
        assert_eq!(path, std::env::current_exe().unwrap().as_os_str().as_encoded_bytes());
        assert_eq!(find(MAPS, 1, &mut line), Ok(None));
        assert_eq!(find(c"/proc/self/no such list", code, &mut line), Err(NoList));
    }

    #[test]
    fn lines_of_maps_are_understood() {
        let line = b"7f10-7f20 r--s 0000a000 fe:00 1234      /a dir/log/0.0.seg";
        let (offset, at) = place_in(line, 0x7f1f).unwrap();
        assert_eq!((offset, &line[at..]), (0xa00f, &b"/a dir/log/0.0.seg"[..]));
        for (line, address) in [
            (&line[..], 0x7f20),
            (line, 0x7f0f),
            (b"7f10-7f20 rw-p 00000000 00:00 0 ", 0x7f11),
            (b"7f10-7f20", 0x7f11),
            (b"7f10 r", 0x7f10),
            (b"x-y z / /", 0x7f10),
            (b"", 0),
            (b"0-ffffffffffffffffff r 0 0 0 /a", 1),
        ] {
            assert_eq!(place_in(line, address), None);
        }
        for number in [0, 7, 10, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
