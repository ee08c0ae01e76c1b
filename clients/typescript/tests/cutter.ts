// A way to a server that is cut at a CURSOR_SET, between the request and the answer or before.

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Op } from "../src/coding.js";

/**
 * A socket before that of a server. The first connection ends at its first CURSOR_SET: before the
 * server gets the `request`, or before the client gets the `answer`. Then `meanwhile` is called,
 * and later connections are let through.
 */
export class Cutter {
  readonly #dir = mkdtempSync(join(tmpdir(), "xs-ts-cut-"));
  readonly path = join(this.#dir, "xs.sock");
  readonly #listener: net.Server;
  #isCut = false;
  #meanwhile: Promise<void> = Promise.resolve();
  readonly #sockets = new Set<net.Socket>();

  private constructor(server: string, at: string, meanwhile: () => Promise<void>) {
    this.#listener = net.createServer((near) => {
      // Nothing that comes before it is carried is lost.
      near.pause();
      const first = this.#sockets.size === 0;
      this.#sockets.add(near);
      const cut = () => {
        if (this.#isCut) return;
        this.#isCut = true;
        this.#meanwhile = meanwhile();
      };
      void this.#meanwhile.then(() => this.#carry(near, server, first ? at : "", cut));
    });
  }

  static async open(
    server: string,
    at: string,
    meanwhile: () => Promise<void>,
  ): Promise<Cutter> {
    const cutter = new Cutter(server, at, meanwhile);
    cutter.#listener.listen(cutter.path);
    await once(cutter.#listener, "listening");
    return cutter;
  }

  /** Fails where nothing was cut, or what was to be done in the meantime has failed. */
  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#listener.close();
    rmSync(this.#dir, { recursive: true });
    await this.#meanwhile;
    if (!this.#isCut) throw new Error("nothing was cut");
  }

  #carry(near: net.Socket, server: string, at: string, cut: () => void): void {
    const far = net.connect(server);
    this.#sockets.add(far);
    const end = () => {
      near.destroy();
      far.destroy();
    };
    for (const socket of [near, far]) socket.on("error", end).on("close", end);
    pump(near, far, at === "request" ? () => (cut(), end()) : undefined);
    pump(far, near, at === "answer" ? () => (cut(), end()) : undefined);
  }
}

/** Copies messages, up to the first of CURSOR_SET where that `cuts`. */
function pump(source: net.Socket, target: net.Socket, cuts: (() => void) | undefined): void {
  if (!cuts) {
    source.pipe(target);
    return;
  }
  let waiting = Buffer.alloc(0);
  let length = 8;
  source.on("data", (data: Buffer) => {
    waiting = Buffer.concat([waiting, data]);
    for (let isPreface = length === 8; ; isPreface = false) {
      if (!isPreface) {
        if (waiting.length < 16) return;
        if (waiting[4] === Op.CURSOR_SET) return cuts();
        length = waiting.readUInt32LE(0) + 4;
      }
      if (waiting.length < length) return;
      target.write(waiting.subarray(0, length));
      waiting = waiting.subarray(length);
      length = 16;
    }
  });
  source.resume();
}
