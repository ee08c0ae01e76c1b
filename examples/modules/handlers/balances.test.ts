import { assertEquals, test, trial } from "xs/test";
import balances from "./balances.ts";

test("money moves and does not appear", async () => {
  const { out, state } = await trial(balances, {
    state: { ada: 100 },
    frames: [
      { topic: "account.transfer", meta: { from: "ada", to: "bob", cents: 60 } },
      { topic: "account.transfer", meta: { from: "ada", to: "bob", cents: 60 } },
      { topic: "account.deposit", meta: { to: "ada", cents: 5 } },
    ],
  });
  assertEquals(state, { ada: 45, bob: 60 });
  assertEquals(out.map((frame) => frame.topic), ["balances.out", "account.refused", "balances.out"]);
  assertEquals(out[1]?.meta.short, 20);
});
