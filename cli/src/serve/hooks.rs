//! Publish hooks, one per wake: all feeds of a connection share a wake, and a publish calls all
//! hooks before the next batch can be stored.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use xs_engine::{PublishHook, Store};
use xs_protocol::Wake;

/// The registered wakes, by address.
#[derive(Default)]
pub(super) struct Hooks(Mutex<HashMap<usize, Weak<Hook>>>);

/// Keeps a wake called after each publish, for as long as any holder keeps it.
pub(super) struct Hook {
    hooks: Arc<Hooks>,
    address: usize,
    _hook: PublishHook,
}

impl Hooks {
    /// Calls `wake` after each publish.
    pub(super) fn add(self: &Arc<Self>, store: &Store, wake: Wake) -> Arc<Hook> {
        // The hook keeps the wake alive, so no other wake can have its address meanwhile.
        let address = Arc::as_ptr(&wake).cast::<()>().addr();
        let mut hooks = self.0.lock();
        if let Some(hook) = hooks.get(&address).and_then(Weak::upgrade) {
            return hook;
        }
        let hook = Hook { hooks: Arc::clone(self), address, _hook: store.on_publish(wake) };
        let hook = Arc::new(hook);
        hooks.insert(address, Arc::downgrade(&hook));
        hook
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        let mut hooks = self.hooks.0.lock();
        // Another hook may have been registered at this address since the last holder dropped this
        // one.
        if hooks.get(&self.address).is_some_and(|hook| hook.strong_count() == 0) {
            hooks.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use xs_engine::{NewFrame, StoreOptions, Topic};

    use super::*;

    #[test]
    fn a_wake_is_called_once_for_a_publish() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let hooks = Arc::new(Hooks::default());
        let calls: Arc<AtomicUsize> = Arc::default();
        let wake = || -> Wake {
            let calls = Arc::clone(&calls);
            Arc::new(move || {
                calls.fetch_add(1, Ordering::Relaxed);
            })
        };
        let called = || {
            store.append(NewFrame::new(Topic::parse("a").unwrap()).into()).unwrap();
            calls.swap(0, Ordering::Relaxed)
        };
        let (one, other) = (wake(), wake());
        let mut held: Vec<_> = (0..100).map(|_| hooks.add(&store, Arc::clone(&one))).collect();
        held.push(hooks.add(&store, other));
        assert_eq!(called(), 2);
        held.truncate(1);
        assert_eq!(called(), 1);
        held.clear();
        assert_eq!((called(), hooks.0.lock().len()), (0, 0));
        held.push(hooks.add(&store, one));
        assert_eq!(called(), 1);
    }
}
