//! The shipped types, checked by the TypeScript compiler in strict mode: it must accept the
//! examples, the modules of the documentation and what the tests of modules use, and refuse
//! deliberate mistakes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use xs_runtime::host::editor;

/// What must be accepted.
const GOOD: &str = r#"
import { command, frame, generator, handler, lines, Park, Retry, sse } from "xs";
export const a = handler({
  topics: ["a", "b.*"], state: { n: 0 }, start: { after: "x" }, config: { k: 1 },
  migrate: (old: any) => ({ n: Number(old) }),
  onError: { retry: 3, backoff: "1s", then: "park" },
  async run(f, ctx) {
    ctx.state.n += ctx.attempt + ctx.config.k;
    ctx.append("c", { meta: { of: f.id }, ttl: "last:3" });
    if (f.offset === undefined) throw new Retry("later", { after: "2m" });
    for await (const piece of f.stream()) piece.byteLength;
    return [frame({ json: [1] }), frame({ topic: "d", body: new Uint8Array(1) })];
  },
  pulse: "10s", tick: (ctx) => ({ n: ctx.state.n }),
});
export const b = generator({
  duplex: true, permissions: { net: ["x.y:443"], read: ["/a"], run: ["ls"], env: ["A"] },
  async *run(ctx) {
    for await (const f of ctx.input) yield f.meta;
    for await (const d of ctx.cron("* * * * *", "UTC")) yield { at: d.getTime() };
    for await (const { path, kind } of ctx.watch("/a")) if (kind === "create") yield path;
    for await (const m of ctx.socket("wss://x.y", { protocols: ["a"] })) yield m;
    const child = ctx.spawn("ls", ["-l"], { stdin: "text" });
    for await (const line of lines(child.stdout)) yield line;
    yield { code: (await child.status).code };
    await ctx.append("e", { body: child.stderr, key: "k", expect: { last: "none", of: ["e"] } });
  },
});
export const c = command({
  args: { url: "string", n: "number?" }, concurrency: 3, onCrash: "retry",
  async *run(call, ctx) {
    const n: number | undefined = call.args.n;
    yield* sse(await fetch(call.args.url, { signal: ctx.signal }));
    yield { n, left: ctx.deadline.getTime(), hash: await ctx.blob.put(new Blob(["x"])) };
    throw new Park("no");
  },
});
"#;

/// Each line alone must be refused.
const BAD: [&str; 23] = [
    "handler({ run() {} });",
    "handler({ topics: 'a', run(f) { return 7; } });",
    "handler({ topics: 'a', state: { n: 0 }, run(f, ctx) { ctx.state.m; } });",
    "handler({ topics: 'a', state: { n: 0 }, run(f, ctx) { ctx.state = 'x'; } });",
    "handler({ topics: 'a', state: { n: 0 }, migrate: () => ({ m: 0 }), run() {} });",
    "handler({ topics: 'a', run(f, ctx) { ctx.append('a', { body: new Blob([]) }); } });",
    "handler({ topics: 'a', run(f, ctx) { f.meta = {}; } });",
    "handler({ topics: 'a', onError: 'ignore', run() {} });",
    "handler({ topics: 'a', start: 'old', run() {} });",
    "handler({ topics: 'a', ttl: 'last:2', run() {} });",
    "handler({ topics: 'a', run(f, ctx) { ctx.every('1s'); } });",
    "handler({ topics: 'a', timeout: '1 minute', run() {} });",
    "generator({ async *run(ctx) { yield 7; } });",
    "generator({ async *run(ctx) { ctx.state; } });",
    "generator({ topics: 'a', async *run() {} });",
    "generator({ async *run(ctx) { for await (const x of ctx.every('soon')); } });",
    "generator({ permissions: { write: ['/'] }, async *run() {} });",
    "command({ args: { a: 'date' }, run() {} });",
    "command({ args: { a: 'string' }, run(call) { call.args.b; } });",
    "command({ args: { a: 'string?' }, run(call) { call.args.a.length; } });",
    "command({ onCrash: 'again', run() {} });",
    "frame({ body: 7 });",
    "new Retry('x', { after: 'soon' });",
];

/// The compiler, if there is one: a path in `XS_TSC`, or the one that scripts/setup installs.
fn compiler() -> Option<PathBuf> {
    let named = std::env::var_os("XS_TSC").map(PathBuf::from);
    // This binary is in release/deps of the same directory.
    let this = std::env::current_exe().unwrap();
    let own = this.ancestors().nth(3).unwrap().join("tools/node_modules/.bin/tsc");
    named.into_iter().chain([own]).find(|tsc| tsc.is_file())
}

/// Checks the files of a directory; returns the compiler's output.
fn check(tsc: &Path, dir: &Path) -> String {
    editor::keep_current(dir).unwrap();
    let run = Command::new(tsc).args(["-p", "."]).current_dir(dir).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert_eq!(run.status.success(), said.is_empty(), "{said}");
    said
}

/// Reports that a check cannot run here. Not through the print macros, whose output is captured
/// when a test passes.
fn skip(what: &str) {
    let text = format!("skipped: {what}: no tsc (scripts/setup installs it where npm is)\n");
    std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes()).unwrap();
}

#[test]
fn the_types_accept_what_works_and_refuse_what_does_not() {
    let Some(tsc) = compiler() else {
        skip("the types of modules");
        return;
    };
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("handlers")).unwrap();
    fs::write(dir.path().join("handlers/good.ts"), GOOD).unwrap();
    assert_eq!(check(&tsc, dir.path()), "");
    for (number, line) in BAD.iter().enumerate() {
        let imports = "import { command, frame, generator, handler, Retry } from \"xs\";\n";
        let path = dir.path().join(format!("handlers/bad{number}.ts"));
        fs::write(
            path,
            format!("{imports}{line}\nvoid [command, frame, generator, handler, Retry];\n"),
        )
        .unwrap();
    }
    let said = check(&tsc, dir.path());
    for (number, line) in BAD.iter().enumerate() {
        assert!(said.contains(&format!("handlers/bad{number}.ts(2,")), "accepted: {line}\n{said}");
    }
}

#[test]
fn the_examples_are_well_typed() {
    let Some(tsc) = compiler() else {
        skip("the types of the examples");
        return;
    };
    let dir = TempDir::new().unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/modules");
    for kind in ["generators", "handlers", "commands", "lib"] {
        fs::create_dir(dir.path().join(kind)).unwrap();
        for entry in fs::read_dir(examples.join(kind)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(kind).join(path.file_name().unwrap())).unwrap();
        }
    }
    assert_eq!(check(&tsc, dir.path()), "");
}

/// The modules of a page: code blocks that name their file, and indented ones that begin with an
/// import.
fn modules_of(page: &str) -> Vec<String> {
    let mut modules = Vec::new();
    let mut rest = page.lines();
    while let Some(line) = rest.next() {
        let mut until = |end: &str| {
            let lines: Vec<_> = rest.by_ref().take_while(|line| *line != end).collect();
            lines.join("\n")
        };
        if line.starts_with("```ts ") {
            modules.push(until("```"));
        } else if line.starts_with("    import {") && line.ends_with("\"xs\";") {
            modules.push(format!("{line}\n{}\n}});\n", until("    });")));
        }
    }
    modules
}

#[test]
fn the_modules_of_the_documentation_are_well_typed() {
    let Some(tsc) = compiler() else {
        skip("the types of the documentation");
        return;
    };
    for (name, least, broken) in [("tutorial.md", 5, 1), ("modules.md", 3, 0)] {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        let modules = modules_of(&fs::read_to_string(page).unwrap());
        assert!(modules.len() >= least, "{name}: {modules:?}");
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("lib")).unwrap();
        // One shows the result of a mistake, and is not valid TypeScript.
        let (wrong, right): (Vec<_>, Vec<_>) =
            modules.iter().partition(|source| source.ends_with("{ return } "));
        assert_eq!(wrong.len(), broken, "{name}");
        for (number, source) in right.iter().enumerate() {
            fs::write(dir.path().join(format!("lib/module{number}.ts")), source).unwrap();
        }
        assert_eq!(check(&tsc, dir.path()), "", "{name}: {right:#?}");
    }
}
