// Answers with its arguments as meta and its body as body, then with as many numbers as asked for.
import { command } from "xs";

export default command({
  async *run(call) {
    yield { args: call.args };
    const body = await call.text();
    if (body !== "") yield body;
    for (let n = 0; n < (call.args.count ?? 0); n++) yield { n };
  },
});
