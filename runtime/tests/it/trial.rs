//! `xs test`: how a test sees the modules it runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use xs_runtime::isolate::LogLevel;
use xs_runtime::trial::{TestFile, Tested, Watch, run_file, test_files};

struct Nobody;

impl Watch for Nobody {
    fn log(&self, _: &str, _: LogLevel, _: &str, _: Option<&str>) {}
    fn tested(&self, _: &Tested) {}
}

fn nobody() -> Arc<dyn Watch> {
    Arc::new(Nobody)
}

async fn tested(files: &[(&str, &str)]) -> TestFile {
    let dir = TempDir::new().unwrap();
    for (path, source) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, source).unwrap();
    }
    run_file(dir.path(), files[0].0, &BTreeMap::new(), &nobody()).await
}

/// The error of each test, empty if it passed.
fn errors(tested: &TestFile) -> Vec<String> {
    let errors = tested.tests.iter();
    errors.map(|test| test.error.as_ref().map_or_else(String::new, ToString::to_string)).collect()
}

#[tokio::test]
async fn the_examples_pass_their_tests() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/modules");
    let files = test_files(&dir).unwrap();
    assert!(files.len() >= 11, "{files:?}");
    for file in files {
        let tested = run_file(&dir, &file, &BTreeMap::new(), &nobody()).await;
        assert!(tested.error.is_none() && !tested.tests.is_empty(), "{file}: {tested:?}");
        for test in tested.tests {
            assert!(test.error.is_none(), "{file}: {}: {:?}", test.name, test.error);
        }
    }
}

#[tokio::test]
async fn a_failure_has_its_place_and_harms_no_other() {
    let tested = tested(&[(
        "handlers/h.test.ts",
        r#"import { assert, assertEquals, test } from "xs/test";
test("first", () => {
  const wrong: number = 1;
  assertEquals({ a: [wrong] }, { a: [2] }, "the list");
});
test("second", async () => { await null; assert(true); });
test("third", () => assert(false, "never"));
"#,
    )])
    .await;
    assert!(tested.error.is_none(), "{tested:?}");
    let names: Vec<_> = tested.tests.iter().map(|test| test.name.as_str()).collect();
    assert_eq!(names, ["first", "second", "third"]);
    let error = tested.tests[0].error.as_ref().unwrap();
    assert_eq!(error.message, "AssertionError: the list: got {\"a\":[1]}, expected {\"a\":[2]}");
    assert_eq!((error.file.as_deref(), error.line), (Some("handlers/h.test.ts"), Some(4)));
    assert!(error.code_frame.is_some());
    assert!(errors(&tested)[1].is_empty() && errors(&tested)[2].contains("never"));
}

/// Contents behind accessors are compared too.
#[tokio::test]
async fn values_are_equal_when_all_that_is_in_them_is() {
    let tested = tested(&[
        (
            "handlers/h.test.ts",
            r#"import { assertEquals, test, trial } from "xs/test";
import h from "./h.ts";
const bytes = (...list: number[]) => new Uint8Array(list);
class Point { x: number; constructor(x: number) { this.x = x; } }
class Hidden { #x: number; constructor(x: number) { this.#x = x; } get x() { return this.#x; } }
const ring = (n: number) => { const made: any = { n }; made.again = [made]; return made; };
// Of each: how one is made, how it is made again, and what it is not.
const all: Record<string, () => unknown[]> = {
  number: () => [0, 0, -0], nan: () => [NaN, NaN, 1], text: () => ["a", "a", "b"],
  plain: () => [{ a: [1] }, { a: [1] }, { a: [2] }, { a: [1], b: undefined }, [1], null],
  bare: () => [Object.assign(Object.create(null), { a: 1 }), { a: 1 }, { a: 2 }],
  array: () => [[1, 2], [1, 2], [2, 1], [1, 2, undefined], { 0: 1, 1: 2 }], holes: () => [new Array(1), new Array(1), [], [undefined]],
  map: () => [new Map<any, any>([["a", { n: 1 }], [{}, 2]]), new Map<any, any>([[{}, 2], ["a", { n: 1 }]]),
    new Map<any, any>([["a", { n: 2 }], [{}, 2]]), new Map(), {}],
  set: () => [new Set([1, 2]), new Set([2, 1]), new Set([1, 3]), new Set([1]), new Map()],
  objects: () => [new Set([{ n: 1 }, { n: 1 }]), new Set([{ n: 1 }, { n: 1 }]), new Set([{ n: 1 }, { n: 2 }])],
  date: () => [new Date(5), new Date(5), new Date(6), {}], url: () => [new URL("a:b"), new URL("a:b"), new URL("a:c")],
  headers: () => [new Headers({ a: "b" }), new Headers({ A: "b" }), new Headers({ a: "c" }), new Headers()],
  search: () => [new URLSearchParams("a=1"), new URLSearchParams("a=1"), new URLSearchParams("a=2")],
  error: () => [new RangeError("a"), new RangeError("a"), new RangeError("b"), new Error("a"), Object.assign(new RangeError("a"), { code: 1 })],
  bytes: () => [bytes(1, 2), bytes(1, 2), bytes(1, 3), new Int8Array([1, 2]), [1, 2], bytes(1, 2).buffer],
  buffer: () => [bytes(1).buffer, bytes(1).buffer, bytes(2).buffer], pattern: () => [/a/g, /a/g, /a/, /b/g],
  object: () => [new Point(1), new Point(1), new Point(2), { x: 1 }], ring: () => [ring(1), ring(1), ring(2)],
  deep: () => [[new Set([{ at: new Date(1) }])], [new Set([{ at: new Date(1) }])], [new Set([{ at: new Date(2) }])]],
};
for (const [name, make] of Object.entries(all)) test(name, () => {
  const [one, again, ...others] = make();
  assertEquals(one, again);
  for (const other of others) {
    let failed = "";
    try { assertEquals(one, other); } catch (error: any) { failed = error.name; }
    if (failed !== "AssertionError") throw new Error(`${name} equals ${String(other)}: ${failed}`);
  }
});
test("frames", async () => {
  const { out } = await trial(h, { frames: [{ topic: "in" }, { topic: "in" }] });
  assertEquals(out[0], out[0]);
  let failed = "";
  try { assertEquals(out[0], out[1]); } catch (error: any) { failed = error.message; }
  if (!failed.includes(out[0]!.id) || !failed.includes(out[1]!.id)) throw new Error(failed);
});
test("hidden", () => assertEquals(new Hidden(1), new Hidden(1)));
test("a promise", () => assertEquals(Promise.resolve(1), Promise.resolve(1)));
test("what differs", () => assertEquals(new Map([["a", 1n]]), new Map([["a", 2n]])));
"#,
        ),
        (
            "handlers/h.ts",
            r#"export default { topics: "in", start: "first", run: () => ({ same: true }) };"#,
        ),
    ])
    .await;
    assert!(tested.error.is_none(), "{tested:?}");
    let errors: Vec<_> = errors(&tested).into_iter().filter(|error| !error.is_empty()).collect();
    let wrong = "cannot be compared; compare its contents";
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].contains(&format!("a Hidden {wrong}")), "{errors:?}");
    assert!(errors[1].contains(&format!("a Promise {wrong}")), "{errors:?}");
    assert!(errors[2].contains(r#"got [["a","1n"]], expected [["a","2n"]]"#), "{errors:?}");
}

/// A file next to the directory of the modules, such as the log of a program that runs there.
#[tokio::test]
async fn files_are_made_up_by_relative_paths_too() {
    let tested = tested(&[
        (
            "generators/g.test.ts",
            r#"import { assertEquals, test, trial } from "xs/test";
import g from "./g.ts";
test("a file beside the modules", async () => {
  const { out, error } = await trial(g, { files: { "../app.log": "one\ntwo\n" }, take: 3 });
  assertEquals(error, undefined);
  assertEquals(await Promise.all(out.map((frame) => frame.text())), ["one\ntwo\n", "one", "two"]);
});
"#,
        ),
        (
            "generators/g.ts",
            r#"import { generator } from "xs";
export default generator({ permissions: { read: ["../app.log"] }, async *run(ctx) {
  yield await ctx.fs.text("../app.log");
  for await (const line of ctx.tail("../app.log", { first: "start" })) yield line;
} });
"#,
        ),
    ])
    .await;
    assert_eq!(errors(&tested), [""]);
}

#[tokio::test]
async fn what_a_test_makes_up_is_all_that_there_is() {
    let tested = tested(&[
        (
            "commands/c.test.ts",
            r#"import { assertEquals, test, trial } from "xs/test";
import c from "./c.ts";
import g from "../generators/g.ts";
test("files, variables, config and the network", async () => {
  const asked: unknown[] = [];
  const { out, error } = await trial(c, {
    args: { n: 2 }, config: { k: "given" }, env: { A: "seen", B: "not named" }, files: { "/etc/hostname": "made up" },
    fetch: async (url, init) => { asked.push([url, init.method, await new Response(init.body).text()]); return Response.json({ ok: 1 }, { status: 201 }); },
  });
  assertEquals(error, undefined);
  assertEquals(out[0]?.meta, { n: 2, k: "given", env: { A: "seen" }, file: "made up", status: 201, ok: 1, denied: true });
  assertEquals(asked, [["https://x.y/z", "POST", "body"]]);
});
test("no network but that of the test", async () => {
  const { error } = await trial(c, { args: { n: 1 }, files: { "/etc/hostname": "" } });
  assertEquals(error?.message, "TypeError: fetch() has no network in a test; give trial() a fetch");
});
test("time passes as it is waited for", async () => {
  const begun = performance.now();
  const { out } = await trial(g, { now: "2026-01-01T00:00:00Z", take: 3 });
  assertEquals(out.slice(0, 3).map((f) => f.meta.at), ["2026-01-01T00:00:00.000Z", "2026-01-01T01:00:00.000Z", "2026-01-01T02:00:00.000Z"]);
  assertEquals(performance.now() - begun < 600_000, true);
});
"#,
        ),
        (
            "commands/c.ts",
            r#"import { command } from "xs";
export default command({
  args: { n: "number" }, config: { k: "default" },
  permissions: { net: ["x.y"], read: ["/etc/hostname"], env: ["A"] },
  async *run(call, ctx) {
    const file = await ctx.fs.text("/etc/hostname");
    const r = await fetch("https://x.y/z", { method: "POST", body: "body" });
    const denied = await ctx.fs.text("/etc/passwd").catch((e) => e.message.includes("add permissions"));
    yield { n: call.args.n, k: ctx.config.k, env: ctx.env, file, status: r.status, ...(await r.json()), denied };
  },
});
"#,
        ),
        (
            "generators/g.ts",
            r#"import { generator } from "xs";
export default generator({ async *run(ctx) { for await (const at of ctx.every("1h")) yield { at: at.toISOString() }; } });
"#,
        ),
    ])
    .await;
    assert!(tested.error.is_none(), "{tested:?}");
    let errors: Vec<String> = errors(&tested).into_iter().filter(|e| !e.is_empty()).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[tokio::test]
async fn what_cannot_be_run_says_so() {
    let missing = tested(&[("lib/a.test.ts", "import './gone.ts';")]).await;
    assert!(missing.error.unwrap().message.contains("there is no such file"));
    let syntax = tested(&[("lib/a.test.ts", "test(")]).await;
    assert_eq!(syntax.error.unwrap().line, Some(1));
    let source = "import { test, trial } from 'xs/test'; test('a', async () => void (await trial({ topics: 'a', run() {} })));";
    let foreign = tested(&[("lib/a.test.ts", source)]).await;
    assert!(errors(&foreign)[0].contains("default export of a module"), "{foreign:?}");
    let source =
        "import { test } from 'xs/test'; test('a', () => { for (;;); }); test('b', () => {});";
    let endless = tested(&[("lib/a.test.ts", source)]).await;
    let [a, b] = &errors(&endless)[..] else { panic!("{endless:?}") };
    assert!(a.contains("CPU time") && b.is_empty(), "{endless:?}");
    assert!(endless.error.is_none(), "{endless:?}");
}

#[tokio::test]
async fn a_trial_runs_no_programs() {
    let test = "import { assert, test, trial } from 'xs/test'; import g from './g.ts';
        test('a', async () => { const { error } = await trial(g);
          assert(error?.message.includes('a trial runs no programs'), error?.message); });";
    let module = "export default { permissions: { run: ['true'] },
        run(ctx) { ctx.spawn('true'); } };";
    let tested = tested(&[("generators/g.test.ts", test), ("generators/g.ts", module)]).await;
    assert_eq!(errors(&tested), [""], "{tested:?}");
}

/// However far apart the times are, no time is spent waiting.
#[tokio::test]
async fn a_daily_task_takes_no_days() {
    let tested = tested(&[
        (
            "generators/g.test.ts",
            r#"import { assertEquals, test } from "xs/test";
import { trial } from "xs/test";
import g from "./g.ts";
test("ten days", async () => {
  const { out, error } = await trial(g, { now: "2026-01-01T12:00:00Z", take: 10 });
  assertEquals(error, undefined);
  assertEquals(out.map((frame) => frame.meta.at.slice(8, 10)), ["02", "03", "04", "05", "06", "07", "08", "09", "10", "11"]);
});
"#,
        ),
        (
            "generators/g.ts",
            r#"import { generator } from "xs";
export default generator({ async *run(ctx) {
  for await (const at of ctx.cron("0 6 * * *", "UTC")) yield { at: at.toISOString() };
} });
"#,
        ),
    ])
    .await;
    assert_eq!(errors(&tested), [""], "{tested:?}");
}

/// However much the generator has yielded, and even if it has failed, before it is told to stop.
#[tokio::test]
async fn no_more_is_taken_of_a_generator_than_is_wanted() {
    let tested = tested(&[
        (
            "generators/g.test.ts",
            r#"import { assertEquals, test, trial } from "xs/test";
import g from "./g.ts";
for (const take of [0, 1, 3, 500]) test(`the first ${take}`, async () => {
  const { out, error } = await trial(g, { take });
  assertEquals(error, undefined);
  assertEquals(out.map((frame) => frame.meta.n), Array.from({ length: take }, (_, n) => n));
});
test("all", async () => {
  const { out, error } = await trial(g, { take: 501 });
  assertEquals([out.length, error?.message], [500, "Error: no more"]);
});
"#,
        ),
        (
            "generators/g.ts",
            r#"import { generator } from "xs";
export default generator({ async *run() {
  for (let n = 0; n < 500; n++) yield { n };
  throw new Error("no more");
} });
"#,
        ),
    ])
    .await;
    assert!(errors(&tested).iter().all(String::is_empty), "{tested:?}");
}

/// Requests of a module to its store, its network and its clock.
const ASKS: &str = r#"import { command } from "xs";
const name = (error: any) => error.name;
const cases: Record<string, (ctx: any) => Promise<unknown>> = {
  async last(ctx) {
    for (const n of [1, 2, 3]) await ctx.append("a", { meta: { n }, ttl: "last:2" });
    const seen = [];
    for await (const frame of ctx.read({ topics: "a" })) seen.push(frame.meta.n);
    return seen;
  },
  async follow(ctx) {
    const next = ctx.read({ topics: "b", follow: true, new: true })[Symbol.asyncIterator]().next();
    await ctx.append("a", {});
    await ctx.append("b", { meta: { n: 1 } });
    return (await next).value.meta.n;
  },
  async newest(ctx) {
    await ctx.append("e", {});
    await ctx.append("e", { ttl: "ephemeral" });
    return await ctx.append("e", { expect: { last: "none" } }).then(() => "stored", name);
  },
  async key(ctx) {
    const first = await ctx.append("a", { meta: { n: 1 }, key: "k" });
    const again = await ctx.append("a", { meta: { n: 1 }, key: "k" });
    return [first.id === again.id, await ctx.append("a", { meta: { n: 2 }, key: "k" }).then(() => "stored", name)];
  },
  async date() {
    return [typeof (Date as any)(), new Date() instanceof Date && new Date().constructor === Date];
  },
  async url() {
    return (await fetch("https://x.y/z")).url;
  },
  async abort() {
    const giving = new AbortController();
    setTimeout(() => giving.abort("given up"), 60_000);
    return await fetch("https://x.y/z", { signal: giving.signal }).catch((reason) => reason);
  },
};
export default command({
  args: { what: "string" }, permissions: { net: ["x.y"] },
  async *run(call, ctx) { yield { told: await cases[call.args.what](ctx) }; },
});
"#;

const ASKED: &str = r#"import { assertEquals, test, trial } from "xs/test";
import c from "./c.ts";
const told = async (what: string, fetch?: any) => {
  const { out, error } = await trial(c, { args: { what }, fetch });
  assertEquals(error, undefined);
  return out.find((frame) => frame.topic === "c.recv")?.meta.told;
};
test("last:n leaves the newest", async () => assertEquals(await told("last"), [2, 3]));
test("a follower sees what is appended", async () => assertEquals(await told("follow"), 1));
test("an ephemeral frame is not the newest", async () => assertEquals(await told("newest"), "Conflict"));
test("a key is for one content", async () => assertEquals(await told("key"), [true, "Conflict"]));
test("the time as text", async () => assertEquals(await told("date"), ["string", true]));
test("an answer knows its address", async () => {
  assertEquals(await told("url", async () => new Response("")), "https://x.y/z");
});
test("a request that is given up ends", async () => {
  assertEquals(await told("abort", () => new Promise(() => {})), "given up");
});
"#;

#[tokio::test]
async fn a_trial_answers_as_a_server_does() {
    let tested = tested(&[("commands/c.test.ts", ASKED), ("commands/c.ts", ASKS)]).await;
    assert!(tested.error.is_none(), "{tested:?}");
    let errors: Vec<String> = errors(&tested).into_iter().filter(|e| !e.is_empty()).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// Regression test: the timer of a request that was answered late fired first, as nothing else was
/// pending.
const CLOCK: &str = r#"import { command, generator } from "xs";
const ask = async (ms: number, signal?: AbortSignal) => {
  const gone = new AbortController();
  const timer = setTimeout(() => gone.abort(new Error("too late")), ms);
  const answer = await fetch("https://x.y/z", { signal: signal ?? gone.signal });
  clearTimeout(timer);
  return await answer.text();
};
const cases: Record<string, (ctx: any) => Promise<unknown>> = {
  async answered() {
    return [await ask(10_000), await ask(10_000), Date.now() - performance.timeOrigin];
  },
  async signal() {
    const told = await ask(1e9, AbortSignal.timeout(10_000));
    const begun = Date.now(), signal = AbortSignal.timeout(86_400_000);
    const reason: any = await new Promise((done) => signal.addEventListener("abort", () => done(signal.reason)));
    return [told, Date.now() - begun, reason.name, reason instanceof DOMException];
  },
  async never() {
    return await ask(10_000).catch((error) => [error.message, Date.now() - performance.timeOrigin]);
  },
  async files(ctx) {
    let late = 0;
    setTimeout(() => late++, 1);
    const texts = await Promise.all(Array.from({ length: 50 }, () => ctx.fs.text("/etc/hostname")));
    return [texts.length, late];
  },
  async appended(ctx) {
    const first = await ctx.append("a", {});
    await new Promise((done) => setTimeout(done, 3_600_000));
    const second = await ctx.append("a", {}), third = await ctx.append("a", {});
    const recent = await Array.fromAsync(ctx.read({ topics: "a", since: "10m" }), (frame: any) => frame.id);
    return [second.time - first.time, +third.time - Date.now(), first.id < second.id && second.id < third.id,
      recent.length === 2 && recent[0] === second.id];
  },
  async deadline(ctx) {
    return [ctx.deadline - Date.now(), Temporal.Now.instant().epochMilliseconds - Date.now()];
  },
};
export default command({
  args: { what: "string" }, timeout: "5m", permissions: { net: ["x.y"], read: ["/etc"] },
  async *run(call, ctx) {
    const told = await cases[call.args.what](ctx);
    yield { told };
  },
});
"#;

const CLOCKED: &str = r#"import { assertEquals, test, trial } from "xs/test";
import c from "./c.ts";
const told = async (what: string, fetch?: any) => {
  const options = { args: { what }, fetch, files: { "/etc/hostname": "h" }, now: "2020-01-01T00:00:00Z" };
  const { out, error } = await trial(c, options);
  assertEquals(error, undefined);
  const frame = out.find((frame) => frame.topic === "c.recv");
  return [frame?.meta.told, frame?.time.getUTCFullYear()];
};
const slowly = async () => {
  await new Promise((done) => setTimeout(done, 100));
  return new Response("answer");
};
test("an answer that takes its time comes before a later timer", async () =>
  assertEquals(await told("answered", slowly), [["answer", "answer", 0], 2020]));
test("a signal has the time of the test", async () =>
  assertEquals(await told("signal", slowly), [["answer", 86_400_000, "TimeoutError", true], 2020]));
test("no answer ends by the timer", async () =>
  assertEquals(await told("never", () => new Promise(() => {})), [["too late", 10_000], 2020]));
test("files are read before time passes", async () => assertEquals(await told("files"), [[50, 0], 2020]));
test("frames have the time at which they are made", async () =>
  assertEquals(await told("appended"), [[3_600_000, 0, true, true], 2020]));
test("a deadline is of the same clock", async () => assertEquals(await told("deadline"), [[300_000, 0], 2020]));
"#;

#[tokio::test]
async fn all_times_of_a_trial_are_of_one_clock() {
    let tested = tested(&[("commands/c.test.ts", CLOCKED), ("commands/c.ts", CLOCK)]).await;
    assert!(tested.error.is_none(), "{tested:?}");
    assert_eq!(errors(&tested), [""; 6], "{tested:?}");
}

/// Regression test: a passing test did not show what the server would refuse.
#[tokio::test]
async fn a_request_needs_the_permission_that_it_needs_on_a_server() {
    let test = r#"import { assertEquals, test, trial } from "xs/test";
import c from "./c.ts";
const fetch = (url: string) => new Response(`of ${url}`);
for (const [url, told] of [
  ["https://x.y/z", "of https://x.y/z"],
  ["https://x.y:444/z", 'NotCapable: network access to x.y:444 is not allowed; add permissions: { net: ["x.y:444"] } to the definition'],
  ["http://a.x.y/", 'NotCapable: network access to a.x.y:80 is not allowed; add permissions: { net: ["a.x.y:80"] } to the definition'],
  ["http://127.0.0.1:9000/hook", "of http://127.0.0.1:9000/hook"],
  ["data:text/plain,at%20hand", "at hand"],
]) test(url, async () => {
  const { out, error } = await trial(c, { args: { url }, fetch });
  assertEquals([out[0]?.meta.told, error], [told, undefined]);
});
"#;
    let source = r#"import { command } from "xs";
export default command({
  args: { url: "string" }, permissions: { net: ["x.y:443", "127.0.0.1"] },
  async *run(call) {
    yield { told: await fetch(call.args.url).then((answer) => answer.text(), (error) => `${error.name}: ${error.message}`) };
  },
});
"#;
    let tested = tested(&[("commands/c.test.ts", test), ("commands/c.ts", source)]).await;
    assert!(tested.error.is_none(), "{tested:?}");
    assert_eq!(errors(&tested), [""; 5], "{tested:?}");
}
