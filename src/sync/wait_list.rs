//! A wait list stores the wakers of shutdown signals. Each shard of a registry has one wait list.
//!
//! Callers pass a closure `is_live`, which returns true until the shutdown of the signal's registry starts. The wait list calls
//! `is_live` and stores the waker under one lock. After the shutdown has started, [`WaitList::wake_all`] takes the same lock.
//! Therefore either `is_live` returns false, or `wake_all` finds the stored waker (invariant L1).
//!
//! `wake_all` removes all wakers, and a later registry can reuse the list. The key of an old signal may then belong to a signal of
//! the later registry. Therefore the list uses a key only if `is_live` returns true.
//!
//! The methods of a waker are user code. Therefore the list holds no lock while it clones, wakes or drops a waker (invariant S7).

use super::slab::{Key, Slab};
use crate::platform::{Mutex, const_unless_loom, wake};
use core::mem::replace;
use core::task::{Poll, Waker};

pub(crate) struct WaitList(Mutex<Slab<Waker>>);

/// The number of unused entries at each end of a list's memory. Eight entries fill two cache lines.
pub(crate) const MARGIN: usize = 8;

impl WaitList {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Slab::new()))
        }
    }

    /// Adds a clone of `waker` and returns its key. If the shutdown has started, adds nothing and returns `None`.
    ///
    /// If the list must grow, this function calls the closure `margin`, which returns the number of entries to leave unused at each
    /// end of the list's memory. This is [`MARGIN`], or 0 for a list that must stay small.
    pub(crate) fn insert(&self, waker: &Waker, margin: impl FnOnce() -> usize, is_live: impl Fn() -> bool) -> Option<Key> {
        let waker = waker.clone();
        self.0.with(|slab| if is_live() { Ok(slab.insert(waker, margin)) } else { Err(waker) }).ok()
    }

    /// Replaces the waker that is stored under `key` with a clone of `waker`. Keeps the stored waker if both wakers wake the same
    /// task. Returns `Ready` if the shutdown has started.
    pub(crate) fn update(&self, key: Key, waker: &Waker, is_live: impl Fn() -> bool) -> Poll<()> {
        let is_same = self.0.with(|slab| is_live().then(|| slab.get_mut(key).is_some_and(|old| old.will_wake(waker))));
        match is_same {
            None => return Poll::Ready(()),
            Some(true) => return Poll::Pending,
            Some(false) => {}
        }
        let waker = waker.clone();
        let replaced =
            self.0.with(|slab| if is_live() { Ok(slab.get_mut(key).map(|old| replace(old, waker))) } else { Err(waker) });
        if replaced.is_ok() { Poll::Pending } else { Poll::Ready(()) }
    }

    pub(crate) fn remove(&self, key: Key, is_live: impl Fn() -> bool) {
        let removed = self.0.with(|slab| if is_live() { slab.remove(key) } else { None });
        drop(removed);
    }

    /// Removes and wakes all wakers.
    pub(crate) fn wake_all(&self) {
        for waker in self.0.with(Slab::take_all) {
            wake(Some(waker));
        }
    }
}
