//! Every limit of the protocol, in one place. A length from the peer is compared with one of these
//! before memory is allocated for it.

use std::time::Duration;

/// Bytes of a message, header included, once HELLO is done.
pub const MESSAGE_BYTES_MAX: u32 = 24 * 1024 * 1024;
/// Bytes of the longest message a server sends; a client must accept it.
pub const SERVER_MESSAGE_BYTES_MAX: u32 = 2 * 1024 * 1024;
/// Bytes of a message before HELLO is done.
pub const HELLO_BYTES_MAX: u32 = 8 * 1024;
/// Time until HELLO must be complete.
pub const HELLO_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a client's or server's name.
pub const PEER_NAME_BYTES_MAX: usize = 255;
/// Bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Requests of one connection without a reply; beyond it the server stops reading.
pub const REQUESTS_MAX: u32 = 1024;
/// Bytes of requests of one connection without a reply; beyond it the server stops reading.
pub const REQUEST_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Requests that a client queues on one connection before it refuses more.
pub const CLIENT_QUEUE_MAX: usize = 65_536;
/// Concurrent subscriptions, uploads, downloads and calls of one connection.
pub const STREAMS_MAX: u32 = 256;
/// Concurrent streams of a connection with the role host that is shared by modules; one that runs a
/// single module has the usual limit.
pub const HOST_STREAMS_MAX: u32 = 65_536;
/// Bytes queued for a connection beyond which its streams and reads pause.
pub const OUTBOUND_BYTES_MAX: usize = 1024 * 1024;
/// Bytes queued for a connection beyond which the server stops reading from it: a client that does
/// not read its replies gets no further ones.
pub const UNREAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that a server puts into one DELIVER before it starts another.
pub const DELIVER_BYTES: usize = 256 * 1024;
/// A filtered subscription without matches reports its position whenever it is this many offsets
/// beyond the last report.
pub(crate) const SCANNED_EVERY: u64 = 1024;
/// Bytes of records in one page of a FETCH, whatever the client asks for.
pub const PAGE_BYTES_MAX: u32 = 1024 * 1024;
/// Bytes of one chunk of a blob.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Bytes of an upload in flight before the server grants more.
pub const UPLOAD_WINDOW: u32 = 1024 * 1024;
/// Bytes of credit a stream may hold.
pub const CREDIT_MAX: u64 = 1 << 32;
/// Bytes of credit a client grants by default.
pub const CREDIT_DEFAULT: u32 = 4 * 1024 * 1024;
/// Events and grants of a stream, which cost no credit, that a client buffers: a server that sends
/// more to a client that does not take them is malicious.
pub(crate) const FREE_WAITING_MAX: usize = 65_536;
/// PINGs of a server whose PONGs a client buffers until they are written.
pub const PONGS_MAX: usize = 1024;
/// Bytes of incomplete multi-part replies that a client buffers, over all requests.
pub const PARTS_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Minimum number of bytes that one part of a reply counts for.
pub(crate) const PART_BYTES_MIN: usize = 1024;
/// Bytes of a body that may be requested together with its frame.
pub const BODY_WITH_FRAME_MAX: u32 = 1024 * 1024;
/// Concurrent long uploads of a server.
pub const LONG_UPLOADS_MAX: usize = 512;
/// Bytes beyond which an upload counts as long.
pub const LONG_UPLOAD_BYTES: u64 = 64 * 1024;
/// A long upload that has received nothing for this long may lose its slot.
pub const UPLOAD_SILENCE: Duration = Duration::from_secs(5);
/// Frames that one LAST may request, and newest frames of a gap that a slow subscription is sent.
pub const LAST_MAX: u64 = 1_000_000;
/// A LAST of up to this many frames is looked up where the request is read; larger ones, and those
/// that one lookup does not complete, run one request per connection at a time.
pub(crate) const LAST_AT_ONCE_MAX: u64 = 128;
/// Blocking threads for long work of all connections.
pub(crate) const LONG_THREADS_MAX: usize = 32;
/// Total bytes of the lists of all connections that are in memory until they are sent: frames of a
/// LAST, without their contents, offsets of the newest frames of a gap, and cursors. Lists may take
/// as much again while they are built: each is counted at its maximum length, doubled for growth,
/// and waits for those before it.
pub const LISTS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Smaller lists are not counted: a connection has one at a time, and one for each stream.
pub const LIST_BYTES_COUNTED: usize = 8 * 1024;
/// A list that was not sent within this time gives way to others.
pub const LIST_TIME: Duration = Duration::from_secs(30);
/// Bytes of the message of a refusal; a longer one is truncated.
pub const REFUSAL_TEXT_MAX: usize = 4 * 1024;
/// Extensions in one request.
pub const EXTENSIONS_MAX: usize = 64;
/// Bytes of the text of STATS.
pub const STATS_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a path in MAINTAIN.
pub const PATH_BYTES_MAX: usize = 4096;
/// Findings, or damaged places, listed in a reply to MAINTAIN: even with the longest paths they fit
/// into a message.
pub const MAINTAIN_LISTED_MAX: usize = 100;
/// Payload bytes of a PING.
pub const PING_BYTES_MAX: usize = 64;
/// Longest deadline of a call.
pub const CALL_DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Milliseconds for which a cancelled call is remembered: the Host that should run it may be
/// disconnected, and a call without a deadline waits for it.
pub const CALL_CANCEL_MS: u64 = 30 * 24 * 3600 * 1000;
/// Shortest interval between two pulses of a subscription.
pub const PULSE_MIN: Duration = Duration::from_millis(10);
/// Longest interval between two pulses of a subscription.
pub const PULSE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Idle time of a client after which the server sends PING.
pub const PING_AFTER: Duration = Duration::from_secs(60);
/// Idle time of a client after which the server closes the connection.
pub const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Time without progress of a queued write after which the server closes the connection.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(300);
/// Idle time over TCP after which keepalive probes are sent. Less than [`PING_AFTER`]: no probe is
/// sent while bytes are in flight.
pub(crate) const TCP_ASK_AFTER: Duration = Duration::from_secs(30);
/// Interval between two probes.
pub(crate) const TCP_ASK_EVERY: Duration = Duration::from_secs(15);
/// Time in which the peer's system must respond or acknowledge data, or the connection is given up.
pub(crate) const TCP_ANSWER_MAX: Duration = Duration::from_secs(90);
/// Time during which the server still reads after CLOSE, so that the client can read the reason. At
/// the end of a connection either side waits this long for its peer to take the last bytes.
pub const LINGER: Duration = Duration::from_secs(1);
/// Connections of one server.
pub const CONNECTIONS_MAX: usize = 12_000;
/// Connections of one server that only Unix sockets may have; a sixteenth of its limit of
/// connections if that is less.
pub const LOCAL_CONNECTIONS_MAX: usize = 16;
/// Connections of one server that wait before HELLO; a quarter of its limit of connections if that
/// is less. Half as many for each address.
pub const WAITING_MAX: usize = CONNECTIONS_MAX / 4;
/// A connection that has waited this long gives way to new ones when the maximum number waits.
/// Before that any number may wait, as long as a quarter of the connections is free.
pub const WAITING_TIME: Duration = Duration::from_secs(2);
/// Every server allows at least this many to wait.
pub const WAITING_MIN: usize = 64;
/// Tokens of a store.
pub const TOKENS_MAX: usize = 1000;
/// Bytes of the file of tokens.
pub const TOKENS_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of the name of a token.
pub const TOKEN_NAME_BYTES_MAX: usize = 64;
/// Blobs that a connection with a token limited to some topics may use, of those it was shown.
pub const KNOWN_BLOBS_MAX: usize = 16_384;
/// Wrong tokens of one address that are answered without delay.
pub const FAILURES_FREE: u32 = 5;
/// Time without a wrong token after which those of an address are forgotten.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(60);
/// Delay of the reply to the first wrong token beyond them; each further one doubles it.
pub(crate) const FAILURE_DELAY_MIN: Duration = Duration::from_millis(250);
/// Maximum delay of the reply to a wrong token; less than [`HELLO_WAIT`].
pub const FAILURE_DELAY_MAX: Duration = Duration::from_secs(8);
/// Delayed replies to wrong tokens of one address at a time; further ones are refused with
/// [`Code::Busy`](crate::Code::Busy).
pub const FAILURES_WAITING_MAX: u32 = 16;
/// Addresses whose wrong tokens are remembered.
pub const THROTTLE_PEERS_MAX: usize = 4096;
/// Interval between checks of the files of tokens and certificates for changes.
pub const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Time that a HELLO waits until changed tokens are read; the last ones decide then.
pub(crate) const TOKENS_WAIT: Duration = Duration::from_secs(1);
/// Bytes of a file of certificates or keys.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;
