// The values of a store: ids, hashes, ttls, frames to append, and related types. Ids and hashes are
// text; the rules for topics are left to the server, which names them.

import { createHash } from "node:crypto";
import { keys, listOf, rawBytes, shown } from "./checking.js";
import { InvalidValue } from "./errors.js";
import { NO_OFFSET, PATTERNS_MAX } from "./limits.js";

/** A frame's id: 25 digits in base 36, whose order is that of the log. */
export type FrameId = string;

/** The id for its 16 bytes. */
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

/** The SHA-256 that names a blob: `sha256-` and base64, as in browsers. */
export type BlobHash = `sha256-${string}`;

/** The hash for its 32 bytes. */
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

/** The hash of some bytes. @throws {InvalidValue} for anything else */
export function blobHash(bytes: Uint8Array): BlobHash {
  const raw = rawBytes(bytes, "what has a hash");
  return hashOfBytes(createHash("sha256").update(raw).digest());
}

/** A blob the store has, as a frame's body. */
export interface BlobRef {
  readonly blob: BlobHash;
}

const DAY_MS = 24n * 60n * 60n * 1000n;

/** Milliseconds in the units that a time may have. */
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

/** A ttl as sent. @throws {InvalidValue} */
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

/** The ttl with a number on the wire. */
export function ttlText(kind: number, value: bigint): Ttl {
  if (kind < 2) return kind === 0 ? "forever" : "ephemeral";
  return `${kind === 2 ? "time" : "last"}:${value}`;
}

/** A place in the log: an offset, or an id, which need not exist. */
export type Bound = bigint | number | FrameId;

/** Milliseconds since 1970, or a date. */
export type Time = number | bigint | Date;

/** Patterns: `a.b`, `a.b.*`, `*`; several separated by commas or in a list. */
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

/** A u64 from a value that a user gave. @throws {InvalidValue} */
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

/** The processor that made a frame, and the input that it made it from. */
export interface Origin {
  readonly processor: FrameId;
  readonly input: FrameId | null;
  readonly inputOffset: bigint | null;
  readonly hops: number;
}

/** A body: bytes, text (UTF-8), or the hash of a blob that the store has. */
export type Body = Uint8Array | string | BlobRef;

/** A frame to append. */
export interface NewFrame {
  readonly topic: string;
  readonly body?: Body | undefined;
  /** A JSON body instead of `body`. */
  readonly json?: unknown;
  /** Any JSON value; undefined or null for none. */
  readonly meta?: unknown;
  /** The text of the meta instead, sent unchanged. */
  readonly metaJson?: Uint8Array | string | undefined;
  /** `forever` by default. */
  readonly ttl?: Ttl | undefined;
  /** Only the host role may set it. */
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

/** A body as sent. @throws {InvalidValue} */
export function bodyOf(frame: NewFrame): Buffer | BlobRef | undefined {
  const { body, json } = frame;
  if (json !== undefined) {
    if (body !== undefined) throw new InvalidValue("a frame has body or json, not both");
    return jsonBytes(json);
  }
  if (typeof body === "string") return Buffer.from(body);
  return body === undefined || isBlobRef(body) ? body : rawBytes(body, "a body that is no text");
}

/** A meta as sent. @throws {InvalidValue} */
export function metaOf(frame: NewFrame): Buffer {
  const { meta, metaJson } = frame;
  if (metaJson !== undefined) {
    return typeof metaJson === "string" ? Buffer.from(metaJson) : rawBytes(metaJson, "metaJson");
  }
  return meta === undefined || meta === null ? Buffer.alloc(0) : jsonBytes(meta);
}

/** Compact JSON. @throws {InvalidValue} for values that JSON cannot express */
export function jsonBytes(value: unknown): Buffer {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
    // A number that JSON does not have would become null.
    if (text?.includes("null")) JSON.stringify(value, finite);
  } catch (error) {
    if (error instanceof InvalidValue) throw error;
    throw new InvalidValue(`not JSON: ${String(error)}`, { cause: error });
  }
  if (text === undefined) throw new InvalidValue("not JSON: a function or symbol");
  return Buffer.from(text);
}

function finite(key: string, value: unknown): unknown {
  if (typeof value !== "number" || Number.isFinite(value)) return value;
  throw new InvalidValue(`not JSON: ${key === "" ? "it" : key} is ${value}`);
}

/** The same bytes as a Buffer. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes)
    ? bytes
    : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A change of one cursor, stored in the same batch as the frames along with it. */
export interface CursorChange {
  readonly name: string;
  /** The offset of the first frame that was not handled yet; null removes the cursor. */
  readonly offset: bigint | number | null;
  readonly state?: Uint8Array | undefined;
  /** The revision it must have; 0: it must not exist; by default any. */
  readonly expect?: bigint | number | undefined;
}

export const CURSOR_CHANGE = keys<CursorChange>("part of a change of a cursor", {
  name: 1,
  offset: 1,
  state: 1,
  expect: 1,
});

/** A condition for a batch to be stored. */
export type Condition =
  /** No frame of the topics has a higher offset. */
  | { readonly lastAtMost: bigint | number; readonly topics: Topics }
  /** The topics hold no frame. */
  | { readonly empty: Topics }
  /** The next frame of the log gets this offset. */
  | { readonly headIs: bigint | number };

/**
 * What happens to a follower that takes frames more slowly than they arrive. latest: when it is
 * more than this many frames behind, it gets a gap and the newest frame of each topic; cannot be
 * combined with limit, before, since or until. drop: then it ends with Unavailable, code 503.
 * Without either, the server waits for it and it misses no stored frame.
 */
export type Slow = { readonly latest: bigint | number } | { readonly drop: bigint | number };

export const SLOW = [
  keys<{ latest: 1 }>("part of slow", { latest: 1 }),
  keys<{ drop: 1 }>("part of slow", { drop: 1 }),
];

/** The first name of each identifies its kind. */
export const CONDITIONS = [
  keys<{ lastAtMost: 1; topics: 1 }>("part of a condition", { lastAtMost: 1, topics: 1 }),
  keys<{ empty: 1 }>("part of a condition", { empty: 1 }),
  keys<{ headIs: 1 }>("part of a condition", { headIs: 1 }),
];

/** What the store assigned to a frame; an ephemeral one has no offset. */
export interface Stamp {
  readonly id: FrameId;
  readonly offset: bigint | null;
}

/**
 * The outcome of one frame of an import: it is new, the store had it already, or it was refused for
 * the reason that docs/wire.md lists under the code.
 */
export type Outcome =
  | { readonly kind: "new" | "there" }
  | { readonly kind: "refused"; readonly code: number };

/** The result of an import. */
export interface Imported {
  /** One for each frame, in order. */
  readonly outcomes: readonly Outcome[];
  /** What is new survives a power cut. */
  readonly durable: boolean;
  /** The offset after the last frame visible to readers. */
  readonly head: bigint;
}

/** The result of a batch. */
export interface Appended {
  readonly frames: readonly Stamp[];
  /** The new revisions, 0 for removed cursors. */
  readonly cursors: readonly bigint[];
  /** The batch survives a power cut. */
  readonly durable: boolean;
  /**
   * A batch with this key existed already: `frames` holds its stamps, or only that of its first
   * frame if no more is known; `cursors` is empty, and nothing is removed again.
   */
  readonly repeated: boolean;
  /** For each frame to be removed, whether it existed; all false if `repeated`. */
  readonly removed: readonly boolean[];
  /** The offset after the last frame visible to readers. */
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
  /** The offset of the first frame that was not handled yet. */
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
 * Where a reader continues: the first frame not seen yet, and where that offset was seen. Valid
 * only for this store (32 hexadecimal digits) and this epoch.
 */
export interface ResumePoint {
  readonly store: string;
  readonly epoch: bigint;
  readonly offset: bigint;
}

/** A resume point as text. @throws {InvalidValue} for anything else */
export function resumeText(point: ResumePoint): string {
  checkResume(point);
  return `${point.store}:${point.epoch}:${point.offset}`;
}

/** @throws {InvalidValue} for anything but a resume point */
export function checkResume(point: ResumePoint): void {
  const isStore = typeof point?.store === "string" && /^[0-9a-f]{32}$/.test(point.store);
  if (!isStore || typeof point.epoch !== "bigint" || typeof point.offset !== "bigint") {
    throw new InvalidValue(`${shown(point)} is not a resume point; parseResume reads its text`);
  }
}

/** Parses a resume point. @throws {InvalidValue} */
export function parseResume(text: string): ResumePoint {
  const form = /^([0-9a-f]{32}):(\d{1,20}):(\d{1,20})$/;
  const found = typeof text === "string" ? form.exec(text) : null;
  if (!found) throw new InvalidValue(`${shown(text)} is not a resume point`);
  const [, store = "", epoch = "", offset = ""] = found;
  return { store, epoch: BigInt(epoch), offset: BigInt(offset) };
}

/** Everything stored at the beginning was returned; what follows is new. Occurs once. */
export interface CaughtUp {
  readonly kind: "caught_up";
  readonly head: bigint;
}

/** The requested time has passed. */
export interface Pulse {
  readonly kind: "pulse";
}

/**
 * Frames are missing here. corrupt: stored ones from `first` to before `end` cannot be read.
 * conflated: of those, only the newest of each topic follow, as requested with `slow`. ephemeral:
 * `count` of these arrived faster than they were taken.
 */
export interface Gap {
  readonly kind: "gap";
  readonly reason: "corrupt" | "conflated" | "ephemeral";
  readonly first: bigint | null;
  readonly end: bigint | null;
  readonly count: bigint;
}

/**
 * The connection was lost and made again: no stored frame is missing or repeated, but ephemeral
 * ones sent meanwhile are missing. `offset` is where it continued; null: from its start.
 */
export interface Resumed {
  readonly kind: "resumed";
  readonly offset: bigint | null;
}

/** What the server said about itself and its store when the connection was made. */
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
