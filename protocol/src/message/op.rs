//! The table of ops. docs/wire.toml holds the same table for programs, and a test compares them.

use super::OpRange;

/// The ways in which a message of an op travels; there may be several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    /// From the client, with an answer.
    pub request: bool,
    /// From the client, without an answer.
    pub one_way: bool,
    /// From the server, unrequested.
    pub push: bool,
    /// The request opens a stream.
    pub stream: bool,
}

const NO: Ways = Ways { request: false, one_way: false, push: false, stream: false };
const REQUEST: Ways = Ways { request: true, ..NO };
const STREAM: Ways = Ways { stream: true, ..REQUEST };
const ONE_WAY: Ways = Ways { one_way: true, ..NO };
const PUSH: Ways = Ways { push: true, ..NO };
const ASKED_AND_PUSHED: Ways = Ways { push: true, ..REQUEST };
const BOTH_WAYS: Ways = Ways { push: true, ..ONE_WAY };

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal $ways:ident,)*) => {
        /// The kind of a message.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Op {
            $($(#[$doc])* $name = $number,)*
        }

        impl Op {
            /// Every op.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The ops and versions this build serves. A range has at most two versions: the
            /// current and the previous one.
            pub const RANGES: &[OpRange] =
                &[$(OpRange { op: $number, min: Self::VERSION, max: Self::VERSION },)*];

            /// The op of a number.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its name in docs/wire.md.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The ways in which it travels.
            #[must_use]
            pub const fn ways(self) -> Ways {
                match self {
                    $(Self::$name => $ways,)*
                }
            }
        }
    };
}

ops! {
    /// The first message on every connection, each way.
    Hello = 0x01 "HELLO" REQUEST,
    /// Checks that the other side answers.
    Ping = 0x03 "PING" ASKED_AND_PUSHED,
    /// The server is stopping.
    GoAway = 0x04 "GOAWAY" PUSH,
    /// The server closes the connection; carries the reason.
    Close = 0x05 "CLOSE" PUSH,
    /// Append a batch.
    Append = 0x10 "APPEND" REQUEST,
    /// Remove frames.
    Remove = 0x11 "REMOVE" REQUEST,
    /// Append frames of another store.
    Import = 0x12 "IMPORT" REQUEST,
    /// One page of a bounded read.
    Fetch = 0x20 "FETCH" REQUEST,
    /// One frame.
    Get = 0x21 "GET" REQUEST,
    /// The newest frames.
    Last = 0x22 "LAST" REQUEST,
    /// The topics in use.
    Topics = 0x23 "TOPICS" REQUEST,
    /// Begin a subscription.
    Subscribe = 0x30 "SUBSCRIBE" STREAM,
    /// Frames of a subscription or call.
    Deliver = 0x31 "DELIVER" PUSH,
    /// Grants more bytes on a stream.
    Credit = 0x32 "CREDIT" BOTH_WAYS,
    /// End a stream.
    Unsubscribe = 0x33 "UNSUBSCRIBE" ONE_WAY,
    /// An event on a stream.
    SubEvent = 0x34 "SUB_EVENT" PUSH,
    /// Change a cursor.
    CursorSet = 0x40 "CURSOR_SET" REQUEST,
    /// A cursor with its state.
    CursorGet = 0x41 "CURSOR_GET" REQUEST,
    /// All cursors.
    CursorList = 0x42 "CURSOR_LIST" REQUEST,
    /// Whether there is a blob.
    BlobHas = 0x50 "BLOB_HAS" REQUEST,
    /// Begin an upload.
    BlobPut = 0x51 "BLOB_PUT" STREAM,
    /// Begin a download.
    BlobGet = 0x52 "BLOB_GET" STREAM,
    /// A piece of a blob, in either direction.
    BlobChunk = 0x53 "BLOB_CHUNK" BOTH_WAYS,
    /// Call a command.
    Call = 0x60 "CALL" STREAM,
    /// Statistics of the server and the store.
    Stats = 0x70 "STATS" REQUEST,
    /// Maintenance of the store's files.
    Maintain = 0x71 "MAINTAIN" REQUEST,
}

impl Op {
    /// The version that this build speaks, of every op.
    pub const VERSION: u16 = 1;
}

impl OpRange {
    /// Whether a version of the op is served.
    #[must_use]
    pub const fn has(&self, version: u16) -> bool {
        self.min <= version && version <= self.max
    }
}
