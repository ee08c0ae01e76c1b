//! docs/tutorial.md, typed as it stands: its files are saved under their names, its commands are
//! one shell session, in its order, in an empty directory.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::{PATIENCE, Sandbox, output_within};

/// A page as a script, and the number of command lines in it. `sh` blocks are run, blocks with a
/// file name are saved, others are the output when the page was written.
pub(crate) fn script(page: &str) -> (String, usize) {
    let mut script = "set -eu\n".to_owned();
    let mut block: Option<&str> = None;
    let mut commands = 0;
    for line in page.lines() {
        match (block, line.strip_prefix("```")) {
            (None, Some(info)) => {
                block = Some(info);
                if let Some((_, file)) = info.split_once(' ') {
                    let dir = Path::new(file).parent().unwrap().display();
                    writeln!(script, "mkdir -p {dir}\ncat > {file} <<'END-OF-FILE'").unwrap();
                }
            }
            (Some(info), Some("")) => {
                block = None;
                if info.contains(' ') {
                    script += "END-OF-FILE\n";
                }
            }
            (Some(info), None) if info == "sh" || info.contains(' ') => {
                commands += usize::from(info == "sh");
                writeln!(script, "{line}").unwrap();
            }
            _ => {}
        }
    }
    assert!(block.is_none(), "a block is not closed");
    (script, commands)
}

/// A shell in a sandbox that runs a script with the binary on its path; its jobs end with it.
pub(crate) fn run(place: &Sandbox, script: &str) -> Output {
    let binaries = Path::new(env!("CARGO_BIN_EXE_xs")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let mut shell = place.shell(&format!("trap 'kill $server 2>/dev/null || :' EXIT\n{script}"));
    shell.env("PATH", path).env_remove("XS_ADDR");
    let child = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    output_within(child, PATIENCE * 3)
}

#[test]
fn the_tutorial_works() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/tutorial.md");
    let place = Sandbox::new();
    let (script, commands) = script(&fs::read_to_string(page).unwrap());
    assert!(commands > 30, "the page was read");
    let output = run(&place, &script);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{out}\n{err}");
    let text = |name: &str| fs::read_to_string(place.path(&format!("watch/{name}"))).unwrap();
    assert_eq!(
        text("pages.txt"),
        "PAGE: 10:00:03 ERROR cannot reach the database\n\
         PAGE: 10:01:05 ERROR disk is full\n\
         PAGE: 10:02:01 ERROR still down\n",
        "{out}\n{err}"
    );
    assert_eq!(
        text("summary.txt"),
        "{\"message\":\"cannot reach the database\",\"count\":3}\n\
         {\"message\":\"disk is full\",\"count\":2}\n"
    );
    assert!(place.path("watch/backup/super.a").exists());
}
