// Keeps a websocket open and appends each message as `ticker.recv`. When the connection breaks the
// generator throws and is run again, a little later each time.
import { generator } from "xs";

export default generator({
  about: "messages of a websocket as events",
  permissions: { net: ["stream.example.com:443"] },
  config: { url: "", channels: ["trades"] },
  async *run(ctx) {
    const { url, channels } = ctx.config;
    if (url === "") {
      ctx.log.warn("not configured: set url in [modules.ticker.config] of xs.toml");
      await new Promise((done) => ctx.signal.addEventListener("abort", done));
      return;
    }
    for await (const message of ctx.socket(url, { send: subscription(channels) })) {
      const event = read(message);
      if (event !== null) yield event;
    }
  },
});

/** What is said first. It never ends: the end of what is sent would close the socket. */
async function* subscription(channels: string[]) {
  yield JSON.stringify({ type: "subscribe", channels });
  await new Promise(() => {});
}

/** The event of a message; null for those that only keep the connection alive. */
export function read(message: string | Uint8Array): Record<string, unknown> | null {
  const text = typeof message === "string" ? message : new TextDecoder().decode(message);
  const event = JSON.parse(text);
  return event.type === "heartbeat" ? null : event;
}
