//! Handlers with much to do: what they make is stored whatever the store takes at once, and each
//! call sees what the calls before it have made.

use crate::support::Place;

/// Makes more of a batch of inputs than one batch of the store may hold.
const SPREAD: &str = r#"
import { handler } from "xs";
export default handler({ topics: "in", start: "first", state: { n: 0 }, run(frame, ctx) {
  for (let i = 0; i < 12; i++) ctx.append("spread", { meta: { n: ctx.state.n++, pad: "x".repeat(1500) } });
} });
"#;

/// Counts by reading its own last output.
const CHAIN: &str = r#"
import { handler } from "xs";
export default handler({ topics: "in", start: "first", async run(frame, ctx) {
  const last = await ctx.last("chain.out");
  return { n: (last?.meta.n ?? -1) + 1 };
} });
"#;

const INPUTS: usize = 1_000;

#[test]
fn a_backlog_is_worked_off_in_batches_that_the_store_takes() {
    let place = Place::new();
    let input: String = (0..INPUTS).map(|n| format!("{n}\n")).collect();
    place.xs_with(&["append", "in", "--lines"], input.as_bytes());
    place.write("modules/handlers/spread.ts", SPREAD);
    place.write("modules/handlers/chain.ts", CHAIN);
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    for (topic, count) in [("spread", 12 * INPUTS), ("chain.out", INPUTS)] {
        let frames = place.await_frames(topic, count);
        let numbers = frames.iter().map(|frame| frame["meta"]["n"].as_u64().unwrap());
        assert!(numbers.eq(0..count as u64), "{topic}");
    }
    assert!(server.stop().success(), "{}", place.log());
    assert!(place.frames("xs.handler.spread.fin.error").is_empty());
}
