//! A list in which each value keeps its key until the value is removed. The wait list and the list of children each contain such a
//! list, under their own lock.

use alloc::vec::Vec;
use core::mem::replace;

/// The position of a value in its list.
pub(crate) type Key = usize;

pub(super) struct Slab<T> {
    /// An occupied entry contains a value. A free entry contains the key of the next free entry.
    entries: Vec<Result<T, Key>>,
    /// The key of the first free entry. If all entries are occupied, `free_head` is the number of entries.
    free_head: Key,
}

/// The smallest number of entries for which a list allocates memory.
const MIN_CAPACITY: usize = 2;

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), free_head: 0 }
    }

    /// Adds a value and returns its key. If the list must grow, the closure `margin` returns the number of entries to leave unused
    /// at each end of the list's memory.
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

    /// Adds a free entry. Leaves `margin` entries unused at both ends of the list's memory, so that the used entries of two lists
    /// are on separate cache lines. Threads that write to the same cache line would slow each other down (invariant H2).
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

    /// Removes and returns all values.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        replace(self, Self::new()).entries.into_iter().flatten()
    }
}
