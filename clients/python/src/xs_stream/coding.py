"""Integers, text and headers on the wire: reads and writes bytes, and knows nothing of their
meaning. A read beyond the end is a ProtocolError, never another exception."""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Sequence, Tuple, Union

from .errors import InvalidValue, ProtocolError
from .limits import HEADER_BYTES
from .values import BlobHash, FrameId, text_bytes

PREFACE = b"XSP\0\1\0\0\0"

RESPONSE, PUSH, MORE = 1, 2, 4

_HEADER = struct.Struct("<IBBHII")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")


class Op:
    """The numbers of the ops."""

    HELLO = 0x01
    PING = 0x03
    GOAWAY = 0x04
    CLOSE = 0x05
    APPEND = 0x10
    REMOVE = 0x11
    IMPORT = 0x12
    FETCH = 0x20
    GET = 0x21
    LAST = 0x22
    TOPICS = 0x23
    SUBSCRIBE = 0x30
    DELIVER = 0x31
    CREDIT = 0x32
    UNSUBSCRIBE = 0x33
    SUB_EVENT = 0x34
    CURSOR_SET = 0x40
    CURSOR_GET = 0x41
    CURSOR_LIST = 0x42
    BLOB_HAS = 0x50
    BLOB_PUT = 0x51
    BLOB_GET = 0x52
    BLOB_CHUNK = 0x53
    CALL = 0x60
    STATS = 0x70
    MAINTAIN = 0x71


# Ops that change something.
CHANGES = (Op.APPEND, Op.REMOVE, Op.IMPORT, Op.CURSOR_SET, Op.CALL, Op.MAINTAIN)


class Header(NamedTuple):
    """The 16 bytes before each body."""

    length: int
    op: int
    flags: int
    code: int
    corr: int
    sub: int

    @classmethod
    def read(cls, data: Union[bytes, bytearray, memoryview], at: int) -> "Header":
        """The header at a position with at least 16 bytes."""
        return cls(*_HEADER.unpack_from(data, at))


def message(
    op: int, flags: int, code: int, corr: int, sub: int, body: Union[bytes, bytearray] = b""
) -> bytes:
    """A complete message."""
    head = _HEADER.pack(HEADER_BYTES - 4 + len(body), op, flags, code, corr, sub)
    return head + body


class Reader:
    """Reads a body from its beginning."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _move(self, count: int, what: str) -> int:
        at = self._at
        if count > len(self._data) - at:
            raise ProtocolError(f"the server's message ends within its {what}")
        self._at = at + count
        return at

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def u8(self, what: str) -> int:
        return self._data[self._move(1, what)]

    def u16(self, what: str) -> int:
        return int(_U16.unpack_from(self._data, self._move(2, what))[0])

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self._data, self._move(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self._data, self._move(8, what))[0])

    def take(self, count: int, what: str) -> bytes:
        at = self._move(count, what)
        return self._data[at : at + count]

    def skip(self, count: int, what: str) -> int:
        """Skips bytes and returns where they begin."""
        return self._move(count, what)

    def rest(self) -> bytes:
        return self.take(self.left, "rest")

    def id(self, what: str) -> FrameId:
        return FrameId(self.take(16, what))

    def hash(self, what: str) -> BlobHash:
        return BlobHash(self.take(32, what))

    def text(self, what: str) -> str:
        raw = self.take(self.u16(what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"the server's {what} is not UTF-8") from error

    def end(self, what: str) -> None:
        if self.left:
            raise ProtocolError(f"{self.left} bytes follow the server's {what}")


class Writer:
    """Builds a body. A number that does not fit its field raises InvalidValue."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = bytearray()

    def _pack(self, form: struct.Struct, number: int) -> None:
        try:
            self.data += form.pack(number)
        except struct.error as error:
            raise InvalidValue(f"{number!r} does not fit {form.size * 8} bits") from error

    def u8(self, number: int) -> None:
        self.data.append(number)

    def u16(self, number: int) -> None:
        self._pack(_U16, number)

    def u32(self, number: int) -> None:
        self._pack(_U32, number)

    def u64(self, number: int) -> None:
        self._pack(_U64, number)

    def raw(self, data: Union[bytes, bytearray]) -> None:
        self.data += data

    def text(self, text: str, most: int, what: str) -> None:
        raw = text_bytes(text, f"a {what}")
        if len(raw) > most:
            raise InvalidValue(f"a {what} has at most {most} bytes, not {len(raw)}")
        self.u16(len(raw))
        self.data += raw

    def bound(self, bound: Union[int, FrameId]) -> None:
        if isinstance(bound, FrameId):
            self.u8(1)
            self.data += bound
        else:
            self.u8(0)
            self.u64(bound)

    def patterns(self, patterns: Sequence[str]) -> None:
        self.u16(len(patterns))
        for pattern in patterns:
            self.text(pattern, 0xFFFF, "topic pattern")

    def extensions(self, extensions: Sequence[Tuple[int, bytes]]) -> None:
        for tag, value in extensions:
            self.u16(tag)
            self.u16(0)
            self.u32(len(value))
            self.data += value


def read_extensions(reader: Reader) -> List[Tuple[int, Reader]]:
    """The extensions up to the end of a body."""
    found = []
    while reader.left:
        tag, _ = reader.u16("extension"), reader.u16("extension")
        found.append((tag, Reader(reader.take(reader.u32("extension"), "extension"))))
    return found
