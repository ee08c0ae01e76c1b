"""The bodies of requests, responses and pushes, one function each, in the order of docs/wire.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import List, NamedTuple, Optional, Sequence, Tuple, Union

from .coding import Op, Reader, Writer, read_extensions
from .errors import Details, InvalidValue, ProtocolError, Refusal, refusal_of
from .frames import Frame, FrameList, put_frame_list, read_frame_list
from .limits import (
    BATCH_RECORDS_MAX,
    BODY_WITH_FRAME_MAX,
    CONDITIONS_MAX,
    CREDIT_MAX,
    CURSOR_STATE_BYTES_MAX,
    DAY_MS,
    LAST_MAX,
    META_BYTES_MAX,
    NAME_BYTES_MAX,
    NO_OFFSET,
    PAGE_BYTES_MAX,
    PATH_BYTES_MAX,
    PEER_NAME_BYTES_MAX,
    PERCENT_MAX,
    PULSE_MS_MIN,
    SERVER_MESSAGE_BYTES_MAX,
    TOKEN_BYTES_MAX,
    TOPIC_BYTES_MAX,
)
from .values import (
    Appended,
    BlobHash,
    Bound,
    CaughtUp,
    Condition,
    Cursor,
    CursorChange,
    CursorSummary,
    FrameId,
    Gap,
    Imported,
    NewFrame,
    Origin,
    Outcome,
    Pulse,
    ServerInfo,
    Slow,
    Stamp,
    Time,
    Topics,
    TopicSummary,
    Ttl,
    bound_of,
    checked,
    is_within,
    no_ttl,
    patterns_of,
    raw_bytes,
    text_bytes,
    time_of,
)

ROLES = ("read", "append", "admin", "host")
EXT_HOST = 1
EXT_CONDITIONS, EXT_KEY, EXT_WITHIN = 1, 2, 3
EXT_RESUME, EXT_SLOW = 1, 2
GAPS = {1: "corrupt", 2: "ephemeral", 3: "conflated"}


def hello(name: str, token: str, host: Optional[Tuple[bytes, str]] = None) -> bytearray:
    """HELLO; `host` is the instance and the processor of a client that runs modules."""
    out = Writer()
    for number in (1, 1, 1, 1):
        out.u16(number)
    out.u64(0)
    out.u32(SERVER_MESSAGE_BYTES_MAX)
    out.text(name, PEER_NAME_BYTES_MAX, "client's name")
    out.text(token, TOKEN_BYTES_MAX, "token")
    if host is not None:
        name_of = Writer()
        name_of.text(host[1], TOPIC_BYTES_MAX, "processor")
        out.extensions([(EXT_HOST, host[0] + bytes(name_of.data))])
    return out.data


def read_hello(body: bytes) -> ServerInfo:
    reader = Reader(body)
    version, records, role = reader.u16("version"), reader.u16("version"), reader.u8("role")
    if version != 1 or records != 1 or role >= len(ROLES):
        raise ProtocolError(f"the server chose version {version}, records {records}, role {role}")
    reader.take(3 + 8, "features")
    store = reader.take(16, "store")
    epoch, head = reader.u64("epoch"), reader.u64("head")
    limits = [reader.u32("limits") for _ in range(6)]
    name = reader.text("name")
    ops = []
    for _ in range(reader.u16("ops")):
        op, _, oldest = reader.u8("op"), reader.u8("op"), reader.u16("op")
        ops.append((op, oldest, reader.u16("op")))
    most, requests, streams, chunk, window, records = limits
    return ServerInfo(
        name,
        version,
        ROLES[role],
        store,
        epoch,
        head,
        most,
        requests,
        streams,
        chunk,
        window,
        records,
        tuple(ops),
    )


def read_refusal(code: int, body: bytes) -> Refusal:
    reader = Reader(body)
    message = reader.text("message")
    found = {}
    for tag, value in read_extensions(reader):
        if tag == 1:
            found["retry_after_ms"] = value.u32("detail")
        elif tag == 2:
            found["revision"] = value.u64("detail")
            found["cursor"] = value.rest().decode(errors="replace")  # type: ignore[assignment]
        elif tag == 3:
            found["limit"] = value.u64("detail")
        elif tag == 4:
            found["offset"] = value.u64("detail")
        elif tag == 5:
            found["extension"] = value.u16("detail")
        elif tag == 6:
            found["condition"], found["found"] = value.u32("detail"), value.u64("detail")
        elif tag == 7:
            found["frame"] = value.id("detail")  # type: ignore[assignment]
    return refusal_of(code, message, Details(**found))  # type: ignore[arg-type]


# APPEND


@dataclass(frozen=True)
class Batch:
    """What one APPEND stores, all or nothing."""

    frames: Sequence[NewFrame]
    cursors: Sequence[CursorChange] = ()
    conditions: Sequence[Condition] = ()
    key: Optional[str] = None
    durable: bool = False
    remove: Sequence[Union[int, FrameId]] = ()
    within: Optional[Topics] = None


_FRAME = struct.Struct("<BBBBI")


def append(batch: Batch, origins: Sequence[Optional[Origin]] = ()) -> bytearray:
    out = Writer()
    if len(batch.frames) + len(batch.cursors) + len(batch.remove) > BATCH_RECORDS_MAX:
        raise InvalidValue(
            f"a batch has at most {BATCH_RECORDS_MAX} frames, cursor changes and removals"
        )
    out.u8(1 if batch.durable else 0)
    out.u8(0)
    out.u16(len(batch.frames))
    out.u16(len(batch.cursors))
    out.u16(len(batch.remove))
    for at, frame in enumerate(batch.frames):
        _put_frame(out, frame, origins[at] if at < len(origins) else None)
    for change in batch.cursors:
        put_cursor_change(out, change)
    for bound in batch.remove:
        out.bound(bound)
    extensions: List[Tuple[int, bytes]] = []
    if batch.conditions:
        extensions.append((EXT_CONDITIONS, _conditions(batch.conditions)))
    if batch.key is not None:
        extensions.append((EXT_KEY, _name(batch.key, "key")))
    if batch.within is not None:
        extensions.append((EXT_WITHIN, _patterns(batch.within)))
    out.extensions(extensions)
    return out.data


def _put_frame(out: Writer, frame: NewFrame, origin: Optional[Origin]) -> None:
    topic, meta, body = text_bytes(frame.topic, "a topic"), frame.meta_bytes(), frame.body_bytes()
    ttl = frame.ttl if isinstance(frame.ttl, Ttl) else Ttl.parse(frame.ttl)
    if ttl.number >= 2 and ttl.value == 0:
        raise no_ttl(ttl)
    if not 1 <= len(topic) <= TOPIC_BYTES_MAX:
        raise InvalidValue(f"a topic has 1 to {TOPIC_BYTES_MAX} bytes, not {len(topic)}")
    if len(meta) > META_BYTES_MAX:
        raise InvalidValue(f"meta has at most {META_BYTES_MAX} bytes, not {len(meta)}")
    stored = isinstance(body, BlobHash)
    flags = (2 if stored else 1 if body else 0) | (4 if origin else 0)
    out.raw(_FRAME.pack(flags, ttl.number, len(topic), 0, len(meta)))
    if ttl.number >= 2:
        out.u64(ttl.value)
    if stored:
        out.raw(body or b"")
    elif body:
        out.u32(len(body))
    if origin:
        out.raw(origin.processor)
        out.raw(origin.input or bytes(16))
        out.u64(NO_OFFSET if origin.input_offset is None else origin.input_offset)
        out.u32(origin.hops)
        out.u32(0)
    out.raw(topic)
    out.raw(meta)
    if body and not stored:
        out.raw(body)


def _name(text: str, what: str) -> bytes:
    raw = text_bytes(text, f"a {what}")
    if not 1 <= len(raw) <= NAME_BYTES_MAX:
        raise InvalidValue(f"a {what} has 1 to {NAME_BYTES_MAX} bytes, not {len(raw)}")
    return raw


def put_cursor_change(out: Writer, change: CursorChange) -> None:
    name, kept = _name(change.name, "cursor's name"), change.offset is not None
    state = raw_bytes(change.state, "a cursor's state")
    if len(state) > CURSOR_STATE_BYTES_MAX:
        raise InvalidValue(f"a cursor's state has at most {CURSOR_STATE_BYTES_MAX} bytes")
    out.u8((1 if kept else 0) | (2 if change.expect is not None else 0))
    out.u8(len(name))
    out.u16(0)
    out.u32(len(state))
    out.u64(0 if change.expect is None else change.expect)
    out.u64(0 if change.offset is None else change.offset)
    out.raw(name)
    out.raw(state)


def _patterns(patterns: Topics) -> bytes:
    out = Writer()
    out.patterns(patterns_of(patterns))
    return bytes(out.data)


def _conditions(conditions: Sequence[Condition]) -> bytes:
    if len(conditions) > CONDITIONS_MAX:
        raise InvalidValue(f"a batch has at most {CONDITIONS_MAX} conditions")
    out = Writer()
    out.u16(len(conditions))
    out.u16(0)
    for condition in conditions:
        out.u8(condition.kind)
        if condition.kind != 2:
            out.u64(condition.offset)
        if condition.kind != 3:
            out.patterns(condition.topics)
    return bytes(out.data)


def read_appended(body: bytes) -> Appended:
    reader = Reader(body)
    head, flags, _ = reader.u64("head"), reader.u8("flags"), reader.u8("reserved")
    frames, cursors = reader.u16("frames"), reader.u16("cursors")
    removals = reader.u16("removals")
    stamps = []
    for _ in range(frames):
        made, offset = reader.id("id"), reader.u64("offset")
        stamps.append(Stamp(made, None if offset == NO_OFFSET else offset))
    revisions = [reader.u64("revision") for _ in range(cursors)]
    removed = [reader.u8("removal") == 1 for _ in range(removals)]
    return Appended(stamps, revisions, bool(flags & 1), bool(flags & 2), head, removed)


def remove(
    bounds: Sequence[Union[int, FrameId]], durable: bool, now: bool, within: Optional[Topics]
) -> bytearray:
    if len(bounds) > BATCH_RECORDS_MAX:
        raise InvalidValue(f"at most {BATCH_RECORDS_MAX} frames are removed at a time")
    out = Writer()
    out.u8((1 if durable else 0) | (2 if now else 0))
    out.u8(0)
    out.u16(len(bounds))
    for bound in bounds:
        out.bound(bound)
    if within is not None:
        out.extensions([(EXT_WITHIN, _patterns(within))])
    return out.data


def import_frames(frames: Sequence[Frame], new_ids: bool, durable: bool) -> bytearray:
    if len(frames) > BATCH_RECORDS_MAX:
        raise InvalidValue(f"at most {BATCH_RECORDS_MAX} frames are imported at a time")
    out = Writer()
    out.u8(1 if durable else 0)
    out.u8(2 if new_ids else 1)
    out.raw(bytes(6))
    put_frame_list(out, frames)
    return out.data


def read_imported(body: bytes) -> Imported:
    reader = Reader(body)
    head, flags, _ = reader.u64("head"), reader.u8("flags"), reader.u8("reserved")
    outcomes = [_outcome(reader.u16("outcome")) for _ in range(reader.u16("frames"))]
    return Imported(outcomes, bool(flags & 1), head)


def _outcome(number: int) -> Outcome:
    return Outcome(("new", "there")[number]) if number < 2 else Outcome("refused", number)


# Reading

START_FIRST, START_FROM, START_AFTER, START_LAST, START_NEW = range(5)


@dataclass(frozen=True)
class ReadOptions:
    """What a read selects, in the protocol's terms; created by read_options."""

    topics: Sequence[str] = ("*",)
    start: int = START_FIRST
    bound: Union[int, FrameId, None] = None
    """The bound of START_FROM and START_AFTER, or the number of START_LAST."""
    before: Union[int, FrameId, None] = None
    since_ms: Optional[int] = None
    until_ms: Optional[int] = None
    limit: Optional[int] = None
    reverse: bool = False
    follow: bool = False

    def put(self, out: Writer) -> None:
        given = (self.before, self.since_ms, self.until_ms, self.limit)
        flags = (1 if self.reverse else 0) | (2 if self.follow else 0)
        out.u8(flags | sum(4 << at for at, one in enumerate(given) if one is not None))
        out.u8(self.start)
        if self.start in (START_FROM, START_AFTER):
            out.bound(self.bound or 0)
        elif self.start == START_LAST and isinstance(self.bound, int):
            out.u64(self.bound)
        if self.before is not None:
            out.bound(self.before)
        for number in (self.since_ms, self.until_ms, self.limit):
            if number is not None:
                out.u64(number)
        out.patterns(self.topics)

    def going_on(self, scanned_to: int, taken: int) -> "ReadOptions":
        """The rest of the read after `taken` frames, up to `scanned_to`."""
        limit = self.limit
        if self.start == START_LAST and isinstance(self.bound, int) and not self.follow:
            limit = self.bound if limit is None else min(limit, self.bound)
        if limit is not None:
            limit = max(0, limit - taken)
        if self.reverse:
            start = START_FIRST if self.start == START_LAST else self.start
            return replace(self, start=start, before=scanned_to, limit=limit)
        return replace(self, start=START_FROM, bound=scanned_to, limit=limit)


def read_options(
    topics: Topics = "*",
    *,
    from_: Optional[Bound] = None,
    after: Optional[Bound] = None,
    last: Optional[int] = None,
    new: bool = False,
    before: Optional[Bound] = None,
    since: Optional[Time] = None,
    until: Optional[Time] = None,
    limit: Optional[int] = None,
    reverse: bool = False,
    follow: bool = False,
) -> ReadOptions:
    """Read options in the form that users give them. Raises InvalidValue."""
    if sum((from_ is not None, after is not None, last is not None, bool(new))) > 1:
        raise InvalidValue("a read begins in one place: from_, after, last or new")
    if reverse and follow:
        raise InvalidValue("what is followed cannot be read backwards")
    start, bound = START_FIRST, None
    if from_ is not None:
        start, bound = START_FROM, bound_of(from_)
    elif after is not None:
        start, bound = START_AFTER, bound_of(after)
    elif last is not None:
        if not is_within(last, 0, NO_OFFSET):
            raise InvalidValue(f"{last!r} is not a number of frames")
        start, bound = START_LAST, last
    elif new:
        start = START_NEW
    return ReadOptions(
        patterns_of(topics),
        start,
        bound,
        None if before is None else bound_of(before),
        None if since is None else time_of(since),
        None if until is None else time_of(until),
        limit,
        reverse,
        follow,
    )


def fetch(options: ReadOptions, page_bytes: int) -> bytearray:
    if not is_within(page_bytes, 1, PAGE_BYTES_MAX):
        raise InvalidValue(f"a page has 1 to {PAGE_BYTES_MAX} bytes, not {page_bytes!r}")
    out = Writer()
    out.u32(page_bytes)
    options.put(out)
    return out.data


class Page(NamedTuple):
    """One page of a bounded read. `next` holds the options of the next page; None at the end."""

    frames: List[Frame]
    head: int
    scanned_to: int
    next: Optional[ReadOptions]


def read_page(body: bytes, options: ReadOptions) -> Page:
    reader = Reader(body)
    head, more, _ = reader.u64("head"), reader.u32("more"), reader.u32("reserved")
    frames, scanned_to = read_frame_list(reader, body)
    following = None
    if more:
        if not options.reverse and options.before is None:
            options = replace(options, before=head)
        following = options.going_on(scanned_to, len(frames))
        if following.limit == 0:
            following = None
        elif following == options and not frames:
            raise ProtocolError("the server gave a page that leads to itself")
    return Page(frames, head, scanned_to, following)


def get(bound: Union[int, FrameId]) -> bytearray:
    out = Writer()
    out.bound(bound)
    return out.data


def last(topics: Sequence[str], n: int, per_topic: bool) -> bytearray:
    if not is_within(n, 0, LAST_MAX):
        raise InvalidValue(f"last takes up to {LAST_MAX} frames, not {n!r}")
    out = Writer()
    out.u64(n)
    out.u8(1 if per_topic else 0)
    out.patterns(topics)
    return out.data


def topics(patterns: Sequence[str]) -> bytearray:
    out = Writer()
    out.patterns(patterns)
    return out.data


def read_list(body: bytes) -> FrameList:
    return read_frame_list(Reader(body), body)


def read_topics(body: bytes) -> List[TopicSummary]:
    reader, found = Reader(body), []
    while reader.left:
        count, size = reader.u64("count"), reader.u64("bytes")
        first, newest = reader.id("id"), reader.id("id")
        offset = reader.u64("offset")
        found.append(TopicSummary(reader.text("topic"), count, size, first, newest, offset))
    return found


# Streams


@dataclass(frozen=True)
class How:
    """How a subscription is served."""

    credit: int
    bodies: int = 0
    pulse_ms: int = 0
    slow: Optional[Slow] = None


def subscribe(
    options: ReadOptions, how: How, seen: Optional[Tuple[bytes, int]] = None
) -> bytearray:
    """`seen` is the store and the epoch in which the start offset was seen."""
    credit, bodies, pulse_ms = how.credit, how.bodies, how.pulse_ms
    check_bodies(bodies)
    check_credit(credit)
    if pulse_ms and not PULSE_MS_MIN <= pulse_ms <= DAY_MS:
        raise InvalidValue(f"a pulse takes {PULSE_MS_MIN} ms to a day, not {pulse_ms} ms")
    out = Writer()
    out.u32(credit)
    out.u32(bodies)
    out.u64(pulse_ms)
    options.put(out)
    extensions = []
    if seen is not None:
        inner = Writer()
        inner.raw(seen[0])
        inner.u64(seen[1])
        extensions.append((EXT_RESUME, bytes(inner.data)))
    if how.slow is not None:
        inner = Writer()
        inner.u8(how.slow.policy)
        inner.u64(how.slow.behind)
        extensions.append((EXT_SLOW, bytes(inner.data)))
    out.extensions(extensions)
    return out.data


def check_credit(credit: int) -> None:
    """With a credit of 0, nothing would ever arrive, so nothing could be granted again."""
    if not is_within(credit, 1, CREDIT_MAX - 1):
        raise InvalidValue(f"a stream has a credit of 1 to {CREDIT_MAX - 1} bytes, not {credit!r}")


def check_bodies(bodies: int) -> None:
    if not is_within(bodies, 0, BODY_WITH_FRAME_MAX):
        most = BODY_WITH_FRAME_MAX
        raise InvalidValue(f"bodies with frames have at most {most} bytes, not {bodies!r}")


class Ended(NamedTuple):
    """The limit is reached, or without follow everything was delivered."""

    scanned_to: int


class Dropped(NamedTuple):
    """The server ended the stream."""

    refusal: Refusal
    resume: int


StreamEvent = Union[CaughtUp, Pulse, Gap, Dropped, Ended]


def is_pulse(op: int, body: bytes) -> bool:
    """Whether a message is a pulse, which only says that the server is alive."""
    return op == Op.SUB_EVENT and body[:1] == b"\2"


def is_last(op: int, more: bool, body: bytes) -> bool:
    """Whether a message is the last of its stream: DROPPED, ENDED, the end of a blob."""
    return body[:1] in (b"\4", b"\5") if op == Op.SUB_EVENT else op == Op.BLOB_CHUNK and not more


def read_event(code: int, body: bytes) -> StreamEvent:
    """Reads a SUB_EVENT. Raises ProtocolError for an event that was not requested: one that is not
    understood could report missing frames."""
    reader = Reader(body)
    event = reader.u8("event")
    if event == 4:
        resume = reader.u64("resume")
        return Dropped(read_refusal(code, reader.rest()), resume)
    told = _simple_event(event, reader)
    reader.end("event")
    return told


def _simple_event(event: int, reader: Reader) -> StreamEvent:
    if event == 1:
        return CaughtUp(reader.u64("head"))
    if event == 2:
        return Pulse()
    if event == 3:
        kind, first, end = reader.u8("gap"), reader.u64("gap"), reader.u64("gap")
        if kind not in GAPS:
            raise ProtocolError(f"the server told of a gap of kind {kind}")
        return Gap(GAPS[kind], count=first) if kind == 2 else Gap(GAPS[kind], first, end)
    if event == 5:
        return Ended(reader.u64("scanned_to"))
    raise ProtocolError(f"the server sent the event {event}")


def credit(count: int) -> bytearray:
    out = Writer()
    out.u64(count)
    return out.data


def read_number(body: bytes) -> int:
    return Reader(body).u64("number")


# Blobs, calls, cursors


def blob_name(name: BlobHash) -> BlobHash:
    return checked(name, BlobHash, "a blob's name", "BlobHash.parse reads its text")


def blob_get(name: BlobHash, grant: int) -> bytearray:
    check_credit(grant)
    out = Writer()
    out.raw(blob_name(name))
    out.u32(grant)
    return out.data


def call(
    name: str, args: bytes, body: bytes, deadline_ms: int, grant: int, bodies: int
) -> bytearray:
    check_bodies(bodies)
    check_credit(grant)
    if not 0 <= deadline_ms <= DAY_MS:
        raise InvalidValue("a deadline is at most a day from now")
    out = Writer()
    out.u32(grant)
    out.u32(bodies)
    out.u64(deadline_ms)
    out.u32(len(args))
    out.u32(len(body))
    out.text(name, NAME_BYTES_MAX, "command's name")
    out.raw(args)
    out.raw(body)
    return out.data


def cursor_get(name: str) -> bytearray:
    out = Writer()
    out.text(name, NAME_BYTES_MAX, "cursor's name")
    return out.data


def read_cursor(name: str, body: bytes) -> Optional[Cursor]:
    if not body:
        return None
    reader = Reader(body)
    revision, epoch = reader.u64("revision"), reader.u64("epoch")
    offset, time = reader.u64("offset"), reader.u64("time")
    return Cursor(name, revision, epoch, offset, time, reader.rest())


def read_cursors(body: bytes) -> List[CursorSummary]:
    reader, found = Reader(body), []
    while reader.left:
        numbers = [reader.u64("cursor") for _ in range(5)]
        found.append(CursorSummary(reader.text("name"), *numbers))
    return found


# MAINTAIN

VERIFY, COMPACT, GC, BACKUP, FORK = range(1, 6)


def maintain(
    what: int, *, flags: int = 0, dead_percent: int = 0, grace_ms: int = 0, path: str = ""
) -> bytearray:
    if not is_within(dead_percent, 1 if what == COMPACT else 0, PERCENT_MAX):
        raise InvalidValue(f"{dead_percent!r} is no percentage of dead bytes")
    out = Writer()
    out.u8(what)
    out.u8(flags)
    out.u8(dead_percent)
    out.u8(0)
    out.u64(grace_ms)
    out.text(path, PATH_BYTES_MAX, "path")
    return out.data
