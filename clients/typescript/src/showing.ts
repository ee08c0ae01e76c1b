// How values look in JSON, which has no bigints.

import type { Appended as AppendedOf, FrameId, Stamp as StampOf } from "./values.js";

/** A number where that is exact, up to 2^53; otherwise its digits as text. */
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
 * The value, which JSON.stringify takes from now on: bigints as `exact` gives them, bytes in
 * base64. It stays equal to one that was written down.
 */
export function jsonable<T extends object>(value: T): T {
  return Object.defineProperty(value, "toJSON", TO_JSON);
}

// A property of each costs as much as to encode the frame, of which a batch has thousands: what an
// append gives is of a class instead.

/** What the store gave a frame. */
export class Stamp implements StampOf {
  constructor(
    readonly id: FrameId,
    readonly offset: bigint | null,
  ) {}

  toJSON(): Record<string, unknown> {
    return toJSON.call(this);
  }
}

/** What became of a batch. */
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
