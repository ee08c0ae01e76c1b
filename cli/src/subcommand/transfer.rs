//! `export`, `import` and `remove`: moves frames out of a store, moves them into another, and
//! deletes them.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use jiff::Zoned;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use xs_engine::limits::BATCH_RECORDS_MAX;
use xs_engine::names::is_store;
use xs_engine::{BlobHash, Bound, Frame, ReadOptions, Removal, Start, TopicPatterns, Ttl};
use xs_protocol::limits::BODY_WITH_FRAME_MAX;
use xs_protocol::{
    Client, Code, Delivered, Export, Gap, ImportIds, ImportOutcome, ImportRequest, Imported,
    RemoveRequest, Reply, Resume,
};

use super::archive::{self, Unpacked};
use super::bodies::{self, Lost};
use super::cat::passed_over;
use super::frames::{found, no_frame};
use super::sure;
use crate::args::{ExportArgs, ImportArgs, RemoveArgs, Target};
use crate::connect::explain;
use crate::dump::{Dump, Incoming, Kept, Lines, Selection, Stored, parse};
use crate::exit::{Exit, ExitError};
use crate::json::{self, BODY_IN_LINE_MAX};
use crate::output::{Output, counted, notice};
use crate::progress;

/// Bodies of an export that are made durable together, and bytes of lines waiting for them.
const BODIES_MAX: usize = 4096;
const LINES_BYTES: usize = 4 * 1024 * 1024;
/// Frames of one import, and bytes of the bodies sent with them.
const BATCH_FRAMES: usize = 512;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Maximum number of unanswered imports.
const BATCHES_MAX: usize = 4;
/// Frames that are removed together: as many as fit in a batch.
const REMOVED_AT_ONCE: usize = BATCH_RECORDS_MAX;
/// Maximum number of refused frames that are named individually.
const NAMED_MAX: u64 = 20;

pub(super) async fn export(
    client: &Client,
    export: &ExportArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let times = export.times.range(&Zoned::now());
    let (since_ms, until_ms) = times.map_err(|text| ExitError::new(Exit::Usage, text))?;
    let (target, topics) = export.parts().map_err(|text| ExitError::new(Exit::Usage, text))?;
    let topics = topics.or(TopicPatterns::everything())?;
    let server = client.server();
    let (since, until) = export.times.typed();
    let mut selection = Selection {
        store: server.uuid.to_string(),
        topics: topics.to_string(),
        since_ms,
        until_ms,
        since: since.map(str::to_owned),
        until: until.map(str::to_owned),
        epoch: server.epoch,
        unread: Vec::new(),
        unread_more: 0,
    };
    let mut options = ReadOptions { topics, since_ms, until_ms, ..ReadOptions::default() };
    let Target::Dir(dir) = target else {
        return archive::export(client, &options, target, out).await;
    };
    if is_store(dir) {
        let dir = dir.display();
        let text = format!(
            "{dir} is a store; export writes to a separate directory: \
             xs export -a {dir} DIR"
        );
        return ExitError::fail(Exit::Usage, text);
    }
    let dump = Dump::at(dir);
    let begun = dump.begin(&mut selection).with_context(|| dir.display().to_string())?;
    (options.since_ms, options.until_ms) = (selection.since_ms, selection.until_ms);
    if let Some((offset, _)) = begun {
        options.start = Start::From(Bound::Offset(offset));
    }
    let resume = begun.map(|(_, epoch)| Resume { store: server.uuid, epoch });
    let frames = client.export(&options, resume).await.map_err(explain)?;
    dump.select(&selection)?;
    let count =
        write(client, frames, &dump, &mut selection, begun.map(|(offset, _)| offset)).await?;
    told(count, begun.is_some(), selection.unread(), out)
}

/// Writes the frames read after the existing lines; returns how many lines were added.
async fn write(
    client: &Client,
    mut frames: Export,
    dump: &Dump,
    selection: &mut Selection,
    begun: Option<u64>,
) -> anyhow::Result<u64> {
    let bar = progress::count("exporting", client.server().head - begun.unwrap_or_default());
    let mut file = File::options().append(true).open(dump.frames())?;
    let (mut kept, mut lines, mut is_new) = (dump.keep(), String::new(), false);
    let (mut count, mut lost) = (0_u64, Lost::default());
    loop {
        let batch = frames.next().await.transpose().map_err(explain)?;
        while let Some(gap) = frames.gap() {
            passed_over(gap);
            if let Gap::Corrupt { from, to } = gap {
                is_new |= selection.pass_over(from, to);
            }
        }
        for Delivered { frame, body } in batch.iter().flatten() {
            if !keep_body(client, dump, &mut kept, frame, body.as_ref()).await? {
                lost.note(frame);
                let offset = frame.offset().unwrap_or_default();
                is_new |= selection.pass_over(offset, offset + 1);
            }
            lines += &json::frame(frame, None);
            lines.push('\n');
            // Writing files never pauses, and a stop must not wait for all of them.
            tokio::task::yield_now().await;
        }
        if batch.is_none() || kept.len() >= BODIES_MAX || lines.len() >= LINES_BYTES {
            kept.finish().context("the bodies")?;
            // An export that continues after a line must know what is missing before it.
            if std::mem::take(&mut is_new) {
                dump.select(selection)?;
            }
            file.write_all(lines.as_bytes())?;
            lines.clear();
        }
        let Some(batch) = batch else { break };
        count += batch.len() as u64;
        bar.set_position(count);
    }
    file.sync_all()?;
    bar.finish_and_clear();
    Ok(count)
}

/// Prints what was exported; fails if something was unreadable.
pub(super) fn told(
    count: u64,
    there_before: bool,
    unread: u64,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let row = vec![json!(count), json!(there_before), json!(unread)];
    out.table(&["exported", "there_before", "unreadable"], &[row])?;
    Ok(if unread == 0 { Exit::Ok } else { Exit::Failed })
}

/// Writes a body before the frame that names it; returns false when it is lost.
async fn keep_body(
    client: &Client,
    dump: &Dump,
    kept: &mut Kept<'_>,
    frame: &Frame,
    body: Option<&Bytes>,
) -> anyhow::Result<bool> {
    let Some(hash) = frame.hash() else { return Ok(true) };
    let failed = || format!("the body of {}", frame.id());
    if let Some(body) = body {
        kept.add(&hash, body).with_context(failed)?;
        return Ok(true);
    }
    if dump.has(&hash) {
        return Ok(true);
    }
    let Some(mut blob) = bodies::find(client, &hash).await? else { return Ok(false) };
    let mut incoming = Incoming::new(dump, &hash).with_context(failed)?;
    while let Some(chunk) = blob.chunk().await {
        match chunk {
            Ok(chunk) => incoming.write(&chunk).with_context(failed)?,
            Err(error) if bodies::is_damage(&error) => {
                incoming.discard().with_context(failed)?;
                return Ok(false);
            }
            Err(error) => return Err(explain(error)),
        }
    }
    incoming.finish().with_context(failed)?;
    Ok(true)
}

/// Checks that there is something to import, before a store is created for it. An archive is
/// unpacked, and the resulting directory is imported.
pub(super) async fn at_hand(import: &mut ImportArgs) -> anyhow::Result<Option<Unpacked>> {
    let text = "is nothing to import; name a directory that xs export wrote, or an archive";
    let nothing = format!("{} {text}", import.dir.display());
    if is_store(&import.dir) {
        let dir = import.dir.display();
        let text = format!(
            "{dir} is a store, but import reads the output of xs export. Export its events with \
             xs export -a {dir} DIR, or copy the store with xs fork {dir} NEW"
        );
        return ExitError::fail(Exit::Usage, text);
    }
    let is_input = import.dir.as_os_str() == "-";
    if !is_input {
        std::fs::metadata(&import.dir).with_context(|| nothing.clone())?;
    }
    let unpacked = archive::unpacked(&import.dir).await?;
    if let Some(unpacked) = &unpacked {
        import.dir = unpacked.dir().to_owned();
    }
    let path = Dump::at(&import.dir).frames();
    let mut lines = Lines::open(&path).with_context(|| nothing.clone())?;
    let mut first = None;
    while let Some((number, line)) = lines.next().with_context(|| nothing.clone())? {
        match parse(line) {
            Ok(_) => return Ok(unpacked),
            Err(error) => first.get_or_insert_with(|| format!("line {number}: {error}")),
        };
    }
    match first {
        // The export of a store without events.
        None => Ok(unpacked),
        Some(first) => ExitError::fail(Exit::Failed, format!("{nothing}: {first}")),
    }
}

pub(super) async fn import(
    client: &Client,
    import: &ImportArgs,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let dump = Dump::at(&import.dir);
    let mut importer =
        Importer::new(client, if import.new_ids { ImportIds::New } else { ImportIds::Verbatim });
    let is_whole = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(false),
        ended = importer.take_all(&dump) => ended.map(|()| true),
    };
    match is_whole {
        Ok(true) => {}
        Ok(false) => {
            // Everything that was sent is answered first.
            importer.settle(0).await.with_context(|| importer.so_far())?;
            notice(&importer.so_far());
            return Ok(Exit::Interrupted);
        }
        // Nothing has been imported yet.
        Err(error) if importer.new + importer.there == 0 => return Err(error),
        Err(error) => return Err(error).context(importer.so_far()),
    }
    let Importer { new, there, refused, .. } = importer;
    out.table(&["new", "there", "refused"], &[vec![json!(new), json!(there), json!(refused)]])?;
    if refused == 0 {
        return Ok(Exit::Ok);
    }
    let events = counted(refused, "line");
    notice(&format!(
        "{events} refused, as told above; all others are in the store. To add these, mend them and \
         run the same command with --new-ids: it skips what is there"
    ));
    Ok(Exit::Failed)
}

/// Sends frames to a store in batches, and counts the outcomes.
struct Importer<'a> {
    client: &'a Client,
    ids: ImportIds,
    batch: Vec<Delivered>,
    numbers: Vec<u64>,
    bytes: usize,
    waiting: VecDeque<(Vec<u64>, Reply<Imported>)>,
    new: u64,
    there: u64,
    refused: u64,
}

impl<'a> Importer<'a> {
    fn new(client: &'a Client, ids: ImportIds) -> Self {
        Self {
            client,
            ids,
            batch: Vec::new(),
            numbers: Vec::new(),
            bytes: 0,
            waiting: VecDeque::new(),
            new: 0,
            there: 0,
            refused: 0,
        }
    }

    /// Imports all lines of a directory.
    async fn take_all(&mut self, dump: &Dump) -> anyhow::Result<()> {
        let path = dump.frames();
        let named = || path.display().to_string();
        let mut lines = Lines::open(&path).with_context(named)?;
        let bar = progress::bytes("importing", std::fs::metadata(&path).with_context(named)?.len());
        while let Some((number, line)) = lines.next().with_context(named)? {
            match parse(line) {
                Ok(stored) => self.take(number, stored, dump).await?,
                Err(error) => self.refuse(number, &error),
            }
            bar.set_position(lines.bytes());
        }
        self.send().await?;
        self.settle(0).await?;
        bar.finish_and_clear();
        Ok(())
    }

    /// How far an import came that did not end well.
    fn so_far(&self) -> String {
        let Self { new, there, .. } = self;
        format!(
            "the import is incomplete: {new} new so far, and {there} that were there; the same \
             command again skips those and imports the rest"
        )
    }

    fn refuse(&mut self, number: u64, why: &str) {
        self.refused += 1;
        if self.refused <= NAMED_MAX {
            notice(&format!("line {number}: {why}"));
        } else if self.refused == NAMED_MAX + 1 {
            notice("more lines are refused; they are not named");
        }
    }

    /// Adds a frame. A small body is sent with it; a longer one is uploaded first.
    async fn take(&mut self, number: u64, stored: Stored, dump: &Dump) -> anyhow::Result<()> {
        let Stored { id, new, hash, body: in_line } = stored;
        if new.ttl == Ttl::Ephemeral {
            self.refuse(number, "an ephemeral frame is never stored");
            return Ok(());
        }
        let (mut body, mut known) = (None, None);
        if let Some(bytes) = in_line {
            let hash = BlobHash::of(&bytes);
            known = Some((bytes.len() as u64, hash));
            if bytes.len() <= BODY_WITH_FRAME_MAX as usize {
                self.bytes += bytes.len();
                body = Some(bytes);
            } else if !self.client.blob_has(&hash).await.map_err(explain)? {
                self.client.blob_put_bytes(bytes).await.map_err(explain)?;
            }
        } else if let Some(hash) = hash {
            let path = dump.blob(&hash);
            let len = match std::fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.refuse(number, &no_body(&path));
                    return Ok(());
                }
                Err(error) => {
                    self.refuse(number, &format!("its body {}: {error}", path.display()));
                    return Ok(());
                }
            };
            known = Some((len, hash));
            if len <= u64::from(BODY_WITH_FRAME_MAX) {
                let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
                self.bytes += bytes.len();
                body = Some(Bytes::from(bytes));
            } else if !self.client.blob_has(&hash).await.map_err(explain)? {
                let file = tokio::fs::File::open(&path).await;
                let file = file.with_context(|| path.display().to_string())?;
                let (put, _) = self.client.blob_put(file).await.map_err(explain)?;
                if put != hash {
                    self.refuse(number, &format!("{} has other bytes", path.display()));
                    return Ok(());
                }
            }
        }
        let frame = match Frame::assemble(&new, id, None, known) {
            Ok(frame) => frame,
            Err(error) => {
                self.refuse(number, &error.to_string());
                return Ok(());
            }
        };
        self.bytes += frame.record().len();
        self.batch.push(Delivered { frame, body });
        self.numbers.push(number);
        if self.batch.len() >= BATCH_FRAMES || self.bytes >= BATCH_BYTES {
            self.send().await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> anyhow::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.settle(BATCHES_MAX - 1).await?;
        let frames = std::mem::take(&mut self.batch);
        let request = ImportRequest { frames, ids: self.ids, durable: false };
        let numbers = std::mem::take(&mut self.numbers);
        self.waiting.push_back((numbers, self.client.import(&request)));
        self.bytes = 0;
        Ok(())
    }

    /// Waits until at most `left` imports are unanswered.
    async fn settle(&mut self, left: usize) -> anyhow::Result<()> {
        while self.waiting.len() > left {
            // The reply stays in the queue until it arrives, so that a stop waits for it too.
            let Some((_, reply)) = self.waiting.front_mut() else { break };
            let answer = reply.await;
            let Some((numbers, _)) = self.waiting.pop_front() else { break };
            let imported = answer.map_err(explain)?;
            for (number, outcome) in numbers.iter().zip(&imported.outcomes) {
                match outcome {
                    ImportOutcome::New => self.new += 1,
                    ImportOutcome::There => self.there += 1,
                    ImportOutcome::Refused(code) => {
                        self.refuse(*number, &refused(*code, self.ids));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The message for a line whose body is not found.
fn no_body(path: &Path) -> String {
    format!(
        "its body is neither in the line nor in {}: xs cat prints bodies with --with-body, up to \
         {BODY_IN_LINE_MAX} bytes each; xs export writes all of them",
        path.display()
    )
}

/// Why a store refused a frame.
fn refused(code: Code, ids: ImportIds) -> String {
    match code {
        Code::ImportOrder if ids == ImportIds::New => {
            "the store has another event with this id".to_owned()
        }
        Code::ImportOrder => {
            "it is older than the newest event of the store; use --new-ids to import it under a \
             new id, or import into a new store"
                .to_owned()
        }
        code => code.to_string(),
    }
}

pub(super) async fn remove(
    client: &Client,
    remove: RemoveArgs,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    let places = once(client, remove.places).await?;
    if remove.sure.dry_run {
        let mut all = true;
        for place in &places {
            match found(client, *place).await? {
                Some(frame) => out.frame(&frame, None)?,
                None => {
                    notice(&no_frame(*place));
                    all = false;
                }
            }
        }
        return Ok(if all { Exit::Ok } else { Exit::NotFound });
    }
    let what = format!("remove {} for good", counted(places.len() as u64, "event"));
    sure::ask(&what, remove.sure).await?;
    let (count, mut removed) = (places.len(), 0);
    for some in places.chunks(REMOVED_AT_ONCE) {
        let request =
            RemoveRequest { frames: some.to_vec(), now: remove.now, ..Default::default() };
        let done = client.remove(&request).await.map_err(|error| {
            let error = explain(error);
            if removed == 0 { error } else { error.context(format!("{removed} are removed")) }
        })?;
        removed += done.removed.iter().filter(|removal| **removal == Removal::Removed).count();
    }
    out.table(&["removed", "not_there"], &[vec![json!(removed), json!(count - removed)]])?;
    Ok(if removed < count { Exit::NotFound } else { Exit::Ok })
}

/// The places without duplicates: those that name, by offset or by id, the same event as an earlier
/// one.
async fn once(client: &Client, places: Vec<Bound>) -> anyhow::Result<Vec<Bound>> {
    let is_mixed = places.iter().any(|place| matches!(place, Bound::Id(_)));
    let (mut offsets, mut ids) = (HashSet::new(), HashSet::new());
    let mut kept = Vec::with_capacity(places.len());
    for place in places {
        let is_new = match place {
            Bound::Id(id) => ids.insert(id),
            Bound::Offset(offset) if !offsets.insert(offset) => false,
            Bound::Offset(_) if is_mixed => {
                found(client, place).await?.is_none_or(|frame| ids.insert(frame.id()))
            }
            Bound::Offset(_) => true,
        };
        if is_new {
            kept.push(place);
        }
    }
    Ok(kept)
}
