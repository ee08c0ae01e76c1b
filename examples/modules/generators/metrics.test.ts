import { assertEquals, test, trial } from "xs/test";
import metrics from "./metrics.ts";

test("what the machine tells becomes numbers", async () => {
  const files = {
    "/proc/stat": "cpu  10 0 10 80 0 0 0 0\nprocesses 7\n",
    "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 250 kB\n",
    "/proc/loadavg": "0.50 0.40 0.30 2/345 678\n",
  };
  const { out } = await trial(metrics, { files, take: 2 });
  assertEquals(out[1]?.meta, { cpu: 0, memory: 0.75, load: 0.5, processes: 345, forks: 0 });
});
