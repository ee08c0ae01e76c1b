// The program of the README, run as it stands there.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it } from "node:test";
import { promisify } from "node:util";
import { connect } from "../src/index.js";
import { PACKAGE, PATIENCE_MS, Server } from "./support.js";

it("the ten lines of the README", async () => {
  const readme = readFileSync(join(PACKAGE, "README.md"), "utf8");
  const [, program = ""] = /```ts\n(.*?)```/s.exec(readme) ?? [];
  assert(program.split("\n").filter(Boolean).length <= 10);
  const root = mkdtempSync(join(tmpdir(), "xs-ts-readme-"));
  const server = new Server();
  try {
    // As an installed package is found.
    mkdirSync(join(root, "node_modules", "@xs"), { recursive: true });
    symlinkSync(PACKAGE, join(root, "node_modules", "@xs", "client"));
    writeFileSync(join(root, "program.mjs"), program);
    await (await connect(server.store, { waitMs: PATIENCE_MS })).close();
    const args = [join(root, "program.mjs"), server.store];
    const { stdout, stderr } = await promisify(execFile)(process.execPath, args);
    assert.equal(stderr, "");
    const lines = stdout
      .trim()
      .split("\n")
      .map((line) => line.replace(/^\d+n? /, ""));
    assert.deepEqual(lines, ["buy milk { urgent: true }", "and bread undefined"]);
  } finally {
    await server.close();
    rmSync(root, { recursive: true });
  }
});
