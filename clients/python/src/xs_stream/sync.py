"""The synchronous interface: `Client`, created by `connect`. Its methods are those of AsyncClient,
and block until they are done. A separate thread keeps the connection alive meanwhile. Any number of
threads may share a client, or a stream, each item of which goes to one of them."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
from collections import deque
from typing import (
    Any,
    Deque,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    TypeVar,
    Union,
)

from . import aio
from .address import Address
from .blobs import PIECE, BlobReader, BlobWriter, check_source
from .blobs import Source as AsyncSource
from .calls import Call
from .errors import ClientClosed, InUse
from .frames import Frame
from .limits import CREDIT_DEFAULT, PAGE_BYTES_MAX
from .loop import Loop
from .messages import Page, ReadOptions
from .reading import Item, Retry
from .streams import Follow, Read
from .values import (
    FOREVER,
    Appended,
    Blob,
    BlobHash,
    Body,
    Bound,
    Condition,
    Cursor,
    CursorChange,
    CursorSummary,
    FrameId,
    Imported,
    Json,
    NewFrame,
    ResumePoint,
    ServerInfo,
    Slow,
    Stamp,
    Time,
    Topics,
    TopicSummary,
    Ttl,
    all_of,
    checked,
)

__all__ = [
    "BlobStream",
    "BlobUpload",
    "CallStream",
    "Client",
    "FollowStream",
    "ReadStream",
    "connect",
]

T = TypeVar("T")
R = TypeVar("R", Read, Follow)


def _left(until: Optional[float]) -> Optional[float]:
    """The seconds left until a time."""
    return None if until is None else until - time.monotonic()


def connect(
    address: Union[str, "os.PathLike[str]"],
    *,
    token: Optional[str] = None,
    tls: Union[ssl.SSLContext, str, None] = None,
    name: str = f"xs-python/{aio.VERSION}",
    timeout: float = 10.0,
    wait: float = 0.0,
    retry: Retry = Retry(),  # noqa: B008 (it is frozen)
) -> "Client":
    """Connects to a server, as `xs_stream.aio.connect` does."""
    loop = Loop()
    try:
        inner = loop.run(
            aio.connect(
                address, token=token, tls=tls, name=name, timeout=timeout, wait=wait, retry=retry
            )
        )
    except BaseException:
        loop.stop()
        raise
    loop.owns(inner)
    return Client(loop, inner)


class _Stream(Generic[T]):
    """A stream that is read by blocking. Closing it, or leaving `with`, ends it."""

    def __init__(self, loop: Loop, inner: Any) -> None:
        self._loop = loop
        self._inner = inner

    def __enter__(self: "S") -> "S":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream. May be called twice."""
        with contextlib.suppress(ClientClosed):
            self._loop.run(self._inner.aclose())

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: Optional[float] = None) -> T:
        """The next item. Raises StopIteration at the end, and TimeoutError after `timeout` seconds,
        after which the stream continues. A read or a follow raises InUse in a signal handler that
        interrupts its own `next`."""
        try:
            return self._take(timeout)
        except StopAsyncIteration:
            raise StopIteration from None

    def _take(self, timeout: Optional[float]) -> T:
        taken: T = self._loop.run(self._inner.__anext__(), timeout)
        return taken


S = TypeVar("S", bound=_Stream[Any])


class _Reader(_Stream[T]):
    """Takes all available items at once, so that not every frame costs a switch of threads."""

    def __init__(self, loop: Loop, inner: Union[Read, Follow]) -> None:
        super().__init__(loop, inner)
        self._shown: Deque[Item] = deque()
        self._taken = 0
        # A signal's handler may come here in the middle of what its thread does here.
        self._turn = threading.RLock()
        self._is_taking = False
        self._closed = False

    def __enter__(self: "S2") -> "S2":
        self.open()
        return self

    def open(self, timeout: Optional[float] = None) -> None:
        """Makes the server begin, so that nothing later is missed; iterating and `with` do so too.
        Raises TimeoutError after `timeout` seconds, and may then be called again."""
        self._loop.run(self._inner.open(), timeout)

    def close(self) -> None:
        self._closed = True
        super().close()

    def _take(self, timeout: Optional[float]) -> Any:
        self._loop.check()
        begun = time.monotonic()
        if not self._turn.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutError(f"nothing within {timeout:g} s")
        try:
            if timeout is not None:
                timeout -= time.monotonic() - begun
            with self._alone():
                return self._take_in_turn(timeout)
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises InUse where the thread that has the turn is taking an item already."""
        if self._is_taking:
            raise InUse("next() is under way in this thread, which a signal's handler interrupts")
        try:
            self._is_taking = True
            yield
        finally:
            self._is_taking = False

    def _take_in_turn(self, timeout: Optional[float]) -> Item:
        if self._closed:
            raise StopAsyncIteration
        if not self._shown:
            items: List[Item] = self._loop.run(self._inner._peek(self._taken), timeout)
            self._shown.extend(items)
        return self._show()

    def _show(self) -> Item:
        item = self._shown.popleft()
        self._taken += 1
        self._inner._reading.gave(item, not self._shown)
        return item

    @property
    def position(self) -> Optional[int]:
        """The offset to continue from after the items returned; None before anything is known."""
        position: Optional[int] = self._inner.position
        return position

    @property
    def point(self) -> Optional[ResumePoint]:
        """The position with the store and the epoch in which it is valid: keep it to continue
        later."""
        point: Optional[ResumePoint] = self._inner.point
        return point


S2 = TypeVar("S2", bound=_Reader[Any])


class ReadStream(_Reader[Frame]):
    """The frames of a bounded read, as an iterator."""

    def _take(self, timeout: Optional[float]) -> Frame:
        while True:
            item = super()._take(timeout)
            if isinstance(item, Frame):
                return item


class FollowStream(_Reader[Item]):
    """The items of a follower, as an iterator of frames, caught_up, gaps, pulses and resumed. It
    ends when it or its client is closed."""

    def _take(self, timeout: Optional[float]) -> Item:
        try:
            item: Item = super()._take(timeout)
        except ClientClosed:
            if not self._inner._begun or not self._loop.is_here:
                raise
            # Items that arrived before the client was closed are still returned.
            self._loop.join()
            return self._left()
        return item

    def _left(self) -> Item:
        with self._turn, self._alone():
            if not self._closed and not self._shown:
                self._shown.extend(self._inner._came(self._taken))
            if self._closed or not self._shown:
                raise StopAsyncIteration
            return self._show()


class BlobStream(_Stream[bytes]):
    """The chunks of a blob, as an iterator."""

    _inner: BlobReader

    @property
    def bytes(self) -> Optional[int]:
        """The length of the blob, once the first chunk has arrived."""
        return self._inner.bytes


class CallStream(_Stream[Frame]):
    """The results of a call, as an iterator of frames. Closing it before the end cancels it."""

    _inner: Call

    def __enter__(self) -> "CallStream":
        self.open()
        return self

    def open(self, timeout: Optional[float] = None) -> FrameId:
        """Makes the call, unless it was made already, and returns the id of `<name>.call`. Raises
        TimeoutError after `timeout` seconds, after which the call continues."""
        return self._loop.run(self._inner.open(), timeout)

    @property
    def complete(self) -> Optional[Frame]:
        """The frame `<name>.complete`, once it has arrived."""
        return self._inner.complete


class BlobUpload:
    """An upload: `write` chunks, then `finish`. Leaving `with` before that discards it, and so does
    a TimeoutError after `timeout` seconds."""

    def __init__(self, loop: Loop, inner: BlobWriter) -> None:
        self._loop, self._inner = loop, inner

    def __enter__(self) -> "BlobUpload":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Discards an unfinished upload. May be called twice."""
        with contextlib.suppress(ClientClosed):
            self._loop.run(self._inner.aclose())

    def write(
        self, data: Union[bytes, bytearray, memoryview], *, timeout: Optional[float] = None
    ) -> None:
        """Sends bytes, as fast as the server takes them; overlapping writes take turns."""
        self._loop.run(self._inner.write(data), timeout)

    def finish(self, *, timeout: Optional[float] = None) -> Blob:
        """Sends the rest, after any earlier writes, and waits until it is stored."""
        return self._loop.run(self._inner.finish(), timeout)


class Client:
    """A client of one server whose methods block. AsyncClient documents what they do, take and
    raise; with `timeout`, in seconds, they also raise TimeoutError."""

    def __init__(self, loop: Loop, inner: aio.AsyncClient) -> None:
        self._loop = loop
        self._inner = inner

    def __repr__(self) -> str:
        return f"Client({str(self._inner.address)!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and everything in progress on it: followers end as if each was
        closed, and everything else raises ClientClosed, since it is incomplete. May be called
        twice."""
        try:
            with contextlib.suppress(ClientClosed):
                self._loop.run(self._inner.close())
        finally:
            self._loop.stop()

    @property
    def address(self) -> Address:
        return self._inner.address

    @property
    def server(self) -> ServerInfo:
        """What the server said about itself when the current or last connection was made."""
        return self._inner.server

    # Appending.

    def append(
        self,
        topic: str,
        body: Union[Body, AsyncSource] = None,
        *,
        meta: Json = None,
        json: Json = None,
        ttl: Union[str, Ttl] = FOREVER,
        conditions: Sequence[Condition] = (),
        key: Optional[str] = None,
        durable: bool = False,
        timeout: Optional[float] = None,
    ) -> Stamp:
        """Appends one frame; `timeout` includes the upload of its body."""
        until = None if timeout is None else time.monotonic() + timeout
        if body is not None and not isinstance(body, (bytes, bytearray, memoryview, str)):
            body = self.put_blob(body, timeout=timeout).hash
        return self._loop.run(
            self._inner.append(
                topic,
                body,
                meta=meta,
                json=json,
                ttl=ttl,
                conditions=conditions,
                key=key,
                durable=durable,
            ),
            _left(until),
        )

    def append_batch(
        self,
        frames: Iterable[NewFrame] = (),
        *,
        cursors: Sequence[CursorChange] = (),
        conditions: Sequence[Condition] = (),
        key: Optional[str] = None,
        durable: bool = False,
        remove: Sequence[Bound] = (),
        timeout: Optional[float] = None,
    ) -> Appended:
        """Removes and appends frames and changes cursors, all or nothing."""
        work = self._inner.append_batch(
            all_of(frames, NewFrame, "frames"),
            cursors=cursors,
            conditions=conditions,
            key=key,
            durable=durable,
            remove=remove,
        )
        return self._loop.run(work, timeout)

    def remove(
        self,
        *bounds: Bound,
        within: Optional[Topics] = None,
        durable: bool = False,
        now: bool = False,
        timeout: Optional[float] = None,
    ) -> Sequence[bool]:
        """Removes frames in one batch, and returns for each whether it existed."""
        work = self._inner.remove(*bounds, within=within, durable=durable, now=now)
        return self._loop.run(work, timeout)

    def import_frames(
        self,
        frames: Iterable[Frame],
        *,
        new_ids: bool = False,
        durable: bool = False,
        timeout: Optional[float] = None,
    ) -> Imported:
        """Appends frames as another store delivered them, and returns the outcome of each."""
        frames = all_of(frames, Frame, "frames")
        work = self._inner.import_frames(frames, new_ids=new_ids, durable=durable)
        return self._loop.run(work, timeout)

    # Reading.

    def read(
        self,
        topics: Topics = "*",
        *,
        from_: Optional[Bound] = None,
        after: Optional[Bound] = None,
        last: Optional[int] = None,
        before: Optional[Bound] = None,
        since: Optional[Time] = None,
        until: Optional[Time] = None,
        limit: Optional[int] = None,
        reverse: bool = False,
        bodies: int = 0,
        credit: int = CREDIT_DEFAULT,
    ) -> ReadStream:
        """The stored frames of some topics, in order: `for frame in client.read(..)`."""
        inner = self._inner.read(
            topics,
            from_=from_,
            after=after,
            last=last,
            before=before,
            since=since,
            until=until,
            limit=limit,
            reverse=reverse,
            bodies=bodies,
            credit=credit,
        )
        return ReadStream(self._loop, inner)

    def follow(
        self,
        topics: Topics = "*",
        *,
        from_: Optional[Bound] = None,
        after: Optional[Bound] = None,
        last: Optional[int] = None,
        new: bool = False,
        resume: Optional[ResumePoint] = None,
        before: Optional[Bound] = None,
        since: Optional[Time] = None,
        until: Optional[Time] = None,
        limit: Optional[int] = None,
        bodies: int = 0,
        pulse: float = 0.0,
        slow: Optional[Slow] = None,
        credit: int = CREDIT_DEFAULT,
    ) -> FollowStream:
        """The stored frames, then new ones: `for item in client.follow(..)`."""
        inner = self._inner.follow(
            topics,
            from_=from_,
            after=after,
            last=last,
            new=new,
            resume=resume,
            before=before,
            since=since,
            until=until,
            limit=limit,
            bodies=bodies,
            pulse=pulse,
            slow=slow,
            credit=credit,
        )
        return FollowStream(self._loop, inner)

    def fetch(
        self,
        topics: Union[Topics, ReadOptions] = "*",
        *,
        page_bytes: int = PAGE_BYTES_MAX,
        timeout: Optional[float] = None,
        **where: Any,
    ) -> Page:
        """One page of a bounded read."""
        if isinstance(topics, ReadOptions):
            return self._loop.run(self._inner.fetch(topics, page_bytes=page_bytes), timeout)
        return self._loop.run(self._inner.fetch(topics, page_bytes=page_bytes, **where), timeout)

    def get(self, bound: Bound, *, timeout: Optional[float] = None) -> Optional[Frame]:
        """The frame with an id or an offset; None if there is none."""
        return self._loop.run(self._inner.get(bound), timeout)

    def last(
        self, topics: Topics = "*", n: int = 1, *, timeout: Optional[float] = None
    ) -> List[Frame]:
        """The newest `n` frames of some topics, in the order of the log."""
        return self._loop.run(self._inner.last(topics, n), timeout)

    def last_per_topic(
        self, topics: Topics = "*", n: int = 1, *, timeout: Optional[float] = None
    ) -> List[Frame]:
        """The newest `n` frames of each of some topics, in the order of the log."""
        return self._loop.run(self._inner.last_per_topic(topics, n), timeout)

    def topics(
        self, topics: Topics = "*", *, timeout: Optional[float] = None
    ) -> List[TopicSummary]:
        """What the store holds of some topics, in byte order of their names."""
        return self._loop.run(self._inner.topics(topics), timeout)

    # Blobs.

    def has_blob(self, name: BlobHash, *, timeout: Optional[float] = None) -> bool:
        """Whether the store has a blob."""
        return self._loop.run(self._inner.has_blob(name), timeout)

    def put_blob(
        self, source: Union[Body, AsyncSource], *, timeout: Optional[float] = None
    ) -> Blob:
        """Stores bytes, text, a file or an iterable of bytes, over which it iterates in the
        caller's thread."""
        is_whole = source is None or isinstance(source, (bytes, bytearray, memoryview, str))
        if is_whole or hasattr(source, "__aiter__"):
            return self._loop.run(self._inner.put_blob(source), timeout)
        check_source(source)
        until = None if timeout is None else time.monotonic() + timeout
        with self.blob_writer() as writer:
            read = getattr(source, "read", None)
            parts: Any = iter(lambda: read(PIECE), b"") if read is not None else source
            for part in parts:
                writer.write(part, timeout=_left(until))
            return writer.finish(timeout=_left(until))

    def blob_writer(self) -> BlobUpload:
        """An upload in chunks."""
        return BlobUpload(self._loop, self._inner.blob_writer())

    def get_blob(self, blob: Union[BlobHash, Frame], *, credit: int = CREDIT_DEFAULT) -> BlobStream:
        """The chunks of a blob: `for piece in client.get_blob(hash)`."""
        return BlobStream(self._loop, self._inner.get_blob(blob, credit=credit))

    def read_blob(self, blob: Union[BlobHash, Frame], *, timeout: Optional[float] = None) -> bytes:
        """A whole blob."""
        return self._loop.run(self._inner.read_blob(blob), timeout)

    def body(self, frame: Frame, *, timeout: Optional[float] = None) -> bytes:
        """A frame's body, whether or not it was delivered with it."""
        body = checked(frame, Frame, "what has a body").body
        return body if body is not None else self._loop.run(self._inner.body(frame), timeout)

    # Cursors.

    def cursor_get(self, name: str, *, timeout: Optional[float] = None) -> Optional[Cursor]:
        """A cursor; None if it does not exist."""
        return self._loop.run(self._inner.cursor_get(name), timeout)

    def cursor_set(
        self,
        name: str,
        offset: int,
        *,
        state: bytes = b"",
        expect: Optional[int] = None,
        again: bool = False,
        timeout: Optional[float] = None,
    ) -> int:
        """Moves a cursor and returns its new revision."""
        work = self._inner.cursor_set(name, offset, state=state, expect=expect, again=again)
        return self._loop.run(work, timeout)

    def cursor_remove(
        self, name: str, *, expect: Optional[int] = None, timeout: Optional[float] = None
    ) -> None:
        """Removes a cursor."""
        self._loop.run(self._inner.cursor_remove(name, expect=expect), timeout)

    def cursor_list(self, *, timeout: Optional[float] = None) -> List[CursorSummary]:
        """All cursors, in byte order of their names."""
        return self._loop.run(self._inner.cursor_list(), timeout)

    # Calls and the rest.

    def call(
        self,
        name: str,
        args: Optional[Mapping[str, Json]] = None,
        *,
        body: Union[bytes, str, None] = None,
        deadline: Optional[float] = None,
        bodies: int = 1024 * 1024,
        credit: int = CREDIT_DEFAULT,
    ) -> CallStream:
        """Calls a command; its results are frames: `for frame in client.call(..)`."""
        inner = self._inner.call(
            name, args, body=body, deadline=deadline, bodies=bodies, credit=credit
        )
        return CallStream(self._loop, inner)

    def stats(self, *, timeout: Optional[float] = None) -> Dict[str, Any]:
        """The server's statistics, named as in docs/wire.md."""
        return self._loop.run(self._inner.stats(), timeout)

    # Maintenance.

    def verify(self, *, timeout: Optional[float] = None) -> Dict[str, Any]:
        """Checks every byte of the store."""
        return self._loop.run(self._inner.verify(), timeout)

    def compact(self, *, dead_percent: int = 50, timeout: Optional[float] = None) -> Dict[str, Any]:
        """Rewrites segments of which at least `dead_percent` is dead."""
        return self._loop.run(self._inner.compact(dead_percent=dead_percent), timeout)

    def gc(
        self,
        *,
        grace: float = 24 * 3600.0,
        dead_percent: int = 25,
        dry_run: bool = False,
        timeout: Optional[float] = None,
    ) -> Dict[str, Any]:
        """Removes blobs that nothing names and that are older than `grace` seconds."""
        work = self._inner.gc(grace=grace, dead_percent=dead_percent, dry_run=dry_run)
        return self._loop.run(work, timeout)

    def backup(
        self,
        to: Union[str, "os.PathLike[str]"],
        *,
        link: bool = False,
        timeout: Optional[float] = None,
    ) -> Dict[str, Any]:
        """Copies the store to a directory, or only what is new since the last backup there."""
        return self._loop.run(self._inner.backup(to, link=link), timeout)

    def fork(
        self, to: Union[str, "os.PathLike[str]"], *, timeout: Optional[float] = None
    ) -> Dict[str, Any]:
        """Creates an independent store with everything that this one holds."""
        return self._loop.run(self._inner.fork(to), timeout)

    def ping(self, data: bytes = b"", *, timeout: Optional[float] = None) -> float:
        """Seconds until the server has echoed up to 64 bytes."""
        return self._loop.run(self._inner.ping(data), timeout)
