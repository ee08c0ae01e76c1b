// Servers that do what a test tells them, one connection after another.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach } from "node:test";
import { PREFACE, PUSH, readHeader, RESPONSE, Writer, type Header } from "../src/coding.js";
import { connect, type Client, type ConnectOptions } from "../src/index.js";
import { message, PATIENCE_MS } from "./support.js";

export const QUICK = { firstMs: 10, mostMs: 50, giveUpMs: PATIENCE_MS };

export async function take<T>(stream: AsyncIterator<T, undefined>): Promise<T> {
  const { done, value } = await stream.next();
  assert(!done);
  return value;
}

export type Talk = (peer: Peer) => Promise<void>;

/** A connection as a server that lies sees it. */
export class Peer {
  #data: Buffer = Buffer.alloc(0);
  #isOver = false;
  #wake: () => void = () => undefined;

  constructor(readonly socket: net.Socket) {
    socket.on("data", (data: Buffer) => {
      this.#data = Buffer.concat([this.#data, data]);
      this.#wake();
    });
    socket.on("close", () => {
      this.#isOver = true;
      this.#wake();
    });
    socket.on("error", () => undefined);
  }

  async take(count: number): Promise<Buffer> {
    while (this.#data.length < count) {
      if (this.#isOver) throw new Error("the client is gone");
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const taken = this.#data.subarray(0, count);
    this.#data = this.#data.subarray(count);
    return taken;
  }

  async message(): Promise<[Header, Buffer]> {
    const header = readHeader(await this.take(16));
    return [header, await this.take(header.length - 12)];
  }

  async request(): Promise<Header> {
    return (await this.message())[0];
  }

  /** The next request of this kind; others are passed over. */
  async expect(op: number): Promise<Header> {
    for (;;) {
      const header = await this.request();
      if (header.op === op) return header;
    }
  }

  send(data: Buffer): void {
    this.socket.write(data);
  }

  push(op: number, sub: number, body: Buffer, code = 0, more = 0): void {
    this.send(message({ op, flags: PUSH | more, code, corr: 0, sub }, body));
  }

  answer(asked: Header, body: Buffer = Buffer.alloc(0), code = 0): void {
    const { op, corr, sub } = asked;
    this.send(message({ op, flags: RESPONSE, code, corr, sub }, body));
  }

  async greet(chunk = 256 << 10, window = 1 << 20): Promise<void> {
    await this.take(8);
    this.send(PREFACE);
    const out = new Writer().u16(1).u16(1).u32(2).u64(0n).zeros(16).u64(1n).u64(100n);
    for (const limit of [24 << 20, 1024, 256, chunk, window, 4096]) out.u32(limit);
    this.answer(await this.request(), out.text("liar", 99, "name").u16(0).bytes());
  }

  /** Until the client is gone. */
  async rest(): Promise<void> {
    for (;;) await this.request();
  }
}

export const refused = (text: string) => new Writer().text(text, 999, "text").bytes();

/** The answer to an append of one frame, at offset 7. */
export const STORED = new Writer().u64(8n).u8(1).u8(0).u16(1).u32(0).zeros(16).u64(7n).bytes();

/** A server of which each connection is one talk, the last of them for all that follow. */
export class Liar {
  talks: Talk[] = [];
  connections = 0;
  root = "";
  server = net.createServer();
  clients: Client[] = [];
  sockets = new Set<net.Socket>();

  /** It is there for each test of the suite in which it is made. */
  constructor() {
    beforeEach(async () => {
      [this.talks, this.connections, this.clients, this.sockets] = [[], 0, [], new Set()];
      this.root = mkdtempSync(join(tmpdir(), "xs-ts-"));
      this.server = net.createServer((socket) => {
        this.sockets.add(socket);
        const talk = this.talks[Math.min(this.connections++, this.talks.length - 1)];
        const ended = talk?.(new Peer(socket)) ?? Promise.resolve();
        ended.catch(() => undefined).finally(() => socket.end());
      });
      this.server.listen(this.path);
      await once(this.server, "listening");
    });
    afterEach(async () => {
      for (const client of this.clients) await client.close();
      for (const socket of this.sockets) socket.destroy();
      this.server.close();
      rmSync(this.root, { recursive: true });
    });
  }

  get path(): string {
    return join(this.root, "xs.sock");
  }

  readonly dial = async (talks: Talk[], options: ConnectOptions = {}): Promise<Client> => {
    this.talks = talks;
    const client = await connect(this.path, { retry: QUICK, ...options });
    this.clients.push(client);
    return client;
  };
}
