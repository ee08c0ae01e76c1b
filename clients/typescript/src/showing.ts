// The JSON form of values, since JSON has no bigints.

import type { Appended as AppendedOf, FrameId, Stamp as StampOf } from "./values.js";

/** A number if that is exact, up to 2^53; otherwise its digits as text. */
export function exact(number: bigint): number | string {
  const near = Number(number);
  return Number.isSafeInteger(near) ? near : String(number);
}

function plain(value: unknown): unknown {
  if (typeof value === "bigint") return exact(value);
  if (Buffer.isBuffer(value)) return value.toString("base64");
  return Array.isArray(value) ? value.map(plain) : value;
}

function toJSON(this: object): Record<string, unknown> {
  return Object.fromEntries(Object.entries(this).map(([name, part]) => [name, plain(part)]));
}

const TO_JSON = { value: toJSON };

/**
 * Makes JSON.stringify accept the value: bigints in the form of `exact`, bytes in base64. It still
 * equals a plain value with the same contents.
 */
export function jsonable<T extends object>(value: T): T {
  return Object.defineProperty(value, "toJSON", TO_JSON);
}

// Defining a property on each would cost as much as encoding the frame, and a batch has thousands:
// so an append returns instances of a class.

/** What the store assigned to a frame. */
export class Stamp implements StampOf {
  constructor(
    readonly id: FrameId,
    readonly offset: bigint | null,
  ) {}

  toJSON(): Record<string, unknown> {
    return toJSON.call(this);
  }
}

/** The result of a batch. */
export class Appended implements AppendedOf {
  constructor(
    readonly frames: readonly StampOf[],
    readonly cursors: readonly bigint[],
    readonly durable: boolean,
    readonly repeated: boolean,
    readonly removed: readonly boolean[],
    readonly head: bigint,
  ) {}

  toJSON(): Record<string, unknown> {
    return toJSON.call(this);
  }
}
