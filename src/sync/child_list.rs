//! The list of the open children of one shard.
//!
//! A child stays in the list until it has drained, so a caller that holds the list's lock may take a reference to each child: the
//! drain releases its own reference only after it has removed the child.

use crate::platform::{Mutex, const_unless_loom};
use alloc::vec::Vec;
use core::mem::replace;

/// The position of a child in its list.
pub(crate) type Key = usize;

pub(crate) struct ChildList<T>(Mutex<Slab<T>>);

struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// The first free key. If all entries are occupied, `free_head` is the number of entries.
    free_head: Key,
}

enum Entry<T> {
    Occupied(T),
    Free { next: Key },
}

impl<T> ChildList<T> {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Slab { entries: Vec::new(), free_head: 0 }))
        }
    }

    /// Adds the child that the closure `make` returns, and calls `make` under the list's lock.
    pub(crate) fn insert(&self, make: impl FnOnce() -> T) -> Key {
        self.0.with(|slab| {
            let key = slab.free_head;
            if key == slab.entries.len() {
                slab.entries.push(Entry::Free { next: key + 1 });
            }
            if let Entry::Free { next } = replace(&mut slab.entries[key], Entry::Occupied(make())) {
                slab.free_head = next;
            }
            key
        })
    }

    pub(crate) fn remove(&self, key: Key) {
        self.0.with(|slab| slab.entries[key] = Entry::Free { next: replace(&mut slab.free_head, key) });
    }

    /// Calls `f` with each child under the list's lock.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&T)) {
        self.0.with(|slab| {
            for entry in &slab.entries {
                if let Entry::Occupied(child) = entry {
                    f(child);
                }
            }
        });
    }
}
