//! Locks and flags.

use event_listener::Event;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

/// Locks a mutex, and ignores that another thread may have panicked while it held the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls a future on this thread until it is ready or the deadline has passed. Returns whether the future is ready.
pub(crate) fn block_on_until(mut future: Pin<&mut impl Future>, deadline: Option<Instant>) -> bool {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(left) if left.is_zero() => return false,
            Some(left) => thread::park_timeout(left),
        }
    }
    true
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
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
