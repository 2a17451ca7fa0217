//! Contains a lock function, a flag, and a function that polls a future on the current thread.

use event_listener::Event;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

/// Locks a mutex, even if another thread has panicked while it held the lock.
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

/// A flag that can be set, but not cleared. Any number of futures can wait until it is set.
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
            // If `set` ran before `listen`, it has not notified this listener. Therefore the flag is read again. The fences in `listen` and
            // `notify` guarantee that this read sees the value.
            if !self.is_set() {
                listener.await;
            }
        }
    }
}
