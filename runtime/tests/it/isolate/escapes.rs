//! Attempts to escape that fail: imports from outside the modules directory, files and addresses
//! that were not granted, globals that lead to the engine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use xs_runtime::isolate::FailureKind;

use super::web::eval_with;
use super::*;

const OUT: &str = "outside the modules directory";
const FOREIGN: &str = "is not allowed";
const ENDING: &str = "needs a file extension";
const MISSING: &str = "there is no such file";

/// Specifiers, each with the error.
const IMPORTS: [(&str, &str); 44] = [
    ("../../secret.js", OUT),
    ("../../../../../../../../etc/passwd.js", OUT),
    ("./../../secret.js", OUT),
    ("./a/../../../secret.js", OUT),
    ("../lib/link.js", OUT),
    ("../lib/linked/secret.js", OUT),
    ("../lib/absolute.js", OUT),
    ("../lib/up.js", OUT),
    ("../lib/root/proc/self/environ.js", OUT),
    ("../lib/self.js", OUT),
    ("/etc/passwd.js", FOREIGN),
    ("//etc/passwd.js", FOREIGN),
    ("file:///etc/passwd.js", FOREIGN),
    ("file:///handlers/other.js", FOREIGN),
    ("FILE:///etc/passwd.js", FOREIGN),
    ("http://x.y/a.js", FOREIGN),
    ("https://x.y/a.js", FOREIGN),
    ("HTTPS://x.y/a.js", FOREIGN),
    ("data:text/javascript,1", FOREIGN),
    ("blob:null/1", FOREIGN),
    ("npm:left-pad", FOREIGN),
    ("npm:/left-pad@1", FOREIGN),
    ("node:fs", FOREIGN),
    ("jsr:@std/path", FOREIGN),
    ("ext:core/ops", FOREIGN),
    ("ext:core/mod.js", FOREIGN),
    ("ext:xs_runtime/api.js", FOREIGN),
    ("ext:deno_web/00_url.js", FOREIGN),
    ("checkin:a", FOREIGN),
    ("xs:module", FOREIGN),
    ("about:blank", FOREIGN),
    ("wasm:a", FOREIGN),
    ("lodash", "npx esbuild lodash --bundle"),
    ("@scope/name", "npx esbuild @scope/name --bundle"),
    ("xs2", "npx esbuild xs2 --bundle"),
    (".", "npx esbuild"),
    ("..", "npx esbuild"),
    ("./missing.js", MISSING),
    ("./%2e%2e/%2e%2e/secret.js", MISSING),
    ("./..%2f..%2fsecret.js", MISSING),
    ("./..\\..\\secret.js", MISSING),
    ("./noending", ENDING),
    ("./native.node", ENDING),
    ("../lib/directory.js", "it is not a file"),
];

/// A directory with links that lead out of it.
fn tempting(entry: &str, source: &str) -> (Modules, TempDir) {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret.js"), "export default 1;").unwrap();
    let modules = Modules::new(&[(entry, source), ("lib/a.js", ""), ("lib/directory.js/b.js", "")]);
    let lib = modules.0.path().join("lib");
    let secret = outside.path().join("secret.js");
    symlink(&secret, lib.join("link.js")).unwrap();
    symlink(outside.path(), lib.join("linked")).unwrap();
    symlink(lib.join("a.js"), lib.join("absolute.js")).unwrap();
    symlink("../../../../../../../../../../etc/hostname", lib.join("up.js")).unwrap();
    symlink("/proc/self/root", lib.join("root")).unwrap();
    symlink("/proc/self/exe", lib.join("self.js")).unwrap();
    (modules, outside)
}

#[test]
fn no_import_leads_out_of_the_directory() {
    let literal = |specifier: &str| json!(specifier).to_string();
    for (specifier, want) in IMPORTS {
        let specifier = literal(specifier);
        for statement in [
            format!("import a from {specifier};"),
            format!("import {specifier};"),
            format!("export * from {specifier};"),
            format!("export {{ a }} from {specifier};"),
            format!("import a from {specifier} with {{ type: \"json\" }};"),
        ] {
            let source = format!("{statement}\nexport default {{ run() {{}} }};");
            let (modules, _outside) = tempting("generators/it.js", &source);
            let error = modules.graph("generators/it.js").unwrap_err();
            assert!(error.message.contains(want), "{statement} {error}");
            assert_eq!((error.kind, error.line), (FailureKind::Import, Some(1)), "{statement}");
        }
    }
}

/// The error names the file that other tools would resolve to, unless it lies outside the
/// directory.
#[test]
fn an_import_with_the_other_ending_is_told_the_file() {
    for (specifier, named) in [("../lib/b.js", true), ("../lib/gone.ts", false)] {
        let source = format!("import a from {};\nexport default a;", json!(specifier));
        let (modules, outside) = tempting("generators/it.js", &source);
        let lib = modules.0.path().join("lib");
        fs::write(lib.join("b.ts"), "export default 1;").unwrap();
        symlink(outside.path().join("secret.js"), lib.join("gone.js")).unwrap();
        let error = modules.graph("generators/it.js").unwrap_err();
        assert!(error.message.contains(MISSING), "{error}");
        assert_eq!(error.message.contains("but there is lib/b.ts"), named, "{error}");
        assert!(!error.message.contains("gone.js"), "{error}");
    }
}

/// Not at run time either, whatever the specifier.
#[tokio::test]
async fn no_dynamic_import_leads_out_of_the_directory() {
    let more = ["handlers/it.js", "\0", "./a\0.js", "xs\0", "", " xs", "xs ", "XS"];
    let all: Vec<&str> = IMPORTS.iter().map(|(specifier, _)| *specifier).chain(more).collect();
    let source = format!(
        "const all = {}; export default {{ topics: 'in', async run() {{ const got = []; for (const s of all) \
         for (const how of [undefined, {{ with: {{ type: 'json' }} }}, {{ with: {{ type: 'text' }} }}, {{ with: {{ type: 'bytes' }} }}]) \
         try {{ await import(s + '', how); got.push(s); }} catch (e) {{ if (!(e instanceof Error)) got.push(String(e)); }} return {{ got }}; }} }};",
        json!(all)
    );
    let (modules, _outside) = tempting("handlers/it.js", &source);
    let spec = spec("handlers/it.js", modules.graph("handlers/it.js").unwrap());
    let memory = Memory::new();
    let (isolate, _) = Isolate::start(spec, memory.clone()).await.unwrap();
    isolate.load_state(None).await.unwrap();
    let reply = soon(reply(&isolate, inputs(&memory, 1))).await;
    assert_eq!(meta(&reply.outputs[0]), json!({ "got": [] }));
}

/// A link that is switched back and forth while it is followed never leads out.
#[test]
fn a_link_that_turns_is_never_followed_out() {
    let (modules, outside) = tempting("handlers/it.js", "import a from '../lib/turns/secret.js';");
    let lib = modules.0.path().join("lib");
    fs::create_dir(lib.join("inside")).unwrap();
    fs::write(lib.join("inside/secret.js"), "export default 'inside';").unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| turn(&lib.join("turns"), outside.path(), &over));
        for _ in 0..10_000 {
            if let Ok(graph) = modules.graph("handlers/it.js") {
                let kept = String::from_utf8(graph.to_bytes()).unwrap();
                assert!(kept.contains("'inside'"), "{kept}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn turn(link: &Path, outside: &Path, over: &AtomicBool) {
    let next = link.with_extension("next");
    for round in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let to = if round % 2 == 0 { Path::new("inside") } else { outside };
        symlink(to, &next).unwrap();
        fs::rename(&next, link).unwrap();
    }
}

#[test]
fn graphs_have_their_limits() {
    let many: String = (0..256).map(|n| format!("import './m{n}.js';")).collect();
    let modules = Modules::new(&[("handlers/it.js", &many)]);
    for n in 0..256 {
        fs::write(modules.0.path().join(format!("handlers/m{n}.js")), "").unwrap();
    }
    let error = modules.graph("handlers/it.js").unwrap_err();
    assert!(error.message.contains("more than 256 files"), "{error}");
    fs::write(modules.0.path().join("handlers/big.js"), " ".repeat(1024 * 1024 + 1)).unwrap();
    let error = modules.graph("handlers/big.js").unwrap_err();
    assert!(error.message.contains("larger than 1048576 bytes"), "{error}");
    fs::write(modules.0.path().join("handlers/big.js"), " ".repeat(1024 * 1024)).unwrap();
    modules.graph("handlers/big.js").unwrap();
    let ring = Modules::new(&[("lib/a.js", "import './b.js';"), ("lib/b.js", "import './a.js';")]);
    assert_eq!(ring.graph("lib/a.js").unwrap().files().count(), 2);
}

/// Only the end of a path counts, not the way to it.
#[tokio::test]
async fn no_path_leads_to_what_was_not_granted() {
    let dir = TempDir::new().unwrap();
    let (named, other) = (dir.path().join("named"), dir.path().join("other"));
    fs::create_dir_all(named.join("below")).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(named.join("a.txt"), "a").unwrap();
    fs::write(other.join("secret.txt"), "secret").unwrap();
    fs::create_dir(dir.path().join("named-too")).unwrap();
    fs::write(dir.path().join("named-too/b.txt"), "secret").unwrap();
    symlink(other.join("secret.txt"), named.join("link.txt")).unwrap();
    symlink(&other, named.join("linked")).unwrap();
    symlink("/proc/self/root", named.join("root")).unwrap();
    let at = |path: &Path| path.display().to_string();
    let (named_text, other_text) = (at(&named), at(&other));
    let paths = [
        format!("{other_text}/secret.txt"),
        format!("{named_text}/../other/secret.txt"),
        format!("{named_text}/below/../../other/secret.txt"),
        format!("{named_text}/link.txt"),
        format!("{named_text}/linked/secret.txt"),
        format!("{named_text}/linked"),
        format!("{named_text}/root/etc/hostname"),
        format!("{named_text}-too/b.txt"),
        format!("{named_text}/./../named-too/b.txt"),
        "/etc/hostname".to_owned(),
        "/proc/self/environ".to_owned(),
        "/proc/1/environ".to_owned(),
        "/proc/self/fd/0".to_owned(),
        "/dev/stdin".to_owned(),
        "relative.txt".to_owned(),
        "../../../etc/hostname".to_owned(),
        "".to_owned(),
        "\0".to_owned(),
        format!("{named_text}\0/../other"),
    ];
    let body = format!(
        "const got = []; for (const path of {}) for (const how of ['text', 'bytes', 'list', 'stat']) \
         try {{ await ctx.fs[how](path); got.push([how, path]); }} catch {{}} return {{ got, own: await ctx.fs.text('{named_text}/a.txt') }};",
        json!(paths)
    );
    let fields = format!("permissions: {{ read: ['{named_text}'] }}, timeout: '1m',");
    assert_eq!(eval_with(&body, &fields, |_| {}).await, json!({ "got": [], "own": "a" }));
    // A path that the operator denies cannot be read by naming a directory above it.
    let shut = |spec: &mut IsolateSpec| spec.allow.read_denied = vec![other.clone()];
    let body = format!(
        "const got = []; for (const path of ['{other_text}/secret.txt', '{named_text}/linked/secret.txt', '{other_text}']) \
         for (const how of ['text', 'list', 'stat']) try {{ await ctx.fs[how](path); got.push([how, path]); }} catch {{}} return {{ got }};"
    );
    let fields = format!("permissions: {{ read: ['{}', '/'] }},", at(dir.path()));
    assert_eq!(eval_with(&body, &fields, shut).await, json!({ "got": [] }));
}

#[tokio::test]
async fn no_address_stands_for_a_private_one() {
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fc00::1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[2002:c0a8:101::1]",
        "100.64.0.1",
        "224.0.0.1",
    ];
    let body = format!(
        "const got = []; for (const host of {}) {{ \
         try {{ await fetch(`http://${{host}}:9/`, {{ signal: AbortSignal.timeout(60_000) }}); got.push(host); }} \
         catch (e) {{ if (/refused|timed out|unreachable/i.test(e.message)) got.push(host + e.message); }} \
         const socket = new WebSocket(`ws://${{host}}:9/`); const said = []; socket.onerror = (e) => said.push(e.message); \
         await new Promise((done) => socket.onclose = done); if (/refused|timed out|unreachable|did not answer/i.test(said)) got.push(host + said); }} \
         return {{ got }};",
        json!(hosts)
    );
    let any = |spec: &mut IsolateSpec| {
        spec.allow = Allow { net_any: true, ..Allow::default() };
    };
    let seen = eval_with(&body, "permissions: { net: ['*'] }, timeout: '5m',", any).await;
    assert_eq!(seen, json!({ "got": [] }));
}

#[tokio::test]
async fn no_global_leads_to_the_engine() {
    let body = "const names = ['Deno', '__bootstrap', '__xs_boot', 'process', 'require', 'Atomics', 'SharedArrayBuffer', 'WebAssembly', 'gc', 'ShadowRealm']; \
        const makers = [(n) => globalThis[n], (n) => new Function('return typeof ' + n + ' === \"undefined\" ? undefined : ' + n)(), \
          (n) => (0, eval)('typeof ' + n + ' === \"undefined\" ? undefined : ' + n), (n) => Function.prototype.constructor('return this')()[n], \
          (n) => (async () => {}).constructor('return this')().then((g) => g[n]), (n) => Reflect.get(self, n), \
          (n) => (function () { return this; })?.call()?.[n], (n) => Object.getPrototypeOf(globalThis)?.[n]]; \
        const got = []; for (const name of names) for (const make of makers) try { if (await make(name) !== undefined) got.push(name); } catch {} \
        const ops = /op_[a-z]/; for (const key of Reflect.ownKeys(globalThis)) { const value = globalThis[key]; \
          if (value && ['object', 'function'].includes(typeof value)) for (const inner of Reflect.ownKeys(value)) if (ops.test(String(inner))) got.push(String(inner)); } \
        try { null.x; } catch (e) { if (/ext:/.test(e.stack)) got.push(e.stack); } return { got };";
    assert_eq!(eval_with(body, "timeout: '1m',", |_| {}).await, json!({ "got": [] }));
}
