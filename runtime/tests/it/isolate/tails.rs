//! `ctx.tail` over rotations: no line is lost, and none is repeated.

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use super::*;

const ENTRY: &str = "generators/it.js";

/// A log, and a generator that reads it.
struct Log {
    _dir: TempDir,
    path: PathBuf,
    modules: Modules,
    memory: Arc<Memory>,
}

impl Log {
    fn new(text: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, text).unwrap();
        let at = path.display();
        let source = format!(
            "export default {{ permissions: {{ read: ['{at}'] }}, async *run(ctx) {{ \
               for await (const line of ctx.tail('{at}')) yield line.slice(0, 10); }} }};"
        );
        let modules = Modules::new(&[(ENTRY, &source)]);
        Self { _dir: dir, path, modules, memory: Memory::new() }
    }

    fn beside(&self, more: &str) -> PathBuf {
        PathBuf::from(format!("{}{more}", self.path.display()))
    }

    fn rotate(&self, more: &str, text: &str) {
        fs::rename(&self.path, self.beside(more)).unwrap();
        fs::write(&self.path, text).unwrap();
    }

    /// Like [`Log::rotate`], once the clock of the files has moved on: creation orders them.
    fn rotate_later(&self, more: &str, text: &str) {
        let born = || fs::metadata(&self.path).unwrap().created().unwrap();
        fs::rename(&self.path, self.beside(more)).unwrap();
        let before = fs::metadata(self.beside(more)).unwrap().created().unwrap();
        fs::write(&self.path, text).unwrap();
        while born() <= before {
            fs::remove_file(&self.path).unwrap();
            fs::write(&self.path, text).unwrap();
        }
    }

    fn append(&self, more: &str, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).open(self.beside(more)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn position(&self) -> Option<Value> {
        let position = self.memory.position(&format!("tail:{}", self.path.display()))?;
        serde_json::from_slice(&position).ok()
    }

    fn set_position(&self, position: &Value) {
        let key = format!("tail:{}", self.path.display());
        self.memory.set_position(&key, Bytes::from(position.to_string()));
    }

    /// Runs until a condition holds.
    async fn run_until(&self, is_so: impl Fn() -> bool) {
        let until = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let spec = spec(ENTRY, self.modules.graph(ENTRY).unwrap());
        let (isolate, _) = Isolate::start(spec, self.memory.clone()).await.unwrap();
        tokio::select! {
            ended = isolate.run_generator() => panic!("{ended:?}"),
            () = soon(until) => {}
        }
        soon(isolate.stop()).await.unwrap();
    }

    fn lines(&self) -> Vec<String> {
        self.memory.topic("it.recv").iter().map(|frame| self.memory.body(frame)).collect()
    }

    /// Runs until there are `lines` lines and the position after them is stored.
    async fn run_to(&self, lines: usize, offset: usize) {
        self.run_until(|| {
            self.lines().len() >= lines
                && self.position().is_some_and(|position| position["offset"] == offset)
        })
        .await;
    }
}

/// Regression test: a read without the end of a line was taken for the end of the file.
#[tokio::test]
async fn a_long_line_does_not_end_a_file_that_was_moved() {
    let log = Log::new("old\n");
    log.run_to(0, 4).await;
    log.append("", &format!("{}\nA\n", "x".repeat(200 * 1024)));
    log.rotate(".1", "B\n");
    log.run_to(3, 2).await;
    assert_eq!(log.lines(), ["xxxxxxxxxx", "A", "B"]);
}

/// A program that writes the file has it open until it learns of the rotation.
#[tokio::test]
async fn what_is_added_to_a_file_that_was_moved_comes_first() {
    while !is_added_in_time().await {}
}

/// Whether the addition came before the moved file was abandoned: this thread may have been
/// suspended.
async fn is_added_in_time() -> bool {
    let log = Log::new("");
    log.run_to(0, 0).await;
    let writer = fs::OpenOptions::new().append(true).open(&log.path).unwrap();
    (&writer).write_all(b"A\n").unwrap();
    let (rotated, is_done) = (Cell::new(None::<Instant>), Cell::new(false));
    let is_late = Cell::new(false);
    log.run_until(|| {
        match rotated.get() {
            None if log.lines() == ["A"] => {
                log.rotate(".1", "C\n");
                rotated.set(Some(Instant::now()));
            }
            // Long enough for the new file to be noticed.
            Some(at) if !is_done.get() && at.elapsed() > Duration::from_millis(400) => {
                (&writer).write_all(b"B\nend").unwrap();
                is_late.set(at.elapsed() > Duration::from_millis(900));
                is_done.set(true);
            }
            _ => {}
        }
        is_late.get() || log.lines().len() >= 4
    })
    .await;
    if is_late.get() {
        return false;
    }
    log.run_to(4, 2).await;
    assert_eq!(log.lines(), ["A", "B", "end", "C"]);
    true
}

#[tokio::test]
async fn what_was_rotated_meanwhile_is_finished() {
    let log = Log::new("old\n");
    log.run_to(0, 4).await;
    log.append("", "A\n");
    log.run_to(1, 6).await;
    log.append("", "B\n");
    log.rotate(".1", "C\n");
    log.run_to(3, 2).await;
    assert_eq!(log.lines(), ["A", "B", "C"]);
    assert!(log.memory.logs().is_empty());
    // Only a file that was moved from this name to a derived one is read, not one with another
    // name.
    log.append("", "D\n");
    fs::rename(&log.path, log.path.with_file_name("other")).unwrap();
    fs::write(&log.path, "E\n").unwrap();
    log.run_until(|| log.lines().len() >= 4).await;
    assert_eq!(log.lines(), ["A", "B", "C", "E"]);
    assert!(log.memory.logs()[0].1.contains("the rest of it is not read"));
}

/// Regression test: all of it was read again.
/// The files between are read by their age, whatever their names say.
#[tokio::test]
async fn what_was_rotated_more_than_once_is_read_in_order() {
    for names in [[".3", ".2", ".1"], ["-20260101", "-20260102", ".0103"]] {
        let log = Log::new("A\n");
        log.run_to(0, 2).await;
        log.append("", "B\n");
        log.rotate_later(names[0], "C\n");
        // None of these was rotated.
        for (other, text) in [(".gz", "D\n"), (".1.gz", "E\n"), ("s", "F\n")] {
            fs::write(log.beside(other), text).unwrap();
        }
        log.rotate_later(names[1], "G\nH");
        log.rotate_later(names[2], "I\n");
        log.run_to(5, 2).await;
        assert_eq!(log.lines(), ["B", "C", "G", "H", "I"], "{names:?}");
        assert!(log.memory.logs().is_empty(), "{:?}", log.memory.logs());
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_at_first_goes_on_where_it_was() {
    let log = Log::new("old\n");
    log.run_to(0, 4).await;
    log.append("", "A\n");
    log.run_to(1, 6).await;
    fs::rename(&log.path, log.path.with_file_name("hidden")).unwrap();
    let began = Instant::now();
    let is_back = Cell::new(false);
    log.run_until(|| {
        // Long enough for the tail to look for the file; nothing shows that it did.
        if !is_back.get() && began.elapsed() > Duration::from_millis(500) {
            fs::rename(log.path.with_file_name("hidden"), &log.path).unwrap();
            log.append("", "B\n");
            is_back.set(true);
        }
        log.lines().len() >= 2
    })
    .await;
    log.run_to(2, 8).await;
    assert_eq!(log.lines(), ["A", "B"]);
}

/// The line at which it was thrown counts as handled, like those before it; the lines after it do
/// not.
#[tokio::test]
async fn a_line_that_cannot_be_handled_is_met_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, (0..100).map(|n| format!("{n}\n")).collect::<String>()).unwrap();
    let at = path.display();
    let source = format!(
        "export default {{ permissions: {{ read: ['{at}'] }}, async *run(ctx) {{ \
           for await (const line of ctx.tail('{at}', {{ first: 'start' }})) {{ \
             if (line === '50') throw new Error('bad'); if (line === '70') break; yield line; }} }} }};"
    );
    let (isolate, _, memory) = start(ENTRY, &source).await.unwrap();
    let error = soon(isolate.run_generator()).await.unwrap_err();
    assert!(error.message.contains("bad"), "{error}");
    soon(isolate.run_generator()).await.unwrap();
    let mut run = Box::pin(isolate.run_generator());
    let lines = tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        lines = soon(memory.wait("it.recv", 98)) => lines,
    };
    let lines: Vec<_> = lines.iter().map(|frame| memory.body(frame)).collect();
    let want = (0..100).filter(|n| *n != 50 && *n != 70).map(|n| n.to_string());
    assert_eq!(lines, want.collect::<Vec<_>>());
}

/// A new file may have the inode number of a deleted one. Regression test: its beginning was
/// skipped.
#[tokio::test]
async fn a_file_with_the_number_of_another_one_is_read_from_its_beginning() {
    let log = Log::new("old\n");
    log.run_to(0, 4).await;
    log.append("", "A\n");
    log.run_to(1, 6).await;
    let mut position = log.position().unwrap();
    // As positions were stored before they had a `birth`.
    let birth = position.as_object_mut().unwrap().remove("birth");
    log.set_position(&position);
    log.append("", "B\n");
    log.run_to(2, 8).await;
    assert_eq!(log.lines(), ["A", "B"]);
    let Some(birth) = birth.as_ref().and_then(Value::as_u64) else { return };
    let mut position = log.position().unwrap();
    assert_eq!(position["birth"], birth);
    position["birth"] = json!(birth - 1);
    log.set_position(&position);
    log.run_to(5, 8).await;
    assert_eq!(log.lines(), ["A", "B", "old", "A", "B"]);
    // Nor is the moved file taken for the one that was read: it came after that.
    log.set_position(&position);
    log.rotate_later(".1", "C\n");
    log.run_to(9, 2).await;
    assert_eq!(log.lines()[5..], ["old", "A", "B", "C"]);
    assert!(log.memory.logs().iter().all(|(_, line)| line.contains("is not read")));
}

/// Regression test: each cut could fall within a character, and removed a carriage return that did
/// not end a line.
#[tokio::test]
async fn a_line_that_is_too_long_is_cut_between_characters() {
    const MAX: usize = 1024 * 1024;
    for long in [
        format!("x{}", "\u{e9}".repeat(MAX)),
        format!("{}{}", "x".repeat(MAX - 2), "\u{1f600}".repeat(8)),
        format!("{}\r{}", "x".repeat(MAX - 1), "y".repeat(80_000)),
    ] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, format!("{long}\r\nend\n")).unwrap();
        let at = path.display();
        let source = format!(
            "export default {{ permissions: {{ read: ['{at}'] }}, async *run(ctx) {{ \
               for await (const line of ctx.tail('{at}', {{ first: 'start' }})) {{ \
                 yield line; if (line === 'end') return; }} }} }};"
        );
        let (isolate, _, memory) = start(ENTRY, &source).await.unwrap();
        soon(isolate.run_generator()).await.unwrap();
        let lines: Vec<_> =
            memory.topic("it.recv").iter().map(|frame| memory.body(frame)).collect();
        assert!(lines.len() > 2, "it is cut");
        assert!(lines.concat() == format!("{long}end"));
    }
}
