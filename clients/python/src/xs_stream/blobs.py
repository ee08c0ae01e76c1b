"""Blobs as streams in asyncio, in both directions with bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from functools import partial
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Optional,
    Sequence,
    Set,
    Union,
)

from . import messages
from .closing import Closable, Turn
from .coding import MORE, Op, Reader
from .connection import Connection, Line
from .errors import (
    ClientClosed,
    ConnectionLost,
    IntegrityError,
    InvalidValue,
    NotFound,
    ProtocolError,
    Unavailable,
    XsError,
)
from .frames import Frame
from .limits import CHUNK_BYTES_MAX
from .messages import Dropped, read_event
from .reading import Backoff
from .values import Blob, BlobHash

if TYPE_CHECKING:
    from .aio import AsyncClient

__all__ = ["BlobReader", "BlobWriter", "Source", "pieces"]

Source = Union[IO[bytes], Iterable[bytes], AsyncIterable[bytes]]
"""The source of a blob's bytes: a file opened in binary mode, or an iterable."""

PIECE = 256 * 1024


def check_source(source: Any) -> None:
    """Raises InvalidValue for a source that yields no bytes."""
    gives = ("__aiter__", "read")
    is_iterable = isinstance(source, Iterable) and not isinstance(source, Mapping)
    if not is_iterable and not any(hasattr(source, name) for name in gives):
        raise InvalidValue(
            "a body is bytes, text, a hash, a file or an iterable of bytes, "
            f"not {type(source).__name__}; json= takes other values"
        )


async def pieces(source: Any) -> AsyncIterator[bytes]:
    """The chunks of a source. A file is read in another thread, so that it does not block the
    loop."""
    check_source(source)
    if hasattr(source, "__aiter__"):
        async for piece in source:
            yield piece
    elif hasattr(source, "read"):
        loop = asyncio.get_running_loop()
        while True:
            piece = await loop.run_in_executor(None, source.read, PIECE)
            if not piece:
                return
            yield piece
    else:
        for piece in source:
            yield piece


class BlobWriter:
    """An upload: `write` chunks, then `finish`. Leaving `async with` before that discards it. So
    does a `write` that does not finish, because it is unknown how much of its chunk was sent; later
    writes and `finish` then raise ClientClosed, with the failure as its cause."""

    _line: Optional[Line] = None

    def __init__(
        self, client: Optional["AsyncClient"], connection: Optional[Connection] = None
    ) -> None:
        self._client = client
        self._connection = connection
        self._answer: Optional["asyncio.Future[Sequence[bytes]]"] = None
        self._window = 0
        self._held = bytearray()
        self._turn = Turn()
        self._over = False
        self._failure: Optional[BaseException] = None
        """The error that ended it before `finish`."""

    def __del__(self) -> None:
        if self._line is not None:
            self._line.close_from_anywhere()

    async def __aenter__(self) -> "BlobWriter":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _open(self) -> Line:
        if self._over:
            raise ClientClosed("the upload is over") from self._failure
        if self._line is None:
            if self._connection is None:
                if self._client is None:
                    raise ClientClosed("the upload is over")
                self._connection = await self._client._connection()
            await self._connection._writable()
            if self._over:
                raise ClientClosed("the upload is over")
            self._window = self._connection.info.upload_window
            self._line = self._connection.open(Op.BLOB_PUT, 1)
            self._answer = self._connection.send(Op.BLOB_PUT, b"", self._line)
            # No one asks for it when the upload is dropped.
            self._answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._line

    async def write(self, data: Union[bytes, bytearray, memoryview]) -> None:
        """Sends bytes, as fast as the server takes them; overlapping writes take turns."""
        async with self._turn:
            try:
                if not isinstance(data, (bytes, bytearray, memoryview)):
                    raise InvalidValue(f"a blob is written in bytes, not {type(data).__name__}")
                await self._write(memoryview(data).cast("B"))
            except BaseException as error:
                if not self._over:
                    self._failure = error
                await self.aclose()
                raise

    async def _write(self, view: memoryview) -> None:
        line = await self._open()
        size = self._chunk_bytes
        at = 0
        while len(self._held) + len(view) - at > size:
            fits = size - len(self._held)
            chunk = bytes(self._held) + bytes(view[at : at + fits])
            self._held.clear()
            at += fits
            await self._send(line, chunk, MORE)
        self._held += view[at:]

    @property
    def _chunk_bytes(self) -> int:
        if self._connection is None:
            return PIECE
        # More than the window would never fit into it, and 0 means no limit.
        info = self._connection.info
        return min(info.chunk_bytes or PIECE, info.upload_window or PIECE, CHUNK_BYTES_MAX)

    async def _send(self, line: Line, chunk: bytes, flags: int) -> None:
        answer = self._answer
        if self._connection is None or answer is None:
            raise ClientClosed("the upload is over")
        while self._window < len(chunk) and not answer.done():
            item = asyncio.ensure_future(line.item())
            both: Set["asyncio.Future[Any]"] = {item, answer}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not item.done():
                    item.cancel()
            if item.done() and not item.cancelled():
                push = item.result()
                if push.op == Op.CREDIT:
                    self._window += messages.read_number(push.body)
        if self._over:
            raise ClientClosed("the upload was closed")
        if answer.done():
            # A refusal may come before the end.
            answer.result()
        self._window -= len(chunk)
        await self._connection.send_chunk(line, chunk, flags)

    async def finish(self) -> Blob:
        """Sends the rest, after any earlier writes, and waits until it is stored."""
        try:
            async with self._turn:
                line = await self._open()
                answer = self._answer
                await self._send(line, bytes(self._held), 0)
                if answer is None:
                    raise ClientClosed("the upload is over")
                await asyncio.wait({answer})
                if self._over:
                    raise ClientClosed("the upload was closed")
                parts = answer.result()
                line.over = True
        finally:
            await self.aclose()
        reader = Reader(parts[0])
        return Blob(reader.hash("hash"), reader.u64("length"))

    async def aclose(self) -> None:
        """Discards an unfinished upload. May be called twice."""
        self._over = True
        answer, line, self._line = self._answer, self._line, None
        self._answer = None
        if answer is not None and not answer.done():
            answer.cancel()
        elif answer is not None and not answer.cancelled():
            answer.exception()
            if line is not None:
                line.over = True
        if line is not None:
            line.close()


class BlobReader(Closable):
    """The chunks of a blob, as an async iterator. After a lost connection it starts over and skips
    what it has returned. `bytes` is known once the first chunk has arrived."""

    def __init__(self, client: "AsyncClient", blob: Union[BlobHash, Frame], credit: int) -> None:
        super().__init__()
        name = blob.hash if isinstance(blob, Frame) else blob
        if name is None:
            raise InvalidValue("the frame has no body")
        self.hash = name
        self._frame = blob.id if isinstance(blob, Frame) else None
        self.bytes: Optional[int] = None
        self._client, self._credit = client, credit
        # Encoded before anything is sent, so that the call itself reports a wrong argument.
        messages.blob_get(name, credit)
        self._sum = hashlib.sha256()
        self._given = 0
        self._passed = 0
        self._backoff = Backoff(client.retry)
        self._until: Optional[float] = None
        """When to give up, if nothing new arrives."""

    async def __aenter__(self) -> "BlobReader":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> "BlobReader":
        return self

    async def __anext__(self) -> bytes:
        async with self._turn:
            return await self._next()

    async def _next(self) -> bytes:
        while not self._closed:
            try:
                piece = await self._piece()
            except (XsError, ValueError) as error:
                if self._closed:
                    break
                is_lost = isinstance(error, (ConnectionLost, Unavailable))
                if not is_lost or self._client._closed:
                    await self.aclose()
                    raise
                self._drop()
                after = error.details.retry_after_ms if isinstance(error, Unavailable) else None
                wait, now = self._backoff.wait(after), time.monotonic()
                if self._until is None:
                    self._until = now + self._client.retry.give_up
                if now + wait > self._until:
                    await self.aclose()
                    raise
                with contextlib.suppress(ClientClosed):
                    await self._unless_closed(partial(self._client._sleep, wait))
                continue
            if piece:
                return piece
        raise StopAsyncIteration

    async def _piece(self) -> bytes:
        if self._line is None or self._work is not None:
            await self._unless_closed(self._open)
            return b""
        if self._taken is not None:
            self._line.took(self._taken)
            # A caller that is cancelled below and comes back grants credit only once.
            self._taken = None
        push = self._taken = await self._line.item()
        if push.op == Op.SUB_EVENT:
            event = read_event(push.code, push.body)
            if isinstance(event, Dropped):
                self._line.over = True
                raise event.refusal
            return b""
        if push.op != Op.BLOB_CHUNK:
            raise ProtocolError(f"op {push.op:#x} does not belong on a download")
        piece = push.body
        skip = min(len(piece), self._given - self._passed)
        self._passed += len(piece)
        if self.bytes is None or self._passed > self.bytes:
            raise IntegrityError(f"more came for {self.hash} than its {self.bytes} bytes")
        piece = piece[skip:] if skip else piece
        self._sum.update(piece)
        self._given += len(piece)
        if piece or not push.more:
            self._until = None
            self._backoff.reset()
        if not push.more:
            self._line.over = True
            self._check()
            self._closed = True
            self._drop()
        return piece

    def _check(self) -> None:
        if self._sum.digest() != self.hash or self._passed != self.bytes:
            raise IntegrityError(f"what came for {self.hash} is something else")

    async def _open(self) -> None:
        connection = await self._client._connection()
        self._passed = 0
        try:
            await self._ask(connection)
        except NotFound:
            if self._frame is None:
                raise
            # A token that is limited to topics may name it once its frame was delivered on this
            # connection.
            await connection.ask(Op.GET, messages.get(self._frame))
            await self._ask(connection)

    async def _ask(self, connection: Connection) -> None:
        body = messages.blob_get(self.hash, self._credit)
        self._line, parts = await connection.ask_stream(Op.BLOB_GET, body, self._credit)
        self.bytes = messages.read_number(parts[0])
