//! A value that cannot be a frame is refused with the same message, whoever appends or yields it.

use serde_json::json;

use super::commands::call;
use super::*;

/// The message of a command that does `work`, after checking that it has stored nothing.
async fn told_by_command(work: &str) -> String {
    let source = format!(
        r#"import {{ frame }} from "xs"; class Note {{ meta = {{}} }}
        export default {{ async *run(call, ctx) {{ {work} }} }};"#
    );
    let (isolate, _, memory) = start("commands/it.js", &source).await.unwrap();
    let error = soon(isolate.call(call(&memory, &json!({})))).await.expect_err(work);
    assert!(memory.topic("notes").is_empty() && memory.topic("it.recv").is_empty(), "{work}");
    error.message
}

/// Like [`told_by_command`], for a handler.
async fn told_by_handler(work: &str) -> String {
    let (isolate, memory) = handler(&format!(
        r#"import {{ frame }} from "xs"; class Note {{ meta = {{}} }}
        export default {{ topics: "in", run(_, ctx) {{ {work} }} }};"#
    ))
    .await;
    reply(&isolate, inputs(&memory, 1)).await.failure.expect(work).error.message
}

#[tokio::test]
async fn an_append_of_what_is_no_content_says_what_to_write() {
    let table = [
        (
            "'hello'",
            r#"append() takes an object such as { meta: {...} } or { body: "..." }, not a string; write { body: "hello" }"#,
        ),
        ("'x'.repeat(500)", "not a string; write { body: ... }"),
        ("5", "not a number; write { json: 5 }"),
        ("true", "not a boolean; write { json: true }"),
        ("null", "not null; write { meta: ... } with a plain object"),
        ("[1]", "not an array; write { json: [...] }"),
        ("new Uint8Array(3)", "not a Uint8Array; write { body: ... }"),
        ("new Blob(['a'])", "not a Blob; write { body: ... }"),
        ("new Map()", "not a Map; write { meta: ... } with a plain object"),
        ("new Note()", "not a Note; write { meta: ... } with a plain object"),
        ("() => 1", "not a function; write { meta: ... } with a plain object"),
        ("frame({ meta: { a: 1 } })", "not a frame(...); write what frame() was given"),
        ("{ meta: 'x' }", "append(): meta is a string; use a plain object"),
        ("{ meta: [1] }", "append(): meta is an array; use a plain object"),
        ("{ meta: new Map() }", "append(): meta is a Map; use a plain object"),
        (
            "{ meta: new Date(0) }",
            "append(): meta is a Date, which JSON does not write as an object",
        ),
        ("{ meta: { a: 1n } }", "append(): meta is not JSON"),
        ("{ body: 5 }", "append(): body is a number; use a string or a Uint8Array"),
        ("{ body: { a: 1 } }", "append(): body is a Object; use a string or a Uint8Array"),
        ("{ json: () => 1 }", "append(): json is a function, which JSON does not have"),
        ("{ body: 'a', json: 1 }", "append() takes body or json, not both"),
        ("{ mata: 1 }", "append() does not know \"mata\""),
        ("{ topic: 'other' }", "append() takes the topic as its first argument only"),
    ];
    for (content, want) in table {
        let by_command = told_by_command(&format!("await ctx.append('notes', {content});")).await;
        assert!(by_command.contains(want), "{content}: {by_command}");
        let by_handler = told_by_handler(&format!("ctx.append('notes', {content});")).await;
        assert_eq!(by_handler, by_command, "{content}");
    }
}

/// Regression test: the key was taken for a misspelled field.
#[tokio::test]
async fn a_frame_is_checked_where_it_is_made() {
    for made in [
        "{ topic: 'a b' }",
        "{ topic: 'xs.a' }",
        "{ topic: 5 }",
        "{ ttl: 'soon' }",
        "{ meta: { a: NaN } }",
        "{ json: 1n }",
        "{ body: 5 }",
    ] {
        let source = format!(
            "import {{ frame }} from 'xs';\nexport default {{ topics: 'in', run() {{\n\
             const made = frame({made});\nreturn made; }} }};"
        );
        let (isolate, memory) = handler(&source).await;
        let error = reply(&isolate, inputs(&memory, 1)).await.failure.expect(made).error;
        assert_eq!(
            (error.file.as_deref(), error.line),
            (Some("handlers/it.js"), Some(3)),
            "{made}"
        );
    }
}

/// JSON would write each of these as something else.
#[tokio::test]
async fn what_json_does_not_hold_is_refused_by_its_path() {
    for (value, want) in [
        ("{ a: [NaN] }", "a[0] is NaN, which JSON does not have; use null or text"),
        ("{ a: 1 / 0 }", "a is Infinity"),
        ("{ a: f() }", "a is a promise; await it first"),
        ("{ a: { b: new Map() } }", "a.b is a Map, which JSON does not hold; convert it first"),
        (
            "{ a: new Set([1]) }",
            "a is a Set, which JSON does not hold; convert it first, as with [...",
        ),
        ("{ a: new Headers({ b: 'c' }) }", "a is a Headers"),
        ("{ a: /b/ }", "a is a RegExp"),
        ("{ a: new Error('x') }", "a is a Error"),
        ("{ a: new Uint8Array(2) }", "a is a Uint8Array"),
        ("{ a: [f] }", "a[0] is a function; give its result instead"),
        ("{ a: new Date('no') }", "a is an invalid Date"),
    ] {
        for kind in ["meta", "json"] {
            let work = format!(
                "async function f() {{}} await ctx.append('notes', {{ {kind}: {value} }});"
            );
            let told = told_by_command(&work).await;
            let want = format!("append(): {kind}.{want}");
            assert!(told.contains(&want), "{value}: {told} / {want}");
        }
        let told = told_by_handler(&format!("async function f() {{}} return {value};")).await;
        assert!(told.contains(&format!("the result: meta.{want}")), "{value}: {told}");
    }
    for held in ["{ a: null, b: {}, c: [], d: new Date(0), e: undefined }", "{ a: [undefined] }"] {
        let (isolate, memory) =
            handler(&format!("export default {{ topics: 'in', run: () => ({held}) }};")).await;
        let reply = reply(&isolate, inputs(&memory, 1)).await;
        assert_eq!((reply.outputs.len(), reply.failure), (1, None), "{held}");
    }
}

#[tokio::test]
async fn a_key_and_a_condition_are_not_for_a_handler() {
    for key in ["key", "expect"] {
        let once = "stored exactly once, in one commit with its state and its place";
        let error = told_by_handler(&format!("ctx.append('notes', {{ {key}: 'a' }});")).await;
        assert!(error.contains(&format!("append() takes no \"{key}\" here")), "{error}");
        assert!(error.contains(once) && error.contains(&format!("{{ {key}: ... }}")), "{error}");
        let work = format!("return frame({{ {key}: 'a' }});");
        let (handler, command) = (told_by_handler(&work).await, told_by_command(&work).await);
        assert!(handler.contains("only the ctx.append() of a generator or a command"), "{handler}");
        assert_eq!(handler, command);
    }
}

#[tokio::test]
async fn a_result_that_is_no_content_says_what_to_write() {
    let table = [
        ("frame('hello')", "frame() takes an object such as"),
        ("frame('hello')", "write { body: \"hello\" }"),
        ("frame(null)", "not null"),
        ("frame({ meta: 'x' })", "frame(): meta is a string"),
        (
            "frame({ meta: new Date(0) })",
            "frame(): meta is a Date, which JSON does not write as an object",
        ),
        ("frame({ body: 5 })", "frame(): body is a number"),
        ("new Date(0)", "the result: meta is a Date, which JSON does not write as an object"),
        ("new URL('http://a')", "use { value: ... } or String(...)"),
        ("({ toJSON() { return 5; } })", "the result: meta is a Object, which JSON does not write"),
        ("5", "use { value: 5 }"),
    ];
    for (value, want) in table {
        let by_command = told_by_command(&format!("yield {value};")).await;
        assert!(by_command.contains(want), "{value}: {by_command}");
        let by_handler = told_by_handler(&format!("return {value};")).await;
        assert_eq!(by_handler, by_command, "{value}");
    }
}

/// Valid content is appended unchanged.
#[tokio::test]
async fn an_append_takes_every_kind_of_content() {
    let source = r#"export default { async *run(call, ctx) {
          await ctx.append("notes");
          await ctx.append("notes", { meta: null, body: undefined });
          await ctx.append("notes", Object.assign(Object.create(null), { meta: { a: 1 } }));
          await ctx.append("notes", { body: new Uint8Array([104, 105]) });
          await ctx.append("notes", { body: new Blob(["large"]), key: "once" });
          await ctx.append("notes", { json: null });
        } };"#;
    let (isolate, _, memory) = start("commands/it.js", source).await.unwrap();
    soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    let notes = memory.topic("notes");
    let bodies: Vec<_> = notes.iter().map(|frame| memory.body(frame)).collect();
    assert_eq!(bodies, ["", "", "", "hi", "large", "null"]);
    assert_eq!(stored_meta(&notes[2]), json!({ "a": 1 }));
}

/// A buffer that is reused holds the next content before this one is stored.
#[tokio::test]
async fn bytes_are_taken_when_they_are_given() {
    let source = r#"export default { async run(call, ctx) {
          const bytes = new Uint8Array(2), pending = [], blobs = [];
          for (let n = 1; n <= 3; n++) {
            bytes[0] = n;
            pending.push(ctx.append("plain", { body: bytes }), ctx.append("keyed", { body: bytes.buffer, key: `${n}` }));
            blobs.push(ctx.blob.put(bytes.subarray(0, 1)));
          }
          bytes[0] = 9;
          await Promise.all(pending);
          const seen = [];
          for (const topics of ["plain", "keyed"])
            for await (const frame of ctx.read({ topics })) seen.push((await frame.bytes())[0]);
          for (const hash of await Promise.all(blobs)) seen.push((await ctx.blob.get(hash))[0]);
          return { seen };
        } };"#;
    let (isolate, _, memory) = start("commands/it.js", source).await.unwrap();
    soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    let mut seen = stored_meta(&memory.topic("it.recv")[0])["seen"].clone();
    // Appends with a key are not ordered among each other.
    let list = seen.as_array_mut().unwrap();
    list[3..6].sort_by_key(Value::as_u64);
    assert_eq!(seen, json!([1, 2, 3, 1, 2, 3, 1, 2, 3]));
}

/// The arguments and the body are taken when the call is made.
#[tokio::test]
async fn a_call_is_asked_with_what_it_was_given() {
    let source = r#"export default { async run(call, ctx) {
          const body = new Uint8Array(1), args = { n: 0 }, pending = [];
          for (let n = 1; n <= 3; n++) {
            body[0] = args.n = n;
            pending.push(ctx.call("echo", { args, body }).next());
          }
          body[0] = args.n = 9;
          await Promise.all(pending);
        } };"#;
    let (isolate, _, memory) = start("commands/it.js", source).await.unwrap();
    soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    let asked = memory.topic("echo.recv");
    let args: Vec<_> = asked.iter().map(stored_meta).collect();
    assert_eq!(args, [json!({ "n": 1 }), json!({ "n": 2 }), json!({ "n": 3 })]);
    let bodies: Vec<_> = asked.iter().map(|frame| memory.body(frame)).collect();
    assert_eq!(bodies, ["\u{1}", "\u{2}", "\u{3}"]);
}
