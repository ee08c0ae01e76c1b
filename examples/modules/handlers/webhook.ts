// Sends each order to another system. A busy one is asked again, one that refuses an order has it
// parked: `xs modules parked webhook` lists them, `xs modules unpark webhook` sends them again.
import { handler, Park, Retry } from "xs";

export default handler({
  about: "orders to the shop's webhook",
  topics: "orders.out",
  permissions: { net: ["hooks.example.com:443"], env: ["WEBHOOK_SECRET"] },
  onError: { retry: 8, backoff: "1s", max: "5m", then: "park" },
  timeout: "1m",
  async run(frame, ctx) {
    if (!ctx.env.WEBHOOK_SECRET) throw new Error("WEBHOOK_SECRET is not set");
    const body = JSON.stringify(frame.meta);
    const response = await fetch("https://hooks.example.com/orders", {
      method: "POST",
      body,
      signal: ctx.signal,
      headers: {
        "content-type": "application/json",
        // The same for every attempt: the other side can tell a repetition.
        "idempotency-key": frame.id,
        "x-signature": await signature(ctx.env.WEBHOOK_SECRET, body),
      },
    });
    if (response.ok) return { order: frame.meta.id, status: response.status };
    const reason = `the webhook answered ${response.status}`;
    if (response.status === 429) {
      // Seconds, or a date, which is not worth reading.
      const seconds = Number(response.headers.get("retry-after") ?? 30);
      throw new Retry(reason, { after: Number.isFinite(seconds) ? seconds * 1000 : 30_000 });
    }
    if (response.status >= 500) throw new Error(reason);
    throw new Park(`${reason}: ${(await response.text()).slice(0, 200)}`);
  },
});

async function signature(secret: string, body: string): Promise<string> {
  const bytes = (text: string) => new TextEncoder().encode(text);
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", bytes(secret), algorithm, false, ["sign"]);
  const signed = new Uint8Array(await crypto.subtle.sign("HMAC", key, bytes(body)));
  return [...signed].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
