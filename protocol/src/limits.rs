//! Every maximum of the protocol, in one place. A length from the peer is compared with one of
//! these before memory is taken for it.

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
/// Requests of one connection that have no answer yet; beyond it the server stops reading.
pub const REQUESTS_MAX: u32 = 1024;
/// Bytes of requests of one connection that have no answer yet; beyond it the server stops reading.
pub const REQUEST_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Requests a client queues on one connection before it refuses more.
pub const CLIENT_QUEUE_MAX: usize = 65_536;
/// Subscriptions, uploads, downloads and calls of one connection at a time.
pub const STREAMS_MAX: u32 = 256;
/// The same of a connection with the role host that modules share; one that runs a module alone has
/// no more than others.
pub const HOST_STREAMS_MAX: u32 = 65_536;
/// Bytes queued for a connection beyond which its streams and reads pause.
pub const OUTBOUND_BYTES_MAX: usize = 1024 * 1024;
/// Bytes queued for a connection beyond which the server stops reading it: whoever asks and does
/// not take the answers is not answered more.
pub const UNREAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes a server gathers into one DELIVER before it begins another.
pub const DELIVER_BYTES: usize = 256 * 1024;
/// A filtered subscription that finds nothing says how far it has looked when it is so many
/// offsets further than it said last.
pub(crate) const SCANNED_EVERY: u64 = 1024;
/// Bytes of records in one page of a FETCH, whatever the client asks for.
pub const PAGE_BYTES_MAX: u32 = 1024 * 1024;
/// Bytes of one chunk of a blob.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Bytes of an upload that may be on their way before the server grants more.
pub const UPLOAD_WINDOW: u32 = 1024 * 1024;
/// Bytes of credit a stream may hold.
pub const CREDIT_MAX: u64 = 1 << 32;
/// Bytes of credit a client grants by default.
pub const CREDIT_DEFAULT: u32 = 4 * 1024 * 1024;
/// Events and grants of a stream, which cost no credit, that a client lets wait: a server that
/// sends more to a client that does not take them means no good.
pub(crate) const FREE_WAITING_MAX: usize = 65_536;
/// PINGs of a server whose answers a client lets wait until they are written.
pub const PONGS_MAX: usize = 1024;
/// Bytes of answers that are not whole yet, of all requests together, that a client keeps.
pub const PARTS_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// What one part of an answer counts for at least among them.
pub(crate) const PART_BYTES_MIN: usize = 1024;
/// Bytes of a body that may be asked to travel with its frame.
pub const BODY_WITH_FRAME_MAX: u32 = 1024 * 1024;
/// Uploads of a server at a time that have become long.
pub const LONG_UPLOADS_MAX: usize = 512;
/// Bytes beyond which an upload is a long one.
pub const LONG_UPLOAD_BYTES: u64 = 64 * 1024;
/// A long upload that has waited for bytes so long gives its place away.
pub const UPLOAD_SILENCE: Duration = Duration::from_secs(5);
/// Frames one LAST may ask for, and newest frames of a gap that a slow subscription is sent.
pub const LAST_MAX: u64 = 1_000_000;
/// The last so many frames are looked for where the request is read; more, and those that one look
/// does not find, one request of a connection at a time.
pub(crate) const LAST_AT_ONCE_MAX: u64 = 128;
/// Blocking threads that work of all connections has at a time which may take long.
pub(crate) const LONG_THREADS_MAX: usize = 32;
/// Bytes that lists have in memory, of all connections, until they are sent: where the frames of a
/// LAST or of a gap are, and cursors. As many again while they are made: each counts as long as it
/// may become, with as much again to grow in, and waits for those before it.
pub const LISTS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// A list of fewer bytes is not counted: a connection has one at a time, and one for each stream.
pub const LIST_BYTES_COUNTED: usize = 8 * 1024;
/// A list that was not sent in so much time gives way to others.
pub const LIST_TIME: Duration = Duration::from_secs(30);
/// Bytes of the message of a refusal; a longer one is cut.
pub const REFUSAL_TEXT_MAX: usize = 4 * 1024;
/// Extensions in one request.
pub const EXTENSIONS_MAX: usize = 64;
/// Bytes of the text of STATS.
pub const STATS_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a path in MAINTAIN.
pub const PATH_BYTES_MAX: usize = 4096;
/// Findings, or damaged places, that an answer to MAINTAIN lists: with the longest paths it fits
/// into a message.
pub const MAINTAIN_LISTED_MAX: usize = 100;
/// Bytes that PING may carry.
pub const PING_BYTES_MAX: usize = 64;
/// Longest deadline of a call.
pub const CALL_DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Milliseconds for which it is known that a call was given up: the Host that is to run it may be
/// away, and a call without a deadline waits for it.
pub const CALL_CANCEL_MS: u64 = 30 * 24 * 3600 * 1000;
/// Shortest time between two pulses of a subscription.
pub const PULSE_MIN: Duration = Duration::from_millis(10);
/// Longest time between two pulses of a subscription.
pub const PULSE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Silence of a client after which the server sends PING.
pub const PING_AFTER: Duration = Duration::from_secs(60);
/// Silence of a client after which the server closes the connection.
pub const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Time without progress of a queued write after which the server closes the connection.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(300);
/// Silence over TCP after which the peer's system is asked whether it is there. Less than
/// [`PING_AFTER`]: nothing is asked while bytes are on their way.
pub(crate) const TCP_ASK_AFTER: Duration = Duration::from_secs(30);
/// Between one such question and the next.
pub(crate) const TCP_ASK_EVERY: Duration = Duration::from_secs(15);
/// Time in which the peer's system answers, takes what was sent, or is given up.
pub(crate) const TCP_ANSWER_MAX: Duration = Duration::from_secs(90);
/// Time the server goes on taking bytes after CLOSE, so that the client can read why.
pub const LINGER: Duration = Duration::from_secs(1);
/// Connections of one server.
pub const CONNECTIONS_MAX: usize = 12_000;
/// Connections of one server that wait in front of HELLO, or a quarter of those it may have if that
/// is less. Of one address there are half as many.
pub const WAITING_MAX: usize = CONNECTIONS_MAX / 4;
/// One that has waited so long gives way to others that come, where there are as many as may wait.
/// Until then all wait side by side, as long as a quarter of the connections is free.
pub const WAITING_TIME: Duration = Duration::from_secs(2);
/// But so many may wait on every server.
pub const WAITING_MIN: usize = 64;
/// Tokens of a store.
pub const TOKENS_MAX: usize = 1000;
/// Bytes of the file of tokens.
pub const TOKENS_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of the name of a token.
pub const TOKEN_NAME_BYTES_MAX: usize = 64;
/// Blobs that a connection whose token is limited to some topics may use, of those it was told of.
pub const KNOWN_BLOBS_MAX: usize = 16_384;
/// Wrong tokens of one address that are answered at once.
pub const FAILURES_FREE: u32 = 5;
/// Time without a wrong token after which those of an address are forgotten.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(60);
/// Time that the answer to the first wrong token beyond them is held back; each further one doubles
/// it.
pub(crate) const FAILURE_DELAY_MIN: Duration = Duration::from_millis(250);
/// Longest time that the answer to a wrong token is held back; less than [`HELLO_WAIT`].
pub const FAILURE_DELAY_MAX: Duration = Duration::from_secs(8);
/// Answers to wrong tokens of one address that are held back at a time; further ones are refused
/// with [`Code::Busy`](crate::Code::Busy).
pub const FAILURES_WAITING_MAX: u32 = 16;
/// Addresses whose wrong tokens are remembered.
pub const THROTTLE_PEERS_MAX: usize = 4096;
/// Time between two looks at the files of tokens and certificates.
pub const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a file of certificates or keys.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;
