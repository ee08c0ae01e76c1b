"""What reads, downloads and calls have in common: a line, one caller at a time, a close that wakes
waiting callers, and an end for streams that are dropped."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Callable, Coroutine, Optional

from .connection import Line
from .errors import ClientClosed

__all__ = ["Closable", "Turn"]


class Turn:
    """A lock that is granted in order of arrival. Python 3.9 ties a lock to the loop in which it is
    created, so it is created when it is first used."""

    def __init__(self) -> None:
        self._lock: Optional[asyncio.Lock] = None

    async def __aenter__(self) -> None:
        if self._lock is None:
            self._lock = asyncio.Lock()
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


class Closable:
    """A stream that may be closed while a caller waits for the next item."""

    _line: Optional[Line] = None
    _work: Optional["asyncio.Task[None]"] = None
    """The task that opens it, or waits before the next attempt; its result has not been taken
    yet."""

    def __init__(self) -> None:
        self._taken: Any = None
        """The item returned last, for which no credit was granted yet."""
        self._closed = False
        self._turn = Turn()

    def __del__(self) -> None:
        # No one can take anything from it any more: a loop was left with `break`, say.
        if self._line is not None:
            self._line.close_from_anywhere()
        if self._work is not None and not self._work.done():
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self._work.get_loop().call_soon_threadsafe(self._work.cancel)

    async def aclose(self) -> None:
        """Ends the stream, also for callers that wait for it. May be called twice."""
        self._closed = True
        if self._work is not None:
            self._work.cancel()
        self._drop()

    def _drop(self) -> None:
        line, self._line, self._taken = self._line, None, None
        if line is not None:
            line.close()

    async def _unless_closed(self, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs work that `aclose` interrupts with ClientClosed. If a caller is cancelled, the next
        one waits for the same work instead of starting it anew, so that it finishes however short
        the waits are."""
        if self._work is None:
            self._work = asyncio.ensure_future(begin())
            self._work.add_done_callback(lambda done: done.cancelled() or done.exception())
        work = self._work
        if not work.done():
            await asyncio.wait({work})
        self._work = None
        if work.cancelled():
            raise ClientClosed("the stream was closed")
        work.result()
