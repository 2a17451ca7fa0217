//! A notifier wakes the tasks and threads that wait until the registry has drained or is idle.
//!
//! The notifier contains an `Event` of the crate event-listener. An `Event` calls the wakers of its listeners while it holds its
//! own lock, but the user's wakers must not run under that lock. Therefore each waiter registers a [`DeferredWaker`] with the event
//! instead of the user's waker. When the event calls a deferred waker, the deferred waker only adds itself to the list `called`.
//!
//! Two operations can make the event call deferred wakers: a notification, and the drop of a listener. (If a notified listener is
//! dropped, the event notifies another listener instead.) After each of these operations, the same thread empties the list and
//! calls the users' wakers. The thread holds no lock during these calls (invariant S7).

use crate::platform::{Arc, Event, Mutex, const_unless_loom, ignore_panic, wake, wake_with};
use alloc::vec::Vec;
use core::mem::{replace, take};
use core::task::{Context, Poll, Waker};
use core::{fmt, pin::Pin};
use event_listener::EventListener;

pub(crate) struct Notifier {
    event: Event,
    /// The deferred wakers that the event has called. Each of them contains a user's waker that must still be called.
    called: Mutex<Vec<Arc<DeferredWaker>>>,
}

impl Notifier {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self { event: Event::new(), called: Mutex::new(Vec::new()) }
        }
    }

    /// Notifies all current listeners. Each notified waiter checks its condition again.
    pub(crate) fn notify(&self) {
        // If the event has notified no listener, it has called no deferred waker. During a shutdown, this check saves one lock for
        // each child registry that has no waiters.
        if self.event.notify(usize::MAX) != 0 {
            self.wake_deferred();
        }
    }

    /// Returns a listener that can block a thread. The caller must call [`wake_deferred`](Self::wake_deferred) after it has dropped
    /// the listener.
    pub(crate) fn listen(&self) -> EventListener {
        self.event.listen()
    }

    pub(crate) fn wake_deferred(&self) {
        for deferred in self.called.with(take) {
            wake(deferred.waker.with(Option::take));
            // A concurrent poll may have stored another waker in `deferred`. If `deferred` is the last reference, its drop also
            // drops the stored waker. The destructor of a waker is user code and may panic.
            ignore_panic(|| drop(deferred));
        }
    }
}

/// Stores a user's waker, and delays the call of this waker until no lock is held. Each waiter registers a value of this type with
/// the event, so the event itself never calls a user's waker.
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

/// Registers one future with a notifier. The future keeps its registration between polls.
pub(crate) struct Waiter {
    notifier: &'static Notifier,
    listening: Option<(EventListener, Arc<DeferredWaker>)>,
    has_resolved: bool,
}

impl Waiter {
    pub(crate) fn new(notifier: &'static Notifier) -> Self {
        Self { notifier, listening: None, has_resolved: false }
    }

    /// Calls the closure `condition`. If `condition` returns a value, this function returns the value. If `condition` returns
    /// `None`, this function registers the waker of `cx` and returns `Pending`.
    ///
    /// After a new registration, this function calls `condition` again. The reason is that the notification may have come before
    /// the registration. Therefore the waiter misses no notification (invariant L2).
    pub(crate) fn poll<T>(&mut self, cx: &mut Context<'_>, condition: impl Fn() -> Option<T>) -> Poll<T> {
        loop {
            if let Some(value) = condition() {
                self.stop();
                self.has_resolved = true;
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

    /// Returns whether [`poll`](Self::poll) has returned `Ready`.
    pub(crate) fn has_resolved(&self) -> bool {
        self.has_resolved
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
