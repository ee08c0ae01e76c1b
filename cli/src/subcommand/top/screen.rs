//! Takes over the terminal for `top` and restores it however the program ends, by a drop or by a
//! panic, whose message appears after the restore. `picture` makes the contents.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::keys::{Key, keys};
use super::picture::Size;
use crate::exit::{Exit, ExitError};
use crate::output::{Audience, raw};

/// Switches to the alternate screen without a cursor, and back.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";
/// How often the key thread checks whether it is still wanted.
const WAIT: Duration = Duration::from_millis(50);
/// Maximum number of keys pressed and not yet handled.
const KEYS_MAX: usize = 64;
/// The assumed size of a terminal that does not report one.
const SIZE_DEFAULT: Size = Size { columns: 80, rows: 24 };

/// The terminal's original modes, while it is taken over.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// An event of the terminal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Key(Key),
    Resized,
    /// The terminal was closed.
    Closed,
}

/// The terminal, taken over.
pub(super) struct Screen {
    keys: mpsc::Receiver<Key>,
    resized: Signal,
    pub(super) colour: bool,
}

impl Screen {
    /// Takes over the terminal.
    pub(super) fn open() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            let text = "top reads keys from a terminal; xs top --once needs none";
            return ExitError::fail(Exit::Usage, text);
        }
        let colour = matches!(Audience::of_stdout(), Audience::Person { colour: true, .. });
        let resized = signal(SignalKind::window_change())?;
        let before = tcgetattr(io::stdin())?;
        let mut modes = before.clone();
        modes.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
        *BEFORE.lock() = Some(before);
        let (send, keys) = mpsc::channel(KEYS_MAX);
        let screen = Self { keys, resized, colour };
        restore_before_panics();
        raw(ENTER);
        let thread = std::thread::Builder::new().name("xs-keys".to_owned());
        thread.spawn(move || while pass_on(&send).is_some() {})?;
        Ok(screen)
    }

    /// The next event of the terminal.
    pub(super) async fn event(&mut self) -> Event {
        tokio::select! {
            key = self.keys.recv() => key.map_or(Event::Closed, Event::Key),
            _ = self.resized.recv() => Event::Resized,
        }
    }

    /// The current size.
    pub(super) fn size() -> Size {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            _ => SIZE_DEFAULT,
        }
    }

    /// Replaces the contents of the screen.
    pub(super) fn show(&self, lines: &[String]) {
        let lines = lines.iter().map(|line| format!("{line}\u{1b}[K"));
        raw(&format!("\u{1b}[H{}\u{1b}[J", lines.collect::<Vec<_>>().join("\r\n")));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, once.
fn restore() {
    if let Some(before) = BEFORE.lock().take() {
        raw(LEAVE);
        // A closed terminal needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

fn restore_before_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        tell(panic);
    }));
}

/// Forwards keys as they arrive; `None` when the receiver is gone or the terminal is closed.
fn pass_on(to: &mpsc::Sender<Key>) -> Option<()> {
    if to.is_closed() {
        return None;
    }
    let stdin = io::stdin();
    let mut waiting = [PollFd::new(&stdin, PollFlags::IN)];
    let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(WAIT.subsec_nanos()) };
    match poll(&mut waiting, Some(&wait)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Some(()),
        Ok(_) => {}
        Err(_) => return None,
    }
    let mut bytes = [0; 256];
    match rustix::io::read(&stdin, &mut bytes) {
        Ok(0) | Err(_) => None,
        Ok(len) => keys(&bytes[..len]).into_iter().try_for_each(|key| to.blocking_send(key).ok()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::panic::{catch_unwind, set_hook, take_hook};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_panic_is_told_when_the_terminal_is_given_back() {
        let terminal = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
        let after = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&after);
        let usual = take_hook();
        set_hook(Box::new(move |_| tell.store(BEFORE.lock().is_none(), Ordering::Relaxed)));
        restore_before_panics();
        *BEFORE.lock() = Some(tcgetattr(&terminal).unwrap());
        let panicked = catch_unwind(|| panic!("a mistake")).is_err();
        set_hook(usual);
        assert!(panicked && after.load(Ordering::Relaxed));
    }
}
