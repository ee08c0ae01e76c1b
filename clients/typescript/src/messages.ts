// The bodies of requests, responses and pushes, one function each, in the order of docs/wire.md.

import {
  checkKeys,
  checkKind,
  isWithin,
  keys,
  listOf,
  numberOf,
  rawBytes,
  shown,
  textBytes,
} from "./checking.js";
import { Op, Reader, readExtensions, Writer } from "./coding.js";
import { InvalidValue, ProtocolError, refusalOf, type Details, type Refusal } from "./errors.js";
import { Frame, own, putFrameList, readFrameList, type FrameList } from "./frames.js";
import * as limits from "./limits.js";
import { Appended, jsonable, Stamp } from "./showing.js";
import {
  bodyOf,
  CONDITIONS,
  CURSOR_CHANGE,
  hashBytes,
  idBytes,
  metaOf,
  patternsOf,
  SLOW,
  timeMs,
  ttlNumbers,
  u64,
  type Bound,
  type CaughtUp,
  type Condition,
  type Cursor,
  type CursorChange,
  type CursorSummary,
  type FrameId,
  type Gap,
  type Imported,
  type NewFrame,
  type Outcome,
  type Pulse,
  type ResumePoint,
  type ServerInfo,
  type Slow,
  type Time,
  type Topics,
  type TopicSummary,
} from "./values.js";

const ROLES = ["read", "append", "admin", "host"] as const;
const EXT_HOST = 1;
const EXT_CONDITIONS = 1;
const EXT_KEY = 2;
const EXT_WITHIN = 3;
const EXT_RESUME = 1;
const EXT_SLOW = 2;

/** A client that runs modules: the instance, and the processor if it runs only one. */
export interface Host {
  readonly instance: Buffer;
  readonly alone?: string;
}

export function hello(name: string, token: string, host?: Host): Buffer[] {
  const out = new Writer()
    .u16(1)
    .u16(1)
    .u16(1)
    .u16(1)
    .u64(0n)
    .u32(limits.SERVER_MESSAGE_BYTES_MAX)
    .text(name, limits.PEER_NAME_BYTES_MAX, "client's name")
    .text(token, limits.TOKEN_BYTES_MAX, "token");
  if (host) {
    const value = new Writer()
      .raw(host.instance)
      .text(host.alone ?? "", limits.TOPIC_BYTES_MAX, "processor");
    out.extension(EXT_HOST, value.bytes());
  }
  return out.done();
}

export function readHello(body: Buffer): ServerInfo {
  const reader = new Reader(body);
  const version = reader.u16("version");
  const records = reader.u16("version");
  const role = ROLES[reader.u8("role")];
  if (version !== 1 || records !== 1 || !role) {
    throw new ProtocolError(`the server chose version ${version}, records ${records}`);
  }
  reader.take(3 + 8, "features");
  const store = reader.take(16, "store").toString("hex");
  const epoch = reader.u64("epoch");
  const head = reader.u64("head");
  const messageBytes = reader.u32("limits");
  const requests = reader.u32("limits");
  const streams = reader.u32("limits");
  const chunkBytes = reader.u32("limits");
  const uploadWindow = reader.u32("limits");
  const batchRecords = reader.u32("limits");
  const name = reader.text("name");
  const ops = [];
  for (let left = reader.u16("ops"); left > 0; left--) {
    const op = reader.u8("op");
    reader.u8("op");
    ops.push({ op, oldest: reader.u16("op"), newest: reader.u16("op") });
  }
  const sizes = { messageBytes, requests, streams, chunkBytes, uploadWindow, batchRecords };
  return jsonable({ name, version, role, store, epoch, head, ...sizes, ops });
}

export function readRefusal(code: number, body: Buffer): Refusal {
  const reader = new Reader(body);
  const text = reader.text("message");
  const details: Details = {};
  for (const { tag, value } of readExtensions(reader)) {
    if (tag === 1) details.retryAfterMs = value.u32("detail");
    else if (tag === 2) {
      details.revision = value.u64("detail");
      details.cursor = value.rest().toString("utf8");
    } else if (tag === 3) details.limit = value.u64("detail");
    else if (tag === 4) details.offset = value.u64("detail");
    else if (tag === 5) details.extension = value.u16("detail");
    else if (tag === 6) {
      details.condition = value.u32("detail");
      details.found = value.u64("detail");
    } else if (tag === 7) details.frame = value.id("detail");
  }
  return refusalOf(code, text, details);
}

// APPEND

/** What one APPEND stores, all or nothing. */
export interface Batch {
  readonly frames?: readonly NewFrame[] | undefined;
  readonly cursors?: readonly CursorChange[] | undefined;
  readonly conditions?: readonly Condition[] | undefined;
  /** The store keeps a batch with this key once. */
  readonly key?: string | undefined;
  /** Answer only when it is synced, whatever the store's policy. */
  readonly durable?: boolean | undefined;
  /** Ids or offsets of frames to remove before the new ones are stored. */
  readonly remove?: readonly Bound[] | undefined;
  /** Nothing is stored if a frame to remove has another topic. */
  readonly within?: Topics | undefined;
}

export const BATCH = keys<Batch>("part of a batch", {
  frames: 1,
  cursors: 1,
  conditions: 1,
  key: 1,
  durable: 1,
  remove: 1,
  within: 1,
});

export function append(batch: Batch): Buffer[] {
  const { key, durable } = batch;
  const frames = listOf(batch.frames ?? [], "frames");
  const cursors = listOf(batch.cursors ?? [], "cursors");
  const conditions = listOf(batch.conditions ?? [], "conditions");
  const gone = listOf(batch.remove ?? [], "frames to remove");
  if (frames.length + cursors.length + gone.length > limits.BATCH_RECORDS_MAX) {
    const most = limits.BATCH_RECORDS_MAX;
    throw new InvalidValue(`a batch has at most ${most} frames, cursor changes and removals`);
  }
  const out = new Writer().u8(durable ? 1 : 0).u8(0);
  out.u16(frames.length).u16(cursors.length).u16(gone.length);
  for (const frame of frames) putFrame(out, frame);
  for (const change of cursors) putCursorChange(out, change);
  for (const bound of gone) out.bound(boundOf(bound));
  if (conditions.length > 0) out.extension(EXT_CONDITIONS, conditionBytes(conditions));
  if (key !== undefined) out.extension(EXT_KEY, nameBytes(key, "key"));
  putWithin(out, batch.within);
  return out.done();
}

function putFrame(out: Writer, frame: NewFrame): void {
  const topic = textBytes(frame.topic, "a topic");
  const meta = metaOf(frame);
  const body = bodyOf(frame);
  const ttl = ttlNumbers(frame.ttl ?? "forever");
  if (topic.length < 1 || topic.length > limits.TOPIC_BYTES_MAX) {
    const most = limits.TOPIC_BYTES_MAX;
    throw new InvalidValue(`a topic has 1 to ${most} bytes, not ${topic.length}`);
  }
  if (meta.length > limits.META_BYTES_MAX) {
    throw new InvalidValue(`meta has at most ${limits.META_BYTES_MAX} bytes, not ${meta.length}`);
  }
  const inline = body !== undefined && !("blob" in body) && body.length > 0 ? body : undefined;
  const stored = body !== undefined && "blob" in body ? hashBytes(body.blob) : undefined;
  const { origin } = frame;
  out.u8((stored ? 2 : inline ? 1 : 0) | (origin ? 4 : 0)).u8(ttl.kind);
  out.u8(topic.length).u8(0).u32(meta.length);
  if (ttl.kind >= 2) out.u64(ttl.value);
  if (stored) out.raw(stored);
  if (inline) out.u32(inline.length);
  if (origin) {
    out.raw(idBytes(origin.processor));
    out.raw(origin.input === null ? Buffer.alloc(16) : idBytes(origin.input));
    out
      .u64(u64(origin.inputOffset ?? limits.NO_OFFSET, "an offset"))
      .u32(origin.hops)
      .u32(0);
  }
  out.raw(topic).raw(meta);
  if (inline) out.raw(inline);
}

function nameBytes(text: string, what: string): Buffer {
  const raw = textBytes(text, `a ${what}`);
  if (raw.length < 1 || raw.length > limits.NAME_BYTES_MAX) {
    throw new InvalidValue(`a ${what} has 1 to ${limits.NAME_BYTES_MAX} bytes, not ${raw.length}`);
  }
  return raw;
}

export function putCursorChange(out: Writer, change: CursorChange): Writer {
  const { offset, expect } = checkKeys(change, CURSOR_CHANGE);
  const name = nameBytes(change.name, "cursor's name");
  const state = rawBytes(change.state ?? new Uint8Array(), "a cursor's state");
  if (state.length > limits.CURSOR_STATE_BYTES_MAX) {
    throw new InvalidValue(`a cursor's state has at most ${limits.CURSOR_STATE_BYTES_MAX} bytes`);
  }
  out.u8((offset === null ? 0 : 1) | (expect === undefined ? 0 : 2));
  out.u8(name.length).u16(0).u32(state.length);
  out.u64(u64(expect === undefined ? 0n : expect, "a revision"));
  out.u64(u64(offset === null ? 0n : offset, "an offset"));
  return out.raw(name).raw(state);
}

function conditionBytes(conditions: readonly Condition[]): Buffer {
  if (conditions.length > limits.CONDITIONS_MAX) {
    throw new InvalidValue(`a batch has at most ${limits.CONDITIONS_MAX} conditions`);
  }
  const out = new Writer().u16(conditions.length).u16(0);
  for (const condition of conditions) {
    checkKind(condition, CONDITIONS, "a condition");
    if ("lastAtMost" in condition) {
      out.u8(1).u64(u64(condition.lastAtMost, "an offset")).patterns(patternsOf(condition.topics));
    } else if ("empty" in condition) out.u8(2).patterns(patternsOf(condition.empty));
    else out.u8(3).u64(u64(condition.headIs, "an offset"));
  }
  return out.bytes();
}

export function readAppended(body: Buffer): Appended {
  const reader = new Reader(body);
  const head = reader.u64("head");
  const flags = reader.u8("flags");
  reader.u8("reserved");
  let frameCount = reader.u16("frames");
  let cursorCount = reader.u16("cursors");
  let removals = reader.u16("removals");
  const frames: Stamp[] = [];
  for (; frameCount > 0; frameCount--) {
    const id = reader.id("id");
    const offset = reader.u64("offset");
    frames.push(new Stamp(id, offset === limits.NO_OFFSET ? null : offset));
  }
  const cursors: bigint[] = [];
  for (; cursorCount > 0; cursorCount--) cursors.push(reader.u64("revision"));
  const removed: boolean[] = [];
  for (; removals > 0; removals--) removed.push(reader.u8("removal") === 1);
  const durable = (flags & 1) !== 0;
  const repeated = (flags & 2) !== 0;
  return new Appended(frames, cursors, durable, repeated, removed, head);
}

function putWithin(out: Writer, within: Topics | undefined): void {
  if (within === undefined) return;
  out.extension(EXT_WITHIN, new Writer().patterns(patternsOf(within)).bytes());
}

/** How frames are removed. */
export interface RemoveOptions {
  readonly durable?: boolean | undefined;
  /** Answer only when none of their bytes are left in the store's files, which may take minutes. */
  readonly now?: boolean | undefined;
  /** If a frame has another topic, nothing is removed and AccessError is thrown. */
  readonly within?: Topics | undefined;
}

export function remove(bounds: readonly Bound[], options: RemoveOptions): Buffer[] {
  const { durable, now } = options;
  if (listOf(bounds, "frames to remove").length > limits.BATCH_RECORDS_MAX) {
    throw new InvalidValue(`at most ${limits.BATCH_RECORDS_MAX} frames are removed at a time`);
  }
  const out = new Writer()
    .u8((durable ? 1 : 0) | (now ? 2 : 0))
    .u8(0)
    .u16(bounds.length);
  for (const bound of bounds) out.bound(boundOf(bound));
  putWithin(out, options.within);
  return out.done();
}

/** How frames of another store are appended. */
export interface ImportOptions {
  /**
   * They get new ids, and can also be found by their old ones. Otherwise they keep their ids, which
   * must be above all of the store's: in practice the store is a new one.
   */
  readonly newIds?: boolean | undefined;
  readonly durable?: boolean | undefined;
}

export function importFrames(frames: readonly Frame[], options: ImportOptions): Buffer[] {
  if (listOf(frames, "frames").length > limits.BATCH_RECORDS_MAX) {
    throw new InvalidValue(`at most ${limits.BATCH_RECORDS_MAX} frames are imported at a time`);
  }
  for (const frame of frames) {
    if (!(frame instanceof Frame)) throw new InvalidValue(`${shown(frame)} is not a frame`);
  }
  const out = new Writer().u8(options.durable ? 1 : 0).u8(options.newIds ? 2 : 1);
  putFrameList(out.zeros(6), frames);
  return out.done();
}

export function readImported(body: Buffer): Imported {
  const reader = new Reader(body);
  const head = reader.u64("head");
  const flags = reader.u8("flags");
  reader.u8("reserved");
  const outcomes: Outcome[] = [];
  for (let count = reader.u16("frames"); count > 0; count--) {
    const code = reader.u16("outcome");
    if (code < 2) outcomes.push({ kind: code === 0 ? "new" : "there" });
    else outcomes.push({ kind: "refused", code });
  }
  return jsonable({ outcomes, durable: (flags & 1) !== 0, head });
}

// Reading

export type Start =
  | { readonly at: "first" | "new" }
  | { readonly at: "from" | "after"; readonly bound: bigint | FrameId }
  | { readonly at: "last"; readonly count: bigint };

/** What a read selects, in the protocol's terms; created by `selection`. */
export interface Selection {
  readonly topics: readonly string[];
  readonly start: Start;
  readonly before: bigint | FrameId | undefined;
  readonly sinceMs: bigint | undefined;
  readonly untilMs: bigint | undefined;
  readonly limit: bigint | undefined;
  readonly reverse: boolean;
  readonly follow: boolean;
}

/** Where a read begins: at most one of these; by default at the first frame. */
export interface Begin {
  readonly from?: Bound | undefined;
  readonly after?: Bound | undefined;
  /** With this many of the newest frames. */
  readonly last?: number | bigint | undefined;
}

/** What a read selects. */
export interface ReadOptions extends Begin {
  readonly before?: Bound | undefined;
  /** The earliest time. */
  readonly since?: Time | undefined;
  /** The time from which on frames are excluded. */
  readonly until?: Time | undefined;
  /** Maximum number of frames. */
  readonly limit?: number | bigint | undefined;
  readonly reverse?: boolean | undefined;
}

const boundOf = (bound: Bound): bigint | FrameId =>
  typeof bound === "string" ? bound : u64(bound, "an offset");

/** Read options in the protocol's terms. @throws {InvalidValue} */
export function selection(
  topics: Topics,
  options: ReadOptions & { readonly new?: boolean | undefined },
  follow: boolean,
): Selection {
  const { from, after, last, before, since, until, limit, reverse = false } = options;
  const starts: Start[] = [];
  if (from !== undefined) starts.push({ at: "from", bound: boundOf(from) });
  if (after !== undefined) starts.push({ at: "after", bound: boundOf(after) });
  if (last !== undefined) starts.push({ at: "last", count: u64(last, "last") });
  if (options.new) starts.push({ at: "new" });
  if (starts.length > 1) {
    throw new InvalidValue("a read begins in one place: from, after, last or new");
  }
  if (reverse && follow) throw new InvalidValue("what is followed cannot be read backwards");
  return {
    topics: patternsOf(topics),
    start: starts[0] ?? { at: "first" },
    before: before === undefined ? undefined : boundOf(before),
    sinceMs: since === undefined ? undefined : timeMs(since),
    untilMs: until === undefined ? undefined : timeMs(until),
    limit: limit === undefined ? undefined : u64(limit, "a limit"),
    reverse,
    follow,
  };
}

const SELECTION = keys<Selection>("part of a selection", {
  topics: 1,
  start: 1,
  before: 1,
  sinceMs: 1,
  untilMs: 1,
  limit: 1,
  reverse: 1,
  follow: 1,
});

/** The selection of the next page, as found in a page. @throws {InvalidValue} for anything else */
export function checkSelection(given: Selection): Selection {
  const { topics, start, before, sinceMs, untilMs, limit, reverse } = checkKeys(given, SELECTION);
  const number = (one: bigint | undefined) => (one === undefined ? one : u64(one, "a bound"));
  return {
    topics: patternsOf(topics),
    start: checkStart(start),
    before: before === undefined ? before : boundOf(before),
    sinceMs: number(sinceMs),
    untilMs: number(untilMs),
    limit: number(limit),
    reverse: reverse === true,
    follow: false,
  };
}

function checkStart(start: Start): Start {
  switch (start?.at) {
    case "first":
    case "new":
      return { at: start.at };
    case "from":
    case "after":
      return { at: start.at, bound: boundOf(start.bound) };
    case "last":
      return { at: "last", count: u64(start.count, "last") };
    default:
      throw new InvalidValue(`${shown(start)} is not where a read begins`);
  }
}

const STARTS = ["first", "from", "after", "last", "new"] as const;

function putSelection(out: Writer, read: Selection): Writer {
  const { start, before, sinceMs, untilMs, limit } = read;
  const given = [before, sinceMs, untilMs, limit];
  let flags = (read.reverse ? 1 : 0) | (read.follow ? 2 : 0);
  given.forEach((one, at) => (flags |= one === undefined ? 0 : 4 << at));
  out.u8(flags).u8(STARTS.indexOf(start.at));
  if ("bound" in start) out.bound(start.bound);
  else if ("count" in start) out.u64(start.count);
  if (before !== undefined) out.bound(before);
  for (const number of [sinceMs, untilMs, limit]) if (number !== undefined) out.u64(number);
  return out.patterns(read.topics);
}

/** The rest of a read after `taken` frames, up to `scannedTo`. */
export function goingOn(read: Selection, scannedTo: bigint, taken: number): Selection {
  const { start } = read;
  let { limit } = read;
  if (start.at === "last" && !read.follow && (limit === undefined || limit > start.count)) {
    limit = start.count;
  }
  if (limit !== undefined) limit = limit > BigInt(taken) ? limit - BigInt(taken) : 0n;
  if (!read.reverse) return { ...read, start: { at: "from", bound: scannedTo }, limit };
  const begin: Start = start.at === "last" ? { at: "first" } : start;
  return { ...read, start: begin, before: scannedTo, limit };
}

export function fetch(read: Selection, pageBytes: number): Buffer[] {
  if (!isWithin(pageBytes, 1, limits.PAGE_BYTES_MAX)) {
    const most = limits.PAGE_BYTES_MAX;
    throw new InvalidValue(`a page has 1 to ${most} bytes, not ${shown(pageBytes)}`);
  }
  return putSelection(new Writer().u32(pageBytes), read).done();
}

/** One page of a bounded read. */
export interface Page {
  readonly frames: Frame[];
  readonly head: bigint;
  readonly scannedTo: bigint;
  /** The selection of the next page; undefined at the end. */
  readonly next: Selection | undefined;
}

export function readPage(body: Buffer, read: Selection): Page {
  const reader = new Reader(body);
  const head = reader.u64("head");
  const more = reader.u32("more");
  reader.u32("reserved");
  const { frames, scannedTo } = readFrameList(reader);
  let next: Selection | undefined;
  if (more) {
    const fixed = read.reverse || read.before !== undefined ? read : { ...read, before: head };
    next = goingOn(fixed, scannedTo, frames.length);
    const stands = "bound" in read.start ? read.start.bound : read.before;
    if (next.limit === 0n) next = undefined;
    else if (frames.length === 0 && stands === scannedTo) {
      throw new ProtocolError("the server gave a page that leads to itself");
    }
  }
  return { frames, head, scannedTo, next };
}

export function get(bound: Bound): Buffer[] {
  return new Writer().bound(boundOf(bound)).done();
}

export function last(topics: Topics, n: number, perTopic: boolean): Buffer[] {
  if (!isWithin(n, 0, limits.LAST_MAX)) {
    throw new InvalidValue(`last takes up to ${limits.LAST_MAX} frames, not ${shown(n)}`);
  }
  const out = new Writer().u64(u64(n, "a count")).u8(perTopic ? 1 : 0);
  return out.patterns(patternsOf(topics)).done();
}

export function topics(patterns: Topics): Buffer[] {
  return new Writer().patterns(patternsOf(patterns)).done();
}

export function readList(body: Buffer): FrameList {
  return readFrameList(new Reader(body));
}

export function readTopics(body: Buffer): TopicSummary[] {
  const reader = new Reader(body);
  const found: TopicSummary[] = [];
  while (reader.left > 0) {
    const count = reader.u64("count");
    const bytes = reader.u64("bytes");
    const first = reader.id("id");
    const newest = reader.id("id");
    const lastOffset = reader.u64("offset");
    const name = reader.text("topic");
    found.push(jsonable({ name, count, bytes, first, last: newest, lastOffset }));
  }
  return found;
}

// Streams

/** How a subscription is served. */
export interface How {
  readonly credit: number;
  readonly bodies: number;
  readonly pulseMs: number;
  readonly slow?: Slow | undefined;
}

/** The store and the epoch in which the start offset of a read was seen. */
export type SeenIn = Omit<ResumePoint, "offset">;

export function subscribe(read: Selection, how: How, seenIn?: SeenIn): Buffer[] {
  checkBodies(how.bodies);
  checkCredit(how.credit);
  const { pulseMs } = how;
  if (pulseMs !== 0 && !isWithin(pulseMs, limits.PULSE_MS_MIN, limits.DAY_MS)) {
    const least = limits.PULSE_MS_MIN;
    throw new InvalidValue(`a pulse takes ${least} ms to a day, not ${shown(pulseMs)} ms`);
  }
  const out = new Writer().u32(how.credit).u32(how.bodies).u64(u64(pulseMs, "a pulse"));
  putSelection(out, read);
  if (seenIn) {
    const value = new Writer().raw(Buffer.from(seenIn.store, "hex")).u64(seenIn.epoch);
    out.extension(EXT_RESUME, value.bytes());
  }
  if (how.slow !== undefined) {
    checkKind(how.slow, SLOW, "slow");
    const [policy, behind] = "latest" in how.slow ? [1, how.slow.latest] : [2, how.slow.drop];
    out.extension(EXT_SLOW, new Writer().u8(policy).u64(u64(behind, "frames behind")).bytes());
  }
  return out.done();
}

/** With a credit of 0, nothing would ever arrive, so nothing could be granted again. */
function checkCredit(credit: number): void {
  if (!isWithin(credit, 1, limits.NUMBER_MAX)) {
    const most = limits.NUMBER_MAX;
    throw new InvalidValue(`a stream has a credit of 1 to ${most} bytes, not ${shown(credit)}`);
  }
}

function checkBodies(bodies: number): void {
  if (!isWithin(bodies, 0, limits.BODY_WITH_FRAME_MAX)) {
    throw new InvalidValue(`bodies with frames have at most ${limits.BODY_WITH_FRAME_MAX} bytes`);
  }
}

/** The limit is reached, or without follow everything was delivered. */
export interface Ended {
  readonly kind: "ended";
  readonly scannedTo: bigint;
}

/** The server ended the stream. */
export interface Dropped {
  readonly kind: "dropped";
  readonly refusal: Refusal;
  readonly resume: bigint;
}

const GAPS = [undefined, "corrupt", "ephemeral", "conflated"] as const;

export type StreamEvent = CaughtUp | Pulse | Gap | Dropped | Ended;

/** Whether a message is a pulse, which only says that the server is alive. */
export function isPulse(push: { readonly op: number; readonly body: Buffer }): boolean {
  return push.op === Op.SUB_EVENT && push.body[0] === 2;
}

/** Whether a message is the last of its stream: DROPPED, ENDED, the end of a blob. */
export function isLast(push: { op: number; more: boolean; body: Buffer }): boolean {
  if (push.op === Op.SUB_EVENT) return push.body[0] === 4 || push.body[0] === 5;
  return push.op === Op.BLOB_CHUNK && !push.more;
}

/**
 * Reads a SUB_EVENT. @throws {ProtocolError} for an event that was not requested: one that is not
 * understood could report missing frames
 */
export function readEvent(code: number, body: Buffer): StreamEvent {
  const reader = new Reader(body);
  const event = reader.u8("event");
  if (event === 4) {
    const resume = reader.u64("resume");
    return { kind: "dropped", refusal: readRefusal(code, reader.rest()), resume };
  }
  const told = simpleEvent(event, reader);
  reader.end("event");
  return told;
}

function simpleEvent(event: number, reader: Reader): StreamEvent {
  switch (event) {
    case 1:
      return jsonable({ kind: "caught_up", head: reader.u64("head") });
    case 2:
      return { kind: "pulse" };
    case 3: {
      const kind = reader.u8("gap");
      const [first, end] = [reader.u64("gap"), reader.u64("gap")];
      const reason = GAPS[kind];
      if (!reason) throw new ProtocolError(`the server told of a gap of kind ${kind}`);
      const isCount = kind === 2;
      const range = isCount ? { first: null, end: null } : { first, end };
      return jsonable({ kind: "gap", reason, ...range, count: isCount ? first : 0n });
    }
    case 5:
      return { kind: "ended", scannedTo: reader.u64("scanned_to") };
    default:
      throw new ProtocolError(`the server sent the event ${event}`);
  }
}

export function credit(count: number): Buffer[] {
  return new Writer().u64(u64(count, "credit")).done();
}

export function readNumber(body: Buffer): bigint {
  return new Reader(body).u64("number");
}

// Blobs, calls, cursors

export function blobName(hash: string): Buffer[] {
  return [hashBytes(hash)];
}

export function blobGet(hash: string, grant: number): Buffer[] {
  checkCredit(grant);
  return new Writer().raw(hashBytes(hash)).u32(grant).done();
}

/** The parameters of a call. */
export interface CallRequest {
  readonly name: string;
  readonly args: Buffer;
  readonly body: Buffer;
  readonly deadlineMs: number;
  readonly credit: number;
  readonly bodies: number;
}

export function call(request: CallRequest): Buffer[] {
  const { name, args, body, deadlineMs } = request;
  checkBodies(request.bodies);
  checkCredit(request.credit);
  if (!isWithin(deadlineMs, 0, limits.DAY_MS)) {
    throw new InvalidValue("a deadline is at most a day from now");
  }
  const out = new Writer().u32(request.credit).u32(request.bodies);
  out.u64(u64(deadlineMs, "a deadline")).u32(args.length).u32(body.length);
  return out.text(name, limits.NAME_BYTES_MAX, "command's name").raw(args).raw(body).done();
}

export function cursorSet(change: CursorChange): Buffer[] {
  return putCursorChange(new Writer(), change).done();
}

export function cursorGet(name: string): Buffer[] {
  return new Writer().text(name, limits.NAME_BYTES_MAX, "cursor's name").done();
}

export function readCursor(name: string, body: Buffer): Cursor | undefined {
  if (body.length === 0) return undefined;
  const reader = new Reader(body);
  const revision = reader.u64("revision");
  const epoch = reader.u64("epoch");
  const offset = reader.u64("offset");
  const timeMs = reader.u64("time");
  return jsonable({ name, revision, epoch, offset, timeMs, state: own(reader.rest()) });
}

export function readCursors(body: Buffer): CursorSummary[] {
  const reader = new Reader(body);
  const found: CursorSummary[] = [];
  while (reader.left > 0) {
    const revision = reader.u64("cursor");
    const epoch = reader.u64("cursor");
    const offset = reader.u64("cursor");
    const timeMs = reader.u64("cursor");
    const stateBytes = reader.u64("cursor");
    const name = reader.text("name");
    found.push(jsonable({ name, revision, epoch, offset, timeMs, stateBytes }));
  }
  return found;
}

// MAINTAIN

const WORK = { verify: 1, compact: 2, gc: 3, backup: 4, fork: 5 } as const;

/** Which blobs to remove. */
export interface GcOptions {
  /** Those that were put at least this long ago; a day by default. */
  readonly graceMs?: number | undefined;
  /** From packs of which at least this percentage is dead; 25 by default. */
  readonly deadPercent?: number | undefined;
  /** Only report what would be done. */
  readonly dryRun?: boolean | undefined;
}

/** The parameters of maintenance; each kind uses some of them. */
export interface Work {
  readonly flags?: number;
  readonly deadPercent?: number;
  readonly graceMs?: number;
  readonly path?: string;
}

export function maintain(what: keyof typeof WORK, work: Work = {}): Buffer[] {
  const { flags = 0, deadPercent = 0, graceMs = 0, path = "" } = work;
  const lowest = what === "compact" ? 1 : 0;
  const isPercent = Number.isInteger(deadPercent) && deadPercent >= lowest;
  if (!isPercent || deadPercent > limits.PERCENT_MAX) {
    throw new InvalidValue(`${shown(deadPercent)} is no percentage of dead bytes`);
  }
  return new Writer()
    .u8(WORK[what])
    .u8(flags)
    .u8(deadPercent)
    .u8(0)
    .u64(u64(Math.round(numberOf(graceMs, "graceMs")), "grace"))
    .text(path, limits.PATH_BYTES_MAX, "path")
    .done();
}
