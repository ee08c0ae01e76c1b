import { assertEquals, test, trial } from "xs/test";
import ticker, { read } from "./ticker.ts";

test("messages become events", () => {
  assertEquals(read('{"type":"trade","price":7}'), { type: "trade", price: 7 });
  assertEquals(read(new TextEncoder().encode('{"type":"heartbeat"}')), null);
});

test("it connects nowhere but to the host it names", async () => {
  const { error } = await trial(ticker, { config: { url: "wss://elsewhere.example.com/" } });
  assertEquals(error?.message.includes("network access to elsewhere.example.com:443"), true);
});
