// The programs of the README, run as they stand there.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { it } from "node:test";
import { connect, type Client } from "../src/index.js";
import { PACKAGE, PATIENCE_MS, Server } from "./support.js";

/** More than comes with a frame in these programs. */
const LONG = "x".repeat(5000);

/** Runs the program with a number, and gives what it prints, without offsets, line by line. */
async function* run(at: number, server: Server): AsyncGenerator<string, void> {
  const readme = readFileSync(join(PACKAGE, "README.md"), "utf8");
  const program = [...readme.matchAll(/```ts\n(.*?)```/gs)][at]?.[1] ?? "";
  assert(program.split("\n").filter(Boolean).length <= 10);
  // As an installed package is found.
  const root = join(server.dir, "program");
  mkdirSync(join(root, "node_modules", "@xs"), { recursive: true });
  symlinkSync(PACKAGE, join(root, "node_modules", "@xs", "client"));
  writeFileSync(join(root, "program.mjs"), program);
  const args = [join(root, "program.mjs"), server.store];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const gone = once(child, "exit");
  let isLeft = true;
  try {
    for await (const line of createInterface(child.stdout)) yield line.replace(/^\d+n? /, "");
    isLeft = false;
    assert.deepEqual(await gone, [0, null]);
  } finally {
    if (isLeft) child.kill("SIGKILL");
    await gone;
    rmSync(root, { recursive: true });
  }
}

async function over(test: (server: Server, client: Client) => Promise<void>): Promise<void> {
  const server = new Server();
  const client = await connect(server.store, { waitMs: PATIENCE_MS });
  try {
    await test(server, client);
  } finally {
    await client.close();
    await server.close();
  }
}

it("the ten lines of the README", () =>
  over(async (server, client) => {
    await client.append("notes", LONG);
    const lines = [];
    for await (const line of run(0, server)) lines.push(line);
    const [milk, bread] = ["buy milk { urgent: true }", "and bread undefined"];
    assert.deepEqual(lines, [`${LONG} undefined`, milk, bread]);
  }));
