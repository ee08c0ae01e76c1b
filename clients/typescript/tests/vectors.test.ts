// The golden vectors of protocol/vectors: what this client sends and understands, byte for byte,
// and what becomes of bytes that are wrong.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import * as net from "node:net";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { MORE, Op, PREFACE, PUSH, readHeader, RESPONSE } from "../src/coding.js";
import { CODES, connect, ProtocolError, XsError, type Frame } from "../src/index.js";
import * as messages from "../src/messages.js";
import { Session, type Event } from "../src/session.js";
import { blobHash, hashOfBytes, idOfBytes, type FrameId } from "../src/values.js";
import { message, PATIENCE_MS, ROOT, Server, vectors, type Vector } from "./support.js";

const HELLO = blobHash(Buffer.from("hello"));

/** The ids of the vectors: times from 1,700,000,000,001 ms on. */
function anId(n: number): FrameId {
  const bytes = Buffer.alloc(16);
  bytes.writeUIntBE(1_700_000_000_000 + n, 0, 6);
  return idOfBytes(bytes);
}

const follow = messages.selection("*", { new: true }, true);

const fetchSelection: messages.Selection = {
  topics: ["a.b", "c.*", "*"],
  start: { at: "after", bound: anId(3) },
  before: 100n,
  sinceMs: 1n,
  untilMs: 2n,
  limit: 5n,
  reverse: true,
  follow: false,
};

function aCall(): Buffer[] {
  return messages.call({
    name: "report",
    args: Buffer.from('{"url":"x"}'),
    body: Buffer.from("body"),
    deadlineMs: 5000,
    credit: 1 << 20,
    bodies: 100,
  });
}

/** What a host adds, which no client library is. */
function originExtension(): Buffer {
  const out = Buffer.alloc(8 + 48);
  out.writeUInt16LE(1, 0);
  out.writeUInt32LE(48, 4);
  out.writeUIntBE(1_700_000_000_001, 8, 6);
  out.writeUIntBE(1_700_000_000_002, 24, 6);
  out.fill(0xff, 40, 48);
  out.writeUInt32LE(3, 48);
  return out;
}

// What a client sends, by the name of its vector.
const REQUESTS: Record<string, () => Buffer[]> = {
  hello: () => messages.hello("test/1", ""),
  "hello-token": () => messages.hello("test/1", `xst_${"A".repeat(43)}`),
  "hello-host": () => messages.hello("test/1", "", { instance: Buffer.alloc(16, 7) }),
  "hello-host-alone": () =>
    messages.hello("test/1", "", { instance: Buffer.alloc(16, 7), alone: "report" }),
  ping: () => [Buffer.from("alive?")],
  pong: () => [],
  append: () =>
    messages.append({
      frames: [
        { topic: "a.b", body: "hello", meta: { n: 1 } },
        { topic: "a.b", ttl: "ephemeral" },
        {
          topic: "a.b",
          body: { blob: HELLO },
          ttl: "last:1",
          origin: { processor: anId(1), input: anId(2), inputOffset: 9n, hops: 1 },
        },
        { topic: "a.b", ttl: "time:60000" },
      ],
      cursors: [{ name: "c", offset: 10, state: Buffer.from("{}"), expect: 3 }],
      durable: true,
    }),
  "append-empty": () => messages.append({ frames: [] }),
  "append-removes": () =>
    messages.append({ frames: [{ topic: "a.b" }], remove: [anId(2), 40], within: "a.*" }),
  "append-conditions": () =>
    messages.append({
      frames: [{ topic: "a.b" }],
      conditions: [{ lastAtMost: 7, topics: "a.b,c.*" }, { empty: "*" }, { headIs: 9n }],
      key: "order 17",
    }),
  fetch: () => messages.fetch(fetchSelection, 65536),
  "get-by-offset": () => messages.get(7),
  "get-by-id": () => messages.get(anId(4)),
  last: () => messages.last("*", 10, true),
  topics: () => messages.topics("*,xs,xs.*"),
  remove: () => messages.remove([anId(2), 40], { durable: true, now: true, within: "a.*" }),
  stats: () => [],
  "subscribe-resumed": () =>
    messages.subscribe(
      messages.selection("*", { from: 41 }, true),
      { credit: 1000, bodies: 4096, pulseMs: 1000, slow: { latest: 100 } },
      { store: "07".repeat(16), epoch: 3n },
    ),
  "subscribe-drop": () =>
    messages.subscribe(follow, {
      credit: 1000,
      bodies: 4096,
      pulseMs: 1000,
      slow: { drop: 10_000n },
    }),
  subscribe: () => messages.subscribe(follow, { credit: 1000, bodies: 4096, pulseMs: 1000 }),
  credit: () => messages.credit(640),
  unsubscribe: () => [],
  "cursor-set-remove": () => messages.cursorSet({ name: "c", offset: null }),
  "cursor-get": () => messages.cursorGet("c"),
  "cursor-list": () => [],
  "blob-has": () => messages.blobName(HELLO),
  "blob-put": () => [],
  "blob-chunk": () => [Buffer.from("piece")],
  "blob-chunk-last": () => [Buffer.from("piece")],
  "blob-get": () => messages.blobGet(HELLO, 1 << 20),
  call: aCall,
  "call-of-host": () => [...aCall(), originExtension()],
  // The frames of the vector itself, which begin behind its header and eight bytes.
  import: () => {
    const { frames } = messages.readList(golden("client", "import").subarray(16 + 8));
    return messages.importFrames(frames, { durable: true });
  },
  "maintain-verify": () => messages.maintain("verify"),
  "maintain-compact": () => messages.maintain("compact", { deadPercent: 50 }),
  "maintain-fork": () => messages.maintain("fork", { path: "/stores/fork" }),
  "maintain-gc": () =>
    messages.maintain("gc", { flags: 2, deadPercent: 25, graceMs: 3_600_000 }),
  "maintain-backup": () => messages.maintain("backup", { flags: 1, path: "/backups/store" }),
};

const golden = (file: string, name: string): Buffer => {
  const vector = vectors(file).find((one) => one.name === name);
  assert(vector, name);
  return Buffer.from(vector.hex, "hex");
};

describe("requests", () => {
  for (const vector of vectors("client")) {
    it(`${vector.name} is the golden bytes`, () => {
      const bytes = Buffer.from(vector.hex, "hex");
      const head = readHeader(bytes);
      assert.equal(head.op, Op[vector.op as keyof typeof Op]);
      const body = REQUESTS[vector.name];
      assert(body, `no test for ${vector.name}`);
      assert.equal(message(head, Buffer.concat(body())).toString("hex"), vector.hex);
    });
  }

  it("a session sends them", () => {
    const session = new Session("test/1");
    const sent = () => Buffer.concat(session.outgoing());
    assert.deepEqual(sent(), Buffer.concat([PREFACE, golden("client", "hello")]));
    session.request(Op.PING, [Buffer.from("alive?")]);
    assert.deepEqual(sent(), golden("client", "ping"));
    const ping = message({ op: Op.PING, flags: PUSH, code: 0, corr: 0, sub: 0 }, Buffer.alloc(0));
    session.receive(Buffer.concat([PREFACE, ping]));
    assert.deepEqual(sent(), golden("client", "pong"));
    session.tell(Op.BLOB_CHUNK, 2, [Buffer.from("piece")], MORE);
    assert.deepEqual(sent(), golden("client", "blob-chunk"));
  });
});

/** A session that was greeted and asks, under the number of an answer, for that answer. */
function asking(answer: Buffer): Session {
  const session = new Session("test/1");
  session.receive(PREFACE);
  const { op, flags, corr } = readHeader(answer);
  if (op === Op.HELLO || !(flags & RESPONSE)) return session;
  for (let asked = 0; asked < corr && asked < 100; ) asked = session.request(op);
  return session;
}

const events = (name: string): Event[] => {
  const bytes = golden("server", name);
  return asking(bytes).receive(bytes);
};

const only = <K extends Event["kind"]>(name: string, kind: K): Extract<Event, { kind: K }> => {
  const [event, ...rest] = events(name);
  assert.equal(rest.length, 0);
  assert.equal(event?.kind, kind);
  return event as Extract<Event, { kind: K }>;
};

const answer = (name: string): Buffer => only(name, "answer").parts[0] ?? Buffer.alloc(0);

const streamEvent = (name: string): any => {
  const { code, body } = only(name, "push");
  return messages.readEvent(code, body);
};

describe("answers", () => {
  it("hello", () => {
    const { info } = only("hello-reply", "welcome");
    assert.equal(info.name, "xs/test");
    assert.equal(info.role, "admin");
    assert.deepEqual([info.epoch, info.head], [3n, 99n]);
    assert.equal(info.store, "07".repeat(16));
    assert.equal(info.messageBytes, 25_165_824);
    assert(
      info.ops.some(({ op, oldest, newest }) => op === Op.CALL && oldest === 1 && newest === 1),
    );
  });

  it("appended", () => {
    const done = messages.readAppended(answer("append-reply"));
    assert.deepEqual([done.head, done.durable, done.cursors], [8n, true, [4n, 0n]]);
    const stamps = done.frames.map(({ id, offset }) => [id, offset]);
    assert.deepEqual(stamps, [
      [anId(1), 7n],
      [anId(2), null],
    ]);
    const again = messages.readAppended(answer("append-repeated"));
    assert.deepEqual(
      [done.repeated, again.repeated, again.durable, again.head],
      [false, true, false, 9n],
    );
    const unmet = only("append-condition-failed", "answer").refusal;
    assert.deepEqual([unmet?.code, unmet?.details], [402, { condition: 0, found: 57n }]);
    const reused = only("append-key-reused", "answer").refusal;
    assert.deepEqual([reused?.code, reused?.details], [307, { frame: anId(1) }]);
    const { refusal } = only("append-refused", "answer");
    assert.deepEqual([refusal?.code, refusal?.codeName], [400, "CursorConflict"]);
    assert.equal(refusal?.text, "cursor c has revision 4, not 3");
    assert.deepEqual(refusal.details, { cursor: "c", revision: 4n, retryAfterMs: 10 });
  });

  const checkFrames = (frames: Frame[], body: string | undefined) => {
    const [one, two, three] = frames as [Frame, Frame, Frame];
    assert.deepEqual([one.offset, one.id, one.topic, one.meta], [7n, anId(1), "a.b", { n: 1 }]);
    assert.deepEqual([one.hash, one.body?.length, one.origin, one.oldId], [null, 0, null, null]);
    assert.deepEqual([two.offset, two.id], [null, anId(2)]);
    assert.deepEqual([three.offset, three.hash, three.bodyBytes], [8n, HELLO, 5n]);
    assert.equal(three.body?.toString(), body);
    const made = { processor: anId(1), input: null, inputOffset: null, hops: 2 };
    assert.deepEqual([three.origin, three.ttl], [made, "forever"]);
  };

  it("frame lists", () => {
    assert.deepEqual(messages.readList(answer("get-none")).frames, []);
    const read = messages.selection("*", {}, false);
    const page = messages.readPage(answer("fetch-reply"), read);
    assert.deepEqual([page.head, page.scannedTo], [100n, 9n]);
    checkFrames(page.frames, undefined);
    assert.deepEqual(page.next?.start, { at: "from", bound: 9n });
    assert.equal(page.next?.before, 100n);
    const list = messages.readList(only("deliver", "push").body);
    assert.equal(list.scannedTo, 9n);
    checkFrames(list.frames, "hello");
  });

  it("frames of each kind", () => {
    const frame = (name: string): Frame => {
      const { frames } = messages.readList(answer(name));
      assert(frames.length === 1 && frames[0]);
      return frames[0];
    };
    const timed = frame("get-ttl-time");
    const last = frame("get-ttl-last");
    assert.deepEqual([timed.ttl, last.ttl], ["time:60000", "last:3"]);
    const old = frame("get-old-id");
    assert.deepEqual([old.id, old.oldId, old.topic], [anId(6), anId(2), "a.b"]);
    const whole = frame("get-all-fields");
    assert.deepEqual([whole.offset, whole.id, whole.oldId], [42n, anId(7), anId(3)]);
    assert.deepEqual([whole.topic, whole.meta, whole.ttl], ["a.b", { n: 1 }, "last:3"]);
    assert.deepEqual([whole.hash, whole.bodyBytes, whole.body], [HELLO, 5n, undefined]);
    const made = { processor: anId(1), input: anId(2), inputOffset: 9n, hops: 2 };
    assert.deepEqual(whole.origin, made);
    // The first part says MORE.
    const [part, rest] = [golden("server", "last-part"), golden("server", "last-reply")];
    const session = asking(part);
    assert.deepEqual(session.receive(part), []);
    const [event] = session.receive(rest);
    assert(event?.kind === "answer");
    const found = event.parts.flatMap((one) => messages.readList(one).frames);
    assert.deepEqual(
      found.map(({ record }) => record),
      [timed, last, whole].map(({ record }) => record),
    );
  });

  it("lists", () => {
    // It says MORE: another part follows.
    assert.deepEqual(events("topics-part"), []);
    const [topic] = messages.readTopics(golden("server", "topics-part").subarray(16));
    const first = anId(1);
    assert.deepEqual(topic, {
      name: "a.b",
      count: 2n,
      bytes: 300n,
      first,
      last: anId(3),
      lastOffset: 8n,
    });
    const [cursor] = messages.readCursors(answer("cursor-list-reply"));
    assert.deepEqual([cursor?.name, cursor?.revision, cursor?.stateBytes], ["c", 4n, 2n]);
  });

  it("small answers", () => {
    assert.equal(answer("subscribed").length, 0);
    assert.equal(answer("pong").toString(), "alive?");
    assert.equal(messages.readNumber(answer("cursor-set-reply")), 5n);
    const cursor = messages.readCursor("c", answer("cursor-get-reply"));
    assert.deepEqual([cursor?.revision, cursor?.epoch, cursor?.offset], [4n, 3n, 10n]);
    assert.deepEqual([cursor?.timeMs, cursor?.state.toString()], [1_700_000_000_000n, "{}"]);
    assert.equal(messages.readCursor("c", answer("cursor-get-none")), undefined);
    const gone = messages.readAppended(answer("remove-reply"));
    assert.deepEqual([gone.removed, gone.head], [[true, false], 9n]);
    const { outcomes, durable, head } = messages.readImported(answer("import-reply"));
    const kinds = [{ kind: "new" }, { kind: "there" }, { kind: "refused", code: 308 }];
    assert.deepEqual([outcomes, durable, head], [kinds, true, 9n]);
    assert.match(answer("maintain-reply").toString(), /"files_copied":3/);
    assert.match(answer("stats-reply").toString(), /"head":9/);
    assert.equal(answer("blob-has-reply")[0], 1);
    assert.equal(hashOfBytes(answer("blob-put-reply").subarray(0, 32)), HELLO);
    assert.equal(messages.readNumber(answer("blob-get-reply")), 5n);
    assert.equal(idOfBytes(answer("call-reply")), anId(5));
  });

  it("pushes", () => {
    const chunk = only("blob-chunk", "push");
    assert.deepEqual([chunk.sub, chunk.op, chunk.more], [3, Op.BLOB_CHUNK, false]);
    assert.equal(chunk.body.toString(), "hello");
    const piece = only("blob-chunk-more", "push");
    assert.deepEqual([piece.sub, piece.op, piece.more], [3, Op.BLOB_CHUNK, true]);
    assert.equal(piece.body.toString(), "piece");
    assert.equal(messages.readNumber(only("upload-credit", "push").body), 262_144n);
    assert.deepEqual(events("ping"), []);
    const { drainMs, reason } = only("goaway", "goaway");
    assert.deepEqual([drainMs, reason], [5000, "the server is stopping"]);
    const { refusal } = only("close", "closed");
    assert.deepEqual([refusal.code, refusal.details.limit], [102, 8192n]);
  });

  it("stream events", () => {
    assert.deepEqual(streamEvent("event-caught-up"), { kind: "caught_up", head: 9n });
    assert.deepEqual(streamEvent("event-pulse"), { kind: "pulse" });
    const gap = { kind: "gap", reason: "corrupt", first: 3n, end: 5n, count: 0n };
    assert.deepEqual(streamEvent("event-gap-corrupt"), gap);
    const conflated = { ...gap, reason: "conflated", end: 90n };
    assert.deepEqual(streamEvent("event-gap-conflated"), conflated);
    const lost = { ...gap, reason: "ephemeral", first: null, end: null, count: 12n };
    assert.deepEqual(streamEvent("event-gap-ephemeral"), lost);
    const dropped = streamEvent("event-dropped");
    assert.deepEqual(
      [dropped.resume, dropped.refusal.code, dropped.refusal.retryable],
      [9n, 501, true],
    );
    assert.deepEqual(streamEvent("event-ended"), { kind: "ended", scannedTo: 9n });
  });
});

it("numbers and names are those of docs/wire.toml", () => {
  const text = readFileSync(join(ROOT, "docs", "wire.toml"), "utf8");
  const ops = [...text.matchAll(/\[\[op\]\]\nname = "(\w+)"\nnumber = (0x\w+)/g)];
  assert(ops.length > 20);
  for (const [, name = "", number] of ops) {
    assert.equal(Op[name as keyof typeof Op], Number(number), name);
  }
  const codes = [...text.matchAll(/\[\[code\]\]\nnumber = (\d+)\nname = "(\w+)"/g)];
  assert.deepEqual(Object.fromEntries(codes.map(([, number, name]) => [number, name])), CODES);
});

const READERS: Record<number, (body: Buffer) => unknown> = {
  [Op.APPEND]: messages.readAppended,
  [Op.IMPORT]: messages.readImported,
  [Op.FETCH]: (body) => messages.readPage(body, messages.selection("*", {}, false)),
  [Op.GET]: messages.readList,
  [Op.LAST]: messages.readList,
  [Op.TOPICS]: messages.readTopics,
  [Op.CURSOR_SET]: messages.readNumber,
  [Op.CURSOR_GET]: (body) => messages.readCursor("c", body),
  [Op.CURSOR_LIST]: messages.readCursors,
  [Op.BLOB_GET]: messages.readNumber,
};

/** Reads a message of a server as far as this client ever does. */
function understand(session: Session, data: Buffer, op: number): void {
  for (const event of session.receive(data)) {
    if (event.kind === "answer") event.parts.forEach((part) => READERS[op]?.(part));
    if (event.kind !== "push") continue;
    if (event.op === Op.SUB_EVENT) messages.readEvent(event.code, event.body);
    else if (event.op === Op.CREDIT) messages.readNumber(event.body);
    else if (event.op === Op.DELIVER) messages.readList(event.body).frames.forEach(touch);
  }
}

const touch = (frame: Frame) => {
  const { id, topic, metaJson, ttl, hash, body, origin, oldId, timeMs } = frame;
  return [id, topic, metaJson, ttl, hash, body, origin, oldId, timeMs];
};

describe("malformed", () => {
  const isHarmless = (whole: Buffer, data: Buffer) => {
    try {
      understand(asking(whole), data, readHeader(whole).op);
    } catch (error) {
      assert(error instanceof XsError, `${data.toString("hex")}: ${String(error)}`);
    }
  };

  it("no cut and no turned bit is more than an error", () => {
    for (const vector of vectors("server")) {
      const whole = Buffer.from(vector.hex, "hex");
      for (let at = 16; at < whole.length; at++) {
        const cut = Buffer.from(whole.subarray(0, at));
        cut.writeUInt32LE(at - 4, 0);
        isHarmless(whole, cut);
      }
      for (let bit = 0; bit < whole.length * 8; bit++) {
        const turned = Buffer.from(whole);
        turned[bit >> 3]! ^= 1 << (bit & 7);
        isHarmless(whole, turned);
      }
    }
  });

  it("a turned bit of a record is found", () => {
    // The first run: 16 header, 16 list head, 16 run head, then 42 bytes of the record.
    for (let at = 48; at < 48 + 42; at++) {
      const turned = golden("server", "deliver");
      turned[at]! ^= 1;
      assert.throws(() => understand(asking(turned), turned, Op.DELIVER), ProtocolError);
    }
  });

  for (const vector of vectors("malformed-server")) {
    it(`${vector.name} is refused`, () => {
      const data = Buffer.from(vector.hex, "hex");
      const op = readHeader(data).op;
      assert.throws(() => understand(asking(data), data, op), ProtocolError);
    });
  }

  for (const vector of vectors("malformed")) {
    if (!/^(length-|flags-unknown|flags-response)/.test(vector.name)) continue;
    it(`${vector.name} is refused by this side too`, () => {
      const data = Buffer.from(vector.hex, "hex");
      assert.throws(() => asking(data).receive(data), ProtocolError);
    });
  }
});

describe("the server refuses", () => {
  let server: Server;
  before(async () => {
    server = new Server();
    await (await connect(server.store, { waitMs: PATIENCE_MS })).close();
  });
  after(() => server.close());

  for (const vector of vectors("malformed")) {
    it(`${vector.name} with ${vector.code}`, () => refuses(server, vector));
  }

  async function refuses(at: Server, vector: Vector): Promise<void> {
    const data = Buffer.from(vector.hex, "hex");
    const head = readHeader(data);
    const socket = net.connect({ path: `${at.store}/xs.sock` });
    try {
      const session = new Session("vectors");
      const found: Event[] = [];
      socket.on("data", (piece: Buffer) => found.push(...session.receive(piece)));
      const next = async (): Promise<Event> => {
        for (;;) {
          const event = found.shift();
          if (event) return event;
          await once(socket, "data", { signal: AbortSignal.timeout(PATIENCE_MS) });
        }
      };
      const greeting = Buffer.concat(session.outgoing());
      if (head.op === Op.HELLO) socket.write(greeting.subarray(0, PREFACE.length));
      else {
        socket.write(greeting);
        assert.equal((await next()).kind, "welcome");
        for (let asked = 1; asked < head.corr; ) asked = session.request(head.op);
      }
      socket.write(data);
      const event = await next();
      assert.equal(event.kind, vector.closes ? "closed" : "answer");
      assert("refusal" in event && event.refusal);
      assert.equal(event.refusal.code, vector.code);
    } finally {
      socket.destroy();
    }
  }
});
