import { assertEquals, test, trial } from "xs/test";
import logs from "./logs.ts";

test("lines become events, JSON or not", async () => {
  const text = 'plain\n\n{"level":"warn","n":1}\n{broken\n';
  const files = { "/var/log/app.log": text };
  const { out } = await trial(logs, { files, config: { first: "start" }, take: 3 });
  assertEquals(await out[0]?.text(), "plain");
  assertEquals(out[1]?.meta, { level: "warn", n: 1 });
  assertEquals(await out[2]?.text(), "{broken");
});
