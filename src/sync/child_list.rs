//! The list of the open children of one shard.
//!
//! A child stays in the list until it has drained, so a caller that holds the list's lock may take a reference to each child: the
//! drain releases its own reference only after it has removed the child.

use super::slab::{Key, Slab};
use crate::platform::{Mutex, const_unless_loom};

pub(crate) struct ChildList<T>(Mutex<Slab<T>>);

impl<T> ChildList<T> {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Slab::new()))
        }
    }

    /// Adds the child that the closure `make` returns, and calls `make` under the list's lock.
    pub(crate) fn insert(&self, make: impl FnOnce() -> T) -> Key {
        self.0.with(|slab| slab.insert(make(), || 0))
    }

    pub(crate) fn remove(&self, key: Key) {
        self.0.with(|slab| slab.remove(key));
    }

    /// Calls `f` with each child under the list's lock.
    pub(crate) fn for_each(&self, f: impl FnMut(&T)) {
        self.0.with(|slab| slab.iter().for_each(f));
    }
}
