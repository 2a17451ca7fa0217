//! The wakers of the signals that wait on one shard.
//!
//! `live` says whether the signal's shutdown has not begun yet. It is asked under the lock that [`Wakers::wake_all`] takes after the
//! shutdown has begun: so either it says no, or `wake_all` finds the waker (L1), and a key is used only while it is its owner's.

#[cfg(feature = "std")]
mod with_std {
    use crate::panics::wake;
    use crate::shards::Line;
    use crate::sync::{Mutex, const_unless_loom, lock};
    use core::array;
    use core::mem::{replace, take};
    use core::task::{Poll, Waker};

    pub(crate) type Key = usize;

    enum Slot {
        Enlisted(Waker),
        /// With the key of the next one that is vacant.
        Vacant(Key),
    }

    const CHUNK: usize = 8;

    /// A slab, in chunks that fill lines of their own: two small lists that share one slow each other down by half (H2).
    ///
    /// Wakers are foreign code: they are cloned, woken and dropped outside the lock (S7).
    #[derive(Default)]
    struct List {
        chunks: Vec<Line<[Slot; CHUNK]>>,
        /// The first vacant slot; one that is not there yet when all are taken.
        vacant: Key,
    }

    impl List {
        fn slot(&mut self, key: Key) -> &mut Slot {
            &mut self.chunks[key / CHUNK].0[key % CHUNK]
        }

        fn enlist(&mut self, waker: Waker) -> Key {
            let key = self.vacant;
            if key == self.chunks.len() * CHUNK {
                self.chunks.push(Line(array::from_fn(|i| Slot::Vacant(key + i + 1))));
            }
            if let Slot::Vacant(next) = replace(self.slot(key), Slot::Enlisted(waker)) {
                self.vacant = next;
            }
            key
        }

        fn delist(&mut self, key: Key) -> Slot {
            let vacant = Slot::Vacant(replace(&mut self.vacant, key));
            replace(self.slot(key), vacant)
        }
    }

    pub(crate) struct Wakers(Mutex<List>);

    impl Wakers {
        const_unless_loom! {
            pub(crate) const fn new() -> Self {
                Self(Mutex::new(List { chunks: Vec::new(), vacant: 0 }))
            }
        }

        /// Adds a waker; `None` says that there is nothing to wait for.
        pub(crate) fn enlist(&self, waker: &Waker, live: impl Fn() -> bool) -> Option<Key> {
            let waker = waker.clone();
            let mut list = lock(&self.0);
            if live() {
                Some(list.enlist(waker))
            } else {
                drop(list);
                None
            }
        }

        /// Puts another waker in the place of the one under `key`, if it is another.
        pub(crate) fn renew(&self, &mut key: &mut Key, waker: &Waker, live: impl Fn() -> bool) -> Poll<()> {
            {
                let mut list = lock(&self.0);
                if !live() {
                    return Poll::Ready(());
                }
                if matches!(list.slot(key), Slot::Enlisted(old) if old.will_wake(waker)) {
                    return Poll::Pending;
                }
            }
            let waker = waker.clone();
            let mut list = lock(&self.0);
            if live() {
                let old = replace(list.slot(key), Slot::Enlisted(waker));
                drop(list);
                drop(old);
                Poll::Pending
            } else {
                drop(list);
                Poll::Ready(())
            }
        }

        pub(crate) fn delist(&self, key: Key, live: impl Fn() -> bool) {
            let mut list = lock(&self.0);
            if live() {
                let old = list.delist(key);
                drop(list);
                drop(old);
            }
        }

        pub(crate) fn wake_all(&self) {
            let list = take(&mut *lock(&self.0));
            for slot in list.chunks.into_iter().flat_map(|chunk| chunk.0) {
                if let Slot::Enlisted(waker) = slot {
                    wake(Some(waker));
                }
            }
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
