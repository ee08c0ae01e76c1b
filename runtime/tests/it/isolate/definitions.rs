use serde_json::json;
use xs_engine::Ttl;
use xs_runtime::isolate::{FailureKind, LastResort, OnError, StartAt};

use super::*;

#[tokio::test]
async fn a_definition_arrives_whole() {
    let (_isolate, definition, _) = start(
        "handlers/it.ts",
        r#"import { handler } from "xs";
        export default handler({ about: "all of it", topics: ["a.b", "c.*"], start: "first", timeout: "2m",
          onError: { retry: 3, backoff: "500ms", then: "park" }, pulse: "10s", tick() {}, config: { k: 1 },
          permissions: { net: ["example.com:443"], read: ["/proc"], env: ["TOKEN"] },
          output: { topic: "made", ttl: "last:3", as: "body" }, run() {} });"#,
    )
    .await
    .unwrap();
    assert_eq!(definition.topics.unwrap().to_string(), "a.b,c.*");
    assert_eq!(definition.timeout, Duration::from_secs(120));
    assert_eq!(definition.start, StartAt::First);
    let OnError::Retry { tries, backoff, then, .. } = definition.on_error else { panic!() };
    assert_eq!((tries, backoff, then), (3, Duration::from_millis(500), LastResort::Park));
    assert_eq!(definition.pulse, Some(Duration::from_secs(10)));
    assert_eq!(definition.config, json!({ "k": 1 }));
    assert_eq!(definition.permissions.read, ["/proc"]);
    assert_eq!(definition.output.ttl, Ttl::parse("last:3").unwrap());
    assert!(definition.output.objects_as_body);
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn what_is_wrong_with_one_is_named() {
    for (entry, source, want) in [
        ("handlers/it.js", "export const a = 1;", "no default export"),
        ("handlers/it.js", "export default {};", "no run function"),
        ("handlers/it.js", "export default { run() {} };", "a handler needs topics"),
        ("handlers/it.js", "export default { run() {}, topics: 7 };", "topics must be a pattern"),
        ("handlers/it.js", "export default { run() {}, topics: 'a b' };", "may hold only"),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', topic: 'b' };",
            "a handler has no option topic; did you mean topics?",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', migrat(old) { return old; } };",
            "a handler has no option migrat; did you mean migrate?",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', onError: () => 'skip' };",
            "onError is \"unregister\", \"skip\", \"park\" or",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', state: () => ({}) };",
            "state is a function",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', timeout: () => 1 };",
            "timeout is a function; use milliseconds",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: () => 'a' };",
            "topics is a function; give its result instead",
        ),
        (
            "commands/it.js",
            "export default { run() {}, config: () => ({}) };",
            "config is a function; give its result instead",
        ),
        (
            "commands/it.js",
            "export default { run() {}, concurrency() {} };",
            "concurrency: invalid type: string \"a function\"",
        ),
        (
            "commands/it.js",
            "export default { run() {}, helper: class {} };",
            "a command has no option helper; there are",
        ),
        (
            "generators/it.js",
            "export default { run() {}, sometimes: 1 };",
            "there are about, timeout, config, permissions, output, duplex",
        ),
        (
            "commands/it.js",
            "export default { run() {}, permissions: { net: 'a.example' } };",
            "permissions.net: invalid type: string \"a.example\", expected an array",
        ),
        (
            "commands/it.js",
            "export default { run() {}, permissions: { nets: [] } };",
            "did you mean net?",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', timeout: '1 minute' };",
            "\"500ms\"",
        ),
        ("handlers/it.js", "export default { run() {}, topics: 'a', timeout: '1d' };", "at most"),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', start: 'old' };",
            "start must be \"new\"",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', onError: 'ignore' };",
            "onError is",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', onError: { retry: 1, than: 'park' } };",
            "a handler has no option than; there are retry, backoff, max, then",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', onError: { retry: 1, then: 'parc' } };",
            "onError is \"unregister\"",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', start: { after: 'x', from: 'y' } };",
            "a handler has no option from; there are after",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', start: { before: 'x' } };",
            "a handler has no option before; there are after",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', state: new Map() };",
            "state is a Map",
        ),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', tick() {} };",
            "pulse and tick go together",
        ),
        (
            "generators/it.js",
            "export default { run() {}, topics: 'a' };",
            "topics belongs to a handler",
        ),
        ("generators/it.js", "export default { run() {}, migrate() {} };", "migrate belongs to"),
        ("commands/it.js", "export default { run() {}, duplex: true };", "duplex belongs to"),
        (
            "handlers/it.js",
            "export default { run() {}, topics: 'a', onCrash: 'retry' };",
            "onCrash",
        ),
        ("commands/it.js", "export default { run() {}, onCrash: 'again' };", "`fail` or `retry`"),
        (
            "commands/it.js",
            "export default { run() {}, isolation: 'process' };",
            "a command has no option isolation; write isolation = \"process\" below \
             [modules.NAME] in xs.toml",
        ),
        (
            "generators/it.js",
            "export default { run() {}, output: { topic: 'xs.a' } };",
            "must not begin with xs.",
        ),
        ("commands/it.js", "export default { run() {}, args: { a: 'int' } };", "args.a is \"int\""),
        (
            "commands/it.js",
            "export default { run() {}, concurrency: 0 };",
            "concurrency must be between",
        ),
    ] {
        let error = start(entry, source).await.err().unwrap_or_else(|| panic!("{source}"));
        assert!(error.message.contains(want), "{source}: {error}");
        assert_eq!(error.kind, FailureKind::Definition, "{source}");
    }
    let source = "export default { run() {}, permissions: { run: ['ls'] } };";
    let error = start("generators/it.js", source).await.err().unwrap();
    assert!(error.message.contains("needs `xs serve --allow-run`"), "{error}");
    assert_eq!(error.kind, FailureKind::Permission);
}

#[tokio::test]
async fn typescript_keeps_its_places() {
    let source = "import { handler, type Frame } from \"xs\";\n\
        interface Meta { n: number }\n\
        type Unused = { a: string };\n\
        enum Level { Low = 1, High }\n\
        namespace Tools { export const twice = (n: number): number => n * 2; }\n\
        \n\
        class Thing { constructor(private readonly n: number) {} get(): number { return this.n; } }\n\
        \n\
        function fail(n: number): never {\n\
        \x20 throw new Error(`at ${n}` as string);\n\
        }\n\
        export default handler<{ n: number }>({\n\
        \x20 topics: \"in\",\n\
        \x20 run(frame: Frame, ctx) {\n\
        \x20   if ((frame.meta as Meta).n === 1) fail(frame.meta.n!);\n\
        \x20   return { high: Level.High, twice: Tools.twice(2), thing: new Thing(5).get() } satisfies object;\n\
        \x20 },\n\
        });\n";
    let (isolate, _, memory) = start("handlers/it.ts", source).await.unwrap();
    isolate.load_state(None).await.unwrap();
    let good = reply(&isolate, vec![input(&memory, &json!({ "n": 0 }))]).await;
    assert_eq!(meta(&good.outputs[0]), json!({ "high": 2, "twice": 4, "thing": 5 }));
    let bad = reply(&isolate, vec![input(&memory, &json!({ "n": 1 }))]).await;
    let error = bad.failure.unwrap().error;
    assert_eq!(
        (error.line, error.file.as_deref()),
        (Some(10), Some("handlers/it.ts")),
        "{error:?}"
    );
    let stack = error.stack.unwrap();
    let lines: Vec<&str> = stack.lines().collect();
    assert_eq!(lines[0], "Error: at 1");
    assert!(lines[1].starts_with("    at fail (handlers/it.ts:10:"), "{stack}");
    assert!(lines[2].contains("(handlers/it.ts:15:"), "{stack}");
    assert_eq!(lines.len(), 3, "{stack}");
    let error =
        start("handlers/it.ts", "const a: number = ;\nexport default {};").await.err().unwrap();
    assert_eq!((error.kind, error.line, error.column), (FailureKind::Syntax, Some(1), Some(19)));
}

/// An error that is caught and logged names the lines as the author wrote them, like one that ends
/// a run.
#[tokio::test]
async fn the_log_names_the_lines_as_written() {
    let source = "import { handler } from \"xs\";\n\
        interface Meta { n: number }\n\
        function fail(meta: Meta): never {\n\
        \x20 throw new Error(`at ${meta.n}`);\n\
        }\n\
        export default handler({ topics: \"in\",\n\
        \x20 async run(frame, ctx) {\n\
        \x20   try { fail(frame.meta as Meta); } catch (e) {\n\
        \x20     console.log((e as Error).stack); console.error({ e });\n\
        \x20     ctx.log.warn(\"x\", { stack: (e as Error).stack });\n\
        \x20   }\n\
        \x20   try { await ctx.get(\"no id\"); } catch (e) { console.log(e); }\n\
        \x20 } });\n";
    let (isolate, _, memory) = start("handlers/it.ts", source).await.unwrap();
    isolate.load_state(None).await.unwrap();
    reply(&isolate, inputs(&memory, 1)).await;
    let logs: Vec<_> = memory.logs().into_iter().map(|(_, line)| line).collect();
    for line in &logs {
        assert!(!line.contains("file:///") && !line.contains("ext:"), "{line}");
    }
    assert_eq!(logs.len(), 4);
    assert!(logs[0].starts_with("Error: at 0\n    at fail (handlers/it.ts:4:"), "{}", logs[0]);
    assert!(logs[0].contains("\n    at Object.run (handlers/it.ts:8:"), "{}", logs[0]);
    assert!(logs[1].contains("at fail (handlers/it.ts:4:"), "{}", logs[1]);
    assert!(logs[2].contains("0\\n    at fail (handlers/it.ts:4:"), "{}", logs[2]);
    let (_, fields) = logs[2].split_once(' ').unwrap();
    assert!(serde_json::from_str::<Value>(fields).unwrap()["stack"].is_string(), "{fields}");
    assert!(logs[3].contains("handlers/it.ts:12:"), "{}", logs[3]);
}

/// Types are replaced by spaces, so a stack that is stored instead of shown needs no translation.
#[tokio::test]
async fn a_stack_that_a_module_reads_names_the_lines_as_written() {
    let source = "import { handler, type Frame } from \"xs\";\n\
        interface Meta {\n  n: number;\n}\n\
        \n\
        function fail<T>(meta: T | Meta): never { throw new Error(\"no\" as string); }\n\
        export default handler<{ n: number }>({ topics: \"in\",\n\
        \x20 run(frame: Frame) {\n\
        \x20   try { fail<Meta>(frame.meta as Meta); } catch (e) { return { stack: e.stack }; }\n\
        \x20 } });\n";
    let (isolate, _, memory) = start("handlers/it.ts", source).await.unwrap();
    isolate.load_state(None).await.unwrap();
    let reply = reply(&isolate, inputs(&memory, 1)).await;
    let stack = meta(&reply.outputs[0])["stack"].as_str().unwrap().to_owned();
    assert!(stack.contains("at fail (file:///handlers/it.ts:6:49)"), "{stack}");
    assert!(stack.contains("at Object.run (file:///handlers/it.ts:9:11)"), "{stack}");
}

/// The error shows the import of the missing name, and what to do about CommonJS.
#[tokio::test]
async fn an_import_of_what_is_not_exported_is_shown() {
    let imports = "import { handler } from \"xs\";\nimport { fine } from \"../lib/fine.js\";\n\
                   import tiny from \"../lib/tiny.js\";\nexport default { topics: \"in\", run() {} };";
    for (tiny, is_commonjs) in
        [("module.exports = { tiny: 1 };", true), ("export const tiny = 1;", false)]
    {
        for entry in ["handlers/it.js", "handlers/it.ts"] {
            let types = if entry.ends_with(".ts") { "type Unused = string;\n" } else { "" };
            let source = format!("{types}{imports}\nvoid tiny; void fine; void handler;");
            let fine = "export const fine = 1;";
            let files = [(entry, &*source), ("lib/fine.js", fine), ("lib/tiny.js", tiny)];
            let graph = Modules::new(&files).graph(entry).unwrap();
            let error = Isolate::start(spec(entry, graph), Memory::new()).await.err().unwrap();
            let line = if types.is_empty() { 3 } else { 4 };
            assert_eq!((error.kind, error.line), (FailureKind::Syntax, Some(line)), "{error}");
            assert_eq!(error.file.as_deref(), Some(entry));
            let shown = error.code_frame.unwrap();
            assert!(shown.contains(&format!(">    {line} | import tiny")), "{shown}");
            let told = error.message.contains(
                "; lib/tiny.js is CommonJS, as its module.exports shows: \
                 bundle it with --format=esm",
            );
            assert_eq!(told, is_commonjs, "{}", error.message);
        }
    }
}

#[test]
fn an_import_that_cannot_be_says_what_to_write() {
    for (specifier, want) in [
        ("../lib/tiny.mjs", "\"../lib/tiny.mjs\" ends in .mjs; rename it to .js"),
        ("../lib/tiny.mts", "\"../lib/tiny.mts\" ends in .mts; rename it to .ts"),
        ("../lib/tiny", "needs a file extension: .js, .ts or .json"),
        ("XS", "there is no \"XS\"; did you mean \"xs\"?"),
        ("lodash", "npx esbuild lodash"),
    ] {
        let source = format!("import a from \"{specifier}\"; export default {{}};");
        let error =
            Modules::new(&[("handlers/it.js", &source)]).graph("handlers/it.js").unwrap_err();
        assert!(error.message.contains(want), "{specifier}: {error}");
    }
}

/// A file is found whatever its name is, and errors show that name.
#[tokio::test]
async fn a_file_may_have_any_name() {
    let modules = Modules::new(&[
        (
            "handlers/it.ts",
            "import { a } from \"../lib/my file.ts\"; import b from \"../lib/gr\u{f6}\u{df}e.json\"; \
             import { c } from \"../lib/100% %20.js\"; import d from \"../lib/a b?c#d.json\" with { type: \"json\" };\n\
             export default { topics: \"in\", run: () => ({ a: a(), b, c, d }) };",
        ),
        (
            "lib/my file.ts",
            "export const a = (fail?: boolean): number => { if (fail) throw new Error(\"no\"); return 1; };",
        ),
        ("lib/gr\u{f6}\u{df}e.json", "\u{feff}[2]"),
        ("lib/100% %20.js", "import { a } from \"./my file.ts\"; export const c = a();"),
        ("lib/a b?c#d.json", "4"),
        (
            "handlers/not well.ts",
            "import { a } from \"../lib/my file.ts\"; a(true); export default {};",
        ),
    ]);
    let graph = modules.graph("handlers/it.ts").unwrap();
    let memory = Memory::new();
    let (isolate, _) = Isolate::start(spec("handlers/it.ts", graph), memory.clone()).await.unwrap();
    isolate.load_state(None).await.unwrap();
    let reply = reply(&isolate, inputs(&memory, 1)).await;
    assert_eq!(meta(&reply.outputs[0]), json!({ "a": 1, "b": [2], "c": 1, "d": 4 }));
    let graph = modules.graph("handlers/not well.ts").unwrap();
    let error = Isolate::start(spec("handlers/it.ts", graph), memory).await.err().unwrap();
    assert_eq!(error.file.as_deref(), Some("lib/my file.ts"), "{error:?}");
    let stack = error.stack.unwrap();
    assert!(stack.contains("handlers/not well.ts:1:"), "{stack}");
}

/// Regression test: the function was left out, and had no effect.
#[tokio::test]
async fn a_function_inside_of_options_is_refused() {
    for (fields, path) in [
        ("permissions: { net: [() => 'a'] },", "permissions.net[0]"),
        ("config: { rates: { eur: (x) => x } },", "config.rates.eur"),
        ("onError: { retry: () => 3 },", "onError.retry"),
        ("output: { ttl() {} },", "output.ttl"),
    ] {
        let source = format!("export default {{ topics: 'in', {fields} run() {{}} }};");
        let error = start("handlers/it.js", &source).await.err().unwrap();
        assert_eq!(error.kind, FailureKind::Definition, "{error:?}");
        assert!(error.message.contains(&format!("{path} is a function; give its")), "{error}");
    }
    for (call, path) in [
        ("ctx.read({ limit: () => 1 }).next()", "read(): limit"),
        ("ctx.read({ topics: ['a'], own: { of: [Symbol('s')] } }).next()", "read(): own.of[0]"),
        ("ctx.call('c', { args: { of: [1, { f() {} }] } }).next()", "call(): args.of[1].f"),
    ] {
        let failed = super::web::eval(&format!("await {call}; return {{}};")).await;
        let failed = failed["failed"].as_str().unwrap();
        assert!(failed.contains("TypeError") && failed.contains(path), "{failed}");
    }
    let body = "try { await ctx.append('a', { expect: { last() {} } }); } catch (error) { yield { a: error.message }; } \
        try { ctx.spawn('a', [], { env: { A: () => 1 } }); } catch (error) { yield { b: error.message }; }";
    let seen = super::reach::generate(body, "", |_| {}).await;
    let text = "is a function; give its result instead";
    assert_eq!(seen[0]["a"], format!("append(): expect.last {text}"));
    assert_eq!(seen[1]["b"], format!("spawn(): env.A {text}"));
}

/// Invalid JSON is refused, with the position of the error.
#[test]
fn wrong_json_is_shown() {
    let modules = Modules::new(&[
        (
            "handlers/it.js",
            "import a from \"../lib/a.json\"; export default { topics: \"in\", run() {} };",
        ),
        ("lib/a.json", "{\n  \"a\": 1,\n  \"b\": x\n}\n"),
    ]);
    let error = modules.graph("handlers/it.js").err().unwrap();
    let place = (error.kind, error.file.as_deref(), error.line, error.column);
    assert_eq!(place, (FailureKind::Syntax, Some("lib/a.json"), Some(3), Some(8)), "{error:?}");
    assert!(error.code_frame.unwrap().contains(">    3 |   \"b\": x"));
}

#[tokio::test]
async fn a_graph_is_its_sources() {
    let modules = Modules::new(&[
        (
            "handlers/it.ts",
            "import { a } from \"../lib/a.ts\"; import data from \"../lib/d.json\";\n\
            import typed from \"../lib/t.json\" with { type: \"json\" }; import type { T } from \"../lib/types.ts\";\n\
            export default { topics: \"in\", run: async () => ({ a, data, typed, late: (await import(\"../lib/late.js\")).late }) };",
        ),
        ("lib/a.ts", "export const a: number = 1;"),
        ("lib/d.json", "{\"d\": [1]}"),
        ("lib/t.json", "[2]"),
        ("lib/late.js", "export const late = import.meta.url;"),
        ("lib/types.ts", "export type T = string;"),
    ]);
    let graph = modules.graph("handlers/it.ts").unwrap();
    let files: Vec<&str> = graph.files().collect();
    assert_eq!(files, ["handlers/it.ts", "lib/a.ts", "lib/d.json", "lib/late.js", "lib/t.json"]);
    let kept = ModuleGraph::from_bytes(&graph.to_bytes()).unwrap();
    assert_eq!(kept.hash(), graph.hash());
    let memory = Memory::new();
    let (isolate, _) = Isolate::start(spec("handlers/it.ts", kept), memory.clone()).await.unwrap();
    isolate.load_state(None).await.unwrap();
    let reply = reply(&isolate, inputs(&memory, 1)).await;
    let want = json!({ "a": 1, "data": { "d": [1] }, "typed": [2], "late": "file:///lib/late.js" });
    assert_eq!(meta(&reply.outputs[0]), want);
    std::fs::write(modules.0.path().join("lib/a.ts"), "export const a: number = 2;").unwrap();
    assert_ne!(modules.graph("handlers/it.ts").unwrap().hash(), graph.hash());
    assert!(ModuleGraph::from_bytes(b"{}").is_err());
}
