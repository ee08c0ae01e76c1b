//! `xs test`: tests that fail for reasons outside them, and what is logged meanwhile.

use serde_json::Value;

use crate::support::Sandbox;

#[test]
fn a_test_without_end_or_with_a_loose_promise_harms_no_other() {
    let place = Sandbox::new();
    place.write(
        "modules/handlers/loud.ts",
        "export default { topics: 'in', run(f, ctx) { console.log('seen', f.topic); } };",
    );
    place.write(
        "modules/a.test.ts",
        "import { test, trial } from \"xs/test\";\n\
         import loud from \"./handlers/loud.ts\";\n\
         test(\"said\", async () => {\n\
           console.warn(\"from the test\", 7);\n\
           await trial(loud, { frames: [{ topic: \"in\" }] });\n\
         });\n\
         test(\"loose\", () => { Promise.reject(new Error(\"nobody waits\")); });\n\
         test(\"endless\", async () => { await new Promise(() => {}); });\n\
         test(\"late\", async () => { await new Promise((done) => setTimeout(done, 5)); });\n",
    );
    let run = place.xs(&["test", "modules", "none", "nil"]);
    let said = "the only test file below modules does not have none or nil in its path";
    assert_eq!((run.code, run.err.contains(said)), (3, true), "{}", run.err);
    let run = place.xs(&["test", "modules"]);
    assert_eq!(run.code, 1, "{}", run.err);
    let results = run.json();
    let told: Vec<(&str, Option<&str>)> = results
        .iter()
        .map(|line: &Value| {
            (line["test"].as_str().unwrap_or("-"), line["error"]["message"].as_str())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("said", None),
            ("loose", Some("Error: nobody waits")),
            ("endless", Some("TimeoutError: the test did not end in 30 s")),
            ("late", None),
        ],
        "{}",
        run.err
    );
    assert_eq!(results[1]["error"]["line"], 7, "{}", results[1]);
    for said in ["a.test.ts: test: warn: from the test 7", "a.test.ts: loud: info: seen in"] {
        assert!(run.err.contains(said), "{said}: {}", run.err);
    }
}

/// Such a loop can only be left by ending everything that runs along with it.
#[test]
fn a_test_with_an_endless_loop_does_not_hide_others() {
    let place = Sandbox::new();
    place.write(
        "modules/a.test.ts",
        "import { test } from \"xs/test\";\n\
         test(\"before\", () => {});\n\
         test(\"loop\", () => { for (;;); });\n\
         test(\"between\", () => {});\n\
         test(\"another\", async () => { await 0; for (;;); });\n\
         test(\"behind\", () => { throw new Error(\"told\"); });\n",
    );
    place.write("modules/b.test.ts", "import { test } from \"xs/test\"; test(\"b\", () => {});");
    let run = place.xs(&["test", "modules"]);
    assert_eq!(run.code, 1, "{}", run.err);
    let results = run.json();
    let told: Vec<_> = results
        .iter()
        .map(|line| (line["test"].as_str().unwrap_or("-"), line["error"]["code"].as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("before", None),
            ("loop", Some("cpu")),
            ("between", None),
            ("another", Some("cpu")),
            ("behind", Some("throw")),
            ("b", None),
        ]
    );
}
