"""The values of a store: ids, hashes, ttls, frames to append, and related types. A value is valid
from the moment it exists; the rules for topics are left to the server, which names them."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Iterable, List, Literal, Optional, Sequence, Tuple, Type, TypeVar, Union

from .errors import InvalidValue, ProtocolError
from .limits import NO_OFFSET, PATTERNS_MAX

T = TypeVar("T")

__all__ = [
    "Appended",
    "Blob",
    "BlobHash",
    "Bound",
    "CaughtUp",
    "Condition",
    "Cursor",
    "CursorChange",
    "CursorSummary",
    "FrameId",
    "Gap",
    "NewFrame",
    "Origin",
    "Pulse",
    "ResumePoint",
    "Resumed",
    "ServerInfo",
    "Slow",
    "Stamp",
    "TopicSummary",
    "Topics",
    "Ttl",
    "drop",
    "empty",
    "head_is",
    "last_at_most",
    "latest",
]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def text_bytes(text: Any, what: str) -> bytes:
    """Text as sent. Raises InvalidValue for anything else."""
    if not isinstance(text, str):
        raise InvalidValue(f"{what} is text, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{what} cannot be UTF-8: {error}") from error


def raw_bytes(data: Any, what: str) -> bytes:
    """Bytes as sent. Raises InvalidValue for anything else."""
    if isinstance(data, bytes):
        return data
    if not isinstance(data, (bytearray, memoryview)):
        raise InvalidValue(f"{what} is bytes, not {type(data).__name__}")
    return bytes(data)


def is_within(number: Any, least: int, most: int) -> bool:
    """Whether it is a whole number between the two, inclusive."""
    return isinstance(number, int) and least <= number <= most


def millis(seconds: Any, what: str) -> int:
    """Whole milliseconds. Raises InvalidValue for anything but a number of seconds from 0 on."""
    try:
        whole: int = round(seconds * 1000)
    except (TypeError, ValueError, OverflowError):
        raise InvalidValue(f"{what} is in seconds, not {seconds!r}") from None
    if seconds < 0:
        raise InvalidValue(f"{what} is in seconds from 0 on, not {seconds!r}")
    return whole


def all_of(values: Any, kind: Type[T], what: str) -> List[T]:
    """The values as a list. Raises InvalidValue unless all are of the kind."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise InvalidValue(f"{what} come in a list, not as {type(values).__name__}")
    found = list(values)
    for value in found:
        if not isinstance(value, kind):
            raise InvalidValue(f"{what} are of {kind.__name__}, not of {type(value).__name__}")
    return found


def checked(value: Any, kind: Type[T], what: str, advice: str = "") -> T:
    """The value. Raises InvalidValue unless it is of the kind."""
    if not isinstance(value, kind):
        name = type(value).__name__
        raise InvalidValue(f"{what} is a {kind.__name__}, not {name}{advice and '; '}{advice}")
    return value


class FrameId(bytes):
    """A frame's id: 16 bytes (SCRU128) whose order is that of the log. `str()` returns its 25
    digits in base 36."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> "FrameId":
        if len(raw_bytes(raw, "a frame id")) != 16:
            raise InvalidValue(f"a frame id has 16 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def parse(cls, text: str) -> "FrameId":
        """Parses the 25 digits, in either case. Raises InvalidValue."""
        number = -1
        if isinstance(text, str) and len(text) == 25 and text.isascii() and text.isalnum():
            number = int(text, 36)
        if not 0 <= number < 1 << 128:
            shown = repr(text[:40] if isinstance(text, str) else text)
            raise InvalidValue(f"{shown} is not a frame id of 25 digits of base 36")
        return cls(number.to_bytes(16, "big"))

    @property
    def time_ms(self) -> int:
        """Milliseconds since 1970 that the id carries."""
        return int.from_bytes(self[:6], "big")

    def __str__(self) -> str:
        number, digits = int.from_bytes(self, "big"), []
        for _ in range(25):
            number, digit = divmod(number, 36)
            digits.append(_DIGITS[digit])
        return "".join(reversed(digits))

    def __repr__(self) -> str:
        return f"FrameId({self})"


class BlobHash(bytes):
    """The SHA-256 that names a blob. `str()` returns `sha256-` and base64, as in browsers."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> "BlobHash":
        if len(raw_bytes(raw, "a hash")) != 32:
            raise InvalidValue(f"a hash has 32 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, data: bytes) -> "BlobHash":
        """The hash of some bytes."""
        return cls(hashlib.sha256(raw_bytes(data, "what has a hash")).digest())

    @classmethod
    def parse(cls, text: str) -> "BlobHash":
        """Parses `sha256-<base64>`. Raises InvalidValue."""
        try:
            if isinstance(text, str) and text.startswith("sha256-"):
                return cls(base64.b64decode(text[7:], validate=True))
        except (InvalidValue, binascii.Error, ValueError):
            pass
        shown = repr(text[:60] if isinstance(text, str) else text)
        raise InvalidValue(f"{shown} is not sha256- and 44 digits of base64")

    def __str__(self) -> str:
        return "sha256-" + base64.b64encode(self).decode()

    def __repr__(self) -> str:
        return f"BlobHash({self})"


@dataclass(frozen=True)
class Ttl:
    """How long a frame is kept. `value` is the milliseconds of `time`, or the count of `last`. A
    time of 0 occurs in frames of old stores and can no longer be appended."""

    kind: str
    value: int = 0

    def __post_init__(self) -> None:
        least = {"time": 0, "last": 1}.get(self.kind) if isinstance(self.kind, str) else None
        is_good = least is None or is_within(self.value, least, NO_OFFSET)
        if self.kind not in _TTLS or not is_good:
            raise no_ttl(f"{self.kind}:{self.value}")
        if least is None and self.value:
            raise InvalidValue(f"the ttl {self.kind} has no number")

    @classmethod
    def parse(cls, text: str) -> "Ttl":
        """Parses `forever`, `ephemeral`, `time:<ms>` or `last:<n>`. A time may have a unit, one of
        ms, s, m, h, d (24 hours) and w: `time:3d`. Raises InvalidValue."""
        form = r"forever|ephemeral|(time|last):0*([0-9]{1,20})([a-z]*)"
        found = re.fullmatch(form, text) if isinstance(text, str) else None
        if found is None:
            raise no_ttl(text)
        kind, digits, unit = found.groups()
        if kind is None:
            return cls(text)
        factor = _UNITS_MS.get(unit) if kind == "time" or not unit else None
        value = int(digits) * (factor or 0)
        if factor is None or not 0 < value <= NO_OFFSET:
            raise no_ttl(text)
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}" if self.kind in ("time", "last") else self.kind

    @property
    def number(self) -> int:
        """The number of the kind on the wire."""
        return _TTLS.index(self.kind)


def no_ttl(text: Any) -> InvalidValue:
    shown = str(text)[:80] if isinstance(text, (str, Ttl)) else text
    return InvalidValue(
        f"{shown!r} is not a ttl: forever, ephemeral, time:<ms>, time:3d (ms, s, m, h, d, w) "
        "or last:<n>, both from 1 on"
    )


_DAY_MS = 24 * 60 * 60 * 1000
_UNITS_MS = {
    "": 1,
    "ms": 1,
    "s": 1000,
    "m": 60 * 1000,
    "h": 60 * 60 * 1000,
    "d": _DAY_MS,
    "w": 7 * _DAY_MS,
}
_TTLS = ("forever", "ephemeral", "time", "last")
FOREVER = Ttl("forever")


def ttl_of(number: int, value: int) -> Ttl:
    """The ttl with a number on the wire. Raises InvalidValue."""
    if number >= len(_TTLS):
        raise InvalidValue(f"ttl {number} is not known")
    return FOREVER if number == 0 else Ttl(_TTLS[number], value)


Bound = Union[int, FrameId, str]
"""A place in the log: an offset, an id, or the text of an id. An id need not exist."""

Time = Union[int, datetime.datetime]
"""Milliseconds since 1970, or a datetime in its own time zone."""

Topics = Union[str, Iterable[str]]
"""Patterns: `a.b`, `a.b.*`, `*`; several separated by commas or in a list."""


def patterns_of(topics: Topics) -> List[str]:
    """The patterns as a list. Raises InvalidValue for none or too many."""
    parts = topics.split(",") if isinstance(topics, str) else all_of(topics, str, "topic patterns")
    if not 1 <= len(parts) <= PATTERNS_MAX:
        raise InvalidValue(f"a read takes 1 to {PATTERNS_MAX} topic patterns, not {len(parts)}")
    return [part.strip() for part in parts]


def bound_of(bound: Bound) -> Union[int, FrameId]:
    """An offset or an id. Raises InvalidValue."""
    if isinstance(bound, str):
        return FrameId.parse(bound)
    if not isinstance(bound, FrameId) and not is_within(bound, 0, NO_OFFSET):
        raise InvalidValue(f"{bound!r} is not an offset or an id")
    return bound


def time_of(time: Time) -> int:
    """Milliseconds since 1970. Raises InvalidValue."""
    if isinstance(time, datetime.datetime):
        try:
            return int(time.timestamp() * 1000)
        except (ValueError, OverflowError) as error:
            raise InvalidValue(f"{time} is no time: {error}") from error
    if not isinstance(time, int):
        raise InvalidValue(f"a time is a datetime or milliseconds since 1970, not {time!r}")
    return time


@dataclass(frozen=True)
class Origin:
    """The processor that made a frame, and the input that it made it from."""

    processor: FrameId
    input: Optional[FrameId]
    input_offset: Optional[int]
    hops: int


Json = Any
"""Anything that json.dumps takes."""

Body = Union[None, bytes, bytearray, memoryview, str, BlobHash]
"""None, bytes, text (UTF-8), or the hash of a blob that the store has."""


@dataclass(frozen=True)
class NewFrame:
    """A frame to append. `meta` is any JSON value, None for none; `meta_json` is its text instead,
    sent unchanged. `json` is a JSON body instead of `body`."""

    topic: str
    body: Body = None
    meta: Json = None
    ttl: Union[str, Ttl] = FOREVER
    json: Json = None
    meta_json: Optional[bytes] = None

    def body_bytes(self) -> Union[bytes, BlobHash, None]:
        """The body as sent."""
        if self.json is not None:
            if self.body is not None:
                raise InvalidValue("a frame has body or json, not both")
            return json_bytes(self.json)
        if isinstance(self.body, str):
            return text_bytes(self.body, "a body")
        return None if self.body is None else raw_bytes(self.body, "a body that is no text")

    def meta_bytes(self) -> bytes:
        """The meta as sent."""
        if self.meta_json is not None:
            return raw_bytes(self.meta_json, "meta_json")
        return b"" if self.meta is None else json_bytes(self.meta)


def json_bytes(value: Json) -> bytes:
    """Compact JSON. Raises InvalidValue for values that JSON cannot express."""
    try:
        return json.dumps(
            value, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"not JSON: {error}") from error


def read_json(text: Union[bytes, str]) -> Json:
    """Parses JSON. An integer with more digits than Python allows in an int, 4,300 by default, is a
    Decimal. Raises ValueError for invalid JSON."""
    try:
        return json.loads(text)
    except ValueError:
        # Slower, so it is used only when needed.
        return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> Union[int, Decimal]:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


def json_value(text: bytes) -> Json:
    """Parses JSON from the server. Raises ProtocolError."""
    try:
        return read_json(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the server's JSON is broken: {error}") from error


@dataclass(frozen=True)
class CursorChange:
    """A change of one cursor, stored in the same batch as the frames along with it. `offset` None
    removes it. `expect` is the revision it must have; 0: it must not exist; None: any."""

    name: str
    offset: Optional[int]
    state: bytes = b""
    expect: Optional[int] = None


@dataclass(frozen=True)
class Condition:
    """A condition for a batch to be stored: created by last_at_most, empty and head_is."""

    kind: int
    topics: Tuple[str, ...] = ()
    offset: int = 0


def last_at_most(topics: Topics, offset: int) -> Condition:
    """No frame of the topics has a higher offset."""
    return Condition(1, tuple(patterns_of(topics)), offset)


def empty(topics: Topics) -> Condition:
    """The topics hold no frame."""
    return Condition(2, tuple(patterns_of(topics)))


def head_is(offset: int) -> Condition:
    """The next frame of the log gets this offset."""
    return Condition(3, (), offset)


@dataclass(frozen=True)
class Slow:
    """What happens to a follower that takes frames more slowly than they arrive: created by latest
    and drop. Without one, the server waits for it and it misses no stored frame."""

    policy: int
    behind: int


def latest(behind: int) -> Slow:
    """When it is more than `behind` frames behind, it gets a gap and the newest frame of each
    topic. Cannot be combined with limit, before, since or until."""
    return Slow(1, behind)


def drop(behind: int) -> Slow:
    """When it is more than `behind` frames behind, it ends with Unavailable, code 503."""
    return Slow(2, behind)


@dataclass(frozen=True)
class Stamp:
    """What the store assigned to a frame; an ephemeral one has no offset."""

    id: FrameId
    offset: Optional[int]


@dataclass(frozen=True)
class Appended:
    """The result of a batch. `cursors` holds the new revisions, 0 for removed ones; `durable` says
    that the batch survives a power cut; `head` is the offset after the last frame visible to
    readers. `repeated`: a batch with this key existed already; then `frames` holds its stamps, or
    only that of its first frame if no more is known, `cursors` is empty, and nothing is removed
    again. `removed` says for each frame to be removed whether it existed; if `repeated`, all are
    False."""

    frames: Sequence[Stamp]
    cursors: Sequence[int]
    durable: bool
    repeated: bool
    head: int
    removed: Sequence[bool] = ()


@dataclass(frozen=True)
class Outcome:
    """The outcome of one frame of an import: `kind` is new, there (the store had it) or refused,
    with the `code` of the reason, as docs/wire.md lists them."""

    kind: str
    code: Optional[int] = None


@dataclass(frozen=True)
class Imported:
    """The result of an import. `durable` says that what is new survives a power cut; `head` is the
    offset after the last frame visible to readers."""

    outcomes: Sequence[Outcome]
    durable: bool
    head: int


@dataclass(frozen=True)
class TopicSummary:
    """What the store holds of one topic."""

    name: str
    count: int
    bytes: int
    first: FrameId
    last: FrameId
    last_offset: int


@dataclass(frozen=True)
class Cursor:
    """A named, durable position: the offset of the first frame that was not handled yet."""

    name: str
    revision: int
    epoch: int
    offset: int
    time_ms: int
    state: bytes


@dataclass(frozen=True)
class CursorSummary:
    """A cursor without its state."""

    name: str
    revision: int
    epoch: int
    offset: int
    time_ms: int
    state_bytes: int


@dataclass(frozen=True)
class Blob:
    """A stored blob."""

    hash: BlobHash
    bytes: int


@dataclass(frozen=True)
class ResumePoint:
    """Where a reader continues: the first frame not seen yet, and where that offset was seen. Valid
    only for this store and this epoch."""

    store: bytes
    epoch: int
    offset: int

    def __str__(self) -> str:
        return f"{self.store.hex()}:{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "ResumePoint":
        """Parses the result of `str()`. Raises InvalidValue."""
        try:
            store, epoch, offset = text.split(":")
            point = cls(bytes.fromhex(store), int(epoch), int(offset))
            if len(point.store) == 16:
                return point
        except (ValueError, AttributeError, TypeError):
            pass
        shown = repr(text[:80] if isinstance(text, str) else text)
        raise InvalidValue(f"{shown} is not a resume point")


@dataclass(frozen=True)
class CaughtUp:
    """Everything stored at the beginning was returned; what follows is new. Occurs once."""

    head: int
    kind: Literal["caught_up"] = "caught_up"


@dataclass(frozen=True)
class Pulse:
    """The requested time has passed."""

    kind: Literal["pulse"] = "pulse"


@dataclass(frozen=True)
class Gap:
    """Frames are missing here, for a `reason`. corrupt: stored ones from `first` to before `end`
    cannot be read. conflated: of those, only the newest of each topic follow, as requested with
    `slow`. ephemeral: `count` of these arrived faster than they were taken."""

    reason: str
    first: Optional[int] = None
    end: Optional[int] = None
    count: int = 0
    kind: Literal["gap"] = "gap"


@dataclass(frozen=True)
class Resumed:
    """The connection was lost and made again: no stored frame is missing or repeated, but ephemeral
    ones sent meanwhile are missing. `offset` is where it continued; None: from its start."""

    offset: Optional[int]
    kind: Literal["resumed"] = "resumed"


@dataclass(frozen=True)
class ServerInfo:
    """What the server said about itself and its store when the connection was made."""

    name: str
    version: int
    role: str
    store: bytes
    epoch: int
    head: int
    message_bytes: int
    requests: int
    streams: int
    chunk_bytes: int
    upload_window: int
    batch_records: int
    ops: Tuple[Tuple[int, int, int], ...]
