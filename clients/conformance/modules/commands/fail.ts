// Fails after one result.
import { command } from "xs";

export default command({
  async *run() {
    yield { n: 0 };
    throw new Error("this always fails");
  },
});
