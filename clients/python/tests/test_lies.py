"""What the conformance script cannot say over servers that stop, vanish or lie."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Callable, List, Optional, Tuple

import xs_stream
from xs_stream import (
    AccessError,
    AddressError,
    BlobHash,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    IntegrityError,
    ProtocolError,
    ProtocolRefused,
    Retry,
    aio,
)
from xs_stream.coding import MORE, PREFACE, PUSH, RESPONSE, Header, Op, message
from xs_stream.limits import FREE_WAITING_MAX
from xs_stream.reading import Backoff
from xs_stream.session import Push

from .peer import QUICK, Liar, Peer, Talk, refused
from .support import PATIENCE
from .test_core import deliver, event, gap


class Lies(Liar):
    """Over servers that do what a test tells them, one connection after another."""

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

    async def test_an_append_may_be_there_whatever_close_says(self) -> None:
        async def revoke(peer: Peer) -> None:
            await peer.greet()
            await peer.expect(Op.APPEND)
            peer.send(message(Op.CLOSE, PUSH, 200, 0, 0, refused("revoked")))
            await peer._reader.read()

        client = await self.client(revoke)
        with self.assertRaisesRegex(ConnectionLost, "revoked"):
            await self.soon(client.append("a"))

    async def test_what_a_call_did_is_not_known_whatever_close_says(self) -> None:
        async def revoke(peer: Peer) -> None:
            await peer.greet()
            peer.answer(await peer.expect(Op.CALL), bytes(16))
            peer.send(message(Op.CLOSE, PUSH, 200, 0, 0, refused("revoked")))
            await peer._reader.read()

        client = await self.client(revoke)
        with self.assertRaisesRegex(ConnectionLost, "revoked"):
            await self.soon(client.call("x").__anext__())

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
        with self.assertRaises(StopAsyncIteration):
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

    async def test_a_server_that_sends_beyond_the_credit_is_left(self) -> None:
        piece = Push(1, Op.BLOB_CHUNK, 0, True, bytes(9))
        breaches: List[Tuple[int, List[Push]]] = [
            (Op.SUBSCRIBE, [deliver([3], 4), deliver([5], 6)]),
            (Op.SUBSCRIBE, [gap(2, 1, 0)] * (FREE_WAITING_MAX + 1)),
            (Op.CALL, [deliver([3], 4), deliver([5], 6)]),
            (Op.BLOB_GET, [piece]),
            (Op.BLOB_GET, [piece._replace(body=b"")]),
        ]
        for op, pushes in breaches:

            async def flood(peer: Peer, op: int = op, pushes: List[Push] = pushes) -> None:
                await peer.greet()
                header = await peer.expect(op)
                sub, more = header.sub, MORE if op == Op.BLOB_GET else 0
                asked = message(op, RESPONSE, 0, header.corr, sub, (1 << 20).to_bytes(16, "little"))
                told = [message(push.op, PUSH | more, 0, 0, sub, push.body) for push in pushes]
                peer.send(b"".join([asked, *told]))
                peer.answer(await peer.expect(Op.PING))

            async def friendly(peer: Peer) -> None:
                await peer.greet()
                peer.answer(await peer.expect(Op.PING))
                await peer.rest()

            self.connections = 0
            client = await self.client(flood, friendly)
            with self.subTest(op=op), self.assertRaisesRegex(ProtocolError, "the server sent"):
                stream: Any
                if op == Op.BLOB_GET:
                    stream = client.get_blob(BlobHash(bytes(32)), credit=8)
                else:
                    is_call = op == Op.CALL
                    stream = client.call("a", credit=8) if is_call else client.follow("*", credit=8)
                    await self.soon(stream.open())
                    # All has come, and nothing of it was taken.
                    await self.soon(client.ping())
                while True:
                    await self.soon(stream.__anext__())

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
