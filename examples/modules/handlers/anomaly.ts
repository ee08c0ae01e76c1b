// Keeps running statistics of every metric and appends `alerts.<metric>` when one leaves its usual
// range. State, alerts and position are stored together or not at all: no alert is lost or doubled.
import { handler } from "xs";
import { deviation, fresh, rounded, take, type Running } from "../lib/running.ts";

interface Metric extends Running { unusual: boolean }
interface State { frames: number; metrics: Record<string, Metric> }

export default handler({
  about: "alerts when a metric leaves its usual range",
  topics: "metrics.recv",
  start: "new",
  config: {
    warmup: 10,                    // values of a metric before it can be unusual
    memory: 120,                   // values after which old ones fade
    deviations: 4,                 // how far from the mean is unusual
    // What is never unusual, however quiet it was before, in the unit of the metric.
    slack: { cpu: 0.15, memory: 0.05, load: 1, processes: 100, forks: 100 } as Record<string, number>,
    summary: 10,                   // a summary is emitted every so many frames
  },
  state: { frames: 0, metrics: {} } as State,
  run(frame, ctx) {
    const { warmup, memory, deviations, slack, summary } = ctx.config;
    const state = ctx.state;
    state.frames++;
    for (const [name, value] of Object.entries(frame.meta)) {
      if (typeof value !== "number") continue;
      const metric = (state.metrics[name] ??= { ...fresh(), unusual: false });
      const range = deviations * deviation(metric) + (slack[name] ?? 0);
      const unusual = metric.n >= warmup && Math.abs(value - metric.mean) > range;
      if (unusual && !metric.unusual) {
        ctx.append(`alerts.${name}`, {
          meta: { value, usual: rounded(metric.mean), range: rounded(range), frame: frame.id },
        });
      }
      metric.unusual = unusual;
      // An outlier counts as the edge of the range, or a single one would widen it for long.
      const off = Math.max(-range, Math.min(range, value - metric.mean));
      take(metric, unusual ? metric.mean + off : value, memory);
    }
    if (state.frames % summary !== 0) return;
    const usual = Object.entries(state.metrics).map(([name, metric]) =>
      [name, { mean: rounded(metric.mean), deviation: rounded(deviation(metric)) }]);
    return { frames: state.frames, ...Object.fromEntries(usual) };
  },
});
