"""What is tried again over a connection that was lost, and what is told when that is of no use."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Set
from zlib import crc32

from xs_stream import BlobHash, Frame, NewFrame, NotFound
from xs_stream.coding import MORE, PUSH, Header, Op, message

from .peer import Liar, Peer, Talk, refused

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
