// The parts without a connection: values, addresses, back-off, credit, the session, and where a
// reader goes on.

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { describe, it } from "node:test";
import { header, MORE, Op, PREFACE, PUSH, Reader, RESPONSE, Writer } from "../src/coding.js";
import { crc32, crc32InJs } from "../src/crc.js";
import { CODES, refusalOf } from "../src/errors.js";
import {
  AddressError,
  addressText,
  blobHash,
  CorruptRange,
  Frame,
  idTimeMs,
  InvalidValue,
  NotSent,
  OtherStore,
  parseAddress,
  parseResume,
  ProtocolError,
  resumeText,
  Unavailable,
  type Item,
  type ServerInfo,
} from "../src/index.js";
import { isLocal } from "../src/address.js";
import { putFrameList, readFrameList } from "../src/frames.js";
import { PART_BYTES_MIN, PARTS_BYTES_MAX, PONGS_MAX } from "../src/limits.js";
import { append, selection } from "../src/messages.js";
import { Backoff, Reading, RETRY } from "../src/reading.js";
import { Flow, Session, type Event } from "../src/session.js";
import {
  hashBytes,
  idBytes,
  idOfBytes,
  patternsOf,
  timeMs,
  ttlNumbers,
  ttlText,
  type Ttl,
} from "../src/values.js";
import { sleep } from "../src/waiting.js";
import { deliver, event, gap, message, record } from "./support.js";

describe("values", () => {
  it("ids are text and order like bytes", () => {
    const text = "03haz7sn27d6aj2qw4jm7lv3h";
    assert.equal(idOfBytes(idBytes(text)), text);
    assert.equal(idOfBytes(idBytes(text.toUpperCase())), text);
    assert.equal(idTimeMs(text), idBytes(text).readUIntBE(0, 6));
    for (const bad of ["", "0", "z".repeat(25), "0".repeat(26), `!${"0".repeat(24)}`]) {
      assert.throws(() => idBytes(bad), InvalidValue, bad);
    }
  });

  it("hashes are text", () => {
    const made = blobHash(Buffer.from("hello"));
    assert.equal(made, "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=");
    assert.equal(hashBytes(made).length, 32);
    for (const bad of ["", "sha256-", "sha256-AAAA", made.slice(7), `sha512-${made.slice(7)}`]) {
      assert.throws(() => hashBytes(bad), InvalidValue, bad);
    }
  });

  it("ttls are checked", () => {
    const most = "18446744073709551615";
    const good = ["forever", "ephemeral", "time:1", `time:${most}`, `last:${most}`];
    for (const text of good) {
      const { kind, value } = ttlNumbers(text);
      assert.equal(ttlText(kind, value), text);
    }
    const times: Array<[Ttl, bigint]> = [
      ["time:7ms", 7n],
      ["time:7s", 7_000n],
      ["time:2m", 120_000n],
      ["time:1h", 3_600_000n],
      ["time:3d", 3n * 86_400_000n],
      ["time:1w", 7n * 86_400_000n],
      [`time:${"0".repeat(5000)}7s` as Ttl, 7_000n],
    ];
    for (const [text, value] of times) assert.deepEqual(ttlNumbers(text), { kind: 2, value });
    const wrong = ["", "time", "time:", "last:", "last:0", "last:-1", "last:+1", "last:1.5"];
    wrong.push("time:0", "time:0w");
    wrong.push("last:1d", "forever:1", "forever\n", "never", "Forever", "head:1", "time:d");
    wrong.push("time:1y", "time:1D", "time:-1d", "time:1d2h", "time:1.5h", "time: 1");
    wrong.push("time:\u0661", `time:${most}s`, `time:${most}0`, `last:${"9".repeat(5000)}`);
    for (const bad of wrong) {
      const isTold = (error: unknown) =>
        error instanceof InvalidValue && /is not a ttl: forever/.test(error.message);
      assert.throws(() => ttlNumbers(bad), isTold, bad);
    }
  });

  it("resume points are text", () => {
    const point = { store: "0f".repeat(16), epoch: 3n, offset: 1n << 63n };
    assert.deepEqual(parseResume(resumeText(point)), point);
    for (const bad of ["", "1:2:3", `${"00".repeat(16)}:1`, `${"00".repeat(16)}:x:1`]) {
      assert.throws(() => parseResume(bad), InvalidValue, bad);
    }
  });

  it("what is no time is named", () => {
    assert.equal(timeMs(1700000000000), 1700000000000n);
    assert.equal(timeMs(new Date(5)), 5n);
    const wrong: unknown = "1h";
    assert.throws(() => timeMs(wrong as number), /not "1h"/);
  });

  it("patterns have a most", () => {
    assert.deepEqual(patternsOf("a, b.*"), ["a", "b.*"]);
    assert.equal(patternsOf(new Array<string>(64).fill("a")).length, 64);
    for (const count of [0, 65]) {
      assert.throws(() => patternsOf(new Array<string>(count).fill("a")), InvalidValue);
    }
  });

  it("every code has a class that tells whether to retry", () => {
    for (const [code, name] of Object.entries(CODES)) {
      const refusal = refusalOf(Number(code), "why");
      assert.equal(refusal.codeName, name);
      assert.equal(refusal.retryable, code.startsWith("5"));
    }
    assert.equal(refusalOf(599, "new").codeName, "Other");
    assert.equal(refusalOf(599, "new").retryable, true);
    assert.equal(refusalOf(999, "new").retryable, false);
  });

  it("numbers beyond what is exact are asked for as bigints", () => {
    const at = (offset: number | bigint) => append({ cursors: [{ name: "c", offset }] });
    assert.throws(() => at(2 ** 53), InvalidValue);
    assert.throws(() => at(-1), InvalidValue);
    assert.throws(() => at(1n << 64n), InvalidValue);
    assert.equal(Buffer.concat(at((1n << 64n) - 1n)).readBigUInt64LE(24), (1n << 64n) - 1n);
  });

  it("both CRCs are the same", () => {
    for (const text of ["", "123456789", "x".repeat(1000)]) {
      assert.equal(crc32InJs(Buffer.from(text)), crc32(Buffer.from(text)));
    }
    assert.equal(crc32InJs(Buffer.from("123456789")), 0xcbf43926);
  });
});

describe("addresses", () => {
  it("are told apart", () => {
    const cases = {
      "./store": "store/xs.sock",
      store: "store/xs.sock",
      "/run/a.sock": "/run/a.sock",
      "./a:1/b": "a:1/b/xs.sock",
      ":4000": "127.0.0.1:4000",
      "localhost:4000": "localhost:4000",
      "[::1]:4000": "[::1]:4000",
      "10.0.0.1:65535": "10.0.0.1:65535",
      "xss://example.org:4000": "xss://example.org:4000",
    };
    for (const [text, expected] of Object.entries(cases)) {
      assert.equal(addressText(parseAddress(text)), expected);
    }
    for (const bad of ["", ":", ":0", ":65536", ":-1", "a:b", "::1:80", "xss://:1", "http://a:1"]) {
      assert.throws(() => parseAddress(bad), AddressError, bad);
    }
    for (const bad of ["a\0b", "\0a", "~\0", "a\0.sock", "\ud800", "./\ud800.sock"]) {
      assert.throws(() => parseAddress(bad), /^AddressError: .* names no file$/);
    }
    // As an argument of the command line that was left out.
    for (const none of ["", undefined, null]) {
      assert.throws(() => parseAddress(none as string), /^AddressError: the address is empty; /);
    }
    for (const wrong of [5, Buffer.from("store"), ["store"], new URL("file:///store")]) {
      const isTold = /^AddressError: an address is text, not /;
      assert.throws(() => parseAddress(wrong as never), isTold);
    }
  });

  it("local is this machine", () => {
    for (const text of [":1", "127.0.0.2:1", "[::1]:1", "localhost:1", "./a"]) {
      assert(isLocal(parseAddress(text)), text);
    }
    for (const text of ["10.0.0.1:1", "127.example.org:1", "xss://example.org:1"]) {
      assert(!isLocal(parseAddress(text)), text);
    }
  });
});

describe("waiting", () => {
  it("a wait that is cut listens to nothing any more", async () => {
    const long = new AbortController();
    for (let n = 0; n < 20; n++) {
      const signal = AbortSignal.timeout(1);
      await assert.rejects(sleep(60_000, long.signal, signal), { name: "TimeoutError" });
    }
    await new Promise(setImmediate);
    assert.equal(getEventListeners(long.signal, "abort").length, 0);
    await sleep(1, long.signal, undefined);
  });

  it("a wait that no timer holds is no short one", async () => {
    for (const ms of [Infinity, 2 ** 31]) {
      await assert.rejects(sleep(ms, AbortSignal.timeout(20)), { name: "TimeoutError" });
    }
  });

  it("waits grow to a most and vary by half", () => {
    const retry = { firstMs: 1, mostMs: 5, factor: 2, giveUpMs: 0 };
    const longest = new Backoff(retry, () => 1);
    const shortest = new Backoff(retry, () => 0);
    assert.deepEqual(
      [1, 2, 3, 4, 5].map(() => longest.wait()),
      [1, 2, 4, 5, 5],
    );
    assert.deepEqual(
      [1, 2, 3, 4].map(() => shortest.wait()),
      [0.5, 1, 2, 2.5],
    );
    assert.equal(longest.wait(60), 60);
    longest.reset();
    assert.equal(longest.wait(), 1);
  });

  it("nothing is tried again without a wait", () => {
    // A wait of 0 stays 0, whatever it is multiplied by: a server that was away cost a core.
    for (const odd of [{ firstMs: 0 }, { mostMs: 0 }, { factor: 0 }, { firstMs: 0, mostMs: 0 }]) {
      const backoff = new Backoff({ ...RETRY, ...odd }, () => 0);
      const waits = [1, 2, 3, 4, 5].map(() => backoff.wait());
      backoff.reset();
      assert(Math.min(...waits, backoff.wait()) >= 0.5, JSON.stringify(odd));
    }
  });

  it("a server can ask for a minute at most", () => {
    assert.equal(new Backoff(RETRY).wait(20_000), 20_000);
    assert.equal(new Backoff(RETRY).wait(2 ** 32 - 1), 60_000);
  });

  it("credit is granted in halves", () => {
    const flow = new Flow(1000);
    assert.deepEqual(
      [400, 99, 1, 640, 499].map((n) => flow.took(n)),
      [0, 0, 500, 640, 0],
    );
    assert.equal(new Flow(1).took(1), 1);
    assert.equal(new Flow(0).took(5), 5);
  });
});

const NONE = { code: 0, corr: 0, sub: 0 };

describe("sessions", () => {
  it("bytes may come one at a time", () => {
    const session = new Session("test");
    session.outgoing();
    const ping = message({ ...NONE, op: Op.PING, flags: PUSH }, Buffer.from("x"));
    const push = message({ ...NONE, op: Op.DELIVER, flags: PUSH, sub: 7 });
    const events: Event[] = [];
    for (const byte of Buffer.concat([PREFACE, ping, push])) {
      events.push(...session.receive(Buffer.from([byte])));
    }
    const body = Buffer.alloc(0);
    const expected = { kind: "push", sub: 7, op: Op.DELIVER, code: 0, more: false, body };
    assert.deepEqual(events, [expected]);
    const pong = message({ ...NONE, op: Op.PING, flags: RESPONSE }, Buffer.from("x"));
    assert.deepEqual(Buffer.concat(session.outgoing()), pong);
  });

  it("what is no XSP is told", () => {
    for (const [data, why] of [
      ["HTTP/1.1 400", /does not speak XSP/],
      ["XSP\0\x02\0\0\0", /XSP\/2/],
      ["XSP\0\x01\0\0\x01", /does not speak XSP/],
    ] as const) {
      assert.throws(() => new Session("test").receive(Buffer.from(data)), why);
    }
  });

  it("answers are put to their questions", () => {
    const session = new Session("test");
    session.receive(PREFACE);
    const [one, two] = [session.request(Op.TOPICS), session.request(Op.PING)];
    const part = (op: number, corr: number, flags: number, text: string) =>
      message({ ...NONE, op, flags, corr }, Buffer.from(text));
    const data = [
      part(Op.TOPICS, one, RESPONSE | 4, "a"),
      part(Op.PING, two, RESPONSE, ""),
      part(Op.TOPICS, one, RESPONSE, "b"),
    ];
    const [ping, topics] = session.receive(Buffer.concat(data));
    assert(ping?.kind === "answer" && topics?.kind === "answer");
    assert.equal(ping.corr, two);
    assert.equal(Buffer.concat([...topics.parts]).toString(), "ab");
    for (const wrong of [
      part(Op.PING, two, RESPONSE, ""),
      message({ ...NONE, op: Op.PING, flags: 0, corr: 9 }),
      message({ ...NONE, op: Op.HELLO, flags: PUSH }),
    ]) {
      assert.throws(() => session.receive(wrong), ProtocolError);
    }
  });

  it("an answer to another op is refused", () => {
    const session = new Session("test");
    session.receive(PREFACE);
    const corr = session.request(Op.PING);
    const wrong = message({ ...NONE, op: Op.GET, flags: RESPONSE, corr });
    assert.throws(() => session.receive(wrong), ProtocolError);
  });

  it("the numbers of streams end", () => {
    const session = new Session("test", "", 2);
    assert.deepEqual([session.stream(), session.stream(), session.streamsLeft], [1, 2, 0]);
    assert.throws(() => session.stream(), NotSent);
  });

  it("answers to PINGs wait up to a number", () => {
    const pings = (count: number, size = 1) =>
      Buffer.concat(
        Array<Buffer>(count).fill(
          message({ ...NONE, op: Op.PING, flags: PUSH }, Buffer.alloc(size)),
        ),
      );
    const session = new Session("test");
    session.receive(PREFACE);
    for (let round = 0; round < 2; round++) {
      session.receive(pings(PONGS_MAX));
      session.outgoing();
      session.written();
    }
    session.receive(pings(PONGS_MAX));
    assert.throws(() => session.receive(pings(1)), /PINGs/);
    const other = new Session("test");
    other.receive(PREFACE);
    assert.throws(() => other.receive(pings(1, 65)), /PINGs/);
  });

  it("answers that are not whole wait up to a number of bytes", () => {
    const session = new Session("test");
    session.receive(PREFACE);
    const [one, two] = [session.request(Op.TOPICS), session.request(Op.TOPICS)];
    const part = (corr: number, flags: number) =>
      message({ ...NONE, op: Op.TOPICS, flags: RESPONSE | flags, corr });
    const many = (corr: number) => {
      const some = Buffer.concat(Array<Buffer>(1024).fill(part(corr, MORE)));
      for (let at = 0; at < PARTS_BYTES_MAX; at += 1024 * PART_BYTES_MIN) session.receive(some);
    };
    // What came of answers that are whole counts no more.
    many(one);
    assert.equal(session.receive(part(one, 0)).length, 1);
    many(two);
    assert.throws(() => session.receive(part(two, MORE)), /does not end/);
  });

  it("a request has a longest", () => {
    const session = new Session("test");
    const most = 24 * 1024 * 1024 - 16;
    session.request(Op.APPEND, [Buffer.alloc(most)]);
    assert.throws(() => session.request(Op.APPEND, [Buffer.alloc(most + 1)]), InvalidValue);
  });

  it("headers are written as they are read", () => {
    assert.equal(
      header({ ...NONE, op: 1, flags: 0, corr: 0xffff_ffff }, 4).readUInt32LE(8),
      2 ** 32 - 1,
    );
  });
});

const STORE = "00".repeat(16);

function info(epoch = 1n, head = 100n, store = STORE): ServerInfo {
  const sizes = { messageBytes: 1, requests: 1, streams: 1, chunkBytes: 1, uploadWindow: 1 };
  return {
    ...sizes,
    name: "xs",
    version: 1,
    role: "admin",
    store,
    epoch,
    head,
    batchRecords: 1,
    ops: [],
  };
}

function given(reading: Reading, push: Parameters<Reading["take"]>[0]): Item[] {
  const items = reading.take(push);
  items.forEach((item, at) => reading.gave(item, at === items.length - 1));
  return items;
}

function corrupt(reading: Reading, push: Parameters<Reading["take"]>[0]): CorruptRange {
  try {
    reading.take(push);
  } catch (error) {
    if (error instanceof CorruptRange) return error;
  }
  throw new Error("no CorruptRange");
}

describe("readings", () => {
  const following = (options = {}) => new Reading(selection("*", options, true));

  it("the position follows what was handed out", () => {
    const reading = following();
    assert.equal(reading.point, undefined);
    reading.begin(info());
    assert.equal(reading.began(info()), undefined);
    const [one, two, three] = reading.take(deliver([3n, null, 5n], 9n)) as [Item, Item, Item];
    reading.gave(one, false);
    assert.equal(reading.position, 4n);
    reading.gave(two, false);
    assert.equal(reading.position, 4n);
    reading.gave(three, true);
    assert.deepEqual(reading.point, { store: STORE, epoch: 1n, offset: 9n });
    given(reading, deliver([], 2000n));
    assert.equal(reading.position, 2000n);
  });

  it("it goes on where it was", () => {
    const reading = following({ last: 10, limit: 5 });
    reading.begin(info());
    reading.began(info());
    given(reading, deliver([3n, 4n], 9n));
    const rest = reading.begin(info());
    assert.deepEqual([rest.start, rest.limit], [{ at: "from", bound: 9n }, 3n]);
    assert.deepEqual(reading.began(info()), { kind: "resumed", offset: 9n });
    given(reading, deliver([9n, 10n, 11n], 12n));
    assert(reading.isDone);
  });

  it("new goes on from its threshold", () => {
    const reading = following({ new: true });
    reading.began(info());
    assert.deepEqual(reading.begin(info()).start, { at: "new" });
    assert.deepEqual(given(reading, event(1, 7n)), [{ kind: "caught_up", head: 7n }]);
    assert.deepEqual(reading.begin(info()).start, { at: "from", bound: 7n });
  });

  it("the threshold comes once", () => {
    const reading = following();
    assert.equal(given(reading, event(1, 7n)).length, 1);
    reading.began(info());
    assert.equal(given(reading, event(1, 9n)).length, 0);
    assert.equal(reading.position, 9n);
  });

  it("a backward read goes on downwards", () => {
    const reading = new Reading(selection("*", { last: 5, reverse: true }, false));
    reading.began(info());
    const [one] = reading.take(deliver([9n, 8n], 8n)) as [Item];
    reading.gave(one, false);
    assert.equal(reading.position, 9n);
    const { start, before, limit } = reading.rest;
    assert.deepEqual([start, before, limit], [{ at: "first" }, 8n, 3n]);
  });

  it("a frame that comes twice is an error", () => {
    for (const offsets of [
      [3n, 3n],
      [4n, 3n],
    ]) {
      assert.throws(() => following().take(deliver(offsets, 9n)), ProtocolError);
    }
    const reading = following();
    reading.take(deliver([3n], 9n));
    assert.throws(() => reading.take(deliver([8n], 10n)), ProtocolError);
  });

  it("gaps are told to followers and end reads", () => {
    const reading = following();
    const lost = { kind: "gap", reason: "corrupt", first: 3n, end: 5n, count: 0n };
    assert.deepEqual(given(reading, gap(1, 3n, 5n)), [lost]);
    assert.equal(reading.position, 5n);
    const missed = { kind: "gap", reason: "ephemeral", first: null, end: null, count: 12n };
    assert.deepEqual(given(reading, gap(2, 12n, 0n)), [missed]);
    assert.equal(reading.position, 5n);
    // The newest of its frames are still to come.
    const conflated = { ...lost, reason: "conflated", first: 5n, end: 90n };
    assert.deepEqual(given(reading, gap(3, 5n, 90n)), [conflated]);
    assert.equal(reading.position, 5n);
    given(reading, deliver([40n, 89n], 90n));
    assert.equal(reading.position, 90n);
    const bounded = new Reading(selection("*", {}, false));
    const { message, first, end, resume } = corrupt(bounded, gap(1, 3n, 5n));
    assert.match(message, /frames 3 to 4 .* go on from 5/);
    assert.deepEqual([first, end, resume, bounded.position], [3n, 5n, 5n, 5n]);
  });

  it("a gap is passed backwards too", () => {
    const reading = new Reading(selection("*", { reverse: true }, false));
    given(reading, deliver([9n], 9n));
    const one = corrupt(reading, gap(1, 8n, 9n));
    assert.match(one.message, /^frame 8 cannot be read; go on before 8/);
    const { message, first, end, resume } = corrupt(reading, gap(1, 7n, 9n));
    assert.match(message, /frames 7 to 8 .* go on before 7/);
    assert.deepEqual([first, end, resume, reading.position], [7n, 9n, 7n, 7n]);
    assert.equal(reading.rest.before, 7n);
  });

  it("what drops it is thrown and its offset kept", () => {
    const reading = following();
    const dropped = event(4, 42n, 501, Buffer.from("\x03\0why"));
    assert.throws(() => reading.take(dropped), Unavailable);
    assert.deepEqual(reading.rest.start, { at: "from", bound: 42n });
  });

  it("an end below the start or what was seen moves nothing", () => {
    const [above, seen, backward] = [{ from: 9 }, {}, { reverse: true }].map(
      (options) => new Reading(selection("*", options, false)),
    ) as [Reading, Reading, Reading];
    const asked = above.rest;
    given(above, event(5, 5n));
    assert.deepEqual([above.isDone, above.rest, above.position], [true, asked, undefined]);
    given(seen, deliver([3n], 7n));
    given(seen, event(5, 5n));
    assert.deepEqual([seen.isDone, seen.position], [true, 7n]);
    given(backward, deliver([8n], 7n));
    given(backward, event(5, 5n));
    assert.deepEqual([backward.isDone, backward.position], [true, 5n]);
  });

  it("a start above the head is kept until it is reached", () => {
    for (const start of [{ from: 9 }, { after: 8 }]) {
      const reading = following(start);
      const asked = reading.rest;
      reading.began(info(1n, 5n));
      assert.deepEqual(given(reading, event(1, 5n)), [{ kind: "caught_up", head: 5n }]);
      const dropped = event(4, 9n, 501, Buffer.from("\x03\0why"));
      assert.throws(() => reading.take(dropped), Unavailable);
      // There is nothing yet that the server could check.
      assert.deepEqual([reading.seenIn, reading.point], [undefined, undefined]);
      assert.equal(reading.rest, asked);
      assert.deepEqual(given(reading, event(1, 9n)), []);
      assert.deepEqual(reading.point, { store: STORE, epoch: 1n, offset: 9n });
      assert.deepEqual(reading.seenIn, { store: STORE, epoch: 1n });
      given(reading, deliver([9n], 10n));
      assert.deepEqual(reading.rest.start, { at: "from", bound: 10n });
    }
  });

  it("an id above all is kept until a frame has come", () => {
    const reading = following({ after: idOfBytes(Buffer.alloc(16, 9)) });
    const asked = reading.rest;
    reading.began(info());
    assert.deepEqual(given(reading, event(1, 100n)), [{ kind: "caught_up", head: 100n }]);
    given(reading, deliver([], 2000n));
    const dropped = event(4, 2000n, 501, Buffer.from("\x03\0why"));
    assert.throws(() => reading.take(dropped), Unavailable);
    assert.equal(reading.rest, asked);
    assert.deepEqual([reading.seenIn], [undefined]);
    given(reading, deliver([2000n], 2001n));
    assert.deepEqual(reading.rest.start, { at: "from", bound: 2001n });
    assert.deepEqual(reading.seenIn, { store: STORE, epoch: 1n });
  });

  it("a point holds for its store and epoch", () => {
    const point = { store: STORE, epoch: 1n, offset: 100n };
    const reading = new Reading(selection("*", {}, true), point);
    assert.deepEqual(reading.begin(info(2n)).start, { at: "from", bound: 100n });
    assert.deepEqual(reading.seenIn, { store: STORE, epoch: 1n });
    reading.began(info(2n));
    assert.deepEqual(reading.seenIn, { store: STORE, epoch: 2n });
    assert.throws(() => reading.begin(info(1n, 100n, "01".repeat(16))), OtherStore);
    // What was not seen anywhere needs no epoch.
    assert.equal(new Reading(selection("*", { from: 5 }, true)).seenIn, undefined);
    const backward = new Reading(selection("*", { reverse: true }, false));
    backward.began(info());
    backward.take(deliver([9n], 9n));
    assert.equal(backward.seenIn, undefined);
  });

  it("options that contradict are refused", () => {
    for (const options of [{ from: 1, new: true }, { last: 1, after: 2 }, { from: -1 }]) {
      assert.throws(() => selection("*", options, false), InvalidValue);
    }
    assert.throws(() => selection("*", { reverse: true }, true), InvalidValue);
    const since = new Date("2030-01-01T00:00:00Z");
    assert.equal(selection("*", { since }, false).sinceMs, 1_893_456_000_000n);
  });
});

/** A frame with a body, as it travels. */
function bodied(body: Buffer): Frame {
  const one = Buffer.concat([record("a", 0).subarray(0, 32), Buffer.alloc(40), Buffer.from("a")]);
  one.writeUInt32LE(one.length, 4);
  one[9] = 1;
  one.writeUInt32LE(crc32InJs(one.subarray(4)), 0);
  return new Frame(one, 1n, body);
}

describe("frames", () => {
  it("that are kept do not keep what they came with", () => {
    // One frame of a few bytes kept a message of 2 MiB.
    const list = (bodies: Buffer[]) => {
      const out = new Writer();
      putFrameList(out, bodies.map(bodied));
      const message = Buffer.concat([Buffer.alloc(16), out.bytes()]);
      return { message, frames: readFrameList(new Reader(message.subarray(16))).frames };
    };
    const sizes = [10, 1 << 20, 5000, 400_000];
    const { message, frames } = list(sizes.map((bytes, at) => Buffer.alloc(bytes, at)));
    assert.equal(frames.length, 4);
    for (const [at, { record, body = Buffer.alloc(0) }] of frames.entries()) {
      assert.deepEqual(body, Buffer.alloc(sizes[at] ?? 0, at));
      for (const kept of [record, body]) {
        assert(kept.buffer.byteLength <= Math.max(Buffer.poolSize, 2 * kept.length), `${at}`);
      }
    }
    // What makes up most of a message, or of little, is not copied.
    assert.equal(frames[1]?.body?.buffer, message.buffer);
    const small = list([Buffer.alloc(10)]);
    assert.equal(small.frames[0]?.body?.buffer, small.message.buffer);
  });

  it("a body that did not come is told", () => {
    const frame = new Frame(record("a", 0), 1n);
    assert.deepEqual([frame.body?.length, frame.text(), frame.meta], [0, "", undefined]);
    const bodied = Buffer.concat([record("a", 0), Buffer.alloc(40)]);
    bodied[9] = 1;
    const isTold = (error: unknown) =>
      error instanceof InvalidValue && /did not come .* body\(frame\)/.test(error.message);
    assert.throws(() => new Frame(bodied, 1n).text(), isTold);
    assert.throws(() => new Frame(bodied, 1n).json(), isTold);
    assert.deepEqual(new Frame(bodied, 1n, Buffer.from('{"a":1}')).json(), { a: 1 });
    const isNoJson = (error: unknown) =>
      error instanceof InvalidValue && /the body is not JSON: /.test(error.message);
    assert.throws(() => new Frame(bodied, 1n, Buffer.from("{")).json(), isNoJson);
    assert.throws(() => new Frame(record("a", 0), 1n).json(), isNoJson);
    const broken = new Frame(Buffer.concat([record("a", 0), Buffer.from("{")]), 1n);
    assert.throws(() => broken.meta, ProtocolError);
  });
});
