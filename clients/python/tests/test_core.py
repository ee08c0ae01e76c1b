"""The parts without a connection: values, addresses, back-off, credit, the session, and where a
reader goes on."""

from __future__ import annotations

import asyncio
import datetime
import pathlib
import pickle
import re
import unittest
from typing import Any, List, Optional
from zlib import crc32

import xs_stream
from xs_stream import (
    AddressError,
    BlobHash,
    CaughtUp,
    CorruptRange,
    CursorChange,
    Frame,
    FrameId,
    Gap,
    InvalidValue,
    Item,
    NewFrame,
    OtherStore,
    ProtocolError,
    Resumed,
    ResumePoint,
    Retry,
    ServerInfo,
    TlsError,
    Ttl,
    Unavailable,
    aio,
    messages,
    parse_address,
)
from xs_stream.blobs import pieces
from xs_stream.coding import MORE, PREFACE, PUSH, RESPONSE, Op, Writer, message
from xs_stream.errors import CODES, refusal_of
from xs_stream.limits import PART_BYTES_MIN, PARTS_BYTES_MAX, PONGS_MAX
from xs_stream.messages import ReadOptions, read_options
from xs_stream.reading import Backoff, Reading
from xs_stream.session import Answer, Flow, Push, Session
from xs_stream.values import bound_of, patterns_of, time_of


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


class Values(unittest.TestCase):
    def test_ids_are_text_and_order_like_bytes(self) -> None:
        text = "03haz7sn27d6aj2qw4jm7lv3h"
        made = FrameId.parse(text)
        self.assertEqual(str(made), text)
        self.assertEqual(FrameId.parse(text.upper()), made)
        self.assertEqual(made.time_ms, int.from_bytes(made[:6], "big"))
        self.assertLess(FrameId.parse("0" * 25), made)
        for bad in ("", "0", "z" * 25, "0" * 26, "!" + "0" * 24, "\u0660" * 25, "-" + "0" * 24):
            with self.assertRaises(InvalidValue, msg=bad):
                FrameId.parse(bad)

    def test_hashes_are_text(self) -> None:
        made = BlobHash.of(b"hello")
        self.assertEqual(str(made), "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")
        self.assertEqual(BlobHash.parse(str(made)), made)
        for bad in ("", "sha256-", "sha256-AAAA", str(made)[7:], "sha512-" + str(made)[7:]):
            with self.assertRaises(InvalidValue, msg=bad):
                BlobHash.parse(bad)

    def test_ttls_are_checked(self) -> None:
        most = "18446744073709551615"
        for text in ("forever", "ephemeral", "time:1", f"time:{most}", f"last:{most}"):
            self.assertEqual(str(Ttl.parse(text)), text)
        for text, ms in (
            ("time:7ms", 7),
            ("time:7s", 7_000),
            ("time:2m", 120_000),
            ("time:1h", 3_600_000),
            ("time:3d", 3 * 86_400_000),
            ("time:1w", 7 * 86_400_000),
            (f"time:{'0' * 5000}7s", 7_000),
        ):
            self.assertEqual(Ttl.parse(text), Ttl("time", ms))
        wrong = [
            "",
            "time",
            "time:",
            "time:0",
            "time:0w",
            "last:",
            "last:0",
            "last:-1",
            "last:+1",
            "last:1.5",
            "last:1d",
        ]
        wrong += ["forever:1", "forever\n", "never", "Forever", "head:1", "time:d", "time:1y"]
        wrong += ["time:1D", "time:-1d", "time:1d2h", "time:1.5h", "time: 1", "time:\u0661"]
        wrong += [f"time:{most}s", f"time:{most}0", f"last:{'9' * 5000}"]
        for bad in wrong:
            with self.assertRaisesRegex(InvalidValue, "is not a ttl: forever", msg=bad):
                Ttl.parse(bad)
        for kind, value in (("time", -1), ("last", 0), ("time", 1 << 64), ("forever", 1), ("x", 1)):
            with self.assertRaises(InvalidValue, msg=kind):
                Ttl(kind, value)

    def test_resume_points_are_text(self) -> None:
        point = ResumePoint(bytes(range(16)), 3, 99)
        self.assertEqual(ResumePoint.parse(str(point)), point)
        for bad in ("", "1:2:3", "00" * 16 + ":1", "00" * 16 + ":x:1"):
            with self.assertRaises(InvalidValue, msg=bad):
                ResumePoint.parse(bad)

    def test_what_is_no_time_or_body_is_named(self) -> None:
        self.assertEqual(time_of(1700000000000), 1700000000000)
        zone = datetime.timezone.utc
        self.assertEqual(time_of(datetime.datetime(2023, 11, 14, tzinfo=zone)), 1699920000000)
        wrong: Any = "1h"
        with self.assertRaisesRegex(InvalidValue, "not '1h'"):
            time_of(wrong)

        async def first(source: Any) -> bytes:
            async for piece in pieces(source):
                return piece
            return b""

        self.assertEqual(asyncio.run(first([b"a"])), b"a")
        for bad, name in ((5, "int"), ({"a": 1}, "dict")):
            with self.assertRaisesRegex(InvalidValue, f"not {name}; json="):
                asyncio.run(first(bad))

    def test_what_is_of_another_kind_is_named(self) -> None:
        wrong: Any
        for wrong in (None, 5, b"a", "\udc80"):
            with self.assertRaises(InvalidValue, msg=repr(wrong)):
                messages.append(messages.Batch([NewFrame(wrong)]))
        for fields in (
            {"body": 5},
            {"body": [1, 2]},
            {"body": "\udc80"},
            {"ttl": None},
            {"ttl": 5},
            {"meta_json": "{}"},
            {"meta": deep(100_000)},
        ):
            frame: Any = NewFrame("a", **fields)
            with self.assertRaises(InvalidValue, msg=str(list(fields))):
                messages.append(messages.Batch([frame]))
        for kind in (FrameId, BlobHash, ResumePoint, Ttl):
            for wrong in (None, 5, b"x"):
                with self.assertRaises(InvalidValue, msg=f"{kind} {wrong}"):
                    kind.parse(wrong)
        for new in (FrameId, BlobHash, Ttl):
            for wrong in (None, 5, [], {}, "x"):
                with self.assertRaises(InvalidValue, msg=f"{new} {wrong}"):
                    new(wrong)
        wrong = "5"
        with self.assertRaises(InvalidValue):
            Ttl("time", wrong)
        with self.assertRaisesRegex(InvalidValue, "bytes, not str"):
            BlobHash.of(wrong)
        for wrong in (None, 5, [5], b"a"):
            with self.assertRaises(InvalidValue, msg=repr(wrong)):
                patterns_of(wrong)
        # What is empty is no 0.
        for wrong in ("", [], {}, b""):
            for change in (CursorChange("a", wrong), CursorChange("a", 1, expect=wrong)):
                with self.assertRaises(InvalidValue, msg=repr(change)):
                    messages.put_cursor_change(Writer(), change)
            with self.assertRaises(InvalidValue, msg=repr(wrong)):
                aio.AsyncClient(":1").call("a", deadline=wrong)
        for wrong in (None, 1.5, b"x" * 16, -1, 1 << 64):
            with self.assertRaisesRegex(InvalidValue, "not an offset or an id"):
                bound_of(wrong)
        # What the server takes for a malformed message, it would end the connection for.
        for wrong in ("x", 1.5, [1], -1):
            with self.assertRaises(InvalidValue, msg=repr(wrong)):
                read_options(last=wrong)
            with self.assertRaises(InvalidValue, msg=repr(wrong)):
                messages.subscribe(read_options(), messages.How(1, wrong))
            with self.assertRaises(InvalidValue, msg=repr(wrong)):
                messages.blob_get(wrong, 1)
        with self.assertRaises(InvalidValue):
            read_options(since=datetime.datetime(1, 1, 1))

    def test_patterns_have_a_most(self) -> None:
        self.assertEqual(patterns_of("a, b.*"), ["a", "b.*"])
        self.assertEqual(len(patterns_of(["a"] * 64)), 64)
        for bad in ([], ["a"] * 65):
            with self.assertRaises(InvalidValue):
                patterns_of(bad)

    def test_every_code_has_a_class_that_tells_whether_to_retry(self) -> None:
        for code, name in CODES.items():
            refusal = refusal_of(code, "why")
            self.assertEqual((refusal.name, refusal.retryable), (name, code // 100 == 5))
        self.assertEqual(refusal_of(599, "new").name, "Other")
        self.assertTrue(refusal_of(599, "new").retryable)
        self.assertFalse(refusal_of(999, "new").retryable)


STANDARD = {"Any", "AsyncIterable", "Dict", "Iterable", "List", "Mapping", "None", "Optional"}
STANDARD |= {"PathLike", "Sequence", "Union"}


class Errors(unittest.TestCase):
    def test_they_can_be_pickled(self) -> None:
        for error in (
            xs_stream.CorruptRange(1, 5),
            xs_stream.CorruptRange(1, 5, True),
            xs_stream.CommandFailed("a", {"message": "m", "code": "c"}),
            xs_stream.Refusal(500, "x", xs_stream.Details(retry_after_ms=7)),
        ):
            again = pickle.loads(pickle.dumps(error))
            self.assertEqual((type(again), str(again)), (type(error), str(error)))
            self.assertEqual(vars(again), vars(error))


class Exports(unittest.TestCase):
    def test_what_methods_take_and_give_has_a_name(self) -> None:
        for client in (xs_stream.Client, xs_stream.AsyncClient):
            for name, method in vars(client).items():
                if name.startswith("_") or not callable(method):
                    continue
                for text in method.__annotations__.values():
                    for word in set(re.findall(r"\b[A-Z][A-Za-z]+", str(text))) - STANDARD:
                        self.assertTrue(hasattr(xs_stream, word.replace("AsyncSource", "Source")))


class Addresses(unittest.TestCase):
    def test_addresses_are_told_apart(self) -> None:
        cases = {
            "./store": "./store/xs.sock",
            "store": "store/xs.sock",
            "/run/a.sock": "/run/a.sock",
            "./a:1/b": "./a:1/b/xs.sock",
            ":4000": "127.0.0.1:4000",
            "localhost:4000": "localhost:4000",
            "[::1]:4000": "[::1]:4000",
            "10.0.0.1:65535": "10.0.0.1:65535",
            "xss://example.org:4000": "xss://example.org:4000",
        }
        for text, expected in cases.items():
            self.assertEqual(str(parse_address(text)), expected)
        for bad in ("", ":", ":0", ":65536", ":-1", "a:b", "::1:80", "xss://:1", "http://a:1"):
            with self.assertRaises(AddressError, msg=bad):
                parse_address(bad)
        wrong: Any
        for wrong in ("", None):
            with self.assertRaisesRegex(AddressError, "the address is empty; give a store"):
                parse_address(wrong)
        for wrong in (5, b"store", ["store"]):
            with self.assertRaisesRegex(AddressError, "is text or a path, not "):
                parse_address(wrong)
        for bad in (f"xss://{'a' * 70}.example:1", "a..b:1", "\ud800:1", "a\0b:1"):
            with self.assertRaisesRegex(AddressError, "names no host"):
                parse_address(bad)
        for bad in ("\ud800", "~\ud800", "./\ud800.sock", "a\0b", "~\0", "\0a"):
            for path in (bad, pathlib.PurePath(bad)):
                with self.assertRaisesRegex(AddressError, "names no file"):
                    parse_address(path)

    def test_what_is_trusted_is_a_file(self) -> None:
        for bad in ("\ud800", "a\0b"):
            with self.assertRaisesRegex(TlsError, "names no file"):
                aio.AsyncClient("xss://a:1", tls=bad)
        wrong: Any
        for wrong in (5, b"ca.pem", []):
            with self.assertRaisesRegex(InvalidValue, "tls is an SSLContext or"):
                aio.AsyncClient("xss://a:1", tls=wrong)
            with self.assertRaisesRegex(InvalidValue, "a token is text"):
                aio.AsyncClient("xss://a:1", token=wrong)

    def test_local_is_this_machine(self) -> None:
        local = [":1", "127.0.0.2:1", "[::1]:1", "localhost:1", "./a"]
        self.assertTrue(all(parse_address(text).is_local for text in local))
        remote = ["10.0.0.1:1", "127.example.org:1", "xss://example.org:1"]
        self.assertFalse(any(parse_address(text).is_local for text in remote))


class Waiting(unittest.TestCase):
    def test_waits_grow_to_a_most_and_vary_by_half(self) -> None:
        retry = Retry(first=1, most=5, factor=2)
        longest, shortest = Backoff(retry, lambda: 1.0), Backoff(retry, lambda: 0.0)
        self.assertEqual([longest.wait() for _ in range(5)], [1, 2, 4, 5, 5])
        self.assertEqual([shortest.wait() for _ in range(4)], [0.5, 1, 2, 2.5])
        self.assertEqual(longest.wait(60_000), 60)
        longest.reset()
        self.assertEqual(longest.wait(), 1)

    def test_nothing_is_tried_again_without_a_wait(self) -> None:
        """A wait of 0 stays 0, whatever it is multiplied by: a server that was away cost a core."""
        for retry in (Retry(first=0), Retry(most=0), Retry(factor=0), Retry(0, 0, 0, 0)):
            backoff = Backoff(retry, lambda: 0.0)
            waits = [backoff.wait() for _ in range(5)]
            backoff.reset()
            self.assertGreaterEqual(min(*waits, backoff.wait()), 0.0005, retry)

    def test_what_is_no_way_to_retry_is_named(self) -> None:
        wrong: List[Any] = [None, "x", -1, float("nan"), [1]]
        for name in ("first", "most", "factor", "give_up"):
            for value in wrong:
                with self.assertRaisesRegex(InvalidValue, f"^{name} is"):
                    Retry(**{name: value})
        self.assertEqual(Retry(give_up=float("inf")).give_up, float("inf"))

    def test_credit_is_granted_in_halves(self) -> None:
        flow = Flow(1000)
        self.assertEqual([flow.took(n) for n in (400, 99, 1, 640, 499)], [0, 0, 500, 640, 0])
        self.assertEqual(Flow(1).took(1), 1)
        self.assertEqual(Flow(0).took(5), 5)

    def test_a_server_can_ask_for_a_minute_at_most(self) -> None:
        self.assertEqual(Backoff(Retry()).wait(20_000), 20.0)
        self.assertEqual(Backoff(Retry()).wait((1 << 32) - 1), 60.0)


class Sessions(unittest.TestCase):
    def test_bytes_may_come_one_at_a_time(self) -> None:
        session = Session("test")
        data = PREFACE + message(Op.PING, PUSH, 0, 0, 0, b"x") + message(Op.DELIVER, PUSH, 0, 0, 7)
        session.outgoing()
        events: List[Any] = []
        for at in range(len(data)):
            events += session.receive(data[at : at + 1])
        self.assertEqual(events, [Push(7, Op.DELIVER, 0, False, b"")])
        self.assertEqual(session.outgoing(), message(Op.PING, RESPONSE, 0, 0, 0, b"x"))

    def test_what_is_no_xsp_is_told(self) -> None:
        for data, why in (
            (b"HTTP/1.1 400", "does not speak XSP"),
            (b"XSP\0\2\0\0\0", "XSP/2"),
            (b"XSP\0\1\0\0\1", "does not speak XSP"),
        ):
            with self.assertRaisesRegex(ProtocolError, why):
                Session("test").receive(data)

    def test_answers_are_put_to_their_questions(self) -> None:
        session = Session("test")
        session.receive(PREFACE)
        one, two = session.request(Op.TOPICS), session.request(Op.PING)
        data = message(Op.TOPICS, RESPONSE | 4, 0, one, 0, b"a")
        data += message(Op.PING, RESPONSE, 0, two, 0) + message(
            Op.TOPICS, RESPONSE, 0, one, 0, b"b"
        )
        ping, topics = session.receive(data)
        self.assertEqual(ping, Answer(two, [b""], None))
        self.assertEqual(topics, Answer(one, [b"a", b"b"], None))
        for wrong in (
            message(Op.PING, RESPONSE, 0, two, 0),
            message(Op.PING, 0, 1, 9, 0),
            message(Op.HELLO, PUSH, 0, 0, 0),
        ):
            with self.assertRaises(ProtocolError):
                session.receive(wrong)

    def test_an_answer_to_another_op_is_refused(self) -> None:
        session = Session("test")
        session.receive(PREFACE)
        corr = session.request(Op.PING)
        with self.assertRaises(ProtocolError):
            session.receive(message(Op.GET, RESPONSE, 0, corr, 0))

    def test_answers_to_pings_wait_up_to_a_number(self) -> None:
        ping = message(Op.PING, PUSH, 0, 0, 0, b"x")
        session = Session("test")
        session.receive(PREFACE)
        for _ in range(2):
            session.receive(ping * PONGS_MAX)
            session.outgoing()
            session.written()
        session.receive(ping * PONGS_MAX)
        with self.assertRaisesRegex(ProtocolError, "PINGs"):
            session.receive(ping)
        session = Session("test")
        session.receive(PREFACE)
        with self.assertRaisesRegex(ProtocolError, "PINGs"):
            session.receive(message(Op.PING, PUSH, 0, 0, 0, bytes(65)))

    def test_answers_that_are_not_whole_wait_up_to_a_number_of_bytes(self) -> None:
        session = Session("test")
        session.receive(PREFACE)
        one, two = session.request(Op.TOPICS), session.request(Op.TOPICS)
        most = PARTS_BYTES_MAX // PART_BYTES_MIN
        part = message(Op.TOPICS, RESPONSE | MORE, 0, one, 0)
        # What came of answers that are whole counts no more.
        session.receive(part * most)
        self.assertEqual(len(session.receive(message(Op.TOPICS, RESPONSE, 0, one, 0))), 1)
        part = message(Op.TOPICS, RESPONSE | MORE, 0, two, 0)
        session.receive(part * most)
        with self.assertRaisesRegex(ProtocolError, "does not end"):
            session.receive(part)

    def test_a_request_has_a_longest(self) -> None:
        session = Session("test")
        most = 24 * 1024 * 1024 - 16
        session.request(Op.APPEND, bytes(most))
        with self.assertRaises(InvalidValue):
            session.request(Op.APPEND, bytes(most + 1))


STORE = bytes(16)


def info(epoch: int = 1, head: int = 100, store: bytes = STORE) -> ServerInfo:
    return ServerInfo("xs", 1, "admin", store, epoch, head, 1, 1, 1, 1, 1, 1, ())


def record(topic: str, delta: int, meta: bytes = b"", body_bytes: int = 0) -> bytes:
    body = bytes([1, 1 if body_bytes else 0, len(topic), 0]) + delta.to_bytes(4, "little")
    body += bytes(16)
    if body_bytes:
        body += body_bytes.to_bytes(8, "little") + bytes(32)
    body += topic.encode("latin-1") + meta
    rest = (8 + len(body)).to_bytes(4, "little") + body
    return crc32(rest).to_bytes(4, "little") + rest


def deliver(offsets: List[Optional[int]], scanned_to: int, topic: str = "a") -> Push:
    out = Writer()
    out.u64(scanned_to)
    out.u32(len(offsets))
    out.u32(0)
    for offset in offsets:
        one = record(topic, 0)
        out.u64((1 << 64) - 1 if offset is None else offset)
        out.u32((len(one) + 7) & ~7)
        out.u32(1)
        out.raw(one + bytes(-len(one) % 8))
    return Push(1, Op.DELIVER, 0, False, bytes(out.data))


def event(kind: int, *numbers: int, code: int = 0, rest: bytes = b"") -> Push:
    out = Writer()
    out.u8(kind)
    for number in numbers:
        out.u64(number)
    return Push(1, Op.SUB_EVENT, code, False, bytes(out.data) + rest)


def gap(kind: int, first: int, end: int) -> Push:
    out = Writer()
    out.u8(3)
    out.u8(kind)
    out.u64(first)
    out.u64(end)
    return Push(1, Op.SUB_EVENT, 0, False, bytes(out.data))


def offset_of(item: Item) -> Optional[int]:
    """As in a program of the README: `kind` tells a type checker too which item it is."""
    if item.kind == "frame":
        return item.offset
    return item.end if item.kind == "gap" else None


class Readings(unittest.TestCase):
    def given(self, reading: Reading, push: Push) -> List[Any]:
        items = reading.take(push)
        for at, item in enumerate(items):
            reading.gave(item, at == len(items) - 1)
        return items

    def test_the_position_follows_what_was_handed_out(self) -> None:
        reading = Reading(read_options(follow=True))
        self.assertIsNone(reading.point)
        reading.begin(info())
        self.assertIsNone(reading.began(info()))
        items = reading.take(deliver([3, None, 5], 9))
        reading.gave(items[0], False)
        self.assertEqual(reading.position, 4)
        reading.gave(items[1], False)
        self.assertEqual(reading.position, 4)
        reading.gave(items[2], True)
        self.assertEqual(reading.point, ResumePoint(STORE, 1, 9))
        self.given(reading, deliver([], 2000))
        self.assertEqual(reading.position, 2000)

    def test_it_goes_on_where_it_was(self) -> None:
        reading = Reading(read_options(last=10, limit=5, follow=True))
        reading.begin(info())
        reading.began(info())
        self.given(reading, deliver([3, 4], 9))
        rest = reading.begin(info())
        self.assertEqual((rest.start, rest.bound, rest.limit), (messages.START_FROM, 9, 3))
        self.assertEqual(reading.began(info()), Resumed(9))
        self.given(reading, deliver([9, 10, 11], 12))
        self.assertTrue(reading.done)

    def test_new_goes_on_from_its_threshold(self) -> None:
        reading = Reading(read_options(new=True, follow=True))
        reading.began(info())
        self.assertEqual(reading.begin(info()).start, messages.START_NEW)
        self.assertEqual(self.given(reading, event(1, 7)), [CaughtUp(7)])
        rest = reading.begin(info())
        self.assertEqual((rest.start, rest.bound), (messages.START_FROM, 7))

    def test_the_threshold_comes_once(self) -> None:
        reading = Reading(read_options(follow=True))
        self.assertEqual(self.given(reading, event(1, 7)), [CaughtUp(7)])
        reading.began(info())
        self.assertEqual(self.given(reading, event(1, 9)), [])
        self.assertEqual(reading.position, 9)

    def test_a_backward_read_goes_on_downwards(self) -> None:
        reading = Reading(read_options(last=5, reverse=True))
        reading.began(info())
        items = reading.take(deliver([9, 8], 8))
        reading.gave(items[0], False)
        self.assertEqual(reading.position, 9)
        rest = reading.rest
        self.assertEqual((rest.start, rest.before, rest.limit), (messages.START_FIRST, 8, 3))

    def test_a_frame_that_comes_twice_is_an_error(self) -> None:
        for offsets in ([3, 3], [4, 3]):
            with self.assertRaises(ProtocolError):
                Reading(read_options()).take(deliver(list(offsets), 9))
        reading = Reading(read_options(follow=True))
        reading.take(deliver([3], 9))
        with self.assertRaises(ProtocolError):
            reading.take(deliver([8], 10))

    def test_gaps_are_told_to_followers_and_end_reads(self) -> None:
        reading = Reading(read_options(follow=True))
        self.assertEqual(self.given(reading, gap(1, 3, 5)), [Gap("corrupt", 3, 5)])
        self.assertEqual(reading.position, 5)
        self.assertEqual(self.given(reading, gap(2, 12, 0)), [Gap("ephemeral", count=12)])
        self.assertEqual(reading.position, 5)
        # The newest of its frames are still to come.
        self.assertEqual(self.given(reading, gap(3, 5, 90)), [Gap("conflated", 5, 90)])
        self.assertEqual(reading.position, 5)
        self.given(reading, deliver([40, 89], 90))
        self.assertEqual(reading.position, 90)
        reading = Reading(read_options())
        with self.assertRaisesRegex(CorruptRange, "frames 3 to 4 .* go on from 5") as caught:
            reading.take(gap(1, 3, 5))
        self.assertEqual((caught.exception.first, caught.exception.end), (3, 5))
        self.assertEqual((caught.exception.resume, reading.position), (5, 5))

    def test_a_gap_is_passed_backwards_too(self) -> None:
        reading = Reading(read_options(reverse=True))
        self.given(reading, deliver([9], 9))
        with self.assertRaisesRegex(CorruptRange, "^frame 8 cannot be read; go on before 8"):
            reading.take(gap(1, 8, 9))
        with self.assertRaisesRegex(CorruptRange, "frames 7 to 8 .* go on before 7") as caught:
            reading.take(gap(1, 7, 9))
        self.assertEqual((caught.exception.first, caught.exception.end), (7, 9))
        self.assertEqual((caught.exception.resume, reading.position), (7, 7))
        self.assertEqual(reading.rest.before, 7)

    def test_what_drops_it_is_raised_and_its_offset_kept(self) -> None:
        reading = Reading(read_options(follow=True))
        with self.assertRaises(Unavailable):
            reading.take(event(4, 42, code=501, rest=b"\3\0why"))
        self.assertEqual(reading.rest.bound, 42)

    def test_an_end_below_the_start_or_what_was_seen_moves_nothing(self) -> None:
        reading = Reading(read_options(from_=9))
        asked = reading.rest
        self.assertEqual(self.given(reading, event(5, 5)), [])
        self.assertEqual((reading.done, reading.rest, reading.position), (True, asked, None))
        reading = Reading(read_options())
        self.given(reading, deliver([3], 7))
        self.given(reading, event(5, 5))
        self.assertEqual((reading.done, reading.position), (True, 7))
        reading = Reading(read_options(reverse=True))
        self.given(reading, deliver([8], 7))
        self.given(reading, event(5, 5))
        self.assertEqual((reading.done, reading.position), (True, 5))

    def test_a_start_above_the_head_is_kept_until_it_is_reached(self) -> None:
        starts: List[Any] = [{"from_": 9}, {"after": 8}]
        for start in starts:
            reading = Reading(read_options(follow=True, **start))
            asked = reading.rest
            reading.began(info(head=5))
            self.assertEqual(self.given(reading, event(1, 5)), [CaughtUp(5)])
            with self.assertRaises(Unavailable):
                reading.take(event(4, 9, code=501, rest=b"\3\0why"))
            # There is nothing yet that the server could check.
            self.assertEqual((reading.rest, reading.seen_in, reading.point), (asked, None, None))
            self.assertEqual(self.given(reading, event(1, 9)), [])
            self.assertEqual((reading.seen_in, reading.position), ((STORE, 1), 9))
            self.given(reading, deliver([9], 10))
            self.assertEqual((reading.rest.start, reading.rest.bound), (messages.START_FROM, 10))

    def test_an_id_above_all_is_kept_until_a_frame_has_come(self) -> None:
        reading = Reading(read_options(follow=True, after=FrameId(bytes([9] * 16))))
        asked = reading.rest
        reading.began(info())
        self.assertEqual(self.given(reading, event(1, 100)), [CaughtUp(100)])
        self.given(reading, deliver([], 2000))
        with self.assertRaises(Unavailable):
            reading.take(event(4, 2000, code=501, rest=b"\3\0why"))
        self.assertEqual((reading.rest, reading.seen_in), (asked, None))
        self.given(reading, deliver([2000], 2001))
        self.assertEqual((reading.rest.bound, reading.seen_in), (2001, (STORE, 1)))

    def test_a_point_holds_for_its_store_and_epoch(self) -> None:
        point = ResumePoint(STORE, 1, 100)
        options = read_options(follow=True)
        reading = Reading(options, point)
        self.assertEqual(reading.begin(info(2)).bound, 100)
        self.assertEqual(reading.seen_in, (STORE, 1))
        reading.began(info(2))
        self.assertEqual(reading.seen_in, (STORE, 2))
        with self.assertRaises(OtherStore):
            Reading(options, point).begin(info(store=bytes([1] * 16)))
        # What was not seen anywhere needs no epoch.
        fresh = Reading(read_options(from_=5))
        self.assertIsNone(fresh.seen_in)
        backward = Reading(read_options(reverse=True))
        backward.began(info())
        backward.take(deliver([9], 9))
        self.assertIsNone(backward.seen_in)

    def test_nothing_for_new_is_none(self) -> None:
        nothing: Any = None
        self.assertEqual(read_options("a", new=nothing), read_options("a"))

    def test_options_that_contradict_are_refused(self) -> None:
        wrong: List[Any] = [{"from_": 1, "new": True}, {"last": 1, "after": 2}]
        for options in [*wrong, {"reverse": True, "follow": True}, {"from_": -1}, {"topics": []}]:
            with self.assertRaises(InvalidValue, msg=str(options)):
                read_options(**options)
        moment = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
        self.assertEqual(read_options(since=moment).since_ms, 1_893_456_000_000)
        with self.assertRaises(InvalidValue):
            ReadOptions(limit=1 << 64).put(Writer())


class Frames(unittest.TestCase):
    def test_a_body_that_did_not_come_is_told(self) -> None:
        frame = Frame(record("a", 0), 1)
        self.assertEqual((frame.body, frame.text(), frame.meta), (b"", "", None))
        for what in (Frame.text, Frame.json):
            with self.assertRaisesRegex(InvalidValue, "did not come .* body.frame.") as caught:
                what(Frame(record("a", 0, body_bytes=5), 1))
            self.assertIsInstance(caught.exception, ValueError)
        self.assertEqual(frame, Frame(record("a", 0), 1))
        self.assertNotEqual(frame, Frame(record("a", 0), 2))
        items: List[Item] = [frame, Gap("corrupt", 3, 5), CaughtUp(9)]
        self.assertEqual([offset_of(item) for item in items], [1, 5, None])

    def test_what_tells_it_from_others_is_shown(self) -> None:
        made = "0" * 25
        self.assertEqual(repr(Frame(record("a", 0), 5)), f"Frame(topic='a', id={made}, offset=5)")
        shown = repr(Frame(record("a.b", 0, b'{"a":1}', 9000), None, bytes(9000)))
        rest = 'meta={"a":1}, body_bytes=9000'
        self.assertEqual(shown, f"Frame(topic='a.b', id={made}, offset=None, {rest})")
        long = repr(Frame(record("a", 0, b'"' + b"x" * 60_000 + b'"'), 5))
        self.assertLess(len(long), 300)
        # One that a server broke can still be looked at.
        self.assertIn("meta={", repr(Frame(record("a", 0, b"{\xff"), 5)))

    def test_a_body_that_is_something_else_is_told(self) -> None:
        def bodied(body: bytes) -> Frame:
            return Frame(record("a", 0, body_bytes=len(body)), 1, body)

        self.assertEqual(bodied(b'{"a":1}').json(), {"a": 1})
        for what in (Frame.text, Frame.json):
            with self.assertRaisesRegex(InvalidValue, "the body is no text: .* 0xff"):
                what(bodied(b"\xff"))
        for body in (b"{", b"[" * 100_000):
            with self.assertRaisesRegex(InvalidValue, "the body is not JSON: "):
                bodied(body).json()
        with self.assertRaisesRegex(InvalidValue, "the body is not JSON: "):
            Frame(record("a", 0), 1).json()

    def test_what_a_server_may_not_send_is_its_error(self) -> None:
        for meta in (b"{", b"\xff", b"[" * 100_000):
            with self.assertRaisesRegex(ProtocolError, "JSON is broken"):
                _ = Frame(record("a", 0, meta), 1).meta
        with self.assertRaisesRegex(ProtocolError, "topic is not UTF-8"):
            _ = Frame(record("\xff", 0), 1).topic
