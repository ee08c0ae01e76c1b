//! The types that authors are given declare exactly what exists.

use serde_json::json;
use xs_runtime::host::editor::TYPES;

use super::*;

/// The text between the braces that follow `head`.
fn block<'a>(text: &'a str, head: &str) -> &'a str {
    let start = text.find(head).unwrap_or_else(|| panic!("{head} is not declared"));
    let open = start + text[start..].find('{').unwrap();
    let mut depth = 0;
    for (at, c) in text[open..].char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 {
            return &text[open + 1..open + at];
        }
    }
    panic!("{head} does not end");
}

/// The names an interface declares.
fn members(types: &str, interface: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut member = String::new();
    for c in block(types, &format!("interface {interface}")).chars().chain([';']) {
        depth += i32::from("{(<".contains(c)) - i32::from("})>".contains(c));
        // The arrow of a function type closes nothing.
        if c == '>' && member.ends_with('=') {
            depth += 1;
        }
        if c != ';' || depth != 0 {
            member.push(c);
            continue;
        }
        let text = member.trim().trim_start_matches("readonly ");
        let end = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
        names.extend((end > 0).then(|| text[..end].to_owned()));
        member.clear();
    }
    names
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split(" //").next().unwrap_or_default()).collect()
}

fn sorted(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    names
}

fn names(value: &Value) -> Vec<String> {
    sorted(value.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()))
}

#[tokio::test]
async fn ctx_is_what_the_types_say() {
    let types = without_comments(TYPES);
    let declared = |interfaces: &[&str]| {
        sorted(interfaces.iter().flat_map(|interface| members(&types, interface)))
    };
    let (isolate, memory) = handler(
        "export default { topics: 'in', run: (frame, ctx) => ({ ctx: Object.keys(ctx), fs: Object.keys(ctx.fs), \
         blob: Object.keys(ctx.blob) }) };",
    )
    .await;
    let seen = meta(&reply(&isolate, inputs(&memory, 1)).await.outputs[0]);
    assert_eq!(names(&seen["ctx"]), declared(&["Base<", "HandlerContext<"]));
    for (name, object) in [("fs", &seen["fs"]), ("blob", &seen["blob"])] {
        let within = block(&types, &format!(" {name}: {{"));
        let (wrapped, object) = (format!("interface X {{{within}}}"), names(object));
        assert_eq!(object, sorted(members(&wrapped, "X")), "{name}");
    }
    let (isolate, _, memory) = start(
        "generators/it.js",
        "export default { run: async (ctx) => void (await ctx.append('k', { meta: { k: Object.keys(ctx) } })) };",
    )
    .await
    .unwrap();
    soon(isolate.run_generator()).await.unwrap();
    let seen = stored_meta(&memory.topic("k")[0]);
    assert_eq!(names(&seen["k"]), declared(&["Base<", "Immediate", "GeneratorContext<"]));
    let (isolate, _, memory) = start(
        "commands/it.js",
        "export default { run: (call, ctx) => ({ k: Object.keys(ctx) }) };",
    )
    .await
    .unwrap();
    soon(isolate.call(commands::call(&memory, &json!({})))).await.unwrap();
    let seen = stored_meta(&memory.topic("it.recv")[0]);
    assert_eq!(names(&seen["k"]), declared(&["Base<", "Immediate", "CommandContext<"]));
}

#[tokio::test]
async fn the_module_exports_what_the_types_say() {
    let (isolate, memory) = handler(
        "import * as xs from 'xs'; export default { topics: 'in', run: () => ({ xs: Object.keys(xs).filter((key) => key !== 'default') }) };",
    )
    .await;
    let seen = meta(&reply(&isolate, inputs(&memory, 1)).await.outputs[0]);
    let (types, _) = TYPES.split_once("declare module \"xs/test\"").unwrap();
    let exported = ["export function ", "export class "].iter().flat_map(|what| {
        types.match_indices(what).map(|(at, what)| {
            let rest = &types[at + what.len()..];
            rest[..rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap()].to_owned()
        })
    });
    assert_eq!(names(&seen["xs"]), sorted(exported));
}
