//! Modules with a process of their own: they run like any other, a crash of one affects no other,
//! and the kernel keeps them from what they were not granted.

use std::fs;

use crate::support::{Sandbox, Server, eventually, is_running, signal_pid, text};

use rustix::process::Signal;

/// Reads a file that its definition may read, in a process that may read less.
fn peek(dir: &str) -> String {
    format!(
        "export default {{ args: {{ path: \"string\" }}, permissions: {{ read: [{dir:?}], env: [\"SEEN\", \"HIDDEN\"] }},\n\
           run: async (call, ctx) => ({{ text: await ctx.fs.text(call.args.path), env: ctx.env, \
             hidden: [ctx.env.HIDDEN, ctx.env.SEEN] }}) }};\n"
    )
}

const TICK: &str = "import { generator } from \"xs\";\nexport default generator({ async *run(ctx) {\n\
    for await (const _ of ctx.every(\"50ms\")) yield { tick: true }; } });\n";

/// The process of one module.
fn process_of(server: &Server, name: &str) -> Option<u32> {
    server.children().into_iter().find(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&format!("--only\0{name}\0"))
    })
}

/// Serves two modules, one of them apart.
fn served(more: &str) -> (Sandbox, Server) {
    let place = Sandbox::new();
    let open = place.write("open/file.txt", "open");
    place.write("shut/file.txt", "shut");
    let dir = place.path("");
    place.write("modules/commands/peek.js", &peek(text(&dir)));
    place.write("modules/generators/tick.ts", TICK);
    let open = text(open.parent().unwrap()).to_owned();
    let config = format!(
        "[modules.peek]\nisolation = \"process\"\nread = [{open:?}]\nenv = [\"SEEN\"]\n{more}"
    );
    place.write("modules/xs.toml", &config);
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.command.peek.active", 1);
    place.await_frames("xs.generator.tick.active", 1);
    (place, server)
}

#[test]
fn a_module_apart_is_kept_from_what_it_was_not_given() {
    let (place, server) = served("");
    let path = |name: &str| format!("path={}", place.path(name).display());
    let open = place.ok(&["call", "peek", &path("open/file.txt")]);
    assert_eq!(open.json()[0]["text"], "open");
    let active = &place.frames("xs.command.peek.active")[0]["meta"]["process"];
    let shown = place.ok(&["modules", "show", "peek"]).json();
    assert_eq!(shown[0]["process"], *active, "{}", shown[0]);
    let landlock = active["landlock"].as_str().unwrap();
    // The definition asks for both files: only the kernel protects this one.
    let shut = place.xs(&["call", "peek", &path("shut/file.txt")]);
    if landlock.starts_with("on") || landlock.starts_with("in part") {
        assert_eq!(shut.code, 1, "{}", shut.text());
        let line = format!(
            "add read = [{:?}] below [modules.peek] in xs.toml",
            place.path("shut/file.txt")
        );
        assert!(shut.err.contains("in its own process is not allowed"), "{}", shut.err);
        assert!(shut.err.contains(&line), "{}", shut.err);
    } else {
        let text = format!("skipped: a module apart is kept from files: landlock {landlock}\n");
        std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes()).unwrap();
        assert_eq!(shut.code, 0, "{}", shut.err);
    }
    let pid = process_of(&server, "peek").unwrap();
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let status = read("status");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let filtered = status.contains("Seccomp:\t2");
    assert_eq!(active["seccomp"] == "on", filtered, "{status}");
    let limits = read("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "256");
    assert_eq!(limit("Max address space"), (4u64 << 30).to_string());
    assert!(server.stop().success(), "{}", place.log());
    assert!(!is_running(pid));
}

#[test]
fn a_module_apart_has_the_variables_it_was_given() {
    let place = Sandbox::new();
    place.write("file.txt", "");
    place.write("modules/commands/peek.js", &peek(text(&place.path(""))));
    let file = place.path("file.txt");
    let store = place.store();
    let config = |env: &str| {
        format!("[modules.peek]\nisolation = \"process\"\nread = [{:?}]\n{env}", text(&file))
    };
    place.write("modules/xs.toml", &config("env = [\"SEEN\"]\n"));
    let mut serve = place.command(&["serve", text(&store), "--modules", "modules"]);
    let mut server = serve.env("SEEN", "yes").env("HIDDEN", "no").spawn().unwrap();
    place.ok(&["ping", "--wait", "4m"]);
    place.await_frames("xs.command.peek.active", 1);
    let seen = place.ok(&["call", "peek", &format!("path={}", text(&file))]).json();
    assert_eq!(seen[0]["env"], serde_json::json!({ "SEEN": "yes" }));
    let told = place.await_frames("xs.command.peek.log", 1);
    assert_eq!(
        told[0]["meta"]["message"],
        "ctx.env.HIDDEN was not given to its own process; \
         add env = [\"HIDDEN\"] below [modules.peek] in xs.toml"
    );
    assert_eq!(told.len(), 1, "{told:?}");
    crate::support::signal(&server, Signal::TERM);
    server.wait().unwrap();
}

/// Starts programs, in a process that may start some.
const RUNS: &str = r#"
export default {
  args: { script: "string", kill: "boolean?" }, permissions: { run: ["sh"] },
  async run(call, ctx) {
    const child = ctx.spawn("sh", ["-c", call.args.script]);
    if (call.args.kill) child.kill("SIGTERM");
    const [out, err] = await Promise.all([child.stdout, child.stderr].map((one) => new Response(one).text()));
    return { ...await child.status, out, err };
  },
};
"#;

/// A program may do what its module may: it runs, reads what may be read, and ends with its module.
#[test]
fn programs_of_a_module_apart_are_as_confined_as_it_is() {
    let place = Sandbox::new();
    let open = place.write("open/file.txt", "open");
    let shut = place.write("shut/file.txt", "shut");
    place.write("modules/commands/runs.js", RUNS);
    let dir = text(open.parent().unwrap());
    let config = |allow: &str| {
        format!("[modules.runs]\nisolation = \"process\"\nread = [{dir:?}]\nallow = [{allow}]\n")
    };
    place.write("modules/xs.toml", &config("\"run\""));
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    let active = place.await_frames("xs.command.runs.active", 1)[0]["meta"]["process"].clone();
    let runs = |script: &str, more: &[&str]| {
        let script = format!("script={script}");
        let words = ["call", "runs", &script].into_iter().chain(more.iter().copied());
        place.ok(&words.collect::<Vec<_>>()).json()[0].clone()
    };
    let read = runs(&format!("cat {}", text(&open)), &[]);
    assert_eq!((&read["out"], &read["code"]), (&"open".into(), &0.into()), "{read}");
    let landlock = active["landlock"].as_str().unwrap();
    if landlock.starts_with("on") || landlock.starts_with("in part") {
        let read = runs(&format!("cat {}", text(&shut)), &[]);
        assert!(read["err"].as_str().unwrap().contains("ermission denied"), "{read}");
        let write = runs(&format!("echo no > {}", text(&open)), &[]);
        assert_ne!(write["code"], 0, "{write}");
    } else {
        let text = format!("skipped: programs of a module apart: landlock {landlock}\n");
        std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes()).unwrap();
    }
    // It cannot reach other processes, but its own.
    let server_pid = server.pid();
    if landlock.starts_with("on") {
        let other = runs(&format!("kill -TERM {server_pid}"), &[]);
        assert_ne!(other["code"], 0, "{other}");
    }
    let own = runs("sleep 1000 & kill $! && wait $!; echo done", &[]);
    assert_eq!(own["out"], "done\n", "{own}");
    let killed = runs("sleep 1000", &["kill:=true"]);
    assert_eq!(killed["signal"], "SIGTERM", "{killed}");
    // A program that is running when the module is stopped ends with it.
    let mut caller =
        place.command(&["call", "runs", "script=echo $$ > /dev/null; exec sleep 7461"]);
    let mut caller = caller.stderr(std::process::Stdio::null()).spawn().unwrap();
    let sleeps = || {
        fs::read_dir("/proc").unwrap().flatten().find(|entry| {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            words == b"sleep\x007461\0"
        })
    };
    eventually(&sleeps);
    place.ok(&["modules", "stop", "runs"]);
    eventually(|| sleeps().is_none().then_some(()));
    caller.wait().unwrap();
    // Without the line in xs.toml the module is refused, with the missing permission, and starts
    // nothing.
    place.write("modules/xs.toml", &config(""));
    let invalid = place.await_frames("xs.command.runs.invalid", 1)[0].clone();
    assert_eq!(invalid["meta"]["code"], "permission", "{invalid}");
    assert!(invalid["meta"]["message"].as_str().unwrap().contains("allow-run"), "{invalid}");
    assert!(server.stop().success(), "{}", place.log());
}

#[test]
fn a_crash_of_a_module_apart_is_its_own() {
    let (place, server) = served("");
    let pid = process_of(&server, "peek").unwrap();
    assert_eq!(server.children().len(), 2);
    signal_pid(pid, Signal::KILL);
    place.await_frames("xs.command.peek.active", 2);
    let ticks = place.frames("tick.recv").len();
    place.await_frames("tick.recv", ticks + 3);
    assert_eq!(place.frames("xs.generator.tick.active").len(), 1, "its process went on");
    let path = format!("path={}", place.path("open/file.txt").display());
    place.ok(&["call", "peek", &path]);
    assert!(process_of(&server, "peek").is_some_and(|next| next != pid));
    assert!(server.stop().success(), "{}", place.log());
}

#[test]
fn process_isolation_is_switched_on_and_off_while_serving() {
    let (place, server) = served("");
    place.write("modules/xs.toml", "[modules.tick]\nisolation = \"process\"\n");
    place.await_frames("xs.command.peek.active", 2);
    place.await_frames("xs.generator.tick.active", 2);
    let is_apart = |name: &str| process_of(&server, name).is_some();
    eventually(|| (is_apart("tick") && !is_apart("peek")).then_some(()));
    place.write("modules/xs.toml", "");
    place.await_frames("xs.generator.tick.active", 3);
    eventually(|| (server.children().len() == 1).then_some(()));
    // Moving a module to another process does not create a version of it.
    assert_eq!(place.frames("xs.generator.tick.create").len(), 1);
    place.write("modules/xs.toml", "[modules.tick]\nread = [\"/etc\"]\n");
    eventually(|| place.log().contains("need isolation").then_some(()));
    assert!(server.stop().success(), "{}", place.log());
}
