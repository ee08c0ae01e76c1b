// Reads and follows: a Reading over successive connections.

import { Op } from "./coding.js";
import type { Connection, Line } from "./connection.js";
import {
  ClientClosed,
  ConnectError,
  ConnectionLost,
  NotSent,
  Unavailable,
  XsError,
} from "./errors.js";
import type { Frame } from "./frames.js";
import { subscribe, type How } from "./messages.js";
import { Backoff, type Item, type Reading, type Retry } from "./reading.js";
import type { Push } from "./session.js";
import type { ResumePoint } from "./values.js";
import { check, ignore, listen, sleep, until } from "./waiting.js";

/** What streams need from their client. */
export interface Host {
  /** Aborted when the client is closed. */
  readonly closing: AbortSignal;
  readonly retry: Retry;
  /** The connection for new requests, made within `giveUpMs` or the client's own limit. */
  connection(signal?: AbortSignal, giveUpMs?: number): Promise<Connection>;
}

/** An iterator that is its own iterable; leaving a `for await` ends it. */
abstract class Stream<T> implements AsyncIterableIterator<T> {
  protected line: Line | undefined;
  /** The item returned last, for which no credit was granted yet. */
  protected taken: Push | undefined;
  readonly #closing = new AbortController();
  #turn: Promise<unknown> = Promise.resolve();

  constructor(protected readonly signal: AbortSignal | undefined) {}

  abstract next(): Promise<IteratorResult<T, undefined>>;

  /** Ends the stream, also for callers that wait for it. May be called twice. */
  close(): void {
    this.#closing.abort(new ClientClosed("the stream was closed"));
    this.drop();
  }

  protected get isClosed(): boolean {
    return this.#closing.signal.aborted;
  }

  /**
   * Takes over the line that the server has accepted. An abort of the signal ends it, whether or
   * not anything waits for it; the next call throws the reason.
   */
  protected hold(line: Line): void {
    if (this.signal?.aborted) line.close(this.signal.reason);
    check(this.signal);
    this.line = line;
    if (this.signal) listen(this.signal, this.#abort);
  }

  readonly #abort = (): void => this.line?.close(this.signal?.reason);

  protected drop(): void {
    const { line } = this;
    this.line = this.taken = undefined;
    if (this.signal) ignore(this.signal, this.#abort);
    line?.close();
  }

  /** Runs work after everything requested before: overlapping calls of `next` take turns. */
  protected inTurn<U>(work: () => Promise<U>): Promise<U> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** Waits for a promise; `close` interrupts that with an error. */
  protected unlessClosed<U>(promise: Promise<U>): Promise<U> {
    return until(promise, this.#closing.signal);
  }

  /** Waits, at most until the stream or the client ends; the caller checks which has ended. */
  protected async rest(ms: number, host: Host): Promise<void> {
    const ends = [this.#closing.signal, host.closing, this.signal];
    await sleep(ms, ...ends).catch(() => undefined);
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async return(): Promise<IteratorResult<T, undefined>> {
    this.close();
    return { done: true, value: undefined };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }
}

export { Stream };

abstract class ReaderStream<T> extends Stream<T> {
  #items: Item[] = [];
  #at = 0;
  /** When to give up, if nothing arrives. */
  #end: number | undefined;
  /** A caller has waited for it while the client was open. */
  #isBegun = false;
  readonly #backoff: Backoff;

  constructor(
    private readonly host: Host,
    private readonly reading: Reading,
    private readonly how: How,
    /** It reports resumes, never gives up, and ends when its client is closed. */
    private readonly isEndless: boolean,
    signal: AbortSignal | undefined,
  ) {
    super(signal);
    this.#backoff = new Backoff(host.retry);
    // Encoded before anything is sent, so that the call itself reports a wrong argument.
    subscribe(reading.rest, how);
  }

  /** The offset to continue from after the items returned; undefined before anything is known. */
  get position(): bigint | undefined {
    return this.reading.position;
  }

  /** The position with the store and the epoch in which it is valid: keep it to continue later. */
  get point(): ResumePoint | undefined {
    return this.reading.point;
  }

  override close(): void {
    this.#items = [];
    this.#at = 0;
    super.close();
  }

  /**
   * Makes the server begin, so that nothing later is missed; iterating does so too.
   *
   * @throws {ClientClosed} if it is closed before that
   */
  async open(): Promise<this> {
    this.#begin();
    await this.inTurn(async () => {
      const isOpen = () => this.line && this.reading.isStarted;
      while (!isOpen() && !this.isClosed && !this.reading.isDone) {
        await this.#more();
        // A caller may take its time before it asks for items.
        if (this.line) this.#end = undefined;
      }
      if (this.isClosed && !this.reading.isStarted) {
        throw new ClientClosed("the stream was closed before it began");
      }
    });
    return this;
  }

  /** The next item; undefined at the end. */
  protected item(): Promise<Item | undefined> {
    this.#begin();
    return this.inTurn(() => this.#next());
  }

  /** Now, and not in its turn: the client may be closed in between. */
  #begin(): void {
    this.#isBegun ||= !this.host.closing.aborted;
  }

  async #next(): Promise<Item | undefined> {
    for (;;) {
      const item = this.#items[this.#at];
      if (item) {
        const isLast = ++this.#at === this.#items.length;
        if (isLast) {
          this.#items = [];
          this.#at = 0;
        }
        this.reading.gave(item, isLast);
        return item;
      }
      if (this.isClosed || this.reading.isDone) {
        this.drop();
        return undefined;
      }
      await this.#more();
    }
  }

  /** Takes one more message, over as many connections as that requires. */
  async #more(): Promise<void> {
    try {
      check(this.signal);
      if (!this.line) return await this.unlessClosed(this.#open());
      if (this.taken) this.line.took(this.taken);
      this.taken = undefined;
      const push = await this.line.item(this.signal);
      if (push.op === Op.DELIVER) this.taken = push;
      this.#items = this.reading.take(push);
      this.#backoff.reset();
      this.#end = undefined;
      if (this.reading.isDone && this.line) this.line.isOver = push.op === Op.SUB_EVENT;
    } catch (error) {
      if (this.isClosed) return;
      // If the connection was lost before the client was closed, it would have continued.
      const isEnd = error instanceof ClientClosed || isPassing(error);
      if (isEnd && this.host.closing.aborted && this.isEndless && this.#isBegun) {
        return this.close();
      }
      await this.rest(this.#lost(error), this.host);
    }
  }

  /**
   * Decides whether to continue after the error that ended the stream; returns how many
   * milliseconds to wait before that.
   */
  #lost(error: unknown): number {
    const connection = this.line?.connection;
    const isRefused = error instanceof Unavailable;
    if (this.line && error instanceof XsError) this.line.isOver = isRefused;
    if (isRefused && error.code === 501 && connection) connection.draining ??= error.text;
    this.drop();
    // The signal's reason may be any error.
    const isOver = this.host.closing.aborted || this.signal?.aborted;
    if (isOver || !isPassing(error)) {
      this.close();
      throw error;
    }
    const after = isRefused ? error.details.retryAfterMs : 0;
    const wait = error instanceof NotSent ? this.#backoff.waitUnsent() : this.#backoff.wait(after);
    const left = this.#timeLeft();
    if (left !== undefined && wait > left) {
      this.close();
      throw error;
    }
    return wait;
  }

  /** Milliseconds for connecting; undefined for the client's own limit. */
  #timeLeft(): number | undefined {
    if (this.isEndless) return undefined;
    const now = performance.now();
    this.#end ??= now + this.host.retry.giveUpMs;
    return Math.max(0, this.#end - now);
  }

  async #open(): Promise<void> {
    const connection = await this.host.connection(this.signal, this.#timeLeft());
    const read = this.reading.begin(connection.info);
    const body = subscribe(read, this.how, this.reading.seenIn);
    const { credit } = this.how;
    const { line } = await connection.askStream(Op.SUBSCRIBE, body, credit, this.signal);
    if (this.isClosed) return line.close();
    this.hold(line);
    const resumed = this.reading.began(connection.info);
    if (resumed && this.isEndless) this.#items = [resumed];
  }
}

/**
 * Whether another attempt may succeed. A reader that asked to be dropped when slow gets the error.
 */
function isPassing(error: unknown): boolean {
  if (error instanceof ConnectError) return error.retryable;
  if (error instanceof Unavailable) return error.code !== 503;
  return error instanceof ConnectionLost;
}

/**
 * The frames of a bounded read. It continues over lost connections, and throws the last
 * connection's error if nothing arrives for `giveUpMs`.
 */
export class Read extends ReaderStream<Frame> {
  async next(): Promise<IteratorResult<Frame, undefined>> {
    for (;;) {
      const item = await this.item();
      if (!item) return { done: true, value: undefined };
      if (item.kind === "frame") return { done: false, value: item };
    }
  }
}

/**
 * The items of a follower: frames, caught_up, gaps, pulses and resumed; after a lost connection it
 * continues where it was. It ends when it or its client is closed.
 */
export class Follow extends ReaderStream<Item> {
  async next(): Promise<IteratorResult<Item, undefined>> {
    const item = await this.item();
    return item ? { done: false, value: item } : { done: true, value: undefined };
  }
}
