// Gives one result, then waits until it is cancelled.
import { command } from "xs";

export default command({
  async *run(_call, ctx) {
    yield { n: 0 };
    await new Promise((_, reject) => {
      ctx.signal.addEventListener("abort", () => reject(ctx.signal.reason));
    });
  },
});
