// Blobs as streams, in both directions with bounded memory.

import { createHash } from "node:crypto";
import { MORE, Op, Reader } from "./coding.js";
import type { Connection, Line } from "./connection.js";
import {
  ClientClosed,
  ConnectionLost,
  IntegrityError,
  InvalidValue,
  NotFound,
  ProtocolError,
  Unavailable,
} from "./errors.js";
import type { Frame } from "./frames.js";
import { CHUNK_BYTES_MAX } from "./limits.js";
import { blobGet, get, readEvent, readNumber } from "./messages.js";
import { Backoff } from "./reading.js";
import type { Push } from "./session.js";
import { jsonable } from "./showing.js";
import { Stream, type Host } from "./streams.js";
import { asBuffer, hashBytes, type Blob, type BlobHash } from "./values.js";
import { check, ignore, listen, until } from "./waiting.js";

/** The source of a blob's bytes: a Readable, a ReadableStream, any iterable of bytes. */
export type Source = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/**
 * An upload: `write` chunks, then `finish`; after `close` without it, nothing is stored. Writes
 * need not be awaited before the next one or `finish`: they take turns, and hold their chunks in
 * memory meanwhile. A `write` that fails ends the upload, because it is unknown how much of its
 * chunk was sent; later writes and `finish` then throw ClientClosed, with the failure as its cause.
 */
export class BlobWriter {
  #connection: Connection | undefined;
  #line: Line | undefined;
  #answer: Promise<readonly Buffer[]> | undefined;
  #isAnswered = false;
  #isOver = false;
  #window = 0;
  #held: Buffer[] = [];
  #heldBytes = 0;
  /** The error that ended it before `finish`. */
  #failure: unknown;
  /** The signal has ended it, and that was not reported yet. */
  #isAborted = false;
  #turn: Promise<unknown> = Promise.resolve();
  readonly #closing = new AbortController();

  constructor(
    private readonly connect: (signal?: AbortSignal) => Promise<Connection>,
    private readonly signal?: AbortSignal,
  ) {}

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  async #open(): Promise<{ connection: Connection; line: Line }> {
    if (this.#isOver) throw this.#over();
    if (!this.#connection || !this.#line) {
      const connection = await this.connect(this.signal);
      await connection.writable(this.signal);
      if (this.#isOver) throw this.#over();
      check(this.signal);
      this.#connection = connection;
      this.#window = connection.info.uploadWindow;
      const line = (this.#line = connection.open(Op.BLOB_PUT, 1));
      this.#answer = connection.send(Op.BLOB_PUT, [], line);
      const answered = () => {
        this.#isAnswered = true;
        // No one needs to wait for credit any more.
        line.fail(new ClientClosed("the upload was answered"));
      };
      this.#answer.then(answered, answered);
      if (this.signal) listen(this.signal, this.#abort);
    }
    return { connection: this.#connection, line: this.#line };
  }

  /** Ends the upload when the signal is aborted, whether or not anything waits for it. */
  readonly #abort = (): void => {
    if (this.#isOver) return;
    this.#failure = this.signal?.reason;
    this.#isAborted = true;
    this.close();
  };

  #over(): ClientClosed {
    return new ClientClosed("the upload is over", { cause: this.#failure });
  }

  /** Runs work after everything requested before. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work);
    // A caller that only waits for `finish` gets the error there.
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** Sends bytes, as fast as the server takes them. They may be changed once it has resolved. */
  write(data: Uint8Array): Promise<void> {
    return this.#inTurn(async () => {
      try {
        if (!this.#isOver) check(this.signal);
        if (!(data instanceof Uint8Array)) throw new InvalidValue("a blob is written in bytes");
        await this.#write(asBuffer(data));
      } catch (error) {
        if (!this.#isOver) this.#failure = error;
        this.close();
        throw this.#told(error);
      }
    });
  }

  async #write(data: Buffer): Promise<void> {
    const { connection } = await this.#open();
    // More than the window would never fit into it, and 0 means no limit.
    const { chunkBytes, uploadWindow } = connection.info;
    const most = CHUNK_BYTES_MAX;
    const size = Math.min(chunkBytes || most, uploadWindow || most, most);
    let left = data;
    while (this.#heldBytes + left.length > size) {
      const fits = size - this.#heldBytes;
      const chunk = Buffer.concat([...this.#held, left.subarray(0, fits)]);
      this.#held = [];
      this.#heldBytes = 0;
      left = left.subarray(fits);
      await this.#send(chunk, MORE);
    }
    // The caller may use its memory again.
    if (left.length > 0) this.#held.push(Buffer.from(left));
    this.#heldBytes += left.length;
  }

  async #send(chunk: Buffer, flags: number): Promise<void> {
    const { connection, line } = await this.#open();
    while (this.#window < chunk.length && !this.#isAnswered) {
      let push: Push | undefined;
      try {
        push = await line.item(this.signal);
      } catch (error) {
        if (!this.#isAnswered) throw error;
      }
      if (push?.op === Op.CREDIT) this.#window += Number(readNumber(push.body));
    }
    if (this.#isOver) throw this.#over();
    // A refusal may come before the end.
    if (this.#isAnswered) await this.#answer;
    this.#window -= chunk.length;
    await connection.sendChunk(line, chunk, flags, this.signal);
  }

  /** Sends the rest, after any earlier writes, and waits until it is stored. */
  finish(): Promise<Blob> {
    return this.#inTurn(() => this.#finish());
  }

  async #finish(): Promise<Blob> {
    try {
      const { line } = await this.#open();
      await this.#send(Buffer.concat(this.#held), 0);
      if (!this.#answer) throw this.#over();
      const answer = until(this.#answer, this.#closing.signal);
      const [body] = await until(answer, this.signal);
      line.isOver = true;
      const reader = new Reader(body ?? Buffer.alloc(0));
      return jsonable({ hash: reader.hash("hash"), bytes: reader.u64("length") });
    } catch (error) {
      throw this.#told(error);
    } finally {
      this.close();
    }
  }

  /** The error to throw: after an abort, the first is the signal's reason. */
  #told(error: unknown): unknown {
    const isFirst = this.#isAborted;
    this.#isAborted = false;
    return isFirst ? this.#failure : error;
  }

  /** Discards an unfinished upload. May be called twice. */
  close(): void {
    if (this.#line && this.#isAnswered) this.#line.isOver = true;
    this.#closing.abort(this.#over());
    this.#isOver = true;
    this.#held = [];
    if (this.signal) ignore(this.signal, this.#abort);
    this.#line?.close();
    this.#line = undefined;
  }
}

/**
 * The chunks of a blob. The last one arrives only if all of them match the hash. After a lost
 * connection it starts over and skips what it has returned.
 */
export class BlobReader extends Stream<Buffer> {
  readonly hash: BlobHash;
  /** The length of the blob, once the first chunk has arrived. */
  bytes: bigint | undefined;
  #given = 0;
  #passed = 0;
  /** When to give up, if nothing new arrives. */
  #end: number | undefined;
  readonly #sum = createHash("sha256");
  readonly #backoff: Backoff;

  constructor(
    private readonly host: Host,
    private readonly blob: BlobHash | Frame,
    private readonly credit: number,
    signal: AbortSignal | undefined,
  ) {
    super(signal);
    const hash = typeof blob === "string" ? blob : blob?.hash;
    if (hash === null) throw new InvalidValue("the frame has no body");
    this.hash = hash;
    this.#backoff = new Backoff(host.retry);
    // Encoded before anything is sent, so that the call itself reports a wrong argument.
    blobGet(hash, credit);
  }

  next(): Promise<IteratorResult<Buffer, undefined>> {
    return this.inTurn(() => this.#next());
  }

  async #next(): Promise<IteratorResult<Buffer, undefined>> {
    while (!this.isClosed) {
      try {
        check(this.signal);
        const piece = await this.#piece();
        if (piece.length > 0) return { done: false, value: piece };
      } catch (error) {
        if (this.isClosed) break;
        const isRefused = error instanceof Unavailable;
        const isPassing = isRefused || error instanceof ConnectionLost;
        // The signal's reason may be any error.
        if (!isPassing || this.host.closing.aborted || this.signal?.aborted) {
          this.close();
          throw error;
        }
        this.drop();
        const atLeast = isRefused ? error.details.retryAfterMs : 0;
        const wait = this.#backoff.wait(atLeast);
        this.#end ??= performance.now() + this.host.retry.giveUpMs;
        if (performance.now() + wait > this.#end) {
          this.close();
          throw error;
        }
        await this.rest(wait, this.host);
      }
    }
    return { done: true, value: undefined };
  }

  async #piece(): Promise<Buffer> {
    if (!this.line) {
      await this.unlessClosed(this.#open());
      return Buffer.alloc(0);
    }
    if (this.taken) this.line.took(this.taken);
    const push = (this.taken = await this.line.item(this.signal));
    if (push.op === Op.SUB_EVENT) {
      const event = readEvent(push.code, push.body);
      if (event.kind !== "dropped") return Buffer.alloc(0);
      this.line.isOver = true;
      throw event.refusal;
    }
    if (push.op !== Op.BLOB_CHUNK) {
      throw new ProtocolError(`op ${push.op} does not belong on a download`);
    }
    const skip = Math.min(push.body.length, this.#given - this.#passed);
    const piece = push.body.subarray(skip);
    this.#passed += push.body.length;
    if (this.bytes === undefined || BigInt(this.#passed) > this.bytes) {
      throw new IntegrityError(`more came for ${this.hash} than its ${this.bytes} bytes`);
    }
    this.#given += piece.length;
    this.#sum.update(piece);
    if (piece.length > 0 || !push.more) {
      this.#end = undefined;
      this.#backoff.reset();
    }
    if (!push.more) {
      this.line.isOver = true;
      this.#check();
      this.close();
    }
    return piece;
  }

  #check(): void {
    const isSame = this.#sum.digest().equals(hashBytes(this.hash));
    if (!isSame || BigInt(this.#passed) !== this.bytes) {
      throw new IntegrityError(`what came for ${this.hash} is something else`);
    }
  }

  async #open(): Promise<void> {
    const connection = await this.host.connection(this.signal);
    this.#passed = 0;
    try {
      await this.#ask(connection);
    } catch (error) {
      if (!(error instanceof NotFound) || typeof this.blob === "string") throw error;
      // A token that is limited to topics may name it once its frame was delivered on this
      // connection.
      await connection.ask(Op.GET, get(this.blob.id), this.signal);
      await this.#ask(connection);
    }
  }

  async #ask(connection: Connection): Promise<void> {
    const body = blobGet(this.hash, this.credit);
    const { line, parts } = await connection.askStream(Op.BLOB_GET, body, this.credit, this.signal);
    this.hold(line);
    this.bytes = readNumber(parts[0] ?? Buffer.alloc(0));
    if (this.isClosed) this.drop();
  }
}
