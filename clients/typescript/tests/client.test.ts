// What the conformance script cannot say: waiting, giving up, and servers that stop, vanish or
// lie.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { setImmediate, setTimeout } from "node:timers/promises";
import { MORE, Op, PREFACE, PUSH, RESPONSE, Writer, type Header } from "../src/coding.js";
import {
  AccessError,
  AddressError,
  blobHash,
  Client,
  ClientClosed,
  connect,
  ConnectError,
  ConnectionLost,
  IntegrityError,
  InvalidValue,
  ProtocolError,
  ProtocolRefused,
  TlsError,
  Unavailable,
  type Item,
} from "../src/index.js";
import { Connection } from "../src/connection.js";
import { FREE_WAITING_MAX } from "../src/limits.js";
import { Backoff, RETRY } from "../src/reading.js";
import { Liar, QUICK, refused, STORED, take, type Talk } from "./peer.js";
import { deliver, event, gap, message, PATIENCE_MS, Server } from "./support.js";

describe("over xs serve", () => {
  let server: Server;
  let client: Client;
  before(async () => {
    server = new Server();
    client = await connect(server.store, { waitMs: PATIENCE_MS });
  });
  after(async () => {
    await client.close();
    await server.close();
  });

  it("a signal ends every wait with its reason", async () => {
    const reason = new Error("enough");
    const aborted = AbortSignal.abort(reason);
    const { hash } = await client.putBlob("some bytes");
    const waits: Array<() => Promise<unknown>> = [
      () => connect(server.store, { signal: aborted }),
      () => client.append("s", "x", { signal: aborted }),
      () => client.ping(undefined, { signal: aborted }),
      () => client.read("s", { signal: aborted }).next(),
      () => client.follow("s", { signal: aborted }).next(),
      () => client.getBlob(hash, { signal: aborted }).next(),
      () => client.putBlob("x", { signal: aborted }),
      () => client.call("nobody", {}, { signal: aborted }).next(),
    ];
    for (const wait of waits) await assert.rejects(wait, reason);
    const later = new AbortController();
    const follow = client.follow("s", { new: true, signal: later.signal });
    assert.equal((await take(follow)).kind, "caught_up");
    const told = assert.rejects(follow.next(), reason);
    later.abort(reason);
    await told;
    assert((await client.ping()) >= 0);
  });

  it("requests are pipelined and appends keep their order", async () => {
    const body = "x".repeat(2000);
    const wanted = Array.from({ length: 3000 }, (_, meta) =>
      client.append("piped", body, { meta }),
    );
    const offsets = (await Promise.all(wanted)).map(({ offset }) => Number(offset));
    assert.deepEqual(
      offsets,
      [...offsets].sort((a, b) => a - b),
    );
    let n = 0;
    for await (const frame of client.read("piped")) assert.equal(frame.meta, n++);
    assert.equal(n, 3000);
  });

  it("a loop that is left ends its stream on the server", async () => {
    const frames = Array.from({ length: 100 }, (_, meta) => ({ topic: "left", meta }));
    await client.appendBatch({ frames });
    // More than the 256 streams that one connection may have open.
    for (let turn = 0; turn < 300; turn++) {
      for await (const frame of client.read("left", { credit: 1 })) {
        assert.equal(frame.meta, 0);
        break;
      }
    }
  });

  it("a read that reaches its limit ends on the server", async () => {
    const frames = Array.from({ length: 100 }, (_, meta) => ({ topic: "limit", meta }));
    await client.appendBatch({ frames });
    // More than the 256 streams that one connection may have open.
    for (let turn = 0; turn < 300; turn++) {
      for await (const { meta } of client.read("limit", { limit: 1, credit: 1 })) {
        assert.equal(meta, 0);
      }
    }
  });

  it("calls of next may overlap", async () => {
    const frames = [0, 1, 2].map((meta) => ({ topic: "overlap", meta }));
    await client.appendBatch({ frames });
    const read = client.read("overlap");
    const found = await Promise.all([read.next(), read.next(), read.next(), read.next()]);
    assert.deepEqual(
      found.map(({ value }) => value?.meta),
      [0, 1, 2, undefined],
    );
    const { hash, bytes } = await client.putBlob(Buffer.alloc(1 << 20, "piece"));
    const reader = client.getBlob(hash, { credit: 1 << 16 });
    let whole = 0n;
    for (let isDone = false; !isDone; ) {
      const pieces = await Promise.all([reader.next(), reader.next(), reader.next()]);
      for (const { value } of pieces) whole += BigInt(value?.length ?? 0);
      isDone = pieces.some(({ done }) => done);
    }
    assert.equal(whole, bytes);
  });

  it("a closed client says so", async () => {
    const other = await connect(server.store);
    const follow = other.follow("closed", { new: true });
    assert.equal((await take(follow)).kind, "caught_up");
    const waiting = follow.next();
    await other.close();
    await other.close();
    assert.deepEqual(await waiting, { done: true, value: undefined });
    assert.deepEqual(await follow.next(), { done: true, value: undefined });
    await assert.rejects(other.ping(), ClientClosed);
    await assert.rejects(other.follow("x").open(), ClientClosed);
  });

  it("closing a stream ends who waits for it", async () => {
    const follow = client.follow("ends", { new: true });
    assert.equal((await take(follow)).kind, "caught_up");
    const waiting = follow.next();
    follow.close();
    assert.deepEqual(await waiting, { done: true, value: undefined });
    assert((await client.ping()) >= 0);
  });

  it("a path may be long", async () => {
    const root = mkdtempSync(join(tmpdir(), "xs-ts-long-"));
    const deep = join(root, ...["d", "d", "d", "d"].map((letter) => letter.repeat(50)));
    mkdirSync(deep, { recursive: true });
    symlinkSync(server.store, join(deep, "store"));
    const other = await connect(join(deep, "store"));
    assert((await other.ping()) >= 0);
    await other.close();
    rmSync(root, { recursive: true });
  });

  it("blobs pass through in pieces", async () => {
    const piece = Buffer.alloc(256 * 1024, "piece");
    const pieces = async function* () {
      for (let n = 0; n < 200; n++) yield piece;
    };
    const blob = await client.putBlob(pieces());
    assert.equal(blob.bytes, 200n * BigInt(piece.length));
    const reader = client.getBlob(blob.hash, { credit: 1 << 18 });
    let bytes = 0;
    for await (const one of reader) bytes += one.length;
    assert.deepEqual([BigInt(bytes), reader.bytes], [blob.bytes, blob.bytes]);
  });
});

describe("over servers that lie", () => {
  const liar = new Liar();
  const { dial } = liar;

  it("no answer to HELLO ends the wait", async () => {
    await assert.rejects(
      dial([(peer) => peer.rest()], { timeoutMs: 50 }),
      (error) => error instanceof ConnectError && /no answer within/.test(error.message),
    );
  });

  it("a time to connect that no timer holds is no short one", async () => {
    const slow: Talk = async (peer) => {
      await setTimeout(20);
      await peer.greet();
      await peer.rest();
    };
    for (const timeoutMs of [Infinity, 2 ** 31]) await dial([slow], { timeoutMs });
  });

  it("another protocol is told", async () => {
    const other: Talk = async (peer) => {
      peer.send(Buffer.from("XSP\0\x02\0\0\0"));
      await peer.rest();
    };
    await assert.rejects(
      dial([other]),
      (error) => error instanceof ProtocolError && /XSP\/2/.test(error.message),
    );
  });

  it("a refused token is final", async () => {
    const stern: Talk = async (peer) => {
      await peer.take(8);
      peer.send(PREFACE);
      peer.answer(await peer.request(), refused("no such token"), 200);
      await peer.rest();
    };
    await assert.rejects(dial([stern], { waitMs: PATIENCE_MS }), AccessError);
    assert.equal(liar.connections, 1);
  });

  it("closing while it connects leaves no connection", async () => {
    liar.talks = [async (peer) => (await peer.greet(), peer.rest())];
    for (let turns = 0; turns < 40; turns++) {
      const client = new Client(join(liar.root, "xs.sock"));
      const told = assert.rejects(client.ping());
      for (let n = 0; n < turns; n++) await (n % 2 ? setImmediate() : Promise.resolve());
      await client.close();
      await told;
    }
    // Each that was made has ended.
    for (const end = Date.now() + PATIENCE_MS; [...liar.sockets].some((one) => !one.destroyed); ) {
      assert(Date.now() < end);
      await setImmediate();
    }
  });

  it("each request has its own time to give up", async () => {
    liar.talks = [
      async (peer) => {
        await peer.greet();
        peer.answer(await peer.expect(Op.PING));
        await peer.rest();
      },
    ];
    const late = net.createServer((socket) => void liar.server.emit("connection", socket));
    const client = new Client(join(liar.root, "late.sock"), { retry: QUICK });
    liar.clients.push(client);
    const hasty = client.open(0);
    const patient = client.ping();
    await assert.rejects(hasty, ConnectError);
    late.listen(join(liar.root, "late.sock"));
    assert((await patient) >= 0);
    late.close();
  });

  const vanish: Talk = async (peer) => {
    await peer.greet();
    await peer.expect(Op.APPEND);
  };

  it("an append without a key is not repeated", async () => {
    const client = await dial([vanish]);
    await assert.rejects(
      client.append("a"),
      (error) => error instanceof ConnectionLost && !error.retryable,
    );
  });

  it("a removal is not repeated", async () => {
    const lost: Talk = async (peer) => {
      await peer.greet();
      await peer.expect(Op.REMOVE);
    };
    const client = await dial([lost]);
    await assert.rejects(client.remove([7n]), ConnectionLost);
    assert.equal(liar.connections, 1);
  });

  it("an append with a key is repeated", async () => {
    const store: Talk = async (peer) => {
      await peer.greet();
      peer.answer(await peer.expect(Op.APPEND), STORED);
      await peer.rest();
    };
    const client = await dial([vanish, vanish, store]);
    assert.equal((await client.append("a", "", { key: "k" })).offset, 7n);
    assert.equal(liar.connections, 3);
  });

  it("what is busy is asked again, for a time", async () => {
    const busy =
      (times: number): Talk =>
      async (peer) => {
        await peer.greet();
        for (let left = times; left > 0; left--) {
          peer.answer(await peer.expect(Op.APPEND), refused("full"), 502);
        }
        peer.answer(await peer.expect(Op.APPEND), STORED);
        await peer.rest();
      };
    const patient = await dial([busy(3)]);
    assert.equal((await patient.append("a")).offset, 7n);
    const hasty = await dial([busy(1e9)], { retry: { ...QUICK, giveUpMs: 100 } });
    await assert.rejects(hasty.append("a"), Unavailable);
  });

  it("a server that goes away is left", async () => {
    let finish: () => void = () => undefined;
    const finished = new Promise<void>((resolve) => (finish = resolve));
    const leaving: Talk = async (peer) => {
      await peer.greet();
      const subscribed = await peer.expect(Op.SUBSCRIBE);
      peer.answer(subscribed);
      const slow = await peer.expect(Op.TOPICS);
      const reason = new Writer().u32(5000).raw(refused("stopping")).bytes();
      peer.push(Op.GOAWAY, 0, reason, 501);
      const drop = event(4, 42n, 501, refused("stopping"));
      peer.push(drop.op, subscribed.sub, drop.body, 501);
      await finished;
      peer.answer(slow);
      await peer.rest();
    };
    const fresh: Talk = async (peer) => {
      await peer.greet();
      for (;;) {
        const header = await peer.request();
        peer.answer(header);
        if (header.op === Op.SUBSCRIBE) peer.push(Op.SUB_EVENT, header.sub, event(1, 50n).body);
      }
    };
    const client = await dial([leaving, fresh]);
    const follow = await client.follow("*").open();
    let isAnswered = false;
    const topics = client.topics().finally(() => (isAnswered = true));
    assert.deepEqual(await take<Item>(follow), { kind: "resumed", offset: 42n });
    assert.deepEqual(await take<Item>(follow), { kind: "caught_up", head: 50n });
    await client.ping();
    assert(!isAnswered);
    finish();
    assert.deepEqual(await topics, []);
  });

  it("closing ends who waits for a server that is gone", async () => {
    const gone: Talk = async (peer) => {
      await peer.greet();
      await peer.expect(Op.SUBSCRIBE);
    };
    const hours = 3_600_000;
    const client = await dial([gone], { retry: { firstMs: hours, mostMs: hours } });
    const end = { done: true, value: undefined };
    const [first, second] = [client.follow("*"), client.follow("*")];
    const waiting = [first.next(), second.next()];
    while (liar.connections === 0) await setImmediate();
    while ([...liar.sockets].some((one) => !one.destroyed)) await setImmediate();
    await setImmediate();
    first.close();
    assert.deepEqual(await waiting[0], end);
    await client.close();
    assert.deepEqual(await waiting[1], end);
    // Nothing answers the call that is being made.
    const silent = await dial([async (peer) => (await peer.greet(), peer.rest())]);
    const call = silent.call("x");
    const result = call.next();
    call.close();
    assert.deepEqual(await result, end);
  });

  /** Answers HELLO and closes, both at once. */
  const closing =
    (code: number): Talk =>
    async (peer) => {
      peer.socket.cork();
      await peer.greet();
      peer.push(Op.CLOSE, 0, refused("enough"), code);
      peer.socket.uncork();
      await peer.rest();
    };

  it("a server that closes at once is not stormed", async () => {
    const retry = { firstMs: 10, mostMs: 50, giveUpMs: 300 };
    const client = await dial([closing(500)], { retry });
    await assert.rejects(client.ping(), /500 Busy: enough/);
    assert(liar.connections < 60);
    const backoff = new Backoff(RETRY, () => 1);
    assert.deepEqual([1, 2, 3].map(() => backoff.waitUnsent()), [0, 50, 100]);
    const signal = AbortSignal.timeout(300);
    await assert.rejects(client.follow("*", { signal }).next());
    assert(liar.connections < 120);
  });

  it("a server that closes for good is left", async () => {
    const client = await dial([closing(200)]);
    await assert.rejects(client.ping(), AccessError);
    await assert.rejects(client.follow("*").next(), AccessError);
    assert(liar.connections < 5);
  });

  it("an append may be there whatever CLOSE says", async () => {
    const revoke: Talk = async (peer) => {
      await peer.greet();
      await peer.expect(Op.APPEND);
      peer.push(Op.CLOSE, 0, refused("revoked"), 200);
      await peer.rest();
    };
    const client = await dial([revoke]);
    await assert.rejects(client.append("a"), (error) => {
      return error instanceof ConnectionLost && /revoked/.test(error.message);
    });
  });

  it("what a call did is not known whatever CLOSE says", async () => {
    const revoke: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.CALL);
      peer.answer(header, Buffer.alloc(16));
      peer.push(Op.CLOSE, 0, refused("revoked"), 200);
      await peer.rest();
    };
    const client = await dial([revoke]);
    await assert.rejects(client.call("x").next(), (error) => {
      return error instanceof ConnectionLost && /revoked/.test(error.message);
    });
  });

  it("damage on the way ends the stream", async () => {
    const damage: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.SUBSCRIBE);
      peer.answer(header);
      const { body } = deliver([3n], 4n);
      body[body.length - 9]! ^= 1;
      peer.push(Op.DELIVER, header.sub, body);
      await peer.expect(Op.UNSUBSCRIBE);
      peer.answer(await peer.expect(Op.PING));
      await peer.rest();
    };
    const client = await dial([damage]);
    await assert.rejects(client.follow("*").next(), IntegrityError);
    await client.ping();
  });

  it("a breach is final", async () => {
    const breach: Talk = async (peer) => {
      await peer.greet();
      peer.answer(await peer.expect(Op.SUBSCRIBE));
      peer.push(Op.CLOSE, 0, refused("too much"), 105);
      await peer.rest();
    };
    const client = await dial([breach]);
    await assert.rejects(client.follow("*").next(), ProtocolRefused);
    assert.equal(liar.connections, 1);
  });

  it("a call is made once, and not after it was closed", async () => {
    let calls = 0;
    const answer: Talk = async (peer) => {
      await peer.greet();
      for (;;) {
        const header = await peer.request();
        if (header.op === Op.PING) peer.answer(header);
        if (header.op !== Op.CALL) continue;
        calls++;
        peer.answer(header, Buffer.alloc(16));
        for (const one of [deliver([3n, 4n], 5n), event(5, 5n)]) {
          peer.push(one.op, header.sub, one.body);
        }
      }
    };
    const client = await dial([answer]);
    const call = client.call("once");
    await Promise.all([call.open(), call.open()]);
    const found = await Promise.all([call.next(), call.next(), call.next()]);
    assert.deepEqual(
      found.map(({ value }) => value?.offset),
      [3n, 4n, undefined],
    );
    const closed = client.call("never");
    closed.close();
    assert.deepEqual(await closed.next(), { done: true, value: undefined });
    await assert.rejects(closed.open(), ClientClosed);
    await client.ping();
    assert.equal(calls, 1);
  });

  it("a download goes on and is checked", async () => {
    const data = Buffer.from("0123456789".repeat(10));
    const hash = blobHash(data);
    const part =
      (upTo: number, source: Buffer, stay: boolean): Talk =>
      async (peer) => {
        await peer.greet();
        const header = await peer.expect(Op.BLOB_GET);
        peer.answer(header, new Writer().u64(BigInt(data.length)).bytes());
        for (let at = 0; at < upTo; at += 20) {
          peer.push(Op.BLOB_CHUNK, header.sub, source.subarray(at, at + 20), 0, at === 80 ? 0 : 4);
        }
        if (stay) await peer.rest();
      };
    const client = await dial([part(40, data, false), part(100, data, true)]);
    assert.deepEqual(await client.readBlob(hash), data);
    assert.equal(liar.connections, 2);
    const lied = await dial([part(100, Buffer.alloc(100), true)]);
    await assert.rejects(lied.readBlob(hash), IntegrityError);
  });

  it("an upload keeps to its window", async () => {
    let received = 0;
    let beyond = 0;
    const count: Talk = async (peer) => {
      await peer.greet();
      let granted = 1 << 20;
      let put: Header | undefined;
      for (;;) {
        const header = await peer.request();
        if (header.op === Op.BLOB_PUT) put = header;
        if (header.op !== Op.BLOB_CHUNK || !put) continue;
        received += header.length - 12;
        beyond = Math.max(beyond, received - granted);
        if (!(header.flags & 4)) {
          peer.answer(put, new Writer().zeros(32).u64(BigInt(received)).bytes());
        } else if (received === granted) {
          // Only when the window is used up: the client has to wait for it.
          granted += 1 << 20;
          peer.push(Op.CREDIT, put.sub, new Writer().u64(1n << 20n).bytes());
        }
      }
    };
    const client = await dial([count]);
    const pieces = new Array<Buffer>(50).fill(Buffer.alloc(100_000));
    assert.equal((await client.putBlob(pieces)).bytes, 5_000_000n);
    assert.equal(beyond, 0);
  });

  it("an upload fits into any window", async () => {
    const odd =
      (chunk: number, window: number): Talk =>
      async (peer) => {
        await peer.greet(chunk, window);
        const put = await peer.expect(Op.BLOB_PUT);
        for (let received = 0; ; ) {
          const { length, flags } = await peer.expect(Op.BLOB_CHUNK);
          received += length - 12;
          if (!(flags & 4)) peer.answer(put, new Writer().zeros(32).u64(BigInt(received)).bytes());
          else peer.push(Op.CREDIT, put.sub, new Writer().u64(BigInt(length - 12)).bytes());
        }
      };
    const pieces = new Array<Buffer>(30).fill(Buffer.alloc(100_000));
    for (const [chunk, window] of [
      [1 << 21, 1 << 20],
      [256 << 10, 1000],
      [0, 1 << 20],
    ]) {
      liar.connections = 0;
      const client = await dial([odd(chunk!, window!)]);
      const { bytes } = await client.putBlob(pieces);
      assert.equal(bytes, 3_000_000n);
    }
  });

  it("an upload ends with a write that is given up", async () => {
    const ops: number[] = [];
    const later = new AbortController();
    const stall: Talk = async (peer) => {
      await peer.greet();
      let put: Header | undefined;
      for (;;) {
        const header = await peer.request();
        ops.push(header.op);
        if (header.op === Op.BLOB_PUT) put = header;
        const isLast = header.op === Op.BLOB_CHUNK && !(header.flags & 4);
        if (isLast && put) peer.answer(put, Buffer.alloc(40));
        if (header.op === Op.BLOB_CHUNK) later.abort(new Error("enough"));
        if (header.op === Op.PING) peer.answer(header);
      }
    };
    const client = await dial([stall]);
    const writer = client.blobWriter({ signal: later.signal });
    await assert.rejects(writer.write(Buffer.alloc(3 << 20)), /enough/);
    await assert.rejects(writer.finish(), ClientClosed);
    await assert.rejects(writer.write(Buffer.alloc(1)), ClientClosed);
    await client.ping();
    assert.deepEqual(ops.slice(-2), [Op.UNSUBSCRIBE, Op.PING]);
  });

  it("a server that does not answer any more is given up", async () => {
    let pings = 0;
    liar.talks = [
      async (peer) => {
        await peer.greet();
        peer.answer(await peer.expect(Op.PING));
        for (;;) if ((await peer.request()).op === Op.PING) pings++;
      },
    ];
    const socket = net.connect(join(liar.root, "xs.sock"));
    await once(socket, "connect");
    const connection = new Connection(socket, "test", undefined);
    await connection.greet();
    connection.watch();
    connection.silent();
    await once(socket, "data");
    // It did answer, so it is asked again.
    connection.silent();
    assert.equal(connection.failure, undefined);
    const told = assert.rejects(connection.ask(Op.TOPICS), /does not answer/);
    while (pings === 0) await setImmediate();
    connection.silent();
    await told;
    await connection.closed();
  });

  it("a server that sends beyond the credit is left", async () => {
    const piece = { op: Op.BLOB_CHUNK, body: Buffer.alloc(9) };
    const breaches: Array<[number, Array<{ op: number; body: Buffer }>]> = [
      [Op.SUBSCRIBE, [deliver([3n], 4n), deliver([5n], 6n)]],
      [Op.SUBSCRIBE, new Array(FREE_WAITING_MAX + 1).fill(gap(2, 1n, 0n))],
      [Op.CALL, [deliver([3n], 4n), deliver([5n], 6n)]],
      [Op.BLOB_GET, [piece]],
      [Op.BLOB_GET, [{ ...piece, body: Buffer.alloc(0) }]],
    ];
    for (const [op, pushes] of breaches) {
      const flood: Talk = async (peer) => {
        await peer.greet();
        const { corr, sub } = await peer.expect(op);
        const flags = PUSH | (op === Op.BLOB_GET ? MORE : 0);
        const body = new Writer().u64(1n << 20n).u64(0n).bytes();
        const asked = message({ op, flags: RESPONSE, code: 0, corr, sub }, body);
        const told = pushes.map((push) =>
          message({ op: push.op, flags, code: 0, corr: 0, sub }, push.body),
        );
        peer.send(Buffer.concat([asked, ...told]));
        peer.answer(await peer.expect(Op.PING));
      };
      const friendly: Talk = async (peer) => {
        await peer.greet();
        peer.answer(await peer.expect(Op.PING));
        await peer.rest();
      };
      liar.connections = 0;
      const client = await dial([flood, friendly]);
      const how = { credit: 8 };
      const opened = async (): Promise<AsyncIterator<unknown, undefined>> => {
        if (op === Op.BLOB_GET) return client.getBlob(blobHash(Buffer.from("x")), how);
        const stream = op === Op.CALL ? client.call("a", {}, how) : client.follow("*", how);
        await stream.open();
        // All has come, and nothing of it was taken.
        await client.ping();
        return stream;
      };
      const all = async () => {
        const stream = await opened();
        while (!(await stream.next()).done);
      };
      await assert.rejects(
        all(),
        (error) => error instanceof ProtocolError && /the server sent/.test(error.message),
      );
    }
  });

  it("pulses do not pile up", async () => {
    const beat: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.SUBSCRIBE);
      peer.answer(header);
      const pulse = { op: Op.SUB_EVENT, body: new Writer().u8(2).bytes() };
      const many = new Array<typeof pulse>(50).fill(pulse);
      for (const one of [pulse, deliver([3n], 4n), ...many, deliver([5n], 6n), pulse, pulse]) {
        peer.push(one.op, header.sub, one.body);
      }
      peer.answer(await peer.expect(Op.PING));
      await peer.rest();
    };
    const client = await dial([beat]);
    const follow = await client.follow("*").open();
    await client.ping();
    const kinds: string[] = [];
    while (kinds.length < 5) kinds.push((await take<Item>(follow)).kind);
    assert.deepEqual(kinds, ["pulse", "frame", "pulse", "frame", "pulse"]);
  });

  it("certificates that are none are told", async () => {
    const key = "-----BEGIN PRIVATE KEY-----\nnone\n-----END PRIVATE KEY-----";
    await assert.rejects(connect("xss://localhost:1", { tls: { key, cert: "none" } }), TlsError);
  });

  it("a download that gets nowhere is given up", async () => {
    const lost: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.BLOB_GET);
      peer.answer(header, new Writer().u64(100n).bytes());
      peer.push(Op.BLOB_CHUNK, header.sub, Buffer.alloc(50), 0, 4);
    };
    const client = await dial([lost], { retry: { firstMs: 10, mostMs: 20, giveUpMs: 100 } });
    const reader = client.getBlob(blobHash(Buffer.from("x")));
    assert.equal((await take(reader)).length, 50);
    await assert.rejects(reader.next(), ConnectionLost);
  });

  it("a stream has credit", () => {
    const client = new Client(join(liar.root, "xs.sock"));
    for (const credit of [0, -1, 2 ** 32, NaN]) {
      assert.throws(() => client.read("a", { credit }), InvalidValue);
      assert.throws(() => client.follow("a", { credit }), InvalidValue);
      assert.throws(() => client.call("a", {}, { credit }), InvalidValue);
      assert.throws(() => client.getBlob(blobHash(Buffer.alloc(0)), { credit }), InvalidValue);
    }
  });

  it("a token is not sent in the clear", async () => {
    const token = "secret";
    await assert.rejects(connect("192.0.2.1:1", { token, timeoutMs: 100 }), AddressError);
    assert.throws(() => new Client(join(liar.root, "xs.sock"), { tls: {} }), AddressError);
  });
});
