// What is tried again over a connection that was lost or could not be made, and what is told when
// that is of no use.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import * as net from "node:net";
import { join } from "node:path";
import { describe, it } from "node:test";
import { setImmediate } from "node:timers/promises";
import * as tls from "node:tls";
import { fileURLToPath } from "node:url";
import { MORE, Op, PREFACE, Writer, type Header } from "../src/coding.js";
import { crc32InJs } from "../src/crc.js";
import {
  AccessError,
  blobHash,
  Client,
  ConditionFailed,
  connect,
  ConnectError,
  ConnectionLost,
  Frame,
  Indeterminate,
  InvalidRequest,
  NotFound,
  Refusal,
  TlsError,
  Unavailable,
  type BlobHash,
} from "../src/index.js";
import { hashBytes, hashOfBytes } from "../src/values.js";
import { Settle } from "../src/waiting.js";
import { Liar, Peer, QUICK, refused, STORED, take, type Talk } from "./peer.js";
import { CONFORMANCE, deliver, PATIENCE_MS } from "./support.js";

const LONG = Buffer.alloc(2 << 20, "long");
const LONGER = Buffer.alloc(3 << 20, "longer");
const UPLOAD = [Op.BLOB_HAS, Op.BLOB_PUT];
const u64 = (value: number) => new Writer().u64(BigInt(value)).bytes();

/** A frame whose body did not come with it. */
function frameOf(data: Buffer): Frame {
  const rest = Buffer.concat([u64(data.length), hashBytes(blobHash(data)), Buffer.from("a")]);
  const record = Buffer.concat([Buffer.alloc(32), rest]);
  record.writeUInt32LE(record.length, 4);
  record.set([1, 1, 1, 0], 8);
  record.writeUInt32LE(crc32InJs(record.subarray(4)), 0);
  return new Frame(record, 3n);
}

/**
 * A server whose client may use the blobs that it has put, or whose frames came, on the same
 * connection.
 */
class Limited {
  /** What was asked for on each connection. */
  readonly ops: number[][] = [];

  constructor(private readonly data = Buffer.alloc(0)) {}

  /** A connection, which ends when so many of an op came. */
  talk(ends: Record<number, number> = {}): Talk {
    return async (peer) => {
      await peer.greet();
      const known = new Set<BlobHash>();
      const left = { ...ends };
      const ops: number[] = [];
      this.ops.push(ops);
      const uploads = new Map<number, { put: Header; data: Buffer[] }>();
      for (;;) {
        const [header, body] = await peer.message();
        const upload = uploads.get(header.sub);
        if (header.op !== Op.BLOB_CHUNK) ops.push(header.op);
        const count = (left[header.op] = (left[header.op] ?? 0) - 1);
        if (count === 0) return;
        if (header.op === Op.BLOB_PUT) uploads.set(header.sub, { put: header, data: [] });
        else if (header.op !== Op.BLOB_CHUNK || !upload) this.#answer(peer, header, body, known);
        else {
          upload.data.push(body);
          const hash = blobHash(Buffer.concat(upload.data));
          if (header.flags & MORE) peer.push(Op.CREDIT, header.sub, u64(body.length));
          else peer.answer(upload.put, Buffer.concat([hashBytes(hash), u64(1)]));
          known.add(hash);
        }
      }
    };
  }

  #answer(peer: Peer, header: Header, body: Buffer, known: Set<BlobHash>): void {
    const hash = body.length >= 32 ? hashOfBytes(body.subarray(0, 32)) : blobHash(this.data);
    if (header.op === Op.BLOB_HAS) peer.answer(header, Buffer.from([known.has(hash) ? 1 : 0]));
    else if (header.op === Op.GET) {
      known.add(blobHash(this.data));
      peer.answer(header, Buffer.alloc(16));
    } else if (header.op === Op.APPEND && known.size > 0) peer.answer(header, STORED);
    else if (header.op === Op.BLOB_GET && known.has(hash)) {
      peer.answer(header, u64(this.data.length));
      for (let at = 0; at < this.data.length; at += 20) {
        const more = at + 20 < this.data.length ? MORE : 0;
        peer.push(Op.BLOB_CHUNK, header.sub, this.data.subarray(at, at + 20), 0, more);
      }
    } else peer.answer(header, refused("no blob that this token may use"), 700);
  }
}

describe("the blobs of a token that is limited to topics", () => {
  const liar = new Liar();
  const data = Buffer.from("0123456789".repeat(10));

  it("are put again where a long body is appended", async () => {
    const server = new Limited();
    const client = await liar.dial([server.talk({ [Op.APPEND]: 1 }), server.talk()]);
    assert.equal((await client.append("a", LONG, { key: "k" })).offset, 7n);
    assert.deepEqual(server.ops, [
      [...UPLOAD, Op.APPEND],
      [...UPLOAD, Op.APPEND],
    ]);
  });

  it("are put again also for an append without a key, which was not sent", async () => {
    const server = new Limited();
    const cut = server.talk({ [Op.BLOB_PUT]: 2 });
    const client = await liar.dial([cut, cut, server.talk()]);
    const frames = [LONG, LONGER].map((body) => ({ topic: "a", body }));
    assert.equal((await client.appendBatch({ frames })).frames[0]?.offset, 7n);
    const both = [...UPLOAD, ...UPLOAD];
    assert.deepEqual(server.ops, [both, both, [...both, Op.APPEND]]);
  });

  it("are read again where their frame did not come", async () => {
    const server = new Limited(data);
    const client = await liar.dial([server.talk()]);
    assert.deepEqual(await client.body(frameOf(data)), data);
    assert.deepEqual(server.ops, [[Op.BLOB_GET, Op.GET, Op.BLOB_GET]]);
    await assert.rejects(client.body(frameOf(Buffer.from("another"))), NotFound);
  });

  it("go on where their frame did not come", async () => {
    const server = new Limited(data);
    const cut: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.BLOB_GET);
      peer.answer(header, u64(data.length));
      peer.push(Op.BLOB_CHUNK, header.sub, data.subarray(0, 40), 0, MORE);
    };
    const client = await liar.dial([cut, server.talk()]);
    const pieces: Buffer[] = [];
    for await (const piece of client.getBlob(frameOf(data))) pieces.push(piece);
    assert.deepEqual([pieces[0], Buffer.concat(pieces)], [data.subarray(0, 40), data]);
    liar.connections = 0;
    const other = await liar.dial([cut, server.talk()]);
    await assert.rejects(other.readBlob(blobHash(data)), NotFound);
  });
});

describe("what may have been done by an attempt before the last", () => {
  const liar = new Liar();
  const retry = { firstMs: 10, mostMs: 20, giveUpMs: 200 };

  const vanish =
    (op: number): Talk =>
    async (peer) => {
      await peer.greet();
      await peer.expect(op);
    };
  const refusing =
    (code: number, op: number = Op.APPEND): Talk =>
    async (peer) => {
      await peer.greet();
      for (;;) peer.answer(await peer.expect(op), refused("no"), code);
    };
  const append = (client: Client) => client.append("a", "", { key: "k" });

  it("stays unknown when the server stays away", async () => {
    const last: Talk = async (peer) => {
      liar.server.close();
      await vanish(Op.APPEND)(peer);
    };
    const client = await liar.dial([last], { retry });
    await assert.rejects(
      append(client),
      (error) =>
        error instanceof ConnectionLost && !error.retryable && error.cause instanceof ConnectError,
    );
    // What changes nothing has not done anything either.
    await assert.rejects(client.topics(), ConnectError);
  });

  it("stays unknown when it is refused for another reason", async () => {
    const uses: Array<[number, number, typeof Refusal, (client: Client) => Promise<unknown>]> = [
      [Op.APPEND, 502, Unavailable, append],
      [Op.APPEND, 201, AccessError, append],
      [Op.APPEND, 700, NotFound, append],
      [Op.IMPORT, 502, Unavailable, (client) => client.importFrames([frameOf(LONG)])],
      [Op.BLOB_PUT, 502, Unavailable, (client) => client.putBlob("x")],
      [Op.MAINTAIN, 502, Unavailable, (client) => client.compact()],
    ];
    for (const [op, code, kind, use] of uses) {
      liar.connections = 0;
      const client = await liar.dial([vanish(op), refusing(code, op)], { retry });
      await assert.rejects(
        use(client),
        (error) => error instanceof ConnectionLost && error.cause instanceof kind,
      );
    }
  });

  it("is known by what is said of the request itself", async () => {
    for (const [code, kind] of [
      [402, ConditionFailed],
      [307, InvalidRequest],
      [800, Indeterminate],
    ] as const) {
      liar.connections = 0;
      const client = await liar.dial([vanish(Op.APPEND), refusing(code)], { retry });
      await assert.rejects(append(client), kind);
    }
  });
});

describe("a follower of what begins now", () => {
  const liar = new Liar();

  it("is open once it is known where it begins", async () => {
    for (const start of [{ new: true }, { last: 2 }]) {
      const asked: Buffer[] = [];
      const [isAnswered, says] = [new Settle<void>(), new Settle<void>()];
      const answer = async (peer: Peer): Promise<Header> => {
        await peer.greet();
        const [header, body] = await peer.message();
        asked.push(body);
        peer.answer(header);
        return header;
      };
      const cut: Talk = async (peer) => void (await answer(peer));
      const say: Talk = async (peer) => {
        const { sub } = await answer(peer);
        peer.push(Op.SUB_EVENT, sub, Buffer.from([2]));
        peer.push(Op.PING, 0, Buffer.alloc(0));
        await peer.expect(Op.PING);
        isAnswered.resolve();
        await says.promise;
        peer.push(Op.SUB_EVENT, sub, Buffer.concat([Buffer.from([1]), u64(7)]));
      };
      const stay: Talk = async (peer) => {
        await answer(peer);
        await peer.rest();
      };
      liar.connections = 0;
      const client = await liar.dial([cut, say, stay]);
      const follow = client.follow("a", { pulseMs: 1000, ...start });
      let isOpen = false;
      const opening = follow.open().then(() => (isOpen = true));
      await isAnswered.promise;
      await setImmediate();
      assert(!isOpen);
      says.resolve();
      await opening;
      assert.deepEqual(await take(follow), { kind: "caught_up", head: 7n });
      assert.deepEqual(await take(follow), { kind: "resumed", offset: 7n });
      // The start is behind credit, bodies, pulse and flags.
      assert.deepEqual(asked[0]?.subarray(17), asked[1]?.subarray(17));
      assert.deepEqual(asked[2]?.subarray(17, 27), Buffer.concat([Buffer.from([1, 0]), u64(7)]));
      follow.close();
    }
  });

  it("goes on where the network was too slow for HELLO", async () => {
    const close = (code: number): Talk => async (peer) => {
      peer.send(PREFACE);
      peer.push(Op.CLOSE, 0, refused("too slow"), code);
      await peer.rest();
    };
    const one: Talk = async (peer) => {
      await peer.greet();
      const header = await peer.expect(Op.SUBSCRIBE);
      peer.answer(header);
      const push = deliver([3n], 4n);
      peer.push(push.op, header.sub, push.body);
    };
    const stay: Talk = async (peer) => {
      await peer.greet();
      peer.answer(await peer.expect(Op.SUBSCRIBE));
      await peer.rest();
    };
    const client = await liar.dial([one, close(104), close(106), stay]);
    const follow = client.follow("*");
    assert.equal((await take(follow)).kind, "frame");
    assert.deepEqual(await take(follow), { kind: "resumed", offset: 4n });
    follow.close();
    const isLate = (error: unknown) => {
      const { cause } = error as Error;
      return error instanceof ConnectError && cause instanceof Refusal && cause.code === 104;
    };
    liar.connections = 0;
    await assert.rejects(liar.dial([close(104)]), isLate);
  });
});

const pem = (name: string) => readFileSync(join(CONFORMANCE, "tls", `${name}.pem`));

/** A port on which nobody listens. */
async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

describe("a name with two addresses, over TLS", () => {
  let lookups = 0;
  const lookup = (_: string, __: object, done: (...found: unknown[]) => void) => {
    lookups++;
    done(null, [
      { address: "127.0.0.1", family: 4 },
      { address: "::1", family: 6 },
    ]);
  };
  const trusting = (ca: string) => ({ ca: pem(ca), lookup: lookup as net.LookupFunction });

  it("of a server that is away is tried again", async () => {
    const address = `xss://localhost:${await freePort()}`;
    await assert.rejects(
      connect(address, { tls: trusting("ca") }),
      (error) =>
        error instanceof ConnectError &&
        !(error instanceof TlsError) &&
        error.retryable &&
        /ECONNREFUSED; is a server running there/.test(error.message),
    );
  });

  it("of a server that comes later is waited for, unless it is another", async () => {
    const port = await freePort();
    const address = `xss://localhost:${port}`;
    const options = { waitMs: PATIENCE_MS, retry: QUICK };
    const waiting = connect(address, { ...options, tls: trusting("ca") });
    for (const end = lookups + 3; lookups < end; ) await Promise.race([waiting, setImmediate()]);
    const server = tls.createServer({ cert: pem("cert"), key: pem("key") }, async (socket) => {
      const peer = new Peer(socket);
      await peer.greet();
      peer.answer(await peer.expect(Op.PING));
    });
    server.listen(port, "127.0.0.1");
    server.on("tlsClientError", () => undefined);
    const client = await waiting;
    assert((await client.ping()) >= 0);
    await assert.rejects(connect(address, { ...options, tls: trusting("other") }), TlsError);
    await client.close();
    server.close();
  });
});

it("an address where no server can be is told at once", async () => {
  const file = fileURLToPath(import.meta.url);
  const isFinal = (error: unknown) => error instanceof ConnectError && !error.retryable;
  // The second is so long that it is reached through its directory.
  for (const address of [`${file}/store`, `${file}${"/d".repeat(60)}`, `/${"x".repeat(300)}/s`]) {
    await assert.rejects(connect(address, { waitMs: 1e9 }), isFinal);
    const client = new Client(address);
    await assert.rejects(client.follow("*").next(), isFinal);
    await assert.rejects(client.read("*").next(), isFinal);
    await assert.rejects(client.append("a"), isFinal);
    await client.close();
  }
  // A server makes its directory, and a name may be known later.
  for (const address of [`${file}.none/store`, "nowhere.invalid:1"]) {
    await assert.rejects(connect(address), (error) => {
      return error instanceof ConnectError && error.retryable;
    });
  }
});
