//! Lists the child registries of one shard that have not drained.
//!
//! A child stays in the list until it has drained. While a caller holds the list's lock, it can take a reference to the state of
//! each listed child. This state cannot be in the pool, because a child leaves the list before its gates release their reference.

use super::slab::{Key, Slab};
use crate::platform::{Mutex, const_unless_loom};

pub(crate) struct ChildList<T>(Mutex<Slab<T>>);

impl<T> ChildList<T> {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Slab::new()))
        }
    }

    /// Calls the closure `make` under the list's lock, and adds the child that `make` returns.
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
