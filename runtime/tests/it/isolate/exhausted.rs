//! Modules that reach their heap limit, at slightly different limits: wherever in the engine memory
//! runs out, the module ends for that reason.

use serde_json::json;
use xs_runtime::isolate::FailureKind;

use super::web::eval;
use super::*;

/// Ways to fill a heap.
const WAYS: [&str; 6] = [
    "const all = []; for (;;) { all.push(new Array(1e4).fill(i => i)); await null; }",
    "const all = []; for (;;) { try { null.x } catch (e) { all.push(e); } await null; }",
    "const all = []; const go = () => { all.push('x'.repeat(4096) + all.length); return Promise.resolve().then(go); }; await go();",
    "const all = new Map(); for (;;) all.set({}, [all.size]);",
    "const text = `[${'[1],'.repeat(2e6)}0]`; const all = []; for (;;) all.push(JSON.parse(text));",
    "const all = []; for (;;) all.push(Array.from({ length: 1e5 }, () => ({})));",
];

/// The same by modules that carry on when memory runs out, with ever smaller allocations.
const DESPERATE: [&str; 3] = [
    "for (let n = 1 << 18;;) { try { all.push('x'.repeat(n) + all.length); } catch { n = n > 32 ? n >> 1 : 1 << 14; } }",
    "for (let n = 1 << 16;;) { try { all.push(new Array(n).fill(0)); } catch { n = n > 4 ? n >> 1 : 1 << 12; } }",
    "globalThis.Error = class { constructor() { for (let i = 0; i < 5_000; i++) all.push({}); } }; for (;;) all.push({});",
];

async fn fill(body: &str, heap_bytes: usize) -> ModuleError {
    let source = format!("export default {{ async *run(ctx) {{ {body} }} }};");
    let limit = |spec: &mut IsolateSpec| {
        spec.limits.heap_bytes = heap_bytes;
        // On a slow machine, filling the memory takes longer than a CPU slice.
        spec.limits.slice = Duration::from_secs(20);
    };
    let (isolate, _, _memory) = start_with("generators/it.js", &source, limit).await.unwrap();
    let ended = soon(isolate.run_generator()).await.unwrap_err();
    // The isolate has already ended, for the reason above.
    let _ = soon(isolate.stop()).await;
    ended
}

#[tokio::test]
async fn a_heap_ends_anywhere_in_the_engine() {
    for body in WAYS {
        for step in 0..8 {
            let error = fill(body, (12 << 20) + step * 40_009).await;
            let out = error.message.contains("out of memory");
            assert!(error.kind == FailureKind::Heap || out, "{body}: {error:?}");
        }
    }
}

/// With most of its heap in use, its garbage is collected whenever the heap is full.
#[tokio::test]
async fn a_module_that_needs_most_of_its_heap_goes_on() {
    // From half of the heap to nearly all of it.
    for live in (24..=40).step_by(4) {
        let body = format!(
            "const all = (n) => Array.from({{ length: n }}, (_, i) => ({{ i }})); \
             const live = []; while (live.length < {live}) live.push(all(10_000)); \
             for (let n = 0; n < 400; n++) {{ \
               for (let i = 0; i < 2_000; i++) {{ const one = {{ some: [i] }}; one.itself = one; }} \
               await null; \
             }} \
             return {{ live: live.length }};"
        );
        assert_eq!(eval(&body).await, json!({ "live": live }));
    }
}

#[tokio::test]
async fn catching_that_there_is_no_memory_does_not_help() {
    for body in DESPERATE {
        let deep = format!(
            "Error.stackTraceLimit = 40; const all = []; \
             const down = (left) => {{ if (left) return down(left - 1); {body} }}; down(30);"
        );
        for step in 0..4 {
            let error = fill(&deep, (64 << 20) + step * 40_009).await;
            assert_eq!(error.kind, FailureKind::Heap, "{body}: {error:?}");
        }
    }
}
