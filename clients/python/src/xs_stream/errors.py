"""The errors, by who caused them. `retryable` says whether the same request may be sent again,
unchanged and without checking; nothing here retries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple, Type

__all__ = [
    "AccessError",
    "AddressError",
    "ClientClosed",
    "CommandFailed",
    "ConditionFailed",
    "ConnectError",
    "ConnectionLost",
    "CorruptRange",
    "CursorAhead",
    "CursorConflict",
    "Details",
    "InUse",
    "Indeterminate",
    "IntegrityError",
    "InvalidRequest",
    "InvalidValue",
    "NotFound",
    "OtherStore",
    "ProtocolError",
    "ProtocolRefused",
    "Refusal",
    "StorageError",
    "TlsError",
    "Unavailable",
    "XsError",
]


class XsError(Exception):
    """The base of everything that this package raises."""

    @property
    def retryable(self) -> bool:
        """Whether the same request may be sent again, unchanged and without checking."""
        return False


class AddressError(XsError, ValueError):
    """Text that names no server, or one that may not be used in this way."""


class InvalidValue(XsError, ValueError):
    """An argument that can never be sent because it violates a rule of the protocol; or a frame
    without the requested content: its body was not delivered with it, or is not text or JSON."""


class ConnectError(XsError, ConnectionError):
    """No connection could be made; nothing was done. It is retryable unless there can be no server
    at the address, as below a file, or this user may not use its socket."""

    _is_final = False

    @property
    def retryable(self) -> bool:
        return not self._is_final


class TlsError(ConnectError):
    """The server could not prove its identity, or does not speak TLS."""

    @property
    def retryable(self) -> bool:
        return False


class ConnectionLost(XsError, ConnectionError):
    """The connection ended before the answer: the request may or may not have been done.

    Requests that change nothing, and appends with a key, are repeated by the client itself. If the
    outcome of the first attempt is unknown, it stays unknown when the last one fails; the error of
    that one is the cause.
    """


class ClientClosed(XsError):
    """The client, a stream or an upload was closed. Work that the close interrupted may or may not
    have been done, and a read or a download is incomplete; later requests are not done."""


class InUse(XsError, ValueError):
    """A signal's handler asked a stream for its next item while the thread that it interrupts was
    doing so, as a generator that is already executing raises."""


class ProtocolError(XsError):
    """The server violated the protocol; the connection is closed."""


class IntegrityError(ProtocolError):
    """Bytes that do not match their CRC or their hash."""


class CorruptRange(XsError):
    """Stored frames that the server cannot read, from `first` to before `end`. `resume` is the
    offset to continue from, which is `end`; for a backward read, the one to continue before, which
    is `first`."""

    def __init__(self, first: int, end: int, reverse: bool = False) -> None:
        resume = first if reverse else end
        way = "before" if reverse else "from"
        what = f"frames {first} to {end - 1}" if end - 1 > first else f"frame {first}"
        super().__init__(f"{what} cannot be read; go on {way} {resume}")
        self.first = first
        self.end = end
        self.resume = resume
        self.reverse = reverse

    def __reduce__(self) -> Tuple[Type["CorruptRange"], Tuple[int, int, bool]]:
        return CorruptRange, (self.first, self.end, self.reverse)


@dataclass(frozen=True)
class Details:
    """What a refusal says besides its message; None for what it does not say."""

    retry_after_ms: Optional[int] = None
    cursor: Optional[str] = None
    revision: Optional[int] = None
    limit: Optional[int] = None
    offset: Optional[int] = None
    extension: Optional[int] = None
    condition: Optional[int] = None
    found: Optional[int] = None
    frame: Optional[bytes] = None


CODES: Dict[int, str] = {
    100: "Malformed",
    101: "VersionMismatch",
    102: "TooLarge",
    103: "HelloExpected",
    104: "HelloTimeout",
    105: "FlowControl",
    106: "Stalled",
    200: "Unauthenticated",
    201: "Denied",
    202: "OwnHost",
    300: "InvalidValue",
    301: "UnknownOp",
    302: "OpVersion",
    303: "UnknownExtension",
    304: "BatchTooLarge",
    305: "InvalidRead",
    306: "TooManyStreams",
    307: "KeyReused",
    308: "ImportOrder",
    309: "TooManyCursors",
    400: "CursorConflict",
    401: "CursorAhead",
    402: "ConditionFailed",
    403: "OtherStore",
    500: "Busy",
    501: "Draining",
    502: "StorageFull",
    503: "TooSlow",
    504: "OtherHost",
    600: "ReadOnly",
    601: "Corrupt",
    602: "Closed",
    603: "Internal",
    604: "Unreadable",
    700: "UnknownBlob",
    701: "UnknownCommand",
    702: "DeadlinePassed",
    800: "Indeterminate",
}


class Refusal(XsError):
    """The server refused a request. The subclass corresponds to the class of its code."""

    def __init__(self, code: int, message: str, details: Optional[Details] = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details or Details()

    def __str__(self) -> str:
        return f"{self.code} {self.name}: {self.message}"

    @property
    def name(self) -> str:
        """The name of the code as docs/wire.md spells it; `Other` if it is unknown."""
        return CODES.get(self.code, "Other")


class ProtocolRefused(Refusal):
    """1xx: what this client sent broke the protocol; the connection closes."""


class AccessError(Refusal):
    """2xx: the token is missing or wrong, or the role does not allow it."""


class InvalidRequest(Refusal):
    """3xx: the request cannot succeed as it is."""


class ConditionFailed(Refusal):
    """4xx: a condition does not hold: read the current state, then make a new request."""


class CursorConflict(ConditionFailed):
    """400: the cursor has another revision, `details.revision`."""


class CursorAhead(ConditionFailed):
    """401: frames that were seen are lost, so an offset may belong to another frame now.
    `details.offset` is the offset to continue from."""


class OtherStore(ConditionFailed):
    """403: the position belongs to another store."""


class Unavailable(Refusal):
    """5xx: not now, and nothing was done: the same request may be sent later."""

    @property
    def retryable(self) -> bool:
        return True


class StorageError(Refusal):
    """6xx: the store needs its operator."""


class NotFound(Refusal):
    """7xx: the requested item does not exist."""


class Indeterminate(Refusal):
    """8xx: it may or may not have been done: check before repeating it."""


_CLASSES: Dict[int, Type[Refusal]] = {
    1: ProtocolRefused,
    2: AccessError,
    3: InvalidRequest,
    4: ConditionFailed,
    5: Unavailable,
    6: StorageError,
    7: NotFound,
    8: Indeterminate,
}

_SPECIAL: Dict[int, Type[Refusal]] = {400: CursorConflict, 401: CursorAhead, 403: OtherStore}


def refusal_of(code: int, message: str, details: Optional[Details] = None) -> Refusal:
    """The exception for a code. An unknown class is as final as any."""
    kind = _SPECIAL.get(code) or _CLASSES.get(code // 100, Refusal)
    return kind(code, message, details)


class CommandFailed(XsError):
    """A command answered with `<name>.error`. `code` is its name for the failure, if any; `meta` is
    everything it says about it."""

    def __init__(self, name: str, meta: Dict[str, object]) -> None:
        code, message = meta.get("code"), meta.get("message")
        super().__init__(f"{name}: {message or 'failed without a message'}")
        self.command = name
        self.code = code if isinstance(code, str) else None
        self.meta = meta

    def __reduce__(self) -> Tuple[Type["CommandFailed"], Tuple[str, Dict[str, object]]]:
        return CommandFailed, (self.command, self.meta)
