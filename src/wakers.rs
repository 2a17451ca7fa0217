//! The wakers of the signals that wait on one shard.
//!
//! `live` says whether the signal's shutdown has not begun yet. It is asked under the lock that [`Wakers::wake_all`] takes after the
//! shutdown has begun: so either it says no, or `wake_all` finds the waker (L1), and a key is used only while it is its owner's.

#[cfg(feature = "std")]
mod with_std {
    use crate::panics::wake;
    use crate::sync::{Mutex, const_unless_loom, lock};
    use core::mem;
    use core::task::{Poll, Waker};

    pub(crate) type Key = usize;

    /// A slab. Wakers are foreign code: they are cloned, woken and dropped outside the lock (S7).
    #[derive(Default)]
    struct List {
        slots: Vec<Option<Waker>>,
        free: Vec<Key>,
    }

    pub(crate) struct Wakers(Mutex<List>);

    impl Wakers {
        const_unless_loom! {
            pub(crate) const fn new() -> Self {
                Self(Mutex::new(List { slots: Vec::new(), free: Vec::new() }))
            }
        }

        /// Adds a waker; `None` says that there is nothing to wait for.
        pub(crate) fn enlist(&self, waker: &Waker, live: impl Fn() -> bool) -> Option<Key> {
            let waker = Some(waker.clone());
            let mut list = lock(&self.0);
            if !live() {
                drop(list);
                return None;
            }
            if let Some(key) = list.free.pop() {
                list.slots[key] = waker;
                return Some(key);
            }
            list.slots.push(waker);
            Some(list.slots.len() - 1)
        }

        /// Puts another waker in the place of the one under `key`, if it is another.
        pub(crate) fn renew(&self, key: &mut Key, waker: &Waker, live: impl Fn() -> bool) -> Poll<()> {
            let same = |list: &List| list.slots[*key].as_ref().is_some_and(|old| old.will_wake(waker));
            {
                let list = lock(&self.0);
                if !live() {
                    return Poll::Ready(());
                }
                if same(&list) {
                    return Poll::Pending;
                }
            }
            let mut waker = Some(waker.clone());
            let mut list = lock(&self.0);
            let live = live();
            if live {
                mem::swap(&mut list.slots[*key], &mut waker);
            }
            drop(list);
            drop(waker);
            if live { Poll::Pending } else { Poll::Ready(()) }
        }

        pub(crate) fn delist(&self, key: Key, live: impl Fn() -> bool) {
            let mut list = lock(&self.0);
            if live() {
                let waker = list.slots[key].take();
                list.free.push(key);
                drop(list);
                drop(waker);
            }
        }

        pub(crate) fn wake_all(&self) {
            let list = mem::take(&mut *lock(&self.0));
            list.slots.into_iter().for_each(wake);
        }
    }
}
#[cfg(feature = "std")]
pub(crate) use with_std::*;

/// Without `std` there is no mutex to build a slab on: a boxed listener each, woken under the event's lock.
#[cfg(not(feature = "std"))]
mod without_std {
    use core::future::Future;
    use core::pin::Pin;
    use core::task::{Context, Poll, Waker};
    use event_listener::{Event, EventListener};

    pub(crate) type Key = EventListener;

    pub(crate) struct Wakers(Event);

    impl Wakers {
        pub(crate) const fn new() -> Self {
            Self(Event::new())
        }

        pub(crate) fn enlist(&self, waker: &Waker, live: impl Fn() -> bool) -> Option<Key> {
            let mut key = self.0.listen();
            self.renew(&mut key, waker, live).is_pending().then_some(key)
        }

        #[expect(clippy::unused_self, reason = "the shape of the slab's")]
        pub(crate) fn renew(&self, key: &mut Key, waker: &Waker, live: impl Fn() -> bool) -> Poll<()> {
            if live() { Pin::new(key).poll(&mut Context::from_waker(waker)) } else { Poll::Ready(()) }
        }

        #[expect(clippy::unused_self, reason = "the shape of the slab's")]
        pub(crate) fn delist(&self, key: Key, _live: impl Fn() -> bool) {
            drop(key);
        }

        pub(crate) fn wake_all(&self) {
            self.0.notify(usize::MAX);
        }
    }
}
#[cfg(not(feature = "std"))]
pub(crate) use without_std::*;
