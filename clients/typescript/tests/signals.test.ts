// A signal that is aborted while nobody waits for the stream that was given it: the stream ends on
// the server all the same, and who waits next is told the reason. Without that a call ran on, and
// streams that nobody wanted took the places of others until their connection ended.

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { describe, it } from "node:test";
import { MORE, Op, Writer } from "../src/coding.js";
import { blobHash, ClientClosed, ConnectionLost, type Client } from "../src/index.js";
import { Liar, take, type Peer } from "./peer.js";
import { deliver, PATIENCE_MS } from "./support.js";

const WHY = new Error("enough");
const HASH = blobHash(Buffer.from("x"));

/** Accepts a stream, sends something over it, and tells once it is taken back. */
class Accepting {
  readonly seen: number[] = [];
  readonly #takenBack: Promise<void>;
  #tell: () => void = () => undefined;

  constructor() {
    this.#takenBack = new Promise((resolve) => (this.#tell = resolve));
  }

  readonly talk = async (peer: Peer): Promise<void> => {
    await peer.greet();
    for (;;) {
      const header = await peer.request();
      this.seen.push(header.op);
      const { sub } = header;
      if (header.op === Op.UNSUBSCRIBE) this.#tell();
      else if (header.op === Op.BLOB_GET) {
        peer.answer(header, new Writer().u64(100n).bytes());
        peer.push(Op.BLOB_CHUNK, sub, Buffer.alloc(50), 0, MORE);
      } else if (header.op === Op.CALL || header.op === Op.SUBSCRIBE) {
        peer.answer(header, Buffer.alloc(header.op === Op.CALL ? 16 : 0));
        peer.push(Op.DELIVER, sub, deliver([3n], 4n).body);
      }
    }
  };

  async takenBack(): Promise<void> {
    const late = AbortSignal.timeout(PATIENCE_MS);
    await Promise.race([
      this.#takenBack,
      new Promise((_, reject) => late.addEventListener("abort", () => reject(late.reason))),
    ]);
  }
}

const streams = {
  follow: (client: Client, signal: AbortSignal) => client.follow("*", { signal }),
  read: (client: Client, signal: AbortSignal) => client.read("*", { signal }),
  getBlob: (client: Client, signal: AbortSignal) => client.getBlob(HASH, { signal }),
  call: (client: Client, signal: AbortSignal) => client.call("job", {}, { signal }),
};

describe("a signal that is aborted while nobody waits", () => {
  const liar = new Liar();

  for (const [name, begin] of Object.entries(streams)) {
    it(`ends a ${name}`, async () => {
      const accepting = new Accepting();
      const client = await liar.dial([accepting.talk]);
      const controller = new AbortController();
      const stream = begin(client, controller.signal);
      await take<unknown>(stream);
      assert.equal(getEventListeners(controller.signal, "abort").length, 1);
      controller.abort(WHY);
      await accepting.takenBack();
      await assert.rejects(stream.next(), WHY);
      assert.deepEqual(await stream.next(), { done: true, value: undefined });
      assert.equal(accepting.seen.length, 2);
      assert.equal(getEventListeners(controller.signal, "abort").length, 0);
    });
  }

  it("ends what was only opened", async () => {
    for (const begin of [streams.follow, streams.call]) {
      const accepting = new Accepting();
      const client = await liar.dial([accepting.talk]);
      const controller = new AbortController();
      await begin(client, controller.signal).open();
      controller.abort(WHY);
      await accepting.takenBack();
      await client.close();
    }
  });

  it("ends an upload", async () => {
    const accepting = new Accepting();
    const client = await liar.dial([accepting.talk]);
    const controller = new AbortController();
    const writer = client.blobWriter({ signal: controller.signal });
    await writer.write(Buffer.alloc(300_000));
    controller.abort(WHY);
    await accepting.takenBack();
    await assert.rejects(writer.write(Buffer.alloc(1)), WHY);
    await assert.rejects(writer.finish(), (error: Error) => {
      return error instanceof ClientClosed && error.cause === WHY;
    });
    assert.equal(getEventListeners(controller.signal, "abort").length, 0);
  });

  it("is not listened to once a stream is closed", async () => {
    const client = await liar.dial([new Accepting().talk]);
    const { signal } = new AbortController();
    const writer = client.blobWriter({ signal });
    await writer.write(Buffer.alloc(300_000));
    const open = Object.values(streams).map((begin) => begin(client, signal));
    for (const stream of open) await take<unknown>(stream);
    assert.equal(getEventListeners(signal, "abort").length, 1);
    for (const one of [writer, ...open]) one.close();
    assert.equal(getEventListeners(signal, "abort").length, 0);
  });
});

describe("a signal whose reason is an error of a connection", () => {
  const liar = new Liar();

  it("ends a stream as any other", async () => {
    const client = await liar.dial([new Accepting().talk]);
    const lost = new ConnectionLost("another");
    for (const name of ["follow", "read", "getBlob"] as const) {
      const controller = new AbortController();
      const stream = streams[name](client, controller.signal);
      await take<unknown>(stream);
      controller.abort(lost);
      await assert.rejects(stream.next(), lost);
    }
  });
});
