//! Ends of servers and Hosts, orderly and by kill -9: readers continue where they were, and learn
//! how.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::client::{connect, runtime};
use crate::support::{PATIENCE, Run, Sandbox, eventually, output_within, text};

/// Ends of each kind.
const ENDS: u64 = 3;
/// Lines written before each.
const LINES: u64 = 40;

fn tailing(path: &str) -> String {
    format!(
        "import {{ generator }} from \"xs\";\n\
         export default generator({{ permissions: {{ read: [{path:?}] }}, async *run(ctx) {{\n\
         for await (const line of ctx.tail({path:?})) yield {{ line: Number(line) }}; }} }});\n"
    )
}

/// Where the generator continues, if it has kept a position.
fn place_of_tail(place: &Sandbox) -> Option<u64> {
    runtime().block_on(async {
        let client = connect(&place.store()).await;
        let all = client.cursor_list().await.unwrap();
        let of_tail = |name: &str| name.starts_with("xs.generator.lines:");
        let kept = all.into_iter().find(|cursor| of_tail(cursor.name.as_str()))?;
        let cursor = client.cursor_get(&kept.name).await.unwrap()?;
        serde_json::from_slice::<Value>(&cursor.state).unwrap()["offset"].as_u64()
    })
}

/// A stop may come at any moment; a crash repeats nothing once the position after the lines is
/// kept.
#[test]
fn each_line_of_a_tailed_file_is_an_event_once_over_stops_and_kills() {
    let place = Sandbox::new();
    let path = place.write("app.log", "");
    place.write("modules/generators/lines.ts", &tailing(text(&path)));
    let mut file = File::options().append(true).open(&path).unwrap();
    let mut written = 0;
    let mut write = || {
        for _ in 0..LINES {
            writeln!(file, "{written}").unwrap();
            written += 1;
        }
        (written, fs::metadata(&path).unwrap().len())
    };
    for end in 0..2 * ENDS {
        let serving = place.serve(&["--modules", "modules", "--sync", "none"]);
        if end == 0 {
            // It begins at the end of the file at that time.
            eventually(|| place_of_tail(&place));
        }
        let (lines, bytes) = write();
        if end % 2 == 0 {
            // Some of them are being turned into events now.
            place.await_frames("lines.recv", (lines - LINES + 1) as usize);
            assert!(serving.stop().success(), "{}", place.log());
        } else {
            eventually(|| (place_of_tail(&place)? == bytes).then_some(()));
            serving.kill();
        }
    }
    let (lines, _) = write();
    let server = place.serve(&["--modules", "modules", "--sync", "none"]);
    let frames = place.await_frames("lines.recv", lines as usize);
    let found: Vec<_> = frames.iter().map(|frame| frame["meta"]["line"].clone()).collect();
    assert_eq!(found, (0..lines).map(|n| json!(n)).collect::<Vec<_>>());
    assert!(server.stop().success(), "{}", place.log());
    assert_eq!(place.frames("lines.recv").len() as u64, lines);
}

/// The command in the message continues with the first event that was not printed.
#[test]
fn a_reader_prints_how_to_resume_when_its_server_is_killed() {
    let place = Sandbox::new();
    for (line, cursor) in [
        (&["cat", "-f", "in"][..], None),
        (&["tail", "in"], None),
        (&["cat", "-f", "--cursor", "c", "in"], Some("c")),
        (&["tail", "--cursor", "t", "in"], Some("t")),
    ] {
        let server = place.serve(&["--sync", "none"]);
        let before = place.ok(&["append", "in", "before"]).json()[0]["id"].clone();
        let mut reader = place.command(line);
        let mut reader = reader.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut printed = BufReader::new(reader.stdout.take().unwrap()).lines();
        let newest = printed.find(|line| {
            let frame: Value = serde_json::from_str(line.as_ref().unwrap()).unwrap();
            frame["id"] == before
        });
        assert!(newest.is_some(), "{line:?}");
        server.kill();
        let run = Run::from(output_within(reader, PATIENCE));
        assert_eq!(run.code, 5, "{line:?}: {}", run.err);
        assert!(run.err.contains("the server is gone ("), "{line:?}: {}", run.err);
        let _server = place.serve(&["--sync", "none"]);
        let added = place.ok(&["append", "in", "after"]).json()[0]["id"].clone();
        if let Some(cursor) = cursor {
            let said = "; the same command continues from its cursor";
            assert!(run.err.trim_end().ends_with(said), "{line:?}: {}", run.err);
            let rest = place.ok(&["cat", "--cursor", cursor, "in"]).json();
            assert_eq!(rest.last().unwrap()["id"], added, "{line:?}");
        } else {
            let advice = run.err.split("; to continue, run xs ").nth(1).unwrap();
            let words: Vec<_> = advice.split(" with ").next().unwrap().split(' ').collect();
            let words = [&words[..], &["--limit", "1", "in"]].concat();
            assert_eq!(place.ok(&words).json()[0]["id"], added, "{line:?}: {}", run.err);
        }
    }
}
