"""Followers of every client read what clients of two languages append, while the server is killed
twice and started again: each follower sees each acknowledged frame once, in order.

Run by scripts/test-clients with python3 -m unittest, after both clients are built.
"""

from __future__ import annotations

import os
import signal
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Dict, List

CLIENTS = Path(__file__).resolve().parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", CLIENTS.parent / "target"))
XS = os.environ.get("XS_BIN", str(TARGET / "release" / "xs"))
PYTHON = [sys.executable, str(CLIENTS / "python" / "tests" / "relay.py")]
NODE = ["node", str(CLIENTS / "typescript" / "build" / "tests" / "relay.js")]
COUNT = 100_000
PATIENCE = 300.0


class Process:
    """A program whose lines are kept; `at` is how many frames it has seen."""

    def __init__(self, command: List[str], moved: threading.Condition) -> None:
        env = {**os.environ, "PYTHONPATH": str(CLIENTS / "python" / "src")}
        self.lines: List[str] = []
        self.at = 0
        self._moved = moved
        self._child = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._moved:
                if line.startswith("at "):
                    self.at = int(line.split()[1])
                else:
                    self.lines.append(line.strip())
                self._moved.notify_all()

    @property
    def has_failed(self) -> bool:
        return self._child.poll() not in (None, 0)

    def wait(self) -> List[str]:
        """Its last words, when it is at its end."""
        code = self._child.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._child.stdout is not None
        self._child.stdout.close()
        return [*self.lines, f"exit {code}"]

    def kill(self) -> None:
        self._child.kill()


class Relay(unittest.TestCase):
    def setUp(self) -> None:
        self.dir = tempfile.mkdtemp(prefix="xs-relay-")
        self.store = os.path.join(self.dir, "store")
        self.processes: List[Process] = []
        self.moved = threading.Condition()
        self.server = self.serve()

    def tearDown(self) -> None:
        for process in self.processes:
            process.kill()
        self.server.kill()
        self.server.wait()
        shutil.rmtree(self.dir)

    def serve(self) -> "subprocess.Popen[bytes]":
        with open(os.path.join(self.dir, "log"), "ab") as log:
            return subprocess.Popen(
                [XS, "serve", self.store], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run_side(self, command: List[str]) -> Process:
        self.processes.append(Process(command, self.moved))
        return self.processes[-1]

    def await_all_at(self, followers: List[Process], count: int) -> None:
        def reached() -> bool:
            return all(one.at >= count for one in followers)

        def settled() -> bool:
            return reached() or any(process.has_failed for process in self.processes)

        with self.moved:
            settled_in_time = self.moved.wait_for(settled, PATIENCE)
        told = [process.lines for process in self.processes]
        self.assertTrue(settled_in_time and reached(), told)

    def test_each_follower_sees_each_frame_once_and_in_order(self) -> None:
        both = str(2 * COUNT)
        followers = [
            self.run_side([*PYTHON, "follow", self.store, both]),
            self.run_side([*PYTHON, "follow-sync", self.store, both]),
            self.run_side([*NODE, "follow", self.store, both]),
        ]
        appenders = [
            self.run_side([*PYTHON, "append", self.store, "relay.python", str(COUNT)]),
            self.run_side([*NODE, "append", self.store, "relay.typescript", str(COUNT)]),
        ]
        for share in (0.3, 0.7):
            self.await_all_at(followers, int(2 * COUNT * share))
            self.server.send_signal(signal.SIGKILL)
            self.server.wait(PATIENCE)
            self.server = self.serve()
        for appender in appenders:
            self.assertEqual(appender.wait(), [f"appended {COUNT}", "exit 0"])
        expected = [f"seen {2 * COUNT} resumed 2 caught_up 1", "exit 0"]
        for follower in followers:
            self.assertEqual(follower.wait(), expected)
        summary: Dict[str, Any] = {"frames": 2 * COUNT, "kills": 2, "followers": len(followers)}
        print(f"counted: clients relay: {summary}")


if __name__ == "__main__":
    unittest.main()
