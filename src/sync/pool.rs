//! A pool of leaked values. The pool never frees a value, but reuses it. The pool therefore never contains more values than were
//! once in use simultaneously.

use crate::platform::{Mutex, const_unless_loom};
use alloc::{boxed::Box, vec::Vec};

pub(crate) struct Pool<T: 'static>(Mutex<Free<T>>);

struct Free<T: 'static> {
    items: Vec<&'static T>,
    /// The number of items that the pool has created. Only loom models read this number.
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
        let free = self.0.with(|free| {
            let item = free.items.pop();
            free.made += usize::from(item.is_none());
            item
        });
        free.unwrap_or_else(|| Box::leak(Box::new(make())))
    }

    pub(crate) fn put_back(&self, item: &'static T) {
        self.0.with(|free| free.items.push(item));
    }
}

/// Checks at the end of each loom run that every item has returned to its pool exactly once.
#[cfg(loom)]
impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0
                .with(|free| assert_eq!(free.items.len(), free.made, "an item did not come back to its pool, or came back twice"));
        }
    }
}
