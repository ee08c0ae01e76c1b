"""Calls of commands in asyncio: a stream of result frames."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Deque, Dict, Optional

from . import messages
from .closing import Closable
from .coding import Op, Reader
from .connection import Line
from .errors import ClientClosed, CommandFailed, ProtocolError, XsError
from .frames import Frame
from .messages import Dropped, Ended, read_event, read_list
from .values import FrameId

if TYPE_CHECKING:
    from .aio import AsyncClient

__all__ = ["Call"]


class Call(Closable):
    """The results of a call, as an async iterator of frames. The frame `<name>.complete` ends it
    and is kept in `complete`; `<name>.error` raises CommandFailed. Closing it, or leaving `async
    with`, before the end cancels the call. It is never repeated automatically."""

    def __init__(
        self,
        client: "AsyncClient",
        name: str,
        args: bytes,
        body: bytes,
        deadline_ms: int,
        bodies: int,
        credit: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.id: Optional[FrameId] = None
        """Id of the frame `<name>.call`, once the server has accepted the call."""
        self.complete: Optional[Frame] = None
        """The frame `<name>.complete`, once it has arrived."""
        self._client, self._credit = client, credit
        self._request = messages.call(name, args, body, deadline_ms, credit, bodies)
        self._frames: Deque[Frame] = deque()
        self._opening: Optional["asyncio.Task[FrameId]"] = None
        self._over = False
        """All of its frames have arrived."""

    async def __aenter__(self) -> "Call":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> "Call":
        return self

    async def open(self) -> FrameId:
        """Makes the call, unless it was made already, and returns the id of `<name>.call`."""
        if self._opening is None:
            if self._closed:
                raise ClientClosed("the call was closed before it was made")
            self._opening = asyncio.ensure_future(self._make())
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        # A caller that is cancelled leaves the call to the next one, since it may have been made.
        await asyncio.wait({self._opening})
        if self._opening.cancelled():
            raise ClientClosed("the call was closed while it was made")
        return self._opening.result()

    async def _make(self) -> FrameId:
        self._line, parts = await self._client._try(
            lambda connection: connection.ask_stream(Op.CALL, self._request, self._credit), False
        )
        self.id = Reader(parts[0]).id("id")
        return self.id

    async def aclose(self) -> None:
        """Ends the stream, and cancels the call unless it has ended. May be called twice."""
        self._frames.clear()
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        await super().aclose()

    async def __anext__(self) -> Frame:
        async with self._turn:
            return await self._next()

    async def _next(self) -> Frame:
        try:
            while True:
                while self._frames:
                    frame = self._frames.popleft()
                    if frame.topic == f"{self.name}.error":
                        raise CommandFailed(self.name, _object(frame))
                    if frame.topic != f"{self.name}.complete":
                        return frame
                    self.complete = frame
                if self._over or self._closed:
                    await self.aclose()
                    raise StopAsyncIteration
                if self._line is None:
                    await self.open()
                else:
                    await self._more(self._line)
        except (XsError, ValueError):
            if self._closed:
                raise StopAsyncIteration from None
            await self.aclose()
            raise

    async def _more(self, line: Line) -> None:
        if self._taken is not None:
            line.took(self._taken)
            self._taken = None
        try:
            push = await line.item()
        except XsError:
            if self.complete is None:
                raise
            # Only the notice of the end is lost: after an error, a caller would repeat the call.
            self._over = True
            return
        if push.op == Op.DELIVER:
            self._taken = push
            self._frames.extend(read_list(push.body).frames)
            return
        if push.op != Op.SUB_EVENT:
            raise ProtocolError(f"op {push.op:#x} does not belong on a call")
        event = read_event(push.code, push.body)
        if isinstance(event, Dropped):
            line.over = True
            if self.complete is None:
                raise event.refusal
            self._over = True
        if isinstance(event, Ended):
            line.over = self._over = True


def _object(frame: Frame) -> Dict[str, object]:
    meta = frame.meta
    return meta if isinstance(meta, dict) else {}
