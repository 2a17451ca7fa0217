//! Notifies the waiters of a drain, and those for idleness.
//!
//! An `Event` calls the wakers of its listeners under its own lock. So each waiter gives it a [`DeferredWaker`], which only queues itself.
//! The thread that notified, or that dropped a listener (which can pass its notification on), then empties the queue and calls the
//! users' wakers outside of all locks (S7).

use crate::platform::{Arc, Event, Mutex, const_unless_loom, ignore_panic, wake, wake_with};
use alloc::vec::Vec;
use core::mem::{replace, take};
use core::task::{Context, Poll, Waker};
use core::{fmt, pin::Pin};
use event_listener::EventListener;

pub(crate) struct Notifier {
    event: Event,
    /// The deferred wakers that the event has called.
    called: Mutex<Vec<Arc<DeferredWaker>>>,
}

impl Notifier {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self { event: Event::new(), called: Mutex::new(Vec::new()) }
        }
    }

    /// Wakes everybody who listens now. Each checks its condition again.
    pub(crate) fn notify(&self) {
        self.event.notify(usize::MAX);
        self.wake_deferred();
    }

    /// Returns a listener that blocks a thread. Call [`wake_deferred`](Self::wake_deferred) after dropping it.
    pub(crate) fn listen(&self) -> EventListener {
        self.event.listen()
    }

    pub(crate) fn wake_deferred(&self) {
        for deferred in self.called.with(take) {
            wake(deferred.waker.with(Option::take));
            // The last reference may drop a waker that was stored meanwhile.
            ignore_panic(|| drop(deferred));
        }
    }
}

/// Stands in for a user's waker.
struct DeferredWaker {
    notifier: &'static Notifier,
    waker: Mutex<Option<Waker>>,
}

impl DeferredWaker {
    fn defer(this: Arc<Self>) {
        let notifier = this.notifier;
        notifier.called.with(|called| called.push(this));
    }
}

wake_with!(DeferredWaker, DeferredWaker::defer);

/// The registration of one future, kept from poll to poll.
pub(crate) struct Waiter {
    notifier: &'static Notifier,
    listening: Option<(EventListener, Arc<DeferredWaker>)>,
}

impl Waiter {
    pub(crate) fn new(notifier: &'static Notifier) -> Self {
        Self { notifier, listening: None }
    }

    /// Polls until `condition` returns a value. It checks the condition again after it has registered (L2).
    pub(crate) fn poll<T>(&mut self, cx: &mut Context<'_>, condition: impl Fn() -> Option<T>) -> Poll<T> {
        loop {
            if let Some(value) = condition() {
                self.stop();
                return Poll::Ready(value);
            }
            let Some((listener, deferred)) = &mut self.listening else {
                let deferred = DeferredWaker { notifier: self.notifier, waker: Mutex::new(None) };
                self.listening = Some((self.notifier.listen(), Arc::new(deferred)));
                continue;
            };
            let waker = Some(cx.waker().clone());
            drop(deferred.waker.with(|stored| replace(stored, waker)));
            let deferred = Waker::from(deferred.clone());
            if Pin::new(listener).poll(&mut Context::from_waker(&deferred)).is_pending() {
                return Poll::Pending;
            }
            self.listening = None;
        }
    }

    fn stop(&mut self) {
        if self.listening.take().is_some() {
            self.notifier.wake_deferred();
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").finish_non_exhaustive()
    }
}
