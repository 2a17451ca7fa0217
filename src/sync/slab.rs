//! A list whose entries have stable keys. The wait list and the list of children hold it under their locks.

use alloc::vec::Vec;
use core::mem::replace;

/// The position of a value in its list.
pub(crate) type Key = usize;

pub(super) struct Slab<T> {
    /// The values. A free entry contains the next free key.
    entries: Vec<Result<T, Key>>,
    /// The first free key. If all entries are occupied, `free_head` is the number of entries.
    free_head: Key,
}

/// The number of entries that a list has space for when it first grows.
const MIN_CAPACITY: usize = 2;

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), free_head: 0 }
    }

    /// Adds a value. If the list must grow, it keeps the margin that the closure returns.
    pub(super) fn insert(&mut self, value: T, margin: impl FnOnce() -> usize) -> Key {
        if self.free_head == self.entries.len() {
            self.grow(margin());
        }
        let key = self.free_head;
        if let Err(next) = replace(&mut self.entries[key], Ok(value)) {
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
        self.entries.resize_with(len, || Err(0));
        self.entries.push(Err(len + 1));
        self.free_head = len;
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let free = Err(replace(&mut self.free_head, key));
        replace(&mut self.entries[key], free).ok()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.entries[key].as_mut().ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    /// Removes all values.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        replace(self, Self::new()).entries.into_iter().flatten()
    }
}
