"""The event loop of the blocking face, in a thread of its own, from its beginning to its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import warnings
import weakref
from typing import Any, Coroutine, List, Optional, Sequence, TypeVar

from . import aio
from .errors import ClientClosed

__all__ = ["Loop"]

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own, which does not hold it: client and streams do, and when
    the last of them is gone without having been closed it ends."""

    def __init__(self) -> None:
        if sys.is_finalizing():
            # A thread that is started now never says that it has.
            raise ClientClosed("the interpreter is ending")
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        # A signal's handler, or a `__del__`, may use the client in the middle of what its thread
        # does with it here.
        self._lock = threading.RLock()
        self._stopping = False
        self._thread = threading.Thread(
            target=_main, args=(self._loop,), name="xs-stream", daemon=True
        )
        self._thread.start()
        self._clients: List[aio.AsyncClient] = []
        self._endings: List[Any] = []
        self._dropped = weakref.finalize(
            self, _drop, self._loop, self._endings, self._clients, self._process
        )
        # Its slots are not those that typeshed names.
        self._dropped.atexit = False  # type: ignore[misc]

    def owns(self, client: aio.AsyncClient) -> None:
        """Has it close the client when nothing holds it any more."""
        self._clients.append(client)

    @property
    def is_here(self) -> bool:
        """Whether it runs in this process: a fork has its memory but not its thread, and locks
        that nobody gives back. It is the same when the interpreter ends: of all threads only the
        main one goes on then, which runs what `__del__` and generators that were left still do."""
        return self._process == os.getpid() and not sys.is_finalizing()

    def check(self) -> None:
        """Raises ClientClosed where its thread does not run: in a process that was forked from its
        own, and at the end of the interpreter."""
        if self._process != os.getpid():
            raise ClientClosed("the client belongs to the process that this one was forked from")
        if sys.is_finalizing():
            raise ClientClosed("the interpreter is ending")

    def run(self, work: Coroutine[Any, Any, T], timeout: Optional[float] = None) -> T:
        """Does it in the loop and waits. Raises TimeoutError after so many seconds; whatever ends
        the waiting also ends the work."""
        if not self.is_here:
            work.close()
            self.check()
        with self._lock:
            # What gets in before `stop` does is ended by it.
            if self._stopping:
                work.close()
                raise ClientClosed("the client was closed")
            bounded = work if timeout is None else _within(work, timeout)
            try:
                future = asyncio.run_coroutine_threadsafe(bounded, self._loop)
            except BaseException as error:
                if not self._loop.is_closed():
                    raise
                # A handler has stopped it just now, and the work was never begun.
                bounded.close()
                work.close()
                if not isinstance(error, RuntimeError):
                    raise
                raise ClientClosed("the client was closed") from None
            if self._stopping:
                future.cancel()
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosed("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends what still runs, and the thread. May be called twice."""
        self._dropped.detach()
        if not self.is_here:
            return
        with self._lock:
            self._stopping = True
            # Each time, as a signal's handler may come before the first has got so far.
            with contextlib.suppress(RuntimeError):  # It is closed already.
                self._loop.call_soon_threadsafe(_end, self._loop, self._endings)
        self.join()

    def join(self) -> None:
        """Waits until all that it did has ended."""
        self._thread.join()


async def _within(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """Does it for so many seconds at most. The clock is the loop's and the end of the work is
    waited for, so that a result that comes with the timeout is not thrown away."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=max(0.0, timeout))
    finally:
        task.cancel()
    await asyncio.wait({task})
    if task.cancelled():
        raise TimeoutError(f"nothing within {timeout:g} s")
    return task.result()


def _main(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _drop(
    loop: asyncio.AbstractEventLoop,
    endings: List[Any],
    clients: Sequence[aio.AsyncClient],
    process: int,
) -> None:
    """Ends the loop of a client that nothing holds. It may run in any thread, between any two of
    its steps, and so it waits for nothing."""
    if process != os.getpid():
        return
    with contextlib.suppress(RuntimeError):  # It is closed already.
        loop.call_soon_threadsafe(_end, loop, endings, clients)
    for client in clients:
        warnings.warn(f"a client of {client.address} was not closed", ResourceWarning, stacklevel=2)


def _end(
    loop: asyncio.AbstractEventLoop,
    endings: List[Any],
    clients: Sequence[aio.AsyncClient] = (),
) -> None:
    """Has a loop close clients, cancel all else that runs in it, and stop: the first time alone, as
    a task that is made while the loop stops is destroyed before it has run."""
    if endings:
        return
    endings.append(loop.create_task(_ending(clients)))
    endings[0].add_done_callback(lambda _: loop.stop())


async def _ending(clients: Sequence[aio.AsyncClient]) -> None:
    for client in clients:
        await client.close()
    while True:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if not others:
            return
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
