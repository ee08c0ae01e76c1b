//! Values that a module was given in confidence do not leave it by accident.

use serde_json::json;

use super::commands::call;
use super::*;

const SECRET: &str = "correct-horse-\"battery\"";

async fn told(entry: &str, source: &str) -> (Isolate, Arc<Memory>) {
    let tell = |spec: &mut IsolateSpec| {
        spec.env.insert("SECRET".to_owned(), SECRET.to_owned());
        spec.env.insert("SHORT".to_owned(), "horse".to_owned());
        spec.env.insert("OTHER".to_owned(), "correct-horse".to_owned());
    };
    let (isolate, _, memory) = start_with(entry, source, tell).await.unwrap();
    (isolate, memory)
}

#[tokio::test]
async fn errors_and_lines_of_the_log_are_masked() {
    let (isolate, memory) = told(
        "commands/it.js",
        r#"export default { permissions: { env: ["SECRET", "SHORT"] },
          async run(call, ctx) {
            console.log("it is", ctx.env.SECRET, ctx.env.SHORT, "correct-horse");
            ctx.log.warn("look", { at: ctx.env.SECRET });
            yieldNothing(ctx.env.SECRET);
          } };
          function yieldNothing(text) { throw new Error(`no ${text}!`); }"#,
    )
    .await;
    let error = soon(isolate.call(call(&memory, &json!({})))).await.unwrap_err();
    assert_eq!(error.message, "Error: no ***!");
    assert!(!error.stack.unwrap().contains("battery"));
    let logs: Vec<_> = memory.logs().into_iter().map(|(_, line)| line).collect();
    assert_eq!(logs, ["it is *** horse correct-horse", "look {\"at\":\"***\"}"]);
}

/// The URL parser escapes less than a careful author does.
#[tokio::test]
async fn a_secret_in_an_address_is_masked() {
    let source = r#"export default { permissions: { env: ["SECRET"] },
      async run(call, ctx) {
        const url = new URL("http://a.invalid/?k=" + ctx.env.SECRET);
        url.username = url.hash = ctx.env.SECRET;
        url.pathname = ctx.env.SECRET;
        console.log(url.href);
        await fetch("http://a.invalid/?k=" + ctx.env.SECRET).catch((error) => console.log(error.message));
      } };"#;
    let (isolate, memory) = told("commands/it.js", source).await;
    soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    let logs: Vec<_> = memory.logs().into_iter().map(|(_, line)| line).collect();
    assert_eq!(logs[0], "http://***@a.invalid/***?k=***#***");
    assert!(!logs[1].contains("battery"), "{}", logs[1]);
}

#[tokio::test]
async fn so_are_the_failures_of_handlers_and_of_what_nobody_awaits() {
    let source = r#"export default { topics: "in", permissions: { env: ["SECRET"] },
      run(frame, ctx) {
        if (frame.meta.n === 0) throw new Error(ctx.env.SECRET);
        setTimeout(() => { throw new Error(ctx.env.SECRET); }, 0);
      } };"#;
    let (isolate, memory) = told("handlers/it.js", source).await;
    isolate.load_state(None).await.unwrap();
    let failure = reply(&isolate, inputs(&memory, 1)).await.failure.unwrap();
    assert_eq!(failure.error.message, "Error: ***");
    let failed = isolate.failed();
    reply(&isolate, vec![input(&memory, &json!({ "n": 1 }))]).await;
    let error = soon(failed).await;
    assert!(error.message.ends_with("Error: ***"), "{error}");
}
