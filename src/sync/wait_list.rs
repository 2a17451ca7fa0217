//! A wait list stores the wakers of the shutdown signals that wait on one shard.
//!
//! Callers pass a closure `is_live`, which returns true until the shutdown of the signal's registry starts. The wait list calls
//! `is_live` while it holds its lock, and [`WaitList::wake_all`] takes the same lock after the shutdown has started. Therefore
//! either `is_live` returns false, or `wake_all` finds the waker that was stored under the lock (L1).
//!
//! After the shutdown, a key may belong to a different signal. Therefore the list uses a key only if `is_live` returns true. The
//! methods of a waker are user code. Therefore the list holds no lock while it clones, wakes or drops a waker (S7).

use crate::platform::{CachePadded, Mutex, const_unless_loom, wake};
use alloc::vec::Vec;
use core::array;
use core::mem::{replace, take};
use core::task::{Poll, Waker};

/// The position of a waker in its list.
pub(crate) type Key = usize;

pub(crate) struct WaitList(Mutex<Slab>);

/// A slab that grows in chunks. Each chunk has its own cache lines, because threads that use two lists on the same cache line would
/// slow each other down (H2).
#[derive(Default)]
struct Slab {
    chunks: Vec<CachePadded<[Entry; CHUNK]>>,
    /// The first free key. If all entries are occupied, `free_head` is the first key of the chunk that will be allocated next.
    free_head: Key,
}

enum Entry {
    Occupied(Waker),
    Free { next: Key },
}

const CHUNK: usize = 8;

impl Slab {
    fn entry(&mut self, key: Key) -> &mut Entry {
        &mut self.chunks[key / CHUNK].0[key % CHUNK]
    }

    fn insert(&mut self, waker: Waker) -> Key {
        let key = self.free_head;
        if key == self.chunks.len() * CHUNK {
            self.chunks.push(CachePadded(array::from_fn(|i| Entry::Free { next: key + i + 1 })));
        }
        if let Entry::Free { next } = replace(self.entry(key), Entry::Occupied(waker)) {
            self.free_head = next;
        }
        key
    }

    fn remove(&mut self, key: Key) -> Option<Waker> {
        let free = Entry::Free { next: replace(&mut self.free_head, key) };
        match replace(self.entry(key), free) {
            Entry::Occupied(waker) => Some(waker),
            Entry::Free { .. } => None,
        }
    }
}

impl WaitList {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Slab { chunks: Vec::new(), free_head: 0 }))
        }
    }

    /// Adds a clone of `waker` and returns its key. If the shutdown has started, adds nothing and returns `None`.
    pub(crate) fn insert(&self, waker: &Waker, is_live: impl Fn() -> bool) -> Option<Key> {
        let waker = waker.clone();
        self.0.with(|slab| if is_live() { Ok(slab.insert(waker)) } else { Err(waker) }).ok()
    }

    /// Replaces the waker that is stored under `key` with `waker` if the two wake different tasks. Returns `Ready` if the shutdown
    /// has started.
    pub(crate) fn update(&self, key: Key, waker: &Waker, is_live: impl Fn() -> bool) -> Poll<()> {
        let is_same =
            self.0.with(|slab| is_live().then(|| matches!(slab.entry(key), Entry::Occupied(old) if old.will_wake(waker))));
        match is_same {
            None => return Poll::Ready(()),
            Some(true) => return Poll::Pending,
            Some(false) => {}
        }
        let waker = waker.clone();
        let replaced =
            self.0.with(|slab| if is_live() { Ok(replace(slab.entry(key), Entry::Occupied(waker))) } else { Err(waker) });
        if replaced.is_ok() { Poll::Pending } else { Poll::Ready(()) }
    }

    pub(crate) fn remove(&self, key: Key, is_live: impl Fn() -> bool) {
        let removed = self.0.with(|slab| if is_live() { slab.remove(key) } else { None });
        drop(removed);
    }

    /// Removes and wakes all wakers.
    pub(crate) fn wake_all(&self) {
        let slab = self.0.with(take);
        for entry in slab.chunks.into_iter().flat_map(|chunk| chunk.0) {
            if let Entry::Occupied(waker) = entry {
                wake(Some(waker));
            }
        }
    }
}
