//! A wait list stores the wakers of the shutdown signals that wait on one shard.
//!
//! Callers pass a closure `is_live`, which returns true until the shutdown of the signal's registry starts. The wait list calls
//! `is_live` while it holds its lock, and [`WaitList::wake_all`] takes the same lock after the shutdown has started. Therefore
//! either `is_live` returns false, or `wake_all` finds the waker that was stored under the lock (L1).
//!
//! After the shutdown, a key may belong to a different signal. Therefore the list uses a key only if `is_live` returns true. The
//! methods of a waker are user code. Therefore the list holds no lock while it clones, wakes or drops a waker (S7).

use crate::platform::{Mutex, const_unless_loom, wake};
use alloc::vec::Vec;
use core::mem::{replace, take};
use core::task::{Poll, Waker};

/// The position of a waker in its list.
pub(crate) type Key = usize;

pub(crate) struct WaitList(Mutex<Slab>);

#[derive(Default)]
struct Slab {
    entries: Vec<Entry>,
    /// The first free key. If all entries are occupied, `free_head` is the number of entries.
    free_head: Key,
}

enum Entry {
    Occupied(Waker),
    Free { next: Key },
}

/// A margin of this many unused entries before and after the used entries fills two cache lines.
pub(crate) const MARGIN: usize = 8;
/// The number of entries that a list has space for when it first grows.
const MIN_CAPACITY: usize = 2;

impl Slab {
    fn insert(&mut self, waker: Waker, margin: impl FnOnce() -> usize) -> Key {
        if self.free_head == self.entries.len() {
            self.grow(margin());
        }
        let key = self.free_head;
        if let Entry::Free { next } = replace(&mut self.entries[key], Entry::Occupied(waker)) {
            self.free_head = next;
        }
        key
    }

    /// Adds a free entry. Leaves `margin` entries unused at both ends of the memory, because threads that use two lists on the same
    /// cache line would slow each other down (H2).
    #[cold]
    fn grow(&mut self, margin: usize) {
        let len = self.entries.len().max(margin);
        if self.entries.capacity() < len + 1 + margin {
            let added = len.max(MIN_CAPACITY) + margin;
            self.entries.reserve_exact(len - self.entries.len() + added);
        }
        self.entries.resize_with(len, || Entry::Free { next: 0 });
        self.entries.push(Entry::Free { next: len + 1 });
        self.free_head = len;
    }

    fn remove(&mut self, key: Key) -> Option<Waker> {
        let free = Entry::Free { next: replace(&mut self.free_head, key) };
        match replace(&mut self.entries[key], free) {
            Entry::Occupied(waker) => Some(waker),
            Entry::Free { .. } => None,
        }
    }
}

impl WaitList {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Slab { entries: Vec::new(), free_head: 0 }))
        }
    }

    /// Adds a clone of `waker` and returns its key. If the shutdown has started, adds nothing and returns `None`.
    ///
    /// If the list must grow, it keeps the margin that the closure `margin` returns: [`MARGIN`], or 0 for a list that must be small.
    pub(crate) fn insert(&self, waker: &Waker, margin: impl FnOnce() -> usize, is_live: impl Fn() -> bool) -> Option<Key> {
        let waker = waker.clone();
        self.0.with(|slab| if is_live() { Ok(slab.insert(waker, margin)) } else { Err(waker) }).ok()
    }

    /// Replaces the waker that is stored under `key` with `waker` if the two wake different tasks. Returns `Ready` if the shutdown
    /// has started.
    pub(crate) fn update(&self, key: Key, waker: &Waker, is_live: impl Fn() -> bool) -> Poll<()> {
        let is_same =
            self.0.with(|slab| is_live().then(|| matches!(slab.entries[key], Entry::Occupied(ref old) if old.will_wake(waker))));
        match is_same {
            None => return Poll::Ready(()),
            Some(true) => return Poll::Pending,
            Some(false) => {}
        }
        let waker = waker.clone();
        let replaced =
            self.0.with(|slab| if is_live() { Ok(replace(&mut slab.entries[key], Entry::Occupied(waker))) } else { Err(waker) });
        if replaced.is_ok() { Poll::Pending } else { Poll::Ready(()) }
    }

    pub(crate) fn remove(&self, key: Key, is_live: impl Fn() -> bool) {
        let removed = self.0.with(|slab| if is_live() { slab.remove(key) } else { None });
        drop(removed);
    }

    /// Removes and wakes all wakers.
    pub(crate) fn wake_all(&self) {
        let slab = self.0.with(take);
        for entry in slab.entries {
            if let Entry::Occupied(waker) = entry {
                wake(Some(waker));
            }
        }
    }
}
