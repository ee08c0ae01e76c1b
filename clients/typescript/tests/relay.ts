// One side of clients/tests/relay.py, in TypeScript: a process that follows or appends while its
// server is killed and started again.
//
// relay.js follow STORE COUNT         until COUNT frames were seen
// relay.js append STORE TOPIC COUNT   batches with keys, one after another

import { connect } from "../src/index.js";

const STEP = 2000;
const BATCH = 100;
const PATIENT = { waitMs: 60_000, retry: { giveUpMs: 120_000 } };

const [what, store = "", ...rest] = process.argv.slice(2);
const client = await connect(store, PATIENT);
if (what === "follow") await follow(Number(rest[0]));
else await append(rest[0] ?? "", Number(rest[1]));
await client.close();

/** Fails when a frame is missing, doubled or displaced. */
async function follow(count: number): Promise<void> {
  const next = new Map<string, number>();
  let [seen, resumed, caughtUp, before] = [0, 0, 0, -1n];
  for await (const item of client.follow("relay.*")) {
    if (item.kind === "resumed") resumed++;
    if (item.kind === "caught_up") caughtUp++;
    if (item.kind !== "frame") continue;
    const expected = next.get(item.topic) ?? 0;
    const offset = item.offset ?? -1n;
    if (item.meta !== expected || offset <= before) {
      console.log(`wrong: ${item.topic} ${offset} is ${item.meta}, wanted ${expected}`);
      process.exit(1);
    }
    next.set(item.topic, expected + 1);
    before = offset;
    if (++seen % STEP === 0) console.log(`at ${seen}`);
    if (seen === count) break;
  }
  console.log(`seen ${seen} resumed ${resumed} caught_up ${caughtUp}`);
}

async function append(topic: string, count: number): Promise<void> {
  for (let first = 0; first < count; first += BATCH) {
    const frames = Array.from({ length: BATCH }, (_, n) => ({ topic, meta: first + n }));
    await client.appendBatch({ frames, key: `${topic} ${first}` });
  }
  console.log(`appended ${count}`);
}
