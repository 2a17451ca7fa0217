//! The bell that is rung when a registry has drained, or has been idle for an instant.
//!
//! An `Event` calls the wakers of its listeners under its own lock. Ours are relays that only queue themselves; who rang, or
//! dropped a listener (which passes a notification on), then empties the queue outside every lock (S7).

use crate::sync::{Event, const_unless_loom};
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use event_listener::EventListener;

#[cfg(feature = "std")]
use {
    crate::panics::shield,
    crate::sync::{Mutex, lock},
    std::sync::Arc,
    std::task::{Wake, Waker},
};

pub(crate) struct Bell {
    event: Event,
    #[cfg(feature = "std")]
    rung: Mutex<Vec<Arc<Relay>>>,
}

impl Bell {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self {
                event: Event::new(),
                #[cfg(feature = "std")]
                rung: Mutex::new(Vec::new()),
            }
        }
    }

    /// Wakes all who listen now; they look again.
    pub(crate) fn ring(&self) {
        self.event.notify(usize::MAX);
        self.wake_rung();
    }

    #[cfg(not(feature = "std"))]
    #[expect(clippy::unused_self, reason = "the wakers were called by the event")]
    fn wake_rung(&self) {}

    #[cfg(feature = "std")]
    fn wake_rung(&self) {
        let rung = core::mem::take(&mut *lock(&self.rung));
        for relay in rung {
            shield(move || {
                let waker = lock(&relay.waker).take();
                if let Some(waker) = waker {
                    waker.wake();
                }
                drop(relay);
            });
        }
    }

    /// Blocks the thread until `look` finds something, or the deadline has passed and it still finds nothing.
    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    pub(crate) fn block<T>(&self, deadline: Option<std::time::Instant>, look: impl Fn() -> Option<T>) -> Option<T> {
        use event_listener::Listener;
        loop {
            let listener = self.event.listen();
            let found = look();
            if found.is_some() {
                drop(listener);
                self.wake_rung();
                return found;
            }
            match deadline {
                None => listener.wait(),
                Some(deadline) => {
                    if listener.wait_deadline(deadline).is_none() {
                        return look();
                    }
                }
            }
        }
    }

    #[cfg(loom)]
    pub(crate) fn close(&self) {
        self.event.close();
    }
}

#[cfg(feature = "std")]
struct Relay {
    bell: &'static Bell,
    waker: Mutex<Option<Waker>>,
}

#[cfg(feature = "std")]
impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        let bell = self.bell;
        lock(&bell.rung).push(self);
    }
}

/// One future's place at a bell, kept across its polls.
pub(crate) struct Waiter {
    bell: &'static Bell,
    listening: Option<Listening>,
}

struct Listening {
    listener: EventListener,
    #[cfg(feature = "std")]
    relay: Arc<Relay>,
}

impl Waiter {
    pub(crate) fn new(bell: &'static Bell) -> Self {
        Self { bell, listening: None }
    }

    /// Polls until `look` finds something. It looks again after it began to listen (L2).
    pub(crate) fn poll<T>(&mut self, cx: &mut Context<'_>, look: impl Fn() -> Option<T>) -> Poll<T> {
        loop {
            if let Some(found) = look() {
                self.stop();
                return Poll::Ready(found);
            }
            match &mut self.listening {
                None => self.listening = Some(Listening::new(self.bell)),
                Some(listening) => match listening.poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.listening = None,
                },
            }
        }
    }

    fn stop(&mut self) {
        if self.listening.take().is_some() {
            self.bell.wake_rung();
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

#[cfg(feature = "std")]
impl Listening {
    fn new(bell: &'static Bell) -> Self {
        Self { listener: bell.event.listen(), relay: Arc::new(Relay { bell, waker: Mutex::new(None) }) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = Some(cx.waker().clone());
        let replaced = core::mem::replace(&mut *lock(&self.relay.waker), waker);
        drop(replaced);
        let relay = Waker::from(self.relay.clone());
        Pin::new(&mut self.listener).poll(&mut Context::from_waker(&relay))
    }
}

#[cfg(not(feature = "std"))]
impl Listening {
    fn new(bell: &'static Bell) -> Self {
        Self { listener: bell.event.listen() }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.listener).poll(cx)
    }
}
