// `xs call ask "What is new?"`: sends the question to a service that answers with server-sent events
// and passes each piece of the answer on as it comes.
import { command, sse } from "xs";

export default command({
  about: "asks a service that streams its answer",
  args: { model: "string?" },
  permissions: { net: ["api.example.com:443"], env: ["API_KEY"] },
  timeout: "1m",
  async *run(call, ctx) {
    const response = await fetch("https://api.example.com/v1/answers", {
      method: "POST",
      signal: ctx.signal,
      headers: { authorization: `Bearer ${ctx.env.API_KEY ?? ""}`, "content-type": "application/json" },
      body: JSON.stringify({ model: call.args.model ?? "small", question: await call.text(), stream: true }),
    });
    let answer = "";
    for await (const event of sse(response)) {
      if (event.data === "[DONE]") break;
      const piece = JSON.parse(event.data).text;
      answer += piece;
      yield piece;
    }
    await ctx.append("answers", { body: answer, meta: { call: call.id } });
  },
});
