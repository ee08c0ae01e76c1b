import { assertEquals, test, trial } from "xs/test";
import orders from "./orders.ts";

test("both shops' orders look the same", async () => {
  const { out } = await trial(orders, { frames: [
    { topic: "shop.a", json: { number: 1, user: "ada", total: 12.5, lines: [{}, {}] } },
    { topic: "shop.b", json: { order_id: "x9", customer: { email: "bob" }, amount_cents: 99, count: 1 } },
  ] });
  assertEquals(out.map((frame) => frame.meta), [
    { id: "a1", customer: "ada", cents: 1250, items: 2 },
    { id: "x9", customer: "bob", cents: 99, items: 1 },
  ]);
});

test("what is no order is parked", async () => {
  const { error } = await trial(orders, { frames: [{ topic: "shop.a", body: "hello" }] });
  assertEquals(error?.message, "Park: the body is not JSON");
});
