import { assertEquals, test, trial } from "xs/test";
import digest from "./digest.ts";

test("an hour with alerts is told, an hour without is not", async () => {
  const { out, state } = await trial(digest, {
    frames: [
      { topic: "alerts.cpu", meta: { value: 0.7 } },
      { topic: "alerts.cpu", meta: { value: 0.9 } },
      { topic: "alerts.load", meta: { value: 12 } },
    ],
    ticks: 2,
  });
  assertEquals(out.map((frame) => frame.meta), [
    { counts: { "alerts.cpu": 2, "alerts.load": 1 }, worst: { "alerts.cpu": 0.9, "alerts.load": 12 } },
  ]);
  assertEquals(state, { counts: {}, worst: {} });
});
