//! Lists that are in memory until they are sent: frames of a LAST, which later frames could hide if
//! they were looked up later, offsets of the newest frames of a gap, and cursors. A list that a
//! client requests and does not read stays here, so the total bytes over all connections are
//! limited. For a new list the oldest one gives way once it has had time to be sent, however slowly
//! its reader takes it; until then the new one is refused.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use xs_engine::{CursorSummary, Frame};

use crate::error::{Code, Detail, Refusal};
use crate::limits::{LIST_BYTES_COUNTED, LIST_TIME, LISTS_BYTES_MAX};

/// When a list may be requested again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The lists of a server.
#[derive(Default)]
pub(crate) struct Shelf(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    bytes: usize,
    next: u64,
    /// Keyed by number, hence in order of arrival.
    all: BTreeMap<u64, Listed>,
}

struct Listed {
    bytes: usize,
    since: Instant,
    /// Takes the list away from a connection that has not sent it.
    give_way: Box<dyn Fn() + Send>,
}

/// A list that is sent in parts.
pub(crate) struct Kept<T> {
    /// `None` when it has given way.
    list: Arc<Mutex<Option<VecDeque<T>>>>,
    /// Where it is counted, unless it is short.
    place: Option<(Arc<Shelf>, u64)>,
}

impl Shelf {
    /// Stores frames.
    ///
    /// # Errors
    /// [`Refusal`] with [`Code::Busy`] when there is no room.
    pub(crate) fn keep_frames(
        self: &Arc<Self>,
        mut frames: Vec<Frame>,
        now: Instant,
    ) -> Result<Kept<Frame>, Refusal> {
        frames.shrink_to_fit();
        let bytes = size_of_val(&frames[..]);
        self.keep(frames, bytes, now)
    }

    /// Stores offsets of frames.
    ///
    /// # Errors
    /// [`Refusal`] with [`Code::Busy`] when there is no room.
    pub(crate) fn keep_offsets(
        self: &Arc<Self>,
        mut offsets: Vec<u64>,
        now: Instant,
    ) -> Result<Kept<u64>, Refusal> {
        offsets.shrink_to_fit();
        let bytes = size_of_val(&offsets[..]);
        self.keep(offsets, bytes, now)
    }

    /// Stores summaries of cursors.
    ///
    /// # Errors
    /// [`Refusal`] with [`Code::Busy`] when there is no room.
    pub(crate) fn keep_cursors(
        self: &Arc<Self>,
        mut cursors: Vec<CursorSummary>,
        now: Instant,
    ) -> Result<Kept<CursorSummary>, Refusal> {
        cursors.shrink_to_fit();
        let names: usize = cursors.iter().map(|cursor| cursor.name.as_str().len()).sum();
        let bytes = names + size_of_val(&cursors[..]);
        self.keep(cursors, bytes, now)
    }

    fn keep<T: Send + 'static>(
        self: &Arc<Self>,
        list: Vec<T>,
        bytes: usize,
        now: Instant,
    ) -> Result<Kept<T>, Refusal> {
        let list = Arc::new(Mutex::new(Some(VecDeque::from(list))));
        if bytes < LIST_BYTES_COUNTED {
            return Ok(Kept { list, place: None });
        }
        let mut lists = self.0.lock();
        while lists.bytes + bytes > LISTS_BYTES_MAX {
            lists.make_room(now)?;
        }
        let number = lists.next;
        lists.next += 1;
        lists.bytes += bytes;
        let taken = Arc::clone(&list);
        let give_way = Box::new(move || drop(taken.lock().take()));
        lists.all.insert(number, Listed { bytes, since: now, give_way });
        Ok(Kept { list, place: Some((Arc::clone(self), number)) })
    }
}

impl Lists {
    /// Removes the oldest list, if it has had its time.
    fn make_room(&mut self, now: Instant) -> Result<(), Refusal> {
        let oldest = self.all.first_key_value();
        let late = oldest.filter(|(_, one)| now.saturating_duration_since(one.since) >= LIST_TIME);
        let Some((&number, listed)) = late else {
            let text = "the lists that others have asked for and not taken yet leave no room; ask \
                again";
            return Err(busy(text));
        };
        (listed.give_way)();
        self.leave(number);
        Ok(())
    }

    fn leave(&mut self, number: u64) {
        if let Some(listed) = self.all.remove(&number) {
            self.bytes -= listed.bytes;
        }
    }
}

fn busy(text: &str) -> Refusal {
    let ms = ASK_AGAIN.as_millis() as u32;
    Refusal::new(Code::Busy, text).with(Detail::RetryAfterMs(ms))
}

impl<T> Kept<T> {
    /// Whether all of it was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.lock().as_ref().is_some_and(VecDeque::is_empty)
    }

    /// The next entry.
    ///
    /// # Errors
    /// [`Refusal`] with [`Code::Busy`] when the list has given way.
    pub(crate) fn next(&mut self) -> Result<Option<T>, Refusal> {
        let mut list = self.list.lock();
        let Some(list) = list.as_mut() else {
            return Err(busy("this was not taken in time, and others need the room; ask again"));
        };
        Ok(list.pop_front())
    }

    /// Takes entries until their cost reaches `max`; returns whether they were the last.
    ///
    /// # Errors
    /// As for [`next`](Self::next).
    pub(crate) fn take(
        &mut self,
        max: usize,
        cost: impl Fn(&T) -> usize,
        out: &mut Vec<T>,
    ) -> Result<bool, Refusal> {
        let mut sum = 0;
        while sum < max {
            let Some(entry) = self.next()? else { break };
            sum += cost(&entry);
            out.push(entry);
        }
        Ok(self.is_empty())
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if let Some((shelf, number)) = &self.place {
            shelf.0.lock().leave(*number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_so_many_bytes_and_the_oldest_gives_way_in_time() {
        let (shelf, now) = (Arc::<Shelf>::default(), Instant::now());
        let most = LISTS_BYTES_MAX / 8;
        let keep = |count: usize, now| shelf.keep_offsets((0..count as u64).collect(), now);
        let mut first = keep(most / 2, now).unwrap();
        let mut second = keep(most / 2, now + LIST_TIME / 2).unwrap();
        let soon = now + LIST_TIME - Duration::from_millis(1);
        assert_eq!(keep(2000, soon).err().map(|refusal| refusal.code), Some(Code::Busy));
        // A short list needs no room.
        let mut short = keep(2, soon).unwrap();
        assert_eq!(
            [short.next(), short.next(), short.next()],
            [Ok(Some(0)), Ok(Some(1)), Ok(None)]
        );
        assert_eq!(first.next(), Ok(Some(0)));
        let third = keep(2000, now + LIST_TIME).unwrap();
        assert_eq!(first.next().unwrap_err().code, Code::Busy, "it was taken in part only");
        assert!(!first.is_empty(), "its reader is still to be told");
        assert_eq!(second.next(), Ok(Some(0)));
        drop((first, second));
        assert_eq!(shelf.0.lock().bytes, 2000 * 8);
        drop(third);
        let lists = shelf.0.lock();
        assert!(lists.bytes == 0 && lists.all.is_empty());
    }
}
