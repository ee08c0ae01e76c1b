// A change of a cursor whose answer may be lost.

import { Op } from "./coding.js";
import { only, type Connection } from "./connection.js";
import { CursorConflict, InvalidValue, isUnknown } from "./errors.js";
import * as messages from "./messages.js";
import { asBuffer, u64, type CursorChange } from "./values.js";

/**
 * A function that changes a cursor with an expected revision, over several attempts. A conflict
 * after an attempt whose answer was lost counts as done if the cursor has the next revision and
 * this value.
 */
export function moving(
  change: CursorChange,
  signal: AbortSignal | undefined,
): (connection: Connection) => Promise<bigint> {
  if (change.expect === undefined) {
    throw new InvalidValue("again goes with expect: without it a later change would be undone");
  }
  const body = messages.cursorSet(change);
  const revision = u64(change.expect, "a revision") + 1n;
  const offset = change.offset === null ? undefined : u64(change.offset, "an offset");
  const state = Buffer.from(asBuffer(change.state ?? new Uint8Array()));
  let isLost = false;
  return async (connection) => {
    try {
      return messages.readNumber(only(await connection.ask(Op.CURSOR_SET, body, signal)));
    } catch (error) {
      isLost ||= isUnknown(error);
      if (!isLost || !(error instanceof CursorConflict)) throw error;
      const asked = messages.cursorGet(change.name);
      const parts = await connection.ask(Op.CURSOR_GET, asked, signal);
      const found = messages.readCursor(change.name, only(parts));
      const isMine = found?.revision === revision && found.offset === offset;
      if (!isMine || !state.equals(found.state)) throw error;
      return revision;
    }
  };
}
