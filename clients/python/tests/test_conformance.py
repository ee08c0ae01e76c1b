"""The shared conformance script over both faces, on the real server. What ran is written to
$XS_CONFORMANCE_REPORT, where scripts/test-clients compares it with the other clients'."""

from __future__ import annotations

import json
import os
import unittest
from typing import Any, ClassVar, Dict, List, Set

from .runner import AsyncFace, Runner, SyncFace, verbs
from .support import CONFORMANCE

SCRIPTS: Dict[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in sorted(CONFORMANCE.glob("*.json"))
}


class Conformance(unittest.TestCase):
    ran: ClassVar[Set[str]] = set()
    used: ClassVar[Set[str]] = set()

    @classmethod
    def tearDownClass(cls) -> None:
        path = os.environ.get("XS_CONFORMANCE_REPORT")
        if path:
            lines = sorted([*cls.ran, *(f"verb {verb}" for verb in cls.used)])
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")

    def check(self, name: str, face: Any) -> None:
        script = SCRIPTS[name]
        runner = Runner(face, script)
        try:
            for case in script["cases"]:
                with self.subTest(case=case["name"]):
                    try:
                        runner.run(case["steps"])
                    except AssertionError:
                        print(runner.server.log()[-2000:])
                        raise
                    self.ran.add(f"{name}: {case['name']}")
        finally:
            runner.close()
        self.used.update(runner.used)

    def test_zz_every_verb_is_used(self) -> None:
        self.assertEqual(sorted(self.used), verbs())


def _add(name: str, face: Any) -> None:
    def test(self: Conformance) -> None:
        self.check(name, face())

    setattr(Conformance, f"test_{name}_{face.name}", test)


_FACES: List[Any] = [SyncFace, AsyncFace]
for _name in SCRIPTS:
    for _face in _FACES:
        _add(_name, _face)
