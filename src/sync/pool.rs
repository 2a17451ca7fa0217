//! Stores leaked values until they are used again. A pool never frees a value, and creates a new value only if the pool is empty.
//! Therefore the number of created values never exceeds the largest number of values that were in use at the same time.

use crate::platform::{CachePadded, Mutex, Once, const_unless_loom, pool_count};
use alloc::{boxed::Box, vec::Vec};

pub(crate) struct Pool<T: 'static>(Mutex<Free<T>>);

struct Free<T: 'static> {
    items: Vec<&'static T>,
    /// The number of items that the pool has created. Only loom models read this number, at the end of a run.
    made: usize,
}

impl<T> Pool<T> {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Free { items: Vec::new(), made: 0 }))
        }
    }

    /// Returns a free item. If there is no free item, calls the closure `make` and leaks the new item.
    pub(crate) fn take(&self, make: impl FnOnce() -> T) -> &'static T {
        self.pop().unwrap_or_else(|| self.make(make))
    }

    fn pop(&self) -> Option<&'static T> {
        self.0.with(|free| free.items.pop())
    }

    fn make(&self, make: impl FnOnce() -> T) -> &'static T {
        self.0.with(|free| free.made += 1);
        Box::leak(Box::new(make()))
    }

    pub(crate) fn put_back(&self, item: &'static T) {
        self.0.with(|free| free.items.push(item));
    }
}

/// A pool with several parts, each with its own lock. Threads that use the pool at the same time rarely use the same part, so they
/// rarely wait for each other.
pub(crate) struct ShardedPool<T: 'static>(Once<Box<[CachePadded<Pool<T>>]>>);

impl<T> ShardedPool<T> {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Once::new())
        }
    }

    /// Returns a free item from the part with the given number, or from another part. If there is no free item, calls the closure
    /// `make` and leaks the new item.
    pub(crate) fn take(&'static self, number: usize, make: impl FnOnce() -> T) -> &'static T {
        let parts = self.parts();
        let tried = (0..parts.len()).map(|i| &parts[(number + i) % parts.len()].0);
        tried.into_iter().find_map(Pool::pop).unwrap_or_else(|| parts[number % parts.len()].0.make(make))
    }

    /// Puts an item back into the part with the given number.
    pub(crate) fn put_back(&'static self, number: usize, item: &'static T) {
        let parts = self.parts();
        parts[number % parts.len()].0.put_back(item);
    }

    fn parts(&'static self) -> &'static [CachePadded<Pool<T>>] {
        self.0.get_or_init(|| (0..pool_count()).map(|_| CachePadded(Pool::new())).collect())
    }
}

/// Checks at the end of each loom run that every item was put back into its pool exactly once.
#[cfg(loom)]
impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0
                .with(|free| assert_eq!(free.items.len(), free.made, "an item did not come back to its pool, or came back twice"));
        }
    }
}
