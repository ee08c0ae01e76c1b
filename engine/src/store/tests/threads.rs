//! Threads of a store that panic.

use super::*;
use crate::error::PutError;
use crate::testing::noise;

/// A panic of the thread that seals packs left appends and the close waiting for a pack.
#[test]
fn a_panic_of_the_thread_that_seals_packs_poisons_the_store() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    faults.panic_on("xs-packs");
    // More than fits into all packs that may be open.
    let refused = (0..10_000).find_map(|n| store.blob_put(&noise(n, 5000)).err());
    let Some(PutError::Indeterminate(why) | PutError::Poisoned(why)) = refused else {
        panic!("{refused:?}")
    };
    assert!(why.to_string().contains("xs-packs has panicked"), "{why}");
    assert_eq!(store.info().health, Health::Poisoned(why.clone()));
    let refused = store.append(frame("a", 1).into());
    assert_eq!(refused, Err(AppendError::Poisoned(why.clone())));
    assert_eq!(store.close(), Err(CloseError::Poisoned(why)));
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    assert_eq!(store.info().health, Health::Writable);
    store.append(frame("a", 2).into()).unwrap();
}
