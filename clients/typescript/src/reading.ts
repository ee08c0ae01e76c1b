// What a reader has seen and where it goes on, without a connection.

import { Op } from "./coding.js";
import { CorruptRange, OtherStore, ProtocolError } from "./errors.js";
import type { Frame } from "./frames.js";
import { NO_OFFSET } from "./limits.js";
import { goingOn, readEvent, readList, type SeenIn, type Selection } from "./messages.js";
import type { Push } from "./session.js";
import { jsonable } from "./showing.js";
import type { CaughtUp, Gap, Pulse, Resumed, ResumePoint, ServerInfo } from "./values.js";

/** What a follower is given. */
export type Item = Frame | CaughtUp | Gap | Pulse | Resumed;

/**
 * How a client goes on when the server is away or busy: it waits `firstMs`, then `factor` times
 * as long, up to `mostMs`, each time between half of it and all of it by chance. A request gives
 * up after `giveUpMs`, a read or a download after so long without anything new; followers never do.
 * `firstMs` and `mostMs` count as 1 at least.
 */
export interface Retry {
  readonly firstMs: number;
  readonly mostMs: number;
  readonly factor: number;
  readonly giveUpMs: number;
}

export const RETRY: Retry = { firstMs: 50, mostMs: 5000, factor: 2, giveUpMs: 30_000 };

/** How long a server can make a client wait, whatever it asks for. */
const RETRY_AFTER_MAX_MS = 60_000;

/**
 * How long an attempt waits after the one before, of which chance may take a half: without any a
 * server that is away would be asked in a busy loop.
 */
const WAIT_MIN_MS = 1;

/** The waiting times of one attempt after another. */
export class Backoff {
  #next: number;
  #isFirst = true;

  constructor(
    private readonly retry: Retry,
    private readonly chance: () => number = Math.random,
  ) {
    this.#next = Math.max(WAIT_MIN_MS, retry.firstMs);
  }

  /** What was tried has worked. */
  reset(): void {
    this.#next = Math.max(WAIT_MIN_MS, this.retry.firstMs);
    this.#isFirst = true;
  }

  /**
   * Milliseconds to wait after a request found its connection ended: none the first time, as that
   * may be long ago.
   */
  waitUnsent(): number {
    if (!this.#isFirst) return this.wait();
    this.#isFirst = false;
    return 0;
  }

  /** Milliseconds to wait before the next attempt. */
  wait(atLeastMs = 0): number {
    const wait = this.#next * (0.5 + 0.5 * this.chance());
    const next = Math.min(this.#next * this.retry.factor, this.retry.mostMs);
    this.#next = Math.max(WAIT_MIN_MS, next);
    return Math.max(wait, Math.min(atLeastMs, RETRY_AFTER_MAX_MS));
  }
}

/**
 * One read or follow over as many connections as it takes: `begin` on each of them, `take` for
 * what comes, and `gave` for what was handed out, which moves the position.
 */
export class Reading {
  /** What there is still to read. */
  rest: Selection;
  /** All that there is to read was given. */
  isDone = false;
  /** A server has accepted it, and it is known where that has it begin. */
  isStarted = false;
  readonly #reverse: boolean;
  readonly #follow: boolean;
  #isCaughtUp = false;
  #seen: bigint | undefined;
  #given: bigint | undefined;
  #store: string | undefined;
  #epoch = 0n;

  constructor(selection: Selection, point?: ResumePoint) {
    this.rest = point ? { ...selection, start: { at: "from", bound: point.offset } } : selection;
    this.#reverse = selection.reverse;
    this.#follow = selection.follow;
    this.#seen = this.#given = point?.offset;
    this.#store = point?.store;
    this.#epoch = point?.epoch ?? 0n;
  }

  /** The offset to go on from after what was handed out; undefined before anything is known. */
  get position(): bigint | undefined {
    return this.#given;
  }

  /** The position with the store and the epoch it holds for. */
  get point(): ResumePoint | undefined {
    if (this.#given === undefined || this.#store === undefined) return undefined;
    return { store: this.#store, epoch: this.#epoch, offset: this.#given };
  }

  /** What to subscribe to on a new connection. @throws {OtherStore} */
  begin(info: ServerInfo): Selection {
    if (this.#store !== undefined && this.#store !== info.store) {
      throw new OtherStore(403, "the position belongs to another store");
    }
    return this.rest;
  }

  /**
   * The store and the epoch in which the offset that the rest begins at was seen: the server
   * refuses it when frames that were seen there are lost.
   */
  get seenIn(): SeenIn | undefined {
    if (this.#store === undefined || this.#seen === undefined) return undefined;
    if (this.rest.start.at !== "from") return undefined;
    // A read backwards still begins at the id it was given, which needs no such check.
    if (typeof this.rest.start.bound === "string") return undefined;
    return { store: this.#store, epoch: this.#epoch };
  }

  /** The server accepted; after the first time there is something to tell. */
  began(info: ServerInfo): Resumed | undefined {
    this.#store = info.store;
    this.#epoch = info.epoch;
    if (this.isStarted) return jsonable<Resumed>({ kind: "resumed", offset: this.#seen ?? null });
    // What is new and which the last are is known with what comes first: asked again later, others
    // would be.
    const { at } = this.rest.start;
    const isOfNow = (at === "new" || at === "last") && this.#seen === undefined;
    this.isStarted = !(isOfNow && this.#follow);
    return undefined;
  }

  /** An item was handed out, the last of those that `take` gave or not. */
  gave(item: Item, isLast: boolean): void {
    if (isLast) this.#given = this.#seen;
    else if (item.kind === "frame" && item.offset !== null) {
      this.#given = this.#reverse ? item.offset : item.offset + 1n;
    }
  }

  /**
   * What a message brings. @throws the refusal with which the server ended the stream, and
   * {CorruptRange} where a bounded read cannot go on
   */
  take(push: Push): Item[] {
    const items = this.#take(push);
    if (items.length === 0) this.#given = this.#seen;
    if (items[0]?.kind !== "pulse") this.isStarted = true;
    return items;
  }

  #take(push: Push): Item[] {
    if (push.op === Op.DELIVER) return this.#frames(push.body);
    if (push.op !== Op.SUB_EVENT) {
      throw new ProtocolError(`op ${push.op} does not belong on this stream`);
    }
    const event = readEvent(push.code, push.body);
    switch (event.kind) {
      case "ended":
        // Below where it began or is there is nothing that it could be told of.
        if (this.#reverse || this.#isAhead(event.scannedTo)) this.#move(event.scannedTo);
        this.isDone = true;
        return [];
      case "dropped":
        // At its start it may have waited for frames that are still to come.
        if (this.#start < event.resume) this.#move(event.resume);
        throw event.refusal;
      case "caught_up": {
        const seen = this.#seen ?? 0n;
        if (this.#start <= event.head) this.#move(event.head > seen ? event.head : seen);
        const isFirst = !this.#isCaughtUp;
        this.#isCaughtUp = true;
        return isFirst ? [event] : [];
      }
      case "gap":
        return this.#gap(event);
      case "pulse":
        return [event];
    }
  }

  #frames(body: Buffer): Item[] {
    const { frames, scannedTo } = readList(body);
    if (!this.#reverse) {
      let at = this.#seen ?? 0n;
      for (const { offset } of frames) {
        if (offset === null) continue;
        if (offset < at) throw new ProtocolError(`frame ${offset} came after frame ${at - 1n}`);
        at = offset + 1n;
      }
    }
    if (frames.length > 0 || this.#start <= scannedTo) {
      this.rest = goingOn(this.rest, scannedTo, frames.length);
      this.#seen = scannedTo;
    }
    if (this.rest.limit === 0n) this.isDone = true;
    return frames;
  }

  #gap(gap: Gap): Item[] {
    if (gap.reason === "corrupt" && gap.first !== null && gap.end !== null) {
      this.#move(this.#reverse ? gap.first : gap.end);
      if (!this.#follow) {
        this.#given = this.#seen;
        throw new CorruptRange(gap.first, gap.end, this.#reverse);
      }
    }
    return [gap];
  }

  /**
   * The offset below which nothing is wanted, while nothing that is wanted was seen: above all when
   * an id says it. It may lie above the head, where there is nothing yet that the server could
   * check, and frames that come below it are not to be given. Otherwise below all.
   */
  get #start(): bigint {
    const { start } = this.rest;
    if (this.#seen !== undefined || this.#reverse || !("bound" in start)) return -1n;
    if (typeof start.bound === "string") return NO_OFFSET;
    return start.at === "after" ? start.bound + 1n : start.bound;
  }

  #isAhead(offset: bigint): boolean {
    return this.#start <= offset && (this.#seen ?? 0n) <= offset;
  }

  /** Notes how far the server looked. */
  #move(offset: bigint): void {
    this.rest = goingOn(this.rest, offset, 0);
    this.#seen = offset;
  }
}
