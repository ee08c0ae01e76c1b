// The client's half of a connection, without a socket or a clock: bytes in, events out. It numbers
// requests and streams, matches answers to requests, and answers PING.

import { header, MORE, Op, PREFACE, PUSH, Reader, readHeader, RESPONSE } from "./coding.js";
import type { Header } from "./coding.js";
import { InvalidValue, NotSent, ProtocolError, type Refusal } from "./errors.js";
import {
  HEADER_BYTES,
  MESSAGE_BYTES_MAX,
  NUMBER_MAX,
  PART_BYTES_MIN,
  PARTS_BYTES_MAX,
  PING_BYTES_MAX,
  PONGS_MAX,
  SERVER_MESSAGE_BYTES_MAX,
} from "./limits.js";
import * as messages from "./messages.js";
import type { ServerInfo } from "./values.js";

/** A message on a stream: DELIVER, SUB_EVENT, BLOB_CHUNK or CREDIT. */
export interface Push {
  readonly kind: "push";
  readonly sub: number;
  readonly op: number;
  readonly code: number;
  readonly more: boolean;
  readonly body: Buffer;
}

/** The meaning of the server's bytes. */
export type Event =
  /** HELLO was answered: requests may be sent. */
  | { readonly kind: "welcome"; readonly info: ServerInfo }
  /** The complete answer to a request: the parts of its body, or why it was refused. */
  | {
      readonly kind: "answer";
      readonly corr: number;
      readonly parts: readonly Buffer[];
      readonly refusal?: Refusal;
    }
  | Push
  /** The server is stopping; new requests belong on another connection. */
  | { readonly kind: "goaway"; readonly drainMs: number; readonly reason: string }
  /** The server closes the connection and says why. */
  | { readonly kind: "closed"; readonly refusal: Refusal };

const PUSHES: readonly number[] = [Op.DELIVER, Op.SUB_EVENT, Op.BLOB_CHUNK, Op.CREDIT];

/** One connection, from its first byte on. `outgoing` takes what is to be sent. */
export class Session {
  info: ServerInfo | undefined;
  #in: Buffer[] = [];
  #held = 0;
  /** Number of bytes needed to read anything more. */
  #wanted = PREFACE.length;
  #isGreeted = false;
  #out: Buffer[] = [PREFACE];
  #corr = 0;
  #sub = 0;
  readonly #asked = new Map<number, { op: number; parts: Buffer[] }>();
  /** The bytes that count for parts of incomplete answers. */
  #partsBytes = 0;
  /** Answers to PINGs that may not have been written yet. */
  #pongs = 0;

  /** Creates one that can open at most `streams` streams. */
  constructor(name: string, token = "", private readonly streams = NUMBER_MAX) {
    this.request(Op.HELLO, messages.hello(name, token));
  }

  /** Takes the bytes to be sent. */
  outgoing(): Buffer[] {
    const out = this.#out;
    this.#out = [];
    return out;
  }

  /** Notes that everything from `outgoing` was written. */
  written(): void {
    this.#pongs = 0;
  }

  /** Adds a request and returns the number of its answer. @throws {InvalidValue} */
  request(op: number, body: readonly Buffer[] = [], sub = 0): number {
    const most = this.info?.messageBytes ?? MESSAGE_BYTES_MAX;
    if (HEADER_BYTES + total(body) > most) {
      throw new InvalidValue(`a request has at most ${most} bytes; put its bodies as blobs`);
    }
    do this.#corr = (this.#corr % NUMBER_MAX) + 1;
    while (this.#asked.has(this.#corr));
    this.#asked.set(this.#corr, { op, parts: [] });
    this.#send({ op, flags: 0, code: 1, corr: this.#corr, sub }, body);
    return this.#corr;
  }

  /** Adds a one-way message. */
  tell(op: number, sub: number, body: readonly Buffer[] = [], flags = 0): void {
    this.#send({ op, flags, code: 1, corr: 0, sub }, body);
  }

  #send(fields: Omit<Header, "length">, body: readonly Buffer[]): void {
    this.#out.push(header(fields, total(body)), ...body);
  }

  /** How many streams can still be opened: their numbers only increase. */
  get streamsLeft(): number {
    return this.streams - this.#sub;
  }

  /**
   * Returns the number of a new stream; the request that opens it must come next. @throws {NotSent}
   * if none is left
   */
  stream(): number {
    if (this.streamsLeft === 0) throw new NotSent("the connection has no stream numbers left");
    return ++this.#sub;
  }

  /**
   * Takes bytes from the server. @throws {ProtocolError}, after which the connection is unusable
   */
  receive(data: Buffer): Event[] {
    this.#in.push(data);
    this.#held += data.length;
    const events: Event[] = [];
    // Chunks are joined only once there is a complete message, so each byte is copied once.
    if (this.#held < this.#wanted && this.#isGreeted) return events;
    let buffer = this.#in.length === 1 ? data : Buffer.concat(this.#in);
    if (!this.#isGreeted) buffer = this.#preface(buffer);
    while (this.#isGreeted) {
      this.#wanted = HEADER_BYTES;
      if (buffer.length < HEADER_BYTES) break;
      const head = readHeader(buffer);
      const whole = head.length + 4;
      if (whole < HEADER_BYTES || whole > SERVER_MESSAGE_BYTES_MAX) {
        throw new ProtocolError(`the server announced a message of ${whole} bytes`);
      }
      this.#wanted = whole;
      if (buffer.length < whole) break;
      const event = this.#take(head, buffer.subarray(HEADER_BYTES, whole));
      if (event) events.push(event);
      buffer = buffer.subarray(whole);
    }
    this.#in = buffer.length > 0 ? [buffer] : [];
    this.#held = buffer.length;
    return events;
  }

  #preface(buffer: Buffer): Buffer {
    const met = buffer.subarray(0, PREFACE.length);
    if (!met.equals(PREFACE.subarray(0, met.length))) {
      const isXsp = met.length > 4 && met.subarray(0, 4).equals(PREFACE.subarray(0, 4));
      throw new ProtocolError(
        isXsp && met[4] !== PREFACE[4]
          ? `the server speaks XSP/${met[4]}, this client XSP/1`
          : "what listens there does not speak XSP",
      );
    }
    if (met.length < PREFACE.length) return buffer;
    this.#isGreeted = true;
    return buffer.subarray(PREFACE.length);
  }

  #take(head: Header, body: Buffer): Event | undefined {
    const { op, flags, code, sub } = head;
    const who = flags & (RESPONSE | PUSH);
    if (flags & ~(RESPONSE | PUSH | MORE) || (who !== RESPONSE && who !== PUSH)) {
      throw new ProtocolError(`the server sent a message with flags ${flags}`);
    }
    if (who === RESPONSE) return this.#answer(head, body);
    if (PUSHES.includes(op)) {
      return { kind: "push", sub, op, code, more: (flags & MORE) !== 0, body };
    }
    if (op === Op.PING) {
      if (body.length > PING_BYTES_MAX || ++this.#pongs > PONGS_MAX) {
        throw new ProtocolError("the server sent more PINGs than it takes answers to");
      }
      this.#send({ op, flags: RESPONSE, code: 0, corr: 0, sub: 0 }, [body]);
      return undefined;
    }
    if (op === Op.CLOSE) return { kind: "closed", refusal: messages.readRefusal(code, body) };
    if (op === Op.GOAWAY) {
      const reader = new Reader(body);
      const drainMs = reader.u32("drain time");
      return { kind: "goaway", drainMs, reason: reader.text("reason") };
    }
    throw new ProtocolError(`the server pushed a message with op ${op}`);
  }

  #answer(head: Header, body: Buffer): Event | undefined {
    const { op, code, corr } = head;
    const asked = this.#asked.get(corr);
    if (asked?.op !== op) throw new ProtocolError("the server answered what was not asked");
    if (code === 0 && head.flags & MORE) {
      asked.parts.push(body);
      this.#partsBytes += cost(body);
      if (this.#partsBytes > PARTS_BYTES_MAX) {
        throw new ProtocolError("the server sent an answer that does not end");
      }
      return undefined;
    }
    this.#asked.delete(corr);
    for (const part of asked.parts) this.#partsBytes -= cost(part);
    if (code !== 0) {
      return { kind: "answer", corr, parts: [], refusal: messages.readRefusal(code, body) };
    }
    asked.parts.push(body);
    if (op !== Op.HELLO) return { kind: "answer", corr, parts: asked.parts };
    this.info = messages.readHello(body);
    return { kind: "welcome", info: this.info };
  }
}

const cost = (part: Buffer) => Math.max(part.length, PART_BYTES_MIN);

function total(parts: readonly Buffer[]): number {
  return parts.reduce((sum, part) => sum + part.length, 0);
}

/**
 * The credit of one stream: bytes taken are granted again once they are half of the initial credit.
 */
export class Flow {
  readonly #step: number;
  /** Bytes that the server may still send; negative after a message that was longer. */
  #left: number;
  #owed = 0;

  constructor(credit: number) {
    this.#left = credit;
    this.#step = Math.max(1, Math.floor(credit / 2));
  }

  /** Notes a DELIVER or BLOB_CHUNK. @throws {ProtocolError} when the server may not send it */
  came(push: Push): void {
    const isPiece = push.op === Op.BLOB_CHUNK;
    const count = push.body.length;
    if (isPiece && count === 0) {
      if (push.more) throw new ProtocolError("the server sent a piece of a blob without bytes");
      return;
    }
    if (this.#left <= 0 || (isPiece && count > this.#left)) {
      throw new ProtocolError("the server sent more than the credit of a stream");
    }
    this.#left -= count;
  }

  /** Notes bytes that were used up, and returns how many to grant now. */
  took(count: number): number {
    this.#owed += count;
    if (this.#owed < this.#step) return 0;
    const owed = this.#owed;
    this.#owed = 0;
    this.#left += owed;
    return owed;
  }
}
