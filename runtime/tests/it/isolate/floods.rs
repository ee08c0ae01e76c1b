//! Modules that do too much of something allowed: each gets an error, is slowed down or ended
//! alone, and another one in the same process continues.

use serde_json::json;
use xs_runtime::isolate::FailureKind;

use super::*;

/// Runs a generator with this body; returns its failure, if any.
async fn run(body: &str) -> (Result<(), ModuleError>, Arc<Memory>) {
    let source = format!("export default {{ async *run(ctx) {{ {body} }} }};");
    let (isolate, _, memory) = start("generators/it.js", &source).await.unwrap();
    let ended = soon(isolate.run_generator()).await;
    soon(isolate.stop()).await.unwrap();
    (ended, memory)
}

async fn goes_on(healthy: &Isolate, memory: &Memory) {
    let reply = soon(reply(healthy, inputs(memory, 4))).await;
    assert_eq!((reply.done, reply.failure), (4, None));
}

#[tokio::test]
async fn floods_are_bounded_and_told() {
    let (healthy, beside) =
        handler("export default { topics: 'in', state: 0, run(f, ctx) { ctx.state++; } };").await;
    // Appends that are not awaited one by one.
    let (ended, memory) = run(
        "const all = []; for (let i = 0; i < 6_000; i++) all.push(ctx.append('flood', { meta: { i } }).catch((e) => e.message)); \
         const got = await Promise.all(all); const no = got.find((m) => typeof m === 'string'); \
         yield { no, stored: got.filter((m) => typeof m !== 'string').length };",
    )
    .await;
    assert!(ended.is_ok(), "{ended:?}");
    let told = stored_meta(&memory.topic("it.recv")[0]);
    assert!(told["no"].as_str().unwrap().contains("await"), "{told}");
    assert_eq!(memory.topic("flood").len() as u64, told["stored"].as_u64().unwrap());
    goes_on(&healthy, &beside).await;
    // Yields in a tight loop wait for the store.
    let (ended, memory) = run("for (let i = 0; i < 20_000; i++) yield { i };").await;
    assert!(ended.is_ok() && memory.topic("it.recv").len() == 20_000, "{ended:?}");
    // Timers and promises without end cost their own memory.
    for body in [
        "for (let i = 0; i < 1e6; i++) setTimeout(() => {}, 1e6); yield { ok: true };",
        "const all = []; for (let i = 0; i < 1e6; i++) all.push(new Promise(() => {})); yield { ok: all.length };",
        "const all = []; for (let i = 0; i < 1e6; i++) all.push(ctx.every('1h')); yield { ok: all.length };",
        "const all = []; for (;;) { all.push(new Array(1e4).fill(i => i)); await null; }",
    ] {
        let (ended, memory) = run(body).await;
        let kind = ended.err().map(|error| error.kind);
        let ended = matches!(kind, None | Some(FailureKind::Heap | FailureKind::Cpu));
        assert!(ended || kind == Some(FailureKind::Throw), "{body}: {kind:?}");
        drop(memory);
        goes_on(&healthy, &beside).await;
    }
    // Reads, bodies and programs that are never ended.
    let (ended, memory) = run(
        "const got = {}; const open = async (name, one) => { try { for (let i = 0; i < 2000; i++) await one(); } catch (e) { got[name] = e.message; } }; \
         await open('reads', () => { const r = ctx.read({ follow: true }); return Promise.race([r.next(), null]); }); \
         yield got;",
    )
    .await;
    assert!(ended.is_ok(), "{ended:?}");
    let told = stored_meta(&memory.topic("it.recv")[0]);
    assert!(told["reads"].as_str().is_none_or(|text| text.contains("already open")), "{told}");
    goes_on(&healthy, &beside).await;
}

/// Waits until a module has logged that its late attempt was refused.
async fn refused(memory: &Memory) {
    let told = async {
        while memory.logs().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(told).await;
    assert!(memory.logs()[0].1.contains("this run has ended"), "{:?}", memory.logs());
}

#[tokio::test]
async fn nothing_is_appended_from_a_run_that_is_over() {
    // A generator ends only when the store has answered, so it tries until it is refused.
    let source = "export default { async *run(ctx) { \
        const late = () => ctx.append('late', {}).then(() => setTimeout(late, 1), (e) => console.log(e.message)); \
        setTimeout(late, 5); return { last: true }; } };";
    let (isolate, _, memory) = start("generators/it.js", source).await.unwrap();
    assert!(soon(isolate.run_generator()).await.is_ok());
    refused(&memory).await;
    soon(isolate.stop()).await.unwrap();
    let source = "let kept; export default { topics: 'in', run(f, ctx) { \
        if (kept === undefined) { kept = ctx; setTimeout(() => { try { kept.append('late', {}); } catch (e) { console.log(e.message); } }, 5); return; } \
        return { second: true }; } };";
    let (isolate, memory) = handler(source).await;
    soon(reply(&isolate, inputs(&memory, 1))).await;
    refused(&memory).await;
    let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
    assert_eq!(reply.outputs.len(), 1);
}

#[tokio::test]
async fn odd_results_are_errors_that_name_the_fix() {
    for (value, want) in [
        ("1n", "bigint"),
        ("Symbol('x')", "symbol"),
        ("new Map([[1, 2]])", "a Map"),
        ("new Date()", "does not write as an object"),
        ("[1, 2]", "an array"),
        ("Object.freeze({ then: 1, a: 1 })", ""),
        ("({ get a() { throw new Error('getter'); } })", "getter"),
        ("({ then(done) { done({ thenable: true }); } })", ""),
        ("({ then(_, fail) { fail(new Error('thenable')); } })", "thenable"),
        ("({ then() { throw new Error('then throws'); } })", "then throws"),
        ("new Proxy({}, { ownKeys() { throw new Error('keys'); } })", "keys"),
        ("'x'.repeat(5_000_000)", "over the limit"),
        ("new Uint8Array(5_000_000)", "over the limit"),
        ("({ a: 'x'.repeat(2_000_000) })", ""),
    ] {
        let source =
            format!("export default {{ topics: 'in', timeout: 2000, run: () => ({value}) }};");
        let (isolate, memory) = handler(&source).await;
        let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
        match reply.failure {
            Some(failure) => {
                let message = failure.error.message;
                assert!(
                    message.to_lowercase().contains(&want.to_lowercase()),
                    "{value}: {message}"
                );
            }
            None => assert!(want.is_empty(), "{value}"),
        }
    }
}

/// A handler that leaks memory with each frame is bounded by its own heap.
#[tokio::test]
async fn a_leak_ends_the_module_that_has_it() {
    let source = "const kept = []; export default { topics: 'in', run(f) { kept.push('x'.repeat(8192) + f.meta.n); } };";
    let (isolate, memory) = handler(source).await;
    let mut failed = None;
    for _ in 0..40 {
        match soon(replies(&isolate, inputs(&memory, 512))).await {
            Ok(replies) => failed = replies.into_iter().find_map(|reply| reply.failure),
            Err(error) => {
                assert_eq!(error.kind, FailureKind::Heap, "{error}");
                return;
            }
        }
        if let Some(failure) = &failed {
            let out = failure.error.message.contains("memory");
            assert!(failure.error.kind == FailureKind::Heap || out, "{failure:?}");
            return;
        }
    }
    panic!("it is still there: {failed:?} {}", json!(memory.topic("in").len()));
}

/// Set in the process that runs the test below alone.
const ALONE: &str = "XS_TEST_ALONE";

/// Isolates give back their threads and descriptors at once. Counted in a separate process, since
/// tests that run concurrently use some too.
#[tokio::test]
async fn a_hundred_starts_and_stops_leave_no_thread_and_no_descriptor() {
    if std::env::var_os(ALONE).is_none() {
        let name = "isolate::floods::a_hundred_starts_and_stops_leave_no_thread_and_no_descriptor";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let again = again.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&again.stdout).into_owned();
        let failed = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.status.success() && said.contains("1 passed"), "{said}{failed}");
        return;
    }
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let cycle = || async {
        let (isolate, memory) = handler("export default { topics: 'in', run: () => ({}) };").await;
        soon(reply(&isolate, inputs(&memory, 1))).await;
        soon(isolate.stop()).await.unwrap();
    };
    cycle().await;
    let before = ["task", "fd"].map(count);
    for _ in 0..100 {
        cycle().await;
    }
    // A thread that has announced its end may still be exiting, now as well as before.
    let is_more = |(now, before): (usize, usize)| now > before;
    let left = async {
        while ["task", "fd"].map(count).into_iter().zip(before).any(is_more) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let left = tokio::time::timeout(Duration::from_secs(60), left).await;
    assert!(left.is_ok(), "{:?} after {before:?}", ["task", "fd"].map(count));
}
