import { assert, assertEquals, test, trial } from "xs/test";
import report from "./report.ts";

test("it sums up what is stored", async () => {
  const frames = [1, 2, 3].map((load) => ({ topic: "metrics.recv", meta: { load } }));
  const { out } = await trial(report, { frames });
  const lines = await Promise.all(out.map((frame) => frame.text()));
  assertEquals(lines[0], "metrics.recv: 3 frames");
  assert(lines.some((line) => line.startsWith("load") && line.includes("2.000")), lines.join("\n"));
});
