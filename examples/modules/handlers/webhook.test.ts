import { assert, assertEquals, test, trial } from "xs/test";
import webhook from "./webhook.ts";

const frames = [{ topic: "orders.out", meta: { id: "a1" } }];
const env = { WEBHOOK_SECRET: "secret" };

test("an order is sent once, signed and with its key", async () => {
  const sent: { url: string; init: RequestInit }[] = [];
  const fetch = (url: string, init: RequestInit) => {
    sent.push({ url, init });
    return new Response(null, { status: 204 });
  };
  const { out, error } = await trial(webhook, { frames, env, fetch });
  assertEquals(error, undefined);
  assertEquals(out[0]?.meta, { order: "a1", status: 204 });
  const headers = new Headers(sent[0]?.init.headers);
  assert(/^[0-9a-z]{25}$/.test(headers.get("idempotency-key") ?? ""));
  assert(/^[0-9a-f]{64}$/.test(headers.get("x-signature") ?? ""));
});

test("nothing is sent unsigned", async () => {
  const fetch = () => new Response(null, { status: 204 });
  const { out, error } = await trial(webhook, { frames, env: {}, fetch });
  assertEquals([out.length, error?.message], [0, "Error: WEBHOOK_SECRET is not set"]);
});

test("a refusal is parked, a busy server tried again", async () => {
  const answers = (status: number) => ({ frames, env, fetch: () => new Response("no", { status }) });
  assertEquals((await trial(webhook, answers(400))).error?.message, "Park: the webhook answered 400: no");
  assertEquals((await trial(webhook, answers(429))).error?.message, "Retry: the webhook answered 429");
  assertEquals((await trial(webhook, answers(503))).error?.message, "Error: the webhook answered 503");
});
