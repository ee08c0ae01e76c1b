"""Runs the steps of clients/conformance/*.json over one face of the client. clients/conformance
/README.md says what each verb does; every verb has a method `do_<verb>` here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import xs_stream
from xs_stream import BlobHash, CursorChange, Frame, NewFrame, ResumePoint, aio

from .cutter import Cutter
from .support import CONFORMANCE, PATIENCE, XS, Server


class SyncFace:
    """The synchronous face as it is."""

    name = "sync"

    def do(self, value: Any) -> Any:
        return value

    def connect(self, store: str, **options: Any) -> Any:
        return xs_stream.connect(store, **options)

    def next(self, stream: Any) -> Any:
        return stream.next(PATIENCE)

    def close(self, stream: Any) -> None:
        stream.close()

    def end(self) -> None:
        pass


class AsyncFace:
    """The asyncio face, one step of the loop after another."""

    name = "asyncio"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def do(self, value: Any) -> Any:
        if not asyncio.iscoroutine(value):
            return value
        return self._loop.run_until_complete(asyncio.wait_for(value, PATIENCE))

    def connect(self, store: str, **options: Any) -> Any:
        return self.do(aio.connect(store, **options))

    def next(self, stream: Any) -> Any:
        try:
            return self.do(stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self, stream: Any) -> None:
        self.do(stream.aclose())

    def end(self) -> None:
        self._loop.close()


def plain(value: Any) -> Any:
    """A value as the steps write it: names in snake case, bytes as text, ids as text."""
    if isinstance(value, Frame):
        names = ("topic", "id", "offset", "meta", "ttl", "hash", "body", "body_bytes", "origin")
        return {"kind": "frame", **{name: plain(getattr(value, name)) for name in names}}
    if isinstance(value, (xs_stream.FrameId, BlobHash, xs_stream.Ttl)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        fields = {name: plain_field(name, getattr(value, name)) for name in vars(value)}
        return {name: one for name, one in fields.items()}
    return value


def plain_field(name: str, value: Any) -> Any:
    return value.hex() if name == "store" else plain(value)


def difference(expected: Any, found: Any, at: str = "") -> Optional[str]:
    """Where what was found is not what was expected; None when it is."""
    if expected == "*any":
        return None if found is not None else f"{at}: nothing"
    if expected == "*int":
        return None if type(found) is int else f"{at}: {found!r} is no number"
    if expected == "*many":
        return None if type(found) is int and found > 1 else f"{at}: {found!r} is not many"
    if expected == "*id":
        fits = isinstance(found, str) and re.fullmatch(r"[0-9a-z]{25}", found)
        return None if fits else f"{at}: {found!r} is no id"
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return f"{at}: {found!r} is no object"
        found_at = [difference(one, found.get(key), f"{at}.{key}") for key, one in expected.items()]
        return next((one for one in found_at if one), None)
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return f"{at}: wanted {len(expected)} of {found!r}"
        found_at = [difference(one, found[n], f"{at}[{n}]") for n, one in enumerate(expected)]
        return next((one for one in found_at if one), None)
    same = type(expected) is type(found) and expected == found
    return None if same else f"{at}: wanted {expected!r}, found {found!r}"


class Failure(AssertionError):
    """A step did not do what it should."""


class Runner:
    """One server and the cases of one file."""

    def __init__(self, face: Any, script: Dict[str, Any]) -> None:
        self._face = face
        self._modules: Optional[str] = None
        if script.get("modules"):
            # The server keeps files of its own beside the modules.
            self._modules = tempfile.mkdtemp(prefix="xs-py-modules-")
            shutil.copytree(CONFORMANCE / "modules", self._modules, dirs_exist_ok=True)
        modules = Path(self._modules) if self._modules else None
        self.server = Server(modules, bool(script.get("tls")))
        self._client = face.connect(self.server.store, wait=PATIENCE)
        self._owner = self._client
        self._saved: Dict[str, Any] = {}
        self._streams: Dict[str, Any] = {}
        self._frames: Dict[str, List[Frame]] = {}
        self.used: List[str] = []
        if self._modules:
            self._await_modules()

    def close(self) -> None:
        self._face.do(self._client.close())
        self._face.end()
        self.server.close()
        if self._modules:
            shutil.rmtree(self._modules)

    def _await_modules(self) -> None:
        wanted = {path.stem for path in (CONFORMANCE / "modules" / "commands").iterdir()}
        follow = self._client.follow("xs.command.*")
        while wanted:
            item = self._face.next(follow)
            if item.kind == "frame" and item.topic.endswith(".active"):
                wanted.discard(item.topic.split(".")[2])
        self._face.close(follow)

    # Steps.

    def run(self, steps: List[Dict[str, Any]]) -> None:
        for number, raw in enumerate(steps, 1):
            step = self._filled(raw)
            verb = step.pop("do")
            self.used.append(verb)
            try:
                self._step(verb, step)
            except Failure as error:
                raise Failure(f"step {number}, {json.dumps(raw)}: {error}") from error
            except Exception as error:
                raise Failure(f"step {number}, {json.dumps(raw)}: {error!r}") from error

    def _step(self, verb: str, step: Dict[str, Any]) -> None:
        error, expected = step.pop("error", None), step.pop("expect", None)
        wants, save = "expect" in step or expected is not None, step.pop("save", None)
        field, count = step.pop("field", None), None
        if verb == "call" and "count" in step:
            count = step.pop("count")
        try:
            found = plain(getattr(self, f"do_{verb}")(**step))
        except xs_stream.XsError as caught:
            if error is None:
                raise
            self._check_error(error, caught)
            return
        if error is not None:
            raise Failure(f"wanted {error}, found {found!r}")
        if field is not None:
            found = [one[field] for one in found]
        if count is not None and len(found) != count:
            raise Failure(f"wanted {count}, found {len(found)}")
        if save is not None:
            self._saved[save] = found
        why = difference(expected, found) if wants else None
        if why is not None:
            raise Failure(why)

    def _check_error(self, expected: Dict[str, Any], caught: Any) -> None:
        found = {"type": type(caught).__name__, "retryable": caught.retryable}
        if isinstance(caught, xs_stream.Refusal):
            found["code"], found["details"] = caught.code, plain(caught.details)
        why = difference(expected, found)
        if why is not None:
            raise Failure(f"{why} in {caught!r}")

    def _filled(self, value: Any) -> Any:
        """The value with what was saved in place of `$name.path`."""
        if isinstance(value, dict):
            return {key: self._filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._filled(one) for one in value]
        if not isinstance(value, str) or "$" not in value:
            return value
        whole = re.fullmatch(r"\$([a-z_.0-9]+)", value)
        if whole:
            return self._at(whole[1])
        return re.sub(r"\$([a-z_.0-9]+)", lambda found: str(self._at(found[1])), value)

    def _at(self, path: str) -> Any:
        name, *keys = path.split(".")
        found = self._saved[name]
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found

    # Verbs.

    def do_connect(self) -> Any:
        client = self._face.connect(self.server.store, wait=PATIENCE if self._is_up else 0)
        self._face.do(client.close())

    _is_up = True

    def do_login(self, trust: Optional[str] = None, token: Optional[str] = None) -> None:
        address = f"localhost:{self.server.tls_port()}"
        options: Dict[str, Any] = {"token": token, "timeout": PATIENCE if trust else 2.0}
        if trust:
            address = f"xss://{address}"
            options["tls"] = str(CONFORMANCE / "tls" / f"{trust}.pem")
        self._client = self._face.connect(address, **options)

    def do_logout(self) -> None:
        self._face.do(self._client.close())
        self._client = self._owner

    def do_token(self, args: List[str]) -> str:
        command = [XS, "token", "create", "-a", self.server.store, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def do_revoke_token(self, name: str) -> None:
        command = [XS, "token", "revoke", "-a", self.server.store, name]
        subprocess.run(command, check=True, capture_output=True)

    def do_server(self) -> Any:
        return self._client.server

    def do_ping(self, data: str = "", data_repeat: Any = None) -> Any:
        raw = (data_repeat[0] * data_repeat[1] if data_repeat else data).encode()
        return self._face.do(self._client.ping(raw)) >= 0

    def do_append(
        self,
        topic: str = "",
        topic_repeat: Any = None,
        body: Any = None,
        body_repeat: Any = None,
        body_hash: Any = None,
        stream_repeat: Any = None,
        meta_json: Any = None,
        meta_repeat: Any = None,
        **options: Any,
    ) -> Any:
        if topic_repeat:
            topic = topic_repeat[0] * topic_repeat[1]
        if body_repeat:
            body = body_repeat[0] * body_repeat[1]
        if body_hash:
            body = BlobHash.parse(body_hash)
        if stream_repeat:
            body = iter([stream_repeat[0].encode()] * stream_repeat[1])
        if meta_repeat:
            options["meta"] = meta_repeat[0] * meta_repeat[1]
        options["conditions"] = conditions(options.get("conditions", []))
        if meta_json is not None:
            frame = NewFrame(topic, meta_json=meta_json.encode())
            return self._face.do(self._client.append_batch([frame])).frames[0]
        return self._face.do(self._client.append(topic, body, **options))

    def do_append_batch(self, frames: Any, cursors: Any = (), **options: Any) -> Any:
        changes = [
            CursorChange(
                one["name"], one["offset"], one.get("state", "").encode(), one.get("expect")
            )
            for one in cursors
        ]
        options["conditions"] = conditions(options.get("conditions", []))
        frames = [NewFrame(**frame) for frame in frames]
        return self._face.do(self._client.append_batch(frames, cursors=changes, **options))

    def do_append_many(self, topic: str, count: int, first: int = 0) -> None:
        frames = [NewFrame(topic, meta=first + n) for n in range(count)]
        self._face.do(self._client.append_batch(frames))

    def _where(self, options: Dict[str, Any]) -> Dict[str, Any]:
        renamed = {"from": "from_"}
        return {renamed.get(key, key): value for key, value in options.items()}

    def do_read(self, **options: Any) -> Any:
        return self._all(self._client.read(**self._where(options)))

    def _all(self, stream: Any) -> List[Any]:
        found = []
        try:
            while True:
                found.append(self._face.next(stream))
        except StopIteration:
            return found

    def do_read_over_restart(self, restart_after: int, credit: int, **options: Any) -> Any:
        read, metas = self._client.read(credit=credit, **self._where(options)), []
        try:
            while True:
                metas.append(self._face.next(read).meta)
                if len(metas) == restart_after:
                    self.do_kill()
                    self.do_start()
        except StopIteration:
            ordered = sorted(metas, reverse=bool(options.get("reverse")))
            return {"count": len(metas), "metas_in_order": metas == ordered}

    def do_fetch_all(self, page_bytes: int, **options: Any) -> Any:
        page = self._face.do(self._client.fetch(page_bytes=page_bytes, **self._where(options)))
        frames, pages = list(page.frames), 1
        while page.next is not None:
            page = self._face.do(self._client.fetch(page.next, page_bytes=page_bytes))
            frames += page.frames
            pages += 1
        metas = [frame.meta for frame in frames]
        ordered = sorted(metas, reverse=bool(options.get("reverse")))
        return {"count": len(metas), "pages": pages, "metas_in_order": metas == ordered}

    def do_get(self, bound: Any) -> Any:
        return self._face.do(self._client.get(bound))

    def do_body(self, bound: Any) -> Any:
        frame = self._face.do(self._client.get(bound))
        return self._face.do(self._client.body(frame))

    def do_last(self, topics: str, n: int = 1) -> Any:
        return self._face.do(self._client.last(topics, n))

    def do_last_per_topic(self, topics: str, n: int = 1) -> Any:
        return self._face.do(self._client.last_per_topic(topics, n))

    def do_topics(self, topics: str) -> Any:
        return self._face.do(self._client.topics(topics))

    # "as" and "from" are no names in Python.
    def do_follow(self, pulse_ms: int = 0, resume: Optional[str] = None, **options: Any) -> Any:
        if "above_head" in options:
            options["from"] = self.do_stats()["store"]["head"] + options.pop("above_head")
        name, slow = options.pop("as"), options.pop("slow", {})
        for policy, behind in slow.items():
            options["slow"] = getattr(xs_stream, policy)(behind)
        point = ResumePoint.parse(resume) if resume else None
        options = self._where(options)
        stream = self._client.follow(pulse=pulse_ms / 1000, resume=point, **options)
        self._face.do(stream.open())
        self._streams[name] = stream
        return options.get("from_")

    def do_take(self, count: int, pulses: bool = False, **options: Any) -> Any:
        stream = self._streams[options["from"]]
        found: List[Any] = []
        try:
            while len(found) < count:
                item = self._face.next(stream)
                if pulses or item.kind != "pulse":
                    found.append(item)
        except StopIteration:
            pass
        return found

    def do_take_counted(self, **options: Any) -> Any:
        items = self._all(self._streams[options["from"]])
        metas = [item.meta for item in items if item.kind == "frame"]
        caught_up = sum(1 for item in items if item.kind == "caught_up")
        ordered = metas == list(range(len(metas)))
        return {"frames": len(metas), "caught_up": caught_up, "metas_in_order": ordered}

    def do_point(self, **options: Any) -> Any:
        return str(self._streams[options["from"]].point)

    def do_close(self, **options: Any) -> None:
        self._face.close(self._streams.pop(options["from"]))

    def do_put_blob(self, repeat: Any, pieces: int = 0) -> Any:
        data = (repeat[0] * repeat[1]).encode()
        source: Any = data
        if pieces:
            source = (data[at : at + pieces] for at in range(0, len(data), pieces))
        return self._face.do(self._client.put_blob(source))

    def do_abandon_upload(self, repeat: Any) -> None:
        writer = self._client.blob_writer()
        self._face.do(writer.write((repeat[0] * repeat[1]).encode()))
        self._face.do(writer.aclose() if hasattr(writer, "aclose") else writer.__exit__())

    def do_has_blob(self, hash: str) -> Any:
        return self._face.do(self._client.has_blob(BlobHash.parse(hash)))

    def do_get_blob(self, hash: str, credit: int = 1 << 20) -> Any:
        name, found, size = BlobHash.parse(hash), hashlib.sha256(), 0
        for piece in self._all(self._client.get_blob(name, credit=credit)):
            found.update(piece)
            size += len(piece)
        return {"bytes": size, "hash": str(BlobHash(found.digest()))}

    def do_cursor_get(self, name: str) -> Any:
        return self._face.do(self._client.cursor_get(name))

    def do_cursor_set(
        self,
        name: str,
        offset: int,
        state: str = "",
        expect_revision: Optional[int] = None,
        **how: Any,
    ) -> Any:
        return self._face.do(
            self._client.cursor_set(
                name, offset, state=state.encode(), expect=expect_revision, **how
            )
        )

    def do_cursor_set_cut(self, cut: str, others: Sequence[int] = (), **change: Any) -> Any:
        def meanwhile() -> None:
            for offset in others:
                command = [
                    XS,
                    "cursor",
                    "set",
                    "-a",
                    self.server.store,
                    change["name"],
                    str(offset),
                ]
                subprocess.run(command, check=True, capture_output=True)

        cutter = Cutter(os.path.join(self.server.store, "xs.sock"), cut, meanwhile)
        owner, self._client = self._client, self._face.connect(cutter.path, wait=PATIENCE)
        try:
            return self.do_cursor_set(**change)
        finally:
            self._face.do(self._client.close())
            self._client = owner
            cutter.close()

    def do_cursor_remove(self, name: str, expect_revision: Optional[int] = None) -> None:
        self._face.do(self._client.cursor_remove(name, expect=expect_revision))

    def do_cursor_list(self, prefix: str) -> Any:
        found = self._face.do(self._client.cursor_list())
        return [one for one in found if one.name.startswith(prefix)]

    def do_call(self, name: str, deadline_ms: Optional[int] = None, **options: Any) -> Any:
        deadline = None if deadline_ms is None else deadline_ms / 1000
        return self._all(self._client.call(name, deadline=deadline, **options))

    def do_cancel_call(self, name: str) -> Any:
        call = self._client.call(name)
        first = self._face.next(call)
        self._face.close(call)
        return first

    def do_remove(self, bounds: Any, **options: Any) -> Any:
        return list(self._face.do(self._client.remove(*bounds, **options)))

    def do_export(self, topics: str, **options: Any) -> int:
        frames = self._all(self._client.read(topics, bodies=1 << 20))
        self._frames[options["as"]] = frames
        return len(frames)

    def do_export_body(self, **options: Any) -> Any:
        body = self._face.do(self._client.body(self._frames[options["from"]][0]))
        return {"bytes": len(body), "hash": str(BlobHash.of(body))}

    def do_import(self, **options: Any) -> Any:
        frames = self._frames[options.pop("from")]
        return self._face.do(self._client.import_frames(frames, **options))

    def do_import_many(self, count: int, **options: Any) -> Any:
        frames = self._frames[options["from"]]
        return self._face.do(self._client.import_frames(frames[:1] * count))

    def do_verify(self) -> Any:
        return self._face.do(self._client.verify())

    def do_compact(self, dead_percent: int) -> Any:
        return self._face.do(self._client.compact(dead_percent=dead_percent))

    def do_gc(self, grace_ms: int, **options: Any) -> Any:
        return self._face.do(self._client.gc(grace=grace_ms / 1000, **options))

    # Paths are below the directory that the store is in, unless they are absolute.
    def do_backup(self, to: str, link: bool = False) -> Any:
        return self._face.do(self._client.backup(os.path.join(self.server.dir, to), link=link))

    def do_fork(self, to: str) -> Any:
        return self._face.do(self._client.fork(os.path.join(self.server.dir, to)))

    def do_stats(self) -> Any:
        return self._face.do(self._client.stats())

    def do_kill(self) -> None:
        self.server.kill()
        self._is_up = False

    def do_stop(self) -> None:
        self.server.stop()
        self._is_up = False

    def do_start(self) -> None:
        self.server.start()
        self._is_up = True


def conditions(raw: List[Dict[str, Any]]) -> List[xs_stream.Condition]:
    """Conditions as the steps write them."""
    made = []
    for one in raw:
        if "last_at_most" in one:
            made.append(xs_stream.last_at_most(one["topics"], one["last_at_most"]))
        elif "empty" in one:
            made.append(xs_stream.empty(one["empty"]))
        else:
            made.append(xs_stream.head_is(one["head_is"]))
    return made


def verbs() -> List[str]:
    """Every verb that is known here."""
    return sorted(name[3:] for name in vars(Runner) if name.startswith("do_"))
