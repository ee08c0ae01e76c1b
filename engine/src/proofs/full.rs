//! Groups that meet a full disk: what is acknowledged of them is durable, although one of their
//! batches found no room for the segment it needed.

use std::sync::Arc;

use rustix::io::Errno;

use super::{Holds, MEDIA, Place, look};
use crate::append::Batch;
use crate::error::AppendError;
use crate::media::faulty::{Faults, FaultyFiles};
use crate::media::sim::{Image, SimDisk};
use crate::options::SyncPolicy;
use crate::store::{Health, Store};
use crate::testing::frame;
use crate::value::{Meta, NewFrame};

/// Bytes of a meta that soon needs another segment.
const LARGE: usize = 14_000;

fn large(n: u64) -> Batch {
    let meta = Meta::parse(format!("[{n},\"{}\"]", "x".repeat(LARGE))).unwrap();
    NewFrame { meta, ..frame("a", n) }.into()
}

/// A store that has room for short frames alone, and how many it holds.
fn filled(place: &Place, disk: &SimDisk) -> (Store, u64) {
    let faults = Faults::none();
    let files = Arc::new(FaultyFiles::new(disk.clone(), &faults));
    let inner = crate::recovery::open_with(place.path(), place.options.clone(), files).unwrap();
    let store = Store { inner: Arc::new(inner) };
    store.append(large(0)).unwrap();
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    let refused = |n: &u64| store.append(large(*n)) == Err(AppendError::StorageFull);
    let count = (1..100).find(refused).unwrap();
    (store, count)
}

#[test]
fn what_a_group_holds_besides_a_batch_without_room_is_durable() {
    for (media, journaled) in [(MEDIA[0], false), (MEDIA[0], true), (MEDIA[1], true)] {
        for behind in [false, true] {
            let place = match journaled {
                true => Place::journaled(media),
                false => Place::new(SyncPolicy::Sync, media),
            };
            let what = format!("{media:?}, journaled {journaled}, behind {behind}");
            let disk = place.disk(&Image::new());
            let (store, count) = filled(&place, &disk);
            let before = store.submit(frame("a", count).into());
            let refused = store.submit(large(0));
            let after = behind.then(|| store.submit(frame("a", count + 1).into()));
            assert!(before.wait().unwrap().durable, "{what}");
            assert_eq!(refused.wait(), Err(AppendError::StorageFull), "{what}");
            let after = after.map(|ticket| assert!(ticket.wait().unwrap().durable, "{what}"));
            let count = count + 1 + after.map_or(0, |()| 1);
            for seed in 1..9 {
                let other = Place::new(SyncPolicy::Sync, media);
                let left = other.disk(&disk.moment().power_cut(seed));
                let store = other.open_quietly(&left).unwrap();
                assert_eq!(store.info().health, Health::Writable, "{what}, seed {seed}");
                let Holds { frames, .. } = look(&store, &what);
                assert_eq!(frames.len() as u64, count, "{what}, seed {seed}");
            }
        }
    }
}
