//! Locks and flags.

use event_listener::Event;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, and ignores that another thread may have panicked while it held the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A flag that is set once. Any number of futures can wait for it.
#[derive(Default)]
pub(crate) struct Flag {
    is_set: AtomicBool,
    changed: Event,
}

impl Flag {
    pub(crate) fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        self.changed.notify(usize::MAX);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Waits until the flag is set.
    pub(crate) async fn wait(&self) {
        while !self.is_set() {
            let listener = self.changed.listen();
            // A `set` before `listen` does not notify this listener. `listen` and `notify` contain the fences that make it visible here.
            if !self.is_set() {
                listener.await;
            }
        }
    }
}
