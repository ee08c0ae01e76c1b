// How what is under way ends: with its client, with a server that stays away, and uploads with what
// cuts them short.

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { describe, it } from "node:test";
import { setImmediate } from "node:timers/promises";
import { Op, Writer, type Header } from "../src/coding.js";
import {
  blobHash,
  ClientClosed,
  ConnectError,
  ConnectionLost,
  IntegrityError,
  InvalidValue,
  Unavailable,
  type Client,
} from "../src/index.js";
import { Liar, refused, take, type Peer, type Talk } from "./peer.js";
import { deliver, event, PATIENCE_MS } from "./support.js";

const END = { done: true, value: undefined };
const HASTY = { firstMs: 10, mostMs: 20, giveUpMs: 200 };

/** What an upload is answered: its length, under no hash. */
const stored = (bytes: number) => new Writer().zeros(32).u64(BigInt(bytes)).bytes();

/** Fails when it takes so long that it looks like for ever. */
async function soon<T>(work: Promise<T>): Promise<T> {
  const late = AbortSignal.timeout(PATIENCE_MS);
  const never = new Promise<never>((_, reject) => {
    late.addEventListener("abort", () => reject(new Error("it takes for ever")));
  });
  return Promise.race([work, never]);
}

describe("closing a client", () => {
  const liar = new Liar();

  it("ends followers and cuts short all else", async () => {
    const seen: number[] = [];
    const silent: Talk = async (peer) => {
      await peer.greet();
      for (;;) {
        const header = await peer.request();
        seen.push(header.op);
        if (header.op === Op.SUBSCRIBE) peer.answer(header);
        if (header.op === Op.CALL) peer.answer(header, Buffer.alloc(16));
        if (header.op === Op.BLOB_GET) peer.answer(header, new Writer().u64(100n).bytes());
      }
    };
    const client = await liar.dial([silent]);
    const writer = client.blobWriter();
    const follow = client.follow("*");
    const following = (async () => {
      for await (const item of follow) assert.fail(item.kind);
    })();
    const cut = [
      client.read("*").next(),
      client.getBlob(blobHash(Buffer.alloc(100))).next(),
      client.call("x").next(),
      client.append("a"),
      client.append("a", "", { key: "k" }),
      client.ping(),
      writer.finish(),
    ];
    const told = cut.map((one) => assert.rejects(one, ClientClosed));
    while (seen.length < 9) await setImmediate();
    await client.close();
    await soon(following);
    await soon(Promise.all(told));
    // It has ended, and what comes after the end is a mistake.
    assert.deepEqual(await follow.next(), END);
    await assert.rejects(client.follow("*").next(), ClientClosed);
    await assert.rejects(client.follow("*").open(), ClientClosed);
    assert.equal(liar.connections, 1);
  });

  /** Whatever can be under way, and how it ends once the client is closed. */
  function beginAll(client: Client): Promise<unknown> {
    const writer = client.blobWriter();
    const follow = client.follow("*").next();
    const cut = [
      client.read("*").next(),
      client.follow("*").open(),
      client.getBlob(blobHash(Buffer.alloc(100))).next(),
      client.call("x").next(),
      client.append("a"),
      client.append("a", Buffer.alloc(2 << 20), { key: "k" }),
      client.remove([1n]),
      client.get(1n),
      client.putBlob("some"),
      writer.write(Buffer.alloc(10)).then(() => writer.finish()),
      client.ping(),
    ];
    const told = cut.map((one) => assert.rejects(one, ClientClosed));
    return Promise.all([...told, follow.then((end) => assert.deepEqual(end, END))]);
  }

  it("settles what was begun just before, however far it came", async () => {
    const silent: Talk = async (peer) => (await peer.greet(), peer.rest());
    for (let turns = 0; turns < 24; turns++) {
      const client = await liar.dial([silent]);
      const told = beginAll(client);
      for (let turn = 0; turn < turns; turn++) await undefined;
      await client.close();
      await soon(told);
    }
  });

  it("settles it also while the server takes nothing", async () => {
    const deaf: Talk = async (peer) => {
      await peer.greet();
      peer.socket.pause();
      await peer.rest();
    };
    for (let turns = 0; turns < 24; turns++) {
      const client = await liar.dial([deaf]);
      const large = assert.rejects(client.append("a", Buffer.alloc(1 << 20)), ClientClosed);
      // It leaves in this turn of the loop, and what is begun in the next has to wait.
      await setImmediate();
      const told = beginAll(client);
      for (let turn = 0; turn < turns; turn++) await undefined;
      const closed = client.close();
      await soon(Promise.all([large, told]));
      for (const socket of liar.sockets) socket.destroy();
      await closed;
    }
  });

  it("gives a follower what came before", async () => {
    const eager: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.SUBSCRIBE);
      peer.answer(header);
      for (const push of [deliver([3n], 4n), deliver([4n], 5n)]) {
        peer.push(push.op, header.sub, push.body);
      }
      peer.answer(await peer.expect(Op.PING));
      await peer.rest();
    };
    const client = await liar.dial([eager]);
    const follow = await client.follow("*").open();
    await client.ping();
    await client.close();
    const offsets: unknown[] = [];
    for await (const item of follow) offsets.push(item.kind === "frame" && item.offset);
    assert.deepEqual(offsets, [3n, 4n]);
  });

  it("ends a follower that had lost its connection before", async () => {
    for (const code of [0, 501, 503]) {
      const brief: Talk = async (peer) => {
        await peer.greet();
        const header = await peer.expect(Op.SUBSCRIBE);
        peer.answer(header);
        const pushes = [deliver([3n], 4n), deliver([4n], 5n)];
        if (code) pushes.push(event(4, 5n, code, refused("enough")));
        for (const push of pushes) peer.push(push.op, header.sub, push.body, push.code);
      };
      liar.connections = 0;
      const client = await liar.dial([brief]);
      const follow = client.follow("*");
      const first = await take(follow);
      assert(first.kind === "frame" && first.offset === 3n);
      while ([...liar.sockets].some((one) => !one.destroyed)) await setImmediate();
      await client.close();
      const second = await take(follow);
      assert(second.kind === "frame" && second.offset === 4n);
      if (code === 503) await assert.rejects(soon(follow.next()), Unavailable);
      assert.deepEqual(await soon(follow.next()), END);
      assert.equal(liar.connections, 1);
    }
  });

  it("a call that is closed while the server is away is not made", async () => {
    const ops: number[] = [];
    const client = await liar.dial([
      async (peer) => peer.greet(),
      async (peer) => {
        await peer.greet();
        for (;;) {
          const header = await peer.request();
          ops.push(header.op);
          peer.answer(header);
        }
      },
    ]);
    liar.server.close();
    while ([...liar.sockets].some((one) => !one.destroyed)) await setImmediate();
    const call = client.call("late");
    const result = call.next();
    await setImmediate();
    call.close();
    assert.deepEqual(await soon(result), END);
    liar.server.listen(liar.path);
    await client.ping();
    await client.ping();
    assert.deepEqual(ops, [Op.PING, Op.PING]);
  });

  it("a stream that is closed before it began says so", async () => {
    const client = await liar.dial([async (peer) => (await peer.greet(), peer.rest())]);
    for (const stream of [client.follow("*"), client.read("*")]) {
      const told = assert.rejects(stream.open(), ClientClosed);
      await setImmediate();
      stream.close();
      await soon(told);
    }
  });
});

describe("a read", () => {
  const liar = new Liar();

  const one: Talk = async (peer) => {
    await peer.greet();
    const header = await peer.expect(Op.SUBSCRIBE);
    peer.answer(header);
    const push = deliver([3n], 4n);
    peer.push(push.op, header.sub, push.body);
  };

  it("gives up a server that stays away", async () => {
    const client = await liar.dial([one], { retry: HASTY });
    const read = client.read("*");
    assert.equal((await take(read)).offset, 3n);
    liar.server.close();
    await assert.rejects(soon(read.next()), ConnectError);
    assert.deepEqual(await read.next(), END);
    await assert.rejects(soon(client.read("*").next()), ConnectError);
  });

  it("gives up a server on which it gets nowhere", async () => {
    const lost: Talk = async (peer) => {
      await peer.greet();
      peer.answer(await peer.expect(Op.SUBSCRIBE));
    };
    const client = await liar.dial([one, lost], { retry: HASTY });
    const read = client.read("*");
    assert.equal((await take(read)).offset, 3n);
    await assert.rejects(soon(read.next()), ConnectionLost);
    const busy: Talk = async (peer) => {
      await peer.greet();
      for (;;) peer.answer(await peer.expect(Op.SUBSCRIBE), refused("full"), 502);
    };
    const other = await liar.dial([busy], { retry: HASTY });
    await assert.rejects(soon(other.read("*").next()), Unavailable);
  });

  it("goes on as long as something comes", async () => {
    const PARTS = 40;
    const part =
      (offset: bigint): Talk =>
      async (peer) => {
        await peer.greet();
        const header = await peer.expect(Op.SUBSCRIBE);
        peer.answer(header);
        const push = deliver([offset], offset + 1n);
        peer.push(push.op, header.sub, push.body);
        if (offset === BigInt(PARTS - 1)) {
          const end = event(5, BigInt(PARTS));
          peer.push(end.op, header.sub, end.body);
          await peer.rest();
        }
      };
    // Each of the waits is far within the bound, and all of them together are not.
    const retry = { firstMs: 150, mostMs: 150, giveUpMs: 5000 };
    const parts = Array.from({ length: PARTS }, (_, n) => part(BigInt(n)));
    const client = await liar.dial(parts, { retry });
    const offsets: unknown[] = [];
    for await (const frame of client.read("*")) offsets.push(Number(frame.offset));
    assert.deepEqual(offsets, [...Array(PARTS).keys()]);
  });
});

describe("a call", () => {
  const liar = new Liar();

  /** A server that gives frames of a call, then a refusal, if any, and hangs up. */
  const job = (events: string[], code: number): Talk => async (peer) => {
    await peer.greet();
    const header = await peer.expect(Op.CALL);
    peer.answer(header, Buffer.alloc(16));
    const pushes = events.map((name, n) => deliver([BigInt(n)], BigInt(n) + 1n, `job.${name}`));
    if (code) pushes.push(event(4, 5n, code, refused("enough")));
    for (const push of pushes) peer.push(push.op, header.sub, push.body, push.code);
    if (code) await peer.rest();
  };

  // Whoever were told of a failure would make it again.
  it("is over with its last frame, whatever becomes of its stream", async () => {
    for (const code of [0, 501]) {
      liar.connections = 0;
      const client = await liar.dial([job(["recv", "complete"], code)]);
      const call = client.call("job");
      assert.equal((await take(call)).topic, "job.recv");
      assert.deepEqual(await soon(call.next()), END);
      assert.equal(call.complete?.offset, 1n);
      assert.equal(liar.connections, 1);
    }
  });

  it("that has not come so far tells of a lost connection", async () => {
    const client = await liar.dial([job(["recv"], 0)]);
    const call = client.call("job");
    await take(call);
    await assert.rejects(soon(call.next()), ConnectionLost);
  });
});

describe("an upload", () => {
  const liar = new Liar();

  /** Takes uploads with a window of a chunk: each chunk has to wait for credit. */
  async function uploads(peer: Peer, data: Buffer[]): Promise<void> {
    await peer.greet(1000, 1000);
    let put: Header | undefined;
    for (;;) {
      const [header, body] = await peer.message();
      if (header.op === Op.BLOB_PUT) put = header;
      if (header.op === Op.PING) peer.answer(header);
      if (header.op !== Op.BLOB_CHUNK || !put) continue;
      data.push(body);
      if (header.flags & 4) {
        // The answer comes later, so that writes that do not take turns get in between.
        await setImmediate();
        peer.push(Op.CREDIT, put.sub, new Writer().u64(BigInt(body.length)).bytes());
      } else peer.answer(put, stored(Buffer.concat(data).length));
    }
  }

  it("has its writes in order, awaited or not", async () => {
    const data: Buffer[] = [];
    const client = await liar.dial([(peer) => uploads(peer, data)]);
    const writer = client.blobWriter();
    const pieces = Array.from({ length: 20 }, (_, n) => Buffer.alloc(700 + n * 131, 65 + n));
    const writes = pieces.map((piece) => writer.write(piece));
    const blob = await soon(writer.finish());
    await Promise.all(writes);
    const whole = Buffer.concat(pieces);
    assert(Buffer.concat(data).equals(whole));
    assert.equal(blob.bytes, BigInt(whole.length));
  });

  it("ends with a piece that is none, also when nobody awaits it", async () => {
    const data: Buffer[] = [];
    const client = await liar.dial([(peer) => uploads(peer, data)]);
    const writer = client.blobWriter();
    void writer.write(Buffer.alloc(10));
    void writer.write("text" as unknown as Uint8Array);
    const behind = writer.write(Buffer.alloc(10));
    const isTold = (error: unknown) =>
      error instanceof ClientClosed && error.cause instanceof InvalidValue;
    await assert.rejects(soon(writer.finish()), isTold);
    await assert.rejects(behind, isTold);
    await client.ping();
    assert.deepEqual(data, []);
  });

  it("is ended by its signal, and with its client, also while its source stalls", async () => {
    const client = await liar.dial([(peer) => uploads(peer, [])]);
    let ended = 0;
    const stalling = async function* () {
      yield Buffer.alloc(10);
      await new Promise(() => undefined);
    };
    const broken = function* () {
      try {
        for (;;) yield "text" as unknown as Uint8Array;
      } finally {
        ended++;
      }
    };
    const later = new AbortController();
    const told = assert.rejects(client.putBlob(stalling(), { signal: later.signal }), /enough/);
    const closed = assert.rejects(client.append("a", stalling()), ClientClosed);
    await assert.rejects(soon(client.putBlob(broken())), InvalidValue);
    assert.equal(ended, 1);
    await client.ping();
    later.abort(new Error("enough"));
    await soon(told);
    await client.close();
    await soon(closed);
  });

  it("that is closed ends who waits for it", async () => {
    const stuck: Talk = async (peer) => {
      await peer.greet(1000, 1000);
      await peer.rest();
    };
    const client = await liar.dial([stuck]);
    for (const bytes of [10, 5000]) {
      const writer = client.blobWriter();
      const waits = [writer.write(Buffer.alloc(bytes)), writer.finish()];
      const told = Promise.allSettled(waits);
      for (let n = 0; n < 5; n++) await setImmediate();
      writer.close();
      const [write, finish] = await soon(told);
      assert.equal(write?.status, bytes === 10 ? "fulfilled" : "rejected");
      assert(finish?.status === "rejected" && finish.reason instanceof ClientClosed);
    }
  });
});

/** How many listeners signals were given in vain, until `end`: Node keeps what has one. */
function countListeners(): { left: () => number; end: () => void } {
  const { prototype } = AbortSignal;
  const { addEventListener, removeEventListener } = prototype;
  let left = 0;
  prototype.addEventListener = function (...args: Parameters<typeof addEventListener>) {
    left++;
    return addEventListener.apply(this, args);
  };
  prototype.removeEventListener = function (...args: Parameters<typeof removeEventListener>) {
    left--;
    return removeEventListener.apply(this, args);
  };
  const end = () => Object.assign(prototype, { addEventListener, removeEventListener });
  return { left: () => left, end };
}

describe("a signal", () => {
  const liar = new Liar();

  it("is for any number of waits, and Node warns of nothing", async () => {
    const warnings: Error[] = [];
    const warn = (warning: Error) => void warnings.push(warning);
    process.on("warning", warn);
    const silent: Talk = async (peer) => (await peer.greet(), peer.rest());
    const retry = { firstMs: 3_600_000, mostMs: 3_600_000 };
    const client = await liar.dial([silent], { retry });
    const controller = new AbortController();
    const reason = new Error("enough");
    const waits = Array.from({ length: 30 }, (_, n) => {
      const { signal } = controller;
      return n % 2 ? client.ping(undefined, { signal }) : client.follow("*", { signal }).next();
    });
    const told = waits.map((one) => assert.rejects(one, reason));
    const follows = Array.from({ length: 30 }, () => client.follow("*").next());
    await setImmediate();
    controller.abort(reason);
    await soon(Promise.all(told));
    // Those without the signal wait for the server to come back, until their client is closed.
    for (const socket of liar.sockets) socket.destroy();
    for (let n = 0; n < 10; n++) await setImmediate();
    await client.close();
    for (const ended of await soon(Promise.all(follows))) assert.deepEqual(ended, END);
    await setImmediate();
    process.off("warning", warn);
    assert.deepEqual(warnings, []);
  });

  it("has no listener once nobody waits", async () => {
    const vanish: Talk = async (peer) => {
      await peer.greet();
      peer.answer(await peer.expect(Op.PING));
    };
    const shutdown = new AbortController();
    const listeners = countListeners();
    try {
      const client = await liar.dial([vanish]);
      for (let n = 0; n < 20; n++) {
        const request = new AbortController();
        const signal = AbortSignal.any([shutdown.signal, request.signal]);
        await client.ping(undefined, { signal });
        assert.equal(getEventListeners(signal, "abort").length, 0);
      }
      assert(liar.connections >= 20);
      assert.equal(listeners.left(), 0);
      const both = [1, 2].map(() => client.topics("*", { signal: shutdown.signal }));
      const told = both.map((one) => assert.rejects(one, /enough/));
      while (listeners.left() === 0) await setImmediate();
      assert.equal(getEventListeners(shutdown.signal, "abort").length, 1);
      shutdown.abort(new Error("enough"));
      await soon(Promise.all(told));
    } finally {
      listeners.end();
    }
  });
});

describe("a download", () => {
  const liar = new Liar();

  it("of more than was announced ends at once", async () => {
    const data = Buffer.alloc(100, "x");
    const endless: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.BLOB_GET);
      peer.answer(header, new Writer().u64(100n).bytes());
      for (let n = 0; n < 3; n++) peer.push(Op.BLOB_CHUNK, header.sub, data.subarray(50), 0, 4);
      await peer.rest();
    };
    const client = await liar.dial([endless]);
    await assert.rejects(soon(client.readBlob(blobHash(data))), IntegrityError);
  });

  it("of other bytes is refused", async () => {
    const data = Buffer.from("what was asked for");
    const other: Talk = async (peer) => {
      await peer.greet();
      for (;;) {
        const header = await peer.expect(Op.BLOB_GET);
        peer.answer(header, new Writer().u64(BigInt(data.length)).bytes());
        peer.push(Op.BLOB_CHUNK, header.sub, Buffer.from("What was asked for"));
      }
    };
    const client = await liar.dial([other]);
    await assert.rejects(soon(client.readBlob(blobHash(data))), IntegrityError);
    const given: Buffer[] = [];
    await assert.rejects(async () => {
      for await (const piece of client.getBlob(blobHash(data))) given.push(piece);
    }, /something else/);
    assert.deepEqual(given, []);
  });
});
