"""Reads and follows in asyncio: a Reading over successive connections."""

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
    """The common part of a read and a follow. Closing it, or leaving `async with`, ends it."""

    _IS_ENDLESS = False
    """It never gives up on a server that is away, and ends when its client is closed."""

    def __init__(self, client: "AsyncClient", reading: Reading, how: messages.How) -> None:
        super().__init__()
        self._client = client
        self._reading = reading
        self._how = how
        self._items: Deque[Item] = deque()
        self._dropped = 0
        self._backoff = Backoff(client.retry)
        self._until: Optional[float] = None
        """When to give up, if nothing arrives."""
        self._begun = False
        """A caller has waited for it while the client was open."""
        # Encoded before anything is sent, so that the call itself reports a wrong argument.
        messages.subscribe(reading.rest, how)

    async def __aenter__(self: S) -> S:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Makes the server begin, so that nothing later is missed; iterating and `async with` do so
        too. Raises ClientClosed if it is closed before that."""
        async with self._turn:
            while (
                not (self._line is not None and self._reading.started)
                and not self._closed
                and not self._reading.done
            ):
                with contextlib.suppress(StopAsyncIteration):
                    await self._more()
                if not self._reading.started:
                    # Pulses arrived.
                    self._items.clear()
                if self._line is not None:
                    # A caller may take its time before it asks for items.
                    self._until = None
            if self._closed and not self._reading.started:
                raise ClientClosed("the stream was closed before it began")

    async def aclose(self) -> None:
        """Ends the stream, also for callers that wait for it. May be called twice."""
        self._items.clear()
        await super().aclose()

    @property
    def position(self) -> Optional[int]:
        """The offset to continue from after the items returned; None before anything is known."""
        return self._reading.position

    @property
    def point(self) -> Optional[ResumePoint]:
        """The position with the store and the epoch in which it is valid: keep it to continue
        later."""
        return self._reading.point

    async def _next(self) -> Item:
        async with self._turn:
            while not self._items:
                await self._more()
            item = self._items.popleft()
            self._reading.gave(item, not self._items)
            return item

    async def _peek(self, taken: int) -> List[Item]:
        """Drops the first `taken` items, and returns the next ones: at least one. Items that a
        cancelled caller did not receive are returned again."""
        async with self._turn:
            self._pass_over(taken)
            while not self._items:
                await self._more()
            return list(self._items)

    def _came(self, taken: int) -> List[Item]:
        """What `_peek` returns once the loop has ended: what arrived before that, or nothing."""
        self._pass_over(taken)
        while not self._items and self._line is not None and not self._reading.done:
            push = self._line.poll()
            if push is None:
                break
            try:
                self._items.extend(self._reading.take(push))
            except Unavailable:
                # The server has ended it, which a follower would have survived.
                break
        return list(self._items)

    def _pass_over(self, taken: int) -> None:
        while self._dropped < taken and self._items:
            self._items.popleft()
            self._dropped += 1

    async def _more(self) -> None:
        """Takes one more message, over as many connections as that requires."""
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
                # When the limit is reached, the server may lack the credit to announce the end.
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
        after a lost connection over which it would have continued."""
        is_closing = isinstance(error, (ClientClosed, ConnectionLost)) or _is_passing(error)
        return is_closing and self._client._closed and self._IS_ENDLESS and self._begun

    def _time_left(self) -> Optional[float]:
        """Seconds for connecting; None for the client's own limit."""
        if self._IS_ENDLESS:
            return None
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._client.retry.give_up
        return max(0.0, self._until - now)

    def _lost(self, error: XsError) -> float:
        """Decides whether to continue after the error that ended the stream; returns how many
        seconds to wait before that."""
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
    """Whether it may be over later. A reader that asked to be dropped when too slow gets the
    error."""
    is_slow = isinstance(error, Unavailable) and error.code == 503
    return isinstance(error, (ConnectError, Unavailable)) and error.retryable and not is_slow


class Read(_Reader):
    """The frames of a bounded read, as an async iterator. It continues over lost connections, and
    raises the last connection's error if nothing arrives for `Retry.give_up` seconds."""

    def __aiter__(self) -> "Read":
        return self

    async def __anext__(self) -> Frame:
        while True:
            item = await self._next()
            if isinstance(item, Frame):
                return item


class Follow(_Reader):
    """The items of a follower, as an async iterator of frames, caught_up, gaps, pulses and resumed;
    after a lost connection it continues where it was. It ends when it or its client is closed."""

    _IS_ENDLESS = True

    def __aiter__(self) -> "Follow":
        return self

    async def __anext__(self) -> Item:
        return await self._next()
