//! Modules that do their worst: the server and the other modules continue, and a lifecycle frame
//! says what happened, with file, line and column.

use serde_json::Value;

use crate::support::{Sandbox, Server};

const GOOD: [(&str, &str); 2] = [
    (
        "modules/generators/tick.ts",
        r#"
import { generator } from "xs";
export default generator({ async *run(ctx) {
  for await (const _ of ctx.every("50ms")) yield { tick: true };
} });
"#,
    ),
    (
        "modules/commands/echo.ts",
        r#"
import { command } from "xs";
export default command({ args: { text: "string" }, run: (call) => `said ${call.args.text}` });
"#,
    ),
];

/// Serves the good modules and a bad one, and checks that the good ones work at the end.
fn with(file: &str, source: &str, test: impl FnOnce(&Sandbox, &Server)) {
    let place = Sandbox::new();
    for (name, source) in GOOD {
        place.write(name, source);
    }
    place.write(&format!("modules/{file}"), source);
    let server = place.serve(&["--modules", "modules"]);
    place.await_frames("xs.command.echo.active", 1);
    test(&place, &server);
    let call = place.xs(&["call", "echo", "text=hello"]);
    assert_eq!((call.code, call.text().as_str()), (0, "said hello\n"), "{}", call.err);
    let ticks = place.frames("tick.recv").len();
    place.await_frames("tick.recv", ticks + 3);
    assert!(server.stop().success(), "{}", place.log());
}

/// The place that a lifecycle frame names.
fn place_of(frame: &Value) -> String {
    let meta = &frame["meta"];
    format!("{}:{}:{}", meta["file"].as_str().unwrap_or("?"), meta["line"], meta["column"])
}

#[test]
fn an_endless_loop_is_ended() {
    let source = r#"
import { handler } from "xs";
export default handler({ topics: "poke", timeout: "500ms", run(frame) {
  if (frame.meta.spin) for (;;) {}
  return { poked: true };
} });
"#;
    with("handlers/spin.ts", source, |place, _| {
        place.await_frames("xs.handler.spin.active", 1);
        place.ok(&["append", "poke", "-n", "--meta", "{\"spin\":true}"]);
        let failed = &place.await_frames("xs.handler.spin.fin.error", 1)[0];
        assert!(failed["meta"]["message"].is_string(), "{failed}");
        assert!(place_of(failed).starts_with("handlers/spin.ts:4:"), "{failed}");
    });
}

#[test]
fn an_endless_allocation_is_ended() {
    let source = r#"
import { handler } from "xs";
const kept: unknown[] = [];
export default handler({ topics: "poke", run() {
  for (;;) kept.push({ of: kept.length });
} });
"#;
    // Large objects use up the memory long before the engine would check it on its own.
    let large = source.replace("{ of: kept.length }", "new Array(10_000).fill(0)");
    for source in [source, &large] {
        with("handlers/hungry.ts", source, |place, _| {
            place.await_frames("xs.handler.hungry.active", 1);
            place.ok(&["append", "poke", "-n"]);
            let failed = &place.await_frames("xs.handler.hungry.fin.error", 1)[0];
            assert_eq!(failed["meta"]["code"], "heap", "{failed}");
            assert!(place_of(failed).starts_with("handlers/hungry.ts:5:"), "{failed}");
        });
    }
}

#[test]
fn eval_reports_an_error_during_import() {
    let source = "import { generator } from \"xs\";\n\nthrow new Error(\"not today\");\n\
                  export default generator({ async *run() {} });\n";
    with("generators/throws.ts", source, |place, _| {
        let invalid = &place.await_frames("xs.generator.throws.invalid", 1)[0];
        assert!(invalid["meta"]["message"].as_str().unwrap().contains("not today"), "{invalid}");
        assert_eq!(place_of(invalid), "generators/throws.ts:3:7", "{invalid}");
        let listed = place.ok(&["modules", "list"]).json();
        let throws = listed.iter().find(|module| module["name"] == "throws").unwrap();
        assert_eq!(throws["state"], "invalid");
    });
}

#[test]
fn eval_reports_a_syntax_error() {
    let source =
        "import { handler } from \"xs\";\nexport default handler({ topics: \"a\", run( });\n";
    with("handlers/broken.ts", source, |place, _| {
        let invalid = &place.await_frames("xs.handler.broken.invalid", 1)[0];
        assert_eq!(invalid["meta"]["code"], "syntax", "{invalid}");
        assert!(place_of(invalid).starts_with("handlers/broken.ts:2:"), "{invalid}");
        let shown = place.ok(&["modules", "show", "broken"]).json();
        assert_eq!(shown[0]["error"]["line"], 2);
    });
}

#[test]
fn a_command_that_throws_fails_only_its_call() {
    let source = r#"
import { command } from "xs";
export default command({ async *run() {
  yield "first";
  throw new Error("no more");
} });
"#;
    with("commands/half.ts", source, |place, _| {
        place.await_frames("xs.command.half.active", 1);
        for _ in 0..2 {
            let call = place.xs(&["call", "half"]);
            assert_eq!((call.code, call.text().as_str()), (1, "first\n"), "{}", call.err);
            assert!(call.err.contains("no more (commands/half.ts:5:"), "{}", call.err);
        }
        let unknown = place.xs(&["call", "nobody"]);
        assert_eq!((unknown.code, unknown.err.contains("no command nobody")), (3, true));
    });
}
