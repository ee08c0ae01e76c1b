// Frames as a server delivers them: FRAME records of docs/wire.md, whose CRC is checked on arrival
// and whose parts are read on demand.

import { inspect, type InspectOptions } from "node:util";
import { crc32 } from "./crc.js";
import type { Reader, Writer } from "./coding.js";
import { IntegrityError, InvalidValue, ProtocolError } from "./errors.js";
import { NO_OFFSET } from "./limits.js";
import { exact } from "./showing.js";
import {
  hashOfBytes,
  idOfBytes,
  ttlText,
  type BlobHash,
  type FrameId,
  type Origin,
  type Ttl,
} from "./values.js";

const KIND_FRAME = 1;
const BODY = 1;
const ORIGINATED = 2;
const OLD_ID = 4;
const TTL_LAST = 3;
const NONE = Buffer.alloc(0);

/** One stored event. Its parts are read from its record on demand. */
export class Frame {
  readonly kind = "frame";
  #meta: unknown;
  #isRead = false;
  readonly #record: Buffer;
  #body: Buffer | undefined;

  constructor(
    record: Buffer,
    /** Its ordinal in the log; null if it is ephemeral. */
    readonly offset: bigint | null,
    body?: Buffer,
  ) {
    this.#record = record;
    this.#body = body;
  }

  get id(): FrameId {
    return idOfBytes(this.#record.subarray(16, 32));
  }

  /** When it was appended, in milliseconds since 1970. */
  get timeMs(): number {
    return this.#record.readUIntBE(16, 6);
  }

  /** When it was appended. */
  get time(): Date {
    return new Date(this.timeMs);
  }

  get #bodyAt(): number {
    return this.#byte(11) >= 2 ? 40 : 32;
  }

  get #topicAt(): number {
    const flags = this.#byte(9);
    const at = this.#bodyAt + 40 * (flags & BODY);
    return at + 24 * (flags & ORIGINATED) + 4 * (flags & OLD_ID);
  }

  #byte(at: number): number {
    return this.#record[at] ?? 0;
  }

  get topic(): string {
    const at = this.#topicAt;
    return this.#record.toString("utf8", at, at + this.#byte(10));
  }

  /** The meta's JSON text as it was written; empty if there is none. */
  get metaJson(): string {
    return this.#record.toString("utf8", this.#topicAt + this.#byte(10));
  }

  /** The meta, parsed on first use; undefined if there is none. */
  get meta(): any {
    if (!this.#isRead) {
      const text = this.metaJson;
      try {
        this.#meta = text === "" ? undefined : JSON.parse(text);
      } catch (cause) {
        throw new ProtocolError("the server's JSON is broken", { cause });
      }
      this.#isRead = true;
    }
    return this.#meta;
  }

  get ttl(): Ttl {
    const kind = this.#byte(11);
    return ttlText(kind, kind >= 2 ? this.#record.readBigUInt64LE(32) : 0n);
  }

  get #hasBody(): boolean {
    return (this.#byte(9) & BODY) !== 0;
  }

  /** The hash of its body; null if it has none. */
  get hash(): BlobHash | null {
    const at = this.#bodyAt + 8;
    return this.#hasBody ? hashOfBytes(this.#record.subarray(at, at + 32)) : null;
  }

  /** The length of its body; 0 if it has none. */
  get bodyBytes(): bigint {
    return this.#hasBody ? this.#record.readBigUInt64LE(this.#bodyAt) : 0n;
  }

  /**
   * Its body, if it was delivered with the frame, or empty if it has none. undefined: read it with
   * the client's `body(frame)`.
   */
  get body(): Buffer | undefined {
    return this.#hasBody ? this.#body : NONE;
  }

  /** The body that was delivered with the frame, as text. @throws {InvalidValue} if it was not */
  text(): string {
    const body = this.body;
    if (!body) {
      throw new InvalidValue("the body did not come with the frame; read it with body(frame)");
    }
    return body.toString("utf8");
  }

  /**
   * The body that was delivered with the frame, as JSON. @throws {InvalidValue} if it was not, or
   * is not JSON
   */
  json(): any {
    const text = this.text();
    try {
      return JSON.parse(text);
    } catch (cause) {
      throw new InvalidValue(`the body is not JSON: ${(cause as Error).message}`, { cause });
    }
  }

  /** The processor that made it; null if none did. */
  get origin(): Origin | null {
    const flags = this.#byte(9);
    if (!(flags & ORIGINATED)) return null;
    const at = this.#bodyAt + 40 * (flags & BODY);
    const input = this.#record.subarray(at + 16, at + 32);
    const offset = this.#record.readBigUInt64LE(at + 32);
    return {
      processor: idOfBytes(this.#record.subarray(at, at + 16)),
      input: input.some((byte) => byte !== 0) ? idOfBytes(input) : null,
      inputOffset: offset === NO_OFFSET ? null : offset,
      hops: this.#record.readUInt32LE(at + 40),
    };
  }

  /** The id it had before it was imported under a new one. */
  get oldId(): FrameId | null {
    const at = this.#topicAt - 16;
    return this.#byte(9) & OLD_ID ? idOfBytes(this.#record.subarray(at, at + 16)) : null;
  }

  /**
   * What JSON.stringify writes: everything but the body, with the names that `xs cat` prints.
   * 64-bit numbers are numbers up to 2^53, and text beyond.
   */
  toJSON(): Record<string, unknown> {
    const { kind, topic, id, hash, ttl, origin, oldId } = this;
    const offset = this.offset === null ? null : exact(this.offset);
    const frame = { kind, topic, id, offset, hash, bodyBytes: exact(this.bodyBytes) };
    const { inputOffset = null } = origin ?? {};
    const from = inputOffset === null ? null : exact(inputOffset);
    return {
      ...frame,
      meta: this.meta ?? null,
      ttl,
      ...(origin && { origin: { ...origin, inputOffset: from } }),
      ...(oldId !== null && { oldId }),
    };
  }

  /** What console.log shows: what distinguishes it from others, without its body. */
  [inspect.custom](depth: number, options: InspectOptions): string {
    if (depth < 0) return "[Frame]";
    const { topic, id, offset, hash, bodyBytes, ttl } = this;
    const body = hash === null ? {} : { hash, bodyBytes };
    const kept = ttl === "forever" ? {} : { ttl };
    const shown = { topic, id, offset, ...this.#shownMeta(), ...body, ...kept };
    return `Frame ${inspect(shown, options)}`;
  }

  #shownMeta(): { meta?: unknown } {
    try {
      return this.meta === undefined ? {} : { meta: this.meta };
    } catch {
      return { meta: this.metaJson };
    }
  }

  /** Its FRAME record, as delivered. */
  get record(): Buffer {
    return this.#record;
  }

  /** The first offset of the run in which it was delivered. */
  get base(): bigint {
    return this.offset === null ? NO_OFFSET : this.offset - BigInt(this.#record.readUInt32LE(12));
  }

  /** Sets the body that was delivered with it. */
  give(body: Buffer): void {
    this.#body = body;
  }
}

/** What FETCH, GET, LAST and DELIVER have in common. */
export interface FrameList {
  readonly frames: Frame[];
  readonly scannedTo: bigint;
}

/**
 * The FRAME record at the beginning of some bytes. @throws {ProtocolError}, and IntegrityError if
 * it does not match its CRC
 */
export function readRecord(run: Buffer): { record: Buffer; delta: number } {
  if (run.length < 32) throw new ProtocolError("a record ends within its head");
  const length = run.readUInt32LE(4);
  if (length < 32 || length > run.length) {
    throw new ProtocolError(`a record of ${length} bytes does not fit its run`);
  }
  const record = run.subarray(0, length);
  if (crc32(record.subarray(4)) !== record.readUInt32LE(0)) {
    throw new IntegrityError("a record does not match its CRC");
  }
  const [kind = 0, flags = 0, name = 0, ttl = 0] = record.subarray(8, 12);
  let fixed = 32 + (ttl >= 2 ? 8 : 0) + 40 * (flags & BODY) + 24 * (flags & ORIGINATED);
  fixed += 4 * (flags & OLD_ID) + name;
  const known = BODY | ORIGINATED | OLD_ID;
  if (kind !== KIND_FRAME || ttl > TTL_LAST || flags & ~known || fixed > length || name === 0) {
    throw new ProtocolError("a record is not a frame");
  }
  if (ttl === TTL_LAST && record.readBigUInt64LE(32) === 0n) {
    throw new ProtocolError("a record keeps none of its topic");
  }
  return { record, delta: record.readUInt32LE(12) };
}

/**
 * Bytes that may be kept. A view keeps its whole buffer alive, so a frame of a few bytes would keep
 * a message of 2 MiB. The bytes are not copied if they are most of the buffer, or if that is no
 * larger than those from which Node allocates small buffers.
 */
export function own(bytes: Buffer): Buffer {
  const whole = bytes.buffer.byteLength;
  return whole <= Buffer.poolSize || 2 * bytes.length >= whole ? bytes : Buffer.from(bytes);
}

/** Reads a frame list up to the end of a body. @throws {ProtocolError} */
export function readFrameList(reader: Reader): FrameList {
  const scannedTo = reader.u64("scanned_to");
  const runs = reader.u32("runs");
  const bodies = reader.u32("bodies");
  const frames: Frame[] = [];
  for (let run = 0; run < runs; run++) readRun(reader, frames);
  for (let body = 0; body < bodies; body++) {
    const place = reader.u32("body");
    const length = reader.u32("body");
    const bytes = reader.take(length, "body");
    reader.take((8 - (length % 8)) % 8, "body");
    const frame = frames[place];
    if (!frame) throw new ProtocolError("a body belongs to no frame");
    frame.give(own(bytes));
  }
  reader.end("frame list");
  return { frames, scannedTo };
}

function readRun(reader: Reader, frames: Frame[]): void {
  const base = reader.u64("run");
  const length = reader.u32("run");
  const count = reader.u32("run");
  let left = reader.take(length, "run");
  if (count === 0 || count > length / 32) {
    throw new ProtocolError("a run does not hold as many records as it says");
  }
  for (let at = 0; at < count; at++) {
    const { record, delta } = readRecord(left);
    frames.push(new Frame(own(record), base === NO_OFFSET ? null : base + BigInt(delta)));
    left = left.subarray((record.length + 7) & ~7);
  }
  if (left.length > 0) throw new ProtocolError("bytes follow the records of a run");
}

const padding = (bytes: Buffer): Buffer => Buffer.alloc((8 - (bytes.length % 8)) % 8);

/** Adds frames as they were delivered, with the bodies that were delivered with them. */
export function putFrameList(out: Writer, frames: readonly Frame[]): void {
  const runs: Frame[][] = [];
  for (const frame of frames) {
    const run = runs.at(-1);
    if (run?.[0]?.base === frame.base) run.push(frame);
    else runs.push([frame]);
  }
  const bodies = [...frames.entries()].filter(([, frame]) => frame.hash !== null && frame.body);
  out.u64(0n).u32(runs.length).u32(bodies.length);
  for (const run of runs) {
    const parts = run.flatMap(({ record }) => [record, padding(record)]);
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    out
      .u64(run[0]?.base ?? NO_OFFSET)
      .u32(length)
      .u32(run.length);
    for (const part of parts) out.raw(part);
  }
  for (const [at, { body = NONE }] of bodies) {
    out.u32(at).u32(body.length).raw(body).raw(padding(body));
  }
}
