//! A wait list stores the wakers of shutdown signals. Each shard of a registry has one wait list.
//!
//! Callers pass a closure `is_live`, which returns true until the shutdown of the signal's registry starts. The wait list calls
//! `is_live` while it holds its lock, and [`WaitList::wake_all`] takes the same lock after the shutdown has started. Therefore
//! either `is_live` returns false, or `wake_all` finds the waker that was stored under the lock (invariant L1).
//!
//! After the shutdown has started, the same key may belong to a different signal. Therefore the list uses a key only if `is_live`
//! returns true. The methods of a waker are user code. Therefore the list holds no lock while it clones, wakes or drops a waker
//! (invariant S7).

use super::slab::{Key, Slab};
use crate::platform::{Mutex, const_unless_loom, wake};
use core::mem::replace;
use core::task::{Poll, Waker};

pub(crate) struct WaitList(Mutex<Slab<Waker>>);

/// The number of unused entries before and after the used entries. Eight entries fill two cache lines.
pub(crate) const MARGIN: usize = 8;

impl WaitList {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Slab::new()))
        }
    }

    /// Adds a clone of `waker` and returns its key. If the shutdown has started, adds nothing and returns `None`.
    ///
    /// If the list must grow, the closure `margin` returns the number of unused entries at each end: [`MARGIN`], or 0 for a list
    /// that must stay small.
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
