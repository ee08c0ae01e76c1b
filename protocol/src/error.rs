//! Errors of a connection, by who caused them: the peer's refusal of one request, the peer's
//! violation of the protocol, or the transport. Nothing here decides to retry; [`Class`] says
//! whether a caller may.

use std::borrow::Cow;
use std::fmt;
use std::io;

use xs_engine::{BlobHash, CursorName, FrameId, RecordError, ValueError};

/// What a caller may do about a refusal. The first decimal digit of every code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// 1: the bytes break the protocol. The connection closes; never retry.
    Protocol,
    /// 2: the peer may not do this. Never retry.
    Access,
    /// 3: the request can never succeed as it is. Never retry.
    Invalid,
    /// 4: a condition does not hold. Read the current state, then make a new request.
    Condition,
    /// 5: not now, and nothing was done. Retry the same request later.
    Busy,
    /// 6: the store needs its operator. Do not retry automatically.
    Storage,
    /// 7: the requested object does not exist. Retry only after it was created.
    Absent,
    /// 8: it may or may not have been done. Read before repeating it.
    Unknown,
}

impl Class {
    /// Whether the same request may be sent again, unchanged and unconditionally.
    #[must_use]
    pub const fn may_retry(self) -> bool {
        matches!(self, Self::Busy)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// Why a request was refused or a connection closed, as it travels in the header.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name,)*
            /// A code this build does not know; its class still holds.
            Other(u16),
        }

        impl Code {
            /// Every code this build knows.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self {
                    $(Self::$name => $number,)*
                    Self::Other(number) => number,
                }
            }

            /// The code of a number. 0 means success and is no code.
            #[must_use]
            pub const fn from_number(number: u16) -> Self {
                match number {
                    $($number => Self::$name,)*
                    other => Self::Other(other),
                }
            }

            /// The name as docs/wire.md spells it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    Self::Other(_) => "Other",
                }
            }
        }
    };
}

codes! {
    /// A message does not have the structure its op demands.
    Malformed = 100,
    /// The preface names no version both sides speak.
    VersionMismatch = 101,
    /// A message is longer than agreed.
    TooLarge = 102,
    /// The first message was not HELLO, or HELLO was sent twice.
    HelloExpected = 103,
    /// HELLO did not come in time.
    HelloTimeout = 104,
    /// The peer sent more than it was given credit or handles for.
    FlowControl = 105,
    /// The peer was silent, or took nothing, for too long.
    Stalled = 106,
    /// The token is missing or wrong.
    Unauthenticated = 200,
    /// The connection's role does not allow it.
    Denied = 201,
    /// The server runs the modules of its store itself and accepts no Host.
    OwnHost = 202,
    /// A value breaks a rule; the message names it.
    InvalidValue = 300,
    /// The op is not known to this server.
    UnknownOp = 301,
    /// The version of the op is not supported.
    OpVersion = 302,
    /// The request carries an extension that this server does not know.
    UnknownExtension = 303,
    /// The batch, or something in it, is over a limit of the store.
    BatchTooLarge = 304,
    /// The options of the read contradict each other.
    InvalidRead = 305,
    /// The connection already has as many streams as it may have.
    TooManyStreams = 306,
    /// The idempotency key was used for a batch with other content.
    KeyReused = 307,
    /// Imported ids do not ascend, or are not above those that the store has assigned.
    ImportOrder = 308,
    /// The store has as many cursors as it can hold.
    TooManyCursors = 309,
    /// A cursor's revision is not the expected one.
    CursorConflict = 400,
    /// The position lies beyond what its epoch holds.
    CursorAhead = 401,
    /// A condition of the batch does not hold.
    ConditionFailed = 402,
    /// The position belongs to another store.
    OtherStore = 403,
    /// Some limit of the server is reached.
    Busy = 500,
    /// The server is stopping: reconnect.
    Draining = 501,
    /// The disk is full; appends resume automatically.
    StorageFull = 502,
    /// The subscription fell further behind than it allows.
    TooSlow = 503,
    /// Another Host runs the modules of the store.
    OtherHost = 504,
    /// The store is open for reading only.
    ReadOnly = 600,
    /// Stored bytes fail their checks.
    Corrupt = 601,
    /// The store was closed.
    Closed = 602,
    /// The server failed in a way it did not foresee.
    Internal = 603,
    /// The system refuses to read the store's files.
    Unreadable = 604,
    /// No such blob.
    UnknownBlob = 700,
    /// No such command, or it is not active.
    UnknownCommand = 701,
    /// The call's deadline passed.
    DeadlinePassed = 702,
    /// The write failed after it began: it may be there after a restart.
    Indeterminate = 800,
}

impl Code {
    /// The class, which alone decides what to do.
    #[must_use]
    pub const fn class(self) -> Class {
        match self.number() / 100 {
            1 => Class::Protocol,
            2 => Class::Access,
            3 => Class::Invalid,
            4 => Class::Condition,
            5 => Class::Busy,
            7 => Class::Absent,
            8 => Class::Unknown,
            _ => Class::Storage,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.name())
    }
}

/// Machine-readable details of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detail {
    /// Try again after this many milliseconds.
    RetryAfterMs(u32),
    /// The cursor that caused the conflict and its current revision (0: it does not exist).
    Cursor {
        /// Its name.
        name: CursorName,
        /// Its current revision.
        revision: u64,
    },
    /// The limit that was exceeded.
    Limit(u64),
    /// The offset to resume from.
    Offset(u64),
    /// The unknown extension.
    Extension(u16),
    /// The condition that does not hold, and the current value.
    Condition {
        /// Its place among the conditions of the batch, from 0.
        index: u32,
        /// The offset of the newest frame of its topics, or the head.
        found: u64,
    },
    /// The first frame of the batch that used the key.
    Frame(FrameId),
}

/// A request the server refused: the reply in place of a result, and the error of a
/// [`Service`](crate::Service).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// Why; its class says whether to retry.
    pub code: Code,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// For programs.
    pub details: Vec<Detail>,
}

impl Refusal {
    /// A refusal without details.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// This refusal with one more detail.
    #[must_use]
    pub fn with(mut self, detail: Detail) -> Self {
        self.details.push(detail);
        self
    }
}

impl From<ValueError> for Refusal {
    fn from(error: ValueError) -> Self {
        Self::new(Code::InvalidValue, error.to_string())
    }
}

/// Bytes from the peer that are no valid message of this protocol. The connection cannot continue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The first bytes are not the preface.
    #[error("the peer does not speak XSP{}", hint(.0))]
    Preface([u8; 8]),
    /// The peer speaks another major version.
    #[error("the peer speaks XSP/{theirs}, this side XSP/{ours}")]
    Version {
        /// The peer's major version.
        theirs: u8,
        /// Ours.
        ours: u8,
    },
    /// The peer announced a message longer than agreed.
    #[error("message of {size} bytes exceeds the limit of {max}")]
    TooLarge {
        /// Its announced length.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A message is shorter than its header.
    #[error("message length {0} is less than a header")]
    TooShort(u32),
    /// A message does not have the structure its op demands.
    #[error("malformed {op}: {what}")]
    Malformed {
        /// The op.
        op: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A record in a message is damaged.
    #[error("a delivered record is damaged: {0}")]
    Record(RecordError),
    /// The first message was not HELLO, or HELLO was sent twice.
    #[error("unexpected message: {0}")]
    Hello(&'static str),
    /// A message that is not allowed at this point.
    #[error("unexpected message: {0}")]
    Unexpected(&'static str),
    /// More was sent than credit, window or handles allow.
    #[error("flow control was ignored: {0}")]
    FlowControl(&'static str),
    /// Nothing was received, or nothing was read by the peer, for too long.
    #[error("the peer stalled: {0}")]
    Stalled(&'static str),
}

// Not derived: an error that is part of the text must not also be a source, or code that prints
// both repeats it.
impl From<RecordError> for ProtocolError {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// A guess at what the first bytes are instead.
fn hint(bytes: &[u8; 8]) -> Cow<'static, str> {
    match bytes {
        [0x14..=0x17, 3, ..] => " but TLS: name it as xss://host:port".into(),
        [b'H', b'T', b'T', b'P', ..] => " but HTTP".into(),
        other => format!(": its first bytes are {other:02x?}").into(),
    }
}

impl ProtocolError {
    /// The code sent to the peer before the connection closes.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Preface(_) | Self::Version { .. } => Code::VersionMismatch,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::Hello(_) => Code::HelloExpected,
            Self::FlowControl(_) => Code::FlowControl,
            Self::Stalled(_) => Code::Stalled,
            Self::TooShort(_) | Self::Malformed { .. } | Self::Record(_) | Self::Unexpected(_) => {
                Code::Malformed
            }
        }
    }
}

/// What ended a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The server closed it and gave the reason, which concerns the connection and not a request.
    Closed(Refusal),
    /// The system closed it, or the server did without giving a reason
    /// ([`io::ErrorKind::UnexpectedEof`]).
    Io {
        /// The kind of failure.
        kind: io::ErrorKind,
        /// For people.
        reason: String,
    },
    /// Something else, for people.
    Other(Cow<'static, str>),
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(refusal) => refusal.fmt(f),
            Self::Io { reason, .. } => f.write_str(reason),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl From<&io::Error> for DisconnectReason {
    fn from(error: &io::Error) -> Self {
        Self::Io { kind: error.kind(), reason: error.to_string() }
    }
}

impl From<&'static str> for DisconnectReason {
    fn from(why: &'static str) -> Self {
        Self::Other(why.into())
    }
}

impl From<String> for DisconnectReason {
    fn from(why: String) -> Self {
        Self::Other(why.into())
    }
}

/// Why a client's request has no result.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server answered, and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server broke the protocol; the connection is closed.
    #[error("the server broke the protocol: {0}")]
    Protocol(ProtocolError),
    /// The request is over a limit the server announced; nothing was sent.
    #[error("{what} of {size} is over the server's limit of {max}; {advice}")]
    OverLimit {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
        /// What to do instead.
        advice: &'static str,
    },
    /// This many requests of the connection have no reply yet; nothing was sent.
    #[error("{0} requests of this connection have no answer yet; await some replies first")]
    TooManyRequests(usize),
    /// The connection has opened as many streams as it can, 4,294,967,295; nothing was sent.
    #[error("this connection has no numbers for streams left; connect again")]
    NoStreams,
    /// No connection could be made.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The address.
        address: String,
        /// The kind of failure.
        kind: io::ErrorKind,
        /// The system's message.
        reason: String,
    },
    /// The peer is not proven to be the server, or the token could be overheard: nothing was sent
    /// to it.
    #[error("{address}: {reason}")]
    Untrusted {
        /// The address.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The server uses a certificate, and no CA was given to verify it: nothing was sent to it.
    #[error("{address}: no CA to trust was named")]
    NoCa {
        /// The address.
        address: String,
    },
    /// The connection ended before the reply arrived, with or without a reason from the server. A
    /// request that changes the store may or may not have been done.
    #[error("the connection closed before the answer came: {0}")]
    Disconnected(DisconnectReason),
    /// Reading the bytes to send failed on this side, and nothing was stored.
    #[error("cannot read what is to be sent: {reason}")]
    Source {
        /// The kind of failure.
        kind: io::ErrorKind,
        /// The reader's error message.
        reason: String,
    },
    /// The bytes received for this hash do not match it: they were altered on the way, or the
    /// server cannot be trusted.
    #[error("what came for {0} is something else")]
    Integrity(BlobHash),
}

// Not derived, for the same reason as above.
impl From<ProtocolError> for ClientError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl ClientError {
    /// What a caller may do about it. Unless the error is a refusal or has [`Class::Unknown`],
    /// nothing was done. [`Source`](Self::Source) is always [`Class::Invalid`]: the reader's bytes
    /// are consumed, so the same upload cannot be repeated, but one with another reader can be
    /// made.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Refused(refusal) => refusal.code.class(),
            Self::Protocol(_) | Self::Integrity(_) => Class::Protocol,
            Self::OverLimit { .. } | Self::Source { .. } => Class::Invalid,
            Self::TooManyRequests(_) | Self::NoStreams => Class::Busy,
            Self::Connect { kind, .. } => match kind {
                io::ErrorKind::PermissionDenied => Class::Access,
                // No server can ever be reached at such an address.
                io::ErrorKind::InvalidInput
                | io::ErrorKind::InvalidFilename
                | io::ErrorKind::NotADirectory => Class::Invalid,
                _ => Class::Busy,
            },
            Self::Untrusted { .. } | Self::NoCa { .. } => Class::Access,
            Self::Disconnected(_) => Class::Unknown,
        }
    }

    /// Converts the reason why a connection was closed into the error of a request that was in
    /// flight: the server refused the connection, which says nothing about the request.
    pub(crate) fn of_request(self) -> Self {
        match self {
            Self::Refused(refusal) => Self::Disconnected(DisconnectReason::Closed(refusal)),
            other => other,
        }
    }

    /// The code of a refusal.
    #[must_use]
    pub const fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_agree_and_the_first_digit_is_the_class() {
        for &code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), code);
            assert_eq!(Code::Other(code.number()).class(), code.class());
        }
        assert!(Code::Busy.class().may_retry() && Code::Other(599).class().may_retry());
        assert!(!Code::Indeterminate.class().may_retry());
        assert_eq!(Code::from_number(333), Code::Other(333));
    }

    /// Other unexpected messages do not get this code.
    #[test]
    fn hello_is_expected_only_where_it_did_not_come() {
        assert_eq!(ProtocolError::Hello("HELLO comes first").code(), Code::HelloExpected);
        assert_eq!(ProtocolError::Unexpected("an answer to nothing").code(), Code::Malformed);
    }

    /// A client that waits for a server decides by the class: it waits only for what may resolve on
    /// its own.
    #[test]
    fn a_connection_that_cannot_be_made_is_tried_again_where_that_is_of_use() {
        let class = |kind| {
            let (address, reason) = (String::new(), String::new());
            ClientError::Connect { address, kind, reason }.class()
        };
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            assert_eq!(class(kind), Class::Busy);
        }
        assert_eq!(class(io::ErrorKind::TimedOut), Class::Busy);
        assert_eq!(class(io::ErrorKind::PermissionDenied), Class::Access);
        for kind in [
            io::ErrorKind::InvalidInput,
            io::ErrorKind::InvalidFilename,
            io::ErrorKind::NotADirectory,
        ] {
            assert_eq!(class(kind), Class::Invalid);
        }
    }

    /// Concatenated like the output of programs that print an error with its causes.
    #[test]
    fn an_error_says_each_of_its_causes_once() {
        let damage = RecordError::Crc;
        let words = damage.to_string();
        let mut error: Option<&dyn std::error::Error> =
            Some(&ClientError::from(ProtocolError::from(damage)));
        let mut said = Vec::new();
        while let Some(cause) = error {
            said.push(cause.to_string());
            error = cause.source();
        }
        assert_eq!(said.join(": ").matches(&words).count(), 1, "{said:?}");
    }
}
