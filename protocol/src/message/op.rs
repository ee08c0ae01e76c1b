//! The table of ops.

use super::OpRange;

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal,)*) => {
        /// What a message is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Op {
            $($(#[$doc])* $name = $number,)*
        }

        impl Op {
            /// Every op.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

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
        }
    };
}

ops! {
    /// Introductions; first on every connection.
    Hello = 0x01 "HELLO",
    /// A sign of life, asked for by either side.
    Ping = 0x03 "PING",
    /// The server is stopping.
    GoAway = 0x04 "GOAWAY",
    /// The server closes the connection, and why.
    Close = 0x05 "CLOSE",
    /// Append a batch.
    Append = 0x10 "APPEND",
    /// One page of a bounded read.
    Fetch = 0x20 "FETCH",
    /// One frame.
    Get = 0x21 "GET",
    /// The newest frames.
    Last = 0x22 "LAST",
    /// The topics in use.
    Topics = 0x23 "TOPICS",
    /// Begin a subscription.
    Subscribe = 0x30 "SUBSCRIBE",
    /// Frames of a subscription or call.
    Deliver = 0x31 "DELIVER",
    /// More bytes may be sent on a stream.
    Credit = 0x32 "CREDIT",
    /// End a stream.
    Unsubscribe = 0x33 "UNSUBSCRIBE",
    /// Something other than frames on a stream.
    SubEvent = 0x34 "SUB_EVENT",
    /// Change a cursor.
    CursorSet = 0x40 "CURSOR_SET",
    /// A cursor with its state.
    CursorGet = 0x41 "CURSOR_GET",
    /// All cursors.
    CursorList = 0x42 "CURSOR_LIST",
    /// Whether there is a blob.
    BlobHas = 0x50 "BLOB_HAS",
    /// Begin an upload.
    BlobPut = 0x51 "BLOB_PUT",
    /// Begin a download.
    BlobGet = 0x52 "BLOB_GET",
    /// A piece of a blob, either way.
    BlobChunk = 0x53 "BLOB_CHUNK",
    /// Call a command.
    Call = 0x60 "CALL",
}

impl Op {
    /// The version of every op of this build.
    pub const VERSION: u16 = 1;

    /// The ops and versions this build serves.
    #[must_use]
    pub fn table() -> Vec<OpRange> {
        let range = |op: &Self| OpRange { op: *op as u8, min: Self::VERSION, max: Self::VERSION };
        Self::ALL.iter().map(range).collect()
    }
}
