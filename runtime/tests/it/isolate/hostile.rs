//! Modules that do their worst. Each isolate fails with a matching error; another isolate in the
//! same process continues.

use xs_runtime::isolate::FailureKind;

use super::*;

async fn failure_of(source: &str) -> ModuleError {
    failure_within(source, Duration::from_millis(300)).await
}

async fn failure_within(source: &str, slice: Duration) -> ModuleError {
    let short = |spec: &mut IsolateSpec| {
        spec.limits.slice = slice;
        spec.limits.stop = Duration::from_millis(300);
    };
    let (isolate, memory) = match start_with("handlers/it.js", source, short).await {
        Ok((isolate, _, memory)) => (isolate, memory),
        Err(error) => return error,
    };
    isolate.load_state(None).await.unwrap();
    match soon(replies(&isolate, inputs(&memory, 1))).await {
        Ok(replies) => replies.last().unwrap().failure.clone().unwrap().error,
        Err(error) => error,
    }
}

fn in_run(body: &str) -> String {
    format!("export default {{ topics: \"in\", timeout: 2000, run(frame, ctx) {{ {body} }} }};")
}

#[tokio::test]
async fn endless_loops_are_ended_and_the_others_go_on() {
    let (healthy, memory) =
        handler("export default { topics: \"in\", state: 0, run(frame, ctx) { ctx.state++; } };")
            .await;
    for body in [
        "for (;;) {}",
        "for (;;) { try { for (;;) {} } catch {} finally { continue; } }",
        "while (true) Math.sqrt(2);",
        "const g = (function* () { for (;;) yield 1; })(); for (const _ of g) {}",
        "/(a+)+$/.test('a'.repeat(60) + 'b');",
        "return (async () => { while (true) await null; })();",
        "let go = () => Promise.resolve().then(go); return go();",
        // The number of calls per turn divides the number that the engine counts between two
        // checks.
        "let go = () => { Promise.resolve().then(go); }; go(); return new Promise(() => {});",
        "let go = () => { Math.abs(1); Promise.resolve().then(go); }; go(); return new Promise(() => {});",
        "let go = () => { for (let i = 0; i < 4; i++) Math.abs(1); Promise.resolve().then(go); }; go(); return new Promise(() => {});",
        "let go = () => queueMicrotask(go); go(); return new Promise(() => {});",
        "[3, 1, 2].sort(() => { for (;;) {} });",
        // Taking the stack of the loop calls this constructor.
        "globalThis.Error = class { constructor() { for (let i = 0; i < 20_000; i++); } }; for (;;) {}",
        "globalThis.Error = class { constructor() { for (;;); } }; for (;;) {}",
    ] {
        let error = failure_of(&in_run(body)).await;
        // A chain of promises may reach the memory limit before the time limit.
        let ended = matches!(error.kind, FailureKind::Cpu | FailureKind::Heap);
        assert!(ended, "{body}: {error}");
        let reply = reply(&healthy, inputs(&memory, 8)).await;
        assert_eq!((reply.done, reply.failure), (8, None));
    }
    let error = failure_of("for (;;) {} export default {};").await;
    assert_eq!(error.kind, FailureKind::Cpu);
    let error = failure_of("while (true) await null; export default {};").await;
    assert_eq!(error.kind, FailureKind::Cpu);
}

#[tokio::test]
async fn memory_without_end_is_ended() {
    for body in [
        "const all = []; for (;;) all.push({ a: [1, 2, 3] });",
        "const all = []; try { for (;;) all.push('x'.repeat(1000) + all.length); } catch {} for (;;) all.push({});",
        "const all = []; for (;;) all.push(new ArrayBuffer(1_000_000));",
    ] {
        // On a slow machine, filling the memory takes longer than a CPU slice.
        let error = failure_within(&in_run(body), Duration::from_secs(10)).await;
        let out_of_memory =
            error.kind == FailureKind::Heap || error.message.contains("out of memory");
        assert!(out_of_memory, "{body}: {error:?}");
    }
    // A single allocation that is too large is an ordinary error.
    let error = failure_of(&in_run("new ArrayBuffer(2e9);")).await;
    assert!(error.kind == FailureKind::Throw || error.kind == FailureKind::Heap, "{error}");
}

#[tokio::test]
async fn deep_recursion_is_an_error() {
    for body in [
        "const f = () => f() + 1; f();",
        "let a = []; for (let i = 0; i < 1e5; i++) a = [a]; return { a };",
        "const f = () => [1].map(f); f();",
        "JSON.parse('['.repeat(1e6) + ']'.repeat(1e6));",
        "const a = {}; a.a = a; return a;",
    ] {
        let error = failure_of(&in_run(body)).await;
        assert_eq!(error.kind, FailureKind::Throw, "{body}: {error}");
    }
}

#[tokio::test]
async fn errors_at_import_have_their_place() {
    let error = failure_of("const a = 1;\n\n  nothing.there;\nexport default {};").await;
    assert_eq!((error.kind, error.file.as_deref()), (FailureKind::Throw, Some("handlers/it.js")));
    assert_eq!(error.line, Some(3));
    assert!(error.message.contains("nothing is not defined"), "{error}");
    assert!(error.code_frame.as_deref().unwrap().contains(">    3 |   nothing.there;"), "{error}");
    let error = failure_of("export default {\n  topics: \"in\",\n  run(frame ctx) {}\n};").await;
    assert_eq!((error.kind, error.line, error.column), (FailureKind::Syntax, Some(3), Some(13)));
    let want = "     1 | export default {\n     2 |   topics: \"in\",\n>    3 |   run(frame ctx) {}\n       |             ^\n     4 | };\n";
    assert_eq!(error.code_frame.as_deref(), Some(want));
    let error = failure_of("throw 'no error'; export default {};").await;
    assert!(error.message.contains("no error"), "{error}");
    let error = failure_of("await new Promise(() => {}); export default {};").await;
    assert_eq!(error.kind, FailureKind::Timeout, "{error}");
}

#[tokio::test]
async fn promises_that_never_settle_are_found() {
    let error = failure_of(&in_run("return new Promise(() => {});")).await;
    assert_eq!(error.kind, FailureKind::Timeout);
    assert!(error.message.contains("nothing can settle"), "{error}");
    let (isolate, memory) = handler(&in_run("Promise.reject(new TypeError('floating'));")).await;
    let _ = replies(&isolate, inputs(&memory, 1)).await;
    let error = soon(isolate.failed()).await;
    assert!(error.message.contains("TypeError: floating"), "{error}");
    assert_eq!(error.line, Some(1));
}

#[tokio::test]
async fn odd_values_and_overridden_builtins_hurt_nobody() {
    for body in [
        "Object.defineProperty(Object.prototype, 'then', { get() { throw new Error('then'); }, configurable: true }); return { a: 1 };",
        "Array.prototype.push = () => { throw new Error('push'); }; return { a: 1 };",
        "Promise.prototype.then = () => {}; return { a: 1 };",
        "JSON.stringify = () => 'x'; JSON.parse = () => 1; return { a: 1 };",
        "Error.prepareStackTrace = () => { throw 1; }; throw new Error('x');",
        "Object.prototype.toJSON = () => 1n; return { a: 1 };",
        "String.prototype.slice = () => { throw 1; }; return { a: frame.meta };",
        "Map.prototype.get = Map.prototype.set = () => { throw 1; }; return { a: 1 };",
        "globalThis.Symbol = null; globalThis.Promise = null; globalThis.Object = null; return { a: 1 };",
        "return new Proxy({}, { get() { throw new Error('proxy'); }, ownKeys() { throw 1; } });",
        "return '\\ud800';",
        "return { a: '\\ud800' };",
        "throw { get message() { throw 1; } };",
        "throw new Proxy({}, { get() { throw 1; } });",
        "throw null;",
        "throw Symbol('x');",
        "ctx.state = Symbol('x');",
        "ctx.append(Symbol('x'));",
        "ctx.append('a', { body: Symbol('x') });",
        "ctx.append('a', { meta: { toJSON() { throw new Error('toJSON'); } } });",
        "ctx.append('a', { ttl: { toString() { throw new Error('ttl'); } } });",
        "ctx.log.info(Symbol('x'), 1n);",
        "ctx.log.info({ toString() { throw new Error('log'); } });",
        "for (let i = 0; i < 5000; i++) ctx.append('a', { meta: { i } });",
        "structuredClone(() => {});",
        "new URL('::');",
        "crypto.getRandomValues(new Float32Array(1));",
        "crypto.getRandomValues(new Uint8Array(1e6));",
    ] {
        let (isolate, memory) = handler(&in_run(body)).await;
        let ended = soon(replies(&isolate, inputs(&memory, 2))).await;
        // The call may fail or succeed; in both cases the process and its threads survive.
        drop((ended, isolate));
    }
    let (isolate, memory) = handler(&in_run("return { fine: true };")).await;
    assert_eq!(reply(&isolate, inputs(&memory, 2)).await.done, 2);
}

#[tokio::test]
async fn builtins_that_never_yield_cost_their_thread_only() {
    let body = "const o = Array.from({ length: 1e5 }, (_, i) => ({ i })); for (;;) JSON.parse(JSON.stringify(o));";
    let error = failure_of(&in_run(body)).await;
    assert!(
        matches!(error.kind, FailureKind::Cpu | FailureKind::Wedged | FailureKind::Heap),
        "{error}"
    );
}

#[tokio::test]
async fn many_isolates_come_and_go() {
    let (isolates, rounds) = (8, 4);
    for _ in 0..rounds {
        let started =
            (0..isolates).map(|_| handler("export default { topics: \"in\", run: () => ({}) };"));
        for (isolate, memory) in futures::future::join_all(started).await {
            assert_eq!(reply(&isolate, inputs(&memory, 3)).await.done, 3);
            soon(isolate.stop()).await.unwrap();
        }
    }
}
