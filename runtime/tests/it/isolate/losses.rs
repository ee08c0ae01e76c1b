//! Frames that the store refuses while the run continues: none is lost silently.

use std::io::Write as _;

use serde_json::json;
use xs_runtime::isolate::FailureKind;

use super::commands::call;
use super::*;

const FULL: &str = "the disk is full";

/// Waits until a module has logged a line.
async fn said(memory: &Memory, what: &str) {
    soon(async {
        while !memory.logs().iter().any(|(_, line)| line == what) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_does_not_complete_without_a_result() {
    let source = "export default { async *run(call, ctx) { yield { n: 1 }; \
        await new Promise((done) => setTimeout(done)); ctx.log.info('over'); } };";
    let (isolate, _, memory) = start("commands/it.js", source).await.unwrap();
    let isolate = Arc::new(isolate);
    let refuse = memory.refuse_one(FULL);
    let (running, asked) = (Arc::clone(&isolate), call(&memory, &json!({})));
    let run = tokio::spawn(async move { running.call(asked).await });
    said(&memory, "over").await;
    // The end of the call is queued after the result in flight, and there is room for it.
    refuse.send(()).unwrap();
    let error = soon(run).await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (FailureKind::Store, FULL));
    assert!(memory.topic("it.recv").is_empty() && memory.topic("it.complete").is_empty());
    soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    assert_eq!((memory.topic("it.recv").len(), memory.topic("it.complete").len()), (1, 1));
}

#[tokio::test]
async fn an_append_that_is_told_does_not_hide_a_result_that_is_not() {
    let source = "export default { async *run(call, ctx) { \
        const own = ctx.append('own', {}); own.catch(() => {}); yield { n: 1 }; \
        try { await own; } catch (error) { ctx.log.info(error.message); } } };";
    let (isolate, _, memory) = start("commands/it.js", source).await.unwrap();
    drop(memory.refuse_one(FULL));
    let error = soon(isolate.call(call(&memory, &json!({})))).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (FailureKind::Store, FULL));
    assert_eq!(memory.logs()[0].1, FULL);
    assert!(memory.topic("it.complete").is_empty());
}

#[tokio::test]
async fn what_an_author_was_told_of_is_the_authors_business() {
    let source = "export default { async *run(call, ctx) { \
        try { for (;;) { yield { n: 1 }; await new Promise((done) => setTimeout(done, 1)); } } \
        catch (error) { yield { caught: error.message }; } \
        try { await ctx.append('refused', {}); } catch {} } };";
    let (isolate, _, memory) = start("commands/it.js", source).await.unwrap();
    drop(memory.refuse_one(FULL));
    soon(isolate.call(call(&memory, &json!({})))).await.unwrap();
    let caught = stored_meta(&memory.topic("it.recv")[0]);
    assert_eq!(caught, json!({ "caught": FULL }));
    assert_eq!(memory.topic("it.complete").len(), 1);
}

#[tokio::test]
async fn nothing_is_removed_whose_copy_was_refused() {
    let source = "export default { permissions: { remove: ['old'] }, async *run(ctx) { \
        const old = await ctx.last('old'); yield { copy: old.id }; \
        try { await ctx.remove(old.id); } catch (error) { ctx.log.info(error.message); } \
        try { await ctx.append('new', { expect: { last: 'none' } }); } \
        catch (error) { ctx.log.info(error.message); } } };";
    let (isolate, _, memory) = start("generators/it.js", source).await.unwrap();
    memory.add("old", &json!({}), "");
    drop(memory.refuse_one(FULL));
    let error = soon(isolate.run_generator()).await.unwrap_err();
    assert_eq!(error.message, FULL);
    let told: Vec<_> = memory.logs().into_iter().map(|(_, line)| line).collect();
    assert_eq!(told, [FULL, FULL]);
    assert_eq!(memory.topic("old").len(), 1);
}

#[tokio::test]
async fn a_tail_does_not_move_past_a_line_that_was_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "old\n").unwrap();
    let at = path.display().to_string();
    let source = format!(
        "export default {{ permissions: {{ read: ['{at}'] }}, async *run(ctx) {{ \
           for await (const line of ctx.tail('{at}')) {{ yield line; ctx.log.info(line); }} }} }};"
    );
    let (isolate, _, memory) = start("generators/it.js", &source).await.unwrap();
    let append = |text: &str| {
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let position = format!("tail:{at}");
    let mut run = Box::pin(isolate.run_generator());
    let steps = async {
        while memory.position(&position).is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let begun = memory.position(&position);
        let refuse = memory.refuse_one(FULL);
        append("one\n");
        said(&memory, "one").await;
        refuse.send(()).unwrap();
        append("two\n");
        begun
    };
    let begun = tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        begun = soon(steps) => begun,
    };
    let error = soon(run).await.unwrap_err();
    assert!(error.message.contains(FULL), "{error}");
    assert_eq!(memory.position(&position), begun);
    let mut run = Box::pin(isolate.run_generator());
    let frames = tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        frames = soon(memory.wait("it.recv", 2)) => frames,
    };
    let lines: Vec<_> = frames.iter().map(|frame| memory.body(frame)).collect();
    assert_eq!(lines, ["one", "two"]);
}

/// A frame is delivered again if the output it caused was refused.
#[tokio::test]
async fn an_input_does_not_move_past_a_frame_whose_answer_was_refused() {
    let source = "export default { duplex: true, async *run(ctx) { \
        for await (const frame of ctx.input) { yield { of: frame.meta.n }; ctx.log.info('answered'); } } };";
    let (isolate, _, memory) = start("generators/it.js", source).await.unwrap();
    (1..=2).for_each(|n| drop(memory.add("it.send", &json!({ "n": n }), "")));
    let refuse = memory.refuse_one(FULL);
    let mut run = Box::pin(isolate.run_generator());
    tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        () = said(&memory, "answered") => refuse.send(()).unwrap(),
    }
    // There is no more input: the run is not left waiting for it.
    let error = soon(run).await.unwrap_err();
    assert!(error.message.contains(FULL), "{error}");
    assert_eq!(memory.position("input"), None);
    let mut run = Box::pin(isolate.run_generator());
    let frames = tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        frames = soon(memory.wait("it.recv", 2)) => frames,
    };
    let of: Vec<_> = frames.iter().map(stored_meta).collect();
    assert_eq!(of, [json!({ "of": 1 }), json!({ "of": 2 })]);
}

/// The same if the run gets the refusal at its `yield`, and leaves the loop because of it.
#[tokio::test]
async fn who_is_told_of_a_refusal_and_leaves_has_the_lines_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "").unwrap();
    let at = path.display().to_string();
    let source = format!(
        "export default {{ permissions: {{ read: ['{at}'] }}, async *run(ctx) {{ \
           for await (const line of ctx.tail('{at}', {{ first: 'start' }})) {{ \
             yield line; ctx.log.info(line); \
             while (await ctx.last('go') === undefined) \
               await new Promise((done) => setTimeout(done, 1)); }} }} }};"
    );
    let (isolate, _, memory) = start("generators/it.js", &source).await.unwrap();
    let refuse = memory.refuse_one(FULL);
    std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
    let mut run = Box::pin(isolate.run_generator());
    tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        () = said(&memory, "one") => refuse.send(()).unwrap(),
    }
    memory.add("go", &json!({}), "");
    let error = soon(run).await.unwrap_err();
    assert!(error.message.contains(FULL), "{error}");
    let mut run = Box::pin(isolate.run_generator());
    let frames = tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        frames = soon(memory.wait("it.recv", 3)) => frames,
    };
    let lines: Vec<_> = frames.iter().map(|frame| memory.body(frame)).collect();
    assert_eq!(lines, ["one", "two", "three"]);
}
