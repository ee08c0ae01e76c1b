"""The programs of the README, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from pathlib import Path

import xs_stream
from xs_stream import NewFrame

from .support import PATIENCE, Server

PACKAGE = Path(__file__).resolve().parents[1]
LONG = "x" * 5000
"""More than comes with a frame in these programs."""


def program(at: int) -> str:
    """The program with a number, which has ten lines at most."""
    found: str = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)[
        at
    ]
    assert len([line for line in found.splitlines() if line]) <= 10
    return found


class Readme(unittest.TestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.close)
        self.client = xs_stream.connect(self.server.store, wait=PATIENCE)
        self.addCleanup(self.client.close)

    def begin(self, at: int) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-u", "-c", program(at), self.server.store],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(PACKAGE / "src")},
            text=True,
        )
        self.addCleanup(child.communicate)
        self.addCleanup(child.kill)
        return child

    def test_ten_lines(self) -> None:
        self.client.append("notes", LONG)
        out, err = self.begin(0).communicate(timeout=PATIENCE)
        self.assertEqual(err, "")
        lines = [line.split(" ", 1)[1] for line in out.splitlines()]
        self.assertEqual(lines, [f"{LONG} None", "buy milk {'urgent': True}", "and bread None"])

    def test_a_consumer_that_remembers(self) -> None:
        def line(child: "subprocess.Popen[str]") -> str:
            assert child.stdout is not None
            return child.stdout.readline().split(" ", 1)[1]

        self.client.append_batch([NewFrame("notes", LONG), NewFrame("notes", "one")])
        first = self.begin(1)
        self.assertEqual([line(first), line(first)], [f"{LONG}\n", "one\n"])
        # It has handled a frame once the next one is printed.
        self.client.append("notes", "two")
        self.assertEqual(line(first), "two\n")
        first.kill()
        first.wait(PATIENCE)
        self.client.append("notes", "three")
        second = self.begin(1)
        again = [line(second)]
        if again[0] != "three\n":
            again.append(line(second))
        # The one before it again where it was killed before it had moved the cursor.
        self.assertIn(again, (["three\n"], ["two\n", "three\n"]))
        # Somebody else has the cursor.
        self.client.cursor_set("printer", 0)
        self.client.append("notes", "four")
        _, err = second.communicate(timeout=PATIENCE)
        self.assertRegex(err, "CursorConflict: 400")
