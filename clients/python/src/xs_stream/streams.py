"""Reads and follows in asyncio: a Reading over one connection after another."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Deque, List, Optional, TypeVar

from . import messages
from .closing import Closable
from .coding import Op
from .connection import Connection, NotSent
from .errors import ClientClosed, ConnectError, ConnectionLost, Unavailable, XsError
from .frames import Frame
from .reading import Backoff, Item, Reading
from .values import ResumePoint

if TYPE_CHECKING:
    from .aio import AsyncClient

__all__ = ["Follow", "Read"]

S = TypeVar("S", bound="_Reader")


class _Reader(Closable):
    """What a read and a follow have in common. Closing it, or leaving `async with`, ends it."""

    _IS_ENDLESS = False
    """It never gives up a server that is away, and ends when its client is closed."""

    def __init__(self, client: "AsyncClient", reading: Reading, how: messages.How) -> None:
        super().__init__()
        self._client = client
        self._reading = reading
        self._how = how
        self._items: Deque[Item] = deque()
        self._dropped = 0
        self._backoff = Backoff(client.retry)
        self._until: Optional[float] = None
        """When to give up, since nothing came."""
        self._begun = False
        """Somebody has waited for it while the client was open."""
        # Encoded before anything is sent, so that a wrong argument is told by the call.
        messages.subscribe(reading.rest, how)

    async def __aenter__(self: S) -> S:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Has the server begin, so that nothing that comes later is missed; iterating and `async
        with` do so too. Raises ClientClosed when it is closed before that."""
        async with self._turn:
            while (
                not (self._line is not None and self._reading.started)
                and not self._closed
                and not self._reading.done
            ):
                with contextlib.suppress(StopAsyncIteration):
                    await self._more()
                if not self._reading.started:
                    # Pulses came.
                    self._items.clear()
                if self._line is not None:
                    # A caller may take its time before it asks for what comes.
                    self._until = None
            if self._closed and not self._reading.started:
                raise ClientClosed("the stream was closed before it began")

    async def aclose(self) -> None:
        """Ends the stream; who waits for it comes to its end. May be called twice."""
        self._items.clear()
        await super().aclose()

    @property
    def position(self) -> Optional[int]:
        """The offset to go on from after what was handed out; None before anything is known."""
        return self._reading.position

    @property
    def point(self) -> Optional[ResumePoint]:
        """The position with the store and the epoch it holds for: keep it to go on later."""
        return self._reading.point

    async def _next(self) -> Item:
        async with self._turn:
            while not self._items:
                await self._more()
            item = self._items.popleft()
            self._reading.gave(item, not self._items)
            return item

    async def _peek(self, taken: int) -> List[Item]:
        """Drops the first `taken` items of all that came, and shows what comes next: at least one
        item. What a caller did not get to see is shown again, however often it gave up."""
        async with self._turn:
            self._pass_over(taken)
            while not self._items:
                await self._more()
            return list(self._items)

    def _came(self, taken: int) -> List[Item]:
        """What `_peek` shows once the loop has ended: of what came before that, or nothing."""
        self._pass_over(taken)
        while not self._items and self._line is not None and not self._reading.done:
            push = self._line.poll()
            if push is None:
                break
            try:
                self._items.extend(self._reading.take(push))
            except Unavailable:
                # The server has ended it, which its follower would have outlived.
                break
        return list(self._items)

    def _pass_over(self, taken: int) -> None:
        while self._dropped < taken and self._items:
            self._items.popleft()
            self._dropped += 1

    async def _more(self) -> None:
        """Takes one message more, over as many connections as that takes."""
        if self._closed or self._reading.done:
            self._drop()
            raise StopAsyncIteration
        self._begun = self._begun or not self._client._closed
        try:
            if self._line is None or self._work is not None:
                await self._unless_closed(lambda: self._open(self._time_left()))
                return
            if self._taken is not None:
                self._line.took(self._taken)
                self._taken = None
            push = await self._line.item()
            if push.op == Op.DELIVER:
                self._taken = push
            self._items.extend(self._reading.take(push))
            self._backoff.reset()
            self._until = None
            if self._reading.done:
                # A limit that is reached may leave the server waiting for credit, to say the end.
                self._line.over = push.op == Op.SUB_EVENT
            return
        except XsError as error:
            if self._closed:
                raise StopAsyncIteration from None
            if self._ends_with(error):
                self._closed = True
                self._drop()
                raise StopAsyncIteration from None
            if not isinstance(error, (ConnectionLost, ConnectError, Unavailable)):
                self._closed = True
                self._drop()
                raise
            wait = self._lost(error)
        with contextlib.suppress(ClientClosed):
            await self._unless_closed(partial(self._client._sleep, wait))

    def _ends_with(self, error: XsError) -> bool:
        """Whether it is the end of a follower: the user has closed its client meanwhile, perhaps
        after the connection was lost, which it would have gone on from."""
        is_closing = isinstance(error, (ClientClosed, ConnectionLost)) or _is_passing(error)
        return is_closing and self._client._closed and self._IS_ENDLESS and self._begun

    def _time_left(self) -> Optional[float]:
        """Seconds for a connection to be made; None is the client's own bound."""
        if self._IS_ENDLESS:
            return None
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._client.retry.give_up
        return max(0.0, self._until - now)

    def _lost(self, error: XsError) -> float:
        """Whether to go on after what ended the stream; how many seconds to wait before that."""
        connection = self._line._connection if self._line else None
        if isinstance(error, Unavailable):
            # The server has ended the stream, or refused it.
            if self._line is not None:
                self._line.over = True
            if connection is not None and error.code == 501:
                connection.draining = connection.draining or error.message
        self._drop()
        if self._client._closed or not (isinstance(error, ConnectionLost) or _is_passing(error)):
            self._closed = True
            raise error
        if isinstance(error, NotSent):
            wait = self._backoff.wait_unsent()
        else:
            after = error.details.retry_after_ms if isinstance(error, Unavailable) else None
            wait = self._backoff.wait(after)
        left = self._time_left()
        if left is not None and wait > left:
            self._closed = True
            raise error
        return wait

    async def _open(self, give_up: Optional[float]) -> None:
        connection: Connection = await self._client._connection(give_up)
        options = self._reading.begin(connection.info)
        body = messages.subscribe(options, self._how, self._reading.seen_in)
        self._line, _ = await connection.ask_stream(Op.SUBSCRIBE, body, self._how.credit)
        resumed = self._reading.began(connection.info)
        if resumed is not None and isinstance(self, Follow):
            self._items.append(resumed)


def _is_passing(error: XsError) -> bool:
    """Whether it may be over later. Who asked to be dropped when too slow is told."""
    is_slow = isinstance(error, Unavailable) and error.code == 503
    return isinstance(error, (ConnectError, Unavailable)) and error.retryable and not is_slow


class Read(_Reader):
    """The frames of a bounded read, as an async iterator. It goes on over lost connections, and
    raises what ended the last one when nothing came for `Retry.give_up` seconds."""

    def __aiter__(self) -> "Read":
        return self

    async def __anext__(self) -> Frame:
        while True:
            item = await self._next()
            if isinstance(item, Frame):
                return item


class Follow(_Reader):
    """What a follower is given, as an async iterator of frames, caught_up, gaps, pulses and
    resumed; after a connection was lost it goes on where it was. It ends when it or its client is
    closed."""

    _IS_ENDLESS = True

    def __aiter__(self) -> "Follow":
        return self

    async def __anext__(self) -> Item:
        return await self._next()
