"""One connection in asyncio: a socket around a Session. It ends with the first error and never
reconnects; that is up to the client."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Sequence, Tuple, Union, cast

from . import messages
from .address import Address
from .coding import CHANGES, Op
from .errors import (
    AddressError,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    Indeterminate,
    ProtocolError,
    Refusal,
    TlsError,
    XsError,
    refusal_of,
)
from .limits import FREE_WAITING_MAX
from .session import Answer, Closed, Event, Flow, GoAway, Push, Session, Welcome
from .values import ServerInfo

__all__ = ["Connection", "Line", "NotSent", "is_undone", "is_unknown", "open_connection"]

_PAID = (Op.DELIVER, Op.BLOB_CHUNK)
SOCKET_PATH_MAX = 107
WRITE_BUFFER = 1024 * 1024
CLOSE_WAIT = 2.0
KEEP_ALIVE = (
    ("TCP_KEEPIDLE", 60),
    ("TCP_KEEPINTVL", 20),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 120_000),
)
"""Seconds; and the milliseconds within which sent data must be acknowledged."""


_LATE = (104, 106)
"""Codes of connections that were closed only because the network was too slow."""
_FINAL = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR)
"""Errors of the system for an address that no waiting mends."""
_SPENT = "the connection has no stream numbers left"


class NotSent(ConnectionLost):
    """The connection was over before the request was sent: nothing was done."""

    @property
    def retryable(self) -> bool:
        return True


def is_unknown(error: XsError) -> bool:
    """Whether it is unknown what was done."""
    is_lost = isinstance(error, ConnectionLost) and not isinstance(error, NotSent)
    return is_lost or isinstance(error, Indeterminate)


def is_undone(error: XsError) -> bool:
    """Whether the error says that nothing was done, which is true of its attempt only. The server's
    verdict on the request itself (3xx, 4xx) is true of all attempts: it first checks whether it has
    the request already."""
    if isinstance(error, Refusal):
        return error.code // 100 not in (3, 4, 8)
    return isinstance(error, (ConnectError, NotSent))


class Line:
    """A stream as the connection sees it: the messages that arrived for it and were not taken yet.
    The credit granted bounds how many, and the server is held to it."""

    def __init__(self, connection: "Connection", op: int, sub: int, credit: int) -> None:
        self._connection = connection
        self._items: Deque[Push] = deque()
        self._waiter: Optional["asyncio.Future[None]"] = None
        self._failure: Optional[XsError] = None
        self._flow = Flow(credit)
        self._free = 0
        """Messages among the items that cost no credit."""
        self._ended = False
        self.op = op
        """The op of the request that opens it."""
        self.sub = sub
        self.over = False
        """The server knows that the stream has ended."""

    def put(self, push: Push) -> None:
        """Raises ProtocolError when the server sends more than it may."""
        if self._ended:
            return
        if self._items and messages.is_pulse(push.op, push.body):
            last = self._items[-1]
            if messages.is_pulse(last.op, last.body):
                # They cost no credit; of several in a row, one is kept.
                return
        if push.op in _PAID:
            self._flow.came(push)
        else:
            self._free += 1
            if self._free > FREE_WAITING_MAX:
                raise ProtocolError("the server sent more events than anybody can want")
        self._ended = messages.is_last(push.op, push.more, push.body)
        self._items.append(push)
        self._wake()

    def _take(self) -> Push:
        push = self._items.popleft()
        self._free -= push.op not in _PAID
        return push

    def fail(self, failure: XsError) -> None:
        self._failure = failure
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def item(self) -> Push:
        """The next message. Raises what ended the connection once all earlier messages were
        taken."""
        while not self._items:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take()

    def poll(self) -> Optional[Push]:
        """The next message, if there is one."""
        return self._take() if self._items else None

    def took(self, push: Push) -> None:
        """The contents of a message were used up: the server may send that much more."""
        grant = self._flow.took(len(push.body))
        if grant and not self.over and self._failure is None:
            self._connection.tell(Op.CREDIT, self.sub, messages.credit(grant))

    def close(self) -> None:
        """Ends the stream, from this side if necessary, and wakes its waiting caller."""
        self._connection.forget(self, tell=not self.over)
        self.over = True
        self._items.clear()
        self.fail(ClientClosed("the stream was closed"))

    def close_from_anywhere(self) -> None:
        """Makes the loop end the stream; may be called in any thread."""
        with contextlib.suppress(RuntimeError):  # The loop is closed, and the stream with it.
            self._connection._loop.call_soon_threadsafe(self.close)


class Connection(asyncio.Protocol):
    """A connection that has sent HELLO, answered or not."""

    def __init__(self, name: str, token: Optional[str]) -> None:
        loop = asyncio.get_running_loop()
        self._session = Session(name, token)
        self._transport: Optional[asyncio.Transport] = None
        self._pending: Dict[int, Tuple[int, "asyncio.Future[Sequence[bytes]]"]] = {}
        self._lines: Dict[int, Line] = {}
        self._welcome: "asyncio.Future[ServerInfo]" = loop.create_future()
        self._ended: "asyncio.Future[None]" = loop.create_future()
        self._room = asyncio.Event()
        self._room.set()
        self._turn = asyncio.Lock()
        self._flush_due = False
        self._loop = loop
        self.failure: Optional[XsError] = None
        self.draining: Optional[str] = None
        """Why the server is stopping; new requests belong on another connection."""

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _keep_alive(transport.get_extra_info("socket"))
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._transport is not None and self._transport.get_write_buffer_size() == 0:
            self._session.written()
        try:
            for event in self._session.receive(data):
                self._happened(event)
        except ProtocolError as error:
            self._end(error)
        self._flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Optional[Exception]) -> None:
        why = f": {exc}" if exc else ""
        self._end(ConnectionLost(f"the connection to the server ended{why}"))
        if not self._ended.done():
            self._ended.set_result(None)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # What the client calls.

    @property
    def info(self) -> ServerInfo:
        if self._session.info is None:
            raise ProtocolError("HELLO was not answered")
        return self._session.info

    @property
    def is_usable(self) -> bool:
        """Whether it takes new requests."""
        return self.failure is None and self.draining is None

    async def welcome(self) -> ServerInfo:
        """Waits for the answer to HELLO."""
        return await asyncio.shield(self._welcome)

    async def ask(
        self, op: int, body: Union[bytes, bytearray] = b"", line: Optional[Line] = None
    ) -> Sequence[bytes]:
        """Sends a request and waits for all parts of its answer. Raises Refusal, NotSent,
        ConnectionLost, InvalidValue."""
        await self._writable()
        return await self.send(op, body, line)

    def send(
        self, op: int, body: Union[bytes, bytearray] = b"", line: Optional[Line] = None
    ) -> "asyncio.Future[Sequence[bytes]]":
        """Sends a request at once; the answer arrives later."""
        corr = self._session.request(op, body, line.sub if line else 0)
        future: "asyncio.Future[Sequence[bytes]]" = self._loop.create_future()
        self._pending[corr] = (op, future)
        future.add_done_callback(lambda _: self._pending.pop(corr, None))
        self._flush_soon()
        return future

    async def _writable(self) -> None:
        """Waits in order until the server takes more. Raises NotSent, or the error that rules out
        another connection."""
        if not self._room.is_set() or self._turn.locked():
            async with self._turn:
                await self._room.wait()
        if self.failure is not None:
            told = _told(self.failure)
            if not isinstance(told, ConnectionLost):
                raise told
            raise NotSent(str(self.failure)) from self.failure

    def open(self, op: int, credit: int) -> Line:
        """Returns a new stream; the request that opens it must be sent next."""
        if self._session.streams_left == 0:
            raise NotSent(_SPENT)
        line = Line(self, op, self._session.stream(), credit)
        if self._session.streams_left == 0:
            self.draining = self.draining or _SPENT
        self._lines[line.sub] = line
        return line

    async def ask_stream(
        self, op: int, body: Union[bytes, bytearray], credit: int
    ) -> Tuple[Line, Sequence[bytes]]:
        """Opens a stream and waits until the server has accepted it."""
        await self._writable()
        line = self.open(op, credit)
        try:
            return line, await self.send(op, body, line)
        except BaseException as error:
            # A cancelled caller takes the stream back; one that was refused does not exist.
            line.over = isinstance(error, XsError)
            line.close()
            raise

    async def send_chunk(self, line: Line, chunk: bytes, flags: int) -> None:
        """Sends a chunk of an upload."""
        await self._writable()
        if line.over:
            raise ClientClosed("the upload is over")
        self._session.tell(Op.BLOB_CHUNK, line.sub, chunk, flags)
        self._flush()

    def tell(self, op: int, sub: int, body: Union[bytes, bytearray] = b"") -> None:
        """Sends a small one-way message; no effect if the connection has ended."""
        if self.failure is None:
            self._session.tell(op, sub, body)
            self._flush_soon()

    def forget(self, line: Line, tell: bool) -> None:
        """Delivers nothing more to a stream."""
        if self._lines.pop(line.sub, None) is not None and tell:
            self.tell(Op.UNSUBSCRIBE, line.sub)

    def close_when_idle(self) -> None:
        """Ends the connection if nothing is in progress on it."""
        if not self._pending and not self._lines:
            self.abandon(ConnectionLost("the connection is not used any more"))

    def abandon(self, why: XsError) -> None:
        """Ends the connection; what was sent before is still delivered."""
        self._flush()
        self._end(why)

    async def closed(self) -> None:
        """Waits until the socket is closed; gives up on data that the server does not take."""
        if self._transport is None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), CLOSE_WAIT)
        except asyncio.TimeoutError:
            self._transport.abort()

    # What happens.

    def _happened(self, event: Event) -> None:
        if isinstance(event, Push):
            line = self._lines.get(event.sub)
            if line is not None:
                line.put(event)
        elif isinstance(event, Answer):
            self._answered(event)
        elif isinstance(event, Welcome):
            if not self._welcome.done():
                self._welcome.set_result(event.info)
        elif isinstance(event, GoAway):
            self.draining = event.reason
        elif isinstance(event, Closed):
            self._end(event.refusal)

    def _answered(self, event: Answer) -> None:
        if not self._welcome.done() and event.refusal is not None:
            self._end(event.refusal)
        _, future = self._pending.get(event.corr, (0, None))
        if future is None or future.done():
            return
        if event.refusal is None:
            future.set_result(event.parts)
        else:
            future.set_exception(event.refusal)

    def _end(self, why: XsError) -> None:
        if self.failure is not None:
            return
        self.failure = why
        if self._transport is not None:
            self._transport.close()
        if not self._welcome.done():
            self._welcome.set_exception(why)
            self._welcome.exception()
        for op, future in list(self._pending.values()):
            if not future.done():
                future.set_exception(_ending(op, why))
                future.exception()
        for line in self._lines.values():
            line.fail(_ending(line.op, why))
        self._room.set()

    def _flush_soon(self) -> None:
        """Sends the requests of one iteration of the loop together."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._transport is not None and not self._transport.is_closing():
            out = self._session.outgoing()
            if out:
                self._transport.write(out)


def _ending(op: int, why: XsError) -> XsError:
    """The error with which a request or its stream ends along with the connection. Whatever the
    code of CLOSE, a request that changes something may have been done."""
    return _lost(why) if op in CHANGES else _told(why)


def _told(why: XsError) -> XsError:
    """The error for requests and streams that only read, and for later ones, when the connection
    ends. A protocol violation, a lost permission and a close by the user are final."""
    if isinstance(why, Refusal) and why.code not in _LATE and why.code < 300:
        return refusal_of(why.code, why.message, why.details)
    return _lost(why)


def _lost(why: XsError) -> XsError:
    """The error for a request or a call that changes something: it is unknown what was done."""
    is_final = isinstance(why, (ProtocolError, ClientClosed))
    told = type(why)(*why.args) if is_final else ConnectionLost(str(why))
    told.__cause__ = why
    return told


def _keep_alive(sock: Any) -> None:
    """Makes the system notice a peer that vanished silently. TCP alone never tells a process that
    only waits, and tells one that sends after a quarter of an hour."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # Options that the platform lacks are left out.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE:
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def open_connection(
    address: Address,
    name: str,
    token: Optional[str],
    tls: Optional[ssl.SSLContext],
    timeout: float,
) -> Connection:
    """Connects and sends HELLO. Raises ConnectError, Refusal, ProtocolError, AddressError."""
    if token and not address.is_local and not address.tls:
        raise AddressError(f"{address}: a token goes to another machine over TLS only (xss://)")
    loop = asyncio.get_running_loop()
    made: List[Connection] = []

    def make() -> Connection:
        made.append(Connection(name, token))
        return made[-1]

    async def connect() -> Connection:
        if address.path is not None:
            await _connect_unix(loop, make, address.path)
        else:
            context = (tls or ssl.create_default_context()) if address.tls else None
            await loop.create_connection(make, address.host, address.port, ssl=context)
        await made[-1].welcome()
        return made[-1]

    try:
        return await asyncio.wait_for(connect(), timeout)
    except BaseException as error:
        for connection in made:
            connection.abandon(ConnectionLost("the connection was not wanted any more"))
        is_late = isinstance(error, Refusal) and error.code in _LATE
        if is_late or isinstance(error, (ConnectionLost, asyncio.TimeoutError)):
            why = str(error) or f"no answer within {timeout:g} s"
            raise ConnectError(f"{address}: {why}") from error
        if isinstance(error, ssl.SSLError):
            raise TlsError(f"{address}: {error.reason or error}: {error}") from error
        if isinstance(error, OSError) and not isinstance(error, XsError):
            nobody = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
            advice = "; is a server running there (xs serve)?" if nobody else ""
            # A handshake that is cut off has neither a number nor a text.
            why = error.strerror or str(error) or "the server hung up during the handshake"
            failed = ConnectError(f"{address}: {why}{advice}")
            failed._is_final = error.errno in _FINAL
            raise failed from error
        raise


async def _connect_unix(loop: asyncio.AbstractEventLoop, make: Any, path: str) -> None:
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        await loop.create_unix_connection(make, path)
        return
    # The kernel takes no longer path, but one through an open directory is short.
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        if len(os.fsencode(short)) > SOCKET_PATH_MAX:
            raise AddressError(f"{path}: the name of the socket is too long")
        await loop.create_unix_connection(make, short)
    finally:
        os.close(directory)
