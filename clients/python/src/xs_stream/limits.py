"""All limits of the protocol that a client must know (docs/wire.md, Limits)."""

MESSAGE_BYTES_MAX = 24 * 1024 * 1024
"""Maximum bytes of a message that a server accepts, header included."""
SERVER_MESSAGE_BYTES_MAX = 2 * 1024 * 1024
"""Maximum bytes of a message that a server sends, header included."""
HEADER_BYTES = 16
PEER_NAME_BYTES_MAX = 255
TOKEN_BYTES_MAX = 1024
TOPIC_BYTES_MAX = 255
NAME_BYTES_MAX = 255
META_BYTES_MAX = 64 * 1024
CURSOR_STATE_BYTES_MAX = 1024 * 1024
BATCH_RECORDS_MAX = 4096
CONDITIONS_MAX = 64
PATTERNS_MAX = 64
PING_BYTES_MAX = 64
PAGE_BYTES_MAX = 1024 * 1024
CHUNK_BYTES_MAX = 256 * 1024
BODY_WITH_FRAME_MAX = 1024 * 1024
LAST_MAX = 1_000_000
CREDIT_MAX = 1 << 32
PULSE_MS_MIN = 10
PERCENT_MAX = 100
PATH_BYTES_MAX = 4096
DAY_MS = 24 * 3600 * 1000
CORR_MAX = (1 << 32) - 1
NO_OFFSET = (1 << 64) - 1
INLINE_BYTES_MAX = 1024 * 1024
"""Bodies with more bytes than this are uploaded as a blob before their frame is appended."""
CREDIT_DEFAULT = 1024 * 1024
"""Bytes that a server may send ahead on each stream, by default."""
FREE_WAITING_MAX = 65_536
"""Maximum number of waiting events and grants of a stream, which cost no credit."""
PONGS_MAX = 1024
"""Maximum number of answers to PINGs that wait to be written."""
PARTS_BYTES_MAX = 1 << 30
"""Maximum bytes of incomplete answers, of all requests together."""
PART_BYTES_MIN = 1024
"""Minimum that one part of an answer counts towards them."""
