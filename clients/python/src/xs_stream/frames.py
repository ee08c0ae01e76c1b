"""Frames as a server delivers them: FRAME records of docs/wire.md, whose CRC is checked on arrival
and whose parts are read on demand."""

from __future__ import annotations

import datetime
import struct
from itertools import groupby
from typing import Any, List, Literal, NamedTuple, Optional, Sequence, Tuple
from zlib import crc32

from .coding import Reader, Writer
from .errors import IntegrityError, InvalidValue, ProtocolError
from .limits import NO_OFFSET
from .values import FOREVER, BlobHash, FrameId, Origin, Ttl, json_value, read_json, ttl_of

__all__ = ["Frame", "FrameList"]

_HEAD = struct.Struct("<IIBBBBI")
_U64 = struct.Struct("<Q")
_ORIGIN = struct.Struct("<16s16sQII")
_KIND_FRAME = 1
_BODY, _ORIGINATED, _OLD_ID = 1, 2, 4
_TTL_LAST = 3
_UNREAD: Any = object()

REPR_META_MAX = 200
"""Maximum characters of a meta that repr shows."""


class Frame:
    """One stored event. Its parts are read from its record on demand."""

    __slots__ = ("_body", "_meta", "_record", "offset")

    kind: Literal["frame"] = "frame"

    def __init__(self, record: bytes, offset: Optional[int], body: Optional[bytes] = None) -> None:
        self._record = record
        self.offset = offset
        """Its ordinal in the log; None if it is ephemeral."""
        self._body = body
        self._meta: Any = _UNREAD

    @property
    def id(self) -> FrameId:
        return FrameId(self._record[16:32])

    @property
    def time_ms(self) -> int:
        """When it was appended, in milliseconds since 1970."""
        return int.from_bytes(self._record[16:22], "big")

    @property
    def time(self) -> datetime.datetime:
        """When it was appended, in UTC."""
        return datetime.datetime.fromtimestamp(self.time_ms / 1000, datetime.timezone.utc)

    @property
    def _topic_at(self) -> int:
        flags, ttl = self._record[9], self._record[11]
        at = 40 if ttl >= 2 else 32
        return at + 40 * (flags & _BODY) + 24 * (flags & _ORIGINATED) + 4 * (flags & _OLD_ID)

    @property
    def topic(self) -> str:
        at = self._topic_at
        try:
            return self._record[at : at + self._record[10]].decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("the server's topic is not UTF-8") from error

    @property
    def meta_json(self) -> bytes:
        """The meta's JSON text as it was written; empty if there is none."""
        return self._record[self._topic_at + self._record[10] :]

    @property
    def meta(self) -> Any:
        """The meta, parsed on first use; None if there is none. Integers with more digits than an
        int may have (4,300) are Decimals."""
        if self._meta is _UNREAD:
            text = self.meta_json
            self._meta = json_value(text) if text else None
        return self._meta

    @property
    def ttl(self) -> Ttl:
        number = self._record[11]
        if number < 2:
            return FOREVER if number == 0 else ttl_of(number, 0)
        return ttl_of(number, _U64.unpack_from(self._record, 32)[0])

    @property
    def hash(self) -> Optional[BlobHash]:
        """The hash of its body; None if it has none."""
        if not self._record[9] & _BODY:
            return None
        at = 40 if self._record[11] >= 2 else 32
        return BlobHash(self._record[at + 8 : at + 40])

    @property
    def body_bytes(self) -> int:
        """The length of its body; 0 if it has none."""
        if not self._record[9] & _BODY:
            return 0
        at = 40 if self._record[11] >= 2 else 32
        return int(_U64.unpack_from(self._record, at)[0])

    @property
    def body(self) -> Optional[bytes]:
        """Its body, if it was delivered with the frame, or empty if it has none. None: read it with
        the client's `body(frame)`."""
        return self._body if self._record[9] & _BODY else b""

    def text(self) -> str:
        """The body that was delivered with the frame, as text. Raises InvalidValue if it was not,
        or is not UTF-8."""
        if self.body is None:
            raise InvalidValue("the body did not come with the frame; read it with body(frame)")
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise InvalidValue(f"the body is no text: {error}") from error

    def json(self) -> Any:
        """The body that was delivered with the frame, as JSON. Raises InvalidValue if it was not,
        or is not JSON."""
        text = self.text()
        try:
            return read_json(text)
        except (ValueError, RecursionError) as error:
            raise InvalidValue(f"the body is not JSON: {error}") from error

    @property
    def origin(self) -> Optional[Origin]:
        """The processor that made it; None if none did."""
        flags = self._record[9]
        if not flags & _ORIGINATED:
            return None
        at = (40 if self._record[11] >= 2 else 32) + 40 * (flags & _BODY)
        made, source, offset, hops, _ = _ORIGIN.unpack_from(self._record, at)
        came = FrameId(source) if any(source) else None
        return Origin(FrameId(made), came, None if offset == NO_OFFSET else offset, hops)

    @property
    def _base(self) -> int:
        """The first offset of the run in which the frame was delivered."""
        return NO_OFFSET if self.offset is None else self.offset - self._delta

    @property
    def _delta(self) -> int:
        return int.from_bytes(self._record[12:16], "little")

    @property
    def old_id(self) -> Optional[FrameId]:
        """The id it had before it was imported under a new one."""
        if not self._record[9] & _OLD_ID:
            return None
        at = self._topic_at - 16
        return FrameId(self._record[at : at + 16])

    def __repr__(self) -> str:
        parts = [f"topic={self.topic!r}", f"id={self.id}", f"offset={self.offset}"]
        text = self.meta_json.decode(errors="replace")
        if text:
            most = REPR_META_MAX
            parts.append(f"meta={text[:most]}.." if len(text) > most else f"meta={text}")
        if self.body_bytes:
            parts.append(f"body_bytes={self.body_bytes}")
        return f"Frame({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return self._record[4:] == other._record[4:] and self.offset == other.offset

    def __hash__(self) -> int:
        return hash(self._record[16:32])


class FrameList(NamedTuple):
    """What FETCH, GET, LAST and DELIVER have in common."""

    frames: List[Frame]
    scanned_to: int


def read_record(data: bytes, at: int, end: int) -> Tuple[bytes, int, int]:
    """A FRAME record in data[at:end]: its bytes, its offset delta, and where the next one begins.
    Raises IntegrityError if it does not match its CRC."""
    if end - at < 32:
        raise ProtocolError("a record ends within its head")
    crc, length, kind, flags, name, ttl, delta = _HEAD.unpack_from(data, at)
    if length < 32 or length > end - at:
        raise ProtocolError(f"a record of {length} bytes does not fit its run")
    record = data[at : at + length]
    if crc32(memoryview(record)[4:]) != crc:
        raise IntegrityError("a record does not match its CRC")
    fixed = 32 + 8 * (ttl >= 2) + 40 * (flags & _BODY) + 24 * (flags & _ORIGINATED)
    fixed += 4 * (flags & _OLD_ID) + name
    known = _BODY | _ORIGINATED | _OLD_ID
    if kind != _KIND_FRAME or ttl > _TTL_LAST or flags & ~known or fixed > length or not name:
        raise ProtocolError("a record is not a frame")
    if ttl == _TTL_LAST and not any(record[32:40]):
        raise ProtocolError("a record keeps none of its topic")
    return record, delta, at + ((length + 7) & ~7)


def read_frame_list(reader: Reader, data: bytes) -> FrameList:
    """Reads a frame list up to the end of `data`, over which `reader` runs."""
    scanned_to, runs = reader.u64("scanned_to"), reader.u32("runs")
    bodies = reader.u32("bodies")
    frames: List[Frame] = []
    for _ in range(runs):
        base, length = reader.u64("run"), reader.u32("run")
        count = reader.u32("run")
        at = reader.skip(length, "run")
        end = at + length
        if count == 0 or count > length // 32:
            raise ProtocolError("a run does not hold as many records as it says")
        for _ in range(count):
            record, delta, at = read_record(data, at, end)
            frames.append(Frame(record, None if base == NO_OFFSET else base + delta))
        if at != end:
            raise ProtocolError("bytes follow the records of a run")
    for _ in range(bodies):
        place, length = reader.u32("body"), reader.u32("body")
        body = reader.take(length, "body")
        reader.skip(-length % 8, "body")
        if place >= len(frames):
            raise ProtocolError("a body belongs to no frame")
        frames[place]._body = body
    reader.end("frame list")
    return FrameList(frames, scanned_to)


def put_frame_list(out: Writer, frames: Sequence[Frame]) -> None:
    """Adds frames as they were delivered, with the bodies that were delivered with them."""
    runs = [(base, list(run)) for base, run in groupby(frames, lambda frame: frame._base)]
    bodies = [(at, frame.body) for at, frame in enumerate(frames) if frame.hash and frame.body]
    out.u64(0)
    out.u32(len(runs))
    out.u32(len(bodies))
    for base, run in runs:
        padded = [frame._record + bytes(-len(frame._record) % 8) for frame in run]
        out.u64(base)
        out.u32(sum(map(len, padded)))
        out.u32(len(padded))
        for record in padded:
            out.raw(record)
    for at, body in bodies:
        out.u32(at)
        out.u32(len(body or b""))
        out.raw(body or b"")
        out.raw(bytes(-len(body or b"") % 8))
