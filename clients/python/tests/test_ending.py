"""How what is under way ends: with its client, with a server that stays away, and uploads with what
cuts them short."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Optional

import xs_stream
from xs_stream import (
    BlobHash,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    IntegrityError,
    InvalidValue,
    Retry,
    Unavailable,
    aio,
)
from xs_stream.coding import MORE, PUSH, Header, Op, message
from xs_stream.limits import CORR_MAX

from .peer import Liar, Peer, Talk, refused
from .test_core import deliver, event

HASTY = Retry(first=0.01, most=0.02, give_up=0.2)


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def push(peer: Peer, header: Header, one: Any) -> None:
    peer.send(message(one.op, PUSH, one.code, 0, header.sub, one.body))


async def silent(peer: Peer) -> None:
    await peer.greet()
    await peer.rest()


class Closing(Liar):
    """Closing a client."""

    async def test_it_ends_followers_and_cuts_short_all_else(self) -> None:
        seen: List[int] = []

        async def accept(peer: Peer) -> None:
            await peer.greet()
            while True:
                header = await peer.request()
                seen.append(header.op)
                if header.op == Op.SUBSCRIBE:
                    peer.answer(header)
                elif header.op == Op.CALL:
                    peer.answer(header, bytes(16))
                elif header.op == Op.BLOB_GET:
                    peer.answer(header, number(100))

        client = await self.client(accept)
        follow = client.follow("*")

        async def run() -> List[Any]:
            return [item async for item in follow]

        following = asyncio.ensure_future(run())
        work: List[Awaitable[Any]] = [
            client.read("*").__anext__(),
            client.get_blob(BlobHash.of(bytes(100))).__anext__(),
            client.call("x").__anext__(),
            client.append("a"),
            client.append("a", key="k"),
            client.ping(),
            client.blob_writer().finish(),
        ]
        cut = [asyncio.ensure_future(one) for one in work]
        while len(seen) < 9:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.001)
        await client.close()
        self.assertEqual(await self.shortly(following), [])
        for one in cut:
            with self.assertRaises(ClientClosed):
                await self.shortly(one)
        # It has ended, and what comes after the end is a mistake.
        self.assertEqual([item async for item in follow], [])
        for late in (client.follow("*").__anext__(), client.follow("*").open()):
            with self.assertRaises(ClientClosed):
                await late
        self.assertEqual(self.connections, 1)

    async def eager(self, peer: Peer) -> None:
        await peer.greet()
        header = await peer.expect(Op.SUBSCRIBE)
        peer.answer(header)
        for one in (deliver([3, 4], 5), deliver([5], 6)):
            push(peer, header, one)
        peer.answer(await peer.expect(Op.PING))
        await peer.rest()

    async def test_a_follower_is_given_what_came_before(self) -> None:
        client = await self.client(self.eager)
        follow = client.follow("*")
        await self.shortly(follow.open())
        await self.shortly(client.ping())
        await client.close()
        items: List[Any] = [item async for item in follow]
        self.assertEqual([item.offset for item in items], [3, 4, 5])

    async def test_a_follower_ends_that_had_lost_its_connection_before(self) -> None:
        for code in (0, 501, 503):

            async def brief(peer: Peer, code: int = code) -> None:
                await peer.greet()
                header = await peer.expect(Op.SUBSCRIBE)
                peer.answer(header)
                for one in (deliver([3], 4), deliver([4], 5)):
                    push(peer, header, one)
                if code:
                    push(peer, header, event(4, 5, code=code, rest=refused("enough")))
                await peer.writer.drain()

            self.connections = 0
            client = await self.client(brief)
            assert client._current is not None
            follow = client.follow("*")
            item: Any = await self.shortly(follow.__anext__())
            self.assertEqual(item.offset, 3)
            await self.shortly(client._current._ended)
            await client.close()
            item = await self.shortly(follow.__anext__())
            self.assertEqual(item.offset, 4)
            if code == 503:
                with self.assertRaises(Unavailable):
                    await self.shortly(follow.__anext__())
            self.assertEqual([item async for item in follow], [])
            self.assertEqual(self.connections, 1)

    async def test_a_blocking_follower_is_given_what_came_before(self) -> None:
        self._talks = [self.eager]

        def work(taken: int) -> List[Any]:
            client = xs_stream.connect(self.path)
            follow = client.follow("*")
            follow.open()
            found: List[Any] = [follow.next() for _ in range(taken)]
            client.ping()
            client.close()
            found += follow
            self.assertEqual(follow.position, 6)
            with self.assertRaises(ClientClosed):
                client.follow("*").next()
            return [item.offset for item in found]

        for taken in range(3):
            done = asyncio.get_running_loop().run_in_executor(None, work, taken)
            self.assertEqual(await self.shortly(done), [3, 4, 5])

    async def test_a_stream_that_is_closed_before_it_began_says_so(self) -> None:
        client = await self.client(silent)
        for stream in (client.follow("*"), client.read("*")):
            opening = asyncio.ensure_future(stream.open())
            await asyncio.sleep(0.01)
            await stream.aclose()
            with self.assertRaises(ClientClosed):
                await self.shortly(opening)


class Reads(Liar):
    """A read whose server stays away."""

    async def one(self, peer: Peer) -> None:
        await peer.greet()
        header = await peer.expect(Op.SUBSCRIBE)
        peer.answer(header)
        push(peer, header, deliver([3], 4))
        await peer.writer.drain()

    async def test_it_gives_up(self) -> None:
        client = await self.client(self.one, retry=HASTY)
        read = client.read("*")
        self.assertEqual((await self.shortly(read.__anext__())).offset, 3)
        self._server.close()
        with self.assertRaises(ConnectError):
            await self.shortly(read.__anext__())
        self.assertEqual([frame async for frame in read], [])
        with self.assertRaises(ConnectError):
            await self.shortly(client.read("*").__anext__())

    async def test_a_handshake_that_is_cut_off_is_told(self) -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            with self.assertRaisesRegex(ConnectError, f"{port}: [a-zA-Z]"):
                await self.shortly(aio.connect(f"xss://127.0.0.1:{port}"))

    async def test_streams_go_on_elsewhere_when_their_numbers_end(self) -> None:
        async def whole(peer: Peer) -> None:
            await peer.greet()
            while True:
                header = await peer.expect(Op.SUBSCRIBE)
                peer.answer(header)
                push(peer, header, deliver([3], 4))
                push(peer, header, event(5, 4))

        client = await self.client(whole)
        assert client._current is not None
        session = client._current._session
        session._sub = CORR_MAX - 1
        for connections in (1, 2, 2):
            frames = [frame.offset async for frame in client.read("*")]
            self.assertEqual((frames, self.connections), ([3], connections))
        self.assertEqual(session._sub, CORR_MAX)

    async def test_it_gives_up_where_it_gets_nowhere(self) -> None:
        async def lost(peer: Peer) -> None:
            await peer.greet()
            peer.answer(await peer.expect(Op.SUBSCRIBE))

        async def busy(peer: Peer) -> None:
            await peer.greet()
            while True:
                peer.answer(await peer.expect(Op.SUBSCRIBE), refused("full"), 502)

        client = await self.client(self.one, lost, retry=HASTY)
        read = client.read("*")
        self.assertEqual((await self.shortly(read.__anext__())).offset, 3)
        with self.assertRaises(ConnectionLost):
            await self.shortly(read.__anext__())
        self.connections = 0
        client = await self.client(busy, retry=HASTY)
        with self.assertRaises(Unavailable):
            await self.shortly(client.read("*").__anext__())

    async def test_an_attempt_that_has_failed_is_not_waited_for(self) -> None:
        async def fail() -> Any:
            raise ConnectError("of another")

        # As a waiter finds it when it comes between the failure and its callback.
        client = aio.AsyncClient(f"{self.path}.none", retry=HASTY)
        client._making = asyncio.ensure_future(fail())
        await asyncio.wait({client._making})
        # Otherwise asyncio says that nobody has asked for it, as its own callback would have.
        client._making.exception()
        with self.assertRaisesRegex(ConnectError, "none"):
            await self.shortly(client.ping())
        self.assertIsNone(client._making)

    async def test_it_goes_on_as_long_as_something_comes(self) -> None:
        parts = 40

        def part(offset: int) -> Talk:
            async def talk(peer: Peer) -> None:
                await peer.greet()
                header = await peer.expect(Op.SUBSCRIBE)
                peer.answer(header)
                push(peer, header, deliver([offset], offset + 1))
                await peer.writer.drain()
                if offset == parts - 1:
                    push(peer, header, event(5, parts))
                    await peer.rest()

            return talk

        # Each of the waits is far within the bound, and all of them together are not.
        retry = Retry(first=0.15, most=0.15, give_up=5.0)
        client = await self.client(*[part(at) for at in range(parts)], retry=retry)
        offsets = [frame.offset async for frame in client.read("*")]
        self.assertEqual(offsets, list(range(parts)))


class Calls(Liar):
    """A call whose last frame has come: who was told of a failure would make it again."""

    async def test_it_is_over_whatever_becomes_of_its_stream(self) -> None:
        for code in (0, 501):

            async def once(peer: Peer, code: int = code) -> None:
                await peer.greet()
                header = await peer.expect(Op.CALL)
                peer.answer(header, bytes(16))
                push(peer, header, deliver([3], 4, "job.recv"))
                push(peer, header, deliver([4], 5, "job.complete"))
                if code:
                    push(peer, header, event(4, 5, code=code, rest=refused("enough")))
                    await peer.rest()

            self.connections = 0
            client = await self.client(once)
            call = client.call("job")
            frame = await self.shortly(call.__anext__())
            self.assertEqual(frame.topic, "job.recv")
            with self.assertRaises(StopAsyncIteration):
                await self.shortly(call.__anext__())
            assert call.complete is not None
            self.assertEqual((call.complete.offset, self.connections), (4, 1))

    async def test_without_it_a_lost_connection_is_told(self) -> None:
        async def half(peer: Peer) -> None:
            await peer.greet()
            header = await peer.expect(Op.CALL)
            peer.answer(header, bytes(16))
            push(peer, header, deliver([3], 4, "job.recv"))

        client = await self.client(half)
        call = client.call("job")
        await self.shortly(call.__anext__())
        with self.assertRaises(ConnectionLost):
            await self.shortly(call.__anext__())


class Uploads(Liar):
    """An upload that is written to by many, or cut short."""

    def taking(self, data: List[bytes]) -> Talk:
        """Takes uploads with a window of a chunk: each chunk has to wait for credit."""

        async def talk(peer: Peer) -> None:
            await peer.greet(chunk=1000, window=1000)
            put: Optional[Header] = None
            while True:
                header, body = await peer.message()
                if header.op == Op.BLOB_PUT:
                    put = header
                elif header.op == Op.PING:
                    peer.answer(header)
                elif header.op == Op.BLOB_CHUNK and put is not None:
                    data.append(body)
                    if header.flags & MORE:
                        # It comes later, so that writes that do not take turns get in between.
                        await asyncio.sleep(0)
                        grant = number(len(body))
                        peer.send(message(Op.CREDIT, PUSH, 0, 0, put.sub, grant))
                    else:
                        peer.answer(put, bytes(32) + number(len(b"".join(data))))

        return talk

    async def test_writes_take_turns(self) -> None:
        data: List[bytes] = []
        client = await self.client(self.taking(data))
        writer = client.blob_writer()
        pieces = [bytes([65 + n]) * (700 + n * 131) for n in range(20)]
        writes = [asyncio.ensure_future(writer.write(piece)) for piece in pieces]
        await asyncio.sleep(0)
        blob = await self.shortly(writer.finish())
        await asyncio.gather(*writes)
        whole = b"".join(pieces)
        self.assertEqual((b"".join(data), blob.bytes), (whole, len(whole)))

    async def test_a_piece_that_is_none_ends_it(self) -> None:
        data: List[bytes] = []
        client = await self.client(self.taking(data))
        writer = client.blob_writer()
        await self.shortly(writer.write(bytes(10)))
        text: Any = "text"
        with self.assertRaises(InvalidValue):
            await self.shortly(writer.write(text))
        for use in (writer.write(bytes(10)), writer.finish()):
            with self.assertRaises(ClientClosed) as caught:
                await self.shortly(use)
            self.assertIsInstance(caught.exception.__cause__, InvalidValue)
        await self.shortly(client.ping())
        self.assertEqual(data, [])

    async def test_it_ends_while_its_source_stalls(self) -> None:
        ended: List[str] = []
        begun = asyncio.Event()

        async def stalling(name: str) -> AsyncIterator[bytes]:
            try:
                begun.set()
                yield bytes(10)
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(name)

        client = await self.client(self.taking([]))
        put = asyncio.ensure_future(client.put_blob(stalling("given up")))
        await self.shortly(begun.wait())
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(put, 0.05)
        self.assertEqual(ended, ["given up"])
        begun.clear()
        append = asyncio.ensure_future(client.append("a", stalling("closed")))
        await self.shortly(begun.wait())
        await self.shortly(client.ping())
        await self.shortly(client.close())
        with self.assertRaises(ClientClosed):
            await self.shortly(append)
        self.assertEqual(ended, ["given up", "closed"])

    async def test_closing_it_ends_who_waits_for_it(self) -> None:
        async def stuck(peer: Peer) -> None:
            await peer.greet(chunk=1000, window=1000)
            await peer.rest()

        client = await self.client(stuck)
        for size in (10, 5000):
            writer = client.blob_writer()
            write = asyncio.ensure_future(writer.write(bytes(size)))
            finish = asyncio.ensure_future(writer.finish())
            await asyncio.sleep(0.01)
            await writer.aclose()
            if size == 10:
                await self.shortly(write)
            else:
                with self.assertRaises(ClientClosed):
                    await self.shortly(write)
            with self.assertRaises(ClientClosed):
                await self.shortly(finish)


class Downloads(Liar):
    """A download of something else than was asked for."""

    async def test_more_than_was_announced_ends_it_at_once(self) -> None:
        data = b"x" * 100

        async def endless(peer: Peer) -> None:
            await peer.greet()
            header = await peer.expect(Op.BLOB_GET)
            peer.answer(header, number(100))
            for _ in range(3):
                peer.send(message(Op.BLOB_CHUNK, PUSH | MORE, 0, 0, header.sub, data[50:]))
            await peer.rest()

        client = await self.client(endless)
        with self.assertRaises(IntegrityError):
            await self.shortly(client.read_blob(BlobHash.of(data)))

    async def test_other_bytes_are_refused(self) -> None:
        data = b"what was asked for"

        async def other(peer: Peer) -> None:
            await peer.greet()
            while True:
                header = await peer.expect(Op.BLOB_GET)
                peer.answer(header, number(len(data)))
                chunk = b"What was asked for"
                peer.send(message(Op.BLOB_CHUNK, PUSH, 0, 0, header.sub, chunk))

        client = await self.client(other)
        with self.assertRaises(IntegrityError):
            await self.shortly(client.read_blob(BlobHash.of(data)))
        given: List[bytes] = []
        with self.assertRaisesRegex(xs_stream.IntegrityError, "something else"):
            async for piece in client.get_blob(BlobHash.of(data)):
                given.append(piece)
        self.assertEqual(given, [])


class Blocking(Liar):
    """What the blocking face does as the other one."""

    async def test_with_makes_a_call(self) -> None:
        calls: List[int] = []

        async def answer(peer: Peer) -> None:
            await peer.greet()
            while True:
                header = await peer.request()
                calls.append(header.op)
                if header.op != Op.UNSUBSCRIBE:
                    peer.answer(header, bytes(16) if header.op == Op.CALL else b"")

        self._talks = [answer]

        def work() -> None:
            with xs_stream.connect(self.path) as client:
                with client.call("job"):
                    client.ping()
                client.ping()

        await self.shortly(asyncio.get_running_loop().run_in_executor(None, work))
        self.assertEqual(calls, [Op.CALL, Op.PING, Op.UNSUBSCRIBE, Op.PING])


class Timeouts(Liar):
    """The times that the blocking face is given."""

    async def test_they_bound_uploads_and_openings(self) -> None:
        async def stuck(peer: Peer) -> None:
            await peer.greet(chunk=1000, window=1000)
            await peer.rest()

        self._talks = [stuck]

        def work() -> List[str]:
            ended = []
            with xs_stream.connect(self.path) as client:
                uses: Dict[str, Callable[[], Any]] = {
                    "append": lambda: client.append("a", iter([bytes(5000)]), timeout=0.05),
                    "put of pieces": lambda: client.put_blob(iter([bytes(5000)]), timeout=0.05),
                    "put of bytes": lambda: client.put_blob(bytes(5000), timeout=0.05),
                    "write": lambda: client.blob_writer().write(bytes(5000), timeout=0.05),
                    "finish": lambda: client.blob_writer().finish(timeout=0.05),
                    "follow": lambda: client.follow("*").open(timeout=0.05),
                    "call": lambda: client.call("x").open(timeout=0.05),
                }
                for name, use in uses.items():
                    with self.assertRaises(TimeoutError, msg=name):
                        use()
                    ended.append(name)
                writer = client.blob_writer()
            writer.close()
            return ended

        loop = asyncio.get_running_loop()
        self.assertEqual(len(await self.shortly(loop.run_in_executor(None, work))), 7)
