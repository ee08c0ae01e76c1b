// A consumer of a Redis stream as one would write it in Node: takes what has come, answers each message,
// and stores the answers, its state and its position in one transaction.
const { createClient } = require("redis");

async function main() {
  const client = createClient({ url: process.argv[2] });
  await client.connect();
  const state = { n: 0 };
  for (;;) {
    const [stream] = await client.xReadGroup("group", "one", { key: "in", id: ">" }, { COUNT: 512, BLOCK: 0 });
    const batch = client.multi();
    for (const { message } of stream.messages) {
      const meta = JSON.parse(message.m);
      state.n++;
      batch.xAdd("out", "*", { m: JSON.stringify({ n: state.n, of: meta.n }) });
    }
    batch.set("state", JSON.stringify(state));
    batch.xAck("in", "group", stream.messages.map(({ id }) => id));
    await batch.exec();
  }
}

main();
