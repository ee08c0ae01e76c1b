"""How a process ends that uses the blocking face: with clients and streams that nobody closed, and
in the middle of a signal's handler."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from pathlib import Path

import xs_stream

from .support import PATIENCE, Server

SOURCE = str(Path(xs_stream.__file__).resolve().parents[1])
PROLOGUE = """
import sys
import xs_stream

STORE = sys.argv[1]
"""


class Processes(unittest.TestCase):
    """Programs of their own, over `xs serve`."""

    server: Server

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server()
        with xs_stream.connect(cls.server.store, wait=PATIENCE) as client:
            client.append("a", "b")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.close()

    def printed(self, program: str) -> str:
        """What a program prints, which has to end by itself, and well."""
        done = subprocess.run(
            [sys.executable, "-c", PROLOGUE + program, self.server.store],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
            text=True,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout


class Left(Processes):
    """The interpreter closes the generators that are left, and calls what `__del__` there is, when
    the thread of a client does not go on any more: who waited for it then waited for ever."""

    def test_a_generator_that_holds_a_client(self) -> None:
        program = """
def notes():
    with xs_stream.connect(STORE) as xs:
        for item in xs.follow("a"):
            yield item

left = notes()
print(next(left).kind)
"""
        self.assertEqual(self.printed(program), "frame\n")

    def test_a_generator_that_holds_a_stream(self) -> None:
        program = """
xs = xs_stream.connect(STORE)

def notes():
    with xs.follow("a") as items, xs.blob_writer() as writer:
        writer.write(b"x")
        yield from items

left = notes()
print(next(left).kind)
"""
        self.assertEqual(self.printed(program), "frame\n")

    def test_what_is_done_so_late_raises(self) -> None:
        program = """
class Late:
    def __init__(self):
        self.xs = xs_stream.connect(STORE)
        self.items = self.xs.follow("a")
        print(self.items.next().kind)
        self.uses = (
            lambda: self.xs.append("a", "late"),
            lambda: self.items.next(),
            lambda: xs_stream.connect(STORE),
        )
        self.closed = xs_stream.ClientClosed

    def __del__(self):
        for use in self.uses:
            try:
                use()
            except self.closed as error:
                print(error)
        self.items.close()
        self.xs.close()
        self.xs.close()

late = Late()
"""
        ending = "the interpreter is ending\n"
        self.assertEqual(self.printed(program), "frame\n" + 3 * ending)


class Interrupted(Processes):
    """A signal's handler runs in the main thread, between any two steps of what that does: it then
    waited for a lock that its own thread held, or for an end that it held up itself."""

    INTERRUPT = """
import signal, threading
from contextlib import suppress

def interrupt(xs, at):
    "Raises SIGTERM before the main thread gives the loop something for the so-manieth time."
    loop, main = xs._loop._loop, threading.main_thread()
    give, left = loop.call_soon_threadsafe, [at]

    def giving(*args, **options):
        if threading.current_thread() is main:
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGTERM)
        return give(*args, **options)

    loop.call_soon_threadsafe = giving
"""

    def test_a_handler_appends_closes_and_exits(self) -> None:
        program = """
def stop(*_):
    print(xs.append("log", "stopping").offset > 0)
    xs.close()
    sys.exit(0)

xs = xs_stream.connect(STORE)
signal.signal(signal.SIGTERM, stop)
interrupt(xs, 3)
while True:
    xs.append("log")
"""
        self.assertEqual(self.printed(self.INTERRUPT + program), "True\n")

    def test_a_handler_closes_in_the_middle_of_anything(self) -> None:
        program = """
def stop(*_):
    told.append("stopped")
    with suppress(xs_stream.ClientClosed):
        xs.append("log", "stopping")
    xs.close()

signal.signal(signal.SIGTERM, stop)
for at in range(1, 4):
    told = []
    xs = xs_stream.connect(STORE)
    interrupt(xs, at)
    try:
        xs.append("log")
        told.append("appended")
    except xs_stream.ClientClosed as error:
        told.append(str(error))
    xs.close()
    print(threading.active_count(), *told)
"""
        closed, rest = "1 stopped the client was closed\n", "1 appended stopped\n"
        self.assertEqual(self.printed(self.INTERRUPT + program), closed + 2 * rest)

    def test_a_handler_takes_from_the_stream_that_it_interrupts(self) -> None:
        program = """
def take(*_):
    try:
        print("taken", items.next().topic)
    except xs_stream.InUse as error:
        print(isinstance(error, ValueError), error)
        xs.append("interrupted", "b")

xs = xs_stream.connect(STORE)
signal.signal(signal.SIGTERM, take)
with xs.follow("interrupted", new=True) as items:
    print(next(items).kind)
    interrupt(xs, 1)
    print(next(items).topic)
    xs.append("interrupted", "c")
    signal.raise_signal(signal.SIGTERM)
"""
        busy = "True next() is under way in this thread, which a signal's handler interrupts\n"
        told = f"caught_up\n{busy}interrupted\ntaken interrupted\n"
        self.assertEqual(self.printed(self.INTERRUPT + program), told)

    def test_closing_it_again_and_again_leaves_no_task_behind(self) -> None:
        program = """
from xs_stream import loop as module

end, xs = module._end, xs_stream.connect(STORE)

def often(loop, *args, left=9):
    end(loop, *args)
    if left:
        loop.call_soon(lambda: often(loop, *args, left=left - 1))

module._end = often
xs.close()
print("closed")
"""
        self.assertEqual(self.printed(program), "closed\n")
