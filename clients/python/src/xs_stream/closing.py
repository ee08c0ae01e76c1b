"""What reads, downloads and calls have in common: a line, one caller at a time, an end that wakes
who waits, and one for streams that nobody holds any more."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Callable, Coroutine, Optional

from .connection import Line
from .errors import ClientClosed

__all__ = ["Closable", "Turn"]


class Turn:
    """One at a time, who comes first before others. Python 3.9 ties a lock to the loop it is made
    in, so it is made where it is first used."""

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
    """A stream that may be closed while somebody waits for what comes next."""

    _line: Optional[Line] = None
    _work: Optional["asyncio.Task[None]"] = None
    """What opens it, or waits before the next attempt to; its result is still to be taken."""

    def __init__(self) -> None:
        self._taken: Any = None
        """What was handed out last, for which no credit was granted yet."""
        self._closed = False
        self._turn = Turn()

    def __del__(self) -> None:
        # Nobody can take anything from it any more: a loop that was left with `break`, say.
        if self._line is not None:
            self._line.close_from_anywhere()
        if self._work is not None and not self._work.done():
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self._work.get_loop().call_soon_threadsafe(self._work.cancel)

    async def aclose(self) -> None:
        """Ends the stream; who waits for it comes to its end. May be called twice."""
        self._closed = True
        if self._work is not None:
            self._work.cancel()
        self._drop()

    def _drop(self) -> None:
        line, self._line, self._taken = self._line, None, None
        if line is not None:
            line.close()

    async def _unless_closed(self, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Does what `aclose` cuts short: then it raises ClientClosed. Whoever stops waiting leaves
        it to the next one, who waits for its end and not for another beginning: however short the
        waits are, it gets done."""
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
