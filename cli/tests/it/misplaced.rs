//! Words in the wrong place: addresses where a directory is meant, stores that would be
//! overwritten, names that are taken. A refused command creates nothing.

use std::fs;

use crate::support::{Sandbox, eventually, text};

#[test]
fn an_address_is_not_taken_for_a_directory() {
    let place = Sandbox::new();
    for body in ["one", "two"] {
        place.ok(&["append", "./old", "t", body]);
    }
    place.ok(&["export", "-a", "./old", "dump"]);
    let _server = place.serve(&["--listen", ":0"]);
    let start = &place.await_frames("xs.start", 1)[0]["meta"];
    let tcp = start["listen"][1].as_str().unwrap().to_owned();
    let port = format!(":{}", tcp.rsplit_once(':').unwrap().1);
    assert_eq!(place.ok(&["import", "dump", &port, "--new-ids"]).json()[0]["new"], 2);
    assert_eq!(place.ok(&["cat", "t"]).json().len(), 2);
    for line in [&["verify", &port][..], &["compact", &tcp], &["gc", &port, "--dry-run"]] {
        let report = place.command(line).env("XS_ADDR", "./none").output().unwrap();
        let err = String::from_utf8_lossy(&report.stderr);
        assert!(report.status.success(), "{line:?}: {err}");
    }
    for (line, said) in [
        (&["dev", ":4100"][..], "-a :4100"),
        (&["test", "localhost:4100"], "-a localhost:4100"),
        (&["modules", "check", "xss://h:1"], "-a xss://h:1"),
        (&["export", ":4100"], "-a :4100"),
        (&["backup", "./old", ":4100"], "-a :4100"),
        (&["restore", ":4100", "new"], "works on files"),
        (&["repair", ":4100", "new"], "works on files"),
        (&["upgrade", ":4100"], "works on files"),
        (&["import", "dump", "http://h"], "a scheme that xs does not speak"),
        (&["serve", "new", "--listen", "foo"], "expected: :port, host:port"),
    ] {
        let run = place.xs(line);
        assert_eq!((run.code, run.err.contains(said)), (2, true), "xs {line:?}: {}", run.err);
    }
    for made in [&port, ":4100", "localhost:4100", "new", "foo", "xss:", "http:"] {
        assert!(!place.path(made).exists(), "{made}");
    }
}

#[test]
fn nothing_is_exported_into_a_store() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "x"]);
    place.ok(&["append", "./other", "t", "x"]);
    let run = place.xs(&["export", "./other"]);
    assert_eq!((run.code, run.err.contains("is a store")), (2, true), "{}", run.err);
    assert!(!place.path("other/frames.jsonl").exists() && !place.path("other/cas").exists());
    let run = place.xs(&["export", "./other", "./dump"]);
    let said = "xs export -a ./other ./dump";
    assert_eq!((run.code, run.err.contains(said)), (2, true), "{}", run.err);
}

#[test]
fn input_without_events_creates_no_store() {
    let place = Sandbox::new();
    place.write("bad/frames.jsonl", "no\n{\"topic\":\"9\"}\n");
    place.write("cut.tar.zst", "nothing of the kind");
    fs::create_dir_all(place.path("empty")).unwrap();
    for (from, said) in [
        ("bad", "is nothing to import; name a directory that xs export wrote, or an archive"),
        ("bad", ": line 1: "),
        ("cut.tar.zst", "cut.tar.zst"),
        ("empty", "is nothing to import"),
    ] {
        let run = place.xs(&["import", from, "new"]);
        assert_eq!((run.code, run.err.contains(said)), (1, true), "{from}: {}", run.err);
        assert!(!place.path("new").exists(), "{from}");
    }
}

#[test]
fn segments_without_a_manifest_are_repaired_and_not_overlooked() {
    let place = Sandbox::new();
    place.ok(&["append", "t", "x"]);
    for name in ["super.a", "super.b"] {
        fs::remove_file(place.store().join(name)).unwrap();
    }
    let store = place.store();
    for line in [&["cat"][..], &["verify"], &["backup", "copy"], &["doctor"]] {
        let run = place.xs(line);
        let said = format!("{0} has segments but no manifest; xs repair {0} INTO", text(&store));
        let all = format!("{}{}", run.err, run.text());
        assert!(run.code != 0 && all.contains(&said), "xs {line:?}: {all}");
    }
    place.ok(&["repair", text(&store), "saved"]);
    assert_eq!(place.ok(&["cat", "./saved", "-b"]).text(), "x");
}

#[test]
fn module_names_are_unique_across_kinds() {
    let place = Sandbox::new();
    for name in ["disk.usage", "mail"] {
        place.ok(&["modules", "new", "handler", name]);
    }
    place.write("commands/a/b.ts", "");
    for (kind, name, file) in [
        ("generator", "disk.usage", "handlers/disk.usage.ts"),
        ("command", "mail", "handlers/mail.ts"),
        ("handler", "a.b", "commands/a/b.ts"),
    ] {
        let run = place.xs(&["modules", "new", kind, name]);
        let said = format!("{file} has that name");
        assert_eq!((run.code, run.err.contains(&said)), (1, true), "{name}: {}", run.err);
    }
    assert!(!place.path("generators/disk.usage.ts").exists());
}

#[test]
fn check_reports_a_directory_without_modules() {
    let place = Sandbox::new();
    fs::create_dir_all(place.path("docs")).unwrap();
    let run = place.xs(&["modules", "check", "docs"]);
    assert_eq!((run.code, run.err.contains("holds no module")), (3, true), "{}", run.err);
    place.write("broken/xs.toml", "[anomaly\n");
    place.ok(&["modules", "new", "handler", "h", "--dir", "broken"]);
    let run = place.xs(&["modules", "check", "broken"]);
    assert_eq!((run.code, run.err.contains("xs.toml")), (1, true), "{}", run.err);
    let run = place.xs(&["replay", "modules/generators/g.ts"]);
    assert_eq!(run.code, 5, "there is no store yet: {}", run.err);
    place.ok(&["append", "t", "x"]);
    let run = place.xs(&["replay", "modules/generators/g.ts"]);
    let said = "replay runs handlers; modules/generators/g.ts is in generators/";
    assert_eq!((run.code, run.err.contains(said)), (2, true), "{}", run.err);
}

#[test]
fn internal_subcommands_are_not_suggested() {
    let place = Sandbox::new();
    for shell in ["bash", "fish", "zsh"] {
        let script = place.ok(&["completions", shell]).text();
        assert!(script.contains("import") && script.contains("addr"), "{shell}");
        let mut words = script.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        assert!(!words.any(|word| word == "__host" || word.ends_with("____host")), "{shell}");
    }
    let run = place.xs(&[]);
    assert_eq!((run.code, run.err.contains("__host")), (2, false), "{}", run.err);
}

/// No change is applied while the file is broken, and every view of the modules reports it.
#[test]
fn an_invalid_xs_toml_is_reported_while_modules_keep_running() {
    let place = Sandbox::new();
    let source = "export default { topics: 'in', run: (frame) => ({ n: 1 }) };";
    place.write("modules/handlers/h.ts", source);
    place.write("modules/handlers/apart.ts", source);
    place.write("modules/xs.toml", "[modules.apart]\nisolation = \"process\"\n");
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    place.await_frames("xs.handler.h.active", 1);
    place.await_frames("xs.handler.apart.active", 1);
    place.ok(&["modules", "list", "--check"]);
    place.write("modules/xs.toml", "[modules.h]\nallow = [3]\n");
    let told = place.await_frames("xs.host.config", 1);
    assert_eq!(told[0]["meta"]["error"]["line"], 2, "{}", told[0]);
    let list = place.xs(&["modules", "list", "--check"]);
    let rows = list.json();
    assert_eq!((list.code, rows.len()), (1, 3), "{}", list.text());
    assert_eq!(rows.iter().filter(|row| row["state"] == "active").count(), 2);
    let (row, error) = (&rows[2], rows[2]["error"].as_str().unwrap());
    assert_eq!((&row["file"], &row["state"]), (&"xs.toml".into(), &"invalid".into()));
    assert!(error.contains("(xs.toml:2:10); changes are ignored"), "{error}");
    let shown = &place.ok(&["modules", "show", "h"]).json()[0];
    assert_eq!((&shown["state"], &shown["xs.toml"]["column"]), (&"active".into(), &10.into()));
    assert!(shown["help"].as_str().unwrap().starts_with("fix xs.toml"), "{shown}");
    // A save meets the same error; the server's log reports each content of the file once.
    place.write("modules/handlers/h.ts", &source.replace('1', "2"));
    eventually(|| (place.frames("xs.host.config")[0]["id"] != told[0]["id"]).then_some(()));
    assert_eq!(place.log().matches("the modules are left unchanged").count(), 1);
    assert_eq!(place.frames("xs.handler.h.active").len(), 1);
    place.write("modules/xs.toml", "[modules.apart]\nisolation = \"process\"\n");
    place.await_frames("xs.handler.h.active", 2);
    eventually(|| place.frames("xs.host.config")[0]["meta"]["error"].is_null().then_some(()));
    assert_eq!(place.ok(&["modules", "list", "--check"]).json().len(), 2);
    // A server without modules does not repeat the error that the last one reported.
    place.write("modules/xs.toml", "[");
    eventually(|| place.frames("xs.host.config")[0]["meta"]["error"].is_object().then_some(()));
    assert!(server.stop().success(), "{}", place.log());
    assert_eq!(place.ok(&["modules", "list", "--check"]).json().len(), 2);
}
