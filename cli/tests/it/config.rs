//! `xs serve --config`: what a file sets, what overrides it, and what is wrong with it.

use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{PATIENCE, Sandbox, signal, text, wait_within};

#[test]
fn paths_in_an_options_file_are_relative_to_it() {
    let place = Sandbox::new();
    place.write("etc/modules/handlers/.keep", "");
    let file = place.write(
        "etc/serve.toml",
        "store = \"../store\"\nmodules = \"modules\"\nsync = \"none\"\nlisten = [\":0\", \"s/l.sock\"]\n",
    );
    std::fs::create_dir(place.path("etc/s")).unwrap();
    let log = std::fs::File::create(place.path("log")).unwrap();
    let mut serve = place.command(&["serve", "--config", text(&file), "--sync", "interval:50ms"]);
    // The store in the file takes precedence over that of the environment.
    let serve = serve.current_dir("/").env("XS_ADDR", "/nowhere").stderr(log);
    let mut child = serve.stdout(Stdio::null()).spawn().unwrap();
    let ping = place.xs(&["ping", "--wait", "4m"]);
    assert_eq!(ping.code, 0, "{}\n{}", ping.err, place.log());
    let start = &place.await_frames("xs.start", 1)[0]["meta"];
    assert_eq!(start["sync"], "interval:50ms", "what is typed counts more");
    let listening: Vec<_> =
        start["listen"].as_array().unwrap().iter().map(|at| at.as_str().unwrap()).collect();
    assert!(listening[1].starts_with("127.0.0.1:"), "{listening:?}");
    assert_eq!(listening[2], text(&place.path("etc/s/l.sock")), "{listening:?}");
    assert_eq!(start["modules"], text(&place.path("etc/modules")));
    place.ok(&["append", listening[2], "t", "x"]);
    signal(&child, Signal::TERM);
    assert!(wait_within(&mut child, PATIENCE).success());
}

#[test]
fn a_bad_options_file_is_refused_and_nothing_is_created() {
    let place = Sandbox::new();
    for (file, said) in [
        (
            "store = \"s\"\nlisten = \":1\"\nstoer = \"s\"\n",
            "bad.toml:3: \"stoer\" is not an option of",
        ),
        ("store = \"s\"\nsync = \"soon\"\n", "bad.toml:2: sync: invalid value 'soon'"),
        ("store = \"s\"\n\nlog-level = [\"info\"]\n", "bad.toml:3: log-level: text in quotes"),
        ("store = \"s\"\ntls-cert = \"cert.pem\"\n", "--tls-key"),
        ("store = \"s\"\nlisten = \"0.0.0.0:1\"\n", "not a loopback address"),
        ("store = s\n", "bad.toml:1: "),
    ] {
        place.write("bad.toml", file);
        let run = place.xs(&["serve", "--config", "bad.toml"]);
        assert_eq!(run.code, 2, "{file}: {}", run.err);
        assert!(run.err.contains(said), "{file}: {}", run.err);
    }
    assert_eq!(place.xs(&["serve", "--config", "none.toml"]).code, 2);
    assert!(!place.path("s").exists());
}

#[test]
fn print_config_output_is_a_fixed_point() {
    let place = Sandbox::new();
    let args = ["serve", "./s", "--listen", ":0", "--sync", "none", "--allow-run"];
    let printed = place.ok(&[&args[..], &["--print-config"]].concat()).text();
    for line in [
        format!("store = \"{}\"", text(&place.path("s"))),
        "listen = [\":0\"]".to_owned(),
        "sync = \"none\"".to_owned(),
        "allow-run = true".to_owned(),
        "# allow-net-any = false".to_owned(),
        "# log-level = \"info\"".to_owned(),
    ] {
        assert!(printed.lines().any(|found| found == line), "{line}\n{printed}");
    }
    let file = place.write("elsewhere/printed.toml", &printed);
    let again = place.ok(&["serve", "--config", text(&file), "--print-config"]).text();
    assert_eq!(again, printed);
    assert!(!place.path("s").exists(), "printing makes no store");
}

/// However the store is named, a server started from the printed file serves the same one.
#[test]
fn print_config_names_the_store() {
    let place = Sandbox::new();
    let of = |dir: &str| format!("store = \"{}\"", text(&place.path(dir)));
    let printed = |args: &[&str]| place.ok(&[args, &["--print-config"]].concat()).text();
    let holds = |printed: &str, line: &str| printed.lines().any(|found| found == line);
    let by_option = printed(&["serve", "-a", "./s"]);
    assert!(holds(&by_option, &of("s")), "{by_option}");
    // Tests set $XS_ADDR to the store.
    let by_variable = printed(&["serve"]);
    assert!(holds(&by_variable, &of("store")), "{by_variable}");
    let file = place.write("elsewhere/printed.toml", &by_option);
    assert_eq!(printed(&["serve", "--config", text(&file)]), by_option);
    let elsewhere = printed(&["serve", "-a", ":4000"]);
    assert!(holds(&elsewhere, "# store = \"\""), "{elsewhere}");
}

#[test]
fn the_example_options_file_is_valid() {
    let place = Sandbox::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/serve.toml");
    let printed = place.ok(&["serve", "--config", example, "--print-config"]).text();
    assert!(printed.contains("\nlog = \"json\"\n"), "{printed}");
}
