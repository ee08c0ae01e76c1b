//! `ctx.remove`, and what a definition must say to use it.

use serde_json::json;
use xs_runtime::isolate::FailureKind;

use super::commands::call;
use super::*;

#[tokio::test]
async fn a_handlers_removals_are_part_of_its_commit() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", permissions: { remove: ["in", "old.*"] },
          run(frame, ctx) {
            ctx.remove(frame.id);
            ctx.append("kept", { meta: { of: frame.id } });
            if (frame.meta.n === 9) throw new Error("nine");
          } };"#,
    )
    .await;
    let inputs = inputs(&memory, 3);
    let ids: Vec<_> = inputs.iter().map(|input| input.frame.id()).collect();
    let taken = reply(&isolate, inputs).await;
    assert_eq!((taken.done, taken.outputs.len(), &taken.removes), (3, 3, &ids));
    let failed = reply(&isolate, vec![input(&memory, &json!({ "n": 9 }))]).await;
    assert!(failed.failure.is_some() && failed.removes.is_empty() && failed.outputs.is_empty());
}

#[tokio::test]
async fn a_call_that_removes_too_much_is_undone() {
    let (isolate, memory) = handler(
        r#"export default { topics: "in", permissions: { remove: ["in"] },
          run(frame, ctx) { for (let n = 0; n < frame.meta.n; n++) ctx.remove(frame.id); } };"#,
    )
    .await;
    let many = |n: u64| vec![input(&memory, &json!({ "n": n }))];
    assert_eq!(reply(&isolate, many(1_000)).await.removes.len(), 1_000);
    let failure = reply(&isolate, many(1_001)).await.failure.unwrap();
    assert!(failure.error.message.contains("may remove 1000 frames"), "{}", failure.error);
}

#[tokio::test]
async fn a_command_removes_at_once_what_it_may() {
    let (isolate, _, memory) = start(
        "commands/it.js",
        r#"export default { permissions: { remove: ["old"] },
          async run(call, ctx) {
            await ctx.remove("0000000000000000000000001");
            await ctx.remove(call.args.id);
            return { left: (await ctx.get(call.args.id)) !== undefined };
          } };"#,
    )
    .await
    .unwrap();
    let old = memory.add("old", &json!({}), "").id().to_string();
    soon(isolate.call(call(&memory, &json!({ "id": old })))).await.unwrap();
    assert_eq!(stored_meta(&memory.topic("it.recv")[0]), json!({ "left": false }));
    let other = memory.add("other", &json!({}), "").id().to_string();
    let error = soon(isolate.call(call(&memory, &json!({ "id": other })))).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Permission);
    assert!(error.message.contains("remove: [\"other\"]"), "{error}");
    assert_eq!(memory.topic("other").len(), 1);
}

#[tokio::test]
async fn without_a_word_nothing_is_removed() {
    let (isolate, memory) =
        handler(r#"export default { topics: "in", run(frame, ctx) { ctx.remove(frame.id); } };"#)
            .await;
    let failure = reply(&isolate, inputs(&memory, 1)).await.failure.unwrap();
    assert_eq!(failure.error.kind, FailureKind::Permission);
    assert!(failure.error.message.contains("permissions: { remove:"), "{}", failure.error);
    for own in ["xs.handler.*", "xs", "a,xs.start"] {
        let source = format!(
            "export default {{ topics: \"in\", permissions: {{ remove: [{own:?}] }}, run() {{}} }};"
        );
        let error = start("handlers/it.js", &source).await.err().unwrap();
        assert!(error.message.contains("is reserved for xs"), "{own}: {error}");
    }
}
