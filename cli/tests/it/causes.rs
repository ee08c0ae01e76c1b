//! `why` and `effects` over the origins that handlers leave.

use serde_json::Value;

use crate::support::Sandbox;

fn handler(from: &str, to: &str) -> String {
    format!(
        "import {{ handler }} from \"xs\";\n\
         export default handler({{ topics: \"{from}\", start: \"first\",\n  \
         run(frame, ctx) {{ ctx.append(\"{to}\"); }} }});\n"
    )
}

fn topics(place: &Sandbox, args: &[&str]) -> Vec<String> {
    let frames = place.ok(args).json();
    frames.iter().map(|frame| frame["topic"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn causes_and_effects_are_found_both_ways() {
    let place = Sandbox::new();
    place.write("modules/handlers/one.ts", &handler("in", "mid"));
    place.write("modules/handlers/two.ts", &handler("mid", "end"));
    let server = place.serve(&["--modules", "modules"]);
    place.ok(&["append", "in", "-n"]);
    place.ok(&["append", "aside", "-n"]);
    let end = place.await_frames("end", 1);
    let id = |frame: &Value| frame["id"].as_str().unwrap().to_owned();
    assert_eq!(topics(&place, &["why", &id(&end[0])]), ["in", "mid", "end"]);
    let root = id(&place.frames("in")[0]);
    assert_eq!(topics(&place, &["effects", &root]), ["in", "mid", "end"]);
    assert_eq!(topics(&place, &["effects", &root, "--limit", "1"]), ["in", "mid"]);
    assert_eq!(topics(&place, &["why", &id(&place.frames("aside")[0])]), ["aside"]);
    assert_eq!(place.xs(&["why", "999999"]).code, 3);
    assert!(server.stop().success());
}
