"""A change of a cursor whose answer may be lost."""

from __future__ import annotations

from typing import Awaitable, Callable

from . import messages
from .coding import Op, Writer
from .connection import Connection, is_unknown
from .errors import CursorConflict, InvalidValue, XsError
from .values import CursorChange

__all__ = ["moving"]


def moving(change: CursorChange) -> Callable[[Connection], Awaitable[int]]:
    """A function that changes a cursor with an expected revision, over several attempts. A conflict
    after an attempt whose answer was lost counts as done if the cursor has the next revision and
    this value."""
    if change.expect is None:
        raise InvalidValue("again goes with expect: without it a later change would be undone")
    wanted = (change.expect + 1, change.offset, bytes(change.state))
    out, is_lost = Writer(), False
    messages.put_cursor_change(out, change)

    async def once(connection: Connection) -> int:
        nonlocal is_lost
        try:
            return messages.read_number((await connection.ask(Op.CURSOR_SET, out.data))[0])
        except CursorConflict:
            if not is_lost:
                raise
            parts = await connection.ask(Op.CURSOR_GET, messages.cursor_get(change.name))
            found = messages.read_cursor(change.name, parts[0])
            if found is None or (found.revision, found.offset, found.state) != wanted:
                raise
            return found.revision
        except XsError as error:
            is_lost = is_lost or is_unknown(error)
            raise

    return once
