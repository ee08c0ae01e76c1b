"""Waits that are shorter than what they wait for: a stream opens all the same, once, and its pauses
after a refusal are kept. Each wait began the opening anew, and cut its pauses short."""

from __future__ import annotations

import asyncio
import gc
import time
import unittest
from typing import Any, Callable, List

import xs_stream
from xs_stream import BlobHash, Retry
from xs_stream.coding import PUSH, Header, Op, message

from .peer import Liar, Peer, refused
from .support import PATIENCE, Server
from .test_core import deliver

DATA = b"what is waited for"


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


async def give_up(stream: Any, times: int = 5) -> None:
    """Begins to wait for the stream, and gives that up."""
    for _ in range(times):
        waiting = asyncio.ensure_future(stream.__anext__())
        for _ in range(3):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()


class Waits(Liar):
    """In asyncio."""

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.asked: List[int] = []
        self.is_asked, self.answers = asyncio.Event(), asyncio.Event()
        self.is_taken_back = asyncio.Event()

    async def late(self, peer: Peer) -> None:
        """Answers late, and then sends all there is."""
        await peer.greet()
        header = await self.ask(peer)
        await self.answers.wait()
        if header.op == Op.BLOB_GET:
            peer.answer(header, number(len(DATA)))
            peer.send(message(Op.BLOB_CHUNK, PUSH, 0, 0, header.sub, DATA))
        else:
            peer.answer(header)
            peer.send(message(Op.DELIVER, PUSH, 0, 0, header.sub, deliver([100], 101).body))
        while True:
            await self.ask(peer)

    async def busy(self, peer: Peer) -> None:
        """Refuses whatever is asked."""
        await peer.greet()
        while True:
            peer.answer(await self.ask(peer), refused("busy") + bytes(8), code=502)

    async def ask(self, peer: Peer) -> Header:
        header = await peer.request()
        self.asked.append(header.op)
        self.is_asked.set()
        if header.op == Op.UNSUBSCRIBE:
            self.is_taken_back.set()
        return header

    async def test_what_is_given_up_still_opens(self) -> None:
        streams: List[Callable[[Any], Any]] = [
            lambda client: client.follow("a", new=True),
            lambda client: client.read("a"),
            lambda client: client.get_blob(BlobHash.of(DATA)),
        ]
        for begin in streams:
            self.asked.clear()
            self.is_asked.clear()
            self.answers.clear()
            client = await self.client(self.late)
            stream = begin(client)
            await give_up(stream)
            await self.soon(self.is_asked.wait())
            await give_up(stream)
            self.answers.set()
            item: Any = await self.soon(stream.__anext__())
            self.assertIn(getattr(item, "offset", item), (100, DATA))
            await stream.aclose()
            await self.ended(client)
            self.assertLessEqual(self.asked.count(Op.SUBSCRIBE) + self.asked.count(Op.BLOB_GET), 1)

    async def test_a_pause_is_kept(self) -> None:
        calm = Retry(first=PATIENCE, most=PATIENCE, give_up=4 * PATIENCE)
        client = await self.client(self.busy, retry=calm)
        for stream in (client.follow("a"), client.read("a"), client.get_blob(BlobHash.of(DATA))):
            self.asked.clear()
            self.is_asked.clear()
            await give_up(stream)
            await self.soon(self.is_asked.wait())
            # Answers come in order: the stream is refused by now.
            for _ in range(10):
                with self.assertRaises(xs_stream.Unavailable):
                    await self.soon(client._current.ask(Op.PING))  # type: ignore[union-attr]
                await give_up(stream)
            self.assertEqual(len(self.asked), 11)
            waiting = asyncio.ensure_future(stream.__anext__())
            await asyncio.sleep(0)
            await stream.aclose()
            with self.assertRaises(StopAsyncIteration):
                await self.soon(waiting)

    async def test_what_nobody_holds_is_taken_back_once_it_is_open(self) -> None:
        client = await self.client(self.late)
        stream = client.follow("a")
        await give_up(stream)
        await self.soon(self.is_asked.wait())
        del stream
        gc.collect()
        self.answers.set()
        await self.soon(self.is_taken_back.wait())
        self.assertEqual(self.asked, [Op.SUBSCRIBE, Op.UNSUBSCRIBE])

    async def test_closing_takes_back_what_is_being_opened(self) -> None:
        client = await self.client(self.late)
        stream = client.follow("a")
        await give_up(stream)
        await self.soon(self.is_asked.wait())
        await stream.aclose()
        self.answers.set()
        await self.soon(self.is_taken_back.wait())
        with self.assertRaises(StopAsyncIteration):
            await self.soon(stream.__anext__())


class Polls(unittest.TestCase):
    """The blocking face, over `xs serve`."""

    def test_it_may_be_polled(self) -> None:
        server = Server()
        try:
            with xs_stream.connect(server.store, wait=PATIENCE) as client:
                client.append("a", "one")
                blob = client.put_blob(DATA)
                follow = client.follow("a")
                for stream in (follow, client.read("a"), client.get_blob(blob.hash)):
                    self.polled(stream)
                self.assertEqual(self.polled(follow).kind, "caught_up")
                # Nobody waits when it goes on at a server that has started again.
                server.kill()
                server.start()
                self.assertEqual(self.polled(follow).kind, "resumed")
        finally:
            server.close()

    def polled(self, stream: Any) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                return stream.next(0)
            except TimeoutError:
                time.sleep(0.001)
        raise AssertionError("nothing came")
