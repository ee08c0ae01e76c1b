"""A server that does what a test tells it, as one of its connections sees it."""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable

from xs_stream.coding import PREFACE, RESPONSE, Header, Writer, message

Talk = Callable[["Peer"], Awaitable[None]]


class Peer:
    """A connection as a server that lies sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def request(self) -> Header:
        header = Header.read(await self._reader.readexactly(16), 0)
        await self._reader.readexactly(header.length - 12)
        return header

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
