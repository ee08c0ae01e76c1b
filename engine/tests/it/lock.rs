//! One process at a time.

use xs_engine::{OpenError, Store};

use crate::support::{MEDIA, open, options, scratch};

#[test]
fn a_second_open_names_the_holder() {
    let dir = scratch();
    let options = options(MEDIA[0]);
    let store = open(dir.path(), &options);
    match Store::open(dir.path(), options.clone()) {
        Err(OpenError::Locked { pid, since, .. }) => {
            assert_eq!(pid, Some(std::process::id()));
            assert!(since.is_some_and(|ms| ms > 0));
        }
        other => panic!("opened twice: {other:?}"),
    }
    store.close().unwrap();
    assert!(Store::open(dir.path(), options).is_ok());
}
