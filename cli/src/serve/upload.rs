//! Uploads of blobs. A long upload holds memory, and beyond a MiB a file, for as long as its client
//! takes, so their number is limited: a new one replaces the one that has waited longest for bytes,
//! if that wait is long enough, and is otherwise refused for now. The protocol limits how much may
//! be sent at a time.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use xs_engine::{BlobHash, BlobWriter, PutError, Shortage};
use xs_protocol::limits::{LONG_UPLOAD_BYTES, LONG_UPLOADS_MAX, UPLOAD_SILENCE};
use xs_protocol::{BlobSink, Code, Detail, Refusal};

use super::fullness::{Fullness, Put};
use super::{descriptors, refuse};

/// When a refused upload may be retried, in milliseconds.
const COME_AGAIN_MS: u32 = 1000;

/// Shared by an upload and the code that may have to end it.
type Writer = Arc<Mutex<Option<BlobWriter>>>;

/// The long uploads of a server.
pub(super) struct Uploads {
    max: usize,
    silent_from: Duration,
    long: Mutex<Long>,
}

#[derive(Default)]
struct Long {
    next: u64,
    /// When each began to wait for bytes; the longest wait comes first.
    waiting: BTreeMap<u64, (Instant, Writer)>,
}

impl Uploads {
    pub(super) fn new() -> Arc<Self> {
        Self::with_max(descriptors::uploads(LONG_UPLOADS_MAX), UPLOAD_SILENCE)
    }

    fn with_max(max: usize, silent_from: Duration) -> Arc<Self> {
        Arc::new(Self { max, silent_from, long: Mutex::default() })
    }

    /// Starts an upload.
    pub(super) fn begin(self: &Arc<Self>, writer: BlobWriter, fullness: Arc<Fullness>) -> Upload {
        let writer = Arc::new(Mutex::new(Some(writer)));
        Upload { uploads: Arc::clone(self), writer, fullness, len: 0, place: None }
    }

    /// Records that bytes arrived for a long upload and returns its new place, which may be taken
    /// from another upload.
    fn heard(&self, place: Option<u64>, writer: &Writer) -> Result<u64, Refusal> {
        let (place, longest) = {
            let mut long = self.long.lock();
            if let Some(place) = place
                && long.waiting.remove(&place).is_none()
            {
                return Err(gave_way(self.max));
            }
            let mut longest = None;
            if long.waiting.len() >= self.max {
                let silent = |first: &(Instant, Writer)| first.0.elapsed() >= self.silent_from;
                if !long.waiting.first_key_value().is_some_and(|(_, first)| silent(first)) {
                    return Err(no_place(self.max));
                }
                longest = long.waiting.pop_first();
            }
            let next = long.next;
            long.next += 1;
            long.waiting.insert(next, (Instant::now(), Arc::clone(writer)));
            (next, longest)
        };
        if let Some((_, (_, longest))) = longest {
            // Waits for a write in progress; no writer holds the lock of another upload.
            let writer = longest.lock().take();
            drop(writer);
        }
        Ok(place)
    }
}

/// Records that a blob was refused for lack of space.
pub(super) fn note(fullness: &Fullness, error: &PutError) {
    if let PutError::StorageFull(shortage) = error {
        fullness.note(Put::Blob, Some(*shortage));
    }
}

fn gave_way(max: usize) -> Refusal {
    let text = format!(
        "more than {max} long uploads are open, and this one has been idle the longest; retry it \
         later"
    );
    Refusal::new(Code::Busy, text).with(Detail::Limit(max as u64))
}

fn no_place(max: usize) -> Refusal {
    let text = format!("{max} long uploads are active; retry this one later");
    let refusal = Refusal::new(Code::Busy, text).with(Detail::Limit(max as u64));
    refusal.with(Detail::RetryAfterMs(COME_AGAIN_MS))
}

/// A blob being written.
pub(super) struct Upload {
    uploads: Arc<Uploads>,
    writer: Writer,
    fullness: Arc<Fullness>,
    len: u64,
    /// Its place among the long uploads, once it is one.
    place: Option<u64>,
}

impl BlobSink for Upload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.len = self.len.saturating_add(bytes.len() as u64);
        if self.len > LONG_UPLOAD_BYTES {
            self.place = Some(self.uploads.heard(self.place, &self.writer)?);
        }
        let mut writer = self.writer.lock();
        let writer = writer.as_mut().ok_or_else(|| gave_way(self.uploads.max))?;
        writer.write_all(bytes).map_err(|error| {
            if let Some(shortage) = Shortage::of(&error) {
                self.fullness.note(Put::Blob, Some(shortage));
            }
            refuse::blob_bytes(&error)
        })
    }

    fn finish(self: Box<Self>) -> Result<(BlobHash, u64), Refusal> {
        let writer = self.writer.lock().take().ok_or_else(|| gave_way(self.uploads.max))?;
        match writer.finish() {
            Ok(put) => {
                self.fullness.note(Put::Blob, None);
                Ok(put)
            }
            Err(error) => {
                note(&self.fullness, &error);
                Err(refuse::put(&error))
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.uploads.long.lock().waiting.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_engine::{Store, StoreOptions};

    use super::*;

    #[test]
    fn the_upload_that_waits_longest_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let uploads = Uploads::with_max(2, Duration::ZERO);
        let begin = || Box::new(uploads.begin(store.blob_writer().unwrap(), Arc::default()));
        let piece = vec![7; LONG_UPLOAD_BYTES as usize];
        let (mut first, mut second, mut third, mut short) = (begin(), begin(), begin(), begin());
        short.write(b"short").unwrap();
        for _ in 0..2 {
            first.write(&piece).unwrap();
            second.write(&piece).unwrap();
        }
        first.write(&piece).unwrap();
        // By now, the second has waited longest.
        third.write(&piece).unwrap();
        third.write(&piece).unwrap();
        let refusal = second.write(&piece).unwrap_err();
        assert_eq!((refusal.code, refusal.details), (Code::Busy, vec![Detail::Limit(2)]));
        assert_eq!(second.finish().unwrap_err().code, Code::Busy);
        assert_eq!(first.finish().unwrap().1, 3 * LONG_UPLOAD_BYTES);
        // The slot of a finished upload is free.
        let mut fourth = begin();
        fourth.write(&piece).unwrap();
        fourth.write(&piece).unwrap();
        for sink in [third, fourth] {
            assert_eq!(sink.finish().unwrap().1, 2 * LONG_UPLOAD_BYTES);
        }
        assert_eq!(short.finish().unwrap().1, 5);
        assert!(uploads.long.lock().waiting.is_empty());
    }

    #[test]
    fn uploads_that_go_on_are_not_ended_by_those_that_come() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let uploads = Uploads::with_max(2, Duration::from_secs(3600));
        let begin = || Box::new(uploads.begin(store.blob_writer().unwrap(), Arc::default()));
        let piece = vec![7; 2 * LONG_UPLOAD_BYTES as usize];
        let (mut first, mut second, mut third) = (begin(), begin(), begin());
        for _ in 0..3 {
            first.write(&piece).unwrap();
            second.write(&piece).unwrap();
            let refusal = third.write(&piece).unwrap_err();
            let details = vec![Detail::Limit(2), Detail::RetryAfterMs(COME_AGAIN_MS)];
            assert_eq!((refusal.code, refusal.details), (Code::Busy, details));
            third = begin();
        }
        first.finish().unwrap();
        third.write(&piece).unwrap();
        for sink in [second, third] {
            sink.finish().unwrap();
        }
        assert!(uploads.long.lock().waiting.is_empty());
    }
}
