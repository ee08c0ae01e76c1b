// Turns the lines of a log file into frames `logs.recv`, over rotations and restarts. A line that is
// JSON becomes the meta, any other the body.
import { generator } from "xs";

export default generator({
  about: "lines of a log file as events",
  permissions: { read: ["/var/log/app.log"] },
  config: { path: "/var/log/app.log", first: "end" as "start" | "end" },
  async *run(ctx) {
    for await (const line of ctx.tail(ctx.config.path, ctx.config)) {
      if (line.trim() !== "") yield parsed(line);
    }
  },
});

function parsed(line: string): Record<string, unknown> | string {
  if (!line.startsWith("{")) return line;
  try {
    return JSON.parse(line);
  } catch {
    return line;
  }
}
