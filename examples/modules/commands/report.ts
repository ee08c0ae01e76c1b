// Answers `xs call report` with one line after another, read from the frames that are stored.
import { command } from "xs";
import { fresh, take, type Running } from "../lib/running.ts";

interface Column extends Running { least: number; most: number; recent: number[] }

const BARS = "▁▂▃▄▅▆▇█";
const RECENT = 40;

export default command({
  about: "statistics of the stored metrics, and the alerts about them",
  args: { topic: "string?", alerts: "number?" },
  async *run(call, ctx) {
    const topic = call.args.topic ?? "metrics.recv";
    const columns = new Map<string, Column>();
    let frames = 0, first: Date | undefined, last: Date | undefined;
    for await (const frame of ctx.read({ topics: topic })) {
      frames++;
      first ??= frame.time;
      last = frame.time;
      for (const [name, value] of Object.entries(frame.meta)) {
        if (typeof value === "number") note(columns, name, value);
      }
    }
    yield `${topic}: ${frames} frames`;
    if (!first || !last) return;
    yield `from ${first.toISOString()} to ${last.toISOString()}`;
    yield row("metric", "least", "mean", "most", "newest values");
    for (const [name, column] of columns) {
      yield row(name, number(column.least), number(column.mean), number(column.most), bars(column));
    }
    for await (const alert of ctx.read({ topics: "alerts.*", last: call.args.alerts ?? 5 })) {
      const { value, usual } = alert.meta;
      yield `${alert.time.toISOString()} ${alert.topic}: ${value}, usually ${usual}`;
    }
  },
});

function note(columns: Map<string, Column>, name: string, value: number): void {
  let column = columns.get(name);
  if (!column) columns.set(name, column = { ...fresh(), least: value, most: value, recent: [] });
  take(column, value);
  column.least = Math.min(column.least, value);
  column.most = Math.max(column.most, value);
  column.recent.push(value);
  if (column.recent.length > RECENT) column.recent.shift();
}

function bars({ least, most, recent }: Column): string {
  const height = (value: number) =>
    most > least ? Math.round((value - least) / (most - least) * (BARS.length - 1)) : 0;
  return recent.map((value) => BARS[height(value)]).join("");
}

const number = (value: number): string => value.toFixed(3);

const row = (name: string, ...cells: string[]): string =>
  [name.padEnd(10), ...cells.map((cell) => cell.padStart(9))].join(" ");
