// All limits of the protocol that a client must know (docs/wire.md, Limits).

/** Maximum bytes of a message that a server accepts, header included. */
export const MESSAGE_BYTES_MAX = 24 * 1024 * 1024;
/** Maximum bytes of a message that a server sends, header included. */
export const SERVER_MESSAGE_BYTES_MAX = 2 * 1024 * 1024;
export const HEADER_BYTES = 16;
export const PEER_NAME_BYTES_MAX = 255;
export const TOKEN_BYTES_MAX = 1024;
export const TOPIC_BYTES_MAX = 255;
export const NAME_BYTES_MAX = 255;
export const META_BYTES_MAX = 64 * 1024;
export const CURSOR_STATE_BYTES_MAX = 1024 * 1024;
export const BATCH_RECORDS_MAX = 4096;
export const CONDITIONS_MAX = 64;
export const PATTERNS_MAX = 64;
export const PING_BYTES_MAX = 64;
export const PAGE_BYTES_MAX = 1024 * 1024;
export const CHUNK_BYTES_MAX = 256 * 1024;
export const BODY_WITH_FRAME_MAX = 1024 * 1024;
export const LAST_MAX = 1_000_000;
export const PULSE_MS_MIN = 10;
export const PERCENT_MAX = 100;
export const PATH_BYTES_MAX = 4096;
export const DAY_MS = 24 * 3600 * 1000;
export const NUMBER_MAX = 0xffff_ffff;
export const NO_OFFSET = 0xffff_ffff_ffff_ffffn;
/** Bodies with more bytes than this are uploaded as a blob before their frame is appended. */
export const INLINE_BYTES_MAX = 1024 * 1024;
/** Bytes that a server may send ahead on each stream, by default. */
export const CREDIT_DEFAULT = 1024 * 1024;
/** Maximum number of waiting events and grants of a stream, which cost no credit. */
export const FREE_WAITING_MAX = 65_536;
/** Maximum number of answers to PINGs that wait to be written. */
export const PONGS_MAX = 1024;
/** Maximum bytes of incomplete answers, of all requests together. */
export const PARTS_BYTES_MAX = 1 << 30;
/** Minimum that one part of an answer counts towards them. */
export const PART_BYTES_MIN = 1024;
