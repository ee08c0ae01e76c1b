// The options of a client's methods, and their names.

import type { ConnectionOptions } from "node:tls";
import { keys, type Keys } from "./checking.js";
import type {
  Batch,
  GcOptions,
  ImportOptions,
  ReadOptions,
  RemoveOptions,
} from "./messages.js";
import type { Retry } from "./reading.js";
import type { NewFrame, ResumePoint, Slow } from "./values.js";

/** Aborts the wait for a request or a stream. */
export interface Signal {
  readonly signal?: AbortSignal | undefined;
}

/** How to connect. */
export interface ConnectOptions extends Signal {
  /** A token, if the server requires one. */
  readonly token?: string | undefined;
  /** TLS options of `xss://` addresses, for example `{ ca }` with the certificates to trust. */
  readonly tls?: ConnectionOptions | undefined;
  /** The name of this client in the server's log. */
  readonly name?: string | undefined;
  /** For connecting and for the answer to HELLO; 10,000 by default. */
  readonly timeoutMs?: number | undefined;
  /** How long to keep trying when nothing listens there yet; 0 by default. */
  readonly waitMs?: number | undefined;
  readonly retry?: Partial<Retry> | undefined;
}

/** How one frame is appended. */
export interface AppendOptions
  extends Omit<NewFrame, "topic" | "body">,
    Omit<Batch, "frames" | "cursors" | "remove" | "within">,
    Signal {}

/** How a stream is served. */
export interface StreamOptions extends Signal {
  /**
   * Bodies of up to this many bytes, at most 1 MiB, are delivered with their frames; 0 by default.
   * The client's `body(frame)` returns any.
   */
  readonly bodies?: number | undefined;
  /** Bytes that the server may send ahead. */
  readonly credit?: number | undefined;
}

export interface FollowOptions extends Omit<ReadOptions, "reverse">, StreamOptions {
  /** Begin with frames appended from now on. */
  readonly new?: boolean | undefined;
  /** Continue from another follower's `point`. */
  readonly resume?: ResumePoint | undefined;
  /** What happens to it when it takes frames too slowly; by default, the server waits for it. */
  readonly slow?: Slow | undefined;
  /** Milliseconds between two pulses. */
  readonly pulseMs?: number | undefined;
}

export interface FetchOptions extends ReadOptions, Signal {
  /** Maximum bytes of a page. */
  readonly pageBytes?: number | undefined;
}

export interface CallOptions extends StreamOptions {
  readonly body?: Uint8Array | string | undefined;
  /** From now; by default, the command's own. */
  readonly deadlineMs?: number | undefined;
}

export interface CursorOptions extends Signal {
  /** The revision it must have; 0: it must not exist; by default any. */
  readonly expect?: bigint | number | undefined;
}

export interface CursorSetOptions extends CursorOptions {
  readonly state?: Uint8Array | undefined;
  /**
   * With `expect`, repeats the request if the answer was lost. If the cursor then has the next
   * revision with this offset and state, it counts as moved: right for a remembered position, and
   * wrong for a lock, since another client may have set the same.
   */
  readonly again?: boolean | undefined;
}

const signal = { signal: 1 } as const;
const stream = { bodies: 1, credit: 1, ...signal } as const;
const bounds = {
  from: 1,
  after: 1,
  last: 1,
  before: 1,
  since: 1,
  until: 1,
  limit: 1,
} as const;

/** The options of each method by its name; `plain` is for those with only a signal. */
export const OPTIONS = {
  plain: keys<Signal>("option", signal),
  connect: keys<ConnectOptions>("option of connect", {
    token: 1,
    tls: 1,
    name: 1,
    timeoutMs: 1,
    waitMs: 1,
    retry: 1,
    ...signal,
  }),
  retry: keys<Retry>("option of retry", { firstMs: 1, mostMs: 1, factor: 1, giveUpMs: 1 }),
  append: keys<AppendOptions>("option of append", {
    meta: 1,
    metaJson: 1,
    json: 1,
    ttl: 1,
    origin: 1,
    conditions: 1,
    key: 1,
    durable: 1,
    ...signal,
  }),
  remove: keys<RemoveOptions & Signal>("option of remove", {
    durable: 1,
    now: 1,
    within: 1,
    ...signal,
  }),
  importFrames: keys<ImportOptions & Signal>("option of importFrames", {
    newIds: 1,
    durable: 1,
    ...signal,
  }),
  read: keys<ReadOptions & StreamOptions>("option of read", { ...bounds, reverse: 1, ...stream }),
  follow: keys<FollowOptions>("option of follow", {
    ...bounds,
    new: 1,
    resume: 1,
    slow: 1,
    pulseMs: 1,
    ...stream,
  }),
  fetch: keys<FetchOptions>("option of fetch", {
    ...bounds,
    reverse: 1,
    pageBytes: 1,
    ...signal,
  }),
  getBlob: keys<Omit<StreamOptions, "bodies">>("option of getBlob", { credit: 1, ...signal }),
  cursorSet: keys<CursorSetOptions>("option of cursorSet", {
    state: 1,
    expect: 1,
    again: 1,
    ...signal,
  }),
  cursorRemove: keys<CursorOptions>("option of cursorRemove", { expect: 1, ...signal }),
  call: keys<CallOptions>("option of call", { body: 1, deadlineMs: 1, ...stream }),
  compact: keys<{ deadPercent: 1 } & Signal>("option of compact", { deadPercent: 1, ...signal }),
  gc: keys<GcOptions & Signal>("option of gc", {
    graceMs: 1,
    deadPercent: 1,
    dryRun: 1,
    ...signal,
  }),
  backup: keys<{ link: 1 } & Signal>("option of backup", { link: 1, ...signal }),
} satisfies Record<string, Keys>;
