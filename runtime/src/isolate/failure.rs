//! How a module fails, in words and source positions that its author knows.

use std::fmt;

/// The kind of failure; each calls for a different reaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// The source is not JavaScript or TypeScript.
    Syntax,
    /// An import cannot be resolved or is not allowed.
    Import,
    /// The arguments of a call do not fit the command: none of its code has run.
    Args,
    /// The code threw, at import or in a call.
    Throw,
    /// The default export is not a valid definition.
    Definition,
    /// A permission is missing.
    Permission,
    /// The Host already runs its maximum of processors.
    Full,
    /// A call took too long, or waits for something that can never happen.
    Timeout,
    /// It used the CPU too long without returning to the event loop.
    Cpu,
    /// It needed more memory than allowed.
    Heap,
    /// It does not react to being stopped; its thread is abandoned.
    Wedged,
    /// The engine did not start in time: nothing of the module has run.
    Engine,
    /// The call was cancelled by its caller.
    Cancelled,
    /// It was stopped by the Host.
    Stopped,
    /// The store refused or could not be reached.
    Store,
}

impl FailureKind {
    /// The `code` in lifecycle and error frames.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Import => "import",
            Self::Args => "args",
            Self::Throw => "throw",
            Self::Definition => "definition",
            Self::Permission => "permission",
            Self::Full => "full",
            Self::Timeout => "timeout",
            Self::Cpu => "cpu",
            Self::Heap => "heap",
            Self::Wedged => "wedged",
            Self::Engine => "engine",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
            Self::Store => "store",
        }
    }
}

/// A module's failure. Its position is in the author's source, for TypeScript too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleError {
    /// The kind of failure.
    pub kind: FailureKind,
    /// One line, with the name of the thrown error first when there is one.
    pub message: String,
    /// Message and stack frames, with mapped positions; frames of xs itself are left out.
    pub stack: Option<String>,
    /// Path relative to the modules directory.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column, from 1.
    pub column: Option<u32>,
    /// A few source lines with a mark under the position.
    pub code_frame: Option<String>,
}

impl ModuleError {
    /// An error without a position.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            stack: None,
            file: None,
            line: None,
            column: None,
            code_frame: None,
        }
    }

    /// `file:line:column`, when it is known.
    #[must_use]
    pub fn place(&self) -> Option<String> {
        let (file, line, column) = (self.file.as_ref()?, self.line?, self.column?);
        Some(format!("{file}:{line}:{column}"))
    }

    /// The error with a position.
    #[must_use]
    pub fn at(mut self, file: impl Into<String>, line: u32, column: u32) -> Self {
        self.file = Some(file.into());
        self.line = Some(line);
        self.column = Some(column);
        self
    }
}

impl fmt::Display for ModuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(place) = self.place() {
            write!(f, " ({place})")?;
        }
        if let Some(code_frame) = &self.code_frame {
            write!(f, "\n{code_frame}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ModuleError {}
