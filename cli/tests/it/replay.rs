//! `xs replay`: a handler's file run over the history of a store.

use serde_json::{Value, json};

use crate::support::{Run, Sandbox, text};

/// Sums up; reports when the sum is over a limit.
const SUM: &str = r#"
import { handler } from "xs";
export default handler({
  topics: "in", start: "first", state: { sum: 0 }, config: { limit: 5 }, onError: "skip",
  async run(frame, ctx) {
    if (frame.meta.n < 0) throw new RangeError("negative");
    ctx.state.sum += frame.meta.n;
    console.log("sum", ctx.state.sum);
    if (ctx.state.sum > ctx.config.limit) ctx.append("over", { meta: { sum: ctx.state.sum }, body: await frame.text() });
    return { sum: ctx.state.sum };
  },
});
"#;

/// A store in which the handler has handled 1, 2, -1, 3, 4.
fn handled() -> Sandbox {
    let place = Sandbox::new();
    place.write("modules/handlers/sum.ts", SUM);
    for n in [1, 2, -1, 3, 4] {
        let body = format!("body {n}");
        place.ok(&["append", "in", "--meta", &json!({ "n": n }).to_string(), &body]);
    }
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("sum.out", 4);
    assert!(server.stop().success());
    place
}

fn metas(lines: &[Value]) -> Vec<(&str, &Value)> {
    lines.iter().map(|line| (line["topic"].as_str().unwrap(), &line["meta"])).collect()
}

#[test]
fn replay_prints_outputs_without_appending() {
    let place = handled();
    let head = place.ok(&["stats"]).json()[0]["head"].clone();
    let inputs = place.frames("in");
    let run = place.ok(&["replay", "modules/handlers/sum.ts"]);
    let lines = run.json();
    let sums =
        [json!({ "sum": 1 }), json!({ "sum": 3 }), json!({ "sum": 6 }), json!({ "sum": 10 })];
    let error = lines.iter().find(|line| line.get("error").is_some()).unwrap();
    assert_eq!(error["input"], inputs[2]["id"]);
    assert_eq!(error["error"]["message"], "RangeError: negative");
    let made: Vec<Value> =
        lines.iter().filter(|line| line.get("error").is_none()).cloned().collect();
    assert_eq!(
        metas(&made),
        [
            ("sum.out", &sums[0]),
            ("sum.out", &sums[1]),
            ("over", &sums[2]),
            ("sum.out", &sums[2]),
            ("over", &sums[3]),
            ("sum.out", &sums[3]),
        ]
    );
    assert_eq!((&made[2]["body"], &made[2]["input"]), (&json!("body 3"), &inputs[3]["id"]));
    assert!(run.err.contains("info: sum 10"), "{}", run.err);
    assert_eq!(place.ok(&["stats"]).json()[0]["head"], head, "nothing was appended");
    let some = |words: &[&str]| {
        let all = [&["replay", "modules/handlers/sum.ts"], words].concat();
        let lines = place.ok(&all).json();
        lines
            .iter()
            .filter(|line| line["topic"] == "sum.out")
            .map(|l| l["meta"]["sum"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(some(&["--limit", "2"]), [1, 3]);
    assert_eq!(some(&["--from", text(inputs[3]["id"].as_str().unwrap().as_ref())]), [3, 7]);
    assert_eq!(some(&["--state-at", inputs[1]["id"].as_str().unwrap()]), [6, 10]);
    assert_eq!(some(&["--until", "2001-01-01"]), [0_u64; 0]);
}

#[test]
fn replay_diff_is_empty_only_for_the_same_code() {
    let place = handled();
    let same = place.ok(&["replay", "modules/handlers/sum.ts", "--diff"]);
    assert_eq!(same.text(), "");
    assert!(
        same.err.contains("5 inputs with the same events, 0 with different ones"),
        "{}",
        same.err
    );
    place.write("modules/handlers/sum.ts", &SUM.replace("limit: 5", "limit: 9"));
    let other = place.xs(&["replay", "modules/handlers/sum.ts", "--diff"]);
    assert_eq!(other.code, 1, "{}", other.err);
    let id = place.frames("in")[3]["id"].as_str().unwrap().to_owned();
    let offset = place.frames("in")[3]["offset"].clone();
    assert_eq!(
        other.text(),
        format!(
            "@@ {id} in (offset {offset}) @@\n-over {{\"sum\":6}} \"body 3\"\n sum.out {{\"sum\":6}}\n"
        )
    );
    assert!(
        other.err.contains("4 inputs with the same events, 1 with different ones"),
        "{}",
        other.err
    );
    // An operator's configuration applies as in a server.
    place.write("modules/xs.toml", "[modules.sum.config]\nlimit = 5\n");
    place.ok(&["replay", "modules/handlers/sum.ts", "--diff"]);
    // For a file elsewhere, --name names the module.
    place.write("new/candidate.ts", &SUM.replace("topics: \"in\"", "topics: \"none\""));
    let gone = place.xs(&["replay", "new/candidate.ts", "--name", "sum", "--diff"]);
    assert_eq!(gone.code, 1, "{}", gone.err);
    assert_eq!(gone.text().matches("not an input of it").count(), 4, "{}", gone.text());
}

/// What was made before it is not compared.
#[test]
fn replay_diff_is_empty_after_a_reset_too() {
    let place = Sandbox::new();
    let source = "export default { topics: 'in', start: 'first', state: 0, \
                  run: (frame, ctx) => ({ sum: (ctx.state += frame.meta.n) }) };";
    place.write("modules/handlers/sum.ts", source);
    for n in 1..4 {
        place.ok(&["append", "in", "-n", "--meta", &json!({ "n": n }).to_string()]);
    }
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("sum.out", 3);
    place.write("modules/handlers/sum.ts", &source.replace("+=", "-="));
    place.await_frames("xs.handler.sum.active", 2);
    place.ok(&["modules", "reset", "sum", "--yes"]);
    place.await_frames("sum.out", 6);
    let same = place.ok(&["replay", "modules/handlers/sum.ts", "--diff"]);
    let count = "3 inputs with the same events, 0 with different ones";
    assert!(same.text().is_empty() && same.err.contains(count), "{}{}", same.text(), same.err);
    assert!(server.stop().success());
}

#[test]
fn replay_explains_what_it_cannot_run() {
    let place = handled();
    let strict = SUM.replace("onError: \"skip\",", "");
    for (source, part) in [
        (strict.as_str(), "RangeError: negative"),
        (
            "export default { topics: 'in', async run(f, ctx) { for await (const _ of ctx.read({ follow: true })); } };",
            "cannot wait for new frames",
        ),
        (
            "export default { topics: 'in', async run(f, ctx) { for await (const _ of ctx.call('x')); } };",
            "cannot call commands",
        ),
        (
            "export default { topics: 'in', permissions: { net: ['127.0.0.1:7999'] }, run: () => fetch('http://127.0.0.1:7999/') };",
            "network access to 127.0.0.1:7999 is not repeated",
        ),
        (
            "export default { topics: 'in', permissions: { run: ['true'] }, run: (f, ctx) => ctx.spawn('true').status };",
            "running \"true\" is not repeated",
        ),
        (
            "export default { topics: 'in', permissions: { read: ['/'] }, run: (f, ctx) => ctx.fs.text('/etc/hostname') };",
            "reading \"/etc/hostname\" is not repeated",
        ),
        ("export default { topics: 'in', run( };", "SyntaxError"),
        ("export default { run() {} };", "topics"),
    ] {
        let file = place.write("handlers/sum.ts", source);
        let run = place.xs(&["replay", text(&file)]);
        assert_eq!((run.code, run.err.contains(part)), (1, true), "{part}: {}", run.err);
    }
    // The output before the failure is printed.
    let file = place.write("handlers/sum.ts", &strict);
    assert_eq!(place.xs(&["replay", text(&file)]).json().len(), 2);
    assert_eq!(place.xs(&["replay", "handlers/none.ts"]).code, 1);
    let name = place.xs(&["replay", "totals"]);
    let told = "replay takes a handler's file, as modules/handlers/totals.ts";
    assert_eq!((name.code, name.err.contains(told)), (2, true), "{}", name.err);
}

/// A handler sees the store as it was when its frame arrived, whatever was appended since.
#[test]
fn replay_reads_the_store_as_it_was() {
    let place = Sandbox::new();
    for n in 0..4 {
        let meta = json!({ "n": n }).to_string();
        place.ok(&["append", "other", "-n", "--meta", &meta]);
        place.ok(&["append", "in", "-n", "--meta", &meta]);
    }
    let source = r#"export default { topics: "in", async run(frame, ctx) {
      const last = await ctx.last("other"), none = await ctx.last("later");
      const read = [];
      for await (const f of ctx.read({ topics: "*", last: 3 })) read.push(f.topic + f.meta.n);
      const back = [];
      for await (const f of ctx.read({ topics: "other", reverse: true, before: frame.id, limit: 1 })) back.push(f.meta.n);
      const per = [];
      for await (const f of ctx.lastPerTopic("*")) per.push(f.topic + f.meta.n);
      const self = await ctx.get(frame.id);
      ctx.state = { before: ctx.state.before, seen: frame.id };
      const earlier = ctx.state.before && await ctx.get(ctx.state.before);
      ctx.state.before = frame.id;
      return { last: last.meta.n, none: none === undefined, read, back, per, self: self.meta.n, earlier: earlier?.meta.n };
    }, state: {} };"#;
    let file = place.write("handlers/looks.js", source);
    place.ok(&["append", "later", "-n"]);
    let lines = place.ok(&["replay", text(&file)]).json();
    let made: Vec<Value> = lines.iter().map(|line| line["meta"].clone()).collect();
    let expected: Vec<Value> = (0..4)
        .map(|n: u64| {
            let all: Vec<String> =
                (0..=n).flat_map(|n| [format!("other{n}"), format!("in{n}")]).collect();
            let read = &all[all.len().saturating_sub(3)..];
            let mut meta = json!({
                "last": n, "none": true, "read": read, "back": [n],
                "per": [format!("other{n}"), format!("in{n}")], "self": n,
            });
            if n > 0 {
                meta["earlier"] = (n - 1).into();
            }
            meta
        })
        .collect();
    assert_eq!(made, expected);
}

/// A handler gets the variables that a server would offer it.
#[test]
fn variables_are_those_of_the_environment_and_of_a_file() {
    let place = Sandbox::new();
    let source = "import { handler } from \"xs\";\n\
        export default handler({ topics: \"in\", start: \"first\", state: \"\",\n\
        permissions: { env: [\"LEVEL\", \"REGION\"] },\n\
        run(f, ctx) { ctx.state += ctx.env.LEVEL; return { level: ctx.env.LEVEL, \
        region: ctx.env.REGION, state: ctx.state }; } });";
    place.write("modules/handlers/of.env.ts", source);
    let file = place.write("vars.env", "LEVEL=low\nREGION=north\n");
    place.ok(&["append", "in", "-n"]);
    let replay = ["replay", "modules/handlers/of.env.ts", "--env-file", text(&file)];
    let meta = |line: &[&str]| {
        let run = place.command(line).env("LEVEL", "high").output().unwrap();
        let run = Run::from(run);
        assert_eq!(run.code, 0, "{}", run.err);
        run.json()[0]["meta"].clone()
    };
    let first = json!({ "level": "high", "region": "north", "state": "high" });
    assert_eq!(meta(&replay), first);
    let mut serve = vec!["--modules", "modules", "--sync", "none"];
    serve.extend(["--env-file", text(&file)]);
    let server = place.serve(&serve);
    place.await_frames("of.env.out", 1);
    assert!(server.stop().success());
    place.ok(&["append", "in", "-n"]);
    let inputs = place.frames("in");
    let at = inputs[0]["id"].as_str().unwrap();
    let behind = json!({ "level": "high", "region": "north", "state": "highhigh" });
    assert_eq!(meta(&[&replay[..], &["--state-at", at]].concat()), behind);
}

/// A state is computed from the history in which its frame was handled.
#[test]
fn a_state_begins_with_the_reset_before_it() {
    let place = Sandbox::new();
    let source = "export default { topics: 'in', state: { n: 0 }, run: (f, ctx) => ({ n: ++ctx.state.n }) };";
    place.write("modules/handlers/count.ts", source);
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.handler.count.active", 1);
    let add = || drop(place.ok(&["append", "in", "-n"]));
    (0..3).for_each(|_| add());
    place.await_frames("count.out", 3);
    place.ok(&["modules", "reset", "count", "--yes"]);
    (0..3).for_each(|_| add());
    place.await_frames("count.out", 6);
    assert!(server.stop().success());
    let inputs = place.frames("in");
    let behind = |at: usize| {
        let id = inputs[at]["id"].as_str().unwrap();
        let line = ["replay", "modules/handlers/count.ts", "--limit", "1", "--state-at", id];
        let lines = place.ok(&line).json();
        lines[0]["meta"]["n"].as_u64().unwrap() - 1
    };
    assert_eq!([0, 2, 3, 4].map(behind), [1, 3, 1, 2]);
}

/// The state excludes what came before the first version that could run.
#[test]
fn a_state_begins_with_the_first_version_that_was_none_of_a_broken_file() {
    let place = Sandbox::new();
    place.write("modules/handlers/count.ts", "export default { topics: 'in', run( };");
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.handler.count.invalid", 1);
    let add = || drop(place.ok(&["append", "in", "-n"]));
    add();
    let source =
        "export default { topics: 'in', state: 0, run: (f, ctx) => ({ n: ++ctx.state }) };";
    place.write("modules/handlers/count.ts", source);
    place.await_frames("xs.handler.count.active", 1);
    (0..2).for_each(|_| add());
    place.await_frames("count.out", 2);
    // After the reset, no stored position says what came before it.
    place.ok(&["modules", "reset", "count", "--yes"]);
    add();
    place.await_frames("count.out", 3);
    assert!(server.stop().success());
    let inputs = place.frames("in");
    let state = |at: usize| {
        let id = inputs[at]["id"].as_str().unwrap();
        place.ok(&["modules", "state", "count", "--at", id]).json()[0].clone()
    };
    assert_eq!([1, 2].map(state), [1, 2]);
}
