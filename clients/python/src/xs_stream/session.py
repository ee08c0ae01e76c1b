"""The client's half of a connection, without a socket or a clock: bytes in, events out. It numbers
requests and streams, matches answers to requests, and answers PING."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import messages
from .coding import MORE, PREFACE, RESPONSE, Header, Op, Reader, message
from .errors import InvalidValue, ProtocolError, Refusal
from .limits import (
    CORR_MAX,
    HEADER_BYTES,
    MESSAGE_BYTES_MAX,
    PART_BYTES_MIN,
    PARTS_BYTES_MAX,
    PING_BYTES_MAX,
    PONGS_MAX,
    SERVER_MESSAGE_BYTES_MAX,
)
from .values import ServerInfo

__all__ = ["Answer", "Closed", "Event", "Flow", "GoAway", "Push", "Session", "Welcome"]


class Welcome(NamedTuple):
    """HELLO was answered: requests may be sent."""

    info: ServerInfo


class Answer(NamedTuple):
    """The complete answer to a request: the parts of its body, or why it was refused."""

    corr: int
    parts: Sequence[bytes]
    refusal: Optional[Refusal]


class Push(NamedTuple):
    """A message on a stream: DELIVER, SUB_EVENT, BLOB_CHUNK or CREDIT."""

    sub: int
    op: int
    code: int
    more: bool
    body: bytes


class GoAway(NamedTuple):
    """The server is stopping; new requests belong on another connection."""

    drain_ms: int
    reason: str


class Closed(NamedTuple):
    """The server closes the connection and says why."""

    refusal: Refusal


Event = Union[Welcome, Answer, Push, GoAway, Closed]

_PUSHES = (Op.DELIVER, Op.SUB_EVENT, Op.BLOB_CHUNK, Op.CREDIT)


class Session:
    """One connection, from its first byte on. `outgoing` takes what is to be sent."""

    def __init__(self, name: str, token: Optional[str] = None) -> None:
        self.info: Optional[ServerInfo] = None
        self._in = bytearray()
        self._out: List[bytes] = [PREFACE]
        self._greeted = False
        self._corr = 0
        self._sub = 0
        self._asked: Dict[int, Tuple[int, List[bytes]]] = {}
        self._parts_bytes = 0
        """The bytes that count for parts of incomplete answers."""
        self._pongs = 0
        """Answers to PINGs that may not have been written yet."""
        self._hello = self.request(Op.HELLO, messages.hello(name, token or ""))

    def outgoing(self) -> bytes:
        """Takes the bytes to be sent."""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return out

    def written(self) -> None:
        """Notes that everything from `outgoing` was written."""
        self._pongs = 0

    def request(self, op: int, body: Union[bytes, bytearray] = b"", sub: int = 0) -> int:
        """Adds a request and returns the number of its answer. Raises InvalidValue."""
        most = self.info.message_bytes if self.info else MESSAGE_BYTES_MAX
        if HEADER_BYTES + len(body) > most:
            raise InvalidValue(f"a request has at most {most} bytes; put its bodies as blobs")
        corr = self._corr
        while True:
            corr = corr % CORR_MAX + 1
            if corr not in self._asked:
                break
        self._corr = corr
        self._asked[corr] = (op, [])
        self._out.append(message(op, 0, 1, corr, sub, body))
        return corr

    def tell(self, op: int, sub: int, body: Union[bytes, bytearray] = b"", flags: int = 0) -> None:
        """Adds a one-way message."""
        self._out.append(message(op, flags, 1, 0, sub, body))

    @property
    def streams_left(self) -> int:
        """How many streams can still be opened: their numbers only increase."""
        return CORR_MAX - self._sub

    def stream(self) -> int:
        """Returns the number of a new stream; the request that opens it must come next."""
        assert self.streams_left > 0
        self._sub += 1
        return self._sub

    def receive(self, data: bytes) -> List[Event]:
        """Takes bytes from the server. Raises ProtocolError, after which the connection is
        unusable."""
        buffer = self._in
        buffer += data
        at = 0
        if not self._greeted:
            if not self._preface(buffer):
                return []
            at = len(PREFACE)
        events: List[Event] = []
        while len(buffer) - at >= HEADER_BYTES:
            header = Header.read(buffer, at)
            whole = header.length + 4
            if not HEADER_BYTES <= whole <= SERVER_MESSAGE_BYTES_MAX:
                raise ProtocolError(f"the server announced a message of {whole} bytes")
            if len(buffer) - at < whole:
                break
            body = bytes(memoryview(buffer)[at + HEADER_BYTES : at + whole])
            at += whole
            event = self._take(header, body)
            if event is not None:
                events.append(event)
        del buffer[:at]
        return events

    def _preface(self, buffer: bytearray) -> bool:
        met = bytes(buffer[: len(PREFACE)])
        if not PREFACE.startswith(met):
            if met[:4] == PREFACE[:4] and len(met) > 4 and met[4] != PREFACE[4]:
                raise ProtocolError(f"the server speaks XSP/{met[4]}, this client XSP/1")
            raise ProtocolError("what listens there does not speak XSP")
        self._greeted = len(met) == len(PREFACE)
        return self._greeted

    def _take(self, header: Header, body: bytes) -> Optional[Event]:
        _, op, flags, code, _, sub = header
        if flags & ~7 or flags & 3 in (0, 3):
            raise ProtocolError(f"the server sent a message with flags {flags:#x}")
        if flags & RESPONSE:
            return self._answer(header, body)
        if op in _PUSHES:
            return Push(sub, op, code, bool(flags & MORE), body)
        if op == Op.PING:
            self._pongs += 1
            if len(body) > PING_BYTES_MAX or self._pongs > PONGS_MAX:
                raise ProtocolError("the server sent more PINGs than it takes answers to")
            self._out.append(message(Op.PING, RESPONSE, 0, 0, 0, body))
            return None
        if op == Op.CLOSE:
            return Closed(messages.read_refusal(code, body))
        if op == Op.GOAWAY:
            reader = Reader(body)
            return GoAway(reader.u32("drain time"), reader.text("reason"))
        raise ProtocolError(f"the server pushed a message with op {op:#x}")

    def _answer(self, header: Header, body: bytes) -> Optional[Event]:
        op, parts = self._asked.get(header.corr, (0, []))
        if op != header.op:
            raise ProtocolError("the server answered what was not asked")
        if not header.code and header.flags & MORE:
            parts.append(body)
            self._parts_bytes += _cost(body)
            if self._parts_bytes > PARTS_BYTES_MAX:
                raise ProtocolError("the server sent an answer that does not end")
            return None
        del self._asked[header.corr]
        self._parts_bytes -= sum(map(_cost, parts))
        if header.code:
            return Answer(header.corr, (), messages.read_refusal(header.code, body))
        parts.append(body)
        if header.corr == self._hello and op == Op.HELLO:
            self.info = messages.read_hello(body)
            return Welcome(self.info)
        return Answer(header.corr, parts, None)


def _cost(part: bytes) -> int:
    return max(len(part), PART_BYTES_MIN)


class Flow:
    """The credit of one stream: bytes taken are granted again once they are half of the initial
    credit."""

    __slots__ = ("_left", "_owed", "_step")

    def __init__(self, credit: int) -> None:
        self._left = credit
        """Bytes that the server may still send; negative after a message that was longer."""
        self._step = max(1, credit // 2)
        self._owed = 0

    def came(self, push: Push) -> None:
        """Notes a DELIVER or BLOB_CHUNK. Raises ProtocolError when the server may not send it."""
        is_piece, count = push.op == Op.BLOB_CHUNK, len(push.body)
        if is_piece and not count:
            if push.more:
                raise ProtocolError("the server sent a piece of a blob without bytes")
            return
        if self._left <= 0 or (is_piece and count > self._left):
            raise ProtocolError("the server sent more than the credit of a stream")
        self._left -= count

    def took(self, count: int) -> int:
        """Notes bytes that were used up, and returns how many to grant now."""
        self._owed += count
        if self._owed < self._step:
            return 0
        owed, self._owed = self._owed, 0
        self._left += owed
        return owed
