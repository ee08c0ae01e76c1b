// The client: requests and streams over successive connections.

import { addressText, parseAddress, type Address } from "./address.js";
import { BlobReader, BlobWriter, type Source } from "./blobs.js";
import { Call } from "./calls.js";
import { checkKeys, checkOptions, listOf, numberOf, rawBytes, shown } from "./checking.js";
import { CHANGES, Op } from "./coding.js";
import { only, openConnection, type Connection, type Dial } from "./connection.js";
import { moving } from "./cursors.js";
import {
  AddressError,
  ClientClosed,
  ConnectError,
  ConnectionLost,
  IntegrityError,
  InvalidValue,
  isUnknown,
  NotSent,
  ProtocolError,
  Refusal,
  Unavailable,
} from "./errors.js";
import { Frame } from "./frames.js";
import {
  CREDIT_DEFAULT,
  DAY_MS,
  INLINE_BYTES_MAX,
  PAGE_BYTES_MAX,
  PING_BYTES_MAX,
} from "./limits.js";
import * as messages from "./messages.js";
import { selection, type Batch, type Page, type ReadOptions, type Selection } from "./messages.js";
import {
  OPTIONS,
  type AppendOptions,
  type CallOptions,
  type ConnectOptions,
  type CursorOptions,
  type CursorSetOptions,
  type FetchOptions,
  type FollowOptions,
  type Signal,
  type StreamOptions,
} from "./options.js";
import { Backoff, Reading, RETRY, type Retry } from "./reading.js";
import { jsonable } from "./showing.js";
import { Follow, Read, type Host } from "./streams.js";
import {
  asBuffer,
  blobHash,
  bodyOf,
  checkResume,
  isBlobRef,
  jsonBytes,
  NEW_FRAME,
  type Appended,
  type Blob,
  type BlobHash,
  type Body,
  type Bound,
  type Cursor,
  type CursorSummary,
  type Imported,
  type NewFrame,
  type ServerInfo,
  type Stamp,
  type Topics,
  type TopicSummary,
} from "./values.js";
import { check, sleep, until } from "./waiting.js";

export const VERSION = "0.1.0";

/**
 * Connects to a server: a store directory, its socket, `:port`, `host:port` or `xss://host:port`
 * (TLS).
 *
 * @throws {AddressError}, {ConnectError}, {AccessError}, {ProtocolError}, {Unavailable} (the server
 * is full, or blocks a client that has shown wrong tokens: try later)
 */
export async function connect(address: string, options: ConnectOptions = {}): Promise<Client> {
  const client = new Client(address, options);
  try {
    await client.open(options.waitMs ?? 0, options.signal);
    return client;
  } catch (error) {
    await client.close();
    throw error;
  }
}

/**
 * A client of one server: any number of requests and streams at a time. It connects when needed,
 * and again after a connection is lost: then requests that change nothing are sent again, streams
 * continue where they were, and an append without a key or a removal, which may or may not have
 * been done, throws ConnectionLost.
 */
export class Client {
  readonly address: Address;
  readonly #dial: Dial;
  readonly #host: Host;
  readonly #retry: Retry;
  #current: Connection | undefined;
  #making: Promise<Connection> | undefined;
  #old = new Set<Connection>();
  readonly #closing = new AbortController();

  constructor(address: string, options: ConnectOptions = {}) {
    checkOptions(options, OPTIONS.connect);
    const { token, tls, name = `xs-typescript/${VERSION}`, timeoutMs = 10_000 } = options;
    const { waitMs = 0, retry = {} } = options;
    this.address = parseAddress(address);
    // Encoded before anything is sent, so that the call itself reports a wrong argument.
    messages.hello(name, token ?? "");
    numberOf(timeoutMs, "timeoutMs");
    numberOf(waitMs, "waitMs");
    if (tls && !("tls" in this.address && this.address.tls)) {
      throw new AddressError(`${address}: tls belongs to an address with xss://`);
    }
    checkKeys(retry, OPTIONS.retry);
    this.#retry = { ...RETRY, ...retry };
    for (const [one, value] of Object.entries(this.#retry)) numberOf(value, one);
    this.#dial = { address: this.address, name, token, tls, timeoutMs };
    this.#host = {
      closing: this.#closing.signal,
      retry: this.#retry,
      connection: (signal, giveUpMs = this.#retry.giveUpMs) => this.#connection(giveUpMs, signal),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Connects now, and keeps trying for `waitMs` when nothing listens there. */
  async open(waitMs = 0, signal?: AbortSignal): Promise<ServerInfo> {
    checkOptions({ signal }, OPTIONS.plain);
    return (await this.#connection(numberOf(waitMs, "waitMs"), signal)).info;
  }

  /**
   * Ends the connection and everything in progress on it: followers end as if each was closed, and
   * everything else throws ClientClosed, since it is incomplete. May be called twice.
   */
  async close(): Promise<void> {
    this.#closing.abort(new ClientClosed("the client was closed"));
    await this.#making?.catch(() => undefined);
    const connections = [...this.#old, ...(this.#current ? [this.#current] : [])];
    for (const one of connections) one.abandon(new ClientClosed("the client was closed"));
    await Promise.all(connections.map((one) => one.closed()));
    this.#old.clear();
  }

  /** What the server said about itself when the current or last connection was made. */
  get server(): ServerInfo {
    if (!this.#current) {
      throw new ConnectError(`${addressText(this.address)}: there was no connection yet`);
    }
    return this.#current.info;
  }

  // Connections.

  async #connection(giveUpMs: number, signal?: AbortSignal): Promise<Connection> {
    const end = performance.now() + giveUpMs;
    for (;;) {
      check(this.#closing.signal);
      if (this.#current?.isUsable) return this.#current;
      const isMine = !this.#making;
      const left = Math.max(0, end - performance.now());
      this.#making ??= this.#connect(left).finally(() => (this.#making = undefined));
      try {
        // A caller that stops waiting does not cancel the connection for others.
        return await until(this.#making, signal);
      } catch (error) {
        // The time of another caller may have run out, not this one's.
        const isOver = isMine || performance.now() >= end;
        if (isOver || !isAway(error)) throw error;
      }
    }
  }

  async #connect(giveUpMs: number): Promise<Connection> {
    const backoff = new Backoff(this.#retry);
    const end = performance.now() + giveUpMs;
    const { signal } = this.#closing;
    for (;;) {
      try {
        const connection = await openConnection(this.#dial, signal);
        if (signal.aborted) {
          // The client was closed just after the connection was made.
          connection.abandon(new ClientClosed("the client was closed"));
          throw signal.reason;
        }
        if (this.#current) this.#retire(this.#current);
        this.#current = connection;
        return connection;
      } catch (error) {
        const after = error instanceof Unavailable ? error.details.retryAfterMs : 0;
        const wait = backoff.wait(after);
        if (!isAway(error) || performance.now() + wait > end) throw error;
        await sleep(wait, signal);
      }
    }
  }

  /** Lets the work in progress on a connection that is no longer current finish. */
  #retire(connection: Connection): void {
    this.#old = new Set([...this.#old].filter((one) => !one.failure));
    if (connection.failure) return;
    this.#old.add(connection);
    connection.closeWhenIdle();
  }

  /**
   * Does something on a connection, and repeats it if nothing was done or if doing it twice is the
   * same as once (`again`). @throws the final error: for work that `changes` something,
   * ConnectionLost even if the last attempt did nothing but an earlier one may have done it
   */
  async #try<T>(
    once: (connection: Connection) => Promise<T>,
    how: { readonly again: boolean; readonly changes: boolean },
    signal?: AbortSignal,
  ): Promise<T> {
    const backoff = new Backoff(this.#retry);
    const end = performance.now() + this.#retry.giveUpMs;
    let unknown: Error | undefined;
    for (;;) {
      let connection: Connection | undefined;
      let wait: number | undefined;
      try {
        connection = await this.#connection(Math.max(0, end - performance.now()), signal);
        return await once(connection);
      } catch (error) {
        // Connecting was retried already.
        if (connection) wait = this.#pause(error, connection, backoff, how.again);
        const left = end - performance.now();
        if (wait === undefined || left < (isUnknown(error) ? 0 : wait)) {
          if (!how.changes || !unknown || !isUndone(error)) throw error;
          const { message } = error as Error;
          throw new ConnectionLost(`${unknown.message}; after that: ${message}`, { cause: error });
        }
        if (isUnknown(error)) unknown ??= error;
      }
      await sleep(wait, this.#closing.signal, signal);
    }
  }

  /** Milliseconds to wait before another attempt; undefined if that is useless. */
  #pause(
    error: unknown,
    connection: Connection,
    backoff: Backoff,
    again: boolean,
  ): number | undefined {
    if (isUnknown(error)) {
      return again && !this.#closing.signal.aborted ? backoff.wait() : undefined;
    }
    if (error instanceof NotSent) return backoff.waitUnsent();
    if (!(error instanceof Unavailable)) return undefined;
    if (error.code === 501) connection.draining ??= error.text;
    return backoff.wait(error.details.retryAfterMs);
  }

  async #ask(
    op: number,
    body: readonly Buffer[],
    signal: AbortSignal | undefined,
    again = true,
  ): Promise<readonly Buffer[]> {
    check(signal);
    const how = { again, changes: CHANGES.has(op) };
    return this.#try((connection) => connection.ask(op, body, signal), how, signal);
  }

  // Appending.

  /**
   * Appends one frame. `body` may also be a Readable or another iterable of bytes; those, and
   * bodies longer than 1 MiB, are uploaded as a blob before the frame is appended.
   *
   * With a `key`, the store keeps the batch once, so it is sent again automatically after a lost
   * connection.
   */
  async append(topic: string, body?: Body | Source, options: AppendOptions = {}): Promise<Stamp> {
    checkOptions(options, OPTIONS.append);
    const { conditions, key, durable, signal, ...rest } = options;
    let sent: Body | undefined;
    if (body === undefined || typeof body === "string" || body instanceof Uint8Array) sent = body;
    else if (isSource(body)) sent = { blob: (await this.putBlob(body, { signal })).hash };
    else if (isBlobRef(body)) sent = body;
    else throw new InvalidValue(NO_BODY);
    const frames = [{ ...rest, topic, body: sent }];
    const done = await this.#append({ frames, conditions, key, durable }, signal);
    const [stamp] = done.frames;
    if (!stamp) throw new ProtocolError("the server stored another batch");
    return stamp;
  }

  /** Removes and appends frames and changes cursors, all or nothing. */
  async appendBatch(batch: Batch, options: Signal = {}): Promise<Appended> {
    const { signal } = checkOptions(options, OPTIONS.plain);
    const { frames = [] } = checkKeys(batch, messages.BATCH);
    for (const frame of listOf(frames, "frames")) checkKeys(frame, NEW_FRAME);
    return this.#append(batch, signal);
  }

  /** Appends a batch that was checked. */
  async #append(batch: Batch, signal: AbortSignal | undefined): Promise<Appended> {
    const long = new Map<BlobHash, Buffer>();
    const frames = (batch.frames ?? []).map((frame) => named(frame, long));
    const body = messages.append({ ...batch, frames });
    const putOn = new Map<BlobHash, Connection>();
    check(signal);
    for (const [hash, whole] of long) {
      const put = (connection: Connection) => known(connection, hash, whole, signal);
      putOn.set(hash, await this.#try(put, { again: true, changes: false }, signal));
    }
    const once = async (connection: Connection): Promise<readonly Buffer[]> => {
      for (const [hash, whole] of long) {
        // A token that is limited to topics may only name blobs that were put on this connection.
        if (putOn.get(hash) === connection) continue;
        try {
          putOn.set(hash, await known(connection, hash, whole, signal));
        } catch (cause) {
          if (!isUnknown(cause)) throw cause;
          throw new NotSent(`nothing was appended: ${(cause as Error).message}`, { cause });
        }
      }
      return connection.ask(Op.APPEND, body, signal);
    };
    const how = { again: batch.key !== undefined, changes: true };
    const parts = await this.#try(once, how, signal);
    return messages.readAppended(only(parts));
  }

  /**
   * Removes frames in one batch, and returns for each whether it existed. Not repeated after a lost
   * connection: the answer would say that the removed frames did not exist.
   */
  async remove(
    bounds: readonly Bound[],
    options: messages.RemoveOptions & Signal = {},
  ): Promise<readonly boolean[]> {
    checkOptions(options, OPTIONS.remove);
    const body = messages.remove(bounds, options);
    const parts = await this.#ask(Op.REMOVE, body, options.signal, false);
    return messages.readAppended(only(parts)).removed;
  }

  /**
   * Appends up to 4,096 frames as another store delivered them, with the bodies that came with them
   * (longer ones must be put as blobs first), and returns the outcome of each; a refused frame does
   * not affect the others. Frames that exist already are reported as such, so an import that was
   * cut off can be repeated from any earlier point.
   */
  async importFrames(
    frames: readonly Frame[],
    options: messages.ImportOptions & Signal = {},
  ): Promise<Imported> {
    checkOptions(options, OPTIONS.importFrames);
    const body = messages.importFrames(frames, options);
    return messages.readImported(only(await this.#ask(Op.IMPORT, body, options.signal)));
  }

  // Reading.

  /** The stored frames of some topics, in order: `for await (const frame of client.read(..))`. */
  read(topics: Topics = "*", options: ReadOptions & StreamOptions = {}): Read {
    const { bodies = 0, credit = CREDIT_DEFAULT, signal } = checkOptions(options, OPTIONS.read);
    const reading = new Reading(selection(topics, options, false));
    return new Read(this.#host, reading, { bodies, credit, pulseMs: 0 }, false, signal);
  }

  /**
   * The stored frames, then new ones: items whose `kind` is frame, caught_up, gap, pulse or
   * resumed. Continues over lost connections until it is closed or the `limit` is reached.
   */
  follow(topics: Topics = "*", options: FollowOptions = {}): Follow {
    checkOptions(options, OPTIONS.follow);
    const { bodies = 0, credit = CREDIT_DEFAULT, pulseMs = 0, slow, resume, signal } = options;
    if (resume !== undefined) checkResume(resume);
    const reading = new Reading(selection(topics, options, true), resume);
    return new Follow(this.#host, reading, { bodies, credit, pulseMs, slow }, true, signal);
  }

  /**
   * One page of a bounded read; the next one is `fetch(page.next)`. Unlike `read`, it leaves no
   * state on the server.
   */
  async fetch(
    topics: Topics | Selection = "*",
    options: FetchOptions = {},
  ): Promise<Page> {
    checkOptions(options, OPTIONS.fetch);
    const isNext = typeof topics === "object" && topics !== null && "start" in topics;
    const read = isNext ? messages.checkSelection(topics) : selection(topics, options, false);
    const body = messages.fetch(read, options.pageBytes ?? PAGE_BYTES_MAX);
    return messages.readPage(only(await this.#ask(Op.FETCH, body, options.signal)), read);
  }

  /** The frame with an id or an offset. */
  async get(bound: Bound, options: Signal = {}): Promise<Frame | undefined> {
    checkOptions(options, OPTIONS.plain);
    const parts = await this.#ask(Op.GET, messages.get(bound), options.signal);
    return messages.readList(only(parts)).frames[0];
  }

  /** The newest `n` frames of some topics, in the order of the log. */
  async last(topics: Topics = "*", n = 1, options: Signal = {}): Promise<Frame[]> {
    checkOptions(options, OPTIONS.plain);
    const parts = await this.#ask(Op.LAST, messages.last(topics, n, false), options.signal);
    return parts.flatMap((part) => messages.readList(part).frames);
  }

  /** The newest `n` frames of each of some topics, in the order of the log. */
  async lastPerTopic(topics: Topics = "*", n = 1, options: Signal = {}): Promise<Frame[]> {
    checkOptions(options, OPTIONS.plain);
    const parts = await this.#ask(Op.LAST, messages.last(topics, n, true), options.signal);
    return parts.flatMap((part) => messages.readList(part).frames);
  }

  /** What the store holds of some topics, in byte order of their names. */
  async topics(topics: Topics = "*", options: Signal = {}): Promise<TopicSummary[]> {
    checkOptions(options, OPTIONS.plain);
    const parts = await this.#ask(Op.TOPICS, messages.topics(topics), options.signal);
    return parts.flatMap(messages.readTopics);
  }

  // Blobs.

  /** Whether the store has a blob. */
  async hasBlob(hash: BlobHash, options: Signal = {}): Promise<boolean> {
    checkOptions(options, OPTIONS.plain);
    return only(await this.#ask(Op.BLOB_HAS, messages.blobName(hash), options.signal))[0] === 1;
  }

  /**
   * Stores bytes, text, or what a Readable or another iterable of bytes yields, as it comes. After
   * a lost connection, bytes are sent again; other sources throw.
   */
  async putBlob(source: Uint8Array | string | Source, options: Signal = {}): Promise<Blob> {
    const { signal } = checkOptions(options, OPTIONS.plain);
    if (!isSource(source)) throw new InvalidValue(NO_BODY);
    if (typeof source === "string" || source instanceof Uint8Array) {
      const whole = typeof source === "string" ? Buffer.from(source) : asBuffer(source);
      const how = { again: true, changes: true };
      check(signal);
      if (whole.length <= INLINE_BYTES_MAX) {
        return this.#try((connection) => put(connection, whole, signal), how, signal);
      }
      const hash = blobHash(whole);
      await this.#try((connection) => known(connection, hash, whole, signal), how, signal);
      return jsonable({ hash, bytes: BigInt(whole.length) });
    }
    return store(this.blobWriter(options), source, signal, this.#closing.signal);
  }

  /** An upload in chunks: `write`, then `finish`, without which nothing is stored. */
  blobWriter(options: Signal = {}): BlobWriter {
    const { signal } = checkOptions(options, OPTIONS.plain);
    return new BlobWriter(this.#host.connection, signal);
  }

  /**
   * The chunks of a blob: `for await (const piece of client.getBlob(hash))`. Given the frame whose
   * body it is, it also survives a lost connection with a token that is limited to topics: such a
   * token may only name blobs of frames that were delivered on its connection.
   */
  getBlob(blob: BlobHash | Frame, options: Omit<StreamOptions, "bodies"> = {}): BlobReader {
    const { credit = CREDIT_DEFAULT, signal } = checkOptions(options, OPTIONS.getBlob);
    return new BlobReader(this.#host, blob, credit, signal);
  }

  /** A whole blob. */
  async readBlob(blob: BlobHash | Frame, options: Signal = {}): Promise<Buffer> {
    const pieces: Buffer[] = [];
    for await (const piece of this.getBlob(blob, options)) pieces.push(piece);
    return Buffer.concat(pieces);
  }

  /** A frame's body, whether or not it was delivered with it. */
  async body(frame: Frame, options: Signal = {}): Promise<Buffer> {
    checkOptions(options, OPTIONS.plain);
    if (!(frame instanceof Frame)) throw new InvalidValue(`${shown(frame)} is not a frame`);
    return frame.body ?? this.readBlob(frame, options);
  }

  // Cursors.

  /** A cursor. */
  async cursorGet(name: string, options: Signal = {}): Promise<Cursor | undefined> {
    checkOptions(options, OPTIONS.plain);
    const parts = await this.#ask(Op.CURSOR_GET, messages.cursorGet(name), options.signal);
    return messages.readCursor(name, only(parts));
  }

  /**
   * Moves a cursor and returns its new revision. `expect` is the revision it must have now, 0 if it
   * must not exist; with a different one, CursorConflict is thrown.
   */
  async cursorSet(
    name: string,
    offset: bigint | number,
    options: CursorSetOptions = {},
  ): Promise<bigint> {
    const { signal, state, expect, again } = checkOptions(options, OPTIONS.cursorSet);
    if (offset === null) {
      throw new InvalidValue("a cursor is set to an offset, not null; cursorRemove removes it");
    }
    const change = { name, offset, state, expect };
    if (again) {
      const how = { again: true, changes: true };
      const once = moving(change, signal);
      check(signal);
      return this.#try(once, how, signal);
    }
    const body = messages.cursorSet(change);
    return messages.readNumber(only(await this.#ask(Op.CURSOR_SET, body, signal, false)));
  }

  /** Removes a cursor. */
  async cursorRemove(
    name: string,
    options: CursorOptions = {},
  ): Promise<void> {
    const { signal, expect } = checkOptions(options, OPTIONS.cursorRemove);
    const body = messages.cursorSet({ name, offset: null, expect });
    await this.#ask(Op.CURSOR_SET, body, signal, false);
  }

  /** All cursors, in byte order of their names. */
  async cursorList(options: Signal = {}): Promise<CursorSummary[]> {
    checkOptions(options, OPTIONS.plain);
    return (await this.#ask(Op.CURSOR_LIST, [], options.signal)).flatMap(messages.readCursors);
  }

  // Calls and the rest.

  /**
   * Calls a command; its results are frames: `for await (const frame of client.call(..))`. Closing
   * it before the end cancels the call.
   *
   * @throws {NotFound} (no such command, or 702 at the deadline) and {CommandFailed}
   */
  call(name: string, args?: Record<string, unknown>, options: CallOptions = {}): Call {
    checkOptions(options, OPTIONS.call);
    const { body = "", deadlineMs = 0, signal } = options;
    const { credit = CREDIT_DEFAULT, bodies = 1024 * 1024 } = options;
    const request = {
      name,
      args: args === undefined ? Buffer.alloc(0) : jsonBytes(args),
      body: typeof body === "string" ? Buffer.from(body) : rawBytes(body, "a call's body"),
      deadlineMs,
      credit,
      bodies,
    };
    const how = { again: false, changes: true };
    return new Call((once) => this.#try(once, how, signal), request, signal);
  }

  /** The server's statistics, named as in docs/wire.md. */
  async stats(options: Signal = {}): Promise<Record<string, any>> {
    checkOptions(options, OPTIONS.plain);
    return jsonOf(only(await this.#ask(Op.STATS, [], options.signal)));
  }

  // Maintenance: answers arrive when the work has ended, with the names that the subcommand of the
  // same name prints. Paths are absolute and on the server's machine, and only a client on its Unix
  // socket may give one.

  async #maintain(body: Buffer[], { signal }: Signal, again = true): Promise<Record<string, any>> {
    return jsonOf(only(await this.#ask(Op.MAINTAIN, body, signal, again)));
  }

  /** Checks every byte of the store. */
  async verify(options: Signal = {}): Promise<Record<string, any>> {
    checkOptions(options, OPTIONS.plain);
    return this.#maintain(messages.maintain("verify"), options);
  }

  /** Rewrites segments of which at least `deadPercent` is dead, 50 by default. */
  async compact(
    options: Signal & { readonly deadPercent?: number | undefined } = {},
  ): Promise<Record<string, any>> {
    const { deadPercent = 50 } = checkOptions(options, OPTIONS.compact);
    return this.#maintain(messages.maintain("compact", { deadPercent }), options);
  }

  /** Removes blobs that nothing names. */
  async gc(options: messages.GcOptions & Signal = {}): Promise<Record<string, any>> {
    checkOptions(options, OPTIONS.gc);
    const { graceMs = DAY_MS, deadPercent = 25, dryRun } = options;
    const flags = dryRun ? 2 : 0;
    return this.#maintain(messages.maintain("gc", { flags, graceMs, deadPercent }), options);
  }

  /**
   * Copies the store to a directory, or only what is new since the last backup there. `link`: files
   * that never change are hard-linked instead.
   */
  async backup(
    to: string,
    options: Signal & { readonly link?: boolean | undefined } = {},
  ): Promise<Record<string, any>> {
    const flags = checkOptions(options, OPTIONS.backup).link ? 1 : 0;
    return this.#maintain(messages.maintain("backup", { flags, path: to }), options);
  }

  /**
   * Creates an independent store with everything that this one holds. Not repeated after a lost
   * connection.
   */
  async fork(to: string, options: Signal = {}): Promise<Record<string, any>> {
    checkOptions(options, OPTIONS.plain);
    return this.#maintain(messages.maintain("fork", { path: to }), options, false);
  }

  /** Milliseconds until the server has echoed up to 64 bytes. */
  async ping(data: Uint8Array = new Uint8Array(), options: Signal = {}): Promise<number> {
    checkOptions(options, OPTIONS.plain);
    const sent = rawBytes(data, "what a ping carries");
    if (sent.length > PING_BYTES_MAX) {
      throw new InvalidValue(`a ping carries at most ${PING_BYTES_MAX} bytes, not ${sent.length}`);
    }
    const begun = performance.now();
    const parts = await this.#ask(Op.PING, [sent], options.signal);
    if (!only(parts).equals(sent)) throw new ProtocolError("the server sent other bytes back");
    return performance.now() - begun;
  }
}

/** Whether another attempt to connect may succeed. */
function isAway(error: unknown): boolean {
  return (error instanceof ConnectError || error instanceof Unavailable) && error.retryable;
}

/**
 * Whether the error says that nothing was done, which is true of its attempt only. The server's
 * verdict on the request itself (3xx, 4xx) is true of all attempts: it first checks whether it has
 * the request already.
 */
function isUndone(error: unknown): boolean {
  if (error instanceof Refusal) return ![3, 4, 8].includes(Math.floor(error.code / 100));
  return error instanceof ConnectError || error instanceof NotSent;
}

const NO_BODY =
  "a body is text, bytes, a blob or an iterable of bytes; json takes other values";

function isSource(body: unknown): body is Source {
  return Symbol.asyncIterator in Object(body) || Symbol.iterator in Object(body);
}

/** The frame as it is sent: a long body is added to `long`, and referred to by hash. */
function named(frame: NewFrame, long: Map<BlobHash, Buffer>): NewFrame {
  const body = bodyOf(frame);
  if (!body || "blob" in body || body.length <= INLINE_BYTES_MAX) return frame;
  const hash = blobHash(body);
  long.set(hash, body);
  return { ...frame, json: undefined, body: { blob: hash } };
}

/** Makes a blob known on a connection: puts it unless it exists. */
async function known(
  connection: Connection,
  hash: BlobHash,
  whole: Buffer,
  signal: AbortSignal | undefined,
): Promise<Connection> {
  const isThere = await connection.ask(Op.BLOB_HAS, messages.blobName(hash), signal);
  if (only(isThere)[0] === 1) return connection;
  const stored = await put(connection, whole, signal);
  if (stored.hash !== hash) {
    throw new IntegrityError(`the server stored ${stored.hash} for ${hash}`);
  }
  return connection;
}

function put(connection: Connection, whole: Buffer, signal?: AbortSignal): Promise<Blob> {
  return store(new BlobWriter(async () => connection, signal), [whole]);
}

/** Uploads the contents of a source; any of the signals ends it, even while the source stalls. */
async function store(
  writer: BlobWriter,
  source: Source,
  ...signals: ReadonlyArray<AbortSignal | undefined>
): Promise<Blob> {
  const pieces =
    Symbol.asyncIterator in source ? source[Symbol.asyncIterator]() : source[Symbol.iterator]();
  try {
    for (;;) {
      let next = Promise.resolve(pieces.next());
      for (const signal of signals) next = until(next, signal);
      const { done, value } = await next;
      if (done) return await writer.finish();
      await writer.write(value);
    }
  } catch (error) {
    // A source that stalls does not end before it has yielded what was requested.
    new Promise((resolve) => resolve(pieces.return?.())).catch(() => undefined);
    throw error;
  } finally {
    writer.close();
  }
}

function jsonOf(text: Buffer): Record<string, any> {
  try {
    return JSON.parse(text.toString("utf8")) as Record<string, any>;
  } catch (cause) {
    throw new ProtocolError("the server's JSON is broken", { cause });
  }
}
