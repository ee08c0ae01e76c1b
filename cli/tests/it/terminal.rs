//! On a terminal: what people see, what they are asked, and that the terminal is restored
//! afterwards. The binary runs in a pseudo-terminal that it controls, as under a shell.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::Signal;

use crate::support::{PATIENCE, Sandbox, eventually, signal_pid, wait_within};

const COLUMNS: usize = 90;
const ENTER_SCREEN: &str = "\u{1b}[?1049h";
const LEAVE_SCREEN: &str = "\u{1b}[?1049l";
const CTRL_C: &str = "\u{3}";

/// What runs in the terminal: the binary, between two reports of the terminal's state.
const SCRIPT: &str = r#"
trap : INT
stty cols 90 rows 24
stty -g > "$0/before"
sh -c 'echo $$ > "$0/pid"; exec "$@"' "$0" "$@"
echo $? > "$0/code"
stty -g > "$0/after"
"#;

/// The binary in a terminal that `script` creates for it.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    /// What the script has noted.
    notes: PathBuf,
}

/// How it ended.
struct Ended {
    code: i32,
    shown: String,
    /// Whether the terminal is as it was before.
    clean: bool,
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

impl Terminal {
    fn run(place: &Sandbox, args: &[&str]) -> Self {
        Self::run_with(place, args, &[])
    }

    fn run_with(place: &Sandbox, args: &[&str], envs: &[(&str, &str)]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let notes = place.path(&format!("notes-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&notes).unwrap();
        let xs = place.command(&[]);
        let words =
            ["sh", "-c", SCRIPT, notes.to_str().unwrap(), xs.get_program().to_str().unwrap()];
        let line: Vec<_> = words.iter().chain(args).map(|word| quoted(word)).collect();
        let mut command = Command::new("script");
        command.args(["-qefc", &line.join(" "), "/dev/null"]);
        command.current_dir(xs.get_current_dir().unwrap());
        for (name, value) in xs.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("TERM", "xterm").env("SHELL", "/bin/sh").env_remove("NO_COLOR");
        command.envs(envs.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("script(1), of util-linux");
        let (keys, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let to = Arc::clone(&shown);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(len @ 1..) = from.read(&mut piece) {
                to.lock().unwrap().extend(&piece[..len]);
            }
        });
        Self { child, keys, shown, reader, notes }
    }

    fn note(&self, name: &str) -> String {
        fs::read_to_string(self.notes.join(name)).unwrap_or_default().trim().to_owned()
    }

    fn pid(&self) -> u32 {
        eventually(|| self.note("pid").parse().ok())
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn await_text(&self, text: &str) {
        eventually(|| self.shown().contains(text).then_some(()));
    }

    fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn end(mut self) -> Ended {
        wait_within(&mut self.child, PATIENCE);
        let code = self.note("code").parse().unwrap_or(-1);
        let clean = !self.note("after").is_empty() && self.note("after") == self.note("before");
        self.reader.join().unwrap();
        let shown = String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned();
        Ended { code, shown, clean }
    }
}

/// Text without its colours.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain += before;
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain + rest
}

fn filled() -> Sandbox {
    let place = Sandbox::new();
    let long = format!("{{\"cpu\":0.5,\"note\":\"{}\"}}", "x".repeat(200));
    place.ok(&["append", "metrics.recv", "--meta", &long, "body"]);
    place.ok(&["append", "t", "bell \u{7} and \u{1b}[31mred"]);
    place
}

#[test]
fn people_get_aligned_lines_in_colour_and_programs_json() {
    let place = filled();
    let ended = Terminal::run(&place, &["cat"]).end();
    assert_eq!((ended.code, ended.clean), (0, true), "{}", ended.shown);
    assert!(ended.shown.contains("\u{1b}[36mmetrics.recv\u{1b}[0m"), "{:?}", ended.shown);
    assert!(!ended.shown.contains('\u{7}') && !ended.shown.contains("\u{1b}[31m"));
    let lines: Vec<String> = plain(&ended.shown).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS), "{lines:?}");
    assert!(lines[0].contains("{\"cpu\":0.5") && !lines[0].contains("\"topic\""), "{lines:?}");
    let envs = [("NO_COLOR", "1")];
    let ended = Terminal::run_with(&place, &["cat"], &envs).end();
    assert!(!ended.shown.contains('\u{1b}'), "{:?}", ended.shown);
    let ended = Terminal::run_with(&place, &["topics"], &[("TERM", "dumb")]).end();
    assert!(
        ended.shown.starts_with("TOPIC ") && !ended.shown.contains('\u{1b}'),
        "{}",
        ended.shown
    );
    assert_eq!(place.ok(&["cat"]).json().len(), 2);
    // A template makes values harmless too, but not the text between them, which is the user's own.
    let ended = Terminal::run(&place, &["last", "t", "--format", "<{body}>"]).end();
    assert_eq!(ended.shown.trim_end(), "<bell   and  [31mred>");
}

#[test]
fn bodies_on_a_terminal_are_text_and_end_their_lines() {
    let place = filled();
    place.ok(&["append", "u", "one"]);
    place.xs_with(&["append", "u"], b"two\n");
    place.xs_with(&["append", "u"], b"\xff\xd8\0");
    let ended = Terminal::run(&place, &["cat", "-b", "u"]).end();
    let (text, left_out) = ended.shown.split_once("xs: ").unwrap_or_default();
    assert_eq!((ended.code, text), (0, "one\r\ntwo\r\n"), "{}", ended.shown);
    assert!(left_out.contains("binary body not shown"), "{left_out}");
    let ended = Terminal::run(&place, &["last", "-b", "t"]).end();
    assert!(!ended.shown.contains('\u{1b}'), "{:?}", ended.shown);
    assert_eq!(place.ok(&["cat", "-b", "u"]).out, b"onetwo\n\xff\xd8\0");
}

#[test]
fn a_missing_topic_suggests_a_similar_one() {
    let place = Sandbox::new();
    place.ok(&["append", "notes", "x"]);
    let ended = Terminal::run(&place, &["cat", "note"]).end();
    let said = "no matching frames in note; did you mean notes?\r\n";
    assert!(ended.code == 0 && ended.shown.contains(said), "{}", ended.shown);
    let ended = Terminal::run(&place, &["cat", "notes", "--until", "2020-01-01"]).end();
    assert!(ended.shown.contains("no matching frames in notes\r\n"), "{}", ended.shown);
}

#[test]
fn append_on_a_terminal_does_not_wait_for_a_body() {
    let place = Sandbox::new();
    let ended = Terminal::run(&place, &["append", "t"]).end();
    assert_eq!(ended.code, 0, "{}", ended.shown);
    let frames = place.frames("t");
    assert_eq!((frames.len(), &frames[0]["hash"]), (1, &().into()));
    // A dash asks for standard input: lines until Ctrl-D.
    let mut typed = Terminal::run(&place, &["append", "t", "-"]);
    typed.keys("typed\n\u{4}");
    let ended = typed.end();
    assert_eq!((ended.code, ended.clean), (0, true), "{}", ended.shown);
    assert_eq!(place.frames("t")[1]["body"], "typed\n");
}

#[test]
fn destructive_subcommands_ask_first() {
    let place = filled();
    for (answer, code, left) in [("\n", 1, 2), ("n\n", 1, 2), ("y\n", 0, 1)] {
        let mut asked = Terminal::run(&place, &["remove", "0"]);
        asked.await_text("About to remove 1 event for good. Continue? [y/N] ");
        asked.keys(answer);
        let ended = asked.end();
        assert_eq!((ended.code, ended.clean), (code, true), "{answer:?}: {}", ended.shown);
        assert_eq!(place.ok(&["cat"]).json().len(), left, "{answer:?}");
    }
    let ended = Terminal::run(&place, &["remove", "1", "--yes"]).end();
    assert_eq!(ended.code, 0);
}

#[test]
fn ctrl_c_ends_a_follower_or_a_question_and_restores_the_terminal() {
    let place = filled();
    let _server = place.serve(&[]);
    for args in [&["tail", "metrics."][..], &["cat", "-f", "--with-body", "metrics."]] {
        let mut tail = Terminal::run(&place, args);
        tail.await_text("metrics.recv");
        tail.keys(CTRL_C);
        let ended = tail.end();
        assert_eq!((ended.code, ended.clean), (130, true), "{args:?}: {}", ended.shown);
    }
    let mut asked = Terminal::run(&place, &["remove", "0"]);
    asked.await_text("[y/N] ");
    asked.keys(CTRL_C);
    let ended = asked.end();
    assert!(ended.clean && ended.code != 0, "{:?}", ended.code);
    assert_eq!(place.ok(&["cat"]).json().len(), 2, "nothing was removed");
}

#[test]
fn top_always_restores_the_terminal() {
    let place = filled();
    let server = place.serve(&[]);
    let begin = |args: &[&str]| {
        let top = Terminal::run(&place, args);
        top.await_text(ENTER_SCREEN);
        top.await_text("metrics.recv");
        top
    };
    let check = |top: Terminal, code: i32, how: &str| {
        let ended = top.end();
        assert_eq!((ended.code, ended.clean), (code, true), "{how}: {}", ended.shown);
        let left = ended.shown.rfind(LEAVE_SCREEN).unwrap_or_else(|| panic!("{how}"));
        assert!(left > ended.shown.rfind(ENTER_SCREEN).unwrap(), "{how}");
        assert!(ended.shown.rfind("\u{1b}[?25h") > ended.shown.rfind("\u{1b}[?25l"), "{how}");
        ended.shown[left..].to_owned()
    };
    let mut top = begin(&["top", "--every", "100ms", "xs.*", "*"]);
    top.await_text("xs.start");
    top.keys("/met\n");
    top.await_text("filter: met");
    top.keys("n");
    top.await_text("TOPIC*");
    top.keys("q");
    check(top, 0, "q");
    let mut top = begin(&["top"]);
    top.keys(CTRL_C);
    check(top, 130, "Ctrl-C");
    let top = begin(&["top"]);
    signal_pid(top.pid(), Signal::TERM);
    check(top, 130, "SIGTERM");
    let top = begin(&["top", "--every", "100ms"]);
    server.kill();
    let said = check(top, 5, "the server dies");
    assert!(said.contains("xs: "), "the error follows on the screen that is back: {said}");
}

#[test]
fn top_prints_once_without_a_terminal() {
    let place = filled();
    let _server = place.serve(&[]);
    let run = place.xs(&["top"]);
    assert_eq!((run.code, run.err.contains("--once")), (2, true), "{}", run.err);
    let lines = place.ok(&["top", "--once", "--every", "100ms", "--sort", "name"]).json();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!((&lines[0]["health"], &lines[0]["head"]), (&"writable".into(), &3.into()));
    assert_eq!((&lines[1]["topic"], &lines[1]["count"]), (&"metrics.recv".into(), &1.into()));
    let ended =
        Terminal::run(&place, &["top", "--once", "--every", "100ms", "--filter", "met"]).end();
    assert_eq!(ended.code, 0, "{}", ended.shown);
    let text = plain(&ended.shown);
    assert!(text.contains("TOPIC") && text.contains("metrics.recv"), "{text}");
    assert!(!text.contains("\nt ") && !ended.shown.contains(ENTER_SCREEN), "{text}");
}

#[test]
fn ctrl_c_cancels_a_prompt_line_and_twice_exits() {
    let place = filled();
    // The prompt reads keys itself once it has enabled bracketed paste.
    let ready = |typed: &Terminal, after: &str| {
        eventually(|| {
            let shown = typed.shown();
            (shown.rfind("\u{1b}[?2004h") > shown.rfind(after)).then_some(())
        });
    };
    let mut typed = Terminal::run(&place, &["eval"]);
    ready(&typed, "Ctrl-D exits");
    typed.keys("let kept = 'still', half");
    typed.await_text("half");
    typed.keys(CTRL_C);
    typed.await_text("press Ctrl-C again");
    ready(&typed, "press Ctrl-C again");
    typed.keys("let kept = 'still'\n");
    typed.await_text("'still'\u{1b}");
    ready(&typed, "'still'\u{1b}");
    // A line that waits is abandoned, and earlier declarations remain.
    for (n, line) in [
        "await new Promise((done) => setTimeout(done, 1e9))",
        "ctx.read({ topics: 'metrics.*', follow: true })",
    ]
    .into_iter()
    .enumerate()
    {
        typed.keys(&format!("console.log('at' + 'line{n}'); {line}\n"));
        typed.await_text(&format!("atline{n}"));
        typed.keys(CTRL_C);
        eventually(|| (typed.shown().matches("cancelled").count() == n + 1).then_some(()));
        ready(&typed, "cancelled");
        typed.keys(&format!("kept + '{n}'\n"));
        typed.await_text(&format!("still{n}"));
        ready(&typed, &format!("still{n}"));
    }
    // A line that keeps running can only be ended along with everything that was declared.
    for (n, line) in [
        "(async function* () { for (;;) { await ctx.last('t'); } })()",
        "for (;;) { await ctx.append('goes.on', {}); }",
    ]
    .into_iter()
    .enumerate()
    {
        typed.keys(&format!("let gone = 1; console.log('on' + 'line{n}'); {line}\n"));
        typed.await_text(&format!("online{n}"));
        typed.keys(CTRL_C);
        eventually(|| {
            (typed.shown().matches("declarations are lost").count() == n + 1).then_some(())
        });
        ready(&typed, "declarations are lost");
        typed.keys(&format!("typeof gone + '{n}'\n"));
        typed.await_text(&format!("undefined{n}"));
        ready(&typed, &format!("undefined{n}"));
    }
    typed.keys(
        "const last = () => ctx.last('goes.on').then((frame) => frame.id), was = await last();\
         await new Promise((done) => setTimeout(done, 100)); `it ${await last() === was}`\n",
    );
    typed.await_text("it true");
    ready(&typed, "it true");
    typed.keys(CTRL_C);
    eventually(|| (typed.shown().matches("press Ctrl-C again").count() == 2).then_some(()));
    ready(&typed, "press Ctrl-C again");
    typed.keys(CTRL_C);
    let ended = typed.end();
    assert_eq!((ended.code, ended.clean), (130, true), "{}", ended.shown);
    let mut typed = Terminal::run(&place, &["eval"]);
    ready(&typed, "Ctrl-D exits");
    typed.keys("\u{4}");
    let ended = typed.end();
    assert_eq!((ended.code, ended.clean), (0, true), "{}", ended.shown);
}

/// The outcome of each save is reported once, even while an invalid `xs.toml` keeps all saves from
/// being applied.
#[test]
fn dev_reports_each_failure_once() {
    let place = Sandbox::new();
    let good = "export default { topics: 'in', run() { throw new Error('kaboom'); } };";
    place.write("m/handlers/h.ts", good);
    let mut dev = Terminal::run(&place, &["dev", "m"]);
    dev.await_text("handlers/h.ts started");
    place.ok(&["append", "./m/.xs/dev", "in", "-n"]);
    dev.await_text("handlers/h.ts failed");
    place.write("m/handlers/h.ts", "export default nothing.here;");
    dev.await_text("nothing is not defined");
    place.write("m/xs.toml", "[modules.h]\nallow = [\"all\"]\n");
    dev.await_text("the modules keep running as before");
    dev.await_text("at xs.toml:2:10");
    // This version does not throw; until it is active, the old one retries the frame and fails
    // again.
    place.write("m/handlers/h.ts", "export default { topics: 'in', run() {} };");
    eventually(|| (dev.shown().matches("xs.toml:2:10").count() == 2).then_some(()));
    fs::remove_file(place.path("m/xs.toml")).unwrap();
    dev.await_text("xs.toml is valid again");
    eventually(|| (dev.shown().matches("handlers/h.ts started").count() == 2).then_some(()));
    dev.keys(CTRL_C);
    let ended = dev.end();
    let shown = plain(&ended.shown);
    for once in ["Error: kaboom", "nothing is not defined"] {
        assert_eq!(shown.matches(once).count(), 1, "{once}: {shown}");
    }
    assert!(!shown.contains("WARN") && !shown.contains("ERROR"), "{shown}");
}
