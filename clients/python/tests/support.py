"""A server in a directory of its own that does not outlive its test, and where things are."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, List, Optional

ROOT = Path(__file__).resolve().parents[3]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
XS = os.environ.get("XS_BIN", str(TARGET / "release" / "xs"))
CONFORMANCE = ROOT / "clients" / "conformance"
VECTORS = ROOT / "protocol" / "vectors"
PATIENCE = 60.0
ANY_PORT = "127.0.0.1:0"


def vectors(name: str) -> List[Any]:
    """The messages of one file of golden vectors."""
    return list(json.loads((VECTORS / f"{name}.json").read_text())["messages"])


class Server:
    """`xs serve` over a store in a temporary directory."""

    def __init__(self, modules: Optional[Path] = None, tls: bool = False) -> None:
        self.dir = tempfile.mkdtemp(prefix="xs-py-")
        self.store = os.path.join(self.dir, "store")
        self._args = ["--modules", str(modules)] if modules else []
        if tls:
            # The server takes no key that others may read.
            key = shutil.copy(CONFORMANCE / "tls" / "key.pem", self.dir)
            os.chmod(key, 0o600)
            cert = str(CONFORMANCE / "tls" / "cert.pem")
            self._args += ["--listen", ANY_PORT, "--tls-cert", cert, "--tls-key", key]
        self._log = open(os.path.join(self.dir, "log"), "ab")  # noqa: SIM115 (closed below)
        self._child: Optional[subprocess.Popen[bytes]] = None
        self._port = 0
        self.start()

    def start(self) -> None:
        """Starts it; who connects has to wait until it listens. It keeps a port that was asked."""
        args = [f"127.0.0.1:{self._port}" if one == ANY_PORT else one for one in self._args]
        command = [XS, "serve", self.store, *args]
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def end(self, how: int) -> None:
        """Ends it with a signal and waits until it is gone."""
        if self._child is not None:
            self._child.send_signal(how)
            self._child.wait(PATIENCE)
            self._child = None

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def stop(self) -> None:
        self.end(signal.SIGTERM)

    def close(self) -> None:
        self.kill()
        self._log.close()
        shutil.rmtree(self.dir)

    def tls_port(self) -> int:
        """The port on which it speaks TLS, once it says so."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            ports = re.findall(r"xss://127\.0\.0\.1:(\d+)", self.log())
            if ports:
                self._port = int(ports[-1])
                return self._port
            time.sleep(0.01)
        raise AssertionError(f"no TLS: {self.log()}")

    def log(self) -> str:
        return Path(self.dir, "log").read_text(errors="replace")
