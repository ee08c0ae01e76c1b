// A server in a directory of its own that does not outlive its test, and where things are.

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  closeSync,
  copyFileSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { header, Op, Writer, type Header } from "../src/coding.js";
import { crc32InJs } from "../src/crc.js";
import type { Push } from "../src/session.js";

// This file runs from clients/typescript/build/tests.
export const PACKAGE = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
export const ROOT = join(PACKAGE, "..", "..");
export const XS =
  process.env["XS_BIN"] ??
  join(process.env["CARGO_TARGET_DIR"] ?? join(ROOT, "target"), "release", "xs");
export const CONFORMANCE = join(ROOT, "clients", "conformance");
export const PATIENCE_MS = 60_000;
const ANY_PORT = "127.0.0.1:0";

/** One golden message. */
export interface Vector {
  readonly name: string;
  readonly op: string;
  readonly hex: string;
  readonly value: string;
  readonly code: number;
  readonly closes: boolean;
}

/** The messages of one file of golden vectors. */
export function vectors(name: string): Vector[] {
  const text = readFileSync(join(ROOT, "protocol", "vectors", `${name}.json`), "utf8");
  return (JSON.parse(text) as { messages: Vector[] }).messages;
}

/** `xs serve` over a store in a temporary directory. */
export class Server {
  readonly dir = mkdtempSync(join(tmpdir(), "xs-ts-"));
  readonly store = join(this.dir, "store");
  readonly #log: number;
  #child: ChildProcess | undefined;
  #port = 0;

  readonly #args: string[];

  constructor(args: readonly string[] = [], tls = false) {
    this.#args = [...args];
    if (tls) {
      // The server takes no key that others may read.
      const key = join(this.dir, "key.pem");
      copyFileSync(join(CONFORMANCE, "tls", "key.pem"), key);
      chmodSync(key, 0o600);
      const cert = join(CONFORMANCE, "tls", "cert.pem");
      this.#args.push("--listen", ANY_PORT, "--tls-cert", cert, "--tls-key", key);
    }
    this.#log = openSync(join(this.dir, "log"), "a");
    this.start();
  }

  /** Starts it; who connects has to wait until it listens. It keeps a port that was asked. */
  start(): void {
    const stdio = ["ignore", this.#log, this.#log] as const;
    const args = this.#args.map((one) => (one === ANY_PORT ? `127.0.0.1:${this.#port}` : one));
    this.#child = spawn(XS, ["serve", this.store, ...args], { stdio: [...stdio] });
  }

  /** Ends it with a signal and waits until it is gone. */
  async end(how: NodeJS.Signals): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (!child || child.exitCode !== null) return;
    const gone = once(child, "exit");
    child.kill(how);
    await gone;
  }

  async close(): Promise<void> {
    await this.end("SIGKILL");
    closeSync(this.#log);
    rmSync(this.dir, { recursive: true });
  }

  /** The port on which it speaks TLS, once it says so. */
  async tlsPort(): Promise<number> {
    for (let end = Date.now() + PATIENCE_MS; Date.now() < end; await setTimeout(10)) {
      const port = [...this.log().matchAll(/xss:\/\/127\.0\.0\.1:(\d+)/g)].at(-1)?.[1];
      if (port) return (this.#port = Number(port));
    }
    throw new Error(`no TLS: ${this.log()}`);
  }

  log(): string {
    return readFileSync(join(this.dir, "log"), "utf8");
  }
}

// Messages of a server, as tests make them.

/** A whole message. */
export function message(fields: Omit<Header, "length">, body: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([header(fields, body.length), body]);
}

/** A FRAME record without body and meta. */
export function record(topic: string, delta: number): Buffer {
  const record = Buffer.alloc(32 + topic.length);
  record.writeUInt32LE(record.length, 4);
  record[8] = 1;
  record[10] = topic.length;
  record.writeUInt32LE(delta, 12);
  record.write(topic, 32);
  record.writeUInt32LE(crc32InJs(record.subarray(4)), 0);
  return record;
}

/** A DELIVER of frames; null is an ephemeral one. */
export function deliver(
  offsets: ReadonlyArray<bigint | null>,
  scannedTo: bigint,
  topic = "a",
): Push {
  const out = new Writer().u64(scannedTo).u32(offsets.length).u32(0);
  for (const offset of offsets) {
    const one = record(topic, 0);
    const padded = Buffer.concat([one, Buffer.alloc((8 - (one.length % 8)) % 8)]);
    out
      .u64(offset ?? (1n << 64n) - 1n)
      .u32(padded.length)
      .u32(1)
      .raw(padded);
  }
  return push(Op.DELIVER, out.bytes());
}

function push(op: number, body: Buffer, code = 0): Push {
  return { kind: "push", sub: 1, op, code, more: false, body };
}

/** A SUB_EVENT. */
export function event(
  kind: number,
  number: bigint,
  code = 0,
  rest: Buffer = Buffer.alloc(0),
): Push {
  return push(Op.SUB_EVENT, new Writer().u8(kind).u64(number).raw(rest).bytes(), code);
}

/** A SUB_EVENT of a gap. */
export function gap(kind: number, first: bigint, end: bigint): Push {
  return push(Op.SUB_EVENT, new Writer().u8(3).u8(kind).u64(first).u64(end).bytes());
}
