//! Exit codes as a type, and the one place where an error is mapped to one. Prints nothing:
//! `output` does.

use std::fmt;
use std::io;
use std::process::ExitCode;

use xs_engine::OpenError;

/// How a subcommand ended, as scripts see it. `xs --help` and docs/operations.md list the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Success.
    Ok = 0,
    /// A failure without a code of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The frame, blob or module that was asked for does not exist.
    NotFound = 3,
    /// A condition of the request does not hold.
    Condition = 4,
    /// No store could be reached at the address.
    Unreachable = 5,
    /// A deadline passed.
    TimedOut = 6,
    /// The caller lacks permission.
    Denied = 7,
    /// Writing the store's files failed; requests in flight may or may not be stored.
    StoreFailed = 8,
    /// A mapped file of the store could not be read.
    StoreUnreadable = 9,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that carries its exit code.
#[derive(Debug)]
pub(crate) struct ExitError {
    exit: Exit,
    text: String,
    /// The connection ended; a pending request does not learn why.
    is_cut: bool,
    /// Another connection may not meet this error.
    may_pass: bool,
}

impl ExitError {
    /// An error with a message for people: what is wrong, then what to do.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), is_cut: false, may_pass: false }
    }

    /// An error that says that a connection ended.
    pub(crate) fn cut(text: impl Into<String>) -> Self {
        Self { is_cut: true, may_pass: true, ..Self::new(Exit::Unreachable, text) }
    }

    /// The same error, marked as one that another connection may not meet.
    pub(crate) fn passing(self) -> Self {
        Self { may_pass: true, ..self }
    }

    /// An `Err` with a new error.
    pub(crate) fn fail<T>(exit: Exit, text: impl Into<String>) -> anyhow::Result<T> {
        Err(Self::new(exit, text).into())
    }
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ExitError {}

/// The exit code of an error: the first cause that has one decides.
pub(crate) fn of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<ExitError>() {
            return error.exit;
        }
    }
    Exit::Failed
}

/// Whether an error says that a connection ended.
pub(crate) fn is_cut(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<ExitError>().is_some_and(|error| error.is_cut))
}

/// Whether another connection may not meet the error.
pub(crate) fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<ExitError>().is_some_and(|error| error.may_pass))
}

/// The text of an error: each cause once, and advice where the system's message does not help.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(said) {
        if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    let opening = error.chain().find_map(|cause| cause.downcast_ref::<OpenError>());
    if let Some(OpenError::Io { error, .. } | OpenError::Lock { error, .. }) = opening {
        let is_lock = matches!(opening, Some(OpenError::Lock { .. }));
        text += match error.kind() {
            io::ErrorKind::PermissionDenied if is_lock => "; xs doctor shows the owner",
            io::ErrorKind::NotADirectory => "; a store is a directory",
            io::ErrorKind::ReadOnlyFilesystem => {
                "; xs verify and xs restore can read it: restore it to a writable \
                 filesystem"
            }
            _ => "",
        };
    }
    text
}

/// The text of one cause. Omits that a store is locked to be opened, and in which file.
fn said(cause: &(dyn std::error::Error + 'static)) -> String {
    match cause.downcast_ref::<OpenError>() {
        Some(OpenError::Lock { error, .. }) => error.to_string(),
        _ => cause.to_string(),
    }
}

/// Whether the reader of our output has closed it, which is not a failure.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_innermost_known_cause_decides() {
        let error =
            ExitError::fail::<()>(Exit::NotFound, "no such frame").context("get").unwrap_err();
        assert_eq!(of(&error), Exit::NotFound);
        assert_eq!(format!("{error:#}"), "get: no such frame");
        assert_eq!(of(&anyhow::anyhow!("anything else")), Exit::Failed);
    }

    #[test]
    fn each_cause_is_said_once() {
        let error = anyhow::anyhow!("no room").context("write a: no room").context("copy b");
        assert_eq!(text(&error), "copy b: write a: no room");
        let kind = io::ErrorKind::ReadOnlyFilesystem;
        let error = OpenError::Lock { path: "s/LOCK".into(), error: kind.into() };
        let said = text(&anyhow::Error::from(error).context("cannot open the store s"));
        let plain = format!("cannot open the store s: {}; xs verify and", io::Error::from(kind));
        assert!(said.starts_with(&plain) && said.contains("xs restore"), "{said}");
        let kind = io::ErrorKind::PermissionDenied;
        let error = OpenError::Lock { path: "s/LOCK".into(), error: kind.into() };
        let said = text(&anyhow::Error::from(error).context("cannot open the store s"));
        assert_eq!(said, "cannot open the store s: permission denied; xs doctor shows the owner");
    }

    #[test]
    fn a_closed_pipe_is_recognised_below_context() {
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&anyhow::Error::from(pipe).context("standard output")));
        let other = io::Error::from(io::ErrorKind::NotFound);
        assert!(!is_closed_pipe(&anyhow::Error::from(other)));
    }
}
