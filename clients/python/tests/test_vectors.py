"""The golden vectors of protocol/vectors: what this client sends and understands, byte for byte,
and what becomes of bytes that are wrong."""

from __future__ import annotations

import re
import socket
import struct
import unittest
from typing import Any, Callable, Dict, List, Optional

from xs_stream import (
    BlobHash,
    CursorChange,
    Frame,
    FrameId,
    NewFrame,
    Origin,
    Outcome,
    connect,
    messages,
)
from xs_stream.coding import MORE, PUSH, RESPONSE, Header, Op, Writer, message
from xs_stream.errors import CODES, ProtocolError, XsError
from xs_stream.messages import Batch, Dropped, Ended, How, ReadOptions
from xs_stream.session import Answer, Closed, Event, GoAway, Push, Session, Welcome
from xs_stream.values import (
    CaughtUp,
    Gap,
    Pulse,
    ServerInfo,
    Ttl,
    bound_of,
    drop,
    empty,
    head_is,
    last_at_most,
    latest,
)

from .support import PATIENCE, ROOT, Server, vectors

HELLO_HASH = BlobHash.of(b"hello")


def an_id(n: int) -> FrameId:
    """The ids of the vectors: times from 1,700,000,000,001 ms on."""
    return FrameId((1_700_000_000_000 + n).to_bytes(6, "big") + bytes(10))


def cursor_change(change: CursorChange) -> bytearray:
    out = Writer()
    messages.put_cursor_change(out, change)
    return out.data


def an_append() -> bytearray:
    origin = Origin(an_id(1), an_id(2), 9, 1)
    frames = [
        NewFrame("a.b", b"hello", meta={"n": 1}),
        NewFrame("a.b", ttl="ephemeral"),
        NewFrame("a.b", HELLO_HASH, ttl="last:1"),
        NewFrame("a.b", ttl=Ttl("time", 60_000)),
    ]
    change = CursorChange("c", 10, b"{}", 3)
    batch = Batch(frames, [change], durable=True)
    return messages.append(batch, [None, None, origin])


def a_call() -> Any:
    return messages.call("report", b'{"url":"x"}', b"body", 5000, 1 << 20, 100)


def origin_extension() -> bytes:
    """What a host adds, which no client library is."""
    ids = bytes(an_id(1)) + bytes(an_id(2))
    return struct.pack("<HHI", 1, 0, 48) + ids + struct.pack("<QII", 2**64 - 1, 3, 0)


# What a client sends, by the name of its vector.
REQUESTS: Dict[str, Callable[[], Any]] = {
    "hello": lambda: messages.hello("test/1", ""),
    "hello-token": lambda: messages.hello("test/1", "xst_" + 43 * "A"),
    "hello-host": lambda: messages.hello("test/1", "", (b"\7" * 16, "")),
    "hello-host-alone": lambda: messages.hello("test/1", "", (b"\7" * 16, "report")),
    "ping": lambda: b"alive?",
    "pong": lambda: b"",
    "append": an_append,
    "append-empty": lambda: messages.append(Batch([])),
    "append-removes": lambda: messages.append(
        Batch([NewFrame("a.b")], remove=[an_id(2), 40], within="a.*")
    ),
    "append-conditions": lambda: messages.append(
        Batch(
            [NewFrame("a.b")],
            conditions=[last_at_most("a.b,c.*", 7), empty("*"), head_is(9)],
            key="order 17",
        )
    ),
    "fetch": lambda: messages.fetch(
        ReadOptions(
            ["a.b", "c.*", "*"], messages.START_AFTER, an_id(3), 100, 1, 2, 5, reverse=True
        ),
        65536,
    ),
    "get-by-offset": lambda: messages.get(bound_of(7)),
    "get-by-id": lambda: messages.get(bound_of(str(an_id(4)))),
    "last": lambda: messages.last(["*"], 10, True),
    "topics": lambda: messages.topics(["*", "xs", "xs.*"]),
    "remove": lambda: messages.remove([an_id(2), 40], True, True, "a.*"),
    "stats": lambda: b"",
    "subscribe": lambda: messages.subscribe(
        messages.read_options("*", new=True, follow=True), How(1000, 4096, 1000)
    ),
    "subscribe-resumed": lambda: messages.subscribe(
        messages.read_options("*", from_=41, follow=True),
        How(1000, 4096, 1000, latest(100)),
        (bytes([7] * 16), 3),
    ),
    "subscribe-drop": lambda: messages.subscribe(
        messages.read_options("*", new=True, follow=True), How(1000, 4096, 1000, drop(10_000))
    ),
    "credit": lambda: messages.credit(640),
    "unsubscribe": lambda: b"",
    "cursor-set-remove": lambda: cursor_change(CursorChange("c", None)),
    "cursor-get": lambda: messages.cursor_get("c"),
    "cursor-list": lambda: b"",
    "blob-has": lambda: HELLO_HASH,
    "blob-put": lambda: b"",
    "blob-chunk": lambda: b"piece",
    "blob-chunk-last": lambda: b"piece",
    "blob-get": lambda: messages.blob_get(HELLO_HASH, 1 << 20),
    "call": lambda: a_call(),
    "call-of-host": lambda: bytes(a_call()) + origin_extension(),
    "import": lambda: messages.import_frames(imported(), False, True),
    "maintain-verify": lambda: messages.maintain(messages.VERIFY),
    "maintain-compact": lambda: messages.maintain(messages.COMPACT, dead_percent=50),
    "maintain-fork": lambda: messages.maintain(messages.FORK, path="/stores/fork"),
    "maintain-gc": lambda: messages.maintain(
        messages.GC, flags=2, dead_percent=25, grace_ms=3_600_000
    ),
    "maintain-backup": lambda: messages.maintain(messages.BACKUP, flags=1, path="/backups/store"),
}


def imported() -> List[Frame]:
    """The frames of the import's vector, which begin behind its header and eight bytes."""
    vector = next(one for one in vectors("client") if one["name"] == "import")
    return messages.read_list(bytes.fromhex(vector["hex"])[16 + 8 :]).frames


class Requests(unittest.TestCase):
    def test_requests_are_the_golden_bytes(self) -> None:
        for vector in vectors("client"):
            name = vector["name"]
            self.assertIn(name, REQUESTS, f"no test for {name}")
            with self.subTest(name):
                golden = bytes.fromhex(vector["hex"])
                head = Header.read(golden, 0)
                self.assertEqual(head.op, getattr(Op, vector["op"]))
                body = bytes(REQUESTS[name]())
                made = message(head.op, head.flags, head.code, head.corr, head.sub, body)
                self.assertEqual(made.hex(), golden.hex())

    def test_a_session_sends_them(self) -> None:
        golden = {vector["name"]: bytes.fromhex(vector["hex"]) for vector in vectors("client")}
        session = Session("test/1")
        self.assertEqual(session.outgoing(), b"XSP\0\1\0\0\0" + golden["hello"])
        session.request(Op.PING, b"alive?")
        self.assertEqual(session.outgoing(), golden["ping"])
        session.receive(b"XSP\0\1\0\0\0" + message(Op.PING, PUSH, 0, 0, 0))
        self.assertEqual(session.outgoing(), golden["pong"])
        session.tell(Op.BLOB_CHUNK, 2, b"piece", MORE)
        self.assertEqual(session.outgoing(), golden["blob-chunk"])


def greeted() -> Session:
    """A session that was greeted, and has asked what the vectors answer, under their numbers."""
    session = Session("test/1")
    session.receive(b"XSP\0\1\0\0\0")
    for vector in vectors("server"):
        head = Header.read(bytes.fromhex(vector["hex"]), 0)
        if head.flags & RESPONSE:
            session._asked[head.corr] = (head.op, [])
    return session


class Answers(unittest.TestCase):
    def events(self, name: str) -> List[Event]:
        vector = next(one for one in vectors("server") if one["name"] == name)
        return greeted().receive(bytes.fromhex(vector["hex"]))

    def answer(self, name: str) -> bytes:
        (event,) = self.events(name)
        assert isinstance(event, Answer), event
        return event.parts[0]

    def stream_event(self, name: str) -> Any:
        (event,) = self.events(name)
        assert isinstance(event, Push), event
        return messages.read_event(event.code, event.body)

    def test_hello(self) -> None:
        (event,) = self.events("hello-reply")
        assert isinstance(event, Welcome)
        info: ServerInfo = event.info
        self.assertEqual((info.name, info.role, info.epoch, info.head), ("xs/test", "admin", 3, 99))
        self.assertEqual(info.store, bytes([7] * 16))
        self.assertEqual(info.message_bytes, 25_165_824)
        self.assertIn((Op.CALL, 1, 1), info.ops)

    def test_appended(self) -> None:
        done = messages.read_appended(self.answer("append-reply"))
        self.assertEqual((done.head, done.durable, list(done.cursors)), (8, True, [4, 0]))
        self.assertEqual([stamp.offset for stamp in done.frames], [7, None])
        self.assertEqual(done.frames[0].id, an_id(1))
        self.assertFalse(done.repeated)
        again = messages.read_appended(self.answer("append-repeated"))
        self.assertEqual((again.repeated, again.durable, again.head), (True, False, 9))
        (event,) = self.events("append-condition-failed")
        assert isinstance(event, Answer) and event.refusal is not None
        details = event.refusal.details
        self.assertEqual((event.refusal.code, details.condition, details.found), (402, 0, 57))
        (event,) = self.events("append-key-reused")
        assert isinstance(event, Answer) and event.refusal is not None
        self.assertEqual((event.refusal.code, event.refusal.details.frame), (307, an_id(1)))
        (event,) = self.events("append-refused")
        assert isinstance(event, Answer) and event.refusal is not None
        refusal = event.refusal
        self.assertEqual((refusal.code, refusal.name), (400, "CursorConflict"))
        self.assertEqual(refusal.message, "cursor c has revision 4, not 3")
        details = refusal.details
        self.assertEqual((details.cursor, details.revision, details.retry_after_ms), ("c", 4, 10))

    def check_frames(self, found: Any, body: Optional[bytes]) -> None:
        self.assertEqual(found.scanned_to, 9)
        one, two, three = found.frames
        self.assertEqual((one.offset, one.id, one.topic, one.meta), (7, an_id(1), "a.b", {"n": 1}))
        self.assertEqual((one.hash, one.body, one.origin, one.old_id), (None, b"", None, None))
        self.assertEqual((two.offset, two.id), (None, an_id(2)))
        self.assertEqual((three.offset, three.hash, three.body), (8, HELLO_HASH, body))
        self.assertEqual(three.body_bytes, 5)
        self.assertEqual(three.origin, Origin(an_id(1), None, None, 2))
        self.assertEqual(str(three.ttl), "forever")

    def test_frame_lists(self) -> None:
        self.assertEqual(messages.read_list(self.answer("get-none")).frames, [])
        options = messages.read_options("*")
        page = messages.read_page(self.answer("fetch-reply"), options)
        self.assertEqual(page.head, 100)
        self.check_frames(page, None)
        assert page.next is not None
        self.assertEqual((page.next.start, page.next.bound, page.next.before), (1, 9, 100))
        (event,) = self.events("deliver")
        assert isinstance(event, Push)
        self.check_frames(messages.read_list(event.body), b"hello")

    def test_frames_of_each_kind(self) -> None:
        def frame(name: str) -> Frame:
            (found,) = messages.read_list(self.answer(name)).frames
            return found

        timed, last, old = frame("get-ttl-time"), frame("get-ttl-last"), frame("get-old-id")
        self.assertEqual([str(one.ttl) for one in (timed, last)], ["time:60000", "last:3"])
        self.assertEqual((old.id, old.old_id, old.topic), (an_id(6), an_id(2), "a.b"))
        whole = frame("get-all-fields")
        self.assertEqual((whole.offset, whole.id, whole.old_id), (42, an_id(7), an_id(3)))
        self.assertEqual((whole.topic, whole.meta, str(whole.ttl)), ("a.b", {"n": 1}, "last:3"))
        self.assertEqual((whole.hash, whole.body_bytes, whole.body), (HELLO_HASH, 5, None))
        self.assertEqual(whole.origin, Origin(an_id(1), an_id(2), 9, 2))
        # The first part says MORE.
        session = greeted()
        golden = {one["name"]: bytes.fromhex(one["hex"]) for one in vectors("server")}
        self.assertEqual(session.receive(golden["last-part"]), [])
        (event,) = session.receive(golden["last-reply"])
        assert isinstance(event, Answer), event
        found = [one for part in event.parts for one in messages.read_list(part).frames]
        self.assertEqual(found, [timed, last, whole])

    def test_lists(self) -> None:
        # It says MORE: another part follows.
        self.assertEqual(self.events("topics-part"), [])
        part = bytes.fromhex(
            next(one for one in vectors("server") if one["name"] == "topics-part")["hex"]
        )
        (topic,) = messages.read_topics(part[16:])
        self.assertEqual((topic.name, topic.count, topic.bytes), ("a.b", 2, 300))
        self.assertEqual((topic.first, topic.last, topic.last_offset), (an_id(1), an_id(3), 8))
        (cursor,) = messages.read_cursors(self.answer("cursor-list-reply"))
        self.assertEqual((cursor.name, cursor.revision, cursor.state_bytes), ("c", 4, 2))

    def test_small_answers(self) -> None:
        self.assertEqual(self.answer("subscribed"), b"")
        self.assertEqual(self.answer("pong"), b"alive?")
        self.assertEqual(messages.read_number(self.answer("cursor-set-reply")), 5)
        cursor = messages.read_cursor("c", self.answer("cursor-get-reply"))
        assert cursor is not None
        self.assertEqual((cursor.revision, cursor.epoch, cursor.offset), (4, 3, 10))
        self.assertEqual((cursor.time_ms, cursor.state), (1_700_000_000_000, b"{}"))
        self.assertIsNone(messages.read_cursor("c", self.answer("cursor-get-none")))
        removed = messages.read_appended(self.answer("remove-reply"))
        self.assertEqual((removed.removed, removed.head), ([True, False], 9))
        done = messages.read_imported(self.answer("import-reply"))
        kinds = [Outcome("new"), Outcome("there"), Outcome("refused", 308)]
        self.assertEqual((done.outcomes, done.durable, done.head), (kinds, True, 9))
        self.assertIn(b'"files_copied":3', self.answer("maintain-reply"))
        self.assertIn(b'"head":9', self.answer("stats-reply"))
        self.assertEqual(self.answer("blob-has-reply"), b"\1")
        self.assertEqual(self.answer("blob-put-reply")[:32], HELLO_HASH)
        self.assertEqual(messages.read_number(self.answer("blob-get-reply")), 5)
        self.assertEqual(self.answer("call-reply"), an_id(5))

    def test_pushes(self) -> None:
        (chunk,) = self.events("blob-chunk")
        self.assertEqual(chunk, Push(3, Op.BLOB_CHUNK, 0, False, b"hello"))
        (piece,) = self.events("blob-chunk-more")
        self.assertEqual(piece, Push(3, Op.BLOB_CHUNK, 0, True, b"piece"))
        (credit,) = self.events("upload-credit")
        assert isinstance(credit, Push)
        self.assertEqual(messages.read_number(credit.body), 262_144)
        self.assertEqual(self.events("ping"), [])
        self.assertEqual(self.events("goaway"), [GoAway(5000, "the server is stopping")])
        (closed,) = self.events("close")
        assert isinstance(closed, Closed)
        self.assertEqual((closed.refusal.code, closed.refusal.details.limit), (102, 8192))

    def test_stream_events(self) -> None:
        self.assertEqual(self.stream_event("event-caught-up"), CaughtUp(9))
        self.assertEqual(self.stream_event("event-pulse"), Pulse())
        self.assertEqual(self.stream_event("event-gap-corrupt"), Gap("corrupt", 3, 5))
        self.assertEqual(self.stream_event("event-gap-ephemeral"), Gap("ephemeral", count=12))
        conflated = Gap("conflated", 3, 90)
        self.assertEqual(self.stream_event("event-gap-conflated"), conflated)
        dropped = self.stream_event("event-dropped")
        assert isinstance(dropped, Dropped)
        self.assertEqual((dropped.resume, dropped.refusal.code), (9, 501))
        self.assertTrue(dropped.refusal.retryable)
        self.assertEqual(self.stream_event("event-ended"), Ended(9))


def understand(data: bytes) -> None:
    """Reads a message of a server as far as this client ever does."""
    for event in greeted().receive(data):
        if isinstance(event, Push):
            if event.op == Op.DELIVER:
                for frame in messages.read_list(event.body).frames:
                    touch(frame)
            elif event.op == Op.SUB_EVENT:
                messages.read_event(event.code, event.body)
            elif event.op == Op.CREDIT:
                messages.read_number(event.body)
        elif isinstance(event, Answer):
            op = Header.read(data, 0).op
            for part in event.parts:
                if op in READERS:
                    READERS[op](part)


def touch(frame: Any) -> None:
    for name in ("id", "topic", "meta_json", "ttl", "hash", "body", "origin", "old_id", "time_ms"):
        getattr(frame, name)


READERS: Dict[int, Callable[[bytes], Any]] = {
    Op.APPEND: messages.read_appended,
    Op.IMPORT: messages.read_imported,
    Op.FETCH: lambda body: messages.read_page(body, messages.read_options("*")),
    Op.GET: messages.read_list,
    Op.LAST: messages.read_list,
    Op.TOPICS: messages.read_topics,
    Op.CURSOR_SET: messages.read_number,
    Op.CURSOR_GET: lambda body: messages.read_cursor("c", body),
    Op.CURSOR_LIST: messages.read_cursors,
    Op.BLOB_GET: messages.read_number,
}


class Tables(unittest.TestCase):
    def test_numbers_and_names_are_those_of_the_page(self) -> None:
        text = (ROOT / "docs" / "wire.toml").read_text()
        ops = re.findall(r"\[\[op\]\]\nname = \"(\w+)\"\nnumber = (0x\w+)", text)
        self.assertGreater(len(ops), 20)
        for name, number in ops:
            self.assertEqual(getattr(Op, name), int(number, 16), name)
        codes = re.findall(r"\[\[code\]\]\nnumber = (\d+)\nname = \"(\w+)\"", text)
        self.assertEqual({int(number): name for number, name in codes}, CODES)


class Malformed(unittest.TestCase):
    def test_no_cut_and_no_turned_bit_is_more_than_an_error(self) -> None:
        for vector in vectors("server"):
            golden = bytearray.fromhex(vector["hex"])
            for at in range(16, len(golden)):
                cut = bytearray(golden[:at])
                cut[0:4] = (at - 4).to_bytes(4, "little")
                self.harmless(vector["name"], cut)
            for at in range(len(golden)):
                for bit in range(8):
                    turned = bytearray(golden)
                    turned[at] ^= 1 << bit
                    self.harmless(vector["name"], turned)

    def harmless(self, name: str, data: bytearray) -> None:
        try:
            understand(bytes(data))
        except XsError:
            pass
        except Exception as error:
            self.fail(f"{name} {data.hex()}: {error!r}")

    def test_a_turned_bit_of_a_record_is_found(self) -> None:
        golden = bytearray.fromhex(
            next(one for one in vectors("server") if one["name"] == "deliver")["hex"]
        )
        # The first run: 16 header, 16 list head, 16 run head, then 42 bytes of the record.
        for at in range(48, 48 + 42):
            turned = bytearray(golden)
            turned[at] ^= 1
            with self.assertRaises(ProtocolError):
                understand(bytes(turned))

    def test_what_no_server_may_send_is_refused(self) -> None:
        for vector in vectors("malformed-server"):
            with self.subTest(vector["name"]), self.assertRaises(ProtocolError):
                understand(bytes.fromhex(vector["hex"]))

    def test_headers_that_are_wrong_are_refused_by_this_side_too(self) -> None:
        for vector in vectors("malformed"):
            name, data = vector["name"], bytes.fromhex(vector["hex"])
            if name.startswith(("length-", "flags-unknown", "flags-response")):
                with self.subTest(name), self.assertRaises(ProtocolError):
                    greeted().receive(data)

    def test_the_server_refuses_each_with_its_code(self) -> None:
        server = Server()
        try:
            for vector in vectors("malformed"):
                with self.subTest(vector["name"]):
                    self.check_refusal(server, vector)
        finally:
            server.close()

    def check_refusal(self, server: Server, vector: Any) -> None:
        data = bytes.fromhex(vector["hex"])
        with connected(server) as peer:
            session, first = Session("vectors"), data[4] == Op.HELLO
            head = Header.read(data, 0)
            peer.sendall(session.outgoing()[:8] if first else session.outgoing())
            if not first:
                self.next_event(peer, session)
            session._asked[head.corr] = (head.op, [])
            peer.sendall(data)
            event = self.next_event(peer, session)
            if vector["closes"]:
                assert isinstance(event, Closed), event
                self.assertEqual(event.refusal.code, vector["code"])
            else:
                assert isinstance(event, Answer) and event.refusal is not None, event
                self.assertEqual(event.refusal.code, vector["code"])

    def next_event(self, peer: socket.socket, session: Session) -> Optional[Event]:
        while True:
            data = peer.recv(65536)
            if not data:
                return None
            events = session.receive(data)
            if events:
                return events[0]


def connected(server: Server) -> socket.socket:
    """A socket to a server that may still be starting."""
    connect(server.store, wait=PATIENCE).close()
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(PATIENCE)
    peer.connect(f"{server.store}/xs.sock")
    return peer
