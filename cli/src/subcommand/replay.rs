//! `replay`: what a handler's file would have made of the store's history. Appends nothing; with
//! `--diff` the result is compared with what the processor of its name recorded.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use jiff::Zoned;
use serde_json::{Value, json};
use xs_engine::{BlobHash, Body, Bound, Frame, FrameId, NewFrame, ReadOptions, Start};
use xs_protocol::Client;
use xs_runtime::host::replay::{Candidate, Made, Recorded, recorded, replay, state_for};
use xs_runtime::isolate::{LogLevel, ModuleError};
use xs_runtime::{Kind, ProcessorName};

use super::{bodies, modules};
use crate::args::ReplayArgs;
use crate::connect::explain;
use crate::exit::{Exit, ExitError};
use crate::json;
use crate::output::{Output, Paint, aside, notice};
use crate::variables;

/// Maximum number of outputs compared, on each side.
const COMPARED_MAX: usize = 200_000;
/// Maximum bytes of a body shown in a line of a comparison.
const SHOWN_BYTES: u64 = 200;

pub(super) async fn run(
    client: &Client,
    args: &ReplayArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    if let Some(name) = name_for_file(&args.module) {
        let text = format!("replay takes a handler's file, as modules/handlers/{name}.ts");
        return ExitError::fail(Exit::Usage, text);
    }
    if let Some(dir) = dir_of_others(&args.module) {
        let text = format!("replay runs handlers; {} is in {dir}/", args.module.display());
        return ExitError::fail(Exit::Usage, text);
    }
    let mut range = args.range(&Zoned::now()).map_err(|text| ExitError::new(Exit::Usage, text))?;
    let env = variables::offered(&args.env)?;
    let candidate = Candidate::load(&args.module, args.name.clone(), env);
    let candidate = candidate.map_err(|error| told(&error))?;
    let saved = match args.state_at {
        Some(at) => {
            range.start = Start::After(Bound::Id(at));
            state_for(client, &candidate, at).await.map_err(failed)?
        }
        None => None,
    };
    if args.diff {
        return Diff { client, candidate: &candidate }.run(range, saved, out).await;
    }
    let (mut lost, mut inputs, mut outputs) = (None, 0_u64, 0_u64);
    let ended = replay(client, &candidate, range, saved, Box::new(say), |made| {
        inputs += 1;
        outputs += made.outputs.len() as u64;
        match print(&made, out) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                lost = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    let ended = ended.await;
    if let Some(error) = lost {
        return Err(error.into());
    }
    out.flush()?;
    if out.is_person() {
        notice(&format!("{outputs} events of {inputs} inputs; nothing was appended"));
    }
    ended.map(|()| Exit::Ok).map_err(failed)
}

/// A module's name, typed where its file is expected.
fn name_for_file(file: &Path) -> Option<&str> {
    let name = file.to_str()?;
    let is_file = [".ts", ".js", "/"].iter().any(|part| name.contains(part)) || file.exists();
    (!is_file && ProcessorName::parse(name).is_ok()).then_some(name)
}

/// The directory of another kind that contains a file.
fn dir_of_others(file: &Path) -> Option<&'static str> {
    let above = file.ancestors().skip(1).filter_map(Path::file_name);
    let mut dirs = above.filter_map(|name| Kind::ALL.into_iter().find(|kind| name == kind.dir()));
    dirs.next().filter(|kind| *kind != Kind::Handler).map(Kind::dir)
}

/// Prints the handler's log lines on standard error.
fn say(level: LogLevel, line: &str) {
    aside(&format!("{}: {line}", level.as_str()));
}

fn told(error: &ModuleError) -> ExitError {
    ExitError::new(Exit::Failed, modules::describe(&error.to_json()).trim_end().to_owned())
}

fn failed(error: xs_runtime::host::replay::ReplayError) -> anyhow::Error {
    use xs_runtime::host::replay::ReplayError;
    match error {
        ReplayError::Store(error) => explain(error),
        ReplayError::Module(error) => told(&error).into(),
        ReplayError::NoSource(_) => ExitError::new(Exit::NotFound, error.to_string()).into(),
    }
}

fn print(made: &Made, out: &mut Output) -> std::io::Result<()> {
    let input = made.input.id();
    for frame in &made.outputs {
        let body = inline(frame);
        let length = body.map(|body| (body.len() as u64, BlobHash::of(body)));
        // A person sees the time and the id of its input: it has none of its own.
        match Frame::assemble(frame, input, None, length) {
            Ok(shown) if out.is_person() => out.frame(&shown, body.map(|body| &body[..]))?,
            Ok(shown) => {
                let line = json::frame(&shown, body.map(|body| &body[..]));
                let id = format!(",\"id\":\"{input}\"");
                out.line(&line.replacen(&id, &format!(",\"input\":\"{input}\""), 1))?;
            }
            Err(error) => return Err(std::io::Error::other(error.to_string())),
        }
    }
    match &made.error {
        Some(error) if out.is_person() => {
            let text = out.paint(Paint::Bad, &format!("{input} threw: {error}"));
            out.line(&text)
        }
        Some(error) => {
            let line = json!({ "input": input.to_string(), "error": error.to_json() });
            out.line(&line.to_string())
        }
        None => Ok(()),
    }
}

fn inline(frame: &NewFrame) -> Option<&Bytes> {
    match &frame.body {
        Body::Inline(bytes) if !bytes.is_empty() => Some(bytes),
        _ => None,
    }
}

/// An output, reduced to what is compared.
#[derive(PartialEq)]
struct Line {
    topic: String,
    ttl: String,
    meta: Value,
    hash: Option<BlobHash>,
    /// How its body is shown: not compared, since the hash is.
    body: Shown,
}

/// The display form of a body, ignored by comparisons.
struct Shown(String);

impl PartialEq for Shown {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Line {
    fn made(frame: &NewFrame) -> Self {
        let body = inline(frame);
        Self {
            topic: frame.topic.as_str().to_owned(),
            ttl: frame.ttl.to_string(),
            meta: serde_json::from_slice(frame.meta.as_bytes()).unwrap_or_default(),
            hash: body.map(|body| BlobHash::of(body)).or(match &frame.body {
                Body::Stored(hash) => Some(*hash),
                _ => None,
            }),
            body: Shown(body.map_or_else(String::new, |body| shown(body))),
        }
    }

    async fn recorded(client: &Client, frame: &Frame) -> anyhow::Result<Self> {
        let body = match frame.hash() {
            Some(_) if frame.body_len() <= SHOWN_BYTES => {
                shown(&bodies::whole(client, frame).await?)
            }
            Some(hash) => sized(frame.body_len(), &hash),
            None => String::new(),
        };
        Ok(Self {
            topic: frame.topic().to_owned(),
            ttl: frame.ttl().to_string(),
            meta: serde_json::from_slice(frame.meta()).unwrap_or_default(),
            hash: frame.hash(),
            body: Shown(body),
        })
    }

    fn text(&self) -> String {
        let mut text = self.topic.clone();
        if !self.meta.is_null() {
            text += &format!(" {}", self.meta);
        }
        if !self.body.0.is_empty() {
            text += &format!(" {}", self.body.0);
        }
        if self.ttl != "forever" {
            text += &format!(" ttl {}", self.ttl);
        }
        text
    }
}

fn shown(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) if body.len() as u64 <= SHOWN_BYTES => json::text(text),
        _ => sized(body.len() as u64, &BlobHash::of(body)),
    }
}

fn sized(bytes: u64, hash: &BlobHash) -> String {
    format!("[{bytes} bytes, {hash}]")
}

/// One input of a comparison.
struct Compared {
    id: FrameId,
    topic: String,
    made: Vec<Line>,
    error: Option<String>,
}

impl Compared {
    /// An input that was not given to the candidate.
    fn none(id: FrameId) -> Self {
        Self { id, topic: "not an input of it".to_owned(), made: Vec::new(), error: None }
    }
}

struct Diff<'a> {
    client: &'a Client,
    candidate: &'a Candidate,
}

impl Diff<'_> {
    async fn run(
        &self,
        range: ReadOptions,
        saved: Option<(Bytes, xs_runtime::host::replay::Code)>,
        out: &mut Output,
    ) -> anyhow::Result<Exit> {
        let (mut inputs, mut count) = (BTreeMap::new(), 0);
        let asked = range.clone();
        let ended = replay(self.client, self.candidate, range, saved, Box::new(say), |made| {
            let Some(offset) = made.input.offset() else { return ControlFlow::Continue(()) };
            count += 1 + made.outputs.len();
            let compared = Compared {
                id: made.input.id(),
                topic: made.input.topic().to_owned(),
                made: made.outputs.iter().map(Line::made).collect(),
                error: made.error.map(|error| error.to_string()),
            };
            inputs.insert(offset, compared);
            if count > COMPARED_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let ended = ended.await;
        // Nothing is compared after the point where it stopped.
        let newest = inputs.last_key_value().map(|(offset, _)| *offset);
        let stopped = ended.is_err() || asked.limit.is_some();
        let last = if stopped { Some(newest.unwrap_or_default()) } else { None };
        let key = &self.candidate.key;
        let given = |offset| inputs.contains_key(&offset);
        let found = recorded(self.client, key, &asked, given, last, COMPARED_MAX + 1).await;
        let found = found.map_err(explain)?;
        if count > COMPARED_MAX || found.len() > COMPARED_MAX {
            let text = format!(
                "more than {COMPARED_MAX} inputs and events; narrow it with --from and --limit"
            );
            return ExitError::fail(Exit::Failed, text);
        }
        let mut before: BTreeMap<u64, Vec<Line>> = BTreeMap::new();
        for Recorded { offset, input, frame } in &found {
            let line = Line::recorded(self.client, frame).await?;
            before.entry(*offset).or_default().push(line);
            // It may no longer be an input of the candidate.
            inputs.entry(*offset).or_insert_with(|| Compared::none(*input));
        }
        let mut different = 0;
        for (offset, compared) in &inputs {
            let was = before.remove(offset).unwrap_or_default();
            if was != compared.made {
                different += 1;
                hunk(*offset, compared, &was, out)?;
            }
        }
        out.flush()?;
        let same = inputs.len() - different;
        aside(&format!("{same} inputs with the same events, {different} with different ones"));
        ended.map_err(failed)?;
        Ok(if different == 0 { Exit::Ok } else { Exit::Failed })
    }
}

/// Prints one input whose outputs differ.
fn hunk(offset: u64, compared: &Compared, was: &[Line], out: &mut Output) -> std::io::Result<()> {
    let head = format!("@@ {} {} (offset {offset}) @@", compared.id, compared.topic);
    let head = out.paint(Paint::Name, &head);
    out.line(&head)?;
    for (sign, line) in differences(was, &compared.made) {
        out.line(&format!("{sign}{}", line.text()))?;
    }
    match &compared.error {
        Some(error) => {
            let text = out.paint(Paint::Bad, &format!("! {error}"));
            out.line(&text)
        }
        None => Ok(()),
    }
}

/// The lines that are common, removed (-) or added (+), in order, from a longest common
/// subsequence.
fn differences<'a>(was: &'a [Line], is: &'a [Line]) -> Vec<(char, &'a Line)> {
    let (rows, columns) = (was.len(), is.len());
    // A handler call has at most 1,000 outputs.
    let mut longest = vec![vec![0_u16; columns + 1]; rows + 1];
    for row in (0..rows).rev() {
        for column in (0..columns).rev() {
            longest[row][column] = if was[row] == is[column] {
                longest[row + 1][column + 1].saturating_add(1)
            } else {
                longest[row + 1][column].max(longest[row][column + 1])
            };
        }
    }
    let (mut row, mut column, mut lines) = (0, 0, Vec::new());
    while row < rows || column < columns {
        if row < rows && column < columns && was[row] == is[column] {
            lines.push((' ', &is[column]));
            row += 1;
            column += 1;
        } else if column == columns
            || (row < rows && longest[row + 1][column] >= longest[row][column + 1])
        {
            lines.push(('-', &was[row]));
            row += 1;
        } else {
            lines.push(('+', &is[column]));
            column += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use xs_engine::{Meta, Topic};

    fn line(text: &str) -> Line {
        let mut frame = NewFrame::new(Topic::parse("a.b").unwrap());
        frame.meta = Meta::parse(format!("{{\"n\":{text}}}")).unwrap();
        Line::made(&frame)
    }

    #[test]
    fn what_is_common_stays_in_place() {
        let (was, is) = (["1", "2", "3", "4"].map(line), ["1", "3", "5", "4"].map(line));
        let signs: Vec<_> = differences(&was, &is).iter().map(|(sign, _)| *sign).collect();
        assert_eq!(signs, [' ', '-', ' ', '+', ' ']);
        let text: Vec<_> = differences(&was, &is).iter().map(|(_, line)| line.text()).collect();
        assert_eq!(text[1..3], ["a.b {\"n\":2}", "a.b {\"n\":3}"]);
        assert!(differences(&[], &[]).is_empty());
        assert_eq!(differences(&was, &[]).len(), 4);
    }
}
