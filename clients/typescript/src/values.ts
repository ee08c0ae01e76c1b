// The values of a store: ids, hashes, ttls, frames to append and what surrounds them. Ids and
// hashes are their text; the topic rules are left to the server, which names them.

import { createHash } from "node:crypto";
import { keys, listOf, rawBytes, shown } from "./checking.js";
import { InvalidValue } from "./errors.js";
import { NO_OFFSET, PATTERNS_MAX } from "./limits.js";

/** A frame's id: 25 digits of base 36, whose order is the order of the log. */
export type FrameId = string;

/** The id of its 16 bytes. */
export function idOfBytes(bytes: Buffer): FrameId {
  const number = (bytes.readBigUInt64BE(0) << 64n) | bytes.readBigUInt64BE(8);
  return number.toString(36).padStart(25, "0");
}

/** The 16 bytes of an id. @throws {InvalidValue} */
export function idBytes(id: FrameId): Buffer {
  let number = -1n;
  if (typeof id === "string" && /^[0-9a-z]{25}$/i.test(id)) {
    number = 0n;
    for (const digit of id) number = number * 36n + BigInt(parseInt(digit, 36));
  }
  if (number < 0n || number >= 1n << 128n) {
    throw new InvalidValue(`${shown(id)} is not a frame id of 25 digits of base 36`);
  }
  return Buffer.from(number.toString(16).padStart(32, "0"), "hex");
}

/** Milliseconds since 1970 that an id carries. @throws {InvalidValue} */
export function idTimeMs(id: FrameId): number {
  return idBytes(id).readUIntBE(0, 6);
}

/** The SHA-256 that names a blob: `sha256-` and base64, as browsers write it. */
export type BlobHash = `sha256-${string}`;

/** The hash of its 32 bytes. */
export function hashOfBytes(bytes: Buffer): BlobHash {
  return `sha256-${bytes.toString("base64")}`;
}

/** The 32 bytes of a hash. @throws {InvalidValue} */
export function hashBytes(hash: string): Buffer {
  const bytes = typeof hash === "string" && /^sha256-[A-Za-z0-9+/]{43}=$/.test(hash)
    ? Buffer.from(hash.slice(7), "base64")
    : Buffer.alloc(0);
  if (bytes.length !== 32) {
    throw new InvalidValue(`${shown(hash)} is not sha256- and 44 digits of base64`);
  }
  return bytes;
}

/** The hash of some bytes. @throws {InvalidValue} for what is none */
export function blobHash(bytes: Uint8Array): BlobHash {
  const raw = rawBytes(bytes, "what has a hash");
  return hashOfBytes(createHash("sha256").update(raw).digest());
}

/** A blob the store has, as a frame's body. */
export interface BlobRef {
  readonly blob: BlobHash;
}

const DAY_MS = 24n * 60n * 60n * 1000n;

/** Milliseconds of the units that a time may have. */
const UNITS_MS: ReadonlyMap<string, bigint> = new Map([
  ["", 1n],
  ["ms", 1n],
  ["s", 1000n],
  ["m", 60n * 1000n],
  ["h", 60n * 60n * 1000n],
  ["d", DAY_MS],
  ["w", 7n * DAY_MS],
]);

type Count = number | bigint;

/**
 * How long a frame is kept: `time` in milliseconds, or with a unit, of which `d` is 24 hours;
 * `last` in frames of its topic.
 */
export type Ttl =
  | "forever"
  | "ephemeral"
  | `time:${Count}${"" | "ms" | "s" | "m" | "h" | "d" | "w"}`
  | `last:${Count}`;

/** A ttl as it travels. @throws {InvalidValue} */
export function ttlNumbers(ttl: string): { kind: number; value: bigint } {
  const form = /^(?:(forever|ephemeral)|(time|last):0*(\d{1,20})([a-z]*))$/;
  const found = typeof ttl === "string" ? form.exec(ttl) : null;
  const [, plain, counted, digits = "0", unit = ""] = found ?? [];
  if (plain) return { kind: plain === "forever" ? 0 : 1, value: 0n };
  const isLast = counted === "last";
  const factor = isLast && unit !== "" ? undefined : UNITS_MS.get(unit);
  const value = BigInt(digits) * (factor ?? 0n);
  if (!found || factor === undefined || value > NO_OFFSET || value < 1n) {
    const forms = "forever, ephemeral, time:<ms>, time:3d (ms, s, m, h, d, w) or last:<n>";
    throw new InvalidValue(`${shown(ttl)} is not a ttl: ${forms}, both from 1 on`);
  }
  return { kind: isLast ? 3 : 2, value };
}

/** The ttl of its number on the wire. */
export function ttlText(kind: number, value: bigint): Ttl {
  if (kind < 2) return kind === 0 ? "forever" : "ephemeral";
  return `${kind === 2 ? "time" : "last"}:${value}`;
}

/** A place in the log: an offset, or an id, which need not exist. */
export type Bound = bigint | number | FrameId;

/** Milliseconds since 1970, or a date. */
export type Time = number | bigint | Date;

/** Patterns: `a.b`, `a.b.*`, `*`, several with commas between or in a list. */
export type Topics = string | readonly string[];

/** The patterns as a list. @throws {InvalidValue} */
export function patternsOf(topics: Topics): string[] {
  const parts = typeof topics === "string" ? topics.split(",") : listOf(topics, "topic patterns");
  if (parts.length < 1 || parts.length > PATTERNS_MAX) {
    throw new InvalidValue(`a read takes 1 to ${PATTERNS_MAX} topic patterns, not ${parts.length}`);
  }
  return parts.map((part) => {
    if (typeof part !== "string") throw new InvalidValue(`${shown(part)} is not a topic pattern`);
    return part.trim();
  });
}

/** A u64 from what people give. @throws {InvalidValue} */
export function u64(number: bigint | number, what: string): bigint {
  if (typeof number !== "bigint" && typeof number !== "number") {
    throw new InvalidValue(`${what} is a number or a bigint, not ${shown(number)}`);
  }
  if (typeof number === "number" && !Number.isSafeInteger(number)) {
    throw new InvalidValue(`${number} is not a whole number for ${what}; give a bigint`);
  }
  const value = BigInt(number);
  if (value < 0n || value > NO_OFFSET) throw new InvalidValue(`${number} is out of range: ${what}`);
  return value;
}

/** Milliseconds since 1970. @throws {InvalidValue} */
export function timeMs(time: Time): bigint {
  return u64(time instanceof Date ? time.getTime() : time, "a time");
}

/** Which processor made a frame, and from which input. */
export interface Origin {
  readonly processor: FrameId;
  readonly input: FrameId | null;
  readonly inputOffset: bigint | null;
  readonly hops: number;
}

/** A body: bytes, text (UTF-8), or the name of a blob that the store has. */
export type Body = Uint8Array | string | BlobRef;

/** A frame to append. */
export interface NewFrame {
  readonly topic: string;
  readonly body?: Body | undefined;
  /** A body in JSON instead of `body`. */
  readonly json?: unknown;
  /** Any JSON value; undefined or null for none. */
  readonly meta?: unknown;
  /** The text of the meta instead, sent as it is. */
  readonly metaJson?: Uint8Array | string | undefined;
  /** `forever` unless given. */
  readonly ttl?: Ttl | undefined;
  /** Only the host role may give it. */
  readonly origin?: Origin | undefined;
}

export const NEW_FRAME = keys<NewFrame>("part of a frame", {
  topic: 1,
  body: 1,
  json: 1,
  meta: 1,
  metaJson: 1,
  ttl: 1,
  origin: 1,
});

/** Whether it names a blob that the store has. */
export function isBlobRef(body: unknown): body is BlobRef {
  return typeof body === "object" && body !== null && "blob" in body;
}

/** A body as it is sent. @throws {InvalidValue} */
export function bodyOf(frame: NewFrame): Buffer | BlobRef | undefined {
  const { body, json } = frame;
  if (json !== undefined) {
    if (body !== undefined) throw new InvalidValue("a frame has body or json, not both");
    return jsonBytes(json);
  }
  if (typeof body === "string") return Buffer.from(body);
  return body === undefined || isBlobRef(body) ? body : rawBytes(body, "a body that is no text");
}

/** A meta as it is sent. @throws {InvalidValue} */
export function metaOf(frame: NewFrame): Buffer {
  const { meta, metaJson } = frame;
  if (metaJson !== undefined) {
    return typeof metaJson === "string" ? Buffer.from(metaJson) : rawBytes(metaJson, "metaJson");
  }
  return meta === undefined || meta === null ? Buffer.alloc(0) : jsonBytes(meta);
}

/** Compact JSON. @throws {InvalidValue} for what JSON cannot say */
export function jsonBytes(value: unknown): Buffer {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    throw new InvalidValue(`not JSON: ${String(error)}`, { cause: error });
  }
  if (text === undefined) throw new InvalidValue("not JSON: a function or symbol");
  return Buffer.from(text);
}

/** The same bytes as a Buffer. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes)
    ? bytes
    : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A change of one cursor, stored in the same batch as the frames beside it. */
export interface CursorChange {
  readonly name: string;
  /** The offset of the first frame not yet handled; null removes the cursor. */
  readonly offset: bigint | number | null;
  readonly state?: Uint8Array | undefined;
  /** The revision it must have; 0: it must not exist; left out: any. */
  readonly expect?: bigint | number | undefined;
}

export const CURSOR_CHANGE = keys<CursorChange>("part of a change of a cursor", {
  name: 1,
  offset: 1,
  state: 1,
  expect: 1,
});

/** What must hold for a batch to be stored. */
export type Condition =
  /** No frame of the topics has a higher offset. */
  | { readonly lastAtMost: bigint | number; readonly topics: Topics }
  /** The topics hold no frame. */
  | { readonly empty: Topics }
  /** The next frame of the log gets this offset. */
  | { readonly headIs: bigint | number };

/**
 * What becomes of a follower that takes frames more slowly than they come. latest: when it is more
 * than so many frames behind, it gets a gap and the newest of each topic; it goes with neither
 * limit nor before, since and until. drop: then it ends with Unavailable, code 503. Without either
 * it is waited for, and misses no stored frame.
 */
export type Slow = { readonly latest: bigint | number } | { readonly drop: bigint | number };

export const SLOW = [
  keys<{ latest: 1 }>("part of slow", { latest: 1 }),
  keys<{ drop: 1 }>("part of slow", { drop: 1 }),
];

/** Of each kind the first one tells it. */
export const CONDITIONS = [
  keys<{ lastAtMost: 1; topics: 1 }>("part of a condition", { lastAtMost: 1, topics: 1 }),
  keys<{ empty: 1 }>("part of a condition", { empty: 1 }),
  keys<{ headIs: 1 }>("part of a condition", { headIs: 1 }),
];

/** What the store gave a frame; an ephemeral one has no offset. */
export interface Stamp {
  readonly id: FrameId;
  readonly offset: bigint | null;
}

/**
 * What became of one frame of an import: it is new, the store had it already, or it was left out
 * for the reason that docs/wire.md lists under the code.
 */
export type Outcome =
  | { readonly kind: "new" | "there" }
  | { readonly kind: "refused"; readonly code: number };

/** What became of an import. */
export interface Imported {
  /** One for each frame, in order. */
  readonly outcomes: readonly Outcome[];
  /** No power cut takes what is new. */
  readonly durable: boolean;
  /** The offset after the last frame readers can see. */
  readonly head: bigint;
}

/** What became of a batch. */
export interface Appended {
  readonly frames: readonly Stamp[];
  /** The new revisions, 0 for removed cursors. */
  readonly cursors: readonly bigint[];
  /** No power cut takes it. */
  readonly durable: boolean;
  /**
   * The batch with this key was there already: `frames` are the stamps of that one, or of its
   * first frame alone where no more is known; `cursors` is empty, and nothing is removed again.
   */
  readonly repeated: boolean;
  /** Of each frame that was to be removed, whether it was there; all false when `repeated`. */
  readonly removed: readonly boolean[];
  /** The offset after the last frame readers can see. */
  readonly head: bigint;
}

/** What the store holds of one topic. */
export interface TopicSummary {
  readonly name: string;
  readonly count: bigint;
  readonly bytes: bigint;
  readonly first: FrameId;
  readonly last: FrameId;
  readonly lastOffset: bigint;
}

/** A cursor without its state. */
export interface CursorSummary {
  readonly name: string;
  readonly revision: bigint;
  readonly epoch: bigint;
  /** Of the first frame not yet handled. */
  readonly offset: bigint;
  /** When it was changed, in milliseconds since 1970. */
  readonly timeMs: bigint;
  readonly stateBytes: bigint;
}

/** A named, durable position. */
export interface Cursor extends Omit<CursorSummary, "stateBytes"> {
  readonly state: Buffer;
}

/** A stored blob. */
export interface Blob {
  readonly hash: BlobHash;
  readonly bytes: bigint;
}

/**
 * Where a reader goes on: the first frame not yet seen, and where that offset was seen. It holds
 * for this store (32 hexadecimal digits) and this epoch.
 */
export interface ResumePoint {
  readonly store: string;
  readonly epoch: bigint;
  readonly offset: bigint;
}

/** A resume point as text. @throws {InvalidValue} for what is none */
export function resumeText(point: ResumePoint): string {
  checkResume(point);
  return `${point.store}:${point.epoch}:${point.offset}`;
}

/** @throws {InvalidValue} for what is no resume point */
export function checkResume(point: ResumePoint): void {
  const isStore = typeof point?.store === "string" && /^[0-9a-f]{32}$/.test(point.store);
  if (!isStore || typeof point.epoch !== "bigint" || typeof point.offset !== "bigint") {
    throw new InvalidValue(`${shown(point)} is not a resume point; parseResume reads its text`);
  }
}

/** The resume point of its text. @throws {InvalidValue} */
export function parseResume(text: string): ResumePoint {
  const form = /^([0-9a-f]{32}):(\d{1,20}):(\d{1,20})$/;
  const found = typeof text === "string" ? form.exec(text) : null;
  if (!found) throw new InvalidValue(`${shown(text)} is not a resume point`);
  const [, store = "", epoch = "", offset = ""] = found;
  return { store, epoch: BigInt(epoch), offset: BigInt(offset) };
}

/** All that was stored at the beginning was given; what comes now is new. Comes once. */
export interface CaughtUp {
  readonly kind: "caught_up";
  readonly head: bigint;
}

/** The time asked for has passed. */
export interface Pulse {
  readonly kind: "pulse";
}

/**
 * Frames are missing here. corrupt: stored ones from `first` to before `end` cannot be read.
 * conflated: of those only the newest of each topic follow, as `slow` asked for. ephemeral:
 * `count` of these came faster than they were taken.
 */
export interface Gap {
  readonly kind: "gap";
  readonly reason: "corrupt" | "conflated" | "ephemeral";
  readonly first: bigint | null;
  readonly end: bigint | null;
  readonly count: bigint;
}

/**
 * The connection was lost and made again: no stored frame is missing or doubled, ephemeral ones
 * of the meantime are. `offset` is where it went on; null: from its start.
 */
export interface Resumed {
  readonly kind: "resumed";
  readonly offset: bigint | null;
}

/** What the server said of itself and of its store when the connection was made. */
export interface ServerInfo {
  readonly name: string;
  readonly version: number;
  readonly role: "read" | "append" | "admin" | "host";
  /** The store's uuid, 32 hexadecimal digits. */
  readonly store: string;
  readonly epoch: bigint;
  readonly head: bigint;
  readonly messageBytes: number;
  readonly requests: number;
  readonly streams: number;
  readonly chunkBytes: number;
  readonly uploadWindow: number;
  readonly batchRecords: number;
  readonly ops: ReadonlyArray<{ op: number; oldest: number; newest: number }>;
}
