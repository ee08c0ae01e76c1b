import { assertEquals, test, trial } from "xs/test";
import ask from "./ask.ts";

test("pieces come one by one and the whole is kept", async () => {
  const stream = ["Hel", "lo"].map((text) => `data: ${JSON.stringify({ text })}\n\n`).join("") + "data: [DONE]\n\n";
  const { out } = await trial(ask, { fetch: () => new Response(stream) });
  const texts = await Promise.all(out.map((frame) => frame.text()));
  assertEquals(texts, ["Hel", "lo", "Hello"]);
  assertEquals(out.map((frame) => frame.topic), ["ask.recv", "ask.recv", "answers"]);
});

test("an error of the service ends the call", async () => {
  const { error } = await trial(ask, { fetch: () => new Response("", { status: 503, statusText: "Busy" }) });
  assertEquals(error?.message, "Error: sse: the server answered 503 Busy");
});
