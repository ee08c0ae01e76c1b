"""A way to a server that is cut at a CURSOR_SET, between the request and the answer or before."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from typing import Any, Callable, Optional

from xs_stream.coding import Header, Op


class Cutter:
    """A socket before that of a server. The first connection ends at its first CURSOR_SET: before
    the server gets the `request`, or before the client gets the `answer`. Then `meanwhile` is
    called, and later connections are let through."""

    def __init__(self, server: str, at: str, meanwhile: Callable[[], None]) -> None:
        self._server, self._at, self._meanwhile = server, at, meanwhile
        self._dir = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._dir.name, "xs.sock")
        self._is_cut = False
        self._failure: Optional[BaseException] = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Fails where nothing was cut, or what was to be done in the meantime has failed."""
        # Wakes who waits for another connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._dir.cleanup()
        if self._failure is not None:
            raise self._failure
        assert self._is_cut, "nothing was cut"

    def _serve(self) -> None:
        self._carry(self._accepted(), self._at)
        try:
            self._meanwhile()
        except BaseException as error:
            self._failure = error
        with contextlib.suppress(OSError):
            while True:
                self._carry(self._accepted(), "")

    def _accepted(self) -> socket.socket:
        return self._listener.accept()[0]

    def _carry(self, near: socket.socket, cut: str) -> None:
        far = socket.socket(socket.AF_UNIX)
        with near, far:
            far.connect(self._server)
            asks = threading.Thread(target=self._pump, args=(near, far, cut == "request"))
            asks.start()
            self._pump(far, near, cut == "answer")
            asks.join()

    def _pump(self, source: socket.socket, target: socket.socket, cuts: bool) -> None:
        """Copies messages until either side ends, or the first of CURSOR_SET if it cuts."""
        with contextlib.suppress(OSError), source.makefile("rb") as messages:
            target.sendall(_exactly(messages, 8))
            while True:
                header = _exactly(messages, 16)
                read = Header.read(header, 0)
                if cuts and read.op == Op.CURSOR_SET:
                    self._is_cut = True
                    break
                target.sendall(header + _exactly(messages, read.length - 12))
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _exactly(messages: Any, count: int) -> bytes:
    data: bytes = messages.read(count)
    if len(data) < count:
        raise OSError("the connection is over")
    return data
