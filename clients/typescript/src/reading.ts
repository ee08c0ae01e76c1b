// What a reader has seen and where it continues, without a connection.

import { Op } from "./coding.js";
import { CorruptRange, OtherStore, ProtocolError } from "./errors.js";
import type { Frame } from "./frames.js";
import { NO_OFFSET } from "./limits.js";
import { goingOn, readEvent, readList, type SeenIn, type Selection } from "./messages.js";
import type { Push } from "./session.js";
import { jsonable } from "./showing.js";
import type { CaughtUp, Gap, Pulse, Resumed, ResumePoint, ServerInfo } from "./values.js";

/** An item of a follower. */
export type Item = Frame | CaughtUp | Gap | Pulse | Resumed;

/**
 * How a client retries when the server is away or busy: it waits `firstMs`, then `factor` times as
 * long, up to `mostMs`, each time a random part of that between half and all. A request gives up
 * after `giveUpMs`, a read or a download after that time without anything new; followers never do.
 * With `giveUpMs` 0 nothing is tried twice. `firstMs` and `mostMs` count as at least 1.
 */
export interface Retry {
  readonly firstMs: number;
  readonly mostMs: number;
  readonly factor: number;
  readonly giveUpMs: number;
}

export const RETRY: Retry = { firstMs: 50, mostMs: 5000, factor: 2, giveUpMs: 30_000 };

/** How long a server can make a client wait at most. */
const RETRY_AFTER_MAX_MS = 60_000;

/**
 * Minimum time between two attempts, of which chance may take half: without it, a server that is
 * away would be polled in a busy loop.
 */
const WAIT_MIN_MS = 1;

/** The delays between successive attempts. */
export class Backoff {
  #next: number;
  #isFirst = true;

  constructor(
    private readonly retry: Retry,
    private readonly chance: () => number = Math.random,
  ) {
    this.#next = Math.max(WAIT_MIN_MS, retry.firstMs);
  }

  /** Resets the delays after a success. */
  reset(): void {
    this.#next = Math.max(WAIT_MIN_MS, this.retry.firstMs);
    this.#isFirst = true;
  }

  /**
   * Milliseconds to wait after a request found its connection ended: none the first time, since
   * that may have been long ago.
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
 * One read or follow over as many connections as it takes: `begin` on each of them, `take` for each
 * message, and `gave` for each item returned, which moves the position.
 */
export class Reading {
  /** What is still to be read. */
  rest: Selection;
  /** Everything to read was returned. */
  isDone = false;
  /** A server has accepted it, and its start is fixed. */
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

  /** The offset to continue from after the items returned; undefined before anything is known. */
  get position(): bigint | undefined {
    return this.#given;
  }

  /** The position with the store and the epoch in which it is valid. */
  get point(): ResumePoint | undefined {
    if (this.#given === undefined || this.#store === undefined) return undefined;
    return { store: this.#store, epoch: this.#epoch, offset: this.#given };
  }

  /** The options to subscribe with on a new connection. @throws {OtherStore} */
  begin(info: ServerInfo): Selection {
    if (this.#store !== undefined && this.#store !== info.store) {
      throw new OtherStore(403, "the position belongs to another store");
    }
    return this.rest;
  }

  /**
   * The store and the epoch in which the first offset of the rest was seen: the server refuses it
   * if frames that were seen there are lost.
   */
  get seenIn(): SeenIn | undefined {
    if (this.#store === undefined || this.#seen === undefined) return undefined;
    if (this.rest.start.at !== "from") return undefined;
    // A backward read still begins at the given id, which needs no such check.
    if (typeof this.rest.start.bound === "string") return undefined;
    return { store: this.#store, epoch: this.#epoch };
  }

  /** The server has accepted; after the first time, that is reported as an item. */
  began(info: ServerInfo): Resumed | undefined {
    this.#store = info.store;
    this.#epoch = info.epoch;
    if (this.isStarted) return jsonable<Resumed>({ kind: "resumed", offset: this.#seen ?? null });
    // The first message fixes which frames are new and which are the last: a later request would
    // select others.
    const { at } = this.rest.start;
    const isOfNow = (at === "new" || at === "last") && this.#seen === undefined;
    this.isStarted = !(isOfNow && this.#follow);
    return undefined;
  }

  /** Notes that an item was returned, and whether it is the last of those from `take`. */
  gave(item: Item, isLast: boolean): void {
    if (isLast) this.#given = this.#seen;
    else if (item.kind === "frame" && item.offset !== null) {
      this.#given = this.#reverse ? item.offset : item.offset + 1n;
    }
  }

  /**
   * The items in a message. @throws the refusal with which the server ended the stream, and
   * {CorruptRange} if a bounded read cannot continue
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
        // Nothing below its start or its position concerns it.
        if (this.#reverse || this.#isAhead(event.scannedTo)) this.#move(event.scannedTo);
        this.isDone = true;
        return [];
      case "dropped":
        // At its start it may have waited for frames that do not exist yet.
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
   * The offset below which nothing is wanted, as long as no wanted frame was seen: infinite if an
   * id determines it. It may lie above the head, where the server has nothing to check yet, and
   * frames below it must not be returned. Otherwise it is below all.
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

  /** Notes how far the server has looked. */
  #move(offset: bigint): void {
    this.rest = goingOn(this.rest, offset, 0);
    this.#seen = offset;
  }
}
