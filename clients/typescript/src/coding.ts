// Integers, text and headers on the wire: reads and writes bytes, and knows nothing of their
// meaning. A read beyond the end is a ProtocolError, never another exception.

import { shown, textBytes } from "./checking.js";
import { InvalidValue, ProtocolError } from "./errors.js";
import { HEADER_BYTES, NO_OFFSET, NUMBER_MAX } from "./limits.js";
import { hashOfBytes, idBytes, idOfBytes, type BlobHash, type FrameId } from "./values.js";

export const PREFACE = Buffer.from([0x58, 0x53, 0x50, 0, 1, 0, 0, 0]);

export const RESPONSE = 1;
export const PUSH = 2;
export const MORE = 4;

/** The numbers of the ops. */
export const Op = {
  HELLO: 0x01,
  PING: 0x03,
  GOAWAY: 0x04,
  CLOSE: 0x05,
  APPEND: 0x10,
  REMOVE: 0x11,
  IMPORT: 0x12,
  FETCH: 0x20,
  GET: 0x21,
  LAST: 0x22,
  TOPICS: 0x23,
  SUBSCRIBE: 0x30,
  DELIVER: 0x31,
  CREDIT: 0x32,
  UNSUBSCRIBE: 0x33,
  SUB_EVENT: 0x34,
  CURSOR_SET: 0x40,
  CURSOR_GET: 0x41,
  CURSOR_LIST: 0x42,
  BLOB_HAS: 0x50,
  BLOB_PUT: 0x51,
  BLOB_GET: 0x52,
  BLOB_CHUNK: 0x53,
  CALL: 0x60,
  STATS: 0x70,
  MAINTAIN: 0x71,
} as const;

/** Ops that change something. */
export const CHANGES: ReadonlySet<number> = new Set([
  Op.APPEND,
  Op.REMOVE,
  Op.IMPORT,
  Op.CURSOR_SET,
  Op.CALL,
  Op.MAINTAIN,
]);

/** The 16 bytes before each body. */
export interface Header {
  readonly length: number;
  readonly op: number;
  readonly flags: number;
  readonly code: number;
  readonly corr: number;
  readonly sub: number;
}

/** The header at the beginning of at least 16 bytes. */
export function readHeader(data: Buffer): Header {
  return {
    length: data.readUInt32LE(0),
    op: data.readUInt8(4),
    flags: data.readUInt8(5),
    code: data.readUInt16LE(6),
    corr: data.readUInt32LE(8),
    sub: data.readUInt32LE(12),
  };
}

/** A header. */
export function header(fields: Omit<Header, "length">, bodyBytes: number): Buffer {
  const head = Buffer.allocUnsafe(HEADER_BYTES);
  head.writeUInt32LE(HEADER_BYTES - 4 + bodyBytes, 0);
  head.writeUInt8(fields.op, 4);
  head.writeUInt8(fields.flags, 5);
  head.writeUInt16LE(fields.code, 6);
  head.writeUInt32LE(fields.corr, 8);
  head.writeUInt32LE(fields.sub, 12);
  return head;
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Reads a body from its beginning. */
export class Reader {
  private at = 0;

  constructor(private readonly data: Buffer) {}

  private move(count: number, what: string): number {
    const at = this.at;
    if (count > this.data.length - at) {
      throw new ProtocolError(`the server's message ends within its ${what}`);
    }
    this.at = at + count;
    return at;
  }

  get left(): number {
    return this.data.length - this.at;
  }

  u8(what: string): number {
    return this.data.readUInt8(this.move(1, what));
  }

  u16(what: string): number {
    return this.data.readUInt16LE(this.move(2, what));
  }

  u32(what: string): number {
    return this.data.readUInt32LE(this.move(4, what));
  }

  u64(what: string): bigint {
    return this.data.readBigUInt64LE(this.move(8, what));
  }

  take(count: number, what: string): Buffer {
    const at = this.move(count, what);
    return this.data.subarray(at, at + count);
  }

  rest(): Buffer {
    return this.take(this.left, "rest");
  }

  id(what: string): FrameId {
    return idOfBytes(this.take(16, what));
  }

  hash(what: string): BlobHash {
    return hashOfBytes(this.take(32, what));
  }

  text(what: string): string {
    const raw = this.take(this.u16(what), what);
    try {
      return utf8.decode(raw);
    } catch (cause) {
      throw new ProtocolError(`the server's ${what} is not UTF-8`, { cause });
    }
  }

  end(what: string): void {
    if (this.left > 0) throw new ProtocolError(`${this.left} bytes follow the server's ${what}`);
  }
}

/** Builds a body. A number that does not fit its field throws InvalidValue. */
export class Writer {
  private readonly parts: Buffer[] = [];
  private small: number[] = [];

  u8(number: number): this {
    this.small.push(number);
    return this;
  }

  u16(number: number): this {
    this.small.push(number & 0xff, number >>> 8);
    return this;
  }

  u32(number: number): this {
    if (!Number.isInteger(number) || number < 0 || number > NUMBER_MAX) {
      throw new InvalidValue(`${shown(number)} does not fit 32 bits`);
    }
    this.small.push(number & 0xff, (number >>> 8) & 0xff, (number >>> 16) & 0xff, number >>> 24);
    return this;
  }

  u64(number: bigint): this {
    if (number < 0n || number > NO_OFFSET) throw new InvalidValue(`${number} does not fit 64 bits`);
    return this.u32(Number(number & 0xffff_ffffn)).u32(Number(number >> 32n));
  }

  raw(bytes: Buffer): this {
    if (this.small.length > 0) {
      this.parts.push(Buffer.from(this.small));
      this.small = [];
    }
    if (bytes.length > 0) this.parts.push(bytes);
    return this;
  }

  zeros(count: number): this {
    return this.raw(Buffer.alloc(count));
  }

  text(text: string, most: number, what: string): this {
    const raw = textBytes(text, `a ${what}`);
    if (raw.length > most) {
      throw new InvalidValue(`a ${what} has at most ${most} bytes, not ${raw.length}`);
    }
    return this.u16(raw.length).raw(raw);
  }

  bound(bound: bigint | FrameId): this {
    return typeof bound === "bigint" ? this.u8(0).u64(bound) : this.u8(1).raw(idBytes(bound));
  }

  patterns(patterns: readonly string[]): this {
    this.u16(patterns.length);
    for (const pattern of patterns) this.text(pattern, 0xffff, "topic pattern");
    return this;
  }

  extension(tag: number, value: Buffer): this {
    return this.u16(tag).u16(0).u32(value.length).raw(value);
  }

  /** The body, in chunks. */
  done(): Buffer[] {
    this.raw(Buffer.alloc(0));
    return this.parts;
  }

  /** The body, as one buffer. */
  bytes(): Buffer {
    return Buffer.concat(this.done());
  }
}

/** The extensions up to the end of a body. */
export function readExtensions(reader: Reader): Array<{ tag: number; value: Reader }> {
  const found = [];
  while (reader.left > 0) {
    const tag = reader.u16("extension");
    reader.u16("extension");
    const value = new Reader(reader.take(reader.u32("extension"), "extension"));
    found.push({ tag, value });
  }
  return found;
}
