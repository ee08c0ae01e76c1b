"""What a reader has seen and where it goes on, without a connection: the part of `read`, `follow`
and reconnecting that both faces share."""

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
"""What a follower is given; `kind` tells which: frame, caught_up, gap, pulse, resumed."""


@dataclass(frozen=True)
class Retry:
    """How a client goes on when the server is away or busy: it waits `first` seconds, then
    `factor` times as long, up to `most`, each time between half of it and all of it by chance.
    A request gives up after `give_up` seconds, a read or a download after so long without anything
    new; followers never do. `first` and `most` count as a millisecond at least. Raises
    InvalidValue for other than numbers from 0 on."""

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
"""Seconds a server can make a client wait, whatever it asks for."""


WAIT_MIN = 0.001
"""Seconds that an attempt waits after the one before, of which chance may take a half: without any
a server that is away would be asked in a busy loop."""


class Backoff:
    """The waiting times of one attempt after another."""

    def __init__(self, retry: Retry, chance: Callable[[], float] = random.random) -> None:
        self._retry = retry
        self._chance = chance
        self._next = max(WAIT_MIN, retry.first)
        self._is_first = True

    def reset(self) -> None:
        """What was tried has worked."""
        self._next = max(WAIT_MIN, self._retry.first)
        self._is_first = True

    def wait_unsent(self) -> float:
        """Seconds to wait after a request found its connection ended: none the first time, as that
        may be long ago."""
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
    """One read or follow over as many connections as it takes: `begin` on each of them, `take`
    for what comes, and `gave` for what was handed out, which moves the position."""

    def __init__(self, options: ReadOptions, point: Optional[ResumePoint] = None) -> None:
        if point is not None:
            options = replace(options, start=START_FROM, bound=point.offset)
        self._options = options
        self.rest = options
        """What there is still to read."""
        self._caught_up = False
        self.started = False
        """A server has accepted it, and it is known where that has it begin."""
        self._seen: Optional[int] = point.offset if point else None
        self._given = self._seen
        self._store: Optional[bytes] = point.store if point else None
        self._epoch = point.epoch if point else 0
        self.done = False
        """All that there is to read was given."""

    @property
    def position(self) -> Optional[int]:
        """The offset to go on from after what was handed out; None before anything is known."""
        return self._given

    @property
    def point(self) -> Optional[ResumePoint]:
        """The position with the store and the epoch it holds for."""
        if self._given is None or self._store is None:
            return None
        return ResumePoint(self._store, self._epoch, self._given)

    def begin(self, info: ServerInfo) -> ReadOptions:
        """What to subscribe to on a new connection. Raises OtherStore."""
        if self._store is not None and self._store != info.store:
            raise OtherStore(403, "the position belongs to another store")
        return self.rest

    @property
    def seen_in(self) -> Optional[Tuple[bytes, int]]:
        """The store and the epoch in which the offset that the rest begins at was seen: the server
        refuses it when frames that were seen there are lost."""
        if self._store is None or self._seen is None or self.rest.start != START_FROM:
            return None
        if not isinstance(self.rest.bound, int):
            # A read backwards still begins at the id it was given, which needs no such check.
            return None
        return self._store, self._epoch

    def began(self, info: ServerInfo) -> Optional[Resumed]:
        """The server accepted; after the first time there is something to tell."""
        self._store, self._epoch = info.store, info.epoch
        if self.started:
            return Resumed(self._seen)
        # What is new and which the last are is known with what comes first: asked again later,
        # others would be.
        is_of_now = self.rest.start in (START_NEW, START_LAST) and self._seen is None
        self.started = not (is_of_now and self._options.follow)
        return None

    def gave(self, item: Item, is_last: bool) -> None:
        """An item was handed out, the last of those that `take` gave or not."""
        if is_last:
            self._given = self._seen
        elif isinstance(item, Frame) and item.offset is not None:
            self._given = item.offset if self._options.reverse else item.offset + 1

    def take(self, push: Push) -> List[Item]:
        """What a message brings. Raises the refusal with which the server ended the stream, and
        CorruptRange where a bounded read cannot go on."""
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
            # Below where it began or is there is nothing that it could be told of.
            if self._options.reverse or max(self._start, self._seen or 0) <= event.scanned_to:
                self._move(event.scanned_to)
            self.done = True
        elif isinstance(event, Dropped):
            # At its start it may have waited for frames that are still to come.
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
        """The offset below which nothing is wanted, while nothing that is wanted was seen: above
        all when an id says it. It may lie above the head, where there is nothing yet that the
        server could check, and frames that come below it are not to be given. Otherwise below
        all."""
        rest = self.rest
        if self._seen is not None or rest.reverse or rest.start not in (START_FROM, START_AFTER):
            return -1
        if not isinstance(rest.bound, int):
            return math.inf
        return rest.bound + (rest.start == START_AFTER)

    def _move(self, offset: int) -> None:
        """Notes how far the server looked."""
        self.rest = self.rest.going_on(offset, 0)
        self._seen = offset
