import { assertEquals, test, trial } from "xs/test";
import latest from "./latest.ts";

test("changes add up to the user as it is", async () => {
  const { out } = await trial(latest, {
    now: "2026-01-01T00:00:00Z",
    frames: [
      { topic: "users.ada", meta: { name: "Ada" } },
      { topic: "user.changed", meta: { id: "ada", mail: "ada@example.com" } },
    ],
  });
  assertEquals(out[0]?.topic, "users.ada");
  assertEquals(out[0]?.ttl, "last:1");
  assertEquals(out[0]?.meta, { name: "Ada", mail: "ada@example.com", at: "2026-01-01T00:00:00.000Z" });
});

test("an id that cannot be a topic is an error", async () => {
  const { error } = await trial(latest, { frames: [{ topic: "user.changed", meta: { id: "a b" } }] });
  assertEquals(error?.message, "TypeError: user.changed needs an id");
});
