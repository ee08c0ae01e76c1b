"""A server that does what a test tells it, as one of its connections sees it."""

from __future__ import annotations

import asyncio
import tempfile
import unittest
from typing import Any, Awaitable, Callable, List, Tuple

from xs_stream import Retry, aio
from xs_stream.coding import PREFACE, RESPONSE, Header, Writer, message

from .support import PATIENCE

Talk = Callable[["Peer"], Awaitable[None]]


class Peer:
    """A connection as a server that lies sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def message(self) -> Tuple[Header, bytes]:
        header = Header.read(await self._reader.readexactly(16), 0)
        return header, await self._reader.readexactly(header.length - 12)

    async def request(self) -> Header:
        return (await self.message())[0]

    async def rest(self) -> None:
        """Until the client is gone."""
        await self._reader.read()

    async def expect(self, op: int) -> Header:
        """The next request of this kind; others are passed over."""
        while True:
            header = await self.request()
            if header.op == op:
                return header

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def answer(self, header: Header, body: bytes = b"", code: int = 0) -> None:
        self.send(message(header.op, RESPONSE, code, header.corr, header.sub, body))

    async def greet(
        self, epoch: int = 1, head: int = 100, chunk: int = 256 << 10, window: int = 1 << 20
    ) -> None:
        await self._reader.readexactly(8)
        self.send(PREFACE)
        out = Writer()
        out.u16(1)
        out.u16(1)
        out.u32(2)
        out.u64(0)
        out.raw(bytes(16))
        out.u64(epoch)
        out.u64(head)
        for limit in (24 << 20, 1024, 256, chunk, window, 4096):
            out.u32(limit)
        out.text("liar", 99, "name")
        out.u16(0)
        self.answer(await self.request(), bytes(out.data))


def refused(text: str) -> bytes:
    out = Writer()
    out.text(text, 999, "text")
    return bytes(out.data)


QUICK = Retry(first=0.01, most=0.05, give_up=PATIENCE)


class Liar(unittest.IsolatedAsyncioTestCase):
    """Over servers that do what a test tells them, one connection after another."""

    async def asyncSetUp(self) -> None:
        self._dir = tempfile.TemporaryDirectory()
        self._talks: List[Talk] = []
        self._tasks: List[Any] = []
        self.path = f"{self._dir.name}/xs.sock"
        self.connections = 0
        self._server = await asyncio.start_unix_server(self._connected, self.path)
        self._clients: List[aio.AsyncClient] = []

    async def asyncTearDown(self) -> None:
        for client in self._clients:
            await client.close()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._dir.cleanup()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.current_task())
        at = min(self.connections, len(self._talks) - 1)
        self.connections += 1
        try:
            await self._talks[at](Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def client(self, *talks: Talk, **options: Any) -> aio.AsyncClient:
        self._talks = list(talks)
        options.setdefault("retry", QUICK)
        client = await aio.connect(self.path, **options)
        self._clients.append(client)
        return client

    async def soon(self, work: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(work, PATIENCE)

    async def shortly(self, work: Awaitable[Any]) -> Any:
        """The same for what, when it fails, takes for ever."""
        return await asyncio.wait_for(work, PATIENCE)

    async def ended(self, client: aio.AsyncClient) -> int:
        """Closes it and waits until its connections are gone."""
        await client.close()
        await self.soon(asyncio.gather(*self._tasks, return_exceptions=True))
        return len(self._tasks)
