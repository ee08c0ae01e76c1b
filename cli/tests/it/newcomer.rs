//! What a user does without having read anything: slashes in topics, foreign addresses, files in
//! the wrong places, a signal that arrives twice.

use std::fs::File;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Sandbox, eventually};

#[test]
fn a_mistyped_address_creates_no_store() {
    let place = Sandbox::new();
    for (args, code, said) in [
        (&["append", "sensors/temp", "21"][..], 5, "dots instead of slashes: sensors.temp"),
        (&["append", "sensors/temp", "t", "x"], 5, "write ./sensors/temp"),
        (&["append", "http://localhost:4000", "t", "x"], 2, "a scheme that xs does not speak"),
        (&["append", "-a", "http://localhost:4000", "t", "x"], 2, "a scheme that xs does not"),
        (
            &["serve", ":4000"],
            2,
            ":4000 is not a directory; to listen there: xs serve STORE --listen :4000",
        ),
        (&["serve", "http://localhost:4000"], 2, "a scheme that xs does not speak"),
    ] {
        let run = place.xs(args);
        assert_eq!((run.code, run.err.contains(said)), (code, true), "xs {args:?}: {}", run.err);
    }
    for made in ["sensors", "http:", ":4000"] {
        assert!(!place.path(made).exists(), "{made}");
    }
    std::fs::create_dir_all(place.path("data")).unwrap();
    place.ok(&["append", "data/", "t", "x"]);
    assert_eq!(place.ok(&["cat", "data/"]).json().len(), 1);
}

#[test]
fn no_store_is_created_in_a_directory_with_other_files() {
    let place = Sandbox::new();
    for name in ["src/main.rs", "a.txt", "b.txt", "c.txt", "d.txt"] {
        place.write(&format!("project/{name}"), "x");
    }
    place.write("project/.git/config", "x");
    for args in [&["append", "./project", "t", "x"][..], &["serve", "project"]] {
        let run = place.xs(args);
        let said = "project is not a store and not empty (a.txt, b.txt, c.txt, ...)";
        assert_eq!((run.code, run.err.contains(said)), (2, true), "xs {args:?}: {}", run.err);
    }
    let left: Vec<_> = std::fs::read_dir(place.path("project")).unwrap().collect();
    assert_eq!(left.len(), 6, "{left:?}");
    // Hidden files are no obstacle.
    place.write("new/.gitignore", "*");
    place.ok(&["append", "./new", "t", "x"]);
    assert_eq!(place.ok(&["cat", "./new"]).json().len(), 1);
}

/// For example `ccache gcc`. The reason why one cannot be used is reported.
#[test]
fn a_compiler_may_be_several_words() {
    let setup = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/setup");
    let check = |compiler: &str| {
        let mut setup = std::process::Command::new(setup);
        let output = setup.arg("--check").env("CC", compiler).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (is_good, said) = check("env cc");
    assert!(is_good, "{said}");
    let (is_good, said) = check("env cc --no-such-option");
    assert!(!is_good && said.contains("env cc --no-such-option says:"), "{said}");
    assert!(said.matches("no-such-option").count() > 1, "{said}");
}

#[test]
fn tail_starts_at_since_and_stops_at_limit() {
    let place = Sandbox::new();
    for n in ["1", "2", "3"] {
        place.ok(&["append", "t", n]);
    }
    let bodies = |args: &[&str]| place.ok(&[&["tail", "--format", "{body}"], args].concat()).text();
    assert_eq!(bodies(&["--limit", "2"]), "1\n2\n");
    assert_eq!(bodies(&["-n", "1", "--limit", "1"]), "3\n");
    assert_eq!(bodies(&["--since", "-1h", "--limit", "3"]), "1\n2\n3\n");
    let run = place.xs(&["tail", "--since", "1h", "-n", "1"]);
    assert_eq!((run.code, run.err.contains("cannot be used with")), (2, true), "{}", run.err);
}

#[test]
fn a_body_too_long_for_a_line_does_not_stop_the_read() {
    let place = Sandbox::new();
    let stored = place.xs_with(&["append", "t"], &vec![b'x'; (64 << 20) + 1]);
    assert_eq!(stored.code, 0, "{}", stored.err);
    place.ok(&["append", "t", "small"]);
    let run = place.ok(&["cat", "--with-body"]);
    assert!(run.err.contains("too long for a line; get it with xs cas get"), "{}", run.err);
    let frames = run.json();
    assert!(frames[0].get("body").is_none() && frames[0]["hash"].is_string(), "{}", frames[0]);
    assert_eq!(frames[1]["body"], "small");
}

#[test]
fn an_output_error_is_not_blamed_on_the_store() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "x"]);
    for args in [&["cat"][..], &["topics"], &["cat", "-b"], &["help", "patterns"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = place.command(args).stdout(full).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "xs {args:?}: {err}");
        assert!(err.contains("cannot write to standard output"), "xs {args:?}: {err}");
    }
}

/// `timeout` and others that forward a signal send it to the process and to its group. Taken for a
/// second request, it ended the server like kill -9.
#[test]
fn two_signals_at_once_count_as_one() {
    let place = Sandbox::new();
    place.write(
        "modules/generators/slow.ts",
        "export default { async *run(ctx) {\n\
           try { await new Promise((_, end) => ctx.signal.addEventListener('abort', end)); }\n\
           finally { await new Promise((done) => setTimeout(done, 300)); }\n\
         } };",
    );
    let server = place.serve(&["--modules", "modules", "--log-level", "info"]);
    place.await_frames("xs.generator.slow.active", 1);
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    eventually(|| place.log().contains("stopping").then_some(()));
    assert!(server.stop().success(), "{}", place.log());
    assert!(!place.log().contains("second signal"), "{}", place.log());
    assert_eq!(place.frames("xs.generator.slow.stopped").len(), 1);
}

#[test]
fn check_names_misplaced_files() {
    let place = Sandbox::new();
    let module = "import { handler } from \"xs\";\n\
                  export default handler({ topics: \"a\", run() {} });";
    for file in ["handlers/good.ts", "lost.ts", "handler/lost.ts", "handlers/9.ts"] {
        place.write(&format!("modules/{file}"), module);
    }
    place.write("modules/handlers/view.tsx", module);
    place.write("modules/xs.toml", "[modules.goood.config]\nlimit = 1\n");
    let run = place.xs(&["modules", "check", "modules"]);
    assert_eq!(run.code, 1, "{}", run.err);
    let told: Vec<(Value, String)> = run
        .json()
        .into_iter()
        .map(|line| (line["file"].clone(), line["error"]["message"].to_string()))
        .collect();
    for (file, said) in [
        ("handlers/good.ts", "null"),
        ("handlers/9.ts", "must begin with"),
        ("handlers/view.tsx", "a module must end in .ts or .js"),
        ("handler/lost.ts", "the directory must be named handlers/"),
        ("lost.ts", "modules must be in generators/"),
        ("xs.toml", "names a module goood, which does not exist"),
    ] {
        let message = told.iter().find(|(told, _)| told == file).map(|(_, message)| message);
        assert!(message.is_some_and(|message| message.contains(said)), "{file}: {told:?}");
    }
    let _server = place.serve(&["--modules", "modules", "--log-level", "warn"]);
    eventually(|| {
        let log = place.log();
        (log.contains("not run") && log.contains("handler/lost.ts")).then_some(())
    });
}

#[test]
fn an_answer_without_text_is_an_empty_line() {
    let place = Sandbox::new();
    place.write("modules/commands/empty.ts", "export default { run: () => \"\" };");
    place.write("modules/generators/once.ts", "export default { run: () => ({ a: 1 }) };");
    let _server = place.serve(&["--modules", "modules"]);
    place.await_frames("xs.command.empty.active", 1);
    assert_eq!(place.ok(&["call", "empty"]).text(), "\n");
    place.await_frames("xs.generator.once.retrying", 1);
    let listed = place.ok(&["modules", "list"]).json();
    let once = listed.iter().find(|module| module["name"] == "once").unwrap();
    assert_eq!(once["error"], "it ended and was restarted");
}

#[test]
fn modules_new_does_not_overwrite_files() {
    let place = Sandbox::new();
    place.ok(&["modules", "new", "handler", "disk/usage", "--dir", "modules"]);
    let text = std::fs::read_to_string(place.path("modules/handlers/disk.usage.ts")).unwrap();
    assert!(text.contains("disk.usage.out"), "{text}");
    let run = place.xs(&["modules", "new", "handler", "disk.usage", "--dir", "modules"]);
    assert_eq!((run.code, run.err.contains("already exists")), (1, true), "{}", run.err);
}
