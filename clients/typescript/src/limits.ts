// Every maximum of the protocol that a client has to know (docs/wire.md, Limits).

/** Bytes of the longest message a server accepts, header included. */
export const MESSAGE_BYTES_MAX = 24 * 1024 * 1024;
/** Bytes of the longest message a server sends, header included. */
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
/** Bytes of a body beyond which this client uploads it as a blob before it appends the frame. */
export const INLINE_BYTES_MAX = 1024 * 1024;
/** Bytes a server may send ahead of what was taken, for each stream, unless told otherwise. */
export const CREDIT_DEFAULT = 1024 * 1024;
/** Events and grants of a stream, which cost no credit, that this client lets wait. */
export const FREE_WAITING_MAX = 65_536;
/** Answers to PINGs that this client lets wait until they are written. */
export const PONGS_MAX = 1024;
/** Bytes of answers that are not whole yet, of all requests together, that this client keeps. */
export const PARTS_BYTES_MAX = 1 << 30;
/** What one part of an answer counts for at least among them. */
export const PART_BYTES_MIN = 1024;
