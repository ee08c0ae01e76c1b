// Once an hour, tells how many alerts there were and the worst of each kind. The counts are state:
// they survive a restart, and an hour is reported exactly once.
import { handler } from "xs";

interface State { counts: Record<string, number>; worst: Record<string, number> }

export default handler({
  about: "an hourly digest of alerts",
  topics: "alerts.*",
  state: { counts: {}, worst: {} } as State,
  pulse: "1h",
  run(frame, ctx) {
    const { counts, worst } = ctx.state;
    const value = Math.abs(Number(frame.meta.value ?? 0));
    counts[frame.topic] = (counts[frame.topic] ?? 0) + 1;
    worst[frame.topic] = Math.max(worst[frame.topic] ?? 0, value);
  },
  tick(ctx) {
    const { counts, worst } = ctx.state;
    if (Object.keys(counts).length === 0) return;
    ctx.state = { counts: {}, worst: {} };
    return { counts, worst };
  },
});
