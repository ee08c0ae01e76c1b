import { assertEquals, test, trial } from "xs/test";
import anomaly from "./anomaly.ts";

test("a value out of its range is told once", async () => {
  const values = [...Array(20).fill(0.1), 0.9, 0.9, 0.1];
  const frames = values.map((cpu) => ({ topic: "metrics.recv", meta: { cpu } }));
  const { out } = await trial(anomaly, { frames });
  const alerts = out.filter((frame) => frame.topic === "alerts.cpu");
  assertEquals(alerts.map((alert) => alert.meta.value), [0.9]);
});
