"""The asyncio interface: `AsyncClient`, created by `connect`."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import (
    Any,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    TypeVar,
    Union,
    cast,
    overload,
)

from . import messages
from .address import Address, parse_address
from .blobs import BlobReader, BlobWriter, Source, pieces
from .calls import Call
from .coding import CHANGES, Op, Writer
from .connection import Connection, NotSent, is_undone, is_unknown, open_connection
from .cursors import moving
from .errors import (
    AddressError,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    Indeterminate,
    IntegrityError,
    InvalidValue,
    ProtocolError,
    TlsError,
    Unavailable,
    XsError,
)
from .frames import Frame
from .limits import CREDIT_DEFAULT, INLINE_BYTES_MAX, PAGE_BYTES_MAX, PING_BYTES_MAX
from .messages import Batch, Page, ReadOptions, read_options
from .reading import Backoff, Reading, Retry
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
    bound_of,
    checked,
    json_bytes,
    json_value,
    millis,
    patterns_of,
    raw_bytes,
    text_bytes,
)

__all__ = ["AsyncClient", "connect"]

VERSION = "0.1.0"
T = TypeVar("T")


async def connect(
    address: Union[str, "os.PathLike[str]"],
    *,
    token: Optional[str] = None,
    tls: Union[ssl.SSLContext, str, None] = None,
    name: str = f"xs-python/{VERSION}",
    timeout: float = 10.0,
    wait: float = 0.0,
    retry: Retry = Retry(),  # noqa: B008 (it is frozen)
) -> "AsyncClient":
    """Connects to a server: a store directory, its socket, `:port`, `host:port` or
    `xss://host:port` (TLS).

    tls: an SSLContext, or a file with the certificates to trust, for `xss://` addresses.
    timeout: seconds for connecting and for the answer to HELLO.
    wait: seconds to keep trying when nothing listens there yet.

    Raises AddressError, ConnectError, AccessError, Unavailable (the server is full, or blocks a
    client that has shown wrong tokens: try later), ProtocolError.
    """
    client = AsyncClient(address, token=token, tls=tls, name=name, timeout=timeout, retry=retry)
    millis(wait, "wait")
    try:
        await client._connection(give_up=wait)
    except BaseException:
        await client.close()
        raise
    return client


class AsyncClient:
    """A client of one server: any number of requests and streams at a time, from one event loop. It
    connects when needed, and again after a connection is lost: then requests that change nothing
    are sent again, streams continue where they were, and an append without a key or a removal,
    which may or may not have been done, raises ConnectionLost."""

    def __init__(
        self,
        address: Union[str, "os.PathLike[str]"],
        *,
        token: Optional[str] = None,
        tls: Union[ssl.SSLContext, str, None] = None,
        name: str = f"xs-python/{VERSION}",
        timeout: float = 10.0,
        retry: Retry = Retry(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.address: Address = parse_address(address)
        self.retry = checked(retry, Retry, "retry")
        # Encoded before anything is sent, so that the call itself reports a wrong argument.
        messages.hello(name, "" if token is None else token)
        millis(timeout, "timeout")
        if tls is not None and not self.address.tls:
            raise AddressError(f"{self.address}: tls belongs to an address with xss://")
        if tls is not None and not isinstance(tls, (str, ssl.SSLContext)):
            kind = type(tls).__name__
            raise InvalidValue(f"tls is an SSLContext or the name of a file, not {kind}")
        self._tls = _trusting(tls) if isinstance(tls, str) else tls
        self._token, self._name, self._timeout = token, name, timeout
        self._current: Optional[Connection] = None
        self._making: Optional["asyncio.Task[Connection]"] = None
        self._old: Set[Connection] = set()
        self._asleep: Set["asyncio.Future[None]"] = set()
        self._waiting: Set["asyncio.Task[Any]"] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncClient({str(self.address)!r})"

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and everything in progress on it: followers end as if each was
        closed, and everything else raises ClientClosed, since it is incomplete. May be called
        twice."""
        self._closed = True
        for asleep in self._asleep:
            if not asleep.done():
                asleep.set_result(None)
        for task in self._waiting:
            task.cancel()
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait({self._making})
        connections = [*self._old, *([self._current] if self._current else [])]
        for connection in connections:
            connection.abandon(ClientClosed("the client was closed"))
        for connection in connections:
            await connection.closed()
        self._old.clear()

    @property
    def server(self) -> ServerInfo:
        """What the server said about itself when the current or last connection was made."""
        if self._current is None:
            raise ConnectError(f"{self.address}: there was no connection yet")
        return self._current.info

    # Connections.

    async def _sleep(self, seconds: float) -> None:
        """Waits, at most until the client is closed."""
        if self._closed:
            return
        asleep: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        self._asleep.add(asleep)
        try:
            await asyncio.wait({asleep}, timeout=seconds)
        finally:
            self._asleep.discard(asleep)

    async def _connection(self, give_up: Optional[float] = None) -> Connection:
        """The connection for new requests. Makes one if necessary, within at most `give_up`
        seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (self.retry.give_up if give_up is None else give_up)
        while True:
            if self._closed:
                raise ClientClosed("the client was closed")
            current = self._current
            if current is not None and current.is_usable:
                return current
            # A failed attempt may not have been cleared yet: waiting for it again would spin.
            is_mine = self._making is None or self._making.done()
            if self._making is None or is_mine:
                self._making = loop.create_task(self._connect(max(0.0, until - loop.time())))
                self._making.add_done_callback(self._made)
            # A caller that stops waiting does not cancel the connection for others. Nor is the
            # error raised into those that go on: its traceback would keep their frames alive.
            making = self._making
            await asyncio.wait({making})
            if making.cancelled():
                raise ClientClosed("the client was closed")
            error = making.exception()
            if error is None:
                return making.result()
            # The time of another caller ran out, not this one's.
            is_over = is_mine or loop.time() >= until
            if is_over or not (isinstance(error, (ConnectError, Unavailable)) and error.retryable):
                raise error

    def _made(self, task: "asyncio.Task[Connection]") -> None:
        if self._making is task:
            self._making = None
        if not task.cancelled():
            task.exception()

    async def _connect(self, give_up: float) -> Connection:
        loop = asyncio.get_running_loop()
        backoff, until = Backoff(self.retry), loop.time() + give_up
        while True:
            try:
                connection = await open_connection(
                    self.address, self._name, self._token, self._tls, self._timeout
                )
            except (ConnectError, Unavailable) as error:
                details = error.details.retry_after_ms if isinstance(error, Unavailable) else None
                wait = backoff.wait(details)
                if not error.retryable or loop.time() + wait > until:
                    raise
                await asyncio.sleep(wait)
                continue
            if self._closed:
                # The client was closed just after the connection was made.
                connection.abandon(ClientClosed("the client was closed"))
                raise ClientClosed("the client was closed")
            if self._current is not None:
                self._retire(self._current)
            self._current = connection
            return connection

    def _retire(self, connection: Connection) -> None:
        """Lets the work in progress on a connection that is no longer current finish."""
        self._old = {one for one in self._old if one.failure is None}
        if connection.failure is None:
            self._old.add(connection)
            connection.close_when_idle()

    async def _try(
        self, once: Callable[[Connection], Awaitable[T]], again: bool, changes: bool = False
    ) -> T:
        """Does something on a connection, and repeats it if nothing was done or if doing it twice
        is the same as once (`again`). Raises the final error: for work that `changes` something,
        ConnectionLost even if the last attempt did nothing but an earlier one may have done it."""
        loop = asyncio.get_running_loop()
        backoff, until = Backoff(self.retry), loop.time() + self.retry.give_up
        unknown: Optional[XsError] = None
        while True:
            connection: Optional[Connection] = None
            try:
                connection = await self._connection(max(0.0, until - loop.time()))
                return await once(connection)
            except XsError as error:
                wait = self._pause(error, connection, backoff, again, until - loop.time())
                if wait is None:
                    if changes and unknown is not None and is_undone(error):
                        raise ConnectionLost(f"{unknown}; after that: {error}") from error
                    raise
                if is_unknown(error):
                    unknown = unknown or error
            await self._sleep(wait)

    def _pause(
        self,
        error: XsError,
        connection: Optional[Connection],
        backoff: Backoff,
        again: bool,
        left: float,
    ) -> Optional[float]:
        """Seconds to wait before another attempt, of those that are left; None if there is none."""
        if connection is None:
            # Connecting was retried already.
            return None
        if is_unknown(error):
            return backoff.wait() if again and not self._closed and left >= 0 else None
        if isinstance(error, NotSent):
            wait = backoff.wait_unsent()
        elif isinstance(error, Unavailable):
            if error.code == 501:
                connection.draining = connection.draining or error.message
            wait = backoff.wait(error.details.retry_after_ms)
        else:
            return None
        return wait if wait <= left else None

    async def _ask(
        self, op: int, body: Union[bytes, bytearray] = b"", again: bool = True
    ) -> Sequence[bytes]:
        return await self._try(
            lambda connection: connection.ask(op, body), again, changes=op in CHANGES
        )

    # Appending.

    async def append(
        self,
        topic: str,
        body: Union[Body, Source] = None,
        *,
        meta: Json = None,
        json: Json = None,
        ttl: Union[str, Ttl] = FOREVER,
        conditions: Sequence[Condition] = (),
        key: Optional[str] = None,
        durable: bool = False,
    ) -> Stamp:
        """Appends one frame. `body` may also be a file or an iterable of bytes; those, and bodies
        longer than 1 MiB, are uploaded as a blob before the frame is appended.

        key: the store keeps a batch with this key once, so it is sent again automatically after a
        lost connection. durable: answer only when it is synced, whatever the store's policy.
        """
        if body is not None and not isinstance(body, (bytes, bytearray, memoryview, str)):
            body = (await self.put_blob(body)).hash
        frame = NewFrame(topic, cast(Body, body), meta, ttl, json)
        done = await self.append_batch([frame], conditions=conditions, key=key, durable=durable)
        return done.frames[0]

    async def append_batch(
        self,
        frames: Iterable[NewFrame] = (),
        *,
        cursors: Sequence[CursorChange] = (),
        conditions: Sequence[Condition] = (),
        key: Optional[str] = None,
        durable: bool = False,
        remove: Sequence[Bound] = (),
    ) -> Appended:
        """Removes and appends frames and changes cursors, all or nothing."""
        long: Dict[BlobHash, bytes] = {}
        ready = [_ready(frame, long) for frame in all_of(frames, NewFrame, "frames")]
        cursors = all_of(cursors, CursorChange, "changes of cursors")
        conditions = all_of(conditions, Condition, "conditions")
        bounds: List[Any] = all_of(remove, object, "frames to remove")
        gone = [bound_of(bound) for bound in bounds]
        body = messages.append(Batch(ready, cursors, conditions, key, durable, gone))
        put_on = {
            name: await self._try(_putting(whole, name), True) for name, whole in long.items()
        }

        async def once(connection: Connection) -> Sequence[bytes]:
            for name, whole in long.items():
                # A token that is limited to topics may only name blobs that were put on this
                # connection.
                if put_on[name] is not connection:
                    try:
                        put_on[name] = await _putting(whole, name)(connection)
                    except (ConnectionLost, Indeterminate) as error:
                        raise NotSent(f"nothing was appended: {error}") from error
            return await connection.ask(Op.APPEND, body)

        return messages.read_appended((await self._try(once, key is not None, True))[0])

    async def remove(
        self,
        *bounds: Bound,
        within: Optional[Topics] = None,
        durable: bool = False,
        now: bool = False,
    ) -> Sequence[bool]:
        """Removes frames in one batch, and returns for each whether it existed. Not repeated after
        a lost connection: the answer would say that the removed frames did not exist.

        within: if a frame has another topic, nothing is removed and AccessError is raised. now:
        answer only when none of their bytes are left in the store's files, which may take minutes.
        """
        body = messages.remove([bound_of(bound) for bound in bounds], durable, now, within)
        return messages.read_appended((await self._ask(Op.REMOVE, body, False))[0]).removed

    async def import_frames(
        self, frames: Iterable[Frame], *, new_ids: bool = False, durable: bool = False
    ) -> Imported:
        """Appends up to 4,096 frames as another store delivered them, with the bodies that came
        with them (longer ones must be put as blobs first), and returns the outcome of each; a
        refused frame does not affect the others. Frames that exist already are reported as such, so
        an import that was cut off can be repeated from any earlier point.

        new_ids: they get new ids, and can also be found by their old ones. Otherwise they keep
        their ids, which must be above all of the store's: in practice the store is a new one.
        """
        body = messages.import_frames(all_of(frames, Frame, "frames"), new_ids, durable)
        return messages.read_imported((await self._ask(Op.IMPORT, body))[0])

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
    ) -> Read:
        """The stored frames of some topics, in order: `async for frame in client.read(..)`.

        Bodies of up to `bodies` bytes, at most 1 MiB, are delivered with their frames;
        `body(frame)` returns any. `credit` bounds the bytes that the server sends ahead.
        """
        options = read_options(
            topics,
            from_=from_,
            after=after,
            last=last,
            before=before,
            since=since,
            until=until,
            limit=limit,
            reverse=reverse,
        )
        return Read(self, Reading(options), messages.How(credit, bodies))

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
    ) -> Follow:
        """The stored frames, then new ones: items whose `kind` is frame, caught_up, gap, pulse or
        resumed. Continues over lost connections until it is closed or the `limit` is reached.

        resume: continue from another follower's `point`. pulse: seconds between two pulses, 0 for
        none. slow: latest(n) or drop(n); without it, the server waits for a slow follower.
        """
        options = read_options(
            topics,
            from_=from_,
            after=after,
            last=last,
            new=new,
            before=before,
            since=since,
            until=until,
            limit=limit,
            follow=True,
        )
        if resume is not None:
            checked(resume, ResumePoint, "resume", "ResumePoint.parse reads its text")
        if slow is not None:
            checked(slow, Slow, "slow", "latest(n) or drop(n) makes it")
        how = messages.How(credit, bodies, millis(pulse, "pulse"), slow)
        return Follow(self, Reading(options, resume), how)

    @overload
    async def fetch(self, topics: ReadOptions, *, page_bytes: int = ...) -> Page: ...

    @overload
    async def fetch(self, topics: Topics = ..., *, page_bytes: int = ..., **where: Any) -> Page: ...

    async def fetch(
        self,
        topics: Union[Topics, ReadOptions] = "*",
        *,
        page_bytes: int = PAGE_BYTES_MAX,
        **where: Any,
    ) -> Page:
        """One page of a bounded read, selected as for `read`; the next one is `fetch(page.next)`.
        Unlike `read`, it leaves no state on the server."""
        options = topics if isinstance(topics, ReadOptions) else read_options(topics, **where)
        parts = await self._ask(Op.FETCH, messages.fetch(options, page_bytes))
        return messages.read_page(parts[0], options)

    async def get(self, bound: Bound) -> Optional[Frame]:
        """The frame with an id or an offset; None if there is none."""
        parts = await self._ask(Op.GET, messages.get(bound_of(bound)))
        frames = messages.read_list(parts[0]).frames
        return frames[0] if frames else None

    async def _last(self, topics: Topics, n: int, per_topic: bool) -> List[Frame]:
        parts = await self._ask(Op.LAST, messages.last(patterns_of(topics), n, per_topic))
        return [frame for part in parts for frame in messages.read_list(part).frames]

    async def last(self, topics: Topics = "*", n: int = 1) -> List[Frame]:
        """The newest `n` frames of some topics, in the order of the log."""
        return await self._last(topics, n, False)

    async def last_per_topic(self, topics: Topics = "*", n: int = 1) -> List[Frame]:
        """The newest `n` frames of each of some topics, in the order of the log."""
        return await self._last(topics, n, True)

    async def topics(self, topics: Topics = "*") -> List[TopicSummary]:
        """What the store holds of some topics, in byte order of their names."""
        parts = await self._ask(Op.TOPICS, messages.topics(patterns_of(topics)))
        return [one for part in parts for one in messages.read_topics(part)]

    # Blobs.

    async def has_blob(self, name: BlobHash) -> bool:
        """Whether the store has a blob."""
        return (await self._ask(Op.BLOB_HAS, messages.blob_name(name)))[0] == b"\1"

    async def put_blob(self, source: Union[Body, Source, AsyncIterable[bytes]]) -> Blob:
        """Stores bytes, text, a file or an iterable of bytes, whose chunks are sent as they come.
        After a lost connection, bytes are sent again; other sources raise."""
        if isinstance(source, str):
            source = text_bytes(source, "a blob")
        if source is None or isinstance(source, (bytes, bytearray, memoryview)):
            whole = bytes(source or b"")
            if len(whole) <= INLINE_BYTES_MAX:
                return await self._try(lambda connection: _put(connection, whole), True, True)
            name = BlobHash.of(whole)
            await self._try(_putting(whole, name), True, True)
            return Blob(name, len(whole))
        return await self._unless_closed(self._upload(source))

    async def _upload(self, source: Any) -> Blob:
        async with self.blob_writer() as writer:
            async for piece in pieces(source):
                await writer.write(piece)
            return await writer.finish()

    async def _unless_closed(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work that may wait for something other than the server; closing the client
        interrupts it."""
        task = asyncio.ensure_future(work)
        self._waiting.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._waiting.discard(task)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled() and self._closed:
            raise ClientClosed("the client was closed")
        return task.result()

    def blob_writer(self) -> BlobWriter:
        """An upload in chunks: `write`, then `finish`, without which nothing is stored."""
        return BlobWriter(self)

    def get_blob(self, blob: Union[BlobHash, Frame], *, credit: int = CREDIT_DEFAULT) -> BlobReader:
        """The chunks of a blob: `async for piece in client.get_blob(hash)`. The last one arrives
        only if all of them match the hash. Raises NotFound.

        Given the frame whose body it is, it also survives a lost connection with a token that is
        limited to topics: such a token may only name blobs of frames that were delivered on its
        connection.
        """
        return BlobReader(self, blob, credit)

    async def read_blob(self, blob: Union[BlobHash, Frame]) -> bytes:
        """A whole blob."""
        async with self.get_blob(blob) as reader:
            return b"".join([piece async for piece in reader])

    async def body(self, frame: Frame) -> bytes:
        """A frame's body, whether or not it was delivered with it."""
        body = checked(frame, Frame, "what has a body").body
        return body if body is not None else await self.read_blob(frame)

    # Cursors.

    async def cursor_get(self, name: str) -> Optional[Cursor]:
        """A cursor; None if it does not exist."""
        parts = await self._ask(Op.CURSOR_GET, messages.cursor_get(name))
        return messages.read_cursor(name, parts[0])

    async def cursor_set(
        self,
        name: str,
        offset: int,
        *,
        state: bytes = b"",
        expect: Optional[int] = None,
        again: bool = False,
    ) -> int:
        """Moves a cursor and returns its new revision. `expect` is the revision it must have now, 0
        if it must not exist; with a different one, CursorConflict is raised.

        again: with `expect`, repeats the request if the answer was lost. If the cursor then has the
        next revision with this offset and state, it counts as moved: right for a remembered
        position, and wrong for a lock, since another client may have set the same.
        """
        if offset is None:
            raise InvalidValue("a cursor is set to an offset, not None; cursor_remove removes it")
        change = CursorChange(name, offset, state, expect)
        if not again:
            return await self._change(change)
        return await self._try(moving(change), True, True)

    async def cursor_remove(self, name: str, *, expect: Optional[int] = None) -> None:
        """Removes a cursor."""
        await self._change(CursorChange(name, None, b"", expect))

    async def _change(self, change: CursorChange) -> int:
        out = Writer()
        messages.put_cursor_change(out, change)
        return messages.read_number((await self._ask(Op.CURSOR_SET, out.data, False))[0])

    async def cursor_list(self) -> List[CursorSummary]:
        """All cursors, in byte order of their names."""
        parts = await self._ask(Op.CURSOR_LIST)
        return [one for part in parts for one in messages.read_cursors(part)]

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
    ) -> Call:
        """Calls a command; its results are frames: `async for frame in client.call(..)`. Closing it
        before the end cancels the call. `deadline` is in seconds from now.

        Raises NotFound (no such command, or 702 at the deadline) and CommandFailed.
        """
        text = b"" if args is None else json_bytes(args)
        body = b"" if body is None else body
        is_text = isinstance(body, str)
        raw = (text_bytes if is_text else raw_bytes)(body, "a call's body")
        until_ms = 0 if deadline is None else millis(deadline, "deadline")
        return Call(self, name, text, raw, until_ms, bodies, credit)

    async def stats(self) -> Dict[str, Any]:
        """The server's statistics, named as in docs/wire.md."""
        found: Dict[str, Any] = json_value((await self._ask(Op.STATS))[0])
        return found

    # Maintenance: answers arrive when the work has ended, with the names that the subcommand of the
    # same name prints. Paths are absolute and on the server's machine, and only a client on its
    # Unix socket may give one.

    async def _maintain(self, body: bytearray, again: bool = True) -> Dict[str, Any]:
        found: Dict[str, Any] = json_value((await self._ask(Op.MAINTAIN, body, again))[0])
        return found

    async def verify(self) -> Dict[str, Any]:
        """Checks every byte of the store."""
        return await self._maintain(messages.maintain(messages.VERIFY))

    async def compact(self, *, dead_percent: int = 50) -> Dict[str, Any]:
        """Rewrites segments of which at least `dead_percent` is dead."""
        return await self._maintain(messages.maintain(messages.COMPACT, dead_percent=dead_percent))

    async def gc(
        self, *, grace: float = 24 * 3600.0, dead_percent: int = 25, dry_run: bool = False
    ) -> Dict[str, Any]:
        """Removes blobs that nothing names and that are older than `grace` seconds, from packs of
        which at least `dead_percent` is dead. dry_run: only reports what it would do."""
        return await self._maintain(
            messages.maintain(
                messages.GC,
                flags=2 if dry_run else 0,
                dead_percent=dead_percent,
                grace_ms=millis(grace, "grace"),
            )
        )

    async def backup(
        self, to: Union[str, "os.PathLike[str]"], *, link: bool = False
    ) -> Dict[str, Any]:
        """Copies the store to a directory, or only what is new since the last backup there. link:
        files that never change are hard-linked instead."""
        flags = 1 if link else 0
        return await self._maintain(messages.maintain(messages.BACKUP, flags=flags, path=_path(to)))

    async def fork(self, to: Union[str, "os.PathLike[str]"]) -> Dict[str, Any]:
        """Creates an independent store with everything that this one holds. Not repeated after a
        lost connection."""
        return await self._maintain(messages.maintain(messages.FORK, path=_path(to)), False)

    async def ping(self, data: bytes = b"") -> float:
        """Seconds until the server has echoed up to 64 bytes."""
        data = raw_bytes(data, "what a ping carries")
        if len(data) > PING_BYTES_MAX:
            raise InvalidValue(f"a ping carries at most {PING_BYTES_MAX} bytes, not {len(data)}")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        parts = await self._ask(Op.PING, data)
        if parts[0] != data:
            raise ProtocolError("the server sent other bytes back")
        return loop.time() - begun


def _path(path: Union[str, "os.PathLike[str]"]) -> str:
    text = path.__fspath__() if isinstance(path, os.PathLike) else path
    return checked(text, str, "a path")


def _trusting(path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # That of ssl is one too.
        raise TlsError(f"{path}: no certificates to trust: {error.strerror or error}") from error
    except ValueError as error:
        raise TlsError(f"{path!r} names no file: {error}") from error


def _ready(frame: NewFrame, long: Dict[BlobHash, bytes]) -> NewFrame:
    """The frame as it is sent: a long body is added to `long`, and referred to by hash."""
    body = frame.body_bytes()
    if body is None or len(body) <= INLINE_BYTES_MAX:
        return frame
    name = BlobHash.of(body)
    long[name] = body
    return NewFrame(frame.topic, name, frame.meta, frame.ttl, None, frame.meta_json)


def _putting(whole: bytes, name: BlobHash) -> Callable[[Connection], Awaitable[Connection]]:
    """A step for `_try` that makes a blob known on a connection: puts it unless it exists."""

    async def once(connection: Connection) -> Connection:
        if (await connection.ask(Op.BLOB_HAS, name))[0] != b"\1":
            blob = await _put(connection, whole)
            if blob.hash != name:
                raise IntegrityError(f"the server stored {blob.hash} for {name}")
        return connection

    return once


async def _put(connection: Connection, whole: bytes) -> Blob:
    writer = BlobWriter(None, connection)
    try:
        await writer.write(whole)
        return await writer.finish()
    finally:
        await writer.aclose()
