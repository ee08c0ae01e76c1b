"""The program of the README, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from pathlib import Path

import xs_stream

from .support import PATIENCE, Server

PACKAGE = Path(__file__).resolve().parents[1]


class Readme(unittest.TestCase):
    def test_ten_lines(self) -> None:
        text = (PACKAGE / "README.md").read_text()
        found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
        assert found is not None
        self.assertLessEqual(len([line for line in found[1].splitlines() if line]), 10)
        server = Server()
        try:
            xs_stream.connect(server.store, wait=PATIENCE).close()
            run = subprocess.run(
                [sys.executable, "-c", found[1], server.store],
                capture_output=True,
                env={"PYTHONPATH": str(PACKAGE / "src")},
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        finally:
            server.close()
        self.assertEqual(run.stderr, "")
        lines = [line.split(" ", 1)[1] for line in run.stdout.splitlines()]
        self.assertEqual(lines, ["buy milk {'urgent': True}", "and bread None"])
