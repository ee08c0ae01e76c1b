"""The address of a server, as people write it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Optional, Union

from .errors import AddressError

__all__ = ["Address", "parse_address"]

SOCKET_NAME = "xs.sock"


@dataclass(frozen=True)
class Address:
    """A Unix socket (`path`), or a host and a port, with TLS or without."""

    path: Optional[str] = None
    host: str = ""
    port: int = 0
    tls: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'xss://' if self.tls else ''}{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can listen in."""
        return (
            self.path is not None
            or self.host in ("localhost", "::1")
            or (self.host.startswith("127.") and self.host.replace(".", "").isdigit())
        )


def parse_address(text: Union[str, "os.PathLike[str]"]) -> Address:
    """Reads a store directory (its `xs.sock`), the path of a socket, `:port`, `host:port` or
    `xss://host:port` (TLS). Text that contains `/`, or begins with `.` or `~`, is a path.

    Raises AddressError.
    """
    if isinstance(text, os.PathLike):
        text = os.fspath(text)
        if isinstance(text, str):
            return _of_path(text)
    if text is not None and not isinstance(text, str):
        raise AddressError(f"an address is text or a path, not {type(text).__name__}")
    if not text:
        raise AddressError(
            "the address is empty; give a store directory, a socket, :port or host:port"
        )
    if text.startswith("xss://"):
        return _of_host(text[len("xss://") :].rstrip("/"), text, tls=True)
    if "://" in text:
        raise AddressError(f"{text!r}: only xss:// is known")
    if "/" in text or text[0] in ".~" or ":" not in text:
        return _of_path(text, with_home=True)
    return _of_host(text, text, tls=False)


def _of_path(path: str, with_home: bool = False) -> Address:
    try:
        if "\0" in path:
            raise ValueError("a path has no NUL")
        os.fsencode(path)
        path = os.path.expanduser(path) if with_home else path
    except ValueError as error:
        raise AddressError(f"{path!r} names no file: {error}") from error
    is_socket = path.endswith(".sock") and not os.path.isdir(path)
    return Address(path=path if is_socket else os.path.join(path, SOCKET_NAME))


def _of_host(text: str, whole: str, tls: bool) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise AddressError(f"{whole!r} has no port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"{whole!r}: an IPv6 address is written in brackets")
    if tls and not host:
        raise AddressError(f"{whole!r} names no host")
    try:
        # Encoded as it will be for connecting.
        if b"\0" in host.encode("idna"):
            raise UnicodeError("a host has no NUL")
    except UnicodeError as error:
        raise AddressError(f"{whole!r} names no host: {error}") from error
    return Address(host=host or "127.0.0.1", port=int(port), tls=tls)
