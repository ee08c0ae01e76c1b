//! `xs eval`: a user's own JavaScript against a store.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;

use crate::support::{PATIENCE, Sandbox, output_within, signal, wait_within};

fn with_frames() -> Sandbox {
    let place = Sandbox::new();
    for n in 1..=3 {
        place.ok(&["append", "numbers", "--meta", &json!({ "n": n }).to_string(), "body"]);
    }
    place
}

#[test]
fn eval_prints_the_last_expression_by_its_type() {
    let place = with_frames();
    let eval = |code: &str| place.ok(&["eval", code]).text();
    for (code, printed) in [
        ("1/2", "0.5\n"),
        ("'text'", "text\n"),
        ("{ a: [1, null], b: 'x' }", "{\"a\":[1,null],\"b\":\"x\"}\n"),
        ("const n: number = 2; n ** 3", "8\n"),
        ("12345678901234567890n", "12345678901234567890\n"),
        ("undefined", ""),
        ("let a = 1", ""),
        ("null", "null\n"),
        ("[1, 2].values()", "1\n2\n"),
        ("new Map([['a', new Set([1n, 2])]])", "{\"a\":[\"1\",2]}\n"),
        ("new Map([[1, 2]])", "[[1,2]]\n"),
        ("[new RangeError('far')]", "[{\"name\":\"RangeError\",\"message\":\"far\"}]\n"),
        ("(await ctx.last('numbers')).meta", "{\"n\":3}\n"),
        ("let s = 0; for await (const f of ctx.read()) s += f.meta.n; s", "6\n"),
        ("import { lines } from 'xs'; lines(new Blob(['a\\nb']).stream())", "a\nb\n"),
        ("console.log('said', { x: 1 }); ctx.name", "said { x: 1 }\nthe script\n"),
    ] {
        assert_eq!(eval(code), printed, "{code}");
    }
    let bytes = place.ok(&["eval", "new Uint8Array([0, 255, 10])"]).out;
    assert_eq!(bytes, [0, 255, 10]);
    let frames = place.ok(&["eval", "ctx.read({ last: 2 })"]).json();
    assert_eq!(frames[1]["meta"], json!({ "n": 3 }));
    let warned = place.ok(&["eval", "console.error('aside'); 1"]);
    assert_eq!((warned.text().as_str(), warned.err.as_str()), ("1\n", "aside\n"));
}

#[test]
fn events_appended_by_eval_have_no_origin() {
    let place = with_frames();
    let code = "const f = await ctx.append('made.here', { meta: { by: 'eval' }, body: 'b' }); f.id";
    let id = place.ok(&["eval", code]).text();
    let frames = place.frames("made.");
    assert_eq!(frames[0]["id"], id.trim());
    assert_eq!((&frames[0]["body"], frames[0].get("origin")), (&json!("b"), None));
    let refused = place.xs(&["eval", "await ctx.append('xs.made', {})"]);
    assert_eq!(refused.code, 1, "{}", refused.err);
}

#[test]
fn eval_files_import_neighbours_and_errors_have_positions() {
    let place = with_frames();
    place.write("lib/double.ts", "export const double = (n: number): number => n * 2;\n");
    place.write(
        "scripts/sum.ts",
        "import { double } from \"../lib/double.ts\";\n\ninterface Sum { n: number }\n\
         const sum: Sum = { n: 0 };\nfor await (const f of ctx.read()) sum.n += double(f.meta.n);\nsum\n",
    );
    assert_eq!(place.ok(&["eval", "--file", "scripts/sum.ts"]).text(), "{\"n\":12}\n");
    assert_eq!(place.xs_with(&["eval", "-"], b"ctx.env.HOME").code, 0);
    assert_eq!(place.xs_with(&["eval"], b"1 + 1").text(), "2\n", "without code it is the input");
    place.write(
        "bad.ts",
        "type T = string;\nfunction f(x: T): never {\n  throw new RangeError(x);\n}\nf(\"no\")\n",
    );
    let thrown = place.xs(&["eval", "--file", "bad.ts"]);
    assert_eq!(thrown.code, 1);
    for part in
        ["RangeError: no", "bad.ts:3:9", ">    3 |   throw new RangeError(x);", "bad.ts:5:1"]
    {
        assert!(thrown.err.contains(part), "{part}: {}", thrown.err);
    }
    for (code, part) in [
        ("let a = ;", "[eval].ts:1:9"),
        ("import x from 'lodash'; x", "is a package"),
        ("import x from './none.ts'; x", "there is no such file"),
        ("export default 1", "cannot export"),
        ("throw 1", "threw 1"),
        ("for (;;) {}", "CPU time"),
        ("const a = []; for (;;) a.push(new Array(1e5).fill(a.length))", "memory"),
    ] {
        let run = place.xs(&["eval", code]);
        assert_eq!((run.code, run.err.contains(part)), (1, true), "{code}: {}", run.err);
    }
    assert_eq!(place.xs(&["eval", "--file", "none.ts"]).code, 1);
    let nowhere = Sandbox::new();
    assert_eq!(nowhere.xs(&["eval", "1"]).code, 5, "there is no store");
}

#[test]
fn eval_has_the_permissions_of_its_user() {
    let place = with_frames();
    let file = place.write("note.txt", "written");
    assert_eq!(place.ok(&["eval", "await ctx.fs.text('note.txt')"]).text(), "written\n");
    let code = format!("await ctx.fs.text({:?})", file.display().to_string());
    assert_eq!(place.ok(&["eval", &code]).text(), "written\n");
    let code =
        "new TextDecoder().decode(await new Response(ctx.spawn('echo', ['hi']).stdout).bytes())";
    assert_eq!(place.ok(&["eval", code]).text(), "hi\n\n");
    // Also at the top level of what it imports.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = BufReader::new(&stream).lines().map(Result::unwrap);
        assert!(head.take_while(|line| !line.is_empty()).count() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap();
        // Until the other side has received it.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    place.write("hi.ts", &format!("export const hi = await (await fetch({url:?})).text();"));
    assert_eq!(place.ok(&["eval", "import { hi } from './hi.ts'; hi"]).text(), "hi\n");
    server.join().unwrap();
    let own = place.xs(&["eval", "await ctx.fs.text('store/LOCK')"]);
    assert_eq!(own.code, 1, "the store's own files are nobody's");
    assert!(own.err.contains("not allowed"), "{}", own.err);
}

#[test]
fn call_runs_commands_of_a_server() {
    let place = Sandbox::new();
    place.write(
        "modules/commands/twice.ts",
        "export default { args: { n: 'number' }, run: (call) => ({ n: call.args.n * 2 }) };",
    );
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.command.twice.active", 1);
    let code = "for await (const f of ctx.call('twice', { args: { n: 21 } })) \
                if (f.topic === 'twice.recv') console.log(f.meta.n, f.cause.processor)";
    assert_eq!(place.ok(&["eval", code]).text(), "42 twice\n");
    assert!(server.stop().success());
}

#[test]
fn a_prompt_remembers_what_was_typed() {
    let place = with_frames();
    let typed = "const n: number = 2, { a, b: [c] } = { a: 1, b: [3] }\n\
                 function add(x) {\n  return x + n;\n}\n\
                 add(a) + c\n\
                 import { lines } from 'xs'\n\
                 typeof lines\n\
                 let f = await ctx.last('numbers')\n\
                 f.meta\n\
                 class P { q = 1 }\n\
                 new P()\n\
                 nothing.there\n\
                 _\n\
                 let n = 7; add(1)\n\
                 if (n === 7) {\n  var kept = n\n  let gone = n\n}\n\
                 for (var i = 0; i < 3; i++) for (var { length } of ['ab']);\n\
                 [kept, i, length, typeof gone]\n\
                 if (false) { var kept, nothing }\n\
                 [kept, nothing]\n";
    let run = place.xs_with(&["eval", "-i"], typed.as_bytes());
    let printed = "6\nfunction\n{ n: 3 }\nP { q: 1 }\nP { q: 1 }\n8\n\
                   [ 7, 3, 2, \"undefined\" ]\n[ 7, undefined ]\n";
    assert_eq!(run.text(), printed, "{}", run.err);
    assert_eq!(run.code, 1, "one of them failed");
    assert!(run.err.contains("nothing is not defined"), "{}", run.err);
    let lost = place.xs_with(&["eval", "-i"], b"let a = 1\nfor (;;) {}\ntypeof a\n");
    assert_eq!((lost.text().as_str(), lost.code), ("undefined\n", 1), "{}", lost.err);
    assert!(lost.err.contains("declarations are lost"), "{}", lost.err);
    let open = place.xs_with(&["eval", "-i"], b"f(\n");
    assert!(open.code == 1 && open.err.contains("incomplete"), "{}", open.err);
}

/// The stack reached down to the code that evaluates the line, and what was typed was named after
/// that code.
#[test]
fn a_prompt_shows_the_places_of_what_was_typed_and_none_of_xs() {
    let place = with_frames();
    let typed = "let one: number = 1; function add(n: string): never {\n  throw new RangeError('too ' + n);\n}\n\
                 let kept\n\
                 try { add('many') } catch (error) { kept = error }\n\
                 kept\n\
                 one; add('few')\n";
    let run = place.xs_with(&["eval", "-i"], typed.as_bytes());
    assert_eq!(run.code, 1, "the last line throws: {}", run.err);
    let stack = "RangeError: too many\n    at add ([prompt-1]:2:9)\n    at [prompt-3]:1:7\n";
    assert_eq!(run.text(), stack, "{}", run.err);
    for told in
        ["RangeError: too few", "[prompt-1]:2:9", "throw new RangeError", "at [prompt-5]:1:6"]
    {
        assert!(run.err.contains(told), "{told}: {}", run.err);
    }
    for own in ["ext:", "script.js", "(native)"] {
        assert!(!run.text().contains(own) && !run.err.contains(own), "{} {}", run.text(), run.err);
    }
}

#[test]
fn eval_fails_on_a_promise_that_cannot_settle() {
    let place = with_frames();
    for code in ["await new Promise(() => {})", "new Promise(() => {})"] {
        let mut eval = place.command(&["eval", &format!("console.log('before'); {code}")]);
        eval.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = output_within(eval.spawn().unwrap(), PATIENCE);
        assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(1), &b"before\n"[..]));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("nothing can settle"), "{said}");
    }
    // A late value is no such error, nor is an append that is still in progress.
    let late = "await new Promise((done) => setTimeout(done, 200)); await ctx.append('late'); 1";
    assert_eq!(place.ok(&["eval", late]).text(), "1\n");
    let unawaited = "for (let n = 0; n < 300; n++) ctx.append('many', { meta: { n } }); 2";
    assert_eq!(place.ok(&["eval", unawaited]).text(), "2\n");
}

#[test]
fn eval_ends_when_its_output_is_closed_or_on_a_signal() {
    let place = with_frames();
    let code = "for (let n = 1; ; n++) { console.log(n); await ctx.last(\"numbers\"); }";
    let script = format!("{} eval '{code}' | head -n 1", env!("CARGO_BIN_EXE_xs"));
    let mut shell = place.shell(&script);
    let child = shell.env("XS_ADDR", place.store()).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(output_within(child, PATIENCE).stdout, b"1\n");
    let code = "console.log('waits'); await new Promise((done) => setTimeout(done, 1e9))";
    let mut eval = place.command(&["eval", code]);
    let mut child = eval.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "waits\n");
    signal(&child, Signal::INT);
    assert_eq!(wait_within(&mut child, PATIENCE).code(), Some(130));
}
