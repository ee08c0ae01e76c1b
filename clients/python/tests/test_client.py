"""What the conformance script cannot say, over a real server: waiting, threads, and closing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import tempfile
import threading
import time
import unittest
import warnings
from pathlib import Path
from typing import Any, AsyncIterator, Callable, List, Set

import xs_stream
from xs_stream import (
    ClientClosed,
    ConnectionLost,
    Frame,
    InvalidValue,
    NewFrame,
    aio,
)
from xs_stream.coding import PUSH, RESPONSE, Op, message

from .peer import Peer
from .support import PATIENCE, Server


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

    def test_a_read_that_reaches_its_limit_ends_on_the_server(self) -> None:
        with xs_stream.connect(self.server.store) as client:
            client.append_batch([NewFrame("limit", meta=n) for n in range(100)])
            # More than the 256 streams that one connection may have open.
            for _ in range(300):
                found = list(client.read("limit", limit=1, credit=1))
                self.assertEqual([frame.meta for frame in found], [0])
                found = list(client.read("limit", last=1, credit=1))
                self.assertEqual([frame.meta for frame in found], [99])

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
        self.assertEqual(follow.next(PATIENCE).kind, "caught_up")
        client.close()
        client.close()
        late = client.follow("closed")
        for use in (client.ping, follow.open, late.open, lambda: next(late)):
            with self.assertRaises(ClientClosed):
                use()
        self.assertEqual(list(follow), [])
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

    def threads(self) -> Set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name == "xs-stream"}

    def test_a_client_that_is_dropped_ends(self) -> None:
        """Its thread held it, with its connection, for as long as the process lived."""
        before, files = self.threads(), len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with self.assertWarnsRegex(ResourceWarning, "not closed"):
                xs_stream.connect(self.server.store).append("dropped")
                gc.collect()
        for thread in self.threads() - before:
            thread.join(PATIENCE)
        self.assertEqual(self.threads() - before, set())
        self.assertEqual(len(os.listdir("/proc/self/fd")), files)
        with xs_stream.connect(self.server.store) as client, warnings.catch_warnings():
            warnings.simplefilter("error")
            client.ping()
            until = time.monotonic() + PATIENCE
            while client.stats()["server"]["connections"] > 1 and time.monotonic() < until:
                time.sleep(0.01)
            self.assertEqual(client.stats()["server"]["connections"], 1)
            client.close()
            del client
            gc.collect()

    def test_a_stream_holds_what_it_comes_over(self) -> None:
        before = self.threads()
        follow = xs_stream.connect(self.server.store).follow("held")
        gc.collect()
        with xs_stream.connect(self.server.store) as client:
            client.append("held")
        self.assertEqual(follow.next(PATIENCE).kind, "frame")
        with self.assertWarnsRegex(ResourceWarning, "not closed"):
            del follow
            gc.collect()
        for thread in self.threads() - before:
            thread.join(PATIENCE)
        self.assertEqual(self.threads() - before, set())

    def test_closing_ends_who_follows(self) -> None:
        async def main() -> None:
            client = await aio.connect(self.server.store)
            follow = client.follow("ends", new=True)
            await follow.__anext__()
            waiting = asyncio.ensure_future(follow.__anext__())
            await asyncio.sleep(0)
            await client.close()
            for one in (waiting, follow.__anext__()):
                with self.assertRaises(StopAsyncIteration):
                    await asyncio.wait_for(one, PATIENCE)

        asyncio.run(main())
        for _ in range(10):
            ended: List[str] = []
            begun = threading.Event()
            client = xs_stream.connect(self.server.store)
            follow = client.follow("ends", new=True)

            def run(
                follow: xs_stream.FollowStream = follow,
                ended: List[str] = ended,
                begun: threading.Event = begun,
            ) -> None:
                for _ in follow:
                    begun.set()
                ended.append("end")

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            self.assertTrue(begun.wait(PATIENCE))
            client.close()
            thread.join(PATIENCE)
            self.assertEqual(ended, ["end"])

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

    def test_a_body_that_is_none_is_named(self) -> None:
        async def given() -> AsyncIterator[bytes]:
            yield b"given"

        with xs_stream.connect(self.server.store) as client:
            uses: List[Callable[[Any], Any]] = [
                lambda body: client.append("none", body),
                client.put_blob,
            ]
            for use in uses:
                for bad, name in ((5, "int"), ({}, "dict"), ({"a": 1}, "dict"), (0.5, "float")):
                    with self.assertRaisesRegex(InvalidValue, f"not {name}; json="):
                        use(bad)
            self.assertEqual(client.topics("none"), [])
            client.append("none", given())
            self.assertEqual(client.body(client.last("none")[0]), b"given")

    def test_an_argument_of_another_kind_is_named(self) -> None:
        with xs_stream.connect(self.server.store) as client:
            frame: Any = client.get(client.append("kinds", "x" * 5000).id)
            with self.assertRaisesRegex(InvalidValue, "cursor_remove"):
                client.cursor_set("kinds", None)  # type: ignore[arg-type]
            calls: List[Callable[[Any], Any]] = [
                lambda wrong: client.append("kinds", key=wrong),
                lambda wrong: client.append("kinds", conditions=wrong),
                lambda wrong: client.append_batch(wrong),
                lambda wrong: client.append_batch(cursors=wrong),
                lambda wrong: client.append_batch(remove=wrong),
                lambda wrong: client.import_frames(wrong),
                lambda wrong: client.follow(slow=wrong),
                lambda wrong: client.follow(resume=wrong),
                lambda wrong: client.follow(pulse=wrong),
                lambda wrong: client.fetch(page_bytes=wrong),
                lambda wrong: client.last("kinds", wrong),
                lambda wrong: client.has_blob(wrong),
                lambda wrong: client.body(wrong),
                lambda wrong: client.cursor_get(wrong),
                lambda wrong: client.cursor_set("kinds", 1, state=wrong),
                lambda wrong: client.call("kinds", deadline=wrong),
                lambda wrong: client.call("kinds", body=wrong),
                lambda wrong: client.ping(wrong),
                lambda wrong: client.compact(dead_percent=wrong),
                lambda wrong: client.gc(grace=wrong),
                lambda wrong: client.backup(wrong),
                lambda wrong: xs_stream.connect(self.server.store, token=wrong),
                lambda wrong: xs_stream.connect(self.server.store, timeout=wrong),
                lambda wrong: xs_stream.connect(self.server.store, wait=wrong),
                lambda wrong: xs_stream.connect(self.server.store, retry=wrong),
            ]
            for at, call in enumerate(calls):
                with self.assertRaises(InvalidValue, msg=f"call {at}"):
                    call(object() if at != 6 else {"latest": 5})
            below: List[Callable[[], Any]] = [
                lambda: xs_stream.connect(self.server.store, timeout=-1),
                lambda: xs_stream.connect(self.server.store, wait=-0.0001),
                lambda: client.follow(pulse=-1),
                lambda: client.call("kinds", deadline=-1),
                lambda: client.gc(grace=-1),
                lambda: client.append("kinds", ttl=xs_stream.Ttl("time", 0)),
            ]
            for at, use in enumerate(below):
                with self.assertRaises(InvalidValue, msg=f"below {at}"):
                    use()
            # Nothing of it was sent: the connection is the same, and works.
            self.assertEqual(client.body(frame), b"x" * 5000)
            self.assertEqual([one.count for one in client.topics("kinds")], [1])

    def test_a_meta_may_be_of_any_digits(self) -> None:
        digits = "1" * 5000
        text = f'{{"long":[-{digits},{digits}],"short":7}}'.encode()
        with xs_stream.connect(self.server.store) as client:
            client.append_batch([NewFrame("digits", text, meta_json=text)])
            frame = client.last("digits")[0]
            self.assertEqual(frame.meta_json, text)
            body = Frame(frame._record, 0, text)
            for found in (frame.meta, body.json()):
                self.assertEqual([str(one) for one in found["long"]], [f"-{digits}", digits])
                self.assertIs(type(found["short"]), int)
        with self.assertRaises(ValueError):
            Frame(frame._record, 0, b"no JSON").json()

    def test_a_forked_process_is_told(self) -> None:
        client = xs_stream.connect(self.server.store)
        follow = client.follow("forked", new=True)
        follow.open()
        waiting = threading.Thread(target=lambda: list(follow))
        waiting.start()
        uses: List[Callable[[], Any]] = [
            lambda: client.ping(timeout=1),
            lambda: client.append("forked"),
            lambda: follow.next(1),
            lambda: next(client.read("forked")),
        ]
        with warnings.catch_warnings():
            # That it has threads is what it is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            told = 0
            try:
                for use in uses:
                    with contextlib.suppress(ClientClosed):
                        use()
                        break
                    told += 1
                client.close()
            finally:
                os._exit(told)
        until, ended, status = time.monotonic() + PATIENCE, 0, 0
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self.assertEqual((ended, os.WEXITSTATUS(status)), (child, len(uses)))
        # The process that made it goes on with it.
        self.assertGreater(client.ping(), 0)
        client.close()
        waiting.join(PATIENCE)

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
