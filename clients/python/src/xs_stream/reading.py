"""What a reader has seen and where it continues, without a connection: the part of `read`, `follow`
and reconnecting that both interfaces share."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields, replace
from typing import Any, Callable, List, Optional, Tuple, Union

from .coding import Op
from .errors import CorruptRange, InvalidValue, OtherStore, ProtocolError
from .frames import Frame
from .messages import (
    START_AFTER,
    START_FROM,
    START_LAST,
    START_NEW,
    Dropped,
    Ended,
    ReadOptions,
    read_event,
    read_list,
)
from .session import Push
from .values import CaughtUp, Gap, Pulse, Resumed, ResumePoint, ServerInfo

__all__ = ["Backoff", "Item", "Reading", "Retry"]

Item = Union[Frame, CaughtUp, Gap, Pulse, Resumed]
"""An item of a follower; `kind` is frame, caught_up, gap, pulse or resumed."""


@dataclass(frozen=True)
class Retry:
    """How a client retries when the server is away or busy: it waits `first` seconds, then `factor`
    times as long, up to `most`, each time a random part of that between half and all. A request
    gives up after `give_up` seconds, a read or a download after that time without anything new;
    followers never do. With `give_up` 0 nothing is tried twice. `first` and `most` count as at
    least a millisecond. Raises InvalidValue for anything but numbers from 0 on."""

    first: float = 0.05
    most: float = 5.0
    factor: float = 2.0
    give_up: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and value >= 0):
                raise InvalidValue(f"{field.name} is a number from 0 on, not {value!r}")


RETRY_AFTER_MAX = 60.0
"""Maximum seconds that a server can make a client wait."""


WAIT_MIN = 0.001
"""Minimum seconds between two attempts, of which chance may take half: without it, a server that is
away would be polled in a busy loop."""


class Backoff:
    """The delays between successive attempts."""

    def __init__(self, retry: Retry, chance: Callable[[], float] = random.random) -> None:
        self._retry = retry
        self._chance = chance
        self._next = max(WAIT_MIN, retry.first)
        self._is_first = True

    def reset(self) -> None:
        """Resets the delays after a success."""
        self._next = max(WAIT_MIN, self._retry.first)
        self._is_first = True

    def wait_unsent(self) -> float:
        """Seconds to wait after a request found its connection ended: none the first time, since
        that may have been long ago."""
        if not self._is_first:
            return self.wait()
        self._is_first = False
        return 0.0

    def wait(self, at_least_ms: Optional[int] = None) -> float:
        """Seconds to wait before the next attempt."""
        wait = self._next * (0.5 + 0.5 * self._chance())
        self._next = max(WAIT_MIN, min(self._next * self._retry.factor, self._retry.most))
        return max(wait, min((at_least_ms or 0) / 1000, RETRY_AFTER_MAX))


class Reading:
    """One read or follow over as many connections as it takes: `begin` on each of them, `take` for
    each message, and `gave` for each item returned, which moves the position."""

    def __init__(self, options: ReadOptions, point: Optional[ResumePoint] = None) -> None:
        if point is not None:
            options = replace(options, start=START_FROM, bound=point.offset)
        self._options = options
        self.rest = options
        """What is still to be read."""
        self._caught_up = False
        self.started = False
        """A server has accepted it, and its start is fixed."""
        self._seen: Optional[int] = point.offset if point else None
        self._given = self._seen
        self._store: Optional[bytes] = point.store if point else None
        self._epoch = point.epoch if point else 0
        self.done = False
        """Everything to read was returned."""

    @property
    def position(self) -> Optional[int]:
        """The offset to continue from after the items returned; None before anything is known."""
        return self._given

    @property
    def point(self) -> Optional[ResumePoint]:
        """The position with the store and the epoch in which it is valid."""
        if self._given is None or self._store is None:
            return None
        return ResumePoint(self._store, self._epoch, self._given)

    def begin(self, info: ServerInfo) -> ReadOptions:
        """The options to subscribe with on a new connection. Raises OtherStore."""
        if self._store is not None and self._store != info.store:
            raise OtherStore(403, "the position belongs to another store")
        return self.rest

    @property
    def seen_in(self) -> Optional[Tuple[bytes, int]]:
        """The store and the epoch in which the first offset of the rest was seen: the server
        refuses it if frames that were seen there are lost."""
        if self._store is None or self._seen is None or self.rest.start != START_FROM:
            return None
        if not isinstance(self.rest.bound, int):
            # A backward read still begins at the given id, which needs no such check.
            return None
        return self._store, self._epoch

    def began(self, info: ServerInfo) -> Optional[Resumed]:
        """The server has accepted; after the first time, that is reported as an item."""
        self._store, self._epoch = info.store, info.epoch
        if self.started:
            return Resumed(self._seen)
        # The first message fixes which frames are new and which are the last: a later request would
        # select others.
        is_of_now = self.rest.start in (START_NEW, START_LAST) and self._seen is None
        self.started = not (is_of_now and self._options.follow)
        return None

    def gave(self, item: Item, is_last: bool) -> None:
        """Notes that an item was returned, and whether it is the last of those from `take`."""
        if is_last:
            self._given = self._seen
        elif isinstance(item, Frame) and item.offset is not None:
            self._given = item.offset if self._options.reverse else item.offset + 1

    def take(self, push: Push) -> List[Item]:
        """The items in a message. Raises the refusal with which the server ended the stream, and
        CorruptRange if a bounded read cannot continue."""
        items = self._take(push)
        if not items:
            self._given = self._seen
        if not (items and isinstance(items[0], Pulse)):
            self.started = True
        return items

    def _take(self, push: Push) -> List[Item]:
        if push.op == Op.DELIVER:
            return self._frames(push.body)
        if push.op != Op.SUB_EVENT:
            raise ProtocolError(f"op {push.op:#x} does not belong on this stream")
        event = read_event(push.code, push.body)
        if isinstance(event, Ended):
            # Nothing below its start or its position concerns it.
            if self._options.reverse or max(self._start, self._seen or 0) <= event.scanned_to:
                self._move(event.scanned_to)
            self.done = True
        elif isinstance(event, Dropped):
            # At its start it may have waited for frames that do not exist yet.
            if self._start < event.resume:
                self._move(event.resume)
            raise event.refusal
        elif isinstance(event, CaughtUp):
            if self._start <= event.head:
                self._move(max(event.head, self._seen or 0))
            if not self._caught_up:
                self._caught_up = True
                return [event]
        elif isinstance(event, Gap):
            return self._gap(event)
        else:
            return [event]
        return []

    def _frames(self, body: bytes) -> List[Item]:
        frames, scanned_to = read_list(body)
        if not self._options.reverse:
            at = self._seen or 0
            for frame in frames:
                if frame.offset is not None:
                    if frame.offset < at:
                        raise ProtocolError(f"frame {frame.offset} came after frame {at - 1}")
                    at = frame.offset + 1
        if frames or self._start <= scanned_to:
            self.rest = self.rest.going_on(scanned_to, len(frames))
            self._seen = scanned_to
        if self.rest.limit == 0:
            self.done = True
        return list(frames)

    def _gap(self, gap: Gap) -> List[Item]:
        if gap.reason == "corrupt" and gap.first is not None and gap.end is not None:
            reverse = self._options.reverse
            self._move(gap.first if reverse else gap.end)
            if not self._options.follow:
                self._given = self._seen
                raise CorruptRange(gap.first, gap.end, reverse)
        return [gap]

    @property
    def _start(self) -> float:
        """The offset below which nothing is wanted, as long as no wanted frame was seen: infinite
        if an id determines it. It may lie above the head, where the server has nothing to check
        yet, and frames below it must not be returned. Otherwise it is below all."""
        rest = self.rest
        if self._seen is not None or rest.reverse or rest.start not in (START_FROM, START_AFTER):
            return -1
        if not isinstance(rest.bound, int):
            return math.inf
        return rest.bound + (rest.start == START_AFTER)

    def _move(self, offset: int) -> None:
        """Notes how far the server has looked."""
        self.rest = self.rest.going_on(offset, 0)
        self._seen = offset
