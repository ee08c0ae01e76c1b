"""What is tried again over a connection that was lost, and what is told when that is of no use."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, Callable, Dict, List, Optional, Set, Type
from zlib import crc32

from xs_stream import (
    AccessError,
    BlobHash,
    CaughtUp,
    ConditionFailed,
    ConnectError,
    ConnectionLost,
    Frame,
    Indeterminate,
    InvalidRequest,
    NewFrame,
    NotFound,
    ProtocolRefused,
    Resumed,
    Retry,
    Unavailable,
    XsError,
    aio,
)
from xs_stream.coding import MORE, PREFACE, PUSH, Header, Op, message

from .peer import Liar, Peer, Talk, refused
from .test_core import deliver

HASTY = Retry(first=0.01, most=0.02, give_up=0.2)
STORED = bytes(8) + b"\1\0\1\0\0\0\0\0" + bytes(16) + (7).to_bytes(8, "little")
"""The answer to an append of one frame, at offset 7."""


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def frame_of(data: bytes) -> Frame:
    """A frame whose body did not come with it."""
    body = bytes([1, 1, 1, 0]) + bytes(4) + bytes(range(16))
    body += number(len(data)) + BlobHash.of(data) + b"a"
    rest = (8 + len(body)).to_bytes(4, "little") + body
    return Frame(crc32(rest).to_bytes(4, "little") + rest, 3)


class Limited:
    """A server whose client may use the blobs that it has put, or whose frames came, on the same
    connection. Each connection ends at its turn of an op, as `ends` has it."""

    def __init__(self, data: bytes = b"") -> None:
        self.ops: List[List[int]] = []
        self._data = data

    def talk(self, ends: Optional[Dict[int, int]] = None, comes: bool = False) -> Talk:
        """comes: the frame came on this connection."""

        async def talk(peer: Peer) -> None:
            await peer.greet()
            known: Set[bytes] = {BlobHash.of(self._data)} if comes else set()
            left = dict(ends or {})
            ops: List[int] = []
            self.ops.append(ops)
            uploads: Dict[int, Any] = {}
            while True:
                header, body = await peer.message()
                if header.op != Op.BLOB_CHUNK:
                    ops.append(header.op)
                left[header.op] = left.get(header.op, 0) - 1
                if left[header.op] == 0:
                    return
                if header.op == Op.BLOB_PUT:
                    uploads[header.sub] = (header, bytearray())
                elif header.op == Op.BLOB_CHUNK:
                    self._chunk(peer, uploads[header.sub], header, body, known)
                else:
                    self._answer(peer, header, body, known)

        return talk

    def _chunk(self, peer: Peer, upload: Any, header: Header, body: bytes, known: Any) -> None:
        put, data = upload
        data += body
        if header.flags & MORE:
            peer.send(message(Op.CREDIT, PUSH, 0, 0, header.sub, number(len(body))))
        else:
            known.add(BlobHash.of(bytes(data)))
            peer.answer(put, BlobHash.of(bytes(data)) + number(len(data)))

    def _answer(self, peer: Peer, header: Header, body: bytes, known: Any) -> None:
        if header.op == Op.BLOB_HAS:
            peer.answer(header, bytes([body in known]))
        elif header.op == Op.GET:
            known.add(BlobHash.of(self._data))
            peer.answer(header, bytes(16))
        elif header.op == Op.APPEND and all(one in body for one in known) and known:
            peer.answer(header, STORED)
        elif header.op == Op.BLOB_GET and body[:32] in known:
            peer.answer(header, number(len(self._data)))
            for at in range(0, len(self._data), 20):
                flags = MORE if at + 20 < len(self._data) else 0
                piece = self._data[at : at + 20]
                peer.send(message(Op.BLOB_CHUNK, PUSH | flags, 0, 0, header.sub, piece))
        else:
            peer.answer(header, refused("no blob that this token may use"), 700)


LONG, LONGER = b"long" * (1 << 19), b"longer" * (1 << 19)
UPLOAD = [Op.BLOB_HAS, Op.BLOB_PUT]


class Blobs(Liar):
    """The blobs of a token that is limited to topics, which are known by connection."""

    async def test_a_long_body_is_put_again_where_it_is_appended(self) -> None:
        server = Limited()
        client = await self.client(server.talk({Op.APPEND: 1}), server.talk())
        stamp = await self.shortly(client.append("a", LONG, key="k"))
        self.assertEqual((stamp.offset, self.connections), (7, 2))
        self.assertEqual(server.ops, [[*UPLOAD, Op.APPEND]] * 2)

    async def test_an_append_without_a_key_survives_what_its_uploads_lose(self) -> None:
        server = Limited()
        ends = {Op.BLOB_PUT: 2}
        client = await self.client(server.talk(ends), server.talk(ends), server.talk())
        frames = [NewFrame("a", LONG), NewFrame("a", LONGER)]
        done = await self.shortly(client.append_batch(frames))
        self.assertEqual((done.frames[0].offset, self.connections), (7, 3))
        self.assertEqual(server.ops, [UPLOAD * 2, UPLOAD * 2, [*UPLOAD * 2, Op.APPEND]])

    async def test_a_body_is_read_again_where_its_frame_did_not_come(self) -> None:
        data = b"0123456789" * 10
        server = Limited(data)
        client = await self.client(server.talk())
        self.assertEqual(await self.shortly(client.body(frame_of(data))), data)
        self.assertEqual(server.ops, [[Op.BLOB_GET, Op.GET, Op.BLOB_GET]])
        with self.assertRaises(NotFound):
            await self.shortly(client.body(frame_of(b"another")))

    async def test_a_download_goes_on_where_its_frame_did_not_come(self) -> None:
        data = b"0123456789" * 10
        server = Limited(data)

        async def cut(peer: Peer) -> None:
            await peer.greet()
            header = await peer.expect(Op.BLOB_GET)
            peer.answer(header, number(len(data)))
            peer.send(message(Op.BLOB_CHUNK, PUSH | MORE, 0, 0, header.sub, data[:40]))

        client = await self.client(cut, server.talk())
        pieces = [piece async for piece in client.get_blob(frame_of(data))]
        self.assertEqual((b"".join(pieces), pieces[0]), (data, data[:40]))
        self.connections = 0
        client = await self.client(cut, server.talk())
        with self.assertRaises(NotFound):
            await self.shortly(client.read_blob(BlobHash.of(data)))


class Unknown(Liar):
    """What may have been done by an attempt before the last."""

    async def appends(self, second: Talk, error: Type[XsError]) -> Any:
        async def vanish(peer: Peer) -> None:
            await peer.greet()
            await peer.expect(Op.APPEND)

        self.connections = 0
        client = await self.client(vanish, second, retry=HASTY)
        with self.assertRaises(error) as caught:
            await self.shortly(client.append("a", key="k"))
        self.assertIs(type(caught.exception), error)
        return caught.exception

    def refusing(self, code: int, op: int = Op.APPEND) -> Talk:
        async def refuse(peer: Peer) -> None:
            await peer.greet()
            while True:
                peer.answer(await peer.expect(op), refused("no"), code)

        return refuse

    async def test_an_append_stays_unknown_when_the_server_stays_away(self) -> None:
        async def vanish(peer: Peer) -> None:
            self._server.close()
            await peer.greet()
            await peer.expect(Op.APPEND)

        client = await self.client(vanish, retry=HASTY)
        with self.assertRaises(ConnectionLost) as caught:
            await self.shortly(client.append("a", key="k"))
        self.assertFalse(caught.exception.retryable)
        self.assertIsInstance(caught.exception.__cause__, ConnectError)
        # What changes nothing has not done anything either.
        with self.assertRaises(ConnectError):
            await self.shortly(client.topics())

    async def test_an_append_stays_unknown_when_it_is_refused_for_another_reason(self) -> None:
        for code, kind in ((502, Unavailable), (201, AccessError), (700, NotFound)):
            error = await self.appends(self.refusing(code), ConnectionLost)
            self.assertIs(type(error.__cause__), kind)

    async def test_what_is_said_of_the_append_itself_is_told(self) -> None:
        for code, kind in ((402, ConditionFailed), (307, InvalidRequest), (800, Indeterminate)):
            await self.appends(self.refusing(code), kind)

    async def test_an_import_and_an_upload_stay_unknown(self) -> None:
        def vanish(op: int) -> Talk:
            async def talk(peer: Peer) -> None:
                await peer.greet()
                await peer.expect(op)

            return talk

        uses: Dict[int, Callable[[aio.AsyncClient], Any]] = {
            Op.IMPORT: lambda client: client.import_frames([frame_of(b"")]),
            Op.BLOB_PUT: lambda client: client.put_blob(b"x"),
            Op.MAINTAIN: lambda client: client.compact(),
        }
        for op, use in uses.items():
            self.connections = 0
            client = await self.client(vanish(op), self.refusing(502, op), retry=HASTY)
            with self.assertRaises(ConnectionLost) as caught:
                await self.shortly(use(client))
            self.assertIsInstance(caught.exception.__cause__, Unavailable)


class Opening(Liar):
    """What begins now, however often it is asked for."""

    async def test_where_a_follower_begins_is_known_once_it_is_open(self) -> None:
        starts: List[Dict[str, Any]] = [{"new": True}, {"last": 2}]
        for start in starts:
            asked: List[bytes] = []
            is_answered, says = asyncio.Event(), asyncio.Event()

            async def answer(peer: Peer, asked: List[bytes] = asked) -> Header:
                await peer.greet()
                header, body = await peer.message()
                asked.append(body)
                peer.answer(header)
                return header

            async def cut(peer: Peer, answer: Any = answer) -> None:
                await answer(peer)

            async def say(
                peer: Peer,
                answer: Any = answer,
                is_answered: asyncio.Event = is_answered,
                says: asyncio.Event = says,
            ) -> None:
                header = await answer(peer)
                peer.send(message(Op.SUB_EVENT, PUSH, 0, 0, header.sub, bytes([2])))
                peer.send(message(Op.PING, PUSH, 0, 0, 0))
                await peer.expect(Op.PING)
                is_answered.set()
                await says.wait()
                caught_up = bytes([1]) + number(7)
                peer.send(message(Op.SUB_EVENT, PUSH, 0, 0, header.sub, caught_up))

            async def stay(peer: Peer, answer: Any = answer) -> None:
                await answer(peer)
                await peer.rest()

            self.connections = 0
            client = await self.client(cut, say, stay)
            follow = client.follow("a", pulse=1.0, **start)
            opening = asyncio.ensure_future(follow.open())
            await self.soon(is_answered.wait())
            self.assertFalse(opening.done())
            says.set()
            await self.soon(opening)
            self.assertEqual(await self.soon(follow.__anext__()), CaughtUp(7))
            self.assertEqual(await self.soon(follow.__anext__()), Resumed(7))
            # The start is behind credit, bodies, pulse and flags.
            self.assertEqual(asked[0][17:], asked[1][17:])
            self.assertEqual(asked[2][17:27], bytes([1, 0]) + number(7))
            await follow.aclose()

    async def test_it_goes_on_where_the_network_was_too_slow_for_hello(self) -> None:
        def close(code: int) -> Talk:
            async def talk(peer: Peer) -> None:
                peer.send(PREFACE)
                peer.send(message(Op.CLOSE, PUSH, code, 0, 0, refused("too slow")))
                await peer.rest()

            return talk

        async def one(peer: Peer) -> None:
            await peer.greet()
            header = await peer.expect(Op.SUBSCRIBE)
            peer.answer(header)
            peer.send(message(Op.DELIVER, PUSH, 0, 0, header.sub, deliver([3], 4).body))

        async def stay(peer: Peer) -> None:
            await peer.greet()
            peer.answer(await peer.expect(Op.SUBSCRIBE))
            await peer.rest()

        client = await self.client(one, close(104), close(106), stay)
        async with client.follow("*") as follow:
            frame: Any = await self.shortly(follow.__anext__())
            self.assertEqual(frame.offset, 3)
            self.assertEqual(await self.shortly(follow.__anext__()), Resumed(4))
        self.connections = 0
        with self.assertRaises(ConnectError) as caught:
            await self.client(close(104))
        self.assertIsInstance(caught.exception.__cause__, ProtocolRefused)

    async def test_an_address_where_no_server_can_be_is_told_at_once(self) -> None:
        below_a_file = f"{__file__}/store"
        # The second is so long that it is reached through its directory.
        for address in (below_a_file, f"{__file__}{'/d' * 60}", f"/{'x' * 300}/store"):
            with self.assertRaises(ConnectError) as caught:
                await self.shortly(aio.connect(address, wait=1e6))
            self.assertFalse(caught.exception.retryable)
            self.assertFalse(pickle.loads(pickle.dumps(caught.exception)).retryable)
            async with aio.AsyncClient(address) as client:
                for stream in (client.follow("*"), client.read("*")):
                    with self.assertRaises(ConnectError):
                        await self.shortly(stream.__anext__())
                with self.assertRaises(ConnectError):
                    await self.shortly(client.append("a"))
        # A server makes its directory, and a name may be known later.
        for address in (f"{self.path}.none/store", "nowhere.invalid:1"):
            with self.assertRaises(ConnectError) as caught:
                await self.shortly(aio.connect(address))
            self.assertTrue(caught.exception.retryable)
