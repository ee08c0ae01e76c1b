//! Handlers with much to do: their output is stored however little the store takes at once, and
//! each call sees the output of the calls before it.

use serde_json::json;

use crate::support::Sandbox;

/// Makes more frames from a batch of inputs than one batch of the store may hold.
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
fn a_handler_backlog_is_processed_in_batches_within_the_limits() {
    let place = Sandbox::new();
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

/// Keeps the newest frame of a kind, and removes it on request.
const FORGET: &str = r#"
import { handler } from "xs";
export default handler({
  topics: "forget", start: "first", permissions: { remove: ["notes"] },
  run(frame, ctx) {
    ctx.remove(frame.meta.id);
    return { forgot: frame.meta.id };
  },
});
"#;

#[test]
fn frames_are_removed_with_the_commit_that_says_so() {
    let place = Sandbox::new();
    let append = |topic: &str, meta: &serde_json::Value| {
        place.ok(&["append", topic, "-n", "--meta", &meta.to_string()]).json()[0]["id"].clone()
    };
    let (one, two) = (append("notes", &json!({ "n": 1 })), append("notes", &json!({ "n": 2 })));
    let other = append("others", &json!({ "n": 3 }));
    place.write("modules/handlers/forget.ts", FORGET);
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    append("forget", &json!({ "id": one }));
    assert_eq!(place.await_frames("forget.out", 1)[0]["meta"]["forgot"], one);
    let left: Vec<_> = place.frames("notes").iter().map(|frame| frame["id"].clone()).collect();
    assert_eq!(left, [two]);
    // The frame has a topic that the definition does not name: the whole commit is refused.
    append("forget", &json!({ "id": other }));
    let failed = place.await_frames("xs.handler.forget.fin.error", 1).remove(0);
    assert_eq!(failed["meta"]["code"], "store", "{failed}");
    assert_eq!((place.frames("others").len(), place.frames("forget.out").len()), (1, 1));
    assert!(server.stop().success());
}
