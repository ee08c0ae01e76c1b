"""One side of clients/tests/relay.py, in Python: a process that follows or appends while its
server is killed and started again.

relay.py follow STORE COUNT         over asyncio, until COUNT frames were seen
relay.py follow-sync STORE COUNT    the same over the blocking face
relay.py append STORE TOPIC COUNT   batches with keys, one after another
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Dict

import xs_stream
from xs_stream import NewFrame, Retry, aio

STEP = 2000
BATCH = 100
PATIENT = Retry(give_up=120.0)


def tell(text: str) -> None:
    print(text, flush=True)


class Tally:
    """Counts what a follower is given, and fails when a frame is missing, doubled or displaced."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._next: Dict[str, int] = {}
        self._offset = -1
        self.seen = self.resumed = self.caught_up = 0

    def take(self, item: Any) -> bool:
        """Notes an item; whether it was the last."""
        if item.kind == "frame":
            expected = self._next.get(item.topic, 0)
            if item.meta != expected or item.offset <= self._offset:
                raise SystemExit(f"wrong: {item!r} is {item.meta}, wanted {expected}")
            self._next[item.topic] = expected + 1
            self._offset = item.offset
            self.seen += 1
            if self.seen % STEP == 0:
                tell(f"at {self.seen}")
        elif item.kind == "resumed":
            self.resumed += 1
        elif item.kind == "caught_up":
            self.caught_up += 1
        return self.seen == self._count

    def end(self) -> None:
        tell(f"seen {self.seen} resumed {self.resumed} caught_up {self.caught_up}")


async def follow(store: str, count: int) -> None:
    tally = Tally(count)
    client = await aio.connect(store, wait=60, retry=PATIENT)
    async with client, client.follow("relay.*") as items:
        async for item in items:
            if tally.take(item):
                break
    tally.end()


def follow_sync(store: str, count: int) -> None:
    tally = Tally(count)
    with xs_stream.connect(store, wait=60, retry=PATIENT) as client:
        for item in client.follow("relay.*"):
            if tally.take(item):
                break
    tally.end()


async def append(store: str, topic: str, count: int) -> None:
    async with await aio.connect(store, wait=60, retry=PATIENT) as client:
        for first in range(0, count, BATCH):
            frames = [NewFrame(topic, meta=n) for n in range(first, first + BATCH)]
            await client.append_batch(frames, key=f"{topic} {first}")
    tell(f"appended {count}")


def main() -> None:
    what, store, *rest = sys.argv[1:]
    if what == "follow":
        asyncio.run(follow(store, int(rest[0])))
    elif what == "follow-sync":
        follow_sync(store, int(rest[0]))
    else:
        asyncio.run(append(store, rest[0], int(rest[1])))


if __name__ == "__main__":
    main()
