"""What the conformance script cannot say: waiting, giving up, threads, and servers that stop,
vanish or lie."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Awaitable, Callable, List, Optional

import xs_stream
from xs_stream import (
    AccessError,
    AddressError,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    IntegrityError,
    NewFrame,
    ProtocolError,
    ProtocolRefused,
    Retry,
    aio,
)
from xs_stream.coding import PREFACE, PUSH, RESPONSE, Header, Op, Writer, message
from xs_stream.reading import Backoff

from .support import PATIENCE, Server
from .test_core import deliver, event

QUICK = Retry(first=0.01, most=0.05, give_up=PATIENCE)


class Real(unittest.TestCase):
    """Over `xs serve`."""

    server: Server

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server()
        xs_stream.connect(cls.server.store, wait=PATIENCE).close()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.close()

    def test_a_wait_that_ends_loses_nothing(self) -> None:
        client = xs_stream.connect(self.server.store)
        with client, client.follow("wait", new=True) as follow:
            self.assertEqual(follow.next(PATIENCE).kind, "caught_up")
            for n in range(20):
                with self.assertRaises(TimeoutError):
                    follow.next(0.001)
                client.append("wait", meta=n)
                item: Any = follow.next(PATIENCE)
                self.assertEqual(item.meta, n)

    def test_a_result_that_comes_with_the_timeout_is_returned(self) -> None:
        async def late() -> int:
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                return 7
            return 0

        with xs_stream.connect(self.server.store) as client:
            self.assertEqual(client._loop.run(late(), 0.01), 7)

    def test_what_was_not_shown_is_shown_again(self) -> None:
        async def main() -> None:
            async with await aio.connect(self.server.store) as client:
                await client.append_batch([NewFrame("shown", meta=n) for n in range(3)])
                read = client.read("shown")
                shown: Any = []
                while len(shown) < 3:
                    # Who waited for it is gone each time.
                    shown = await read._peek(0)
                for _ in range(2):
                    shown = await read._peek(1)
                    self.assertEqual([frame.meta for frame in shown], [1, 2])

        asyncio.run(main())

    def test_threads_share_a_client(self) -> None:
        with xs_stream.connect(self.server.store) as client:

            def work(name: int) -> None:
                for n in range(20):
                    client.append(f"threads.t{name}", meta=n)

            threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            topics = client.topics("threads.*")
            self.assertEqual([topic.count for topic in topics], [20] * 8)

    def test_threads_and_tasks_share_a_stream(self) -> None:
        count = 3000
        data = bytes(range(256)) * 4096
        with xs_stream.connect(self.server.store) as client:
            client.append_batch([NewFrame("shared", meta=n) for n in range(count)])
            blob = client.put_blob(data).hash
            read = client.read("shared", credit=4096)
            found: List[Any] = []

            def work() -> None:
                for frame in read:
                    found.append(frame.meta)

            threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            self.assertEqual(sorted(found), list(range(count)))

        async def main() -> None:
            async with await aio.connect(self.server.store) as client:
                read = client.read("shared", credit=4096)
                frames = await asyncio.gather(*[read.__anext__() for _ in range(count)])
                self.assertEqual([frame.meta for frame in frames], list(range(count)))
                reader = client.get_blob(blob, credit=1 << 16)
                whole = b""
                while len(whole) < len(data):
                    wanted = [reader.__anext__() for _ in range(3)]
                    for piece in await asyncio.gather(*wanted, return_exceptions=True):
                        whole += piece if isinstance(piece, bytes) else b""
                self.assertEqual(whole, data)

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_requests_are_pipelined_and_appends_keep_their_order(self) -> None:
        async def main() -> None:
            async with await aio.connect(self.server.store) as client:
                wanted = [client.append("piped", bytes(2000), meta=n) for n in range(3000)]
                stamps = await asyncio.gather(*wanted)
                offsets = [stamp.offset or 0 for stamp in stamps]
                self.assertEqual(offsets, sorted(offsets))
                metas = [frame.meta async for frame in client.read("piped")]
                self.assertEqual(metas, list(range(3000)))

        asyncio.run(main())

    def test_a_read_that_is_left_ends_on_the_server(self) -> None:
        with xs_stream.connect(self.server.store) as client:
            client.append_batch([NewFrame("left", meta=n) for n in range(100)])
            # More than the 256 streams that one connection may have open.
            for _ in range(300):
                with client.read("left", credit=1) as read:
                    self.assertEqual(next(read).meta, 0)

    def test_a_loop_that_is_left_ends_its_stream_on_the_server(self) -> None:
        with xs_stream.connect(self.server.store) as client:
            client.append_batch([NewFrame("break", meta=n) for n in range(100)])
            blob = client.put_blob(bytes(1 << 20)).hash
            # Each more than the 256 streams that one connection may have open.
            for _ in range(300):
                for item in client.follow("break"):
                    self.assertEqual(item.kind, "frame")
                    break
                for frame in client.read("break", credit=1):
                    self.assertEqual(frame.meta, 0)
                    break
                for piece in client.get_blob(blob, credit=1):
                    self.assertTrue(piece)
                    break
                client.blob_writer().write(bytes(300_000))

        async def main() -> None:
            async with await aio.connect(self.server.store) as client:
                for _ in range(300):
                    async for item in client.follow("break"):
                        self.assertEqual(item.kind, "frame")
                        break

        asyncio.run(main())

    def test_a_cancelled_wait_gives_its_stream_back(self) -> None:
        async def main() -> None:
            async with await aio.connect(self.server.store) as client:
                for _ in range(300):
                    task = asyncio.ensure_future(client.follow("cancel", new=True).open())
                    await asyncio.sleep(0)
                    task.cancel()
                self.assertGreater(await client.ping(), 0)
                async with client.follow("cancel", new=True) as follow:
                    self.assertEqual((await follow.__anext__()).kind, "caught_up")

        asyncio.run(main())

    def test_a_closed_client_says_so(self) -> None:
        client = xs_stream.connect(self.server.store)
        follow = client.follow("closed")
        follow.open()
        client.close()
        client.close()
        for use in (client.ping, follow.open, lambda: next(iter(follow))):
            with self.assertRaises(ClientClosed):
                use()
        follow.close()

    def test_closing_leaves_no_thread_behind(self) -> None:
        for _ in range(30):
            client = xs_stream.connect(self.server.store)
            ended: List[BaseException] = []
            begun = threading.Barrier(6)

            def work(
                client: xs_stream.Client = client,
                ended: List[BaseException] = ended,
                begun: threading.Barrier = begun,
            ) -> None:
                begun.wait(PATIENCE)
                try:
                    while True:
                        client.ping()
                except (ClientClosed, ConnectionLost) as error:
                    ended.append(error)

            threads = [threading.Thread(target=work, daemon=True) for _ in range(5)]
            threads.append(threading.Thread(target=client.close, daemon=True))
            for thread in threads:
                thread.start()
            begun.wait(PATIENCE)
            client.close()
            for thread in threads:
                thread.join(PATIENCE)
            self.assertEqual(len(ended), 5)

    def test_closing_ends_who_waits(self) -> None:
        async def main() -> None:
            client = await aio.connect(self.server.store)
            follow = client.follow("ends", new=True)
            await follow.__anext__()
            waiting = asyncio.ensure_future(follow.__anext__())
            await asyncio.sleep(0)
            await client.close()
            with self.assertRaises(ConnectionLost):
                await waiting

        asyncio.run(main())

    def test_closing_a_stream_ends_who_waits_for_it(self) -> None:
        async def main() -> None:
            async with await aio.connect(self.server.store) as client:
                follow = client.follow("ends", new=True)
                await follow.__anext__()
                waiting = asyncio.ensure_future(follow.__anext__())
                await asyncio.sleep(0)
                await follow.aclose()
                with self.assertRaises(StopAsyncIteration):
                    await asyncio.wait_for(waiting, PATIENCE)
                self.assertGreater(await client.ping(), 0)

        asyncio.run(main())
        kinds: List[str] = []
        begun = threading.Event()

        def run() -> None:
            for item in follow:
                kinds.append(item.kind)
                begun.set()
            kinds.append("end")

        with xs_stream.connect(self.server.store) as client:
            follow = client.follow("ends", new=True)
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            self.assertTrue(begun.wait(PATIENCE))
            follow.close()
            thread.join(PATIENCE)
            self.assertEqual(kinds, ["caught_up", "end"])

    def test_a_path_may_be_long(self) -> None:
        with tempfile.TemporaryDirectory() as root:
            deep = Path(root, *["d" * 50] * 4)
            deep.mkdir(parents=True)
            (deep / "store").symlink_to(self.server.store)
            with xs_stream.connect(deep / "store") as client:
                self.assertGreater(client.ping(), 0)

    def test_blobs_take_little_memory(self) -> None:
        piece = bytes(range(256)) * 1024
        held: List[int] = []

        def pieces() -> Any:
            for _ in range(200):
                held.append(1)
                yield piece

        with xs_stream.connect(self.server.store) as client:
            blob = client.put_blob(pieces())
            self.assertEqual((blob.bytes, len(held)), (200 * len(piece), 200))
            with client.get_blob(blob.hash, credit=1 << 18) as reader:
                size = sum(len(part) for part in reader)
            self.assertEqual((size, reader.bytes), (blob.bytes, blob.bytes))


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


class Lies(unittest.IsolatedAsyncioTestCase):
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

    async def test_no_answer_to_hello_ends_the_wait(self) -> None:
        async def silent(peer: Peer) -> None:
            await peer._reader.read()

        with self.assertRaisesRegex(ConnectError, "no answer within"):
            await self.client(silent, timeout=0.05)

    async def test_another_protocol_is_told(self) -> None:
        async def other(peer: Peer) -> None:
            peer.send(b"XSP\0\2\0\0\0")
            await peer._reader.read()

        with self.assertRaisesRegex(ProtocolError, "XSP/2"):
            await self.client(other)

    async def test_a_refused_token_is_final(self) -> None:
        async def stern(peer: Peer) -> None:
            await peer._reader.readexactly(8)
            peer.send(PREFACE)
            peer.answer(await peer.request(), refused("no such token"), 200)

        with self.assertRaisesRegex(AccessError, "no such token"):
            await self.client(stern, wait=PATIENCE)
        self.assertEqual(self.connections, 1)

    async def test_closing_while_it_connects_leaves_no_connection(self) -> None:
        async def quiet(peer: Peer) -> None:
            await peer.greet()
            await peer._reader.read()

        self._talks = [quiet]
        for turns in range(40):
            client = aio.AsyncClient(self.path)
            request = asyncio.ensure_future(client.ping())
            for _ in range(turns):
                await asyncio.sleep(0)
            await self.soon(client.close())
            current = client._current
            self.assertTrue(current is None or current.failure is not None, f"after {turns} turns")
            with self.assertRaises((ClientClosed, ConnectionLost)):
                await self.soon(request)
        # Each that was made has ended.
        await self.soon(asyncio.gather(*self._tasks, return_exceptions=True))

    async def test_each_request_has_its_own_time_to_give_up(self) -> None:
        async def answer(peer: Peer) -> None:
            await peer.greet()
            peer.answer(await peer.expect(Op.PING))
            await peer._reader.read()

        self._talks = [answer]
        late = f"{self._dir.name}/late.sock"
        client = aio.AsyncClient(late, retry=QUICK)
        self._clients.append(client)
        hasty = asyncio.ensure_future(client._connection(give_up=0.0))
        await asyncio.sleep(0)
        patient = asyncio.ensure_future(client.ping())
        with self.assertRaises(ConnectError):
            await self.soon(hasty)
        server = await asyncio.start_unix_server(self._connected, late)
        self.assertGreater(await self.soon(patient), 0)
        server.close()

    async def test_an_append_without_a_key_is_not_repeated(self) -> None:
        async def vanish(peer: Peer) -> None:
            await peer.greet()
            await peer.expect(Op.APPEND)

        client = await self.client(vanish)
        with self.assertRaises(ConnectionLost) as caught:
            await self.soon(client.append("a"))
        self.assertFalse(caught.exception.retryable)

    async def test_a_removal_is_not_repeated(self) -> None:
        async def vanish(peer: Peer) -> None:
            await peer.greet()
            await peer.expect(Op.REMOVE)

        client = await self.client(vanish)
        with self.assertRaises(ConnectionLost):
            await self.soon(client.remove(7))
        self.assertEqual(self.connections, 1)

    async def test_an_append_with_a_key_is_repeated(self) -> None:
        async def vanish(peer: Peer) -> None:
            await peer.greet()
            await peer.expect(Op.APPEND)

        async def store(peer: Peer) -> None:
            await peer.greet()
            stored = bytes(8) + b"\1\0\1\0\0\0\0\0" + bytes(16) + (7).to_bytes(8, "little")
            peer.answer(await peer.expect(Op.APPEND), stored)
            await peer._reader.read()

        client = await self.client(vanish, vanish, store)
        stamp = await self.soon(client.append("a", key="k"))
        self.assertEqual((stamp.offset, self.connections), (7, 3))

    async def test_what_is_busy_is_asked_again(self) -> None:
        async def busy(peer: Peer) -> None:
            await peer.greet()
            for _ in range(3):
                peer.answer(await peer.expect(Op.APPEND), refused("full"), 502)
            stored = bytes(8) + b"\1\0\1\0\0\0\0\0" + bytes(16) + (7).to_bytes(8, "little")
            peer.answer(await peer.expect(Op.APPEND), stored)
            await peer._reader.read()

        client = await self.client(busy)
        self.assertEqual((await self.soon(client.append("a"))).offset, 7)

    async def test_it_gives_up_in_time(self) -> None:
        async def busy(peer: Peer) -> None:
            await peer.greet()
            while True:
                peer.answer(await peer.expect(Op.APPEND), refused("full"), 502)

        client = await self.client(busy, retry=Retry(0.01, 0.02, 2.0, 0.1))
        with self.assertRaisesRegex(xs_stream.Unavailable, "502 StorageFull: full"):
            await self.soon(client.append("a"))

    def closing(self, code: int) -> Talk:
        """Answers HELLO and closes, both at once."""

        async def talk(peer: Peer) -> None:
            sent: List[bytes] = []
            send, peer.send = peer.send, sent.append  # type: ignore[method-assign, assignment]
            await peer.greet()
            close = message(Op.CLOSE, PUSH, code, 0, 0, refused("enough"))
            send(b"".join([*sent, close]))
            await peer._reader.read()

        return talk

    async def test_a_server_that_closes_at_once_is_not_stormed(self) -> None:
        client = await self.client(self.closing(500), retry=Retry(0.01, 0.05, 2.0, 0.3))
        with self.assertRaisesRegex(ConnectionLost, "500 Busy: enough"):
            await self.soon(client.ping())
        self.assertLess(self.connections, 60)
        backoff = Backoff(Retry(), lambda: 1.0)
        self.assertEqual([backoff.wait_unsent() for _ in range(3)], [0.0, 0.05, 0.1])
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(client.follow("*").__anext__(), 0.3)
        self.assertLess(self.connections, 120)

    async def test_a_server_that_closes_for_good_is_left(self) -> None:
        client = await self.client(self.closing(200))
        for wait in (client.ping(), client.follow("*").__anext__()):
            with self.assertRaisesRegex(AccessError, "200 Unauthenticated: enough"):
                await self.soon(wait)
        self.assertLess(self.connections, 5)

    async def test_a_server_that_goes_away_is_left(self) -> None:
        finish: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

        async def leaving(peer: Peer) -> None:
            await peer.greet()
            subscribed = await peer.expect(Op.SUBSCRIBE)
            peer.answer(subscribed)
            slow = await peer.expect(Op.TOPICS)
            reason = (5000).to_bytes(4, "little") + refused("stopping")
            peer.send(message(Op.GOAWAY, PUSH, 501, 0, 0, reason))
            drop = event(4, 42, rest=refused("stopping"))
            peer.send(message(Op.SUB_EVENT, PUSH, 501, 0, subscribed.sub, drop.body))
            await finish
            peer.answer(slow)
            await peer._reader.read()

        async def fresh(peer: Peer) -> None:
            await peer.greet()
            while True:
                header = await peer.request()
                peer.answer(header)
                if header.op == Op.SUBSCRIBE:
                    push = event(1, 50)
                    peer.send(message(push.op, PUSH, 0, 0, header.sub, push.body))

        client = await self.client(leaving, fresh)
        follow = client.follow("*")
        await self.soon(follow.open())
        topics = asyncio.ensure_future(client.topics())
        item: Any = await self.soon(follow.__anext__())
        self.assertEqual((item.kind, item.offset), ("resumed", 42))
        item = await self.soon(follow.__anext__())
        self.assertEqual((item.kind, item.head), ("caught_up", 50))
        self.assertGreater(await self.soon(client.ping()), 0)
        self.assertFalse(topics.done())
        finish.set_result(None)
        self.assertEqual(await self.soon(topics), [])

    async def test_closing_ends_who_waits_for_a_server_that_is_gone(self) -> None:
        async def gone(peer: Peer) -> None:
            await peer.greet()
            await peer.expect(Op.SUBSCRIBE)

        async def silent(peer: Peer) -> None:
            await peer.greet()
            await peer._reader.read()

        client = await self.client(gone, retry=Retry(first=3600, most=3600))
        first, second = client.follow("*"), client.follow("*")
        waiting = [asyncio.ensure_future(one.__anext__()) for one in (first, second)]
        while len(client._asleep) < 2:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0)
        await first.aclose()
        with self.assertRaises(StopAsyncIteration):
            await self.soon(waiting[0])
        await client.close()
        with self.assertRaises(ClientClosed):
            await self.soon(waiting[1])
        self.connections = 0
        client = await self.client(silent)
        call = client.call("x")
        result = asyncio.ensure_future(call.__anext__())
        await asyncio.sleep(0)
        await call.aclose()
        with self.assertRaises(StopAsyncIteration):
            await self.soon(result)

    async def test_damage_on_the_way_ends_the_stream(self) -> None:
        async def damage(peer: Peer) -> None:
            await peer.greet()
            header = await peer.expect(Op.SUBSCRIBE)
            peer.answer(header)
            body = bytearray(deliver([3], 4).body)
            body[-9] ^= 1
            peer.send(message(Op.DELIVER, PUSH, 0, 0, header.sub, body))
            await peer.expect(Op.UNSUBSCRIBE)
            peer.answer(await peer.expect(Op.PING))
            await peer._reader.read()

        client = await self.client(damage)
        with self.assertRaises(IntegrityError):
            await self.soon(client.follow("*").__anext__())
        self.assertGreater(await self.soon(client.ping()), 0)

    async def test_a_breach_is_final(self) -> None:
        async def breach(peer: Peer) -> None:
            await peer.greet()
            peer.answer(await peer.expect(Op.SUBSCRIBE))
            peer.send(message(Op.CLOSE, PUSH, 105, 0, 0, refused("too much")))
            await peer._reader.read()

        client = await self.client(breach)
        with self.assertRaises(ProtocolRefused):
            await self.soon(client.follow("*").__anext__())
        self.assertEqual(self.connections, 1)

    async def test_a_call_is_made_once(self) -> None:
        go = asyncio.Event()
        calls = 0

        async def answer(peer: Peer) -> None:
            nonlocal calls
            await peer.greet()
            while True:
                header = await peer.request()
                if header.op == Op.CALL:
                    calls += 1
                    self._tasks.append(asyncio.ensure_future(self._results(peer, header, go)))
                elif header.op == Op.PING:
                    peer.answer(header)

        client = await self.client(answer)
        call = client.call("once")
        for _ in range(3):
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(call.__anext__(), 0.01)
        both = asyncio.gather(call.open(), call.open())
        go.set()
        self.assertEqual(await self.soon(both), [call.id, call.id])
        self.assertEqual([frame.offset async for frame in call], [3, 4])
        closed = client.call("never")
        await closed.aclose()
        self.assertEqual([frame async for frame in closed], [])
        with self.assertRaises(ClientClosed):
            await closed.open()
        await self.soon(client.ping())
        self.assertEqual(calls, 1)

    async def _results(self, peer: Peer, header: Header, go: asyncio.Event) -> None:
        await go.wait()
        peer.answer(header, bytes(16))
        for push in (deliver([3, 4], 5), event(5, 5)):
            peer.send(message(push.op, PUSH, 0, 0, header.sub, push.body))

    async def test_a_download_goes_on_and_is_checked(self) -> None:
        data = b"0123456789" * 10
        name = xs_stream.BlobHash.of(data)

        def half(turn: int) -> Talk:
            async def talk(peer: Peer) -> None:
                await peer.greet()
                header = await peer.expect(Op.BLOB_GET)
                peer.answer(header, len(data).to_bytes(8, "little"))
                for at in range(0, 40 if turn == 0 else 100, 20):
                    more = 0 if at == 80 else 4
                    piece = data[at : at + 20] if turn < 2 else b"x" * 20
                    peer.send(message(Op.BLOB_CHUNK, PUSH | more, 0, 0, header.sub, piece))
                await asyncio.wait_for(peer.writer.drain(), PATIENCE)
                if turn > 0:
                    await peer._reader.read()

            return talk

        client = await self.client(half(0), half(1))
        pieces = [piece async for piece in client.get_blob(name)]
        self.assertEqual((b"".join(pieces), self.connections), (data, 2))
        client = await self.client(half(2), half(2), half(2))
        with self.assertRaises(IntegrityError):
            await self.soon(client.read_blob(name))

    async def test_a_download_outlives_a_wait_that_is_given_up(self) -> None:
        data = bytes(range(100))
        go = asyncio.Event()
        granted = 0

        async def slowly(peer: Peer) -> None:
            nonlocal granted
            await peer.greet()
            header = await peer.expect(Op.BLOB_GET)
            peer.answer(header, len(data).to_bytes(8, "little"))
            peer.send(message(Op.BLOB_CHUNK, PUSH | 4, 0, 0, header.sub, data[:50]))
            await peer.expect(Op.CREDIT)
            granted += 1
            await go.wait()
            peer.send(message(Op.BLOB_CHUNK, PUSH, 0, 0, header.sub, data[50:]))
            while (await peer.request()).op == Op.CREDIT:
                granted += 1

        client = await self.client(slowly)
        reader = client.get_blob(xs_stream.BlobHash.of(data), credit=50)
        got = await self.soon(reader.__anext__())
        for _ in range(3):
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(reader.__anext__(), 0.01)
        go.set()
        async for piece in reader:
            got += piece
        self.assertEqual(got, data)
        self.assertGreater(await self.ended(client), 0)
        self.assertEqual(granted, 1)

    async def ended(self, client: aio.AsyncClient) -> int:
        """Closes it and waits until its connections are gone."""
        await client.close()
        await self.soon(asyncio.gather(*self._tasks, return_exceptions=True))
        return len(self._tasks)

    async def test_an_upload_keeps_to_its_window(self) -> None:
        received = 0
        most = 0

        async def count(peer: Peer) -> None:
            nonlocal received, most
            await peer.greet()
            put: Optional[Header] = None
            granted = 1 << 20
            while True:
                header = await peer.request()
                if header.op == Op.BLOB_PUT:
                    put = header
                elif header.op == Op.BLOB_CHUNK and put is not None:
                    received += header.length - 12
                    most = max(most, received - granted)
                    if not header.flags & 4:
                        peer.answer(put, bytes(32) + received.to_bytes(8, "little"))
                    elif received == granted:
                        # Only when the window is used up: the client has to wait for it.
                        granted += 1 << 20
                        grant = (1 << 20).to_bytes(8, "little")
                        peer.send(message(Op.CREDIT, PUSH, 0, 0, put.sub, grant))

        client = await self.client(count)
        blob = await self.soon(client.put_blob(iter([bytes(100_000)] * 50)))
        self.assertEqual((blob.bytes, most), (5_000_000, 0))

    async def test_an_upload_fits_into_any_window(self) -> None:
        def odd(chunk: int, window: int) -> Talk:
            async def talk(peer: Peer) -> None:
                await peer.greet(chunk=chunk, window=window)
                put = await peer.expect(Op.BLOB_PUT)
                received = 0
                while True:
                    header = await peer.expect(Op.BLOB_CHUNK)
                    received += header.length - 12
                    if not header.flags & 4:
                        peer.answer(put, bytes(32) + received.to_bytes(8, "little"))
                    else:
                        grant = (header.length - 12).to_bytes(8, "little")
                        peer.send(message(Op.CREDIT, PUSH, 0, 0, put.sub, grant))

            return talk

        for chunk, window in ((1 << 21, 1 << 20), (256 << 10, 1000), (0, 1 << 20)):
            self.connections = 0
            client = await self.client(odd(chunk, window))
            blob = await self.soon(client.put_blob(iter([bytes(100_000)] * 30)))
            self.assertEqual(blob.bytes, 3_000_000)

    async def test_an_upload_ends_with_a_write_that_is_given_up(self) -> None:
        ops: List[int] = []

        async def stall(peer: Peer) -> None:
            await peer.greet()
            while True:
                header = await peer.request()
                ops.append(header.op)
                if header.op == Op.BLOB_PUT:
                    put = header
                elif header.op == Op.BLOB_CHUNK and not header.flags & 4:
                    peer.answer(put, bytes(40))

        client = await self.client(stall)
        writer = client.blob_writer()
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(writer.write(bytes(3 << 20)), 0.05)
        for use in (writer.finish(), writer.write(b"x")):
            with self.assertRaisesRegex(ClientClosed, "the upload is over"):
                await self.soon(use)
        await self.ended(client)
        self.assertEqual(ops[-1], Op.UNSUBSCRIBE)

    async def test_a_peer_that_vanishes_is_noticed(self) -> None:
        async def quiet(peer: Peer) -> None:
            await peer.greet()
            await peer._reader.read()

        self._talks = [quiet]
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        client = await aio.connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        self._clients.append(client)
        assert client._current is not None and client._current._transport is not None
        sock = client._current._transport.get_extra_info("socket")
        self.assertTrue(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self.assertGreater(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 0)
        server.close()

    async def test_pulses_do_not_pile_up(self) -> None:
        async def beat(peer: Peer) -> None:
            await peer.greet()
            header = await peer.expect(Op.SUBSCRIBE)
            peer.answer(header)
            pulse = event(2)
            for push in [pulse, deliver([3], 4), *[pulse] * 50, deliver([5], 6), pulse, pulse]:
                peer.send(message(push.op, PUSH, 0, 0, header.sub, push.body))
            peer.answer(await peer.expect(Op.PING))
            await peer._reader.read()

        client = await self.client(beat)
        follow = client.follow("*")
        await self.soon(follow.open())
        await self.soon(client.ping())
        kinds = [(await self.soon(follow.__anext__())).kind for _ in range(5)]
        self.assertEqual(kinds, ["pulse", "frame", "pulse", "frame", "pulse"])

    async def test_certificates_that_are_none_are_told(self) -> None:
        for path in ("/nowhere", __file__):
            with self.assertRaisesRegex(xs_stream.TlsError, path) as caught:
                aio.AsyncClient("xss://localhost:1", tls=path)
            self.assertFalse(caught.exception.retryable)

    async def test_a_download_that_gets_nowhere_is_given_up(self) -> None:
        async def vanish(peer: Peer) -> None:
            await peer.greet()
            header = await peer.expect(Op.BLOB_GET)
            peer.answer(header, (100).to_bytes(8, "little"))
            peer.send(message(Op.BLOB_CHUNK, PUSH | 4, 0, 0, header.sub, bytes(50)))

        client = await self.client(vanish, retry=Retry(0.01, 0.02, 2.0, 0.1))
        reader = client.get_blob(xs_stream.BlobHash.of(b"x"))
        self.assertEqual(await self.soon(reader.__anext__()), bytes(50))
        with self.assertRaises(ConnectionLost):
            await self.soon(reader.__anext__())

    async def test_a_stream_has_credit(self) -> None:
        client = aio.AsyncClient(self.path)
        name = xs_stream.BlobHash.of(b"")
        for credit in (0, -1, 1 << 32):
            uses: List[Callable[..., Any]] = [client.read, client.follow, client.call]
            uses.append(lambda _, credit: client.get_blob(name, credit=credit))
            for use in uses:
                with self.assertRaisesRegex(xs_stream.InvalidValue, "credit"):
                    use("a", credit=credit)

    async def test_a_token_is_not_sent_in_the_clear(self) -> None:
        with self.assertRaisesRegex(AddressError, "TLS"):
            await aio.connect("192.0.2.1:1", token="secret", timeout=0.1)
        with self.assertRaises(AddressError):
            await aio.connect(self.path, tls="/nowhere")
        self.assertNotIn("secret", repr(aio.AsyncClient(":1", token="secret")))


class Pace(unittest.TestCase):
    def test_an_idle_sync_client_answers_pings(self) -> None:
        """Its loop runs while nobody waits, or servers would take it for dead."""
        ready, pinged = threading.Event(), threading.Event()

        async def main(path: str) -> None:
            done = asyncio.Event()

            async def connected(reader: Any, writer: Any) -> None:
                peer = Peer(reader, writer)
                await peer.greet()
                peer.send(message(Op.PING, PUSH, 0, 0, 0, b"there?"))
                header = await peer.request()
                if (header.op, header.flags, header.length) == (Op.PING, RESPONSE, 18):
                    pinged.set()
                await reader.read()
                writer.close()
                done.set()

            server = await asyncio.start_unix_server(connected, path)
            ready.set()
            await asyncio.wait_for(done.wait(), PATIENCE)
            server.close()

        with tempfile.TemporaryDirectory() as root:
            path = f"{root}/xs.sock"
            thread = threading.Thread(target=lambda: asyncio.run(main(path)))
            thread.start()
            self.assertTrue(ready.wait(PATIENCE))
            with xs_stream.connect(path):
                self.assertTrue(pinged.wait(PATIENCE))
            thread.join(PATIENCE)
