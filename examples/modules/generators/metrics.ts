// Reads the machine's own metrics from /proc once a second. Each value yielded becomes the meta of
// one `metrics.recv` frame.
import { generator } from "xs";
import { rounded } from "../lib/running.ts";

interface Counters { busy: number; total: number; forks: number }

export default generator({
  about: "CPU, memory, load and processes of this machine, every second",
  permissions: { read: ["/proc/stat", "/proc/meminfo", "/proc/loadavg"] },
  config: { interval: "1s" as const },
  async *run(ctx) {
    let before = counters(await ctx.fs.text("/proc/stat"));
    for await (const _ of ctx.every(ctx.config.interval)) {
      const now = counters(await ctx.fs.text("/proc/stat"));
      const ticks = now.total - before.total;
      const [load = "", , , tasks = ""] = (await ctx.fs.text("/proc/loadavg")).split(" ");
      yield {
        cpu: ticks > 0 ? rounded((now.busy - before.busy) / ticks) : 0,
        memory: memoryUsed(await ctx.fs.text("/proc/meminfo")),
        load: Number(load),
        processes: Number(tasks.split("/")[1]),
        forks: now.forks - before.forks,
      };
      before = now;
    }
  },
});

/** Ticks since boot from the first line of /proc/stat, and processes made since boot. */
function counters(stat: string): Counters {
  const [user = 0, nice = 0, system = 0, idle = 0, wait = 0, ...rest] =
    stat.slice(0, stat.indexOf("\n")).trim().split(/\s+/).slice(1).map(Number);
  const busy = user + nice + system + rest.slice(0, 3).reduce((sum, ticks) => sum + ticks, 0);
  const forks = Number(/^processes (\d+)$/m.exec(stat)?.[1] ?? 0);
  return { busy, total: busy + idle + wait, forks };
}

/** The share of memory in use, 0 to 1. */
function memoryUsed(meminfo: string): number {
  const kib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(meminfo)?.[1] ?? 0);
  const total = kib("MemTotal");
  return total > 0 ? rounded(1 - kib("MemAvailable") / total) : 0;
}
