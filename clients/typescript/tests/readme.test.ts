// The programs of the README, run as they stand there.

import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { it } from "node:test";
import { connect, type Client } from "../src/index.js";
import { PACKAGE, PATIENCE_MS, Server } from "./support.js";

/** More than comes with a frame in these programs. */
const LONG = "x".repeat(5000);

/** The program with a number, as it runs: what it prints, line by line, without offsets. */
class Program {
  readonly #root: string;
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #gone: Promise<unknown[]>;
  errors = "";

  constructor(at: number, server: Server) {
    const readme = readFileSync(join(PACKAGE, "README.md"), "utf8");
    const program = [...readme.matchAll(/```ts\n(.*?)```/gs)][at]?.[1] ?? "";
    assert(program.split("\n").filter(Boolean).length <= 10);
    // As an installed package is found.
    const root = (this.#root = mkdtempSync(join(server.dir, "program-")));
    mkdirSync(join(root, "node_modules", "@xs"), { recursive: true });
    symlinkSync(PACKAGE, join(root, "node_modules", "@xs", "client"));
    writeFileSync(join(root, "program.mjs"), program);
    const args = [join(root, "program.mjs"), server.store];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
    child.stderr.setEncoding("utf8").on("data", (text: string) => (this.errors += text));
    this.#child = child;
    this.#lines = createInterface(child.stdout)[Symbol.asyncIterator]();
    this.#gone = once(child, "close");
  }

  /** The next line; undefined at the end. */
  async line(): Promise<string | undefined> {
    const { done, value } = await this.#lines.next();
    return done ? undefined : value.replace(/^\d+n? /, "");
  }

  /** Waits until it has ended, and gives its exit code. */
  async ended(): Promise<unknown> {
    const [code] = await this.#gone;
    rmSync(this.#root, { recursive: true, force: true });
    return code;
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.ended();
  }
}

type Begin = (at: number) => Program;

async function over(test: (begin: Begin, client: Client) => Promise<void>): Promise<void> {
  const server = new Server();
  const programs: Program[] = [];
  const client = await connect(server.store, { waitMs: PATIENCE_MS });
  try {
    await test((at) => programs[programs.push(new Program(at, server)) - 1] as Program, client);
  } finally {
    for (const program of programs) await program.kill();
    await client.close();
    await server.close();
  }
}

it("the ten lines of the README", () =>
  over(async (begin, client) => {
    await client.append("notes", LONG);
    const program = begin(0);
    const lines = [];
    for (let line; (line = await program.line()) !== undefined; ) lines.push(line);
    assert.equal(await program.ended(), 0, program.errors);
    const [milk, bread] = ["buy milk { urgent: true }", "and bread undefined"];
    assert.deepEqual(lines, [`${LONG} undefined`, milk, bread]);
  }));

it("a consumer that remembers", () =>
  over(async (begin, client) => {
    await client.append("notes", LONG);
    await client.append("notes", "one");
    const first = begin(1);
    assert.deepEqual([await first.line(), await first.line()], [LONG, "one"]);
    // It has handled a frame once the next one is printed.
    await client.append("notes", "two");
    assert.equal(await first.line(), "two");
    await first.kill();
    await client.append("notes", "three");
    const second = begin(1);
    const again = [await second.line()];
    if (again[0] !== "three") again.push(await second.line());
    // The one before it again where it was killed before it had moved the cursor.
    assert.match(again.join(), /^(two,)?three$/);
    // Somebody else has the cursor.
    await client.cursorSet("printer", 0);
    await client.append("notes", "four");
    assert.equal(await second.ended(), 1);
    assert.match(second.errors, /CursorConflict/);
  }));
