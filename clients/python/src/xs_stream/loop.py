"""The event loop of the blocking interface, in its own thread, from start to end."""

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
    """An event loop in its own thread. The client and its streams hold it, but not the thread: when
    the last of them is dropped without being closed, it ends."""

    def __init__(self) -> None:
        if sys.is_finalizing():
            # A thread that is started now never reports that it has started.
            raise ClientClosed("the interpreter is ending")
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        # A signal handler or a `__del__` may use the client while its thread is in the middle of
        # using it here.
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
        # typeshed does not know its slots.
        self._dropped.atexit = False  # type: ignore[misc]

    def owns(self, client: aio.AsyncClient) -> None:
        """Makes it close the client when nothing holds it any more."""
        self._clients.append(client)

    @property
    def is_here(self) -> bool:
        """Whether the loop runs in this process. After a fork there is its memory but not its
        thread, and locks that no one releases. The same is true while the interpreter ends: only
        the main thread continues then, to run what `__del__` and abandoned generators still do."""
        return self._process == os.getpid() and not sys.is_finalizing()

    def check(self) -> None:
        """Raises ClientClosed where the thread does not run: in a forked process, and at the end of
        the interpreter."""
        if self._process != os.getpid():
            raise ClientClosed("the client belongs to the process that this one was forked from")
        if sys.is_finalizing():
            raise ClientClosed("the interpreter is ending")

    def run(self, work: Coroutine[Any, Any, T], timeout: Optional[float] = None) -> T:
        """Runs work in the loop and waits for it. Raises TimeoutError after `timeout` seconds;
        whatever ends the wait also ends the work."""
        if not self.is_here:
            work.close()
            self.check()
        with self._lock:
            # Work that gets in before `stop` is ended by it.
            if self._stopping:
                work.close()
                raise ClientClosed("the client was closed")
            bounded = work if timeout is None else _within(work, timeout)
            try:
                future = asyncio.run_coroutine_threadsafe(bounded, self._loop)
            except BaseException as error:
                if not self._loop.is_closed():
                    raise
                # A handler has just stopped the loop, so the work was never started.
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
        """Ends everything that still runs, and the thread. May be called twice."""
        self._dropped.detach()
        if not self.is_here:
            return
        with self._lock:
            self._stopping = True
            # Every time, since a signal handler may arrive before the first call gets this far.
            with contextlib.suppress(RuntimeError):  # It is closed already.
                self._loop.call_soon_threadsafe(_end, self._loop, self._endings)
        self.join()

    def join(self) -> None:
        """Waits until all of its work has ended."""
        self._thread.join()


async def _within(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """Runs work for at most `timeout` seconds. Uses the loop's clock and waits for the work to end,
    so that a result that arrives at the deadline is not lost."""
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
    """Ends the loop of a client that nothing holds. May run in any thread, between any two of its
    steps, so it never waits."""
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
    """Makes a loop close clients, cancel everything else that runs in it, and stop. Only the first
    call does so: a task that is made while the loop stops is destroyed before it has run."""
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
