// The shared conformance script on the real server. What ran is written to
// $XS_CONFORMANCE_REPORT, where scripts/test-clients compares it with the other clients'.

import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { Runner, VERBS, type Script } from "./runner.js";
import { CONFORMANCE } from "./support.js";

const ran: string[] = [];
const used = new Set<string>();

const files = readdirSync(CONFORMANCE).filter((file) => file.endsWith(".json"));
for (const file of files.sort()) {
  const script = JSON.parse(readFileSync(join(CONFORMANCE, file), "utf8")) as Script;
  const name = file.replace(".json", "");
  describe(`conformance ${name}`, () => {
    let runner: Runner | undefined;
    for (const one of script.cases) {
      it(one.name, async () => {
        runner ??= await Runner.open(script);
        try {
          await runner.run(one.steps);
        } catch (error) {
          console.log(runner.server.log().slice(-2000));
          throw error;
        }
        ran.push(`${name}: ${one.name}`);
      });
    }
    after(async () => {
      runner?.used.forEach((verb) => used.add(verb));
      await runner?.close();
    });
  });
}

it("every verb is used", () => {
  assert.deepEqual([...used].sort(), Object.keys(VERBS).sort());
});

after(() => {
  const path = process.env["XS_CONFORMANCE_REPORT"];
  const lines = [...ran, ...[...used].map((verb) => `verb ${verb}`)];
  if (path) writeFileSync(path, lines.sort().join("\n") + "\n");
});
